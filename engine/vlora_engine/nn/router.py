"""`TaskRouter`: a small network that gives every input weights over the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlora_engine.errors import CorruptFileError, MissingPathError, ParameterError
from vlora_engine.nn.blend import blend_tasks, similarities
from vlora_engine.nn.decode import CACHE_BYTES, TaskCache
from vlora_engine.subspace.space import Space
from vlora_engine.subspace.tasks import TaskProjection
from vlora_engine.utils.file_names import ROUTER_INDEX
from vlora_engine.utils.files import write_json
from vlora_engine.utils.json_reader import JsonFile
from vlora_engine.utils.outputs import new_directory
from vlora_engine.utils.partials import how_to_put_back
from vlora_engine.utils.reading import kind_error, read_file
from vlora_engine.utils.safetensors_file import read_header, read_tensor
from vlora_engine.utils.tensor_writer import write_tensors

WEIGHTS, FORMAT = "router.safetensors", "vlora-router"


class TaskRouter(nn.Module):
    """A network from features (B, input_dim) to weights (B, num_tasks), rows summing to 1.

    `VLoRAModel.set_blend(router(x), router.task_ids)` gives every row of a batch its own blend.

    Args:
        hidden_dim: Of the one hidden layer.
        task_ids: The tasks by name; ``task_0`` and on without.
        temperature: The softmax's; higher is softer.

    Raises:
        ParameterError: A size below 1, a temperature not above 0, or another number of names.
    """

    def __init__(
        self,
        input_dim: int,
        num_tasks: int,
        hidden_dim: int = 64,
        task_ids: Sequence[str] | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        sizes = {"input_dim": input_dim, "num_tasks": num_tasks, "hidden_dim": hidden_dim}
        for name, value in sizes.items():
            if value < 1:
                raise ParameterError(f"{name} is at least 1.", found=str(value))
        if not temperature > 0:
            raise ParameterError("A temperature is above 0.", found=str(temperature))
        names = list(task_ids) if task_ids is not None else [f"task_{i}" for i in range(num_tasks)]
        if len(set(names)) != num_tasks or len(names) != num_tasks:
            raise ParameterError(
                "A router has one name per task.",
                expected=f"{num_tasks} different names",
                found=f"{len(names)} names",
            )
        self.input_dim, self.num_tasks, self.hidden_dim = input_dim, num_tasks, hidden_dim
        self.task_ids, self.temperature = names, temperature
        self.net = nn.Sequential(
            nn.Linear(input_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, num_tasks)
        )
        self._decoded = TaskCache(CACHE_BYTES)  # what coded tasks decode to, for every batch

    @classmethod
    def from_subspace(
        cls,
        subspace: Space,
        input_dim: int,
        hidden_dim: int = 64,
        temperature: float = 1.0,
        init_from_loadings: bool = True,
    ) -> TaskRouter:
        """A router over all tasks of a subspace.

        Args:
            init_from_loadings: Let tasks whose dW point the same way begin with output weights
                that do: what is learned about one then also moves its relatives.
        """
        names = sorted(subspace.tasks)
        router = cls(input_dim, len(names), hidden_dim, names, temperature)
        if init_from_loadings and len(names) > 1:
            values, vectors = torch.linalg.eigh(similarities(subspace, names).double())
            alike = vectors * values.clamp_min(0).sqrt()  # rows whose Gram is that of the tasks
            last: Any = router.net[-1]
            with torch.no_grad():
                # Random directions, of the size that a linear layer begins with.
                spread = torch.empty(len(names), hidden_dim).uniform_(-1, 1) / hidden_dim**0.5
                last.weight.copy_(alike.float() @ spread)
        return router

    @property
    def num_params(self) -> int:
        """Numbers of the network."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Weights (B, num_tasks) for features (B, input_dim)."""
        return F.softmax(self.net(x) / self.temperature, dim=-1)

    def blend_loadings(self, x: Tensor, subspace: Space) -> TaskProjection:
        """One task for a batch: the blend by the mean of its rows' weights.

        Exact on dW with `delta` and `columns`, its rank at most min(sum r, k); with `flat` exact
        in the space of the factors only (`blend_tasks`); of a coded collection projected into its
        basis, with ``error`` saying what that loses. Differentiable. For one blend per row:
        `VLoRAModel.set_blend`.

        Raises:
            UnknownTaskError: A task of the router is not in the subspace.
        """
        return blend_tasks(subspace, self.task_ids, self.forward(x).mean(0), cache=self._decoded)

    def fit(
        self,
        embeddings: Tensor,
        labels: Sequence[str] | Sequence[int] | Tensor,
        *,
        epochs: int = 200,
        lr: float = 1e-2,
        weight_decay: float = 1e-4,
        batch_size: int = 256,
        seed: int = 0,
    ) -> list[float]:
        """Learn from embeddings whose task is known; returns the mean loss of every epoch.

        Args:
            embeddings: (M, input_dim). labels: M ids of tasks, or their places in `task_ids`.

        Raises:
            ParameterError: Shapes that do not fit, or an unknown task.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.input_dim or not len(embeddings):
            raise ParameterError(
                "The embeddings do not fit the router.",
                expected=f"(M, {self.input_dim})",
                found=str(tuple(embeddings.shape)),
            )
        device = next(self.parameters()).device
        targets = self._label_indices(labels, len(embeddings)).to(device)
        inputs = embeddings.detach().to(device, torch.float32)
        optimizer = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=weight_decay)
        order, losses = torch.Generator().manual_seed(seed), []
        for _ in range(epochs):
            total = 0.0
            for rows in torch.randperm(len(inputs), generator=order).split(batch_size):
                rows = rows.to(device)
                loss = F.cross_entropy(self.net(inputs[rows]) / self.temperature, targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            losses.append(total / len(inputs))
        return losses

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write a directory: ``router.json`` and ``router.safetensors``.

        Raises:
            OutputExistsError: It is there, and not ``force``. StorageError: The disk refused.
        """
        index = {
            "format": FORMAT,
            "version": 1,
            "input_dim": self.input_dim,
            "hidden_dim": self.hidden_dim,
            "temperature": self.temperature,
            "task_ids": self.task_ids,
        }
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        with new_directory(Path(path), job="router", force=force) as partial:
            write_json(partial / ROUTER_INDEX, index, indent=1)
            write_tensors(partial / WEIGHTS, tensors, {"format": "pt"})

    @classmethod
    def load(cls, path: str | Path) -> TaskRouter:
        """The router that `save` wrote.

        Raises:
            NotFoundError: There is none. CorruptFileError: It is not sound.
        """
        folder = Path(path)
        if not (folder / ROUTER_INDEX).is_file():
            raise kind_error(folder / ROUTER_INDEX) or MissingPathError(
                "There is no router here.",
                where=folder,
                expected=ROUTER_INDEX,
                remedy=how_to_put_back(folder),
            )
        file = JsonFile(folder / ROUTER_INDEX, "The router's files are not sound.", "save it again")
        index = file.parse(read_file(file.path)).object()
        index["format"].one_of([FORMAT])
        if index["version"].natural() != 1:
            raise index["version"].error("version 1")
        width, hidden = index["input_dim"].natural(), index["hidden_dim"].natural()
        names, temperature = index["task_ids"].texts(), index["temperature"].number()
        header = read_header(folder / WEIGHTS)
        shapes = {name: entry.shape for name, entry in header.entries.items()}
        wanted = {
            "net.0.weight": (hidden, width),
            "net.0.bias": (hidden,),
            "net.2.weight": (len(names), hidden),
            "net.2.bias": (len(names),),
        }
        if shapes != wanted:  # before anything of that size is made
            raise _unsound(folder, f"{wanted}"[:200], f"{shapes}"[:200])
        try:
            router = cls(width, len(names), hidden, names, temperature)
        except ParameterError as error:
            raise _unsound(folder, error.expected, f"{error.what} {error.found}") from None
        tensors = {name: read_tensor(header, name) for name in wanted}
        if not all(
            t.is_floating_point() and bool(t.float().isfinite().all()) for t in tensors.values()
        ):
            raise _unsound(folder, "finite numbers", "others")
        router.load_state_dict(tensors)
        return router

    def _label_indices(self, labels: Sequence[Any] | Tensor, count: int) -> Tensor:
        positions = {name: i for i, name in enumerate(self.task_ids)}
        listed = labels.tolist() if isinstance(labels, Tensor) else list(labels)
        found = [positions.get(x, -1) if isinstance(x, str) else int(x) for x in listed]
        wrong = [x for x, at in zip(listed, found, strict=True) if not 0 <= at < self.num_tasks]
        if len(found) != count or wrong:
            raise ParameterError(
                "Every embedding needs one of the router's tasks as its label.",
                expected=f"{count} labels, as {self.task_ids[0]!r}",
                found=repr(wrong[0]) if wrong else f"{len(found)} labels",
            )
        return torch.tensor(found)


def _unsound(folder: Path, expected: str | None, found: str) -> CorruptFileError:
    return CorruptFileError(
        "The router's files are not sound.",
        where=folder,
        expected=expected,
        found=found,
        remedy="save it again",
    )

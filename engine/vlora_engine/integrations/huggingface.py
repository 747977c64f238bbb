"""`VLoRACallback`: train a task of a subspace with transformers' Trainer (extra ``peft``).

orthogonal_init(subspace, "new")
trainer = Trainer(model, args, train_dataset=data, callbacks=[VLoRACallback(subspace, "new")])
trainer.train()
subspace.save("with-new")
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from vlora_engine.errors import DependencyError, ParameterError
from vlora_engine.nn.model import VLoRAModel
from vlora_engine.nn.training import SubspaceTrainer
from vlora_engine.subspace.space import Space

try:
    from transformers import TrainerCallback
except ImportError as error:  # pragma: no cover  (transformers is in the development extra)
    raise DependencyError(
        "VLoRACallback needs transformers, which is not installed.",
        found=str(error),
        remedy="pip install 'vlora-tui[peft]'",
    ) from error

logger = logging.getLogger(__name__)

HOLDER = "vlora_loadings"  # the submodule of the base that holds the parameters meanwhile


class VLoRACallback(TrainerCallback):
    """Lets transformers' Trainer train the loadings of one task, and nothing else.

    When the Trainer is made, the loadings become parameters of its model and all others are
    frozen. Its own optimizer, schedule, clipping, accumulation, checkpoints and resuming then work
    on them as on any parameters. When training ends, what was learned is written back to the
    subspace and the model is as it was.

    Args:
        subspace: It has the task already: `orthogonal_init`, or `project` and `add_task`.
        lr: The learning rate; it replaces the Trainer's own. None leaves that.
        num_expand: Extra directions for this task alone, see `SubspaceTrainer`.
        log_every: Steps between two entries in the Trainer's log history.
        save_on_end: Whether the task is written back when training ends.

    Attributes:
        trainer: The `SubspaceTrainer` that holds the parameters; None before training begins.
    """

    def __init__(
        self,
        subspace: Space,
        task_id: str,
        lr: float | None = 1e-3,
        num_expand: int = 0,
        log_every: int = 50,
        save_on_end: bool = True,
    ) -> None:
        if log_every < 1:
            raise ParameterError("log_every is at least 1.", found=str(log_every))
        self.subspace, self.task_id, self.lr = subspace, task_id, lr
        self.log_every, self.save_on_end = log_every, save_on_end
        self._trainer = SubspaceTrainer(subspace, task_id, lr or 1e-3, num_expand)
        self.trainer: SubspaceTrainer | None = None
        self._model: VLoRAModel | None = None
        self._leave = False  # whether the hooks are ours to take off
        self._frozen: list[nn.Parameter] = []

    def attach(self, model: nn.Module) -> None:
        """Make the loadings the trainable parameters of ``model`` (done by ``Trainer(...)``)."""
        if self._model is not None:
            return
        ours = isinstance(model, VLoRAModel)
        self._model = model if isinstance(model, VLoRAModel) else VLoRAModel(model, self.subspace)
        self._leave = not ours
        self._trainer.to(next(model.parameters()).device)
        self._frozen = self._model.begin_training(self._trainer)
        self._model.base_model.add_module(
            HOLDER, nn.ParameterList(list(self._trainer.params.values()))
        )

    def detach(self) -> None:
        """Give the model back as it was; called when training ends, or by one who interrupts it."""
        if self._model is None:
            return
        delattr(self._model.base_model, HOLDER)
        self._model.end_training(self._frozen)
        if self._leave:
            self._model.detach()
        self._model = None

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the Trainer makes its optimizer."""
        self.attach(kwargs["model"])
        if not self._leave:
            args.remove_unused_columns = False  # a wrapper's forward does not name them
        if self.lr is not None:
            args.learning_rate = self.lr

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse to run where the Trainer would train something else."""
        held = {id(p) for group in kwargs["optimizer"].param_groups for p in group["params"]}
        ours = {id(p) for p in self._trainer.params.values()}
        if self._model is None or held != ours:
            raise ParameterError(
                "The Trainer's optimizer does not hold the loadings, and them alone.",
                where=self.task_id,
                remedy="give a new VLoRACallback to Trainer(callbacks=[...]) when it is made, and "
                "leave the optimizer to the Trainer",
            )
        self.trainer = self._trainer
        count = self._trainer.num_trainable_params
        logger.info("training %r: %d loadings, %d modules", self.task_id, count, len(ours) // 2)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a step of the Trainer's optimizer."""
        self._trainer.count_step()
        if state.global_step % self.log_every == 0:
            norm2 = sum(float(p.detach().square().sum()) for p in self._trainer.params.values())
            entry = {
                "step": state.global_step,
                "vlora/loadings_norm": norm2**0.5,
                "vlora/trainable_params": self._trainer.num_trainable_params,
                "vlora/step": self._trainer.step_count,
            }
            state.log_history.append(entry)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write back, and give the model back."""
        if self.save_on_end:
            self._trainer.write_back()
        self.detach()

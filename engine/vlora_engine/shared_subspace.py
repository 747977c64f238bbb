"""`SharedSubspace`: one shared basis per module, small loadings per task.

The names and call forms are those of the field's first library, so that its users can move by
changing the import. What differs is said where it differs.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource, LoRAWeights, as_source
from vlora_engine.adapters.module_names import common_names, names_like
from vlora_engine.adapters.unchanged import require_unchanged
from vlora_engine.catalog.load import AnySpace, load_space, read_settled
from vlora_engine.catalog.open import open_adapter
from vlora_engine.compress.absorb import absorb, absorb_incremental, rebased
from vlora_engine.compress.build import build_space
from vlora_engine.compress.compact import compact
from vlora_engine.compress.requantize import requantize
from vlora_engine.compression_target import (
    ADAPTIVE_VARIANCE,
    CompressionTarget,
    LayerK,
)
from vlora_engine.errors import NotFoundError, ParameterError, VLoRAError
from vlora_engine.manifest.manifest import LayerSpec
from vlora_engine.nn.peft_model import as_peft_adapter, require_extra, with_adapter
from vlora_engine.nn.stats import full_stack
from vlora_engine.nn.training import trainable_params
from vlora_engine.publish.push import push_space
from vlora_engine.quantization.packing import (
    BLOCK_SIZE,
    DOUBLE_QUANT,
    Quantization,
    quantization,
)
from vlora_engine.subspace.basis import Bases, LayerBasis
from vlora_engine.subspace.basis_space import BasisSpace
from vlora_engine.subspace.coded.basis import BasisFigures, BasisTarget, make_basis
from vlora_engine.subspace.coded.space import CodedSpace
from vlora_engine.subspace.loadings import Storage
from vlora_engine.subspace.request import prepare
from vlora_engine.subspace.save import save
from vlora_engine.subspace.tasks import TaskMap, TaskProjection, task_names
from vlora_engine.utils.device import pick_device
from vlora_engine.utils.naming import percent_text, unique_names
from vlora_engine.utils.progress import ProgressCallback
from vlora_engine.utils.ranking import worst
from vlora_engine.utils.run_context import RunContext

T = TypeVar("T")

HELD_BYTES = 256 << 20  # of a directory that is read whole when it is loaded

LOW_COVERAGE = 0.5  # the share of an adapter's energy below which `project` warns

logger = logging.getLogger(__name__)


class SharedSubspace:
    """A collection of adapters in one shared basis. Make one with the ``from_`` constructors.

    It holds a `BasisSpace` or, for the methods `own` and `auto`, a `CodedSpace`: a shared basis
    of its tasks is then made when something first asks for components (`with_basis`).

    Attributes:
        space: What it holds.
        method: ``auto``, ``own``, ``delta``, ``columns`` or ``flat``.
        dtype: What it is stored in: F32, F16 or BF16. Every number in memory is one that this
            dtype holds, so that what is measured is what is saved.
        quantization: How bases (and loadings) are packed, or None. In memory they are packed, too;
            of packed bases one module at a time becomes numbers, when it is asked for.
        layer_names: The shared modules.
        tasks: Mapping of task id to `TaskProjection`; from a directory, loaded when asked for.
        components_a, components_b: Per module (k, d), `flat`: (k, r * d).
        singular_values_a, singular_values_b: Per module (k,).
        means_a, means_b: Per module (r * d,) for `flat`, else empty.
        shapes_a, shapes_b: Per module (rank, d_in) and (d_out, rank).
    """

    def __init__(self, space: AnySpace) -> None:
        self.space = space
        self._lazy = False

    def __repr__(self) -> str:
        k = f", k={self.num_components}" if self.has_basis else ""
        return (
            f"SharedSubspace(method={self.method!r}, layers={len(self.layers)}, "
            f"tasks={len(self.tasks)}{k})"
        )

    @property
    def method(self) -> str:
        return self.space.method

    @property
    def dtype(self) -> str:
        return self.space.dtype

    @property
    def quantization(self) -> Quantization | None:
        return self.space.quantization

    @property
    def base_model(self) -> str | None:
        return self.space.base_model

    @property
    def layers(self) -> list[LayerSpec]:
        """The shared modules: their shapes and k."""
        return self.space.layers

    @property
    def tasks(self) -> TaskMap:
        return self.space.tasks

    @property
    def bases(self) -> Bases:
        """The basis of every layer."""
        return self.space.bases

    @property
    def has_basis(self) -> bool:
        """Whether components are there; a coded collection makes them when they are asked for."""
        return self.space.has_basis

    @property
    def basis_figures(self) -> BasisFigures | None:
        """What making the basis of a coded collection came to; None where it was not made here."""
        basis = self.space.tasks.basis if isinstance(self.space, CodedSpace) else None
        return basis.figures if basis is not None else None

    def in_basis(self) -> SharedSubspace:
        """The same with every task as loadings: of a coded collection, projected into its basis.

        A task that is put there, or trained there, is one of the collection, as loadings.
        """
        of_basis = self.space.in_basis()
        return self if of_basis is self.space else SharedSubspace(of_basis)

    def with_basis(
        self,
        k: int | None = None,
        variance: float | None = None,
        *,
        progress: ProgressCallback | None = None,
    ) -> SharedSubspace:
        """The same tasks with a shared basis made of them, which `save` writes beside them.

        Its bases are those of `delta`, computed layer by layer from what is stored: one layer of
        all tasks is in memory at a time. Coded tasks stay as they are; tasks that are loadings in
        another basis are expressed in the new one, with what that loses in their errors. What it
        came to stands in ``notes``. Of a subspace of another method all tasks become loadings in
        the new basis; without ``k`` and ``variance`` one that has a basis stays as it is.

        Args:
            k: Directions a side of every layer, at most as many as there are.
            variance: Else the least k of each layer that holds this share of the tasks' energy;
                by default 99 %.

        Raises:
            ParameterError: Both, or a number out of range.
        """
        target = BasisTarget(k, variance)
        run = RunContext(progress)
        if isinstance(self.space, BasisSpace):
            if k is None and variance is None:
                return SharedSubspace(self.space.copy())
            return SharedSubspace(rebased(self.space, target, run))
        twin = self.space.copy()
        twin.set_basis(make_basis(twin.tasks, target, run))
        twin.keeps_basis = True
        return SharedSubspace(twin)

    @property
    def notes(self) -> list[str]:
        """Remarks from building or opening it."""
        return self.space.notes

    @property
    def home(self) -> Path | None:
        """The directory that it was loaded from or saved to."""
        return self.space.home

    @property
    def storage(self) -> Storage:
        """How its numbers are stored."""
        return self.space.storage

    @property
    def layer_names(self) -> list[str]:
        return self.space.layer_names

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return self.space.rank

    @property
    def num_components(self) -> int:
        """The largest k of any side; 0 where there are no components."""
        return self.space.num_components

    @property
    def components_a(self) -> Mapping[str, Tensor]:
        return self._of_bases(lambda basis: basis.a)

    @property
    def components_b(self) -> Mapping[str, Tensor]:
        return self._of_bases(lambda basis: basis.b)

    @property
    def singular_values_a(self) -> Mapping[str, Tensor]:
        return self._of_bases(lambda basis: basis.singular_values_a)

    @property
    def singular_values_b(self) -> Mapping[str, Tensor]:
        return self._of_bases(lambda basis: basis.singular_values_b)

    @property
    def means_a(self) -> Mapping[str, Tensor]:
        return self._means("a")

    @property
    def means_b(self) -> Mapping[str, Tensor]:
        return self._means("b")

    @property
    def shapes_a(self) -> dict[str, tuple[int, int]]:
        return {spec.name: (spec.rank, spec.d_in) for spec in self.layers}

    @property
    def shapes_b(self) -> dict[str, tuple[int, int]]:
        return {spec.name: (spec.d_out, spec.rank) for spec in self.layers}

    def _of_bases(self, part: Callable[[LayerBasis], Tensor]) -> Mapping[str, Tensor]:
        bases = self.space.bases
        return _Lazy(list(bases), lambda name: part(bases[name]))

    def _means(self, side: str) -> Mapping[str, Tensor]:
        if self.method != "flat":
            return {}
        bases = self.space.bases

        def mean(name: str) -> Tensor:
            found = bases[name].mean(side)
            assert found is not None  # noqa: S101  (flat has means)
            return found

        return _Lazy(self.layer_names, mean)

    @classmethod
    def from_adapters(
        cls,
        adapters: Sequence[LoRAWeights | AdapterSource],
        task_ids: Sequence[str] | None = None,
        variance_threshold: float | None = None,
        num_components: int | None = None,
        adaptive_k: bool = False,
        *,
        method: str | None = None,
        budget: int | None = None,
        max_error: float | None = None,
        mean_error: float | None = None,
        k_a: int | None = None,
        k_b: int | None = None,
        layers: Mapping[str, LayerK] | None = None,
        refine: int = 0,
        dtype: str = "auto",
        quantize: str = "none",
        block_size: int = BLOCK_SIZE,
        double_quant: bool = DOUBLE_QUANT,
        skip_bad: bool = False,
        device: str = "auto",
        progress: ProgressCallback | None = None,
        max_memory: int | None = None,
    ) -> SharedSubspace:
        """Compress adapters into one subspace.

        Without any target the worst task may lose 5 % (``max_error=0.05``). Without a method it
        is ``auto``, which gives every direction bits of its own and shares what pays; `delta`
        where k, a variance or a way of storing it is given, for those mean components.
        ``method="flat"`` gives the shapes of the first library; its default variance of 0.6 leaves
        an error of 63 % and is therefore not ours. ``adaptive_k`` chooses k per layer for
        ``variance_threshold``, without one for 0.6, and wins over ``num_components``, which wins
        over ``variance_threshold``: all as in the first library. ``quantize`` packs bases and
        loadings as ``int8``, ``int4`` or ``nf4``, in blocks of ``block_size`` numbers whose scales
        have 8 bits with ``double_quant``; targets and budgets then count what that costs and saves.
        With ``auto`` or ``own`` it is `quantize` afterwards. A k beyond what a layer
        has is clamped to all it has; a warning in the log and `notes` say so. ``max_memory``: bytes
        that this process may hold meanwhile.

        Raises:
            CollectionError: Bad adapters. ParameterError, TargetError: k or the target.
        """
        names = task_names(task_ids, len(adapters))
        if adaptive_k:
            num_components = None
            aims = (variance_threshold, k_a, k_b, budget, max_error, mean_error)
            if all(aim is None for aim in aims):
                variance_threshold = ADAPTIVE_VARIANCE
        wanted = CompressionTarget(
            method=method or "",
            k=num_components,
            k_a=k_a,
            k_b=k_b,
            layers=layers or {},
            variance=variance_threshold if num_components is None else None,
            adaptive=adaptive_k,
            max_error=max_error,
            mean_error=mean_error,
            budget=budget,
            dtype=dtype,
            refine=refine,
            quantize=quantize,
            block_size=block_size,
            double_quant=double_quant,
        )
        # What is coded is packed afterwards, if it is.
        packed = wanted.quantization if wanted.is_coded else None
        targets = (wanted.unpacked() if wanted.is_coded else wanted).checked()
        opened = common_names([as_source(adapter) for adapter in adapters])
        sources = dict(zip(names, opened, strict=True))
        run = RunContext(progress, device=device, max_memory=max_memory)
        collection = prepare(sources, run, dtype=dtype, lossy=targets.lossy, skip_bad=skip_bad)
        space: AnySpace = build_space(collection, targets, run)
        if packed is not None:  # coded tasks have no loadings
            space, remarks = requantize(space, replace(packed, loadings=None), run)
            space.notes += remarks
        for note in space.notes:
            logger.warning(note)
        return cls(space)

    @classmethod
    def from_adapters_streaming(
        cls,
        adapter_paths: Sequence[str | Path],
        task_ids: Sequence[str] | None = None,
        num_components: int | None = None,
        **options: Any,
    ) -> SharedSubspace:
        """The same subspace as `from_adapters`, from folders, with bounded memory.

        Only one layer of all adapters is in memory at a time; the first library's function of
        this name is an approximation, this one is not. Takes the options of `from_adapters`.
        """
        names = task_ids or unique_names([str(path) for path in adapter_paths])
        return cls.from_adapters(
            [open_adapter(path) for path in adapter_paths],
            names,
            num_components=num_components,
            **options,
        )

    def project(
        self,
        adapter: LoRAWeights | AdapterSource,
        task_id: str,
        warn_threshold: float | None = LOW_COVERAGE,
    ) -> TaskProjection:
        """An adapter in this subspace's coordinates; the subspace stays as it is.

        Modules that the basis lacks ride along as they are. ``errors`` of the result says what
        is lost; where less than ``warn_threshold`` of the energy of its dW is captured, a
        ``UserWarning`` says so (None: never).

        Raises:
            CollectionError: A module has other dimensions. AdapterError: NaN or Inf.
            ParameterError: `flat`, and the rank is above the basis's.
        """
        source = self._named(adapter)
        projection = self._settled(lambda space: space.project(source, task_id))
        require_unchanged([source])
        lost = projection.record.error if projection.record is not None else 0.0
        captured = max(0.0, 1 - lost**2)
        if warn_threshold is not None and captured < warn_threshold:
            warnings.warn(
                f"Low coverage: the subspace holds {percent_text(captured)} of adapter "
                f"{task_id!r}; absorb it to extend the basis.",
                stacklevel=2,
            )
        return projection

    def add_task(self, projection: TaskProjection, *, replace: bool = False) -> None:
        """Register a projected task.

        Raises:
            ParameterError: There is a task of that name already, and not ``replace``.
        """
        self.space.add_task(projection, replace=replace)

    def remove_task(self, task_id: str) -> None:
        """Forget a task; the basis stays as it is.

        Raises:
            UnknownTaskError: There is no such task.
        """
        del self.tasks[task_id]

    def reconstruct(self, task_id: str) -> LoRAWeights:
        """The adapter of a task: its rank, alpha, config, dtype and rest tensors.

        Raises:
            UnknownTaskError: There is no such task.
        """
        return self._settled(lambda space: space.reconstruct(task_id))

    def absorb(
        self,
        new_adapter: LoRAWeights | AdapterSource,
        new_task_id: str,
        *,
        replace: bool = False,
        device: str = "auto",
        progress: ProgressCallback | None = None,
        max_memory: int | None = None,
    ) -> list[str]:
        """Recompute the basis with one more adapter, k per layer as it is.

        Tasks are read from their original folders where these still are and their content hash
        matches, else from their reconstructions.

        Args:
            replace: A task of that name makes way.

        Returns:
            The ids of the tasks that had to be taken from their reconstructions.

        Raises:
            ParameterError: There is a task of that name already, and not ``replace``.
        """
        run = RunContext(progress, device=device, max_memory=max_memory)
        source = self._named(new_adapter)
        return absorb(self.space, source, new_task_id, run, replacing=replace)

    def absorb_incremental(
        self,
        new_adapter: LoRAWeights | AdapterSource,
        new_task_id: str,
        *,
        replace: bool = False,
    ) -> None:
        """Turn the basis towards one more adapter without reading the others, k as it is.

        The incremental update is exact (Brand 2006, with the mean row of Ross et al. 2008; see
        docs/mathematics.md#growing): where k covers the rank it equals a full rebuild. What the
        other tasks lose is bounded, not measured.

        Raises:
            ParameterError: There is a task of that name already, and not ``replace``.
        """
        absorb_incremental(self.space, self._named(new_adapter), new_task_id, replacing=replace)

    def _named(self, adapter: LoRAWeights | AdapterSource) -> AdapterSource:
        """An adapter under the names that this subspace has for the same modules."""
        return names_like(as_source(adapter), {spec.name: spec.fits for spec in self.space.layers})

    def errors(self) -> dict[str, Any]:
        """Relative errors of dW as stored: ``mean``, ``max``, ``worst_task``, and per task."""
        tasks: dict[str, dict[str, Any]] = {}
        for name, projection in self.tasks.items():
            record = self.tasks.record(name)
            tasks[name] = {
                "error": record.error,
                "measured": record.measured,
                "layers": dict(projection.errors),
            }
        overall: dict[str, float] = {name: task["error"] for name, task in tasks.items()}
        return {
            "mean": sum(overall.values()) / max(1, len(overall)),
            "max": max(overall.values(), default=0.0),
            "worst_task": worst(overall),
            "tasks": tasks,
        }

    def surface(self, layer: str) -> dict[str, Any]:
        """The exact relative error of one layer for every (k_b, k_a) within this subspace.

        Returns:
            ``tasks`` (names) and ``errors`` (N, k_b + 1, k_a + 1). For `flat` only the diagonal
            of equal k means something; it raises.

        Raises:
            NotFoundError: Unknown layer. ParameterError: The method is `flat`.
        """
        if layer not in self.layer_names:
            raise NotFoundError(f"There is no module {layer!r} in this subspace.")
        if self.method == "flat":
            raise ParameterError("A surface needs nested bases of dW.", found="method flat")
        return self.space.surface(layer)

    def compression_stats(self) -> dict[str, Any]:
        """Parameters kept and replaced, means and cores counted; the first library's keys.

        ``compression_ratio`` is parameters of A and B over parameters stored; it knows no bits.
        ``bytes_compressed`` is what bases and loadings take as they are stored, packed or not,
        ``bytes_original`` A and B at 16 bit. Every byte on disk: `read_manifest`.
        """
        return self.space.compression_stats()

    def full_stack_compression(
        self,
        base_model_params: int | None = None,
        base_model_bits: int = 16,
        quantized_bits: int = 4,
        *,
        base_model: torch.nn.Module | None = None,
    ) -> dict[str, Any]:
        """Bytes of the adapters, and of a base model that is quantized beside them.

        The first library's keys. Its adapter bytes are parameters times four, whatever is stored;
        these are the bytes that bases and loadings take, against A and B at 16 bit.

        Args:
            base_model: The base itself, instead of its number of parameters: its bytes are then
                measured (``base_model.measured`` says which), the others derived from the bits.

        Raises:
            ParameterError: Parameters or bits below 1, or both a model and a number.
        """
        return full_stack(self, base_model_params, base_model_bits, quantized_bits, base_model)

    def get_trainable_params(
        self, task_id: str, num_expand: int = 0, *, seed: int = 0
    ) -> dict[str, torch.nn.Parameter]:
        """A task's loadings as new parameters: ``{module}.loadings_a`` and ``.loadings_b``.

        With ``num_expand`` they are wider by loadings of extra directions, zero at first, that are
        orthogonal to the basis and the same for the same seed; the basis stays as it is (the first
        library extends it for good, and with it every task). `SubspaceTrainer` trains them.

        Raises:
            UnknownTaskError: There is no such task. ParameterError: ``num_expand`` is negative.
        """
        return dict(trainable_params(self, task_id, num_expand, seed=seed))

    def apply(self, base_model: Any, task_id: str) -> Any:
        """``base_model`` with a task on it, as a ``peft.PeftModel`` (extra ``peft``).

        Raises:
            As `vlora_engine.apply`.
        """
        require_extra()
        return with_adapter(base_model, as_peft_adapter(self.reconstruct(task_id)))

    def quantize(
        self,
        bits: int = 8,
        method: str = "symmetric",
        block_size: int = BLOCK_SIZE,
        quantize_loadings: bool = False,
        double_quant: bool = False,
    ) -> SharedSubspace:
        """Pack the bases, and the loadings if asked, in place; returns itself.

        A coded collection is coded anew to at most the bytes that A and B of its adapters take at
        so many bits with scales, or left as it is where it takes no more already; the log and
        ``notes`` say which.

        Bytes in memory and on disk shrink (the first library only rounds). ``symmetric`` has 8 or
        4 bits; ``nf4`` has QLoRA's 16 levels. Every block of ``block_size`` numbers has a scale
        of its own, with ``double_quant`` of 8 bits instead of 16. Loadings, where packed, have 8
        bits: they are few, and the error is in proportion. They are fitted again to what packing
        left of the bases. A task's error is measured again where its adapter still is in its
        place, unchanged; else it is bounded from now on.

        Raises:
            ParameterError: Bits, method or block size out of range.
            TargetError: A coded collection cannot be coded to so few bytes.
        """
        wanted = quantization(
            method,
            bits,
            block_size=block_size,
            double_quant=double_quant,
            loadings=quantize_loadings,
        )
        self.space, remarks = requantize(self.space, wanted)
        for remark in remarks:
            self.space.notes.append(remark)
            logger.warning("%s", remark)
        return self

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> SharedSubspace:
        """Move the bases and the loadings (and what is reconstructed) in place; returns itself.

        A dtype narrower than fp32 loses digits; what is saved afterwards is what was kept.

        Raises:
            ParameterError: There is no such device here.
        """
        target = None if device is None else pick_device(device)
        self.space.move(target, dtype)
        return self

    def _settled(self, read: Callable[[AnySpace], T]) -> T:
        """Read from the space, loaded again where its directory was replaced meanwhile."""
        self.space, result = read_settled(self.space, read)
        return result

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write a subspace directory, or update the one this subspace was loaded from.

        Where only tasks came or went, only their files and the index are written, the index
        last. While another command is changing that directory, this waits.

        Raises:
            ConflictError: The directory it was loaded from was changed since, by somebody else.
            OutputExistsError: ``path`` is there, is not where this came from, and not ``force``.
            StorageError: The disk refused; what was there is as it was.
        """
        save(self.space, Path(path), force=force)
        self._hold()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        message: str | None = None,
        tasks: Sequence[str] | None = None,
        force: bool = False,
        progress: ProgressCallback | None = None,
    ) -> str:
        """Push it to a repository of the Hugging Face Hub, with a model card; the page's address.

        The token is that of `hf auth login` or HF_TOKEN.

        Args:
            private: Of a repository that is new.
            revision: The branch; by default the main one.
            tasks: Push these tasks as PEFT adapters, a folder each, instead of the subspace.
            force: The repository has files already; those of an earlier push make way.

        Raises:
            HubAccessError: There is no token, or it may not write there.
            OutputExistsError: The repository has files, and not ``force``.
            HubError: The Hub cannot be reached, or refused.
        """
        with tempfile.TemporaryDirectory(prefix="vlora-push-") as staging:
            pushed = push_space(
                self.space,
                repo_id,
                Path(staging),
                private=private,
                revision=revision,
                message=message,
                tasks=tasks,
                force=force,
                progress=progress,
            )
        return pushed.url

    def save_quantized(
        self, path: str | Path, block_size: int = BLOCK_SIZE, *, force: bool = False
    ) -> None:
        """Write a subspace directory with the bases as NF4; this subspace stays as it is.

        A coded collection is written in at most the bytes of NF4, as `quantize` does.

        Raises:
            As `quantize` and `save`.
        """
        twin = SharedSubspace(self.space.copy())
        twin.quantize(method="nf4", block_size=block_size)
        twin.save(path, force=force)

    @classmethod
    def load(cls, path: str | Path, *, verify: bool = True, lazy: bool = False) -> SharedSubspace:
        """Open a subspace directory.

        Up to `HELD_BYTES` (256 MB) all of it is read now, and what is loaded outlives the
        directory. Of a larger one, or with ``lazy``, only the index is read: files are read when
        they are asked for, and have to stay where they are. Every tensor file is checked against
        its checksum when it is first read.

        Those of vlora-dev (as method `flat`) and lorashare (as `columns`) are opened alike; they
        have no checksums, and are saved to another place: nothing is changed in theirs.

        Raises:
            NotFoundError: There is no subspace at ``path``. CorruptFileError: It is not sound.
        """
        loaded = cls(load_space(path, verify=verify))
        loaded._lazy = lazy
        loaded._hold()
        return loaded

    def _hold(self) -> None:
        """Read what is small enough to be kept in memory; what is not sound is left on disk.

        It is read, and its fault said, when it is asked for.
        """
        stored = self.space.stored
        if self._lazy or stored is None or stored.manifest.nbytes > HELD_BYTES:
            return
        with suppress(VLoRAError):
            stored.hold()

    def compact(
        self,
        *,
        device: str = "auto",
        progress: ProgressCallback | None = None,
        max_memory: int | None = None,
    ) -> tuple[SharedSubspace, list[str]]:
        """A coded collection planned and coded anew, for the target that it was coded for.

        Returns:
            The new collection, and the ids of tasks whose originals are gone or changed: they
            were taken from their reconstructions, and their errors are bounds.

        Raises:
            ParameterError: It has a basis: there is nothing to plan anew.
        """
        if not isinstance(self.space, CodedSpace):
            raise ParameterError(
                "Only a coded collection is compacted (methods auto and own).",
                found=f"method {self.method}",
            )
        new, rebuilt = compact(
            self.space, RunContext(progress, device=device, max_memory=max_memory)
        )
        return SharedSubspace(new), rebuilt


class _Lazy(Mapping[str, T]):
    """A mapping over fixed keys whose values are looked up."""

    def __init__(self, keys: Sequence[str], look_up: Callable[[str], T]) -> None:
        self._keys, self._look_up = dict.fromkeys(keys), look_up

    def __getitem__(self, key: str) -> T:
        if key not in self._keys:
            raise KeyError(key)
        return self._look_up(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

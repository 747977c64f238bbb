"""lorashare's Python API: change the import, keep the code.

    from vlora_engine.compat.lorashare import SHAREModel

Names, arguments and the files on disk are lorashare's, and its own package loads what this writes.
What differs: directions are found and used without taking a mean off, every layer has its own
largest k, adapters may differ in rank and modules, alpha and heads are never lost, names that would
leave the directory become slugs, saving replaces a checkpoint in one step, and the variances and
errors shown are those of what is stored.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vlora_engine.adapters.address import SCHEME, AdapterRef
from vlora_engine.adapters.base_models import normalise_base_model
from vlora_engine.adapters.check import check_adapters
from vlora_engine.adapters.model import AdapterSource, LoRAWeights, MemorySource
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.compat import share_parts
from vlora_engine.compat.share_config import SHAREConfig
from vlora_engine.errors import DependencyError, ParameterError, UnknownTaskError, VLoRAError
from vlora_engine.formats.peft_save import peft_tensors
from vlora_engine.hub.client import api, hub_errors, silence
from vlora_engine.interop.lorashare import open_tasks
from vlora_engine.interop.names import LORASHARE, peer_at
from vlora_engine.interop.write import share_names, share_settings, write_lorashare
from vlora_engine.linalg.low_rank import relative_error
from vlora_engine.manifest.records import max_k, shared_layers
from vlora_engine.publish.push import require_token
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.targets.save import save_adapter
from vlora_engine.utils.file_names import SHARE_INDEX
from vlora_engine.utils.outputs import new_directory
from vlora_engine.utils.progress import Progress

__all__ = ["SHAREConfig", "SHAREModel"]

# Fields of the config that follow from what is there.
_DERIVED_FIELDS = (
    "num_components",
    "adapter_names",
    "num_adapters",
    "layer_keys",
    "compression_stats",
)

logger = logging.getLogger(__name__)


class UnknownAdapter(UnknownTaskError):
    """The error for an adapter that is not there; lorashare raises a ``KeyError`` here."""


class SHAREModel:
    """Adapters in one shared basis, with lorashare's methods.

    Args:
        config: Its settings.
        components: ``{"<layer>:A": (d_in, k), "<layer>:B": (d_out, k)}``.
        all_loadings: By adapter ``{"<layer>:A": (k, r), ...}``.
        adapter_configs: By adapter its adapter_config.json.
        all_classifier_heads: By adapter its other tensors under their keys.
        adapter_sources: By adapter where it came from.
    """

    def __init__(
        self,
        config: SHAREConfig,
        components: Mapping[str, Tensor],
        all_loadings: Mapping[str, Mapping[str, Tensor]],
        adapter_configs: Mapping[str, dict[str, Any]],
        all_classifier_heads: Mapping[str, dict[str, Tensor]] | None = None,
        adapter_sources: Mapping[str, str] | None = None,
    ) -> None:
        heads = all_classifier_heads or {}
        base = config.base_model_name_or_path or None
        self.subspace = share_parts.subspace_of(
            base, components, all_loadings, adapter_configs, heads
        )
        self.config = config
        self.adapter_sources: dict[str, str] = dict(adapter_sources or {})

    @classmethod
    def from_adapters(
        cls,
        adapters: Sequence[str | Path] | Mapping[str, str | Path],
        num_components: int | str = 32,
        variance_threshold: float = 0.95,
        device: str | None = None,
        layer_by_layer: bool = False,
        chunk_size: int | None = None,
        on_error: str = "raise",
    ) -> SHAREModel:
        """Compress adapters: folders of any format that this engine reads.

        Args:
            adapters: Folders, or a mapping of names to folders. ``org/name`` is on the Hub where
                nothing here is called ``org``, as is ``hf://org/name`` anywhere.
            num_components: k, at most what a layer has; or "auto": the smallest k that keeps
                ``variance_threshold`` of dW's energy, averaged over adapters.
            device: As torch names it; None chooses.
            layer_by_layer: Without effect: the build is always layer by layer.
            chunk_size: Without effect: memory is always bounded.
            on_error: "raise", or "skip" to leave out what cannot be used.

        Raises:
            ParameterError: Fewer than two adapters, different base models, a bad argument (all
                are ``ValueError``). AdapterError, NotFoundError: An adapter cannot be used.
        """
        if on_error not in ("raise", "skip"):
            raise ParameterError("on_error is 'raise' or 'skip'.", found=repr(on_error))
        if isinstance(num_components, str) and num_components != "auto":
            raise ParameterError("num_components is a number or 'auto'.", found=num_components)
        skip = on_error == "skip"
        paths = _named(adapters)
        logger.info("Reading %d adapters.", len(paths))
        sources = _sound(_opened(paths, skip)) if skip else _opened(paths, skip)
        for name, source in sources.items():
            if source.rest:
                logger.info("%s: %d other tensors are kept as they are.", name, len(source.rest))
        logger.info("Checking that the adapters fit together.")
        _require_compatible(sources)
        by_variance = num_components == "auto"
        logger.info("Computing shared components (k = %s) and loadings.", num_components)
        limits = [max(max_k("columns", spec, sources)) for spec in shared_layers(sources)]
        subspace = SharedSubspace.from_adapters(
            list(sources.values()),
            list(sources),
            method="columns",
            variance_threshold=variance_threshold if by_variance else None,
            num_components=None if by_variance else min(int(num_components), max(limits)),
            dtype="fp32",
            device=device or "auto",
            progress=_log_layer if layer_by_layer else None,
        )
        logger.info("k is %d.", subspace.num_components)
        paths = {name: paths[name] for name in subspace.tasks}
        return cls._of(
            subspace,
            paths,
            component_selection="auto" if by_variance else "fixed",
            variance_threshold=variance_threshold,
        )

    @classmethod
    def from_pretrained(cls, path: str | Path) -> SHAREModel:
        """Load a checkpoint of lorashare, or any subspace.

        Of a method that lorashare does not have (`auto`, `own`, `flat`) the tasks are put into
        columns that lose nothing of them, which take about as much as the adapters did.

        Raises:
            NotFoundError, CorruptFileError: There is none, or it is not sound.
        """
        directory = Path(path)
        subspace = share_parts.in_memory(SharedSubspace.load(directory))
        if not (directory / SHARE_INDEX).is_file():
            records = subspace.tasks.records()
            return cls._of(subspace, {r.id: r.source for r in records if r.source})
        model = cls._of(subspace, {})
        model.config = SHAREConfig.load(directory)
        tasks = open_tasks(directory, model.config.to_dict())
        model.adapter_sources = {task.name: task.source for task in tasks if task.source}
        return model

    @classmethod
    def _of(cls, subspace: SharedSubspace, paths: Mapping[str, str], **settings: Any) -> SHAREModel:
        model = cls.__new__(cls)
        model.subspace, model.adapter_sources = subspace, dict(paths)
        model.config = SHAREConfig(**{**share_settings(subspace), **settings})
        return model

    # ---- what there is

    @property
    def adapter_names(self) -> list[str]:
        """The adapters by name."""
        return list(self.subspace.tasks)

    @property
    def components(self) -> dict[str, Tensor]:
        """``{"<layer>:A": (d_in, k), "<layer>:B": (d_out, k)}``."""
        found = {}
        for name in self.subspace.layer_names:
            basis = self.subspace.bases[name]
            found[f"{name}:A"], found[f"{name}:B"] = basis.a.T, basis.b.T
        return found

    @property
    def all_loadings(self) -> dict[str, dict[str, Tensor]]:
        """By adapter ``{"<layer>:A": (k, r), "<layer>:B": (k, r)}``."""
        return {
            name: share_parts.share_loadings(task) for name, task in self.subspace.tasks.items()
        }

    @property
    def adapter_configs(self) -> dict[str, dict[str, Any]]:
        """By adapter its adapter_config.json as found."""
        return {name: dict(self.subspace.tasks.record(name).config) for name in self.adapter_names}

    @property
    def all_classifier_heads(self) -> dict[str, dict[str, Tensor]]:
        """By adapter the tensors that are no factors; only adapters that have any."""
        heads = {name: task.rest for name, task in self.subspace.tasks.items()}
        return {name: dict(tensors) for name, tensors in heads.items() if tensors}

    def summary(self) -> None:
        """Print a summary of the compression."""
        sys.stdout.write(self.summary_text() + "\n")

    def summary_text(self) -> str:
        """What `summary` prints."""
        config, stats = self.config, self.config.compression_stats
        original = stats.get("original_total_params", 0)
        stored = stats.get("compressed_total_params", 0)
        names = ", ".join(config.adapter_names)
        lines = [
            "SHARE compression summary",
            f"  Base model:       {config.base_model_name_or_path or 'not named'}",
            f"  Adapters:         {config.num_adapters} ({names})",
            f"  LoRA rank:        {config.lora_rank}",
            f"  Components (k):   {config.num_components}",
            f"  Target modules:   {', '.join(config.target_modules)}",
            f"  Original params:  {original:,}",
            f"  Compressed:       {stored:,} ({original / max(1, stored):.2f}x)",
            f"    Shared:         {stats.get('shared_component_params', 0):,}",
            f"    Adapters:       {stats.get('per_adapter_loading_params', 0):,}",
            f"  Original size:    {original * 4 / 2**20:.2f} MiB (fp32)",
            f"  Compressed size:  {stored * 4 / 2**20:.2f} MiB (fp32)",
            f"  Variance of dW:   mean {stats.get('mean_explained_variance', 0):.4f}, "
            f"min {stats.get('min_explained_variance', 0):.4f}",
        ]
        return "\n".join(lines)

    # ---- adapters out of it

    def reconstruct(
        self, adapter_name: str, output_dir: str | Path | None = None
    ) -> dict[str, Tensor]:
        """An adapter's tensors under PEFT's keys, heads included; written where a place is named.

        Raises:
            UnknownAdapter: There is no such adapter (a ``KeyError``).
        """
        weights = self._weights(adapter_name)
        if output_dir is not None:
            save_adapter(weights, output_dir, force=True)
        return peft_tensors(weights)

    def apply(self, base_model: Any, adapter_name: str) -> Any:
        """``base_model`` with the adapter on it, as a ``peft.PeftModel``.

        Raises:
            UnknownAdapter: There is no such adapter. DependencyError: peft is not installed.
        """
        weights = self._weights(adapter_name)
        try:
            from peft import PeftModel
        except ImportError:
            raise DependencyError(
                "Applying an adapter needs peft.", remedy="pip install 'vlora-tui[peft]'"
            ) from None
        with tempfile.TemporaryDirectory() as folder:
            directory = save_adapter(weights, Path(folder) / "adapter")
            return PeftModel.from_pretrained(base_model, str(directory))

    def reconstruction_error(
        self,
        adapter_name: str,
        original_weights: Mapping[str, Tensor] | None = None,
        original_path: str | Path | None = None,
    ) -> dict[str, Any]:
        """Measure how far a reconstructed adapter is from its original.

        Returns:
            lorashare's figures, errors of the factors A and B apart: ``per_layer`` (by key),
            ``mean``, ``max``; and, from a path, ``dw``: the relative error of dW, which the model
            sees.

        Raises:
            ParameterError: Neither tensors nor a path is given.
        """
        if original_weights is None and original_path is None:
            raise ParameterError(
                "An original is needed to compare with.",
                expected="original_weights or original_path",
                found="neither",
            )
        reconstructed = self._weights(adapter_name)
        original = load_adapter(_place(original_path)) if original_path is not None else None
        if original_weights is None:
            assert original is not None  # noqa: S101
            factors = peft_tensors(original)
            original_weights = {k: v for k, v in factors.items() if ".lora_" in k}
        per_layer = share_parts.factor_errors(original_weights, peft_tensors(reconstructed))
        errors = list(per_layer.values())
        report: dict[str, Any] = {
            "per_layer": per_layer,
            "mean": sum(errors) / len(errors) if errors else 0.0,
            "max": max(errors, default=0.0),
        }
        if original is not None:
            report["dw"] = relative_error(share_parts.deltas(original, reconstructed))
        return report

    # ---- adapters into it

    def add_adapter(
        self,
        adapter: str | Path,
        name: str | None = None,
        variance_threshold: float | None = None,
        device: str | None = None,
        force_recompute: bool = False,
    ) -> dict[str, Any]:
        """Add an adapter: projected where the basis holds it, else with the basis computed anew.

        Returns:
            ``method`` ("projection" or "recompute"), ``adapter_name``, and with a projection the
            smallest and the mean ``explained_variance`` of the layers' factors.

        Raises:
            ParameterError: The name is taken, or the base model is another (a ``ValueError``).
        """
        source = open_adapter(_place(adapter))
        name = name or Path(adapter).name
        if name in self.subspace.tasks:
            raise ParameterError(
                f"There is an adapter {name!r} already.", remedy="give it another name"
            )
        first = self.adapter_names[0]
        _require_compatible({first: MemorySource(self.subspace.reconstruct(first)), name: source})
        threshold = (
            self.config.variance_threshold if variance_threshold is None else variance_threshold
        )
        variances = [] if force_recompute else list(share_parts.explained(self.subspace, source))
        result: dict[str, Any] = {"method": "recompute", "adapter_name": name}
        if variances and min(variances) >= threshold:
            logger.info("The basis holds %.4f of it, %.4f is enough.", min(variances), threshold)
            self.subspace.add_task(self.subspace.project(source, name, None))
            result |= {
                "method": "projection",
                "min_explained_variance": min(variances),
                "mean_explained_variance": sum(variances) / len(variances),
            }
        else:
            logger.info("Recomputing the shared components, with %s.", name)
            self.subspace.absorb(source, name, device=device or "auto")
        self.adapter_sources[name] = str(adapter)
        self._note_adapters()
        return result

    def remove_adapter(self, adapter_name: str) -> None:
        """Forget an adapter; the basis stays as it is.

        Raises:
            UnknownAdapter: There is none of that name. ParameterError: It is the last one.
        """
        self._require_known(adapter_name)
        if len(self.subspace.tasks) == 1:
            raise ParameterError("The last adapter cannot be removed.", where=adapter_name)
        self.subspace.remove_task(adapter_name)
        self.adapter_sources.pop(adapter_name, None)
        self._note_adapters()

    # ---- to disk and further

    def save_pretrained(self, output_dir: str | Path) -> None:
        """Write a checkpoint that lorashare loads; one that is there is replaced in one step.

        Raises:
            OutputExistsError: Something else is there. StorageError: It cannot be written.
        """
        out = Path(output_dir)
        names, settings = share_names(self.subspace.tasks), self.config.to_dict()
        renewed = peer_at(out) == LORASHARE
        with new_directory(out, job="share", force=renewed, keep_foreign=renewed) as partial:
            sources = self.adapter_sources
            write_lorashare(self.subspace, partial, names=names, settings=settings, sources=sources)

    def push_to_hub(self, repo_id: str, token: str | None = None, private: bool = False) -> str:
        """Upload a checkpoint to the Hugging Face Hub; returns the repository's address.

        Raises:
            HubAccessError: There is no token, or it may not write there.
            HubError: The Hub cannot be reached, or refused.
        """
        from huggingface_hub import get_token

        address = AdapterRef.on_hub(f"hf://{repo_id}")
        if token is None:
            require_token(address)
        with tempfile.TemporaryDirectory() as folder, hub_errors(address), silence():
            checkpoint = Path(folder) / "checkpoint"
            self.save_pretrained(checkpoint)
            client = api()
            client.token = token or get_token()
            made = client.create_repo(repo_id, exist_ok=True, private=private)
            client.upload_folder(folder_path=str(checkpoint), repo_id=repo_id)
        return str(made)

    # ---- within

    def _require_known(self, name: str) -> None:
        if name not in self.subspace.tasks:
            raise UnknownAdapter(
                f"There is no adapter {name!r}.", expected=", ".join(self.adapter_names[:12])
            )

    def _weights(self, name: str) -> LoRAWeights:
        self._require_known(name)
        return self.subspace.reconstruct(name)

    def _note_adapters(self) -> None:
        """The config's fields that follow from what is there."""
        current = share_settings(self.subspace)
        for name in _DERIVED_FIELDS:
            setattr(self.config, name, current[name])


def _log_layer(progress: Progress) -> None:
    if progress.stage == "build":
        logger.info("Layer %d of %d: %s", progress.done, progress.total, progress.detail)


def _named(adapters: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, str]:
    """Names as lorashare gives them: the folder's, numbered where it is taken."""
    if isinstance(adapters, Mapping):
        return {name: str(path) for name, path in adapters.items()}
    paths: dict[str, str] = {}
    for path in adapters:
        stem = name = Path(path).name
        number = 0
        while name in paths:
            number += 1
            name = f"{stem}_{number}"
        paths[name] = str(path)
    return paths


def _place(path: str | Path) -> str | Path | AdapterRef:
    """What lorashare would read: a repository, where nothing here begins as ``path`` does."""
    org, slash, name = str(path).partition("/")
    if not slash or "/" in name or os.path.lexists(org):
        return path
    try:
        return AdapterRef.on_hub(f"{SCHEME}{org}/{name}")
    except ParameterError:  # no repository is called that
        return path


def _opened(paths: Mapping[str, str], skip: bool) -> dict[str, AdapterSource]:
    sources = {}
    for name, path in paths.items():
        try:
            sources[name] = open_adapter(_place(path))
        except VLoRAError as error:
            if not skip:
                raise
            logger.warning("%s is left out: %s", name, error.what)
    if len(sources) < 2:
        raise _too_few(len(sources))
    return sources


def _sound(sources: Mapping[str, AdapterSource]) -> dict[str, AdapterSource]:
    """Those without NaN and the like; k is chosen by what is left."""
    report = check_adapters(dict(sources))
    for name, check in report.adapters.items():
        if check.error is not None:
            logger.warning("%s is left out: %s", name, check.error.what)
    sound = {name: sources[name] for name in report.require(skip_bad=True)}
    if len(sound) < 2:
        raise _too_few(len(sound))
    return sound


def _too_few(count: int) -> ParameterError:
    return ParameterError(
        "At least two usable adapters are needed.", expected="2 or more", found=str(count)
    )


def _require_compatible(sources: Mapping[str, AdapterSource]) -> None:
    bases = {name: s.config.get("base_model_name_or_path") for name, s in sources.items()}
    named = {name: str(base) for name, base in bases.items() if base}
    if len({normalise_base_model(base) for base in named.values()}) > 1:
        raise ParameterError(
            "The adapters are of different base models.",
            found=", ".join(f"{name}: {base}" for name, base in list(named.items())[:4]),
            remedy="compress those of one base model together",
        )

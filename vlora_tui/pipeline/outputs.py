"""Writes the outputs of a recipe besides its subspace, as `output_plan` planned them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.model import MemorySource, to_memory
from vlora_engine.catalog.open import open_adapter
from vlora_engine.convert.convert import Conversion, losses_of, refuse_losses, write_adapter
from vlora_engine.convert.convert import convert as convert_planned
from vlora_engine.convert.convert import plan as plan_conversion
from vlora_engine.convert.formats import SUBSPACE_FORMATS
from vlora_engine.convert.losses import Loss
from vlora_engine.findings import Finding
from vlora_engine.formats.rest_tensors import foreign_tensors
from vlora_engine.targets import find_target
from vlora_engine.targets.names import name_notes, named_for_base
from vlora_engine.targets.save import save_adapter
from vlora_engine.targets.shape import without_copies, without_foreign, without_rest
from vlora_engine.targets.verify import verify_adapter, with_alpha
from vlora_engine.utils.file_names import ADAPTER_CONFIG
from vlora_engine.utils.files import directory_bytes
from vlora_engine.utils.output_checks import SameThere, keep_same
from vlora_engine.utils.reading import read_text
from vlora_engine.utils.run_context import RunContext
from vlora_tui.pipeline import events
from vlora_tui.pipeline.inputs import Collection
from vlora_tui.pipeline.output_plan import (
    convert_paths,
    export_paths,
    is_of_subspace,
    merge_inputs,
    merge_settings,
)
from vlora_tui.pipeline.task_patterns import recipe_tasks
from vlora_tui.recipe.model import Convert, Export, Merge, Recipe, Resize, is_path
from vlora_tui.utils.formatting import plural, size

if TYPE_CHECKING:
    from vlora_engine.adapters.model import AdapterSource, LoRAWeights
    from vlora_engine.shared_subspace import SharedSubspace


@dataclass
class _Saved:
    """How writing an adapter went: the error that was read back, and whether it was there."""

    error: float = 0.0
    skipped: bool = False


STOPPED = "Stopped as asked; what was finished before is complete."


@dataclass
class Writer:
    """Writes what the recipe exports, merges, resizes and converts.

    Between two it asks whether to stop. Everything is read back, where that is asked for, before it
    takes its place. Of several exports, resizes or conversions, those that are there already come
    first: the same one stays as it is, another ends the work before anything new is written. So
    with all adapters where this goes on with a job, ``again``. Each path goes to ``outputs`` once
    it is in its place.
    """

    recipe: Recipe
    collection: Collection
    emit: events.Emit
    context: RunContext
    done: frozenset[str] = frozenset()
    again: bool = False
    outputs: list[str] = field(default_factory=list)
    _loaded: SharedSubspace | None = None
    _targets_reported: bool = False

    def export_all(self) -> None:
        """Write every exported task, and read it back where the recipe says so."""
        for export in self.recipe.exports:
            of_subspace = is_of_subspace(export, self.recipe)
            tasks = sorted(self._subspace().tasks if of_subspace else self.collection.tasks)
            targets = export_paths(export, tasks)
            for done, (task, path) in enumerate(self._in_order(targets)):
                self.context.stop_if_asked(STOPPED)
                self.emit(events.Progress("export", done, len(targets), task))
                self._export(export, task, path)
                self.outputs.append(str(path))

    def merge_all(self) -> None:
        """Write every merge."""
        for merge in self.recipe.merges:
            self.context.stop_if_asked(STOPPED)
            if merge.path not in self.done:
                self._merge(merge)
            self.outputs.append(merge.path)

    def resize_all(self) -> None:
        """Write every adapter that gets another rank."""
        for resize in self.recipe.resizes:
            paths = export_paths(resize, self.collection.tasks)
            for task, path in self._in_order(paths):
                self.context.stop_if_asked(STOPPED)
                if str(path) not in self.done:
                    self._resize(resize, task, path)
                self.outputs.append(str(path))

    def convert_all(self) -> None:
        """Write everything that gets another format."""
        for convert in self.recipe.converts:
            paths = convert_paths(convert, self.recipe, self.collection)
            if convert.to in SUBSPACE_FORMATS:
                self.context.stop_if_asked(STOPPED)
                if convert.path not in self.done:
                    self._convert_whole(convert)
                self.outputs.append(convert.path)
                continue
            repeatable = len(paths) > 1 or "{task}" in convert.path
            for done, (task, path) in enumerate(self._in_order(paths)):
                self.context.stop_if_asked(STOPPED)
                self.emit(events.Progress("convert", done, len(paths), task))
                if str(path) not in self.done:
                    self._convert(convert, task, path, repeatable=repeatable)
                self.outputs.append(str(path))

    def _export(self, export: Export, task: str, path: Path) -> None:
        weights = with_overrides(self._weights(export, task), export)
        if not foreign_tensors(MemorySource(weights)):
            weights = without_foreign(weights)  # deltas of zero
        weights = self._named(export, task, weights)
        if export.drop_rest:
            self._report_left_out("Left out, as asked", task, weights, without_rest(weights))
            weights = without_rest(weights)
        elif find_target(export.target).no_rest:
            own = "The base's own weights are left out"
            self._report_left_out(own, task, weights, without_copies(weights))
            weights = without_copies(weights)
        saved = _Saved()
        if str(path) not in self.done:
            saved = self._save(
                weights,
                path,
                verify=export.verify,
                repeatable="{task}" in export.path,
                target=export.target,
                dtype=export.dtype,
                drop_rest=export.drop_rest,
                base=export.base_folder,
            )
            self._report_targets(export, path)
            self._report_no_base(export, task, weights)
        elif export.verify:
            saved.error = verify_adapter(weights, path)
        self.emit(
            events.Exported(
                task,
                str(path),
                export.target,
                directory_bytes(path),
                rank=max((a.shape[0] for a in weights.lora_a.values()), default=0),
                base=weights.metadata.get("base_model_name_or_path"),
                base_folder=export.base_folder,
                skipped=saved.skipped,
            )
        )
        if export.verify:
            self.emit(events.Verified(task, str(path), saved.error))

    def _in_order(self, paths: Mapping[str, Path]) -> list[tuple[str, Path]]:
        """Tasks and their paths, those first that are there and were not written by this work."""
        done = self.done if not self.context.force else frozenset(map(str, paths.values()))
        return sorted(
            paths.items(), key=lambda item: str(item[1]) in done or not os.path.lexists(item[1])
        )

    def _save(
        self,
        weights: LoRAWeights,
        path: Path,
        *,
        verify: bool,
        repeatable: bool = False,
        write: Callable[..., object] = save_adapter,
        **settings: Any,
    ) -> _Saved:
        """Write an adapter, unless the same is there.

        Args:
            write: Called as `save_adapter` is.

        Raises:
            OutputExistsError: Something else is there. StorageError: It does not read back.
        """
        force, saved = self.context.force, _Saved()
        there = (repeatable or self.again) and not force and os.path.lexists(path)

        def check(made: Path) -> None:
            if verify:
                saved.error = verify_adapter(weights, made, final=path)
            if there:
                keep_same(made, path)

        try:
            write(weights, path, force=force or there, check=check, **settings)
        except SameThere:
            saved.skipped = True
        return saved

    def _named(self, export: Export, task: str, weights: LoRAWeights) -> LoRAWeights:
        """The adapter under the names of its base, with a word on what changed and what is lost."""
        if find_target(export.target).form != "peft":
            return weights
        named, reach = named_for_base(weights, export.base_folder)
        for text in name_notes(weights, named, reach):
            self.emit(events.Remark(text, task, "names"))
        return named

    def _report_left_out(
        self, what: str, task: str, weights: LoRAWeights, kept: LoRAWeights
    ) -> None:
        gone = {key: tensor for key, tensor in weights.rest.items() if key not in kept.rest}
        if gone:
            nbytes = size(sum(tensor.nbytes for tensor in gone.values()))
            tensors = plural(len(gone), "tensor")
            text = f"{what}: {tensors} besides A and B ({nbytes}), such as {next(iter(gone))}."
            self.emit(events.Remark(text, task, "rest-left-out"))

    def _report_no_base(self, export: Export, task: str, weights: LoRAWeights) -> None:
        """Say so where vLLM's resolver would not find an adapter: it compares the base's name."""
        if export.target == "vllm" and not weights.metadata.get("base_model_name_or_path"):
            text = (
                "It names no base model, so vLLM loads it only where --lora-modules names it; "
                "--base MODEL writes the name."
            )
            self.emit(events.Remark(text, task, "no-base-name"))

    def _report_targets(self, export: Export, path: Path) -> None:
        """Say so if PEFT would not find the modules under the names that were asked for."""
        modules = export.target_modules
        if modules is None or self._targets_reported or find_target(export.target).form != "peft":
            return
        config = json.loads(read_text(path / ADAPTER_CONFIG))
        if sorted(config.get("target_modules") or ()) != sorted(modules):
            self._targets_reported = True
            text = (
                f"target_modules {', '.join(modules)} do not cover the modules that were trained, "
                "and PEFT would load the adapter without them; the modules' own names are written."
            )
            self.emit(events.Remark(text, str(path), "targets-not-covered"))

    def preview_all(self) -> None:
        """Tell what every merge would keep of its adapters; write nothing."""
        for merge in self.recipe.merges:
            self.context.stop_if_asked(STOPPED)
            _, computed = self._merged(merge)
            self._report_findings(computed)
            self.emit(events.MergePreviewed(**vars(computed)))

    def _merge(self, merge: Merge) -> None:
        merged, computed = self._merged(merge)
        path = Path(merge.path)
        saved = self._save(merged, path, verify=True, dtype=merge.dtype)
        self._report_findings(computed)
        self.emit(events.Merged(**vars(computed), nbytes=directory_bytes(path)))
        self.emit(events.Verified(path.name, merge.path, saved.error))

    def _report_findings(self, merge: events.MergeComputed) -> None:
        for finding in merge.report["findings"]:
            self.emit(events.Remark.of(Finding.from_json(finding)))

    def _merged(self, merge: Merge) -> tuple[LoRAWeights, events.MergeComputed]:
        """The result, and what there is to say about it."""
        from vlora_engine.merging.merge_adapters import merge_with_report

        names = merge_inputs(merge, self.collection)
        merged, report = merge_with_report(
            [self._source(merge, name) for name in names],
            merge.method,
            **merge_settings(merge),
            **merge.parameters,
            progress=self.context.progress,
            cancelled=self.context.cancelled,
        )
        return merged, events.MergeComputed(
            path=merge.path,
            method=report.method,
            adapters=tuple(names),
            rank=merged.rank,
            modules=len(merged.layer_names),
            report=report.as_dict(),
        )

    def _resize(self, request: Resize, task: str, path: Path) -> None:
        from vlora_engine.resizing import resize

        of_subspace = self.collection.manifest is not None
        weights, report = resize(
            self._subspace().reconstruct(task) if of_subspace else self.collection.adapters[task],
            rank=request.rank,
            energy=request.energy,
            dynamic=request.dynamic,
            target=request.target,
            max_error=request.max_error,
            progress=self.context.progress,
            cancelled=self.context.cancelled,
        )
        saved = self._save(
            weights, path, verify=request.verify, repeatable="{task}" in request.path
        )
        nbytes = directory_bytes(path)
        self.emit(events.Resized(task, str(path), nbytes, report.as_dict(), saved.skipped))
        if report.short:
            text = f"Less is kept than was asked for: {report.short}."
            self.emit(events.Remark(text, str(path), "kept-less"))
        if request.verify:
            self.emit(events.Verified(task, str(path), saved.error))

    def _convert(self, request: Convert, task: str, path: Path, *, repeatable: bool) -> None:
        """One task, in a format of adapters."""
        weights = self._weights(request, task)
        lost = losses_of(request.to, {task: MemorySource(weights)})
        refuse_losses(Conversion(request.to, {}, {}, losses=lost), request.allow_loss)
        self._report_losses(lost, task)
        error = 0.0

        def write(weights: LoRAWeights, path: Path, **settings: Any) -> None:
            nonlocal error  # it reads back what it writes by itself
            error = write_adapter(
                request.to, weights, task, path,
                base=request.base, dtype=request.dtype, **settings,
            ).error  # fmt: skip

        saved = self._save(weights, path, verify=False, repeatable=repeatable, write=write)
        nbytes = directory_bytes(path)
        self.emit(
            events.Converted(task, str(path), request.to, nbytes, error, skipped=saved.skipped)
        )

    def _convert_whole(self, request: Convert) -> None:
        """All tasks that are asked for, into one directory of a format of subspaces."""
        of_subspace, out = is_of_subspace(request, self.recipe), Path(request.path)
        if of_subspace and not request.tasks:
            planned = plan_conversion(request.to, out, whole=self._place(), k=request.k)
        else:
            names = recipe_tasks(request.tasks, self.collection.tasks)
            adapters: dict[str, AdapterSource] = {
                name: MemorySource(self._weights(request, name))
                if of_subspace
                else self.collection.adapters[name]
                for name in names
            }
            planned = plan_conversion(request.to, out, adapters=adapters, k=request.k)
        self._report_losses(planned.losses, request.path)
        if planned.how:
            self.emit(events.Remark(f"{planned.how[0].upper()}{planned.how[1:]}.", request.path))
        (written,) = convert_planned(
            planned,
            allow_loss=request.allow_loss,
            force=self.context.force,
            progress=self.context.progress,
            cancelled=self.context.cancelled,
        )
        self.emit(
            events.Converted("", request.path, request.to, written.nbytes, float(written.error))
        )

    def _report_losses(self, losses: Sequence[Loss], where: str) -> None:
        for loss in losses:
            self.emit(events.Remark(loss.what, where, "conversion-loss"))

    def _weights(self, request: Export | Convert, task: str) -> LoRAWeights:
        if is_of_subspace(request, self.recipe):
            return self._subspace().reconstruct(task)
        source = self.collection.adapters[task]
        weights = to_memory(source)
        _require_finite(source, weights)
        return weights

    def _place(self) -> Path:
        """The subspace's directory; of one on the Hub that of its cache."""
        manifest = self.collection.manifest
        if self.recipe.output is None and manifest is not None:
            return manifest.path
        return Path(str(self.recipe.subspace))

    def _source(self, merge: Merge, name: str) -> LoRAWeights | AdapterSource:
        if merge.source == "subspace" and not is_path(name):
            return self._subspace().reconstruct(name)
        source = self.collection.adapters.get(name)
        return source if source is not None else open_adapter(name)

    def _subspace(self) -> SharedSubspace:
        from vlora_engine.shared_subspace import SharedSubspace

        if self._loaded is None:
            self._loaded = SharedSubspace.load(Path(str(self.recipe.subspace)), lazy=True)
        return self._loaded


def _require_finite(source: AdapterSource, weights: LoRAWeights) -> None:
    """Refuse NaN and infinity: no reading back could tell that they were written as they are."""
    from vlora_engine.analysis.similarity import not_finite

    for name in weights.layer_names:
        # 8-bit floats have no isfinite of their own
        pair = (weights.lora_a[name].double(), weights.lora_b[name].double())
        if not all(bool(factor.isfinite().all()) for factor in pair):
            raise not_finite(source, 0, name)


def with_overrides(weights: LoRAWeights, export: Export) -> LoRAWeights:
    """``weights`` with what an export says of the config; what the adapter does stays."""
    config = dict(weights.metadata)
    name = config.get("base_model_name_or_path")
    if export.base_name is not None:
        config["base_model_name_or_path"] = export.base_name
    elif export.base_folder is not None and not name:
        config["base_model_name_or_path"] = Path(export.base_folder).resolve().name
    if export.target_modules is not None:
        config["target_modules"] = list(export.target_modules)
    changed = replace(weights, metadata=config)
    return changed if export.alpha is None else with_alpha(changed, export.alpha)

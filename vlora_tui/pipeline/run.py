"""Executes a recipe, step by step, telling typed events to whoever listens.

The order is fixed: find the inputs and refuse what cannot work, read and judge every tensor,
choose k where a target asks for it, build, export, merge, resize. Nothing is written before the
verdict.
Headers are read without torch; the engine's numerics are imported when a step needs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vlora_engine import __version__
from vlora_engine.adapters.base_models import normalise_base_model
from vlora_engine.errors import Cancelled, InputError, ParameterError, VLoRAError
from vlora_engine.spectra.tables import Spectra
from vlora_engine.utils.device import require_device
from vlora_engine.utils.files import check_output, partial_path
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.unfinished import kept_layers, spectra_partial
from vlora_tui.pipeline import events
from vlora_tui.pipeline.disk_space import needs_of, require_room
from vlora_tui.pipeline.forecast import expect, manifest_figures, others_at
from vlora_tui.pipeline.inputs import Collection, gather, require_apart_from
from vlora_tui.pipeline.outputs import Writer, check_merge, merge_inputs, plan_outputs
from vlora_tui.recipe.model import CACHE, MEASURED, Compress, Quantize, Recipe
from vlora_tui.recipe.resolve import resolve
from vlora_tui.utils import paths
from vlora_tui.utils.locking import waiting_lock

if TYPE_CHECKING:
    from vlora_engine.adapters.check import CheckReport
    from vlora_engine.findings import Finding
    from vlora_engine.utils.progress import Progress

CancelCheck = Callable[[], bool]
ALONE = "run"  # the name of a run that is no job


@dataclass
class Run:
    """One execution of a recipe.

    Args:
        emit: Called with every event, from this thread.
        force: Replace outputs that exist.
        job: Names the partial output, so that a later run finds it again.
        cancelled: Asked between layers and tasks; True ends the run with `events.Cancelled`.
        done: Outputs that an earlier attempt has put into their places; they are not made again.
    """

    recipe: Recipe
    emit: events.Emit
    force: bool = False
    job: str = ALONE
    cancelled: CancelCheck = lambda: False
    done: frozenset[str] = frozenset()
    outputs: list[str] = field(default_factory=list)
    collection: Collection = field(default_factory=Collection)
    _begun: Path | None = None  # the spectra that this run has begun to compute

    def execute(self) -> None:
        """Do all of it.

        Raises:
            VLoRAError: What stopped it, after an event that says the same.
        """
        start = time.perf_counter()
        fault: VLoRAError | None = None
        try:
            self.recipe = resolve(self.recipe)
        except VLoRAError as error:
            fault = error  # told after the first event, as every other
        self.emit(events.Started(self.recipe.to_toml(), job=self.job, program=__version__))
        try:
            if fault is not None:
                raise fault
            self._steps()
        except Cancelled as error:
            kept = self._keeps_layers()
            if kept and error.remedy is None:
                error.remedy = self._how_to_go_on()
            self.emit(events.Cancelled(error.what, resumable=kept))
            raise
        except KeyboardInterrupt:
            self.emit(events.Cancelled("Interrupted.", resumable=self._keeps_layers()))
            raise
        except Exception as error:
            details = {"error": type(error).__name__, "what": str(error)}
            if isinstance(error, VLoRAError):
                if not isinstance(error, InputError) and self._keeps_layers():
                    first = f"{error.remedy}; then " if error.remedy else ""
                    error.remedy = first + self._how_to_go_on()
                if self.outputs:
                    shown = ", ".join(self.outputs[:3])
                    more = f" and {len(self.outputs) - 3} more" if len(self.outputs) > 3 else ""
                    complete = f"written before, and complete: {shown}{more}"
                    error.found = f"{error.found}; {complete}" if error.found else complete
                details = error.as_json()
            self.emit(events.Failed(details, getattr(error, "exit_code", 1)))
            raise
        self.emit(events.Finished(time.perf_counter() - start, tuple(self.outputs)))

    def _keeps_layers(self) -> bool:
        """Whether finished layers lie there that the next run will use."""
        out = self.recipe.output
        places = [] if out is None else [partial_path(Path(out), self.job)]
        places += [] if self._begun is None else [spectra_partial(self._begun)]
        return any(kept_layers(place) for place in places)

    def _how_to_go_on(self) -> str:
        same = "run the same again" if self.job == ALONE else f"vlora-tui jobs resume {self.job}"
        return f"{same}: it goes on with the layers that are done"

    def _steps(self) -> None:
        recipe = self.recipe
        steps = (recipe.compress, recipe.quantize, *recipe.written)
        if not any(step is not None for step in steps):
            raise ParameterError(
                "The recipe has inputs and nothing to do with them.",
                expected="a [compress], [quantize], [[export]], [[merge]] or [[resize]] table",
            )
        if recipe.compress is not None:
            require_device(recipe.compress.device)
        self.collection = gather(recipe, self._context)
        self._tell_collection()
        plan_outputs(self.recipe, self.collection, force=self.force, done=self.done)
        self._require_room()
        if self.recipe.output is not None and self.recipe.output in self.done:
            self.outputs.append(self.recipe.output)
        elif self.recipe.compress is not None:
            self._compress(self.recipe.compress, Path(str(self.recipe.output)))
        elif self.recipe.quantize is not None:
            self._quantize(self.recipe.quantize, Path(str(self.recipe.output)))
        outputs = self.outputs
        writer = Writer(self.recipe, self.collection, self.emit, self._context, self.done, outputs)
        writer.export_all()
        writer.merge_all()
        writer.resize_all()

    def _require_room(self, subspace: int | None = None) -> None:
        """Refuse what will not fit: before anything is read, and again when k is chosen."""
        require_room(
            needs_of(self.recipe, self.collection, subspace=subspace, done=self.done, job=self.job)
        )

    def _tell_collection(self) -> None:
        found = self.collection
        for adapter in found.unusable:
            self._skip(adapter.name, adapter.error)
        for finding in (*found.remarks, *found.closed):
            self._remark(finding)
        if found.adapters:
            self.emit(
                events.AdaptersFound(
                    names=tuple(found.adapters),
                    nbytes=sum(source.nbytes for source in found.adapters.values()),
                    modules=len({m for s in found.adapters.values() for m in s.modules}),
                    base_models=found.base_models,
                )
            )

    def _tell_mixed_bases(self) -> None:
        named = {normalise_base_model(name): name for name in self.collection.base_models}
        if len(named) > 1:
            text = "The adapters name different base models; a subspace is meant for one."
            self.emit(events.Remark(text, ", ".join(named.values()), "base-models-differ"))

    def _compress(self, compress: Compress, out: Path) -> None:
        from vlora_engine.compress.build import build_subspace

        self._tell_mixed_bases()
        check = self._check()
        spectra = self._spectra(compress, check)
        if spectra is not None and (nbytes := self._tell_choice(compress, spectra)) is not None:
            self._require_room(nbytes)
        report = build_subspace(
            self.collection.adapters,
            out,
            targets=compress.target,
            spectra=spectra,
            check=check,
            skip_bad=self.recipe.input.skip_bad,
            device=compress.device,
            force=self.force,
            job=self.job,
            progress=self._on_progress,
            cancelled=self.cancelled,
            room=self._require_room,
        )
        figures = report.as_dict()
        self.outputs.append(str(out))
        self._tell_resumed(report.reused_layers, len(report.layer_errors))
        self.emit(events.SubspaceWritten(str(out), figures))
        for finding in report.findings:
            if finding.code not in {f.code for f in check.findings}:
                self._remark(finding)
        others = others_at(compress.target, figures, report.spectra or self._cached_spectra())
        if others:
            self.emit(events.OtherMethods(int(figures["nbytes"]), others))

    def _quantize(self, quantize: Quantize, out: Path) -> None:
        from vlora_engine.compress.requantize import quantize_subspace

        manifest = quantize_subspace(
            Path(str(self.recipe.input.subspace)),
            out,
            quantize.quantization(),
            self._context,
            tell=lambda text: self.emit(events.Remark(text, str(out), "quantize")),
        )
        self.outputs.append(str(out))
        self.emit(events.SubspaceWritten(str(out), manifest_figures(manifest)))

    def _check(self) -> CheckReport:
        from vlora_engine.adapters.check import check_adapters

        report = check_adapters(
            self.collection.adapters, progress=self._on_progress, cancelled=self.cancelled
        )
        bad = {name: c.error for name, c in report.adapters.items() if c.error is not None}
        self.emit(events.Checked(len(report.good), tuple(bad)))
        report.require(skip_bad=self.recipe.input.skip_bad)
        for name, error in bad.items():
            self._skip(name, error)
        for finding in report.findings:
            self._remark(finding)
        return report

    def _spectra(self, compress: Compress, check: CheckReport) -> Spectra | None:
        """The spectra that a choice is made on; with k given there is nothing to choose."""
        if compress.spectra not in (None, CACHE):
            spectra, reused = Spectra.load(str(compress.spectra)), True
        elif compress.target.goal[0] == "k" or self._codes_at_once(compress):
            return None
        elif (cached := self._cached_spectra()) is not None:
            spectra, reused = cached, True
        elif not paths.make_room(paths.spectra_root()):
            where = str(paths.spectra_root())
            self.emit(events.Remark("The cache cannot be written.", where, "no-cache"))
            return None  # the build computes its own
        else:
            target = self.collection.spectra_dir(MEASURED)
            with self._only_one(target):
                cached = self._cached_spectra()
                reused = cached is not None
                spectra = cached or self._compute_spectra(
                    target, check, compress.device, force=True
                )
        self._tell_spectra(spectra, reused=reused)
        return spectra

    def _codes_at_once(self, compress: Compress) -> bool:
        """Whether the build finds out by itself what it needs, faster than spectra would.

        Tables that happen to lie in the cache are not used then: the same command gives the same
        bytes whether they are there or not.
        """
        return compress.target.is_coded and compress.spectra is None

    def _compute_spectra(
        self, target: Path, check: CheckReport, device: str, *, force: bool
    ) -> Spectra:
        from vlora_engine.compress.measure import compute_spectra

        self._tell_begun(target)
        self._begun = target
        spectra = compute_spectra(
            self.collection.adapters,
            target,
            codec=True,
            device=device,
            check=check,
            skip_bad=self.recipe.input.skip_bad,
            progress=self._on_progress,
            cancelled=self.cancelled,
            force=force,
        )
        self._tell_resumed(spectra.reused_layers, len(spectra.layer_names))
        return spectra

    def _tell_resumed(self, reused: int, total: int) -> None:
        if reused:
            text = f"{reused} of {total} layers were done already, by a run that was stopped."
            self.emit(events.Remark(text, code="resumed"))

    @contextmanager
    def _only_one(self, target: Path) -> Iterator[None]:
        """Of several processes that want the same cached spectra one computes, the others wait."""

        def waiting() -> None:
            self._tell_begun(target)  # by the other, in the same place
            text = "Another process computes these spectra; waiting for it."
            self.emit(events.Remark(text, str(target), "spectra-wait"))

        place = paths.cache_dir() / "locks" / f"{target.name}.lock"
        with waiting_lock(place, cancelled=self.cancelled, waiting=waiting):
            self._context.stop_if_asked("Stopped as asked; no spectra were computed.")
            yield

    def _tell_begun(self, target: Path) -> None:
        self.emit(events.SpectraBegun(str(target), str(spectra_partial(target))))

    def _tell_spectra(self, spectra: Spectra, *, reused: bool) -> None:
        self.emit(
            events.SpectraReady(
                path=str(spectra.path),
                tasks=len(spectra.tasks),
                layers=len(spectra.layer_names),
                methods=tuple(spectra.methods),
                reused=reused,
            )
        )

    def _cached_spectra(self) -> Spectra | None:
        spectra = self.collection.cached_spectra()
        return spectra if spectra is not None and spectra.is_whole else None

    def _tell_choice(self, compress: Compress, spectra: Spectra) -> int | None:
        """Tell what is going to be built; its bytes, where the spectra know them."""
        expected = expect(compress.target, spectra)
        if expected is None:
            return None
        self.emit(expected)
        return expected.nbytes

    def _remark(self, finding: Finding) -> None:
        self.emit(events.Remark.of(finding))

    def _skip(self, name: str, error: VLoRAError | None) -> None:
        details = {} if error is None else error.as_json()
        self.emit(events.AdapterSkipped(name, reason(error), details))

    @property
    def _context(self) -> RunContext:
        return RunContext(self._on_progress, self.cancelled, force=self.force)

    def _on_progress(self, progress: Progress) -> None:
        self.emit(events.Progress(progress.stage, progress.done, progress.total, progress.detail))
        if progress.stage == "build":
            self.emit(events.LayerDone(progress.detail, progress.done, progress.total))


@dataclass
class SpectraRun(Run):
    """Computes the spectra of a recipe's inputs into ``target`` (or the cache), nothing else."""

    target: Path | None = None
    device: str = "auto"

    def _steps(self) -> None:
        require_device(self.device)
        self.collection = gather(self.recipe, self._context)
        self._tell_collection()
        self._tell_mixed_bases()
        target, reused = self.target or self.collection.spectra_dir(MEASURED), False
        if self.target is not None:
            require_apart_from([target], self.collection.places.values())
            check_output(target, force=self.force)
            self._compute_spectra(target, self._check(), self.device, force=self.force)
        else:
            paths.make_room(paths.spectra_root())
            with self._only_one(target):
                reused = not self.force and self._cached_spectra() is not None
                if not reused:
                    self._compute_spectra(target, self._check(), self.device, force=True)
        self.outputs.append(str(target))
        self._tell_spectra(Spectra.load(target), reused=reused)


@dataclass
class PreviewRun(Run):
    """Computes every merge of a recipe, says what it keeps of its adapters, writes nothing."""

    def _steps(self) -> None:
        if not self.recipe.merges:
            raise ParameterError(
                "There is no merge to look at.", expected="a [[merge]] table, or merge A B"
            )
        if self.recipe.output is not None and any(
            merge.source == "subspace" for merge in self.recipe.merges
        ):
            raise ParameterError(
                "The subspace that is merged from is not built yet.",
                where=self.recipe.output,
                remedy="build it first; a recipe with input.subspace can be looked at",
            )
        self.collection = gather(self.recipe)
        self._tell_collection()
        for merge in self.recipe.merges:
            check_merge(merge, len(merge_inputs(merge, self.collection)))
        Writer(self.recipe, self.collection, self.emit, self._context).preview_all()


def reason(error: VLoRAError | None) -> str:
    """An error in one line."""
    if error is None:
        return "unusable"
    found = f" ({error.found})" if error.found else ""
    where = f": {error.where}" if error.where else ""
    return f"{error.what.rstrip('.')}{found}{where}"

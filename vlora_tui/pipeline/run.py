"""Executes a recipe, step by step, telling typed events to whoever listens.

The order is fixed: find the inputs and refuse what cannot work, read and judge every tensor,
choose k where a target asks for it, build, pack, export, merge, resize, convert, push. Nothing is
written before the verdict.
Headers are read without torch; the engine's numerics are imported when a step needs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine import __version__
from vlora_engine.adapters.base_models import normalise_base_model
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compression_target import BASIS_METHODS
from vlora_engine.errors import (
    Cancelled,
    ConflictError,
    InputError,
    ParameterError,
    StorageError,
    VLoRAError,
)
from vlora_engine.spectra.tables import Spectra
from vlora_engine.utils.device import require_device
from vlora_engine.utils.file_names import SUBSPACE_INDEX
from vlora_engine.utils.files import sha256_file, unwritten
from vlora_engine.utils.locks import writing
from vlora_engine.utils.memory import limited
from vlora_engine.utils.output_checks import check_output
from vlora_engine.utils.outputs import being_written, tidy
from vlora_engine.utils.partials import kept, partial_path
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.safetensors_file import write_error
from vlora_engine.utils.unfinished import kept_layers, spectra_partial
from vlora_tui.pipeline import events
from vlora_tui.pipeline.disk_space import needs_of, require_room
from vlora_tui.pipeline.forecast import expect, manifest_figures, others_at
from vlora_tui.pipeline.inputs import Collection, gather, require_apart_from
from vlora_tui.pipeline.output_plan import check_merge, merge_inputs, plan_outputs
from vlora_tui.pipeline.outputs import Writer
from vlora_tui.pipeline.publish import Publisher, check_pushes
from vlora_tui.pipeline.unfinished import built_path, forget_built, is_yet_to_be_packed, mark_built
from vlora_tui.recipe.model import CACHE, MEASURED, Compress, Quantize, Recipe
from vlora_tui.recipe.resolve import resolve
from vlora_tui.utils import paths
from vlora_tui.utils.formatting import percent, size
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
        again: Whether there was one; what is there and the same as is made now is left then.
    """

    recipe: Recipe
    emit: events.Emit
    force: bool = False
    job: str = ALONE
    cancelled: CancelCheck = lambda: False
    done: frozenset[str] = frozenset()
    again: bool = False
    outputs: list[str] = field(default_factory=list)
    collection: Collection = field(default_factory=Collection)
    _begun: Path | None = None  # the spectra that this run has begun to compute
    _checked: CheckReport | None = None
    _remarks: set[str] = field(default_factory=set)

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
            with limited(self.recipe.max_memory):
                self._steps()
        except Cancelled as error:
            keeps = self._keeps_layers()
            if keeps and error.remedy is None:
                error.remedy = self._how_to_go_on()
            self.emit(events.Cancelled(error.what, resumable=keeps))
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
        packing = is_yet_to_be_packed(self.recipe, self.job)
        return packing or any(kept_layers(place) for place in places)

    def _how_to_go_on(self) -> str:
        same = "run the same again" if self.job == ALONE else f"vlora-tui jobs resume {self.job}"
        return f"{same}: it goes on with the modules that are done"

    def _steps(self) -> None:
        recipe = self.recipe
        if not recipe.steps:
            raise ParameterError(
                "The recipe has inputs and nothing to do with them.",
                expected="a [compress], [quantize], [[export]], [[merge]], [[resize]], "
                "[[convert]] or [[push]] table",
            )
        if recipe.compress is not None:
            require_device(recipe.compress.device)
        self.collection = gather(recipe, self._context)
        self._tell_collection()
        planned = plan_outputs(
            self.recipe, self.collection, force=self.force, done=self.done, again=self.again
        )
        check_pushes(self.recipe, self.collection, planned)
        for path in planned:
            if str(path) in self.done:  # nobody writes there who would do it
                tidy(path)
        outputs = self.outputs
        publisher = Publisher(
            self.recipe, self.collection, self.emit, self._context, self.done, outputs
        )
        publisher.require_open()
        self._require_room()
        self._make_subspace()
        writer = Writer(
            self.recipe, self.collection, self.emit, self._context, self.done, self.again, outputs
        )
        writer.export_all()
        writer.merge_all()
        writer.resize_all()
        writer.convert_all()
        publisher.push_all()

    def _make_subspace(self) -> None:
        """What goes to ``[output]``: compressed, packed, or both."""
        recipe = self.recipe
        if recipe.output is None:
            return
        out = Path(recipe.output)
        if recipe.output in self.done:
            self.outputs.append(recipe.output)
        elif recipe.compress is not None and recipe.quantize is not None:
            self._compress_and_quantize(recipe.compress, recipe.quantize, out)
        elif recipe.compress is not None:
            figures, others = self._compress(recipe.compress, out)
            self._tell_written(out, figures)
            if others:
                self.emit(events.OtherMethods(int(figures["nbytes"]), others))
        elif recipe.quantize is not None:
            source = Path(str(recipe.input.subspace))
            self._tell_written(out, self._quantize(source, recipe.quantize, out))

    def _tell_made(self, out: Path, made: Path) -> None:
        if str(out) == self.recipe.output:  # what is yet to be packed is none
            self.emit(events.SubspaceMade(str(out), sha256_file(made / SUBSPACE_INDEX)))

    def _tell_written(self, out: Path, figures: dict[str, Any]) -> None:
        self.outputs.append(str(out))
        self.emit(events.SubspaceWritten(str(out), figures))

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

    def _compress_and_quantize(self, compress: Compress, quantize: Quantize, out: Path) -> None:
        """Build beside the output, pack that into the output; what was built then goes.

        Stopped while it packs, the next run packs what is built, if its adapters are the same.
        """
        built = built_path(self.recipe, self.job)
        assert built is not None  # noqa: S101  (it has an output)
        with _locked(out):
            try:
                figures = self._built_before(built)
                if figures is None:
                    forget_built(built)
                    unfinished = partial_path(out, self.job)
                    figures, _ = self._compress(compress, built, unfinished)
                    mark_built(built, compress)
                self._tell_built(figures, out)
                with kept(built):
                    packed = self._quantize(built, quantize, out)
            except StorageError as error:
                raise unwritten(error, out) from None
            except InputError:  # the next run would fail in the same way
                forget_built(built)
                raise
            forget_built(built)
        self._tell_written(out, packed)

    def _built_before(self, built: Path) -> dict[str, Any] | None:
        """The figures of what an earlier run has built of the same adapters, and did not pack."""
        if not is_yet_to_be_packed(self.recipe, self.job):
            return None
        try:
            manifest = read_manifest(built)
        except VLoRAError:
            return None
        check = self._check()
        digests = {name: check.adapters[name].digest for name in check.good}
        if digests != {task.id: task.digest for task in manifest.tasks.values()}:
            return None
        text = "The subspace was built already, by a run that was stopped; it is packed now."
        self.emit(events.Remark(text, code="resumed"))
        return manifest_figures(manifest)

    def _tell_built(self, figures: dict[str, Any], out: Path) -> None:
        errors = (percent(figures[name]) for name in ("mean_error", "max_error"))
        text = "Before it is packed: error {} on average, {} at worst, {}.".format(
            *errors, size(figures["nbytes"])
        )
        self.emit(events.Remark(text, str(out), "before-packing"))

    def _compress(
        self, compress: Compress, out: Path, unfinished: Path | None = None
    ) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
        """Build the subspace in ``out``; its figures, and what other methods would have cost.

        Args:
            unfinished: Where its layers lie meanwhile, if not beside it.
        """
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
            unfinished=unfinished,
            progress=self._on_progress,
            cancelled=self.cancelled,
            room=self._require_room,
            made=partial(self._tell_made, out),
        )
        figures = report.as_dict()
        self._tell_resumed(report.reused_layers, len(report.layer_errors))
        for finding in report.findings:
            if finding.code not in {f.code for f in check.findings}:
                self._remark(finding)
        spectra = report.spectra or self._cached_spectra()
        return figures, others_at(compress.target, figures, spectra)

    def _quantize(self, source: Path, quantize: Quantize, out: Path) -> dict[str, Any]:
        """Pack the subspace in ``source`` into ``out``; its figures, and those before."""
        from vlora_engine.compress.requantize import quantize_subspace

        before = manifest_figures(read_manifest(source))
        manifest = quantize_subspace(
            source,
            out,
            quantize.quantization(),
            self._context,
            tell=lambda text: self.emit(events.Remark(text, str(out), "quantize")),
            made=partial(self._tell_made, out),
        )
        named = ("nbytes", "mean_error", "max_error", "worst_task", "quantization")
        return manifest_figures(manifest) | {"before": {name: before[name] for name in named}}

    def _check(self) -> CheckReport:
        """The verdict on every adapter; asked twice, it is the first one."""
        from vlora_engine.adapters.check import check_adapters

        if self._checked is not None:
            return self._checked
        self._checked = report = check_adapters(
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
        elif (cached := self._cached_for(compress)) is not None:
            spectra, reused = cached, True
        elif not paths.make_room(paths.spectra_root()):
            where = str(paths.spectra_root())
            self.emit(events.Remark("The cache cannot be written.", where, "no-cache"))
            return self._in_memory(check, compress) if compress.target.is_coded else None
        else:
            methods = MEASURED if compress.target.is_coded else (compress.target.method,)
            target = self.collection.spectra_dir(methods)
            with self._only_one(target):
                cached = self._cached_spectra(methods)
                reused = cached is not None
                spectra = cached or self._compute_spectra(
                    target, methods, check, compress.device, force=True
                )
        self._tell_spectra(spectra, reused=reused)
        return spectra

    def _in_memory(self, check: CheckReport, compress: Compress) -> Spectra:
        """What coding costs, as the cache would have told it; nobody else can read it.

        A basis needs no such help: its build measures its own to the same bytes.
        """
        from vlora_engine.compress.measure import compute_spectra

        return compute_spectra(
            self.collection.adapters,
            methods=BASIS_METHODS[:1],
            codec=True,
            device=compress.device,
            check=check,
            skip_bad=self.recipe.input.skip_bad,
            progress=self._on_progress,
            cancelled=self.cancelled,
        )

    def _codes_at_once(self, compress: Compress) -> bool:
        """Whether the build finds out by itself what it needs, faster than spectra would.

        Tables that happen to lie in the cache are not used then: the same command gives the same
        bytes whether they are there or not.
        """
        return compress.target.is_coded and compress.spectra is None

    def _compute_spectra(
        self,
        target: Path,
        methods: Sequence[str],
        check: CheckReport,
        device: str,
        *,
        force: bool,
    ) -> Spectra:
        from vlora_engine.compress.measure import compute_spectra

        self._tell_begun(target)
        self._begun = target
        spectra = compute_spectra(
            self.collection.adapters,
            target,
            methods=[method for method in methods if method in BASIS_METHODS],
            codec="codec" in methods,
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
            text = f"{reused} of {total} modules were done already, by a run that was stopped."
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

    def _cached_for(self, compress: Compress) -> Spectra | None:
        """Spectra in the cache that the choice can be made on: of all methods, or of its own."""
        whole = self._cached_spectra()
        if whole is not None or compress.target.is_coded:
            return whole
        return self._cached_spectra((compress.target.method,))

    def _cached_spectra(self, methods: Sequence[str] = MEASURED) -> Spectra | None:
        spectra = self.collection.cached_spectra(methods)
        if spectra is None or not spectra.has_all_tables:
            return None
        return spectra if spectra.has_rate_tables or "codec" not in methods else None

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
        if progress.remark:
            if progress.remark not in self._remarks:
                self._remarks.add(progress.remark)
                self.emit(events.Remark(progress.remark, code="memory"))
            return
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
            self._compute_spectra(target, MEASURED, self._check(), self.device, force=self.force)
        else:
            if not paths.make_room(paths.spectra_root()):
                raise StorageError(
                    "The cache cannot be written.",
                    where=str(paths.spectra_root()),
                    remedy="set XDG_CACHE_HOME to a folder that can be written",
                )
            with self._only_one(target):
                reused = not self.force and self._cached_spectra() is not None
                if not reused:
                    self._compute_spectra(target, MEASURED, self._check(), self.device, force=True)
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


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep every other writer from an output through several steps.

    Raises:
        StorageError: Another process is writing it.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with writing(out):
            yield
    except ConflictError:
        raise being_written(out) from None
    except OSError as error:
        if isinstance(error, VLoRAError):
            raise
        raise write_error(out, error) from None


def reason(error: VLoRAError | None) -> str:
    """An error in one line."""
    if error is None:
        return "unusable"
    found = f" ({error.found})" if error.found else ""
    where = f": {error.where}" if error.where else ""
    return f"{error.what.rstrip('.')}{found}{where}"

"""The session: the collection, the marks, the choice of k, the drafts. No widget.

Everything here is plain data over files that jobs write, so that every figure can be tested
without a terminal and computed without torch.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.compression_target import CODED_METHODS, GOALS, CompressionTarget
from vlora_engine.errors import VLoRAError
from vlora_engine.quantization.dtypes import AUTO_DTYPE, DTYPE_WORDS
from vlora_engine.quantization.packing import NOT_PACKED
from vlora_tui.tui.text import problem_words
from vlora_tui.utils.formatting import plural, printable, size

if TYPE_CHECKING:
    from vlora_engine.catalog.scanner import AdapterInfo
    from vlora_engine.findings import Finding
    from vlora_engine.manifest.manifest import Manifest
    from vlora_engine.spectra.choose import Choice, Prediction
    from vlora_engine.spectra.tables import Spectra
    from vlora_tui.pipeline.forecast import Coded
    from vlora_tui.recipe.model import Export, Recipe


MAX_PINS = 3
LEAST_ERROR, MOST_ERROR = 1e-4, 0.9  # between which methods are compared


@dataclass(frozen=True)
class Figures:
    """What a choice costs, or why it were not found.

    Args:
        choice: Where there is a k. coded: Where there is none.
        estimate: What it comes to by and large, until it is worked out.
        so_far: It is of the layers that are measured; its bytes are carried over to all.
    """

    choosing: CompressionTarget
    choice: Choice | None = None
    problem: str | None = None
    coded: Coded | None = None
    estimate: Prediction | None = None
    so_far: bool = False

    @property
    def prediction(self) -> Prediction | None:
        """What it costs, whatever the method."""
        ready = self.choice or self.coded
        return self.estimate if ready is None else ready.prediction

    @property
    def is_exact(self) -> bool:
        """Whether a build has these errors, up to rounding; else they are within a few percent."""
        plain = self.choosing.quantize == NOT_PACKED
        return self.choice is not None and plain and not self.so_far


@dataclass
class Session:
    """The state behind the five screens.

    Args:
        infos: The adapters that were found, by path.
        marked: Paths of the adapters that are chosen, in the order of marking.
        spectra: The spectra of the marked adapters, as far as they are computed.
        manifest: The subspace that is open, where one is.
        output: Where the subspace is going to be written.
        device: What measures and builds: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        bad: Adapters that reading every tensor ruled out, by path, and why.
        left_out: Of these, the ones that the work goes on without.
        skip_bad: The recipe that was opened says to go on without any that are bad.
    """

    infos: dict[str, AdapterInfo] = field(default_factory=dict)
    subspaces: list[Path] = field(default_factory=list)
    marked: dict[str, None] = field(default_factory=dict)
    spectra: Spectra | None = None
    manifest: Manifest | None = None
    output: str | None = None
    device: str = "auto"
    exports: tuple[Export, ...] = ()
    bad: dict[str, Finding] = field(default_factory=dict)
    left_out: dict[str, None] = field(default_factory=dict)
    skip_bad: bool = False
    choosing: CompressionTarget = field(default_factory=lambda: CompressionTarget().checked())
    pins: list[CompressionTarget] = field(default_factory=list)
    _history: list[CompressionTarget] = field(default_factory=list, repr=False)
    _figures: dict[tuple[Any, ...], Figures] = field(default_factory=dict, repr=False)
    _generation: int = field(default=0, repr=False)

    # the collection

    def add_found(self, found: Iterable[AdapterInfo]) -> None:
        """Take adapters that a scan found into the table."""
        for info in found:
            path = str(info.path)
            self.infos[path] = info
            self.bad.pop(path, None)  # it may have been mended
            self.left_out.pop(path, None)

    def rename(self, names: Mapping[str, str]) -> None:
        """Give adapters the names that tell them apart, by path."""
        for path, name in names.items():
            info = self.infos.get(path)
            if info is not None and info.name != name:
                self.infos[path] = replace(info, name=name)

    @property
    def checked(self) -> dict[str, tuple[Finding, ...]]:
        """What reading every tensor found, by path, of the adapters that it was done for."""
        ruled_out: dict[str, tuple[Finding, ...]]
        ruled_out = {path: (finding,) for path, finding in self.bad.items()}
        if self.spectra is None:
            return ruled_out
        # By their places: names change when others of the same name are found.
        tasks = {task.path or task.name for task in self.spectra.tasks}
        found = self.spectra.findings
        return ruled_out | {
            str(info.path): tuple(f for f in found if is_about(f, str(info.path)))
            for info in self.chosen
            if tasks & {info.name, printable(str(info.path))}
        }

    @property
    def included(self) -> list[AdapterInfo]:
        """The marked adapters without those that are left out."""
        return [info for info in self.chosen if str(info.path) not in self.left_out]

    @property
    def undecided(self) -> dict[str, Finding]:
        """Marked adapters that are bad, and of which nobody has said what to do with them."""
        return {
            path: finding
            for path, finding in self.bad.items()
            if path in self.marked and path in self.infos and path not in self.left_out
        }

    def leave_out(self, paths: Iterable[str]) -> None:
        """Go on without these; they stay marked, so that what was measured of the others holds."""
        self.left_out |= dict.fromkeys(paths)

    def mark(self, path: str, on: bool | None = None) -> None:
        """Mark an adapter, unmark it, or (None) turn it over. Broken ones cannot be marked."""
        info = self.infos.get(path)
        marks = path not in self.marked if on is None else on
        if not marks:
            self.marked.pop(path, None)
            self.left_out.pop(path, None)
        elif info is not None and info.error is None:
            self.marked[path] = None

    @property
    def chosen(self) -> list[AdapterInfo]:
        """The marked adapters."""
        return [self.infos[path] for path in self.marked if path in self.infos]

    @property
    def groups(self) -> set[int | None]:
        """The groups that the adapters in use belong to."""
        return {info.group for info in self.included}

    def title(self) -> str:
        """One line about what is open: base model, number, size."""
        if self.manifest is not None and not self.marked:
            count = len(self.manifest.tasks)
            tasks = plural(count, "task")
            return f"{self.manifest.path.name} · {tasks} · {size(self.manifest.nbytes)}"
        if not self.chosen:
            return f"{plural(len(self.infos), 'adapter')} found" if self.infos else "nothing open"
        included = self.included
        bases = {info.base_model or "?" for info in included}
        base = bases.pop() if len(bases) == 1 else f"{len(bases)} base models"
        nbytes = size(sum(info.nbytes for info in included))
        out = len(self.chosen) - len(included)
        without = f" · {out} left out" if out else ""
        return f"{base} · {plural(len(included), 'adapter')} · {nbytes}{without}"

    # the choice of k

    def set_spectra(self, spectra: Spectra | None) -> None:
        """Show these spectra from now on; figures of others are forgotten.

        Of spectra of which more has arrived all stays but what was not possible until now.
        """
        if spectra is not None and spectra is self.spectra:
            for key, figures in list(self._figures.items()):
                if figures.problem is not None:
                    self._figures.pop(key, None)
            return
        self.spectra = spectra
        self._generation += 1
        self._figures.clear()

    @property
    def version(self) -> tuple[int, int]:
        """Changes whenever the spectra do: which they are, and how much of them has arrived."""
        if self.spectra is None:
            return self._generation, 0
        return self._generation, self.spectra.coding_arrived + len(self.spectra.ready_methods)

    def choose(self, choosing: CompressionTarget) -> None:
        """Change the choice; `undo` takes it back."""
        if choosing != self.choosing:
            self._history.append(self.choosing)
            del self._history[:-200]
            self.choosing = choosing

    def undo(self) -> bool:
        """Take the last change of the choice back; False if there is none."""
        if not self._history:
            return False
        self.choosing = self._history.pop()
        return True

    def pin(self) -> bool:
        """Keep the present choice for comparison (or let go of it); False if three are kept."""
        if self.choosing in self.pins:
            self.pins.remove(self.choosing)
            return True
        if len(self.pins) >= MAX_PINS:
            return False
        self.pins.append(self.choosing)
        return True

    @property
    def methods(self) -> list[str]:
        """The methods that the spectra can tell of, in the order in which a key goes through."""
        if self.spectra is None:
            return []
        ready = self.spectra.ready_methods
        coded = list(CODED_METHODS[::-1]) if self.is_coding_known else []
        return [*ready[:1], *coded, *ready[1:]]

    def figures(self, choosing: CompressionTarget | None = None) -> Figures:
        """What a choice costs on the spectra that are there: a table look-up, cached.

        Where k is given it takes milliseconds; a target may take a second on large collections.
        """
        target, spectra = choosing or self.choosing, self.spectra
        if spectra is None or not spectra.layers:
            return Figures(target, problem="no module is measured yet")
        key = self._key(target, spectra)
        known = self._figures.get(key)
        if known is None:
            try:
                known = _worked_out(target, spectra)
            except VLoRAError as error:
                known = Figures(target, problem=problem_words(error))
            self._figures[key] = known
            if len(self._figures) > 4000:
                self._figures.pop(next(iter(self._figures)))
        return known

    def cached_figures(self, choosing: CompressionTarget | None = None) -> Figures | None:
        """The same if it was computed before, or is quickly done; else None."""
        target = choosing or self.choosing
        if target.goal[0] == "k" or self.spectra is None:
            return self.figures(target)
        return self._figures.get(self._key(target, self.spectra))

    def _key(self, target: CompressionTarget, spectra: Spectra) -> tuple[Any, ...]:
        """What figures are of: methods that are still to come change nothing in those."""
        arrived = spectra.coding_arrived if target.is_coded else len(spectra.layers)
        return target, self._generation, arrived

    @property
    def is_coding_known(self) -> bool:
        """Whether anything is known of what coding costs."""
        spectra = self.spectra
        return spectra is not None and bool(spectra.is_coded or spectra.codec or spectra.own)

    @property
    def is_coding_under_way(self) -> bool:
        """Whether what coding costs is still being measured, and partly known."""
        spectra = self.spectra
        done = spectra is None or spectra.is_coded or spectra.codec is not None
        return self.is_coding_known and not done

    def rivals(self, figures: Figures) -> list[CompressionTarget]:
        """The other methods at the error of a choice; none where that is next to nothing or all."""
        prediction = figures.prediction
        if self.spectra is None or prediction is None:
            return []
        by_mean = figures.choosing.goal[0] == "mean_error"
        error = prediction.mean_error if by_mean else prediction.max_error
        if not LEAST_ERROR <= error <= MOST_ERROR:
            return []
        goal, error = "mean_error" if by_mean else "max_error", float(f"{error:.4g}")
        dtype, now = AUTO_DTYPE, figures.choosing
        if figures.choice is not None:
            dtype = DTYPE_WORDS[figures.choice.dtype]
        rivals = (
            CompressionTarget(method)
            if method in CODED_METHODS
            else CompressionTarget(
                method,
                dtype=dtype,
                quantize=now.quantize,
                block_size=now.block_size,
                double_quant=now.double_quant,
            )
            for method in self.methods
            if method != figures.choosing.method
        )
        return [rival.with_goal(goal, error) for rival in rivals]

    # recipes

    def recipe(self) -> Recipe:
        """What would be built: the marked adapters, the choice, the output, the exports."""
        from vlora_tui.recipe.model import AdapterInput, Compress, Input, Recipe

        adapters = tuple(AdapterInput(str(info.path), info.name) for info in self.chosen)
        return Recipe(
            # Those left out stay named: the spectra were made, and are found again, by all of them.
            input=Input(
                adapters=adapters, skip_bad=self.skip_bad or len(self.included) < len(adapters)
            ),
            compress=Compress(self.choosing, self.device),
            output=self.output or str(self.default_output()),
            exports=self.exports,
        )

    def default_output(self) -> Path:
        """A place beside the folder of the adapters that is not taken."""
        folders = [info.path.parent for info in self.chosen if isinstance(info.path, Path)]
        root = Path(*_common(folders)) if folders else None
        stem = f"{root.name}-subspace" if root is not None and root.name else "subspace"
        home = root.parent if root is not None else Path.cwd()
        names = [stem, *(f"{stem}-{i}" for i in range(2, 1000))]
        return next((home / n for n in names if not os.path.lexists(home / n)), home / stem)

    def command(self, recipe: Recipe | None = None) -> str:
        """The headless command that does the same."""
        recipe = recipe or self.recipe()
        words = ["vlora-tui", "run", "--headless", *[a.path for a in recipe.input.adapters]]
        paths = [a.name for a in recipe.input.adapters]
        if all(paths):
            words += ["--names", *[str(name) for name in paths]]
        if recipe.input.skip_bad:
            words.append("--skip-bad")
        if recipe.compress is not None:
            words += target_flags(recipe.compress.target)
            if recipe.compress.device != "auto":
                words += ["--device", recipe.compress.device]
        if recipe.output is not None:
            words += ["-o", recipe.output]
        return shlex.join(words)


def target_flags(target: CompressionTarget) -> list[str]:
    """A target as flags of a command; every field of it that a recipe has."""
    words = ["--method", target.method]
    pair_flags = [("k", "-k"), ("k_a", "--k-a"), ("k_b", "--k-b")]
    goals = [(name, f"--{name.replace('_', '-')}") for name in GOALS]
    for name, flag in (*pair_flags, *goals, ("refine", "--refine")):
        value = getattr(target, name)
        if value:
            words += [flag, str(value)]
    words += ["--adaptive-k"] * target.adaptive
    for layer, k in target.layers.items():
        words += ["--layers", f"{layer}={k if isinstance(k, int) else f'{k[0]},{k[1]}'}"]
    if target.dtype != AUTO_DTYPE:
        words += ["--dtype", target.dtype]
    if target.quantize != NOT_PACKED:
        words += ["--quantize", target.quantize]
        if target.block_size != CompressionTarget.block_size:
            words += ["--block-size", str(target.block_size)]
        if target.double_quant != CompressionTarget.double_quant:
            words.append(f"--{'' if target.double_quant else 'no-'}double-quant")
    return words


def _worked_out(target: CompressionTarget, spectra: Spectra) -> Figures:
    """A choice on the layers that are measured.

    Raises:
        VLoRAError: It were not found.
    """
    from vlora_tui.pipeline.forecast import Coded, choose_so_far

    if target.is_coded:
        rate_tables = spectra.rate_tables() if spectra.complete else None
        if rate_tables is None:
            return Figures(target, problem=f"{target.method} is not measured yet")
        return Figures(target, coded=Coded.of(rate_tables, target))
    if not spectra.complete:
        return Figures(target, choose_so_far(spectra, target), so_far=True)
    from vlora_engine.spectra.choose import choose

    return Figures(target, choose(spectra, target))


def is_about(finding: Finding, path: str) -> bool:
    """Whether a finding is about the adapter at ``path``, or a file in it.

    An adapter of the Hub is named by its address, and read in the Hub's cache.
    """
    from vlora_engine.adapters.address import address_text, is_address

    names = [name for name in (finding.adapter, finding.file) if name]
    if is_address(path):
        names = [address_text(name) for name in names]
    return any(name == path or name.startswith(os.path.join(path, "")) for name in names)


def path_of(finding: Finding, paths: Iterable[str]) -> str:
    """The innermost of ``paths`` that a finding is about; empty where there is none."""
    return max((path for path in paths if is_about(finding, path)), key=len, default="")


def _common(roots: Sequence[Path]) -> tuple[str, ...]:
    parts = [root.absolute().parts for root in roots]
    shared = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return tuple(shared) or ("/",)

"""Rows and cells of Inspect's tables, figures per layer, and the text below them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.text import Text

from vlora_engine.quantization.dtypes import DTYPE_WORDS
from vlora_engine.spectra.tables import Spectra
from vlora_engine.utils.naming import cosine_text
from vlora_engine.utils.ranking import worst
from vlora_tui.tui.core.likeness import Group, Likeness
from vlora_tui.tui.inspect.data import Interference, Outlier
from vlora_tui.tui.inspect.finding_rows import Remark
from vlora_tui.tui.key_names import key, keyed
from vlora_tui.tui.text import TONES, advice, clean, tilde
from vlora_tui.tui.widgets.bars import bar
from vlora_tui.tui.widgets.table import Cell, Column
from vlora_tui.utils.formatting import size

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest, TaskRecord

BAR = 8  # cells of a bar beside a figure
SORTS = ("score", "size", "name")
MARKS = {"error": "✗", "warning": "!", "note": "·"}

GROUP_COLUMNS = (
    Column("letter", "", keep=4),
    Column("kind", "", keep=3),
    Column("count", "n", right=True, keep=1),
    Column("least", "from", right=True, keep=2),
    Column("members", "adapters", least=12, most=200, keep=5),
)
GROUP_MARKS = {"identical": "=", "same change": "=", "multiple": "×", "run": "→", "start": "^"}
GROUP_WORDS = {
    "alike": "similar",
    "identical": "copies",
    "same change": "same dW",
    "multiple": "multiples",
    "run": "one run",
    "start": "one start",
}
_ASCII = {"×": "x", "→": ">"}
OUTLIER_COLUMNS = (
    Column("name", "adapter", least=10, most=32, keep=5, lost="middle"),
    Column("why", "why", least=13, most=60, keep=4),
    Column("score", "score", right=True, keep=3),
    Column("bar", "", keep=1),
)
TASK_COLUMNS = (
    Column("name", "task", least=12, keep=5, lost="middle"),
    Column("error", "dW error", right=True, keep=4),
    Column("bar", "", keep=0),
    Column("norm", "norm", right=True, keep=3),
    Column("rank", "rank", right=True, keep=2),
    Column("bytes", "stored", right=True, keep=1),
)
FINDING_COLUMNS = (
    Column("about", "adapter", least=12, most=24, keep=4, lost="middle"),
    Column("what", "finding", least=16, most=200, keep=5),
)


@dataclass(frozen=True)
class Subject:
    """What the layers pane shows.

    Args:
        kind: ``adapter`` of the spectra, ``task`` of the subspace, two of either, or all tasks of
            the ``subspace`` together.
        names: One or two.
        pair_refs: Where they lie, as ``diff`` takes it, where there are two.
        ref: Where it lies, where there is one; None where that is not known.
    """

    kind: Literal["adapter", "task", "pair", "subspace"]
    names: tuple[str, ...]
    index: int = 0
    pair_refs: tuple[str, str] | None = None
    ref: str | None = None

    @property
    def refs(self) -> tuple[str, ...]:
        """Where one or two lie; empty where that is not known."""
        return self.pair_refs or ((self.ref,) if self.ref else ())


@dataclass(frozen=True)
class Measure:
    """A figure per layer and how it is shown."""

    key: str
    title: str
    text: Callable[[float], str]
    top: float | None = None  # what is brightest; None: the largest there is, at least `floor`
    floor: float = 0.0


def percent(value: float) -> str:
    """A share as per cent, two digits."""
    shown = 100 * value
    return f"{shown:.1f}".removesuffix(".0") if shown < 9.95 else f"{shown:.0f}"


def plain(value: float) -> str:
    """A figure, two digits."""
    return "0" if not value else f"{value:.2g}" if value < 9.95 else f"{value:.0f}"


LOSS = Measure("loss", "error of dW, in %", percent, floor=0.02)
BITS = Measure("bits", "bits per weight of A and B", plain)
CONTESTED = Measure("contested", "contested by the other, in % of dW", percent, floor=0.02)
SIZE = Measure("size", "norm of dW", plain)
COVERAGE = Measure("coverage", "held by the bases, in %", percent, top=1.0)
COSINE = Measure("cosine_sim", "cosine of dW", cosine_text, top=1.0)
DIFFERENCE = Measure("relative_difference", "difference of dW, in % of the first", percent, top=1.5)


@dataclass(frozen=True)
class AllTasks:
    """The row of all tasks of a subspace together."""

    manifest: Manifest
    id: str = ""

    @property
    def error(self) -> float:
        return self.manifest.mean_error


def task_cells(task: TaskRecord | AllTasks, most: float, *, ascii_only: bool) -> list[Cell]:
    """A task of a subspace, or all of them; ``most`` is the largest error of one."""
    if isinstance(task, AllTasks):
        manifest, count = task.manifest, len(task.manifest.tasks)
        error = "-" if manifest.peer else share(task.error)
        known = "" if manifest.peer else _error_bar(task.error, most, ascii_only)
        stored = sum(record.nbytes for record in manifest.tasks.values())
        name = f"all {count} tasks"
        return [(name, "accent"), (error, ""), (known, "muted"), ("", ""), ("", ""),
                (size(stored), "muted")]  # fmt: skip
    error = share(task.error) if task.measured else f"<{share(task.error)}"
    if task.origin and not task.norm:  # in a peer's directory, which keeps neither
        return [(clean(task.id), ""), ("-", ""), ("", ""), ("-", ""), *_task_size(task)]
    shown = _error_bar(task.error, most, ascii_only)
    figures = [(error, ""), (shown, "accent"), (plain(task.norm), "")]
    return [(clean(task.id), ""), *figures, *_task_size(task)]


def _error_bar(error: float, most: float, ascii_only: bool) -> str:
    return bar(error / most if most > 0 else 0.0, BAR, ascii_only=ascii_only)


def _task_size(task: TaskRecord) -> list[tuple[str, str]]:
    return [(str(task.rank), "muted"), (size(task.nbytes), "muted")]


def facts(manifest: Manifest) -> str:
    """A subspace in a sentence."""
    worst = manifest.worst
    stored = DTYPE_WORDS.get(manifest.dtype, manifest.dtype) if manifest.coding is None else "coded"
    words = f"method {manifest.method}, {stored}; mean error "
    if manifest.peer:
        return f"{words}not known to {manifest.peer}"
    words += share(manifest.mean_error)
    return words if worst is None else f"{words}, worst {share(worst.error)} ({clean(worst.id)})"


def pair_words(
    likeness: Likeness, pair: tuple[int, int] | None, more: str = "", *, leads: bool = True
) -> Text:
    """What the cell under the cursor says; ``more`` of two stands before their cosine, or after."""
    if pair is None:
        return Text(keyed("No name matches the filter; <inspect.stop> clears it."))
    first, second = (likeness.names[i] for i in pair)
    norms = [f"{float(likeness.norms[i]):.3g}" for i in pair]
    if pair[0] == pair[1]:
        return Text.assemble(
            (first, "bold"), f"  norm of dW {norms[0]}; {key('inspect.enter')}: its layers"
        )
    cosine = float(likeness.cosines[pair])
    before, after = (more and f"{more}; ", "") if leads else ("", more and f"; {more}")
    text = Text.assemble((first, "bold"), " and ", (second, "bold"), "  ", before)
    text.append(
        f"cosine {cosine_text(cosine)}, {in_words(cosine)}; norms {norms[0]}, {norms[1]}{after}"
    )
    return text


MEASURE_WORDS = {"overlap": "overlap", "writes": "output overlap", "reads": "input overlap"}


def interference_words(interference: Interference, first: int, second: int, measure: str) -> str:
    """How two would interfere, one measure before the others; shares of each of the two."""
    words = {
        name: f"{label} {share(_at(interference, name, first, second))}"
        for name, label in (("contested", "contested"), ("sign_conflict", "conflicting"))
    }
    for name in ("overlap", "writes", "reads"):
        there, back = _at(interference, name, first, second), _at(interference, name, second, first)
        words[name] = f"{MEASURE_WORDS[name]} {percent(there)} / {percent(back)} %"
    return ", ".join([words.pop(measure, ""), *words.values()]).lstrip(", ")


def _at(interference: Interference, measure: str, first: int, second: int) -> float:
    return float(interference.matrices[measure][first, second])


def layer_words(
    values: Mapping[str, float] | str, layer: str | None, measure: Measure, whole: str = ""
) -> Text:
    """What the layer under the cursor says, how it compares with the others, then the whole."""
    if isinstance(values, str):
        return Text(clean(values))
    if not values:
        return Text("It has no modules here.")
    text = Text()
    if layer is not None and layer in values:
        text.append(clean(layer), style="bold")
        text.append(f"  {figure(measure, values[layer])}")
    word = "least" if measure in (COSINE, COVERAGE) else "most"
    extreme = worst(values, largest=word == "most")
    if extreme == layer:
        text.append(f", the {word}")
    elif extreme is not None:
        text.append(f"; {word} {figure(measure, values[extreme])} in {clean(extreme)}")
    if whole:
        text.append(f"; {whole}")
    return text


def remedy_words(row: Remark | None, otherwise: str) -> Text:
    """All of the finding under the cursor; without one, what is known instead."""
    if row is None:
        return Text(otherwise)
    text = Text(row.what, style="bold")
    if row.rule:
        text.append(f" {row.rule}", style="not bold")
    words, fix, where = advice(row.shown.remedy or ""), row.shown.fix, row.shown.where
    if words:
        text.append(f"\nfix: {words}", style="not bold")
    if fix:
        text.append(f"\n{key('app.copy')} copies the command that does it", style="not bold")
    if where and where not in row.what:
        text.append(f"\n{tilde(where)}", style="not bold")
    return text


def outlier_cells(row: Outlier, most: float, *, ascii_only: bool) -> list[Cell]:
    """An outlier; ``most`` is the largest score."""
    tone = "warning" if row.score >= 10 else ""
    score = f"{row.score:.0f}" if row.score >= 9.95 else f"{row.score:.1f}"
    shown = bar(row.score / most if most > 0 else 0.0, BAR, ascii_only=ascii_only)
    return [(row.name, ""), (row.short, tone), (score, "muted"), (shown, "accent")]


def group_cells(group: Group, likeness: Likeness, ascii_only: bool) -> list[Cell]:
    """A group: its letter or mark, what it is, how many, the least cosine, who."""
    mark = group.letter or GROUP_MARKS[group.kind]
    return [
        (_ASCII.get(mark, mark) if ascii_only else mark, "accent" if group.letter else "warning"),
        (GROUP_WORDS[group.kind], "muted" if group.letter else ""),
        (str(len(group.members)), ""),
        (cosine_text(group.least), ""),
        (group_names(group, likeness, ascii_only), ""),
    ]


def group_names(group: Group, likeness: Likeness, ascii_only: bool) -> str:
    """Its members; those of a run in its order."""
    between = (" > " if ascii_only else " → ") if group.kind == "run" else ", "
    return between.join(likeness.names[i] for i in group.members)


def finding_cells(row: Remark) -> list[Cell]:
    """A finding."""
    words = f"{row.target}: {row.what}" if row.target else row.what
    return [(row.about, ""), (words, TONES[row.severity] if row.severity == "error" else "")]


def why_no_likeness(spectra: object) -> str:
    """Why there is no matrix."""
    if not isinstance(spectra, Spectra):
        return keyed(
            "Not measured yet: mark adapters (<step.adapters>), then <step.choose> measures them."
        )
    if not spectra.complete:
        done, total = len(spectra.layers), len(spectra.layer_names)
        return f"Known when all modules are measured: {done} of {total}."
    return "These spectra hold no inner products: there are too many adapters for that."


def in_words(cosine: float) -> str:
    """What a cosine means."""
    for bound, words in (
        (0.995, "the same"),
        (0.9, "nearly the same"),
        (0.5, "much in common"),
        (0.15, "something in common"),
        (0.02, "little in common"),
    ):
        if cosine >= bound:
            return words
    return "opposed" if cosine < -0.1 else "nothing in common"


def share(value: float) -> str:
    """A share with its sign."""
    return f"{100 * value:.3g} %" if value >= 1e-5 else "0 %"


def figure(measure: Measure, value: float) -> str:
    """A figure of a layer with its unit."""
    shares = (LOSS, DIFFERENCE, COVERAGE, CONTESTED)
    return share(value) if measure in shares else measure.text(value)

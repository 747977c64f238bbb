"""Two jobs or subspaces side by side: method, target, bytes, ratio, errors, task by task."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import Static

from vlora_engine.errors import VLoRAError
from vlora_tui.pipeline import events
from vlora_tui.pipeline.events import read_events
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.run.card import Figures, subspace_figures
from vlora_tui.tui.run.job_text import goal_words, packing_words
from vlora_tui.tui.text import clean, problem_words, tilde
from vlora_tui.tui.widgets.bindings import shown
from vlora_tui.tui.widgets.dialogs import Dialog
from vlora_tui.tui.widgets.table import Cell, Column, Table
from vlora_tui.utils.formatting import percent, size, times

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest
    from vlora_tui.jobs import JobView
    from vlora_tui.tui.run.desk import Desk


class Row(NamedTuple):
    """One figure of both, and how the second differs."""

    what: str
    first: str
    second: str
    change: str = ""
    tone: str = ""


def compare(view: Desk) -> None:
    """Compare the selected job with the marked one; without a mark with the open subspace."""
    selected, marked = view.job, view.marked_job
    manifest = view.session.manifest
    if selected is None or (marked is None and manifest is None):
        words = "Mark a job first (<run.mark>), then select another."
        view.notify(keyed(words), severity="warning", markup=False)
        return
    if marked is not None and marked.job.id == selected.job.id:
        view.notify("This is the marked job: select another.", severity="warning", markup=False)
        return
    for job in (selected, marked):
        if job is not None and job.last(events.SubspaceWritten) is None:
            words = f"{clean(job.title)} made no subspace to compare."
            view.notify(words, severity="warning", markup=False)
            return
    view.run_worker(partial(_read, view, marked, manifest, selected), thread=True, group="compare")


def _read(view: Desk, marked: JobView | None, manifest: Manifest | None, selected: JobView) -> None:
    """In a thread: read both, then show them."""
    try:
        if marked is not None:
            first = figures_of_job(marked)
        else:
            assert manifest is not None  # noqa: S101  (`compare` has looked)
            first = figures_of(manifest)
        second = figures_of_job(selected)
    except (VLoRAError, OSError) as error:
        view.app.call_from_thread(
            view.host.complain, f"The figures cannot be read: {problem_words(error)}"
        )
        return
    view.app.call_from_thread(view.app.push_screen, CompareBox(first, second))


def figures_of_job(view: JobView) -> Figures:
    """What a job has measured of its subspace, by its own events, task by task.

    Raises:
        VLoRAError, OSError: Its files cannot be read.
    """
    written = view.last(events.SubspaceWritten)
    for _, event in read_events(view.job.events_path):
        written = event if isinstance(event, events.SubspaceWritten) else written
    assert written is not None  # noqa: S101  (`compare` has looked)
    found, recipe = subspace_figures(written), view.job.recipe()
    if recipe.compress is None:
        packed = recipe.quantize.quantization().name if recipe.quantize is not None else ""
        return replace(found, target=packed)
    return replace(found, target=goal_words(recipe.compress.target))


def figures_of(manifest: Manifest) -> Figures:
    """What a subspace says of itself."""
    packed = manifest.quantization.as_json() if manifest.quantization is not None else None
    worst = manifest.worst
    return Figures(
        path=str(manifest.path),
        method=" ".join([manifest.method, packing_words(packed).partition(",")[0]]).strip(),
        nbytes=manifest.nbytes,
        ratio=manifest.ratio,
        mean=manifest.mean_error,
        worst=None if worst is None else worst.error,
        worst_task="" if worst is None else worst.id,
        tasks={name: task.error for name, task in manifest.tasks.items()},
    )


def rows_of(first: Figures, second: Figures) -> list[Row]:
    """The figures of both, then every task of either, those that changed most first."""
    rows = [
        Row("method", clean(first.method), clean(second.method)),
        Row("target", first.target or "-", second.target or "-"),
        Row("size", _size(first.nbytes), _size(second.nbytes), *_bytes(first, second)),
        Row("smaller", times(first.ratio), times(second.ratio), "than the originals", "muted"),
        Row("mean error", percent(first.mean), percent(second.mean),
            *_points(first.mean, second.mean)),
        Row("worst error", percent(first.worst), percent(second.worst),
            *_points(first.worst, second.worst)),
        Row("worst task", clean(first.worst_task), clean(second.worst_task)),
    ]  # fmt: skip
    names = dict.fromkeys([*first.tasks, *second.tasks])

    def change(name: str) -> float:
        if name not in first.tasks or name not in second.tasks:
            return float("inf")
        return abs(second.tasks[name] - first.tasks[name])

    for name in sorted(names, key=lambda name: (-change(name), name)):
        a, b = first.tasks.get(name), second.tasks.get(name)
        rows.append(Row(clean(name), percent(a), percent(b), *_points(a, b)))
    return rows


class CompareBox(Dialog):
    """Two subspaces side by side."""

    DEFAULT_CSS = """
    CompareBox {
        & > .box { width: 96%; max-width: 110; }
        & Table { max-height: 24; }
        &.-short .words { display: none; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("escape,q,d,enter", "cancel", "Close", "compare.close", "Close the comparison")
    ]

    def __init__(self, first: Figures, second: Figures) -> None:
        super().__init__()
        self._first, self._second = first, second

    def compose(self) -> ComposeResult:
        columns = (
            Column("what", "", least=14, most=36, keep=5, lost="middle"),
            Column("first", "A", least=10, most=34, right=True, keep=5),
            Column("second", "B", least=10, most=34, right=True, keep=5),
            Column("change", "B against A", least=8, most=24, right=True, keep=3),
        )
        with Vertical(classes="box") as box:
            box.border_title = Text("Compare")
            words = f"A  {tilde(self._first.path)}\nB  {tilde(self._second.path)}"
            yield Static(words, classes="words", markup=False)
            yield Table(columns, _cells, key=lambda row: row.what, id="compare-rows")
            yield Static(keyed("<compare.close> closes"), classes="keys", markup=False)

    def on_mount(self) -> None:
        super().on_mount()
        table = self.query_one(Table)
        rows = rows_of(self._first, self._second)
        table.styles.height = min(len(rows) + 1, 24, max(4, self.app.size.height - 9))
        table.show(rows, cursor=0)
        table.focus()


def _cells(row: Row) -> list[Cell]:
    return [(row.what, "muted"), (row.first, ""), (row.second, ""), (row.change, row.tone)]


def _size(nbytes: int | None) -> str:
    return "-" if nbytes is None else size(nbytes)


def _bytes(first: Figures, second: Figures) -> tuple[str, str]:
    a, b = first.nbytes, second.nbytes
    if not a or not b:
        return "", ""
    if a == b:
        return "the same", "muted"
    return (f"{times(a / b)} smaller", "good") if b < a else (f"{times(b / a)} larger", "warning")


def _points(a: float | None, b: float | None) -> tuple[str, str]:
    """How an error changed, in percentage points."""
    if a is None or b is None:
        return "only in one", "muted"
    points = 100 * (b - a)
    if abs(points) < 0.0005:
        return "the same", "muted"
    return f"{points:+.3g} points", "good" if points < 0 else "warning"

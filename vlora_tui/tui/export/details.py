"""Export's details: the doctor's verdict and the proof of one output, what a merge would keep.

What a merge keeps needs the weights: a process of its own measures it when it is asked for, and
what it said holds until a setting changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.style import Style
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.message import Message
from textual.widgets import Static
from textual.worker import get_current_worker

from vlora_engine.errors import VLoRAError
from vlora_engine.findings import Finding
from vlora_engine.targets import find_target
from vlora_engine.utils.naming import cosine_text
from vlora_tui.tui.core.subcommand import ask_command
from vlora_tui.tui.export.plan import Row
from vlora_tui.tui.export.result import Outcome, off
from vlora_tui.tui.key_names import key, keyed
from vlora_tui.tui.text import advice, clean, plural, problem_words, tilde
from vlora_tui.tui.widgets.folding import hanging
from vlora_tui.tui.widgets.table import Cell, Column, Table
from vlora_tui.utils.formatting import percent, size

Tones = Mapping[str, str | Style]
COLUMNS = (
    Column("name", "kept of", least=18, most=40, keep=6, lost="middle"),
    Column("cosine", "cosine", right=True, keep=5),
    Column("energy", "energy", right=True, keep=4),
    Column("strength", "strength", right=True, keep=3),
    Column("worst", "worst", right=True, keep=2),
    Column("module", "in module", least=8, most=40, keep=1, lost="start"),
)
FIGURES = ("cosine", "energy", "strength", "worst_cosine")
MEANING = (
    "cosine: of its dW and the result's; energy: the share of it that lies where the result acts; "
    "strength: how far the result moves along it, 1 as far as it does itself."
)


class Retained(NamedTuple):
    """What a merge keeps of one of its inputs, as the engine measured it on dW."""

    name: str
    cosine: float
    energy: float
    strength: float
    worst: float
    module: str

    @classmethod
    def of(cls, name: str, row: Mapping[str, Any]) -> Retained:
        """From its row in the command's JSON."""
        cosine, energy, strength, worst = (float(row.get(key) or 0) for key in FIGURES)
        return cls(name, cosine, energy, strength, worst, str(row.get("worst_module") or ""))


class Measured(NamedTuple):
    """What a preview of a merge told: per input, and of the result."""

    retained: tuple[Retained, ...]
    rank: int
    modules: int
    cut_error: float
    left_out: int

    @classmethod
    def of(cls, answer: Mapping[str, Any], names: Sequence[str]) -> Measured:
        """From ``vlora-tui merge --preview --json``, the inputs under the names of the screen."""
        merge = (answer.get("merges") or [{}])[0]
        rows = list((merge.get("kept") or {}).values())
        retained = tuple(Retained.of(name, row) for name, row in zip(names, rows, strict=False))
        left_out = len(merge.get("rest_left_out") or ())
        cut = float(merge.get("cut_error") or 0)
        return cls(retained, int(merge.get("rank", 0)), int(merge.get("modules", 0)), cut, left_out)

    @property
    def words(self) -> str:
        """The result in a line."""
        words = f"Rank {self.rank}, {plural(self.modules, 'module')}"
        if self.cut_error:
            words += f"; cutting the rank changes dW by {percent(self.cut_error)}"
        if self.left_out:
            words += f"; left out, as they differ: {plural(self.left_out, 'tensor')} beside A and B"
        return words + "."


class DetailsPane(Vertical):
    """All about the output under the cursor; of a merge what it keeps of each input."""

    class MergeMeasured(Message):
        """A measurement ended."""

        def __init__(self, of: tuple[str, ...], found: Measured | str) -> None:
            super().__init__()
            self.of, self.found = of, found

    class Known(Message):
        """What a merge keeps is known now, or why not."""

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__(id="export-details", classes="pane")
        self._ascii = ascii_only
        self._wanted: tuple[str, ...] | None = None  # the merge that is on the screen
        self._measuring: tuple[str, ...] | None = None
        self._of: tuple[str, ...] | None = None  # the merge that `_found` is about
        self._found: Measured | str = ""
        self._hint = ""
        self._text = Text()

    def compose(self) -> ComposeResult:
        yield Table(COLUMNS, self._cells, key=lambda row: row.name, id="kept-table")
        with VerticalScroll(id="details-scroll"):
            yield Static(id="details-said", markup=False)

    # an output

    def show_row(self, row: Row | None, target: str | None, outcome: Outcome) -> None:
        """Show what is known of an output.

        Args:
            target: Whom the doctor was asked for; None where nobody in particular.
        """
        self._show(Text() if row is None else row_text(row, target, outcome, self._tones))

    def say(self, words: str) -> None:
        """Say this where there is no output to show."""
        self._show(Text(words))

    def _show(self, text: Text) -> None:
        self.set_class(False, "merging")
        self.border_title, self.border_subtitle = "Details", ""
        self._wanted = None
        self._say(text)

    # a merge

    def show_merge(self, arguments: Sequence[str] | None, hint: str = "") -> None:
        """Show what is known of a merge; None is one that cannot be made as it stands."""
        self.set_class(True, "merging")
        self._wanted = None if arguments is None else tuple(arguments)
        self._hint = hint
        if self._measuring is not None and self._measuring != self._wanted:
            self.stop()
        self._draw_merge()

    def measure(self, names: Sequence[str]) -> None:
        """Have the merge on the screen measured, unless it is, or was."""
        request = self._wanted
        if request is None or request == self._measuring or self.knows(request):
            return
        self._measuring = request
        self._ask(request, tuple(names))
        self._draw_merge()

    def stop(self) -> bool:
        """Stop measuring; whether there was anything to stop."""
        if self._measuring is None:
            return False
        self.workers.cancel_group(self, "measure")
        self._measuring = None
        self._draw_merge()
        return True

    @property
    def kept(self) -> dict[str, float]:
        """How far the merge that was measured last moves along each input, by its name."""
        rows = self._found.retained if isinstance(self._found, Measured) else ()
        return {row.name: row.strength for row in rows}

    @property
    def is_stale(self) -> bool:
        """Whether that was with other settings."""
        return self._of != self._wanted

    @property
    def is_live(self) -> bool:
        """Whether a merge was measured here before: then another is as soon as it is asked for."""
        return self._of is not None

    def knows(self, arguments: Sequence[str] | None) -> bool:
        """Whether a merge was measured as it stands."""
        measured = self._of is not None and isinstance(self._found, Measured)
        return measured and arguments is not None and tuple(arguments) == self._of

    @work(thread=True, exclusive=True, group="measure")
    def _ask(self, arguments: tuple[str, ...], names: tuple[str, ...]) -> None:
        worker = get_current_worker()
        try:
            answer = ask_command(arguments, lambda: worker.is_cancelled)
        except VLoRAError as error:
            self.post_message(self.MergeMeasured(arguments, clean(problem_words(error))))
            return
        if answer is not None:
            self.post_message(self.MergeMeasured(arguments, Measured.of(answer, names)))

    def on_details_pane_merge_measured(self, event: MergeMeasured) -> None:
        event.stop()
        if event.of != self._measuring:
            return
        self._measuring, self._of = None, event.of
        self._found = event.found
        self._draw_merge()
        self.post_message(self.Known())

    def _draw_merge(self) -> None:
        if not self.has_class("merging"):
            return
        found = self._found
        rows = found.retained if isinstance(found, Measured) else ()
        stale = self._of != self._wanted
        self.border_title = "What the merge keeps"
        self.border_subtitle = "of other settings" if rows and stale else ""
        self.set_class(not rows, "unmeasured")
        self.set_class(bool(rows) and stale, "stale")
        self.query_one("#kept-table", Table).show(list(rows))
        self._say(self._merge_words(stale))

    def _merge_words(self, stale: bool) -> Text:
        if self._measuring is not None:
            return Text(f"Measuring ({key('export.back')} to stop).")
        if self._wanted is None:
            return Text("The preview shows what is missing.")
        if self._of is None:
            words = f"{key('export.measure')} measures what the merge keeps of each; "
            return Text(f"{words}nothing is written. {self._hint}")
        if stale:
            return Text(f"Settings have changed; {key('export.measure')} measures again.")
        if isinstance(self._found, Measured):
            return Text(f"{self._found.words} {self._worst_words()}{MEANING}")
        return Text(f"It could not be measured: {self._found}", style=self._tones["error"])

    def _worst_words(self) -> str:
        """Where of the input under the cursor least is kept."""
        row = self.query_one("#kept-table", Table).row
        if row is None or not row.module:
            return ""
        module = f"{clean(row.module)}, cosine {cosine_text(row.worst)}"
        return f"Worst: {clean(row.name)} in {module}. "

    def on_table_moved(self, event: Table.Moved) -> None:
        event.stop()
        self._say(self._merge_words(self._of != self._wanted))

    def _cells(self, row: Retained) -> list[Cell]:
        muted = "muted" if self._of != self._wanted else ""
        low = "warning" if row.energy < 0.5 or row.cosine <= 0 else ""
        return [
            (clean(row.name), muted),
            (cosine_text(row.cosine), muted or low),
            (percent(row.energy), muted or low),
            (percent(row.strength), muted),
            (cosine_text(row.worst), muted),
            (clean(row.module), "muted"),
        ]

    # drawing

    @property
    def _tones(self) -> Tones:
        table = self.query_one("#kept-table", Table)
        return {tone: table.tone(tone) for tone in ("muted", "good", "warning", "error")}

    def _say(self, text: Text) -> None:
        self._text = text
        width = self.size.width - 1  # a scroll bar
        self.query_one("#details-said", Static).update(hanging(text, width) if width > 8 else text)

    def on_resize(self) -> None:
        self._say(self._text)

    @property
    def text(self) -> str:
        """What the pane says, for the clipboard."""
        return self._text.plain


def row_text(row: Row, target: str | None, outcome: Outcome, tones: Tones) -> Text:
    """An output: what came of it, what is in its way, what the doctor says and what mends it."""
    text, path = Text(), str(row.path)
    text.append(f"{clean(row.name)}\n", style="bold")
    text.append(f"{tilde(row.path)}\n", style=tones["muted"])
    if row.about:
        text.append(f"{row.about}\n")
    if path in outcome.written:
        _written(text, path, outcome, tones)
    elif row.state == "no":
        text.append("refused   ", style=tones["error"])
        text.append(f"{clean(row.why)}\n")
        text.append(f"  {clean(advice(keyed(row.mend)))}\n", style=tones["good"])
    if row.opinion is None or target is None:
        text.rstrip()
        return text
    label = find_target(target).label.replace("The ", "the ", 1)
    for finding in row.opinion.stays:
        _finding(text, finding, tones)
    if row.opinion.fixed:
        text.append(f"Fixed by the export, for {label}:\n", style=tones["good"])
        for finding in row.opinion.fixed:
            text.append(f"  {clean(finding.what)}\n", style=tones["muted"])
    if not row.opinion.stays and not row.opinion.fixed:
        text.append(f"No problems found for {label} (headers only).\n", style=tones["good"])
    text.rstrip()
    return text


def _written(text: Text, path: str, outcome: Outcome, tones: Tones) -> None:
    nbytes, report = outcome.written[path], outcome.reports.get(path, {})
    text.append("written   ", style=tones["good"])
    text.append("in its place\n" if nbytes is None else f"{size(nbytes)}\n")
    if path in outcome.verified:
        text.append("read back ", style=tones["good"])
        text.append(f"dW is {off(outcome.verified[path])}\n")
    if "former_ranks" in report or "error" in report:
        worst = f", at worst {percent(report['worst_error'])} in {report['worst_module']}"
        text.append(f"cost      dW changed by {percent(report['error'])}")
        text.append(f"{clean(worst) if report.get('worst_module') else ''}\n")
    line = outcome.start_line(path)
    if line:
        text.append(f"start     {line}\n")


def _finding(text: Text, finding: Finding, tones: Tones) -> None:
    text.append(f"{finding.severity:<10}", style=tones.get(finding.severity, tones["muted"]))
    text.append(f"{clean(finding.what)}\n")
    fix = advice(finding.remedy or "")
    if fix:
        text.append(f"{'fix':<10}", style=tones["good"])
        text.append(f"{clean(fix)}\n")

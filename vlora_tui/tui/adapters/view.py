"""Step 1, Adapters: what lies in the folders, which of it fits together, which to work on."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Input, Static

from vlora_engine.adapters.address import is_hub_place
from vlora_tui.tui.adapters.body import Body
from vlora_tui.tui.adapters.finding import AdapterFinder, DemoMade, ScanNews, clean_lines
from vlora_tui.tui.adapters.open_folder import OpenFolder
from vlora_tui.tui.adapters.places import current_folder, place_words, places_of
from vlora_tui.tui.adapters.reach import ReachTold, Repaired
from vlora_tui.tui.adapters.rows import Row, keep, ordered
from vlora_tui.tui.adapters.scanner import pasted_paths
from vlora_tui.tui.adapters.start_page import StartPage
from vlora_tui.tui.core.messages import CollectionChanged, SessionChanged, SpectraChanged
from vlora_tui.tui.core.view import View
from vlora_tui.tui.key_names import key, keyed
from vlora_tui.tui.text import clean, plural, tilde
from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.buttons import Button
from vlora_tui.tui.widgets.dialogs import Prompt
from vlora_tui.tui.widgets.table import Cell, Table
from vlora_tui.utils.formatting import size

DEMO_FOLDER = "vlora-demo/adapters"

DEMO_ASKED = (
    "19 small synthetic adapters, 14 MB, made on this machine. Nothing is downloaded. Folder:"
)
DEMO_SHOWS = (
    "Making 19 small adapters on this machine. You are about to see:\n\n"
    "- a family of related tasks and checkpoints of one run, which share most of what they know\n"
    "- three that share nothing with the others, and one that is a copy of another\n"
    "- an outlier, mixed ranks, a classifier head, an untrained adapter, and one with a NaN\n\n"
    "Then: <adapters.go> marks those that fit together, <step.choose> shows how small they get "
    "at which error."
)

_ON_ROWS = frozenset(
    (
        *("mark", "group", "all", "invert", "range", "sort", "turn", "again", "close"),
        *("filter", "pane", "repair"),
    )
)


class AdaptersView(View):
    """The Adapters step: a table of what was found, and the marks on it."""

    step = 1
    title = "Adapters"
    help_text = (
        "Adapters found in the folders you opened; only headers are read. <adapters.open> opens "
        "another folder or a Hub repo (hf://org/name), or searches the Hub by base model. Nothing "
        "is downloaded before a job.\n"
        "<adapters.go> opens what the cursor is on: a subspace, or the details of an adapter. "
        "While nothing is marked it marks all adapters that fit together: one base model, the "
        "same dimensions. <adapters.mark> marks one. Then <step.choose> chooses how small they "
        "get. Groups are built one at a time.\n"
        "<adapters.repair> writes a repaired copy of an adapter whose names PEFT does not find.\n"
        "Filter (<adapters.filter>): words in name, path or base model; rank>=16, size>10MB, "
        "group:1, base:gpt2, dtype:F16, is:marked, is:broken, is:subspace; !word leaves out."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("enter", "go", "Open", "adapters.go", "Open it; without marks, mark what fits"),
        shown("o", "open", "Folder", "adapters.open", "Open a folder or Hub repo"),
        shown("space", "mark", "Mark", "adapters.mark", "Mark or unmark the adapter"),
        shown("asterisk", "group", "Group", "adapters.group", "Mark the adapter's group"),
        shown("slash", "filter", "Filter", "adapters.filter", "Filter the rows"),
        hidden("plus", "all", "adapters.all", "Mark all rows shown"),
        hidden("minus", "invert", "adapters.invert", "Invert marks"),
        hidden("V", "range", "adapters.range", "Begin a range, or mark it"),
        hidden("u", "undo", "adapters.undo", "Undo mark"),
        hidden("s", "sort(1)", "adapters.sort", "Sort by the next column"),
        hidden("S", "turn", "adapters.turn", "Reverse the order"),
        hidden("w", "repair", "adapters.repair", "Write a repaired copy"),
        hidden("r", "again", "adapters.again", "Scan again"),
        hidden("x", "stop", "adapters.stop", "Stop scanning"),
        hidden("C", "close", "adapters.close", "Clear the list"),
        hidden("tab", "pane", "adapters.pane", "Go to the details and back"),
        hidden("escape", "back", "adapters.back", "Leave the message, range or filter"),
    ]

    def compose(self) -> ComposeResult:
        yield StartPage(self.host.draft_words, id="start")
        if self.host.start_paths or self.session.infos:
            yield Body(self._mark)
        yield Static("", id="adapters-problem", markup=False)

    def on_mount(self) -> None:
        self.finder = AdapterFinder(self, self._show, self._say_problem)
        self._sort = ("name", False)
        self._marks_before: list[dict[str, None]] = []
        # Of the command line: a key that comes before it is looked into is not for the start page.
        self._is_promised = bool(self.host.start_paths or getattr(self.app, "demo", None))
        self._had_rows = False
        self._of_use = (True, True)
        self._sought: str | None = None  # an adapter to point at once it is listed
        self.finder.take_session()
        self._show()
        self.call_after_refresh(self._complete)

    async def _complete(self) -> None:
        """What the first paint did not need."""
        if not self._is_complete:
            await self.mount(Body(self._mark), before="#adapters-problem")
            self._show()
        if self.host.start_paths:
            self.look_into(self.host.start_paths)

    @property
    def _is_complete(self) -> bool:
        return bool(self.query(Body))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Without rows there is nothing to mark, sort or clear; while they come, nor to open."""
        if not self.is_mounted:
            return action not in _ON_ROWS
        if self._is_complete and self.finder.making and action in ("go", "open"):
            return False
        return action not in _ON_ROWS or bool(not self._on_start_page and self.finder.rows)

    def is_of_use(self, action: str) -> bool:
        """What cannot be used can be looked at, not marked."""
        if action not in ("mark", "group") or not self._is_complete or self._on_start_page:
            return True
        row = self.table.row
        if action == "group":
            return row is not None and row.group is not None
        return row is not None and row.error is None and not row.is_subspace

    # what the application asks

    def shown(self) -> None:
        if self._is_complete:
            self.query_one(Body).remove_class("-details")
            self.changed(SpectraChanged())  # they may have come while another step was in view
        self._focus()

    def changed(self, change: SessionChanged) -> None:
        if isinstance(change, CollectionChanged | SpectraChanged):
            new = self.finder.take_session()
            if new or isinstance(change, CollectionChanged):
                self._show()

    def row_text(self) -> str | None:
        row = self.table.row if self.finder.rows else None
        return None if row is None else row.text()

    def command_text(self) -> str | None:
        if self.session.marked:
            return self.session.command()
        folders = self.finder.places
        return shlex.join(["vlora-tui", "inspect", *folders]) if folders else None

    def action_filter(self) -> None:
        self.open_filter()

    def open_filter(self) -> None:
        if self.finder.rows and self._is_complete:
            self._line.display = True
            self._line.focus()

    def show_only(self, words: str) -> None:
        """Set the filter, and look at the first row that it keeps."""
        self.finder.take_session()
        self._line.value = words
        self._line.display = True
        self._show()
        self.table.move_to(0)
        self._focus()

    @property
    def table(self) -> Table[Row]:
        """The table of what was found."""
        return self.query_one(Body).table

    def on_start_page_chosen(self, event: StartPage.Chosen) -> None:
        chosen = event.beginning
        if chosen.action == "look":
            self.look_into([chosen.folder])
        elif chosen.action == "demo":
            self._ask_for_demo()
        elif chosen.action == "draft":
            self.host.open_draft()
        else:
            self.action_open()

    # looking

    def look_into(self, folders: list[str]) -> None:
        """Scan these places, one after another."""
        self._is_promised = False
        self.finder.look_into(folders)

    def look_for(self, paths: list[str]) -> None:
        """List these adapters, where they are not yet, and put the cursor on the first."""
        self._sought = paths[0] if paths else None
        new = [path for path in paths if path not in self.finder.rows]
        if new:
            self.look_into(places_of(new))
        else:
            self._point()

    def _point(self) -> None:
        """Put the cursor on what was sought, once it is listed."""
        if self._sought in self.finder.rows:
            sought, self._sought = self._sought, None
            self.find(sought)

    def mark_alone(self, paths: list[str]) -> None:
        """Mark these adapters and no others, now or once they are found."""
        self._remember_marks()
        self.session.marked.clear()
        new = [path for path in paths if path not in self.session.infos]
        for path in paths:
            if path not in new:
                self.session.mark(path, True)
        if new:
            self.mark_when_found(dict.fromkeys(new))
            self.look_into(places_of(new))
        self.post_message(CollectionChanged())

    def mark_when_found(self, names: Mapping[str, str | None]) -> None:
        """Mark the adapters at or below these paths once they are found, and name them so."""
        self.finder.mark_when_found(names)

    def make_demo(self, path: str) -> None:
        """Make the demo collection there, then list it."""
        self._is_promised = False
        self.finder.make_demo(path)

    def on_scan_news(self, event: ScanNews) -> None:
        self.finder.take(event)
        self._point()

    def on_reach_told(self, event: ReachTold) -> None:
        self.finder.take_reach(event)

    def on_repaired(self, event: Repaired) -> None:
        if event.problem is not None:
            self._say_problem(clean_lines(event.problem))
            return
        applies = event.applies
        told = f": {applies.words} modules apply" if applies and applies.applied else ""
        self.notify(f"Wrote {tilde(event.output)}{told}.", markup=False)
        self.look_into([event.output])

    def on_demo_made(self, event: DemoMade) -> None:
        self.finder.take_demo(event)

    def on_paste(self, event: events.Paste) -> None:
        pasted = pasted_paths(event.text)
        if pasted:
            self.look_into(pasted)

    def _ask_for_demo(self) -> None:
        def answered(path: str | None) -> None:
            if path:
                self.make_demo(path)

        self.app.push_screen(Prompt("Make the demo", DEMO_ASKED, DEMO_FOLDER), answered)

    def action_stop(self) -> None:
        self.finder.stop()

    def action_again(self) -> None:
        self.finder.look_again()

    def action_repair(self) -> None:
        """Write a copy of the adapter under the names that PEFT looks for in its base model."""
        row = self.table.row
        if row is None or row.info is None or row.error is not None or is_hub_place(row.path):
            self._why_not(row)
            return
        info = row.info

        def answered(place: str | None) -> None:
            if place and place.strip():
                self.finder.reach.repair(info, str(Path(place.strip()).expanduser().absolute()))

        words = "A copy under the names that PEFT looks for: same numbers, nothing lost. Folder:"
        place = tilde(f"{row.path.rstrip('/')}-repaired")
        self.app.push_screen(Prompt(f"Repair {clean(row.name)}", words, place), answered)

    def action_open(self) -> None:
        places = self.finder.places
        folders = [place for place in places if not is_hub_place(place)]
        start = str(Path(folders[-1]).expanduser().parent) if folders else ""

        def opened(place: str | None) -> None:
            if place:
                self.look_into([place])

        self.app.push_screen(OpenFolder(start or current_folder() or str(Path.home())), opened)

    @property
    def _line(self) -> Input:
        return self.query_one(Body).filter

    def action_close(self) -> None:
        self.action_stop()
        self._say_problem("")
        self.table.was_moved = False
        self._remember_marks()
        self.finder.forget()
        self.session.marked.clear()
        self.session.skip_bad = False
        self.session.manifest = None
        self.query_one(StartPage).renew()
        self.post_message(CollectionChanged())

    # marking

    def action_mark(self) -> None:
        if self.table.range_from is not None:
            self.action_range()
        elif self.table.row is not None:
            row = self.table.row
            if row.is_subspace or row.error is not None:
                self._why_not(row)
                return
            self._remember_marks()
            self.session.mark(row.path)
            self.table.move_to(self.table.cursor + 1)
            self._marked()

    def action_group(self) -> None:
        row = self.table.row
        if row is None or row.group is None:
            self._why_not(row)
            return
        members = [r for r in self.finder.rows.values() if r.group == row.group]
        self._mark_all(members, not all(r.path in self.session.marked for r in members))

    def action_all(self) -> None:
        usable = [r for r in self.table.rows if r.info is not None and r.error is None]
        self._mark_all(usable, not all(r.path in self.session.marked for r in usable))

    def action_invert(self) -> None:
        self._remember_marks()
        for row in self.table.rows:
            if row.info is not None:
                self.session.mark(row.path)
        self._marked()

    def action_range(self) -> None:
        table = self.table
        if table.range_from is None:
            if table.row is not None:
                table.range_from = table.cursor
                table.refresh()
        else:
            rows = [table.rows[i] for i in table.range]
            table.range_from = None
            self._mark_all([r for r in rows if r.info is not None], True)
        self._hint()

    def action_undo(self) -> None:
        if self._marks_before:
            self.session.marked = self._marks_before.pop()
            self._marked()

    def _mark_all(self, rows: list[Row], on: bool) -> None:
        self._remember_marks()
        for row in rows:
            self.session.mark(row.path, on)
        self._marked()

    def _remember_marks(self) -> None:
        self._marks_before.append(dict(self.session.marked))
        del self._marks_before[:-100]

    def _marked(self) -> None:
        if "is:m" in self._line.value:
            self._show()
        self.table.refresh()
        self._hint()
        self.host.refresh_bar()
        self.host.draft_changed()

    def _why_not(self, row: Row | None) -> None:
        if row is None:
            return
        why = "cannot be used; the details show why, and the fix"
        if row.error is None and row.is_subspace:
            why = f"is a subspace: {key('adapters.go')} opens it, marks are for adapters"
        elif row.error is None:
            why = "belongs to no group: its tensors are not known"
        self.notify(f"{clean(row.name)} {why}.", severity="warning", markup=False)

    # going on

    async def action_go(self) -> None:
        if self._on_start_page:
            if not self._is_promised:
                self.query_one(StartPage).choose()
            return
        row = self.table.row
        if row is None:
            return
        if row.is_subspace and row.error is None:
            await self.host.open_subspace(row.path)
        elif row.group is not None and not self.session.marked:
            self.action_group()
            many = plural(len(self.session.marked), "compatible adapter")
            self.notify(f"Marked {many}. Press {key('step.choose')} to continue.", markup=False)
        else:
            self._to_details()

    async def action_next(self) -> None:
        """Go on to choose k for what is marked."""
        await self.host.show_step("choose")

    def _to_details(self) -> None:
        """The details of the row, in the list's place where there is no room for both."""
        body = self.query_one(Body)
        if self.screen.has_class("-short"):
            body.add_class("-details")
        body.details.focus()

    def find(self, path: str) -> None:
        """Put the cursor on the adapter or subspace of this path, whatever the filter hides."""
        if not self.table.find(path):
            self._line.value = ""
            self._show()
            self.table.find(path)
        self._focus()

    async def on_table_pressed(self, event: Table.Pressed) -> None:
        await self.action_go()

    def on_table_mark_pressed(self, event: Table.MarkPressed) -> None:
        self.action_mark()

    def on_table_header_pressed(self, event: Table.HeaderPressed) -> None:
        if self._sort[0] == event.column:
            self.action_turn()
        else:
            self._sort = (event.column, False)
            self._show()

    def on_table_moved(self, event: Table.Moved) -> None:
        self._details()
        self.query_one(Body).buttons.show(self._buttons())
        self._draw_keys()
        if self.table.range_from is not None:
            self._hint()

    def action_sort(self, by: int) -> None:
        shown = [column.key for column in self.table.shown_columns]
        at = shown.index(self._sort[0]) if self._sort[0] in shown else -1
        self._sort = (shown[(at + by) % len(shown)], False)
        self._show()

    def action_turn(self) -> None:
        self._sort = (self._sort[0], not self._sort[1])
        self._show()

    def action_back(self) -> None:
        if self._problem.display:
            self._say_problem("")
        elif self._on_start_page:
            return
        elif self.query_one(Body).details.has_focus:
            self.query_one(Body).remove_class("-details")
            self.table.focus()
        elif self.table.range_from is not None:
            self.table.range_from = None
            self.table.refresh()
            self._hint()
        elif self._line.display:
            self._line.value = ""
            self._line.display = False
            self._focus()
        else:
            self.host.action_escape()

    def action_pane(self) -> None:
        """The details instead of the list where there is no room for both; else the next pane."""
        if not self.screen.has_class("-short"):
            self.screen.focus_next()
            return
        body = self.query_one(Body)
        body.toggle_class("-details")
        (body.details if body.has_class("-details") else self.table).focus()

    def renew_start(self) -> None:
        """Something to begin with was found."""
        self.query_one(StartPage).renew()

    def leave(self) -> bool:
        """``q``: leave what is only for a moment; False if there is nothing of the kind."""
        if self._on_start_page:
            return False
        there = self.table.range_from is not None or self._line.display
        if there:
            self.action_back()
        return there

    def on_input_changed(self, event: Input.Changed) -> None:
        self._show()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._line.display = bool(self._line.value)
        self._focus()

    # drawing

    @property
    def _problem(self) -> Static:
        return self.query_one("#adapters-problem", Static)

    def _say_problem(self, text: str) -> None:
        """Why a place could not be opened: it stays until another is opened, or Esc."""
        self._problem.update(text)
        self._problem.display = bool(text)
        if text and not self.is_in_view:
            self.host.complain(text)

    @property
    def _on_start_page(self) -> bool:
        return self.query_one(StartPage).display

    def _focus(self) -> None:
        if self._on_start_page:
            self.query_one(StartPage).table.focus()
        else:
            self.table.focus()

    def _mark(self, row: Row) -> Cell:
        if row.path in self.session.left_out:
            return ("x" if self.host.ascii_only else "✕"), "warning"
        if row.path in self.session.marked:
            return ("*" if self.host.ascii_only else "●"), "marked"
        if row.error is not None:
            return ("x" if self.host.ascii_only else "✕"), "error"
        if row.is_subspace:
            return ("#" if self.host.ascii_only else "◆"), "accent"
        return " ", ""

    def _show(self) -> None:
        empty = not self.finder.rows and not self.finder.scanning and not self.finder.making
        start = self.query_one(StartPage)
        if not self._is_complete:
            return
        body = self.query_one(Body)
        if start.display != empty or body.display == empty:
            start.display, body.display = empty, not empty
            if self.is_in_view:
                self._focus()
        if empty:
            return
        if bool(self.finder.rows) != self._had_rows:  # other keys are of use now
            self._had_rows = bool(self.finder.rows)
            self.screen.refresh_bindings()
        fits = keep(self._line.value, self.session.marked, self.finder.places)
        rows = ordered([row for row in self.finder.rows.values() if fits(row)], *self._sort)
        self.table.sorted_by = self._sort
        body.show_rows(rows, cursor=None if self.table.was_moved else 0)
        self._draw_keys()
        self._details()
        self._hint()

    def _draw_keys(self) -> None:
        """What can be done with one row cannot be done with every other."""
        of_use = self.is_of_use("mark"), self.is_of_use("group")
        if of_use != self._of_use:
            self._of_use = of_use
            self.screen.refresh_bindings()

    def _details(self) -> None:
        row = self.table.row
        group = row.group if row is not None else None
        members = sum(r.group == group for r in self.finder.rows.values()) if group else 0
        nothing = not self.finder.rows  # yet
        body = self.query_one(Body)
        body.describe(members, "" if nothing else "No row matches the filter.")
        body.show_instead(keyed(DEMO_SHOWS) if nothing and self.finder.making else "")

    def _hint(self) -> None:
        body = self.query_one(Body)
        body.show_header(self._title_words(), self._count_words(), self._hint_words())
        body.buttons.show(self._buttons())

    def _buttons(self) -> list[Button]:
        row, buttons = self.table.row, list[Button]()
        if self.session.chosen:
            buttons.append(Button("step.choose", "Choose k", "next"))
        if row is not None and row.applies is not None and row.applies.can_be_repaired:
            buttons.append(Button("adapters.repair", "Repair", "repair"))
        return buttons

    def _title_words(self) -> str:
        folders = [place_words(folder) for folder in self.finder.places]
        if not folders:
            return "Adapters"
        more = f" and {len(folders) - 1} more" if len(folders) > 1 else ""
        return f"Adapters in {folders[0]}{more}"

    def _count_words(self) -> str:
        shown, total = len(self.table.rows), len(self.finder.rows)
        if self.finder.making:
            return "making the demo"
        if self.finder.scanning:
            return f"scanning: {total:,} found ({key('adapters.stop')} to stop)"
        return f"{total:,} found" if shown == total else f"{shown:,} of {total:,} shown"

    def _hint_words(self) -> tuple[str, ...]:
        """What can be done with the rows, or what is marked; then the same in fewer words."""
        if self.table.range_from is not None:
            rows = plural(len(self.table.range), "row")
            take, leave = key("adapters.range"), key("adapters.back")
            return f"{rows} in the range: {take} mark, {leave} cancel", f"{rows}: {take} mark"
        chosen = self.session.chosen
        if not chosen:
            if self.finder.scanning or not self.finder.rows:
                return ()
            broken = sum(row.error is not None for row in self.finder.rows.values())
            tail = f"   {broken} cannot be used" if broken else ""
            one, group, everything = (key(f"adapters.{name}") for name in ("mark", "group", "all"))
            fitting = key("adapters.go")
            found = self.finder.rows.values()
            if not any(row.info is not None and row.error is None for row in found):
                only = any(row.is_subspace for row in found)
                return (f"{fitting} opens the subspace{tail}" if only else tail.strip(),)
            words = f"{fitting} marks all that fit"
            full = f"{words}, {one} one, {group} a group, {everything} all{tail}"
            return full, f"{words}{tail}", words
        groups = Counter(info.group for info in chosen)
        words = f"{len(chosen)} marked, {size(sum(info.nbytes for info in chosen))}"
        out = len(chosen) - len(self.session.included)
        words += f", {out} of them left out" if out else ""
        if len(groups) == 1:
            return (words,)
        full = f"{words}; {len(groups)} groups, which are built one at a time"
        return full, f"{words}; {len(groups)} groups", f"{len(chosen)} marked, {len(groups)} groups"

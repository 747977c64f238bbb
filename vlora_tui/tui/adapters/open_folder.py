"""The dialog that opens a folder, or a place on the Hub: type, paste or walk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input, Static

from vlora_engine.adapters.address import CACHE_PLACE, SEARCH_PLACE, AdapterRef, is_hub_place
from vlora_engine.catalog.locate import refuse_elsewhere
from vlora_engine.errors import ParameterError, VLoRAError
from vlora_engine.utils.file_names import ADAPTER_CONFIG, SUBSPACE_INDEX
from vlora_tui.tui.adapters.places import place_words
from vlora_tui.tui.text import advice, clean, tilde
from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.dialogs import Dialog
from vlora_tui.tui.widgets.path_input import PathInput
from vlora_tui.tui.widgets.table import Cell, Column, Table

MAX_ENTRIES = 2000
COLUMNS = (
    Column("name", "", least=16, keep=2),
    Column("kind", "", least=8, keep=1),
)
KEYS = "Enter open · <open.complete> complete · <open.look> scan the row · <open.cancel> cancel"


@dataclass(frozen=True)
class Entry:
    """A folder in the list, or what can be done with the folder that is named."""

    name: str
    kind: str
    path: str
    action: str = "go"  # go, look


class OpenFolder(Dialog):
    """Asks for a folder, or a place on the Hub; the result is what was typed or chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        shown("escape", "cancel", "Back", "open.cancel", "Close, open nothing"),
        *(
            replace(hidden(keys, action, f"open.{name}", tooltip), priority=True)
            for keys, action, name, tooltip in (
                ("up", "move(-1)", "up", ""),
                ("down", "move(1)", "down", ""),
                ("pageup", "move(-10)", "page_up", ""),
                ("pagedown", "move(10)", "page_down", ""),
                ("tab", "complete", "complete", "Complete the name"),
                ("ctrl+o", "look", "look", "Scan the folder under the cursor"),
            )
        ),
    ]

    class Listed(Message):
        """The folders in a folder."""

        def __init__(self, folder: str, entries: list[Entry], problem: str) -> None:
            super().__init__()
            self.folder, self.entries, self.problem = folder, entries, problem

    def __init__(self, start: str) -> None:
        super().__init__()
        self._start = os.path.join(tilde_or(start), "")
        self._folder = ""
        self._entries: list[Entry] = []
        self._problem = ""

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = Text("Open a folder or Hub repo")
            yield PathInput(self._start, replace=False, compact=True, id="place")
            yield Static("", id="said", classes="keys", markup=False)
            yield Table(COLUMNS, _cells, key=_key, header=False, loud=True, id="folders")
            yield self.keys_line(KEYS)

    def on_mount(self) -> None:
        super().on_mount()
        height = self.app.size.height
        self.query_one("#folders").styles.height = max(3, min(16, height - 10))
        self.query_one(Input).focus()
        self.query_one(Input).cursor_position = len(self._start)
        self._renew(self._start)

    def on_input_changed(self, event: Input.Changed) -> None:
        self._renew(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._enter()

    def on_table_pressed(self, event: Table.Pressed) -> None:
        self._enter()

    def on_open_folder_listed(self, event: Listed) -> None:
        if event.folder == self._folder:
            self._entries, self._problem = event.entries, event.problem
            self._show()

    def action_move(self, by: int) -> None:
        self._table.move_to(self._table.cursor + by)

    def action_complete(self) -> None:
        """The name under the cursor, or as much as all names have in common."""
        names = [e.name for e in self._matching() if e.action == "go" and e.name != ".."]
        row = self._table.row
        if row is not None and row.action == "go" and row.name != "..":
            self._go(os.path.join(self._typed_folder(), row.name, ""))
        elif len(names) == 1:
            self._go(os.path.join(self._typed_folder(), names[0], ""))
        elif names:
            self._go(os.path.join(self._typed_folder(), _common_start(names)))

    def action_look(self) -> None:
        row = self._table.row
        self.dismiss(row.path if row is not None else self._value)

    def _enter(self) -> None:
        row = self._table.row
        if row is None or row.action == "look":
            folder = self._value.strip() if row is None else row.path
            if folder:
                self.dismiss(folder)
        elif row.name == "..":
            self._go(os.path.join(os.path.dirname(self._typed_folder().rstrip("/")) or "/", ""))
        else:
            self._go(os.path.join(self._typed_folder(), row.name, ""))

    def _go(self, folder: str) -> None:
        line = self.query_one(Input)
        line.value = folder
        line.cursor_position = len(folder)

    @property
    def _table(self) -> Table[Entry]:
        return self.query_one("#folders", Table)

    @property
    def _value(self) -> str:
        return self.query_one(Input).value

    def _typed_folder(self) -> str:
        """The part of the line up to its last slash."""
        return self._value[: self._value.rfind("/") + 1] or "./"

    def _renew(self, value: str) -> None:
        remote = _remote(value)
        folder = os.path.expanduser(value[: value.rfind("/") + 1] or "./")
        if remote or is_hub_place(value):
            self._folder, self._entries, self._problem = folder, [], remote
            self._show()
        elif folder != self._folder:
            self._folder, self._entries, self._problem = folder, [], ""
            self._list(folder)
            self._show()
        else:
            self._show()

    @work(thread=True, exclusive=True, group="list")
    def _list(self, folder: str) -> None:
        try:
            self.post_message(self.Listed(folder, _folders(folder), ""))
        except OSError as error:
            self.post_message(self.Listed(folder, [], f"{error.strerror}"))

    def _matching(self) -> list[Entry]:
        begun = self._value[self._value.rfind("/") + 1 :]
        hidden = begun.startswith(".")
        fits = [
            e
            for e in self._entries
            if e.name.casefold().startswith(begun.casefold()) and (hidden or e.name[0] != ".")
        ]
        return fits or [e for e in self._entries if begun.casefold() in e.name.casefold()]

    def _show(self) -> None:
        value = self._value.strip()
        on_hub = hub_entries(value)
        rows = on_hub or [Entry(f"Scan {tilde(value) or '.'}", "and below", value, "look")]
        if not on_hub and not _remote(value):
            if self._typed_folder() not in ("/", "./"):
                rows.append(Entry("..", "parent folder", os.path.dirname(self._folder.rstrip("/"))))
            rows += self._matching()
        self.query_one("#said", Static).update(Text(self._problem))
        self._table.show(rows, cursor=0)


def hub_entries(value: str) -> list[Entry]:
    """What a word can mean on the Hub: an address, or ``org/name`` that is nothing here."""
    if value.startswith((CACHE_PLACE, SEARCH_PLACE)):
        return [Entry(f"Scan {place_words(value)}", "", value, "look")]
    bare = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value)
    if bare and not os.path.isdir(os.path.dirname(value)):
        value = f"hf://{value}"
    try:
        address = AdapterRef.on_hub(value)
    except ParameterError:
        return []
    of = address.repo
    return [
        Entry(f"Open {address}", "headers only", str(address), "look"),
        Entry(f"Search the Hub: adapters of {of}", "as base", SEARCH_PLACE + of, "look"),
    ]


def _common_start(names: list[str]) -> str:
    least, most = min(names), max(names)
    same = (i for i, c in enumerate(least) if i >= len(most) or c != most[i])
    return least[: next(same, len(least))]


def tilde_or(path: str) -> str:
    """A path with ``~`` for the home directory; itself where that would change its characters."""
    short = tilde(path)
    return short if os.path.expanduser(short) == path else path


def _folders(folder: str) -> list[Entry]:
    """The folders in a folder; what each is, as far as the names in it tell."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if not entry.is_dir():
                    continue
            except OSError:
                continue
            found.append(entry.name)
            if len(found) >= MAX_ENTRIES:
                break
    return [
        Entry(name, _kind(os.path.join(folder, name)), os.path.join(folder, name))
        for name in sorted(found, key=str.casefold)
    ]


def _kind(path: str) -> str:
    try:
        if os.path.exists(os.path.join(path, SUBSPACE_INDEX)):
            return "subspace"
        if os.path.exists(os.path.join(path, ADAPTER_CONFIG)):
            return "adapter"
        return "" if os.access(path, os.R_OK | os.X_OK) else "no permission"
    except OSError:
        return "no permission"


def _remote(value: str) -> str:
    """Why a place on another machine cannot be looked into; empty for others."""
    if ":" not in value and "@" not in value:
        return ""
    if os.path.lexists(os.path.expanduser(value)):
        return ""
    try:
        refuse_elsewhere(str(AdapterRef.parse(value)))
    except VLoRAError as error:
        return f"{error.what} fix: {advice(error.remedy or '')}"
    return ""


def _key(entry: Entry) -> str:
    return entry.action + entry.path


def _cells(entry: Entry) -> list[Cell]:
    tone = "accent" if entry.action == "look" else ""
    name = clean(entry.name) + ("/" if entry.action == "go" and entry.name != ".." else "")
    kinds = {"adapter": "good", "subspace": "accent", "no permission": "warning"}
    return [(name, tone), (entry.kind, kinds.get(entry.kind, "muted"))]

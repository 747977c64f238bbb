"""The start page of Adapters, shown while no adapter is listed: where to begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Static

from vlora_engine.adapters.address import CACHE_PLACE, hub_cache
from vlora_tui.tui.adapters.places import current_folder, place_words, recent_folders
from vlora_tui.tui.text import tilde
from vlora_tui.tui.widgets.table import Cell, Column, Table

COLUMNS = (
    Column("what", "", least=18, most=64, keep=2, lost="start"),
    Column("why", "", least=12, most=60, keep=1),
)
WELCOME = "Where are your LoRA adapters?"
WELCOME_MORE = "Only headers are read. Nothing is loaded or changed.\nYou can paste a path here."


@dataclass(frozen=True)
class Beginning:
    """One way to begin: an action of the page, and the place it is about."""

    what: str
    why: str
    action: str
    folder: str = ""


class StartPage(Vertical):
    """Ways to begin, in a list."""

    class Chosen(Message):
        """A way to begin was chosen."""

        def __init__(self, beginning: Beginning) -> None:
            super().__init__()
            self.beginning = beginning

    def __init__(self, draft: Callable[[], str | None], id: str | None = None) -> None:
        super().__init__(id=id)
        self._draft = draft

    def compose(self) -> ComposeResult:
        yield Static(WELCOME, id="welcome", markup=False)
        yield Static(WELCOME_MORE, id="welcome-more", markup=False)
        yield Table(
            COLUMNS, _cells, key=lambda b: f"{b.action} {b.folder}", header=False, id="beginnings"
        )

    def on_mount(self) -> None:
        self.table.show(beginnings(self._draft()))

    def renew(self) -> None:
        """Read the recent folders again."""
        self.table.show(beginnings(self._draft()), cursor=None if self.table.cursor else 0)

    @property
    def table(self) -> Table[Beginning]:
        """The list."""
        return self.query_one("#beginnings", Table)

    def choose(self) -> None:
        """Take the row under the cursor."""
        if self.table.row is not None:
            self.post_message(self.Chosen(self.table.row))

    def on_table_pressed(self, event: Table.Pressed) -> None:
        event.stop()
        self.choose()

    def on_table_moved(self, event: Table.Moved) -> None:
        event.stop()


def beginnings(draft: str | None) -> list[Beginning]:
    """The ways to begin, the likeliest first."""
    found = []
    if draft:
        found.append(Beginning("Continue where you left off", draft, "draft"))
    recent = recent_folders()
    found.append(Beginning("Open a folder or Hub repo", "a path, or hf://org/name", "open"))
    here = current_folder()
    if here and here not in recent:
        found.append(Beginning(tilde(here), "this folder", "look", here))
    for folder in recent:
        found.append(Beginning(place_words(folder), "opened before", "look", folder))
    if hub_cache().is_dir() and CACHE_PLACE not in recent:
        found.append(Beginning("Hub cache", "downloaded by huggingface_hub", "look", CACHE_PLACE))
    found.append(
        Beginning("Make the demo", "19 small adapters, made here in seconds; no download", "demo")
    )
    return found


def _cells(beginning: Beginning) -> list[Cell]:
    return [(beginning.what, ""), (beginning.why, "muted")]

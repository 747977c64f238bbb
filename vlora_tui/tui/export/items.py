"""Export's pane of what can be written: tasks or adapters, and which of them are marked."""

from __future__ import annotations

from collections.abc import Mapping

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Static

from vlora_tui.tui.export.settings import Item, Settings, Source, shares_of, weights_of
from vlora_tui.tui.text import clean
from vlora_tui.tui.widgets.bars import bar
from vlora_tui.tui.widgets.table import Cell, Column, Table
from vlora_tui.utils.formatting import percent, size

COLUMNS = (
    Column("name", "name", least=12, keep=5, lost="middle"),
    Column("rank", "rank", right=True, keep=2),
    Column("error", "dW error", right=True, keep=3),
    Column("bytes", "size", right=True, keep=4),
)
MERGE_COLUMNS = (
    Column("name", "name", least=20, keep=5, lost="middle"),
    Column("rank", "rank", right=True, keep=1),
    Column("weight", "weight", right=True, keep=4),
    Column("share", "of all", right=True, keep=3),
    Column("bar", "kept", keep=3),
    Column("kept", "", right=True, keep=4),
    Column("bytes", "size", right=True, keep=2),
)


BAR = 8  # cells of a bar


class ItemsPane(Vertical):
    """A table of tasks or adapters. ``marked`` holds names in the order of the source."""

    class Marked(Message):
        """Other items are marked now."""

    def __init__(self, *, ascii_only: bool = False) -> None:
        super().__init__(id="export-items", classes="pane")
        self._marks = ("x", "-") if ascii_only else ("●", "○")
        self._words: tuple[str, ...] = ()
        self.source: Source | None = None
        self.marked: dict[str, None] = {}
        self._settings = Settings()
        self._ascii_only = ascii_only
        self._kept: Mapping[str, float] = {}
        self._is_stale = False
        self._weights: dict[str, tuple[float, float | None]] = {}  # of the marked, and the share

    def compose(self) -> ComposeResult:
        yield Table(COLUMNS, self._cells, key=lambda i: i.name, mark=self._mark, id="item-table")
        yield Static(id="items-said", classes="said", markup=False)

    def take(self, source: Source | None) -> None:
        """Other items, all of them marked."""
        self.source = source
        self.marked = {item.name: None for item in source.items} if source is not None else {}

    def show(
        self,
        settings: Settings,
        note: str = "",
        *,
        kept: Mapping[str, float] | None = None,
        stale: bool = False,
    ) -> None:
        """Draw the items that the filter keeps, and a line below them; of a merge the weights.

        Args:
            kept: How far the merge moves along each item, 1 as far as that does itself.
            stale: That was measured with other settings.
        """
        if self.source is None:
            return
        self._settings, self._kept, self._is_stale = settings, kept or {}, stale
        self._weigh()
        self.table.columns = list(self._columns)
        items, subspace = self.source.items, self.source.subspace
        shown = [i for i in items if all(word in i.name.lower() for word in self._words)]
        self.table.show(shown)
        self.border_title = f"Tasks of {clean(subspace.name)}" if subspace else "Marked adapters"
        self.border_subtitle = f"{len(self.marked)} of {len(items)} marked"
        self.query_one("#items-said", Static).update(note)

    def filter(self, text: str) -> None:
        """Keep the items whose names have all these words."""
        self._words = tuple(text.lower().split())

    def row_text(self) -> str | None:
        """The row under the cursor as text."""
        item = self.table.row
        return None if item is None else "  ".join(text for text, _ in self._cells(item))

    # marking

    def mark(self) -> None:
        """Mark or unmark the line, and go on to the next."""
        item = self.table.row
        if item is not None:
            self._set(set(self.marked) ^ {item.name})
            self.table.move_to(self.table.cursor + 1)

    def mark_all(self) -> None:
        """Mark all that is shown; if all are, none."""
        names, marked = self._names, set(self.marked)
        self._set(marked - names if names <= marked else marked | names)

    def invert(self) -> None:
        """Turn the marks of what is shown round."""
        self._set(set(self.marked) ^ self._names)

    def _set(self, names: set[str]) -> None:
        items = self.source.items if self.source is not None else ()
        self.marked = {item.name: None for item in items if item.name in names}
        self.post_message(self.Marked())

    @property
    def _names(self) -> set[str]:
        return {item.name for item in self.table.rows}

    # drawing

    @property
    def table(self) -> Table[Item]:
        """The table of the items."""
        return self.query_one("#item-table", Table)

    @property
    def _merges(self) -> bool:
        return self._settings.doing == "merge"

    @property
    def _columns(self) -> tuple[Column, ...]:
        if not self._merges:
            return COLUMNS
        shared = any(share is not None for _, share in self._weights.values())
        absent = set() if shared else {"share"}
        absent |= {"bytes"} if self._kept else {"bar", "kept"}
        return tuple(c for c in MERGE_COLUMNS if c.key not in absent)

    def _weigh(self) -> None:
        names = list(self.marked)
        nothing: list[float | None] = [None] * len(names)
        shares = shares_of(self._settings, names) or nothing
        both = zip(weights_of(self._settings, names), shares, strict=True)
        self._weights = dict(zip(names, both, strict=True))

    def _cells(self, item: Item) -> list[Cell]:
        exact = self.source is not None and self.source.kind == "adapters"
        if self._merges:
            weight, share = self._weights.get(item.name, (None, None))
            typed = item.name in self._settings.weights
            kept, tone = self._kept.get(item.name), "muted" if self._is_stale else "accent"
            shown = "" if kept is None else bar(kept, BAR, ascii_only=self._ascii_only)
            about = "~" if self._is_stale else ""
            cells = {
                "name": (clean(item.name), ""),
                "rank": ("-" if item.rank is None else str(item.rank), "muted"),
                "weight": ("-" if weight is None else f"{weight:.3g}", "accent" if typed else ""),
                "share": ("-" if share is None else f"{100 * share:.3g} %", "muted"),
                "bar": (shown, tone),
                "kept": ("" if kept is None else f"{about}{100 * kept:.3g} %", tone),
                "bytes": (f"{'' if exact else '~'}{size(item.nbytes)}", ""),
            }
            return [cells[column.key] for column in self._columns]
        return [
            (clean(item.name), ""),
            ("-" if item.rank is None else str(item.rank), "muted"),
            (percent(item.error), ""),
            (f"{'' if exact else '~'}{size(item.nbytes)}", ""),
        ]

    def _mark(self, item: Item) -> Cell:
        on, off = self._marks
        return (on, "accent") if item.name in self.marked else (off, "muted")

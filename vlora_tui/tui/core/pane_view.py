"""Steps made of panes: all at once where there is room, else one at a time under its name."""

from __future__ import annotations

from typing import Any

from textual import events
from textual.widget import Widget

from vlora_tui.tui.core.view import View
from vlora_tui.tui.widgets.tabs import PaneTabs, Tab

FRAME = 2  # lines of the terminal that are not the view's: the status line and the keys


class PaneView(View):
    """A view whose panes (class ``pane``) are told by ``panes``; Tab goes through them.

    A pane has one widget that takes the focus. Without room (class ``one``) only the pane with
    the class ``current`` is in sight.
    """

    least = (110, 26)  # columns and lines that all panes together need

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._current = ""
        self._found: dict[str, list[Widget]] = {}
        # Before there are panes, so that these are styled once.
        self.update_classes(self._sized(*self.app.size), update=False)

    def panes(self) -> list[Tab]:
        """The panes that there are now, in the order of Tab."""
        raise NotImplementedError

    def on_resize(self, event: events.Resize) -> None:
        """Decide whether all panes fit."""
        self.fit()
        self.arranged()

    def fit(self) -> None:
        """Set the classes ``one`` and ``short``."""
        # By the terminal, not by what this view is told: a view that is made while another step
        # is being drawn may be told of a size on the way, and of no other afterwards.
        self.fit_to(*self.app.size)

    def fit_to(self, width: int, height: int) -> None:
        was_one = self.has_class("one")
        self.update_classes(self._sized(width, height))
        if self.pane and self.has_class("one") != was_one:
            self._mark(self.pane)

    def _sized(self, width: int, height: int) -> dict[str, bool]:
        height -= FRAME
        is_small = width < self.least[0] or height < self.least[1]
        return {"one": is_small, "short": height < 12}

    def arranged(self) -> None:
        """The size has changed."""

    @property
    def pane(self) -> str:
        """The id of the pane with the focus, or of the last that had it."""
        return self._current

    def draw_tabs(self) -> None:
        """Show the names of the panes, and one pane at least."""
        tabs = self.panes()
        ids = [tab.id for tab in tabs]
        for pane in self._all("pane"):
            pane.set_class(pane.id not in ids, "absent")
        if ids and self.pane not in ids:
            self._mark(ids[0])
        self.query_one(PaneTabs).show(tabs, self.pane)

    def go_to_pane(self, pane: str) -> None:
        """Bring a pane into view and give it the focus; nothing where it is not there now.

        Which pane had the focus is not known before the first was shown.
        """
        wanted = self._pane_called(pane)
        if wanted is None or pane not in [tab.id for tab in self.panes()]:
            return
        if self.app.screen.maximized is not None:
            self.app.screen.minimize()
        self._mark(pane)
        self.query_one(PaneTabs).show(self.panes(), pane)
        target = next((w for w in wanted.query("*") if w.can_focus and w.display), None)
        if target is not None:
            target.focus()

    def action_next_pane(self, by: int) -> None:
        """The next pane, or the one before."""
        ids = [tab.id for tab in self.panes()]
        if ids:
            at = ids.index(self.pane) if self.pane in ids else 0
            self.go_to_pane(ids[(at + by) % len(ids)])

    def on_pane_tabs_chosen(self, event: PaneTabs.Chosen) -> None:
        self.go_to_pane(event.pane)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        pane = next((p for p in _upwards(event.widget) if p.has_class("pane")), None)
        if pane is not None and pane.id:
            self._mark(pane.id)
            self.query_one(PaneTabs).show(self.panes(), pane.id)

    def _mark(self, pane: str) -> None:
        self._current = pane
        for each in self._all("pane"):
            each.set_class(each.id == pane, "current")
        wanted = self._pane_called(pane)
        around = [] if wanted is None else wanted.ancestors_with_self
        for side in self._all("side"):
            # Said only where it counts: all panes in it are styled anew.
            side.set_class(self.has_class("one") and side not in around, "away")

    def _pane_called(self, pane: str) -> Widget | None:
        """A pane by its id. Compared, not queried: no text is a selector that fails."""
        return next((each for each in self._all("pane") if pane and each.id == pane), None)

    def _all(self, kind: str) -> list[Widget]:
        """All panes, or all sides: what was composed stays, so that one search is enough.

        The keys ask for the pane many times at each change of the focus.
        """
        if not self._found.get(kind):
            self._found[kind] = list(self.query(f".{kind}"))
        return self._found[kind]


def _upwards(widget: Widget) -> list[Widget]:
    return [node for node in widget.ancestors_with_self if isinstance(node, Widget)]

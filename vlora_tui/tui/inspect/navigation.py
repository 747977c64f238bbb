"""Navigation in Inspect: from one pane to another, down to a module, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.widgets import Input

from vlora_tui.tui.core.bad_adapters import BROKEN
from vlora_tui.tui.core.messages import AdaptersWanted
from vlora_tui.tui.inspect import data as inspect_data
from vlora_tui.tui.inspect.finding_rows import module_in
from vlora_tui.tui.inspect.panes import InspectPanes
from vlora_tui.tui.inspect.queries import AskingPane
from vlora_tui.tui.inspect.rows import BITS, CONTESTED, LOSS, SIZE
from vlora_tui.tui.inspect.state import InspectState
from vlora_tui.tui.key_names import keyed

if TYPE_CHECKING:
    from vlora_tui.tui.core.pane_view import PaneView


class Navigation:
    """Goes from what the cursor of a pane is on to the pane that shows it closer."""

    def __init__(self, view: PaneView, state: InspectState, panes: InspectPanes) -> None:
        self._view = view
        self._state = state
        self._session = state.session
        self._panes = panes

    def enter(self) -> None:
        """From what the cursor is on to its layers, from there to a module."""
        match self._view.pane:
            case "inspect-summary":
                self._go_to_picture()
            case "inspect-groups":
                if self._panes.groups.group is not None:
                    self._go_to(*self._panes.groups.group.members[:2])
                    self._view.go_to_pane("inspect-alike")
            case "inspect-apart":
                self._go_to_outlier()
            case "inspect-findings":
                self._go_to_finding()
            case "inspect-alike" | "inspect-tasks":
                self._state.pair = self._panes.pair_here()
                self._compare()
                self._panes.draw_layers()
                self._view.go_to_pane("inspect-layers")
            case "inspect-layers":
                why = self._panes.layers.look_closer(self._panes.walk())
                if why is not None:
                    self._view.notify(why, severity="warning", markup=False)

    def _go_to_picture(self) -> None:
        """The picture of the sentence under the cursor."""
        sentence, panes = self._panes.summary.sentence, self._panes
        if sentence is None:
            return
        match sentence.topic:
            case "unusable":
                self._view.post_message(AdaptersWanted(BROKEN))
            case "no outlier":
                self._view.go_to_pane("inspect-apart")
            case "not measured":
                why = panes.alike.measure_now()
                if why is not None:
                    self._view.notify(why, severity="warning", markup=False)
                panes.draw_summary()
            case "task" | "error" | "bits":
                self.close_filter()
                self._state.pair = None
                panes.tasks.go_to_task(sentence.task)
                panes.draw_layers()
                measure, kind = BITS if sentence.topic == "bits" else LOSS, "subspace"
                kind = "task" if sentence.task is not None else kind
                panes.layers.point(sentence.module, measure, kind)
                self._view.go_to_pane("inspect-layers")
            case "outlier" if sentence.pair is not None:
                self._go_to(*sentence.pair)
                panes.layers.point(sentence.module, SIZE)
                self._view.go_to_pane("inspect-layers")
            case "interference" if sentence.pair is not None:
                self._go_to(*sentence.pair)
                panes.alike.show_measure("contested")
                self._state.pair = panes.pair_here()
                panes.layers.point(sentence.module, CONTESTED, "pair")
                self._compare()
                panes.draw_layers()
                self._view.go_to_pane("inspect-alike")
            case "similar" if sentence.pair is not None:
                panes.alike.show_measure("cosine")
                self._go_to(*sentence.pair)
                self._view.go_to_pane("inspect-alike")

    def walk(self, by: int) -> None:
        """The next adapter, pair or task, or the one before, while its layers stay in sight."""
        pair, panes = self._state.pair, self._panes
        if self._state.on_tasks:
            self._state.pair = None
            panes.tasks.walk(by)
            return
        panes.alike.walk(by)
        if pair is not None:
            self._state.pair = panes.pair_here()
            self._compare()
        panes.draw_layers()

    def _go_to(self, first: int, second: int) -> None:
        """Put the matrix's cursor on two adapters, whatever the filter hides."""
        likeness = self._state.likeness
        if likeness is None:
            return
        self._state.pair = None
        if not all(self._state.keeps(likeness.names[i]) for i in (first, second)):
            self.close_filter()
        self._panes.alike.go_to(first, second)
        self._panes.draw_layers()

    def _go_to_outlier(self) -> None:
        """Its layers, on the one of the family in which it stands apart."""
        row, spectra = self._panes.outliers.row, self._session.spectra
        if row is None or spectra is None:
            return
        self._go_to(row.index, row.index)
        module = inspect_data.module_of_family(spectra, row.index, row.foremost_reason)
        self._panes.layers.point(module, SIZE)
        self._view.go_to_pane("inspect-layers")

    def _go_to_finding(self) -> None:
        """The layers of the adapter or task that it is about, on the module that it names."""
        remark = self._panes.findings.remark
        likeness, on_tasks = self._state.likeness, self._state.on_tasks
        spectra, manifest = self._session.spectra, self._session.manifest
        if remark is None:
            return
        if likeness is not None and spectra is not None and remark.path in likeness.paths:
            if on_tasks:
                self.turn()
            at = likeness.paths.index(remark.path)
            self._go_to(at, at)
            self._panes.layers.point(module_in(remark, spectra.layer_names), SIZE)
            self._view.go_to_pane("inspect-layers")
        elif manifest is not None and on_tasks and remark.path.startswith(str(manifest.path)):
            self.close_filter()
            self._panes.tasks.go_to(remark.path, remark.finding.file)
            self._panes.draw_layers()
            self._panes.layers.point(module_in(remark, [layer.name for layer in manifest.layers]))
            self._view.go_to_pane("inspect-layers")
        elif remark.path in self._session.infos:
            self._view.post_message(AdaptersWanted(remark.about))
        else:
            self._view.notify("This finding is about no adapter that is open here.", markup=False)

    def _compare(self) -> None:
        """Have the pair compared."""
        if self._state.pair is None:
            return
        if self._state.pair.pair_refs is None:
            self._state.pair = None
            self._view.notify(
                "Where these adapters lie is not known.", severity="warning", markup=False
            )
            return
        self._panes.layers.compare(self._state.pair)

    def to_coverage(self) -> str | None:
        """How much the open subspace holds of an adapter; why that cannot be told, or None."""
        pair, manifest = self._panes.alike.pair, self._session.manifest
        if manifest is None:
            return keyed(
                "Coverage is by the bases of a subspace: open one first (<step.adapters>)."
            )
        if self._state.on_tasks and self._session.spectra is not None:
            return keyed("Coverage is of adapters: <inspect.turn> turns to them.")
        if self._state.likeness is None or pair is None:
            return keyed(
                "Coverage is of adapters: mark some (<step.adapters>), and have them measured "
                "(<step.choose>)."
            )
        self._go_to(pair[0], pair[0])
        self._panes.layers.cover()
        self._view.go_to_pane("inspect-layers")
        return None

    def turn(self) -> None:
        """Between the adapters and the tasks of the open subspace."""
        self._state.tasks_wanted = not self._state.on_tasks
        self._state.pair = None
        self._panes.draw()
        self._view.go_to_pane(self._panes.tabs()[0].id)

    def step_back(self, *, unasked: bool = True) -> bool:
        """Stop what is being read, leave the filter or the pair; False if there is none.

        Args:
            unasked: Stop what is measured in the background, too.
        """
        line = self._view.query_one("#inspect-filter", Input)
        panes = [p for p in self._view.query(AskingPane) if unasked or not p.is_unasked]
        stopped = [pane for pane in panes if pane.stop()]
        if stopped:
            self._state.pair = None
            self._panes.draw_layers()
            return True
        if line.has_class("open"):
            self.close_filter()
            self._view.go_to_pane(self._view.pane)
            return True
        if self._state.pair is not None:
            self._state.pair = None
            self._panes.draw_layers()
            self._view.go_to_pane("inspect-tasks" if self._state.on_tasks else "inspect-alike")
            return True
        return False

    def close_filter(self) -> None:
        """Show everything again."""
        line = self._view.query_one("#inspect-filter", Input)
        line.value = ""
        line.remove_class("open")
        self._state.words = ()
        self._panes.draw()

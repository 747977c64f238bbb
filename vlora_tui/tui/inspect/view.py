"""Step 4, Inspect: similar adapters, outliers, and the layers in which they differ."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Input, Static

from vlora_tui.tui.core.messages import JobsChanged, SessionChanged
from vlora_tui.tui.core.pane_view import PaneView
from vlora_tui.tui.inspect import data as inspect_data
from vlora_tui.tui.inspect.findings import FindingsPane
from vlora_tui.tui.inspect.groups import GroupsPane
from vlora_tui.tui.inspect.keys import HELP, KEYS, OF_USE
from vlora_tui.tui.inspect.layers import LayersPane
from vlora_tui.tui.inspect.navigation import Navigation
from vlora_tui.tui.inspect.outliers import OutliersPane
from vlora_tui.tui.inspect.panes import InspectPanes, KinFound
from vlora_tui.tui.inspect.queries import shell_command
from vlora_tui.tui.inspect.similarity import AlikePane
from vlora_tui.tui.inspect.state import InspectState
from vlora_tui.tui.inspect.summary import SummaryPane
from vlora_tui.tui.inspect.tasks import TasksPane
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.widgets.table import Table
from vlora_tui.tui.widgets.tabs import PaneTabs, Tab

STYLE = Path(__file__).with_suffix(".tcss").read_text("utf-8")


class LeftSide(Vertical):
    """The matrix or the tasks, and the layers."""

    class Resized(Message):
        """There is another height to share out."""

    def on_resize(self) -> None:
        self.post_message(self.Resized())


class InspectView(PaneView):
    """The Inspect step: panes about how adapters or tasks relate, and what was found wrong."""

    step = 4
    title = "Inspect"
    help_text = HELP
    DEFAULT_CSS = STYLE
    BINDINGS: ClassVar[list[BindingType]] = KEYS
    least = (110, 30)

    def compose(self) -> ComposeResult:
        spectra, manifest = self.session.spectra, self.session.manifest
        related = spectra is not None and spectra.relations is not None
        # Before there are panes, so that these are styled once.
        first = {"bare": not related and manifest is None, "ascii": self.host.ascii_only}
        self.update_classes(first, update=False)
        ascii_only = self.host.ascii_only
        yield Static(id="nothing", markup=False)
        yield PaneTabs(id="inspect-tabs")
        with Vertical(id="inspect-top", classes="side"):
            yield SummaryPane(ascii_only=ascii_only)
        with Horizontal(id="inspect-body", classes="side"):
            with LeftSide(id="inspect-left", classes="side"):
                yield AlikePane(ascii_only=ascii_only)
                yield TasksPane(ascii_only=ascii_only)
                yield LayersPane(self.session, ascii_only=ascii_only)
            with Vertical(id="inspect-right", classes="side"):
                yield GroupsPane(ascii_only=ascii_only)
                yield OutliersPane(ascii_only=ascii_only)
                yield FindingsPane(self.session, ascii_only=ascii_only)
        line = Input(placeholder="part of a name", compact=True, id="inspect-filter")
        line.cursor_blink = False
        yield line

    def on_mount(self) -> None:
        self._known: list[str] = []  # the panes that there were when it was last shown
        self.state = InspectState(self.session)
        self.contents = InspectPanes(self, self.state)
        self.navigation = Navigation(self, self.state, self.contents)
        self.draw_tabs()  # which panes there are styles all of them: now rather than at a key

    # what the application asks

    def not_ready(self) -> str | None:
        session = self.session
        if session.infos or session.spectra is not None or session.manifest is not None:
            return None
        return keyed("Nothing is open. <step.adapters> opens a folder of adapters, or a subspace.")

    def shown(self) -> None:
        self.state.follow_manifest()
        self.contents.draw()
        if not self.has_class("empty"):
            ids = [tab.id for tab in self.panes()]
            # Where there is more to see than last time, the first pane says what.
            self.go_to_pane(self.pane if self.pane and ids == self._known else ids[0])
            self._known = ids

    def changed(self, change: SessionChanged) -> None:
        if not isinstance(change, JobsChanged):
            self.contents.draw()

    def panes(self) -> list[Tab]:
        return self.contents.tabs()

    def arranged(self) -> None:
        if self.is_mounted:
            self.contents.draw_layers()

    def is_of_use(self, action: str) -> bool:
        action = action.partition("(")[0]
        if action in OF_USE and self.pane not in OF_USE[action]:
            return False
        if action in ("enter", "threshold") and self.pane == "inspect-alike":
            return self.state.likeness is not None
        match action:
            case "coverage":
                return self.session.manifest is not None and not self.state.on_tasks
            case "interference":
                return self.contents.alike.arguments is not None
            case "measure":
                return self.contents.layers.has_measures
        return True

    def row_text(self) -> str | None:
        match self.pane:
            case "inspect-summary":
                sentence = self.contents.summary.sentence
                return None if sentence is None else sentence.text
            case "inspect-alike":
                return str(self.contents.alike.text()) or None
            case "inspect-layers":
                return str(self.contents.layers.text()) or None
            case "inspect-tasks":
                return self.contents.tasks.row_text()
            case "inspect-groups":
                return self.contents.groups.row_text()
            case "inspect-apart":
                return self.contents.outliers.row_text()
            case "inspect-findings":
                return self.contents.findings.row_text()
        return None

    def command_text(self) -> str | None:
        alike = self.contents.alike
        if self.pane == "inspect-findings":
            return self.contents.findings.command
        if self.pane == "inspect-alike" and alike.is_of_interference and alike.arguments:
            return shell_command(alike.arguments)
        if self.pane == "inspect-layers" and self.contents.layers.command is not None:
            return self.contents.layers.command
        pair = self.contents.pair_here()
        on_pair = self.pane in ("inspect-layers", "inspect-alike", "inspect-tasks")
        if on_pair and pair is not None and pair.pair_refs is not None:
            return shell_command(inspect_data.diff_arguments(*pair.pair_refs))
        if self.state.on_tasks and self.session.manifest is not None:
            return shell_command(["info", str(self.session.manifest.path)])
        likeness = self.state.likeness
        paths = [path for path in likeness.paths if path] if likeness is not None else []
        return inspect_data.analyze_command(paths, self.state.threshold) if len(paths) > 1 else None

    def open_filter(self) -> None:
        line = self.query_one("#inspect-filter", Input)
        line.add_class("open")
        line.focus()

    def leave(self) -> bool:
        """``q``: first out of a comparison or a filter."""
        return self.navigation.step_back(unasked=False)

    # what threads and widgets tell

    def on_kin_found(self, event: KinFound) -> None:
        event.stop()
        self.contents.take_kin(event)

    def on_left_side_resized(self) -> None:
        self.contents.share_out()

    def on_layers_pane_known(self) -> None:
        self.contents.draw_summary()

    def on_alike_pane_measured(self) -> None:
        self.contents.draw_summary()
        self.contents.draw_layers()

    def on_findings_pane_found(self) -> None:
        self.contents.draw()

    def on_matrix_moved(self) -> None:
        if self.state.pair is not None and self.contents.pair_here() != self.state.pair:
            self.state.pair = None
        self.contents.draw_layers()

    def on_matrix_chosen(self) -> None:
        self.action_enter()

    def on_table_moved(self, event: Table.Moved) -> None:
        if event.table.id == "task-table":
            self.state.pair = None
            self.contents.draw_layers()

    def on_table_pressed(self, event: Table.Pressed) -> None:
        self.action_enter()

    def on_input_changed(self, event: Input.Changed) -> None:
        self.state.words = tuple(event.value.lower().split())
        self.contents.draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if not event.value.strip():
            event.input.remove_class("open")
        self.go_to_pane(self.pane)

    # the keys

    def action_enter(self) -> None:
        """From what the cursor is on to its layers, from there to a module."""
        self.navigation.enter()

    def action_interference(self) -> None:
        """Another measure of how two relate."""
        if self.state.on_tasks:
            self._complain(keyed("Interference is between adapters: <inspect.turn> shows them."))
            return
        self._complain(self.contents.alike.turn())
        self.go_to_pane("inspect-alike")

    def action_coverage(self) -> None:
        """How much of the adapter under the cursor the open subspace holds."""
        self._complain(self.navigation.to_coverage())

    def action_doctor(self) -> None:
        """Have every tensor read."""
        self._complain(self.contents.findings.call_doctor())
        self.go_to_pane("inspect-findings")

    def action_target(self) -> None:
        """The findings for another target."""
        self.contents.findings.turn_target()
        self.go_to_pane("inspect-findings")

    def action_threshold(self, by: float) -> None:
        """Another bound from which on adapters are alike."""
        self.state.move_threshold(by)
        self.draw_tabs()
        self.contents.draw_likeness()

    def action_measure(self) -> None:
        """Another figure for the layers."""
        self.contents.layers.turn_measure()

    def action_walk(self, by: int) -> None:
        """The next adapter, pair or task, or the one before."""
        if self.pane == "inspect-layers":
            self.navigation.walk(by)

    def action_write(self) -> None:
        """Nothing is written here; say where."""
        words = "<choose.build> builds on step 2, <export.start> writes or merges on step 5."
        self.notify(keyed(words), markup=False)

    def action_order(self) -> None:
        """Similar adapters adjacent, or as found."""
        self.state.ordered = not self.state.ordered
        self.contents.draw_likeness()

    def action_sort(self) -> None:
        """By the next column."""
        self.state.next_sort()
        self.contents.draw_outliers()
        self.contents.draw_tasks()

    def action_keep(self) -> None:
        """Keep a task, to compare the next one with it."""
        if self.pane == "inspect-tasks":
            self.contents.tasks.keep()
            if self.contents.tasks.compared_with is not None:
                words = keyed("Marked. <inspect.enter> on another task compares the two.")
                self.notify(words, markup=False)

    def action_turn(self) -> None:
        """Between the adapters and the tasks of the open subspace."""
        if self.session.manifest is None or self.session.spectra is None:
            words = keyed("There is nothing else to show: open a subspace (<step.adapters>).")
            self.notify(words, markup=False)
            return
        self.navigation.turn()

    def action_stop(self) -> None:
        """Stop what is being read, leave the pair, or clear the filter."""
        if not self.navigation.step_back():
            self.host.action_escape()

    def _complain(self, why: str | None) -> None:
        if why:
            self.notify(why, severity="warning", markup=False)

"""Step 4, Inspect: which adapters are alike, who stands apart, where in the layers it lies."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.binding import BindingType
from textual.widgets import Input

from vlora_tui.tui.inspect import data as inspect_data
from vlora_tui.tui.inspect.finding_rows import module_in
from vlora_tui.tui.inspect.keys import HELP, KEYS, OF_USE
from vlora_tui.tui.inspect.panes import InspectPanes
from vlora_tui.tui.inspect.queries import AskingPane, shell_command
from vlora_tui.tui.inspect.rows import SIZE, SORTS
from vlora_tui.tui.widgets.table import Table

STYLE = Path(__file__).with_suffix(".tcss").read_text("utf-8")


class InspectView(InspectPanes):
    """The Inspect step: the ways from one pane to another, down to a module, and the other keys."""

    step = 4
    title = "Inspect"
    help_text = HELP
    DEFAULT_CSS = STYLE
    BINDINGS: ClassVar[list[BindingType]] = KEYS

    # what the application asks

    def is_of_use(self, action: str) -> bool:
        return action not in OF_USE or self.pane in OF_USE[action]

    def row_text(self) -> str | None:
        match self.pane:
            case "inspect-alike":
                return str(self._alike.text()) or None
            case "inspect-layers":
                return str(self._layers.text()) or None
            case "inspect-tasks":
                return self._tasks.row_text()
            case "inspect-groups":
                return self._groups.row_text()
            case "inspect-apart":
                return self._apart.row_text()
            case "inspect-findings":
                return self._findings.row_text()
        return None

    def command_text(self) -> str | None:
        alike = self._alike
        if self.pane == "inspect-findings":
            return self._findings.command
        if self.pane == "inspect-alike" and alike.is_of_interference and alike.arguments:
            return shell_command(alike.arguments)
        if self.pane == "inspect-layers" and self._layers.command is not None:
            return self._layers.command
        pair = self._pair_here()
        on_pair = self.pane in ("inspect-layers", "inspect-alike", "inspect-tasks")
        if on_pair and pair is not None and pair.places is not None:
            return shell_command(inspect_data.diff_arguments(*pair.places))
        if self.on_tasks and self.session.manifest is not None:
            return shell_command(["info", str(self.session.manifest.path)])
        paths = [p for p in self._likeness.paths if p] if self._likeness is not None else []
        return inspect_data.analyze_command(paths, self._threshold) if len(paths) > 1 else None

    def open_filter(self) -> None:
        line = self.query_one("#inspect-filter", Input)
        line.add_class("open")
        line.focus()

    def leave(self) -> bool:
        """``q``: first out of a comparison or a filter."""
        return self._step_back()

    # what the widgets tell

    def on_layers_pane_drawn(self) -> None:
        self._share_out()

    def on_findings_pane_found(self) -> None:
        self._draw()

    def on_matrix_moved(self) -> None:
        self._pair = None
        self._draw_layers()

    def on_matrix_chosen(self) -> None:
        self.action_enter()

    def on_table_moved(self, event: Table.Moved) -> None:
        if event.table.id == "task-table":
            self._pair = None
            self._draw_layers()

    def on_table_pressed(self, event: Table.Pressed) -> None:
        self.action_enter()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._words = tuple(event.value.lower().split())
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if not event.value.strip():
            event.input.remove_class("open")
        self.go_to_pane(self.pane)

    # the ways in

    def action_enter(self) -> None:
        """From what the cursor is on to its layers, from there to a module."""
        match self.pane:
            case "inspect-groups":
                if self._groups.group is not None:
                    self._go_to(*self._groups.group.members[:2])
                    self.go_to_pane("inspect-alike")
            case "inspect-apart":
                self._go_to_outlier()
            case "inspect-findings":
                self._go_to_finding()
            case "inspect-alike" | "inspect-tasks":
                self._pair = self._pair_here()
                self._compare()
                self._draw_layers()
                self.go_to_pane("inspect-layers")
            case "inspect-layers":
                self._layers.look_closer()

    def _go_to(self, first: int, second: int) -> None:
        """Put the matrix's cursor on two adapters, whatever the filter hides."""
        likeness = self._likeness
        if likeness is None:
            return
        self._pair = None
        if not all(self._found(likeness.names[i]) for i in (first, second)):
            self._close_filter()
        self._alike.go_to(first, second)
        self._draw_layers()

    def _go_to_outlier(self) -> None:
        """Its layers, on the one of the family in which it stands apart."""
        row, spectra = self._apart.row, self.session.spectra
        if row is None or spectra is None:
            return
        self._go_to(row.index, row.index)
        self._layers.point(inspect_data.module_of_family(spectra, row.index, row.place), SIZE)
        self.go_to_pane("inspect-layers")

    def _go_to_finding(self) -> None:
        """The layers of the adapter or task that it is about, on the module that it names."""
        remark, spectra, manifest = (
            self._findings.remark,
            self.session.spectra,
            self.session.manifest,
        )
        if remark is None:
            return
        if (
            self._likeness is not None
            and spectra is not None
            and remark.path in self._likeness.paths
        ):
            if self.on_tasks:
                self.action_turn()
            at = self._likeness.paths.index(remark.path)
            self._go_to(at, at)
            self._layers.point(module_in(remark, spectra.layer_names), SIZE)
            self.go_to_pane("inspect-layers")
        elif manifest is not None and remark.path.startswith(str(manifest.path)) and self.on_tasks:
            self._close_filter()
            self._tasks.go_to(remark.path, remark.finding.file)
            self._draw_layers()
            self._layers.point(module_in(remark, [layer.name for layer in manifest.layers]))
            self.go_to_pane("inspect-layers")
        elif remark.path in self.session.infos:
            self.run_worker(self.vlora.show_only(remark.about), exit_on_error=False)
        else:
            self.notify("It is about no one adapter that is open here.", markup=False)

    def _compare(self) -> None:
        """Have the pair compared."""
        if self._pair is None:
            return
        if self._pair.places is None:
            self._pair = None
            self.notify("Where these adapters lie is not known.", severity="warning", markup=False)
            return
        self._layers.compare(self._pair)

    # the other keys

    def action_interference(self) -> None:
        """Another measure of how two relate."""
        if self.on_tasks:
            self._complain("Interference is measured between adapters: t turns to them.")
            return
        self._complain(self._alike.turn())

    def action_coverage(self) -> None:
        """How much of the adapter under the cursor the open subspace holds."""
        pair, manifest = self._alike.pair, self.session.manifest
        if manifest is None:
            self._complain("Coverage is by the bases of a subspace: open one first (1).")
        elif self.on_tasks and self.session.spectra is not None:
            self._complain("Coverage is of adapters: t turns to them.")
        elif self._likeness is None or pair is None:
            self._complain("Coverage is of adapters: mark some (1), and have them measured (2).")
        else:
            self._go_to(pair[0], pair[0])
            self._layers.cover()
            self.go_to_pane("inspect-layers")

    def action_doctor(self) -> None:
        """Have every tensor read."""
        self._complain(self._findings.call_doctor())
        self.go_to_pane("inspect-findings")

    def action_target(self) -> None:
        """The findings for another target."""
        self._findings.turn_target()
        self.go_to_pane("inspect-findings")

    def action_threshold(self, by: float) -> None:
        """Another bound from which on adapters are alike."""
        self._threshold = round(min(1.0, max(0.0, self._threshold + by)), 2)
        self.draw_tabs()
        self._draw_likeness()

    def action_measure(self) -> None:
        """Another figure for the layers."""
        self._layers.turn_measure()

    def action_order(self) -> None:
        """The like together, or as found."""
        self._ordered = not self._ordered
        self._draw_likeness()

    def action_sort(self) -> None:
        """By the next column."""
        self._sort = (self._sort + 1) % len(SORTS)
        self._draw_apart()
        self._draw_tasks()

    def action_keep(self) -> None:
        """Keep a task, to compare the next one with it."""
        if self.pane == "inspect-tasks":
            self._tasks.keep()
            if self._tasks.kept is not None:
                self.notify("Kept. Enter on another task compares the two.", markup=False)

    def action_turn(self) -> None:
        """Between the adapters and the tasks of the open subspace."""
        if self.session.manifest is None or self.session.spectra is None:
            self.notify("There is only one thing to look at: open a subspace (1).", markup=False)
            return
        self._tasks_wanted = not self.on_tasks
        self._pair = None
        self._draw()
        self.go_to_pane(self.panes()[0].id)

    def action_stop(self) -> None:
        """Stop what is being read, leave the pair, or clear the filter."""
        self._step_back()

    def _step_back(self) -> bool:
        line = self.query_one("#inspect-filter", Input)
        stopped = [pane for pane in self.query(AskingPane) if pane.stop()]
        if stopped:
            self._pair = None
            self._draw_layers()
            return True
        if line.has_class("open"):
            self._close_filter()
            self.go_to_pane(self.pane)
            return True
        if self._pair is not None:
            self._pair = None
            self._draw_layers()
            self.go_to_pane("inspect-tasks" if self.on_tasks else "inspect-alike")
            return True
        return False

    def _close_filter(self) -> None:
        line = self.query_one("#inspect-filter", Input)
        line.value = ""
        line.remove_class("open")
        self._words = ()
        self._draw()

    def _complain(self, why: str | None) -> None:
        if why:
            self.notify(why, severity="warning", markup=False)

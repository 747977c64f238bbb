"""Step 5, Export: tasks as adapters that others load, several merged into one, or other ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Input, Static

from vlora_engine.errors import VLoRAError
from vlora_tui.tui.core.likeness import likeness_of
from vlora_tui.tui.core.messages import (
    CollectionChanged,
    JobsChanged,
    SessionChanged,
    SubspaceChanged,
)
from vlora_tui.tui.core.pane_view import PaneView
from vlora_tui.tui.export.details import DetailsPane
from vlora_tui.tui.export.editor import SettingsEditor
from vlora_tui.tui.export.form_rows import form_lines, start_label
from vlora_tui.tui.export.items import ItemsPane
from vlora_tui.tui.export.keys import HELP, KEYS
from vlora_tui.tui.export.merge import likeness_words
from vlora_tui.tui.export.plan import Plan
from vlora_tui.tui.export.preview import PreviewPane
from vlora_tui.tui.export.recipes import command_of, preview_arguments, recipe_of
from vlora_tui.tui.export.settings import Settings, Source, adapters_of, first_settings, tasks_of
from vlora_tui.tui.export.verdicts import Headers
from vlora_tui.tui.export.worker import (
    BuiltSubspace,
    ExportJob,
    ExportPlanned,
    ExportPlanner,
    SubspaceBuilt,
)
from vlora_tui.tui.key_names import key, keyed
from vlora_tui.tui.text import clean, plural, tilde
from vlora_tui.tui.widgets.buttons import Button, Buttons
from vlora_tui.tui.widgets.dialogs import Prompt
from vlora_tui.tui.widgets.form import Form
from vlora_tui.tui.widgets.table import Table
from vlora_tui.tui.widgets.tabs import PaneTabs, Tab

if TYPE_CHECKING:
    from textual.timer import Timer

    from vlora_tui.recipe.model import Recipe

STYLE = Path(__file__).with_suffix(".tcss").read_text("utf-8")
NOTHING = (
    "There is nothing to export yet.\n\n"
    "Mark adapters in step <step.adapters> to write them for a server, merge or resize them.\n"
    "Or open a subspace there (<adapters.go> on its row), or build one (<step.choose>): its tasks "
    "are listed here."
)


PAUSE_SECONDS = 0.15  # without a key, after which a merge is measured anew
QUICK_BYTES = 512 << 20  # of adapters: what takes longer is measured when it is asked for


def _not_marked(name: str) -> str:
    return f"{clean(name)} is not marked: {key('export.mark')} marks it."


class ExportView(PaneView):
    """The Export step: what is written of which tasks, how, and what came of it."""

    step = 5
    title = "Export"
    help_text = HELP
    DEFAULT_CSS = STYLE
    BINDINGS: ClassVar[list[BindingType]] = KEYS
    messages_below = True

    def compose(self) -> ComposeResult:
        ascii_only = self.host.ascii_only
        yield Static(keyed(NOTHING), id="export-nothing", markup=False)
        yield PaneTabs(id="export-tabs")
        with Horizontal(id="export-body", classes="side"):
            yield ItemsPane(ascii_only=ascii_only)
            with Vertical(id="export-how", classes="pane"):
                yield Form(ascii_only=ascii_only, id="export-form")
                yield Static(id="form-said", classes="said", markup=False)
        with Horizontal(id="export-low", classes="side"):
            yield PreviewPane(ascii_only=ascii_only)
            yield DetailsPane()
        yield Buttons(id="export-buttons")
        line = Input(placeholder="part of a name", compact=True, id="export-filter")
        line.cursor_blink = False
        yield line

    def on_mount(self) -> None:
        self.editor = SettingsEditor(self, self._items, self._edited)
        self.planner = ExportPlanner(self)
        self.job = ExportJob(self.host)
        self._built = BuiltSubspace(self)
        self._wanted: str | None = None  # the kind of source that was asked for
        self._of: object = None
        self._footer: tuple[object, ...] = ()
        self._measure_timer: Timer | None = None
        self.query_one("#export-how").border_title = "How"

    # what the application asks

    def not_ready(self) -> str | None:
        return None if self.session.manifest is not None or self.session.marked else keyed(NOTHING)

    def shown(self) -> None:
        self._built.look()
        self._take_session()
        self._draw()
        self._replan()
        if self._source is not None:
            self.go_to_pane(self.pane or "export-items")

    def changed(self, change: SessionChanged) -> None:
        if isinstance(change, JobsChanged):
            self._follow_job()
            self._built.look()
            self._draw_preview()
        elif isinstance(change, CollectionChanged | SubspaceChanged):
            self._take_session()
            self._draw()
            self._replan()

    def row_text(self) -> str | None:
        row = self._preview.row
        if self.pane == "export-preview" and row is not None:
            return str(row.path)
        if self.pane == "export-details":
            return self._details.text or None
        return self._items.row_text()

    def command_text(self) -> str | None:
        self.editor.settle_seed()
        recipe = self._recipe()
        if recipe is None or self._source is None:
            return None
        tasks = [item.name for item in self._source.items]
        return command_of(recipe, tasks, force=bool(self._plan.there))

    def is_of_use(self, action: str) -> bool:
        done, doing = self._preview.is_done, self._settings.doing
        match action.partition("(")[0]:
            case "measure":
                return doing == "merge" and not done
            case "target":
                return doing == "export" and not done
            case "open":
                return done
            case "start":
                return self._can_start
            case "mark":
                return self.pane == "export-items"
            case "enter":
                return self.pane != "export-details" or done
        return True

    def open_filter(self) -> None:
        line = self.query_one("#export-filter", Input)
        line.add_class("open")
        line.focus()

    def leave(self) -> bool:
        """``q``: first out of a measurement or the filter."""
        if self._details.stop():
            return True
        line = self.query_one("#export-filter", Input)
        if not line.has_class("open"):
            return False
        line.value = ""
        line.remove_class("open")
        self.go_to_pane(self.pane)
        return True

    def panes(self) -> list[Tab]:
        count = len(self._source.items) if self._source is not None else 0
        return [
            Tab("export-items", "Adapters" if self._is_input else "Tasks", count),
            Tab("export-how", "How"),
            Tab("export-preview", "Preview", len(self._plan.rows)),
            Tab("export-details", "Kept" if self._settings.doing == "merge" else "Details"),
        ]

    # what there is

    @property
    def _items(self) -> ItemsPane:
        return self.query_one(ItemsPane)

    @property
    def _preview(self) -> PreviewPane:
        return self.query_one(PreviewPane)

    @property
    def _details(self) -> DetailsPane:
        return self.query_one(DetailsPane)

    @property
    def _source(self) -> Source | None:
        return self._items.source

    @property
    def _marked(self) -> list[str]:
        return list(self._items.marked)

    @property
    def _settings(self) -> Settings:
        return self.editor.settings

    @property
    def _plan(self) -> Plan:
        return self.planner.plan

    def _recipe(self) -> Recipe | None:
        if self._source is None:
            return None
        try:
            return recipe_of(self._source, self._marked, self._settings)
        except VLoRAError:
            return None

    @property
    def _is_input(self) -> bool:
        return self._source is not None and self._source.kind == "adapters"

    def _take_session(self) -> None:
        """The subspace that is open, or the marked adapters."""
        session = self.session
        kinds = [k for k, there in (("subspace", session.manifest), ("adapters", session.marked))
                 if there]  # fmt: skip
        kind = self._wanted if self._wanted in kinds else (kinds[0] if kinds else None)
        paths = tuple(info.path for info in session.included)
        of = (kind, session.manifest if kind == "subspace" else paths)
        if of == self._of:
            return
        self._of = of
        self.planner.forget()
        self.job.forget()
        if kind is None:
            self._items.take(None)
            return
        manifest = session.manifest if kind == "subspace" else None
        source = adapters_of(session.included) if manifest is None else tasks_of(manifest)
        self.planner.forget(Headers(manifest))
        self._items.take(source)
        first = first_settings(source)
        self.editor.settings = replace(
            self._settings, doing=first.doing, out=first.out, merged=first.merged,
            resized=first.resized, new_rank=first.new_rank, weights={}, layers="",
            converted=first.converted,
        )  # fmt: skip

    # drawing

    def _draw(self) -> None:
        self.set_class(self._source is None, "empty")
        self.set_class(self._settings.doing == "merge", "merging")
        if self._source is None:
            return
        self.draw_tabs()
        self._draw_items()
        self._draw_form()
        self._draw_preview()

    def _draw_items(self) -> None:
        others = self.session.manifest is not None and self.session.marked
        other = "the tasks" if self._is_input else "the marked adapters"
        notes = [f"{key('export.mark')} marks one, {key('export.all')} all or none"]
        if self._settings.doing == "merge":
            keys = f"{key('export.lighter')} {key('export.heavier')}"
            notes.append(f"{keys} change the weight")
        notes += [f"{key('export.source')}: {other}"] if others else []
        self._items.show(
            self._settings, "; ".join(notes), kept=self._details.kept, stale=self._details.is_stale
        )

    def _draw_form(self) -> None:
        lines = form_lines(
            self._settings,
            self._marked,
        )
        self.query_one("#export-form", Form).show(lines)
        self._draw_hint()

    def _draw_hint(self) -> None:
        field = self.query_one("#export-form", Form).field
        panel = self.query_one("#form-said", Static)
        panel.set_class(bool(field and field.wrong), "wrong")
        panel.update(Text((field.wrong or field.hint) if field is not None else ""))

    def _draw_preview(self) -> None:
        if self._source is None:
            return
        starting = self.job.is_expected
        verify = self._settings.verify or self._settings.doing in ("merge", "convert")
        job = self.job.view
        waiting = "" if job is None else self.host.jobs.waiting_words(job.job.id)
        self._preview.show(self._plan, job, verify=verify, starting=starting, waiting=waiting)
        self.query_one(Buttons).show(self._buttons())
        self._draw_details()
        self.query_one(PaneTabs).show(self.panes(), self.pane)
        footer = (self._settings.doing, self._preview.is_done, self._can_start)
        if footer != self._footer:  # other keys are of use now
            self._footer = footer
            self.app.screen.refresh_bindings()

    @property
    def _is_writing(self) -> bool:
        view = self.job.view
        return self.job.is_expected if view is None else not view.state.is_over

    @property
    def _can_start(self) -> bool:
        """Whether there is something to write, and nothing in its way."""
        if self._source is None or self._is_writing:
            return False
        return start_label(self._settings, self._plan, self._marked)[1]

    def _buttons(self) -> list[Button]:
        """What can be done now; or why nothing is written."""
        if self._is_writing:
            return [Button("", "Writing")]
        label, can_start = start_label(self._settings, self._plan, self._marked)
        start = Button("export.start", label, "start") if can_start else Button("", label)
        if self._preview.is_done:
            return [Button("export.open", "Open result", "open"), start]
        return [start]

    def _follow_item(self) -> None:
        """The preview and the details are about the line that the cursor is on."""
        self._preview.go_to(self._items.table.row)
        self._draw_details()

    def _draw_details(self) -> None:
        preview, settings = self._preview, self._settings
        if settings.doing != "merge":
            target = settings.target if settings.doing == "export" else None
            item = self._items.table.row
            if self.pane == "export-items" and item and item.name not in self._items.marked:
                self._details.say(_not_marked(item.name))
            else:
                self._details.show_row(preview.row, target, preview.outcome)
            return
        recipe = self._recipe()
        likeness = likeness_of(self.session.spectra) if self._is_input else None
        hint = likeness_words(likeness, self._marked)
        before = self._details.kept, self._details.is_stale
        self._details.show_merge(None if recipe is None else preview_arguments(recipe), hint)
        if before != (self._details.kept, self._details.is_stale):
            self._draw_items()

    # keys: marks

    def action_mark(self) -> None:
        """Mark or unmark the line, and go on to the next."""
        if self.pane == "export-items":
            self._items.mark()

    def action_all(self) -> None:
        """Mark all that is shown; if all are, none."""
        self._items.mark_all()

    def action_invert(self) -> None:
        """Turn the marks of what is shown round."""
        self._items.invert()

    def on_items_pane_marked(self) -> None:
        self._edited()

    def action_source(self) -> None:
        """Between the tasks of the subspace and the marked adapters."""
        if self.session.manifest is None or not self.session.marked:
            self.notify("No other source is open.", markup=False)
            return
        self._wanted = "subspace" if self._is_input else "adapters"
        self._take_session()
        self._draw()
        self._replan()

    def action_back(self) -> None:
        """Stop measuring, leave the filter, or give the pane its place back."""
        if not self.leave():
            self.host.action_escape()

    # keys: settings

    def action_turn(self) -> None:
        """Between exporting, merging and resizing."""
        self.editor.turn_value("doing", 1)

    def action_verify(self) -> None:
        """Read back, or not."""
        self.editor.turn_value("verify", 1)

    def action_dtype(self) -> None:
        """The next dtype."""
        self.editor.next_dtype()

    def action_target(self, by: int) -> None:
        """The next target."""
        self.editor.next_target(by)

    def action_place(self) -> None:
        """Ask where it goes."""
        self.editor.ask_output()

    def action_methods(self) -> None:
        """All ways of merging, to choose one."""
        self.editor.ask_method()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Weights are of a merge alone: elsewhere an arrow does nothing."""
        return action not in ("weigh", "weigh_here") or self._settings.doing == "merge"

    def action_weigh(self, by: int) -> None:
        """Move the weight of the line a step."""
        self.editor.weigh(by)
        self._measure_soon()

    def action_weigh_here(self, by: int) -> None:
        """Move the weight of the line a step, where the cursor is on a line."""
        if self.pane == "export-items" and self._settings.doing == "merge":
            self.editor.weigh(by)
            self._measure_soon()

    def action_type_weight(self) -> None:
        """Type the weight of the line."""
        self.editor.type_weight()

    # keys: measuring, writing, opening

    def action_measure(self) -> None:
        """Measure what the merge keeps of its inputs."""
        if self._settings.doing != "merge":
            self.notify(f"Only a merge is measured ({key('export.turn')} switches).", markup=False)
            return
        self.editor.settle_seed()
        if self._recipe() is None or self._plan.problem is not None:
            self.notify(keyed(self._plan.problem or "It cannot be merged like this."), markup=False)
            return
        self._details.measure(self._marked)
        if self.has_class("one"):
            self.go_to_pane("export-details")

    def _measure_soon(self) -> None:
        """Measure what the merge keeps once no key has come for a moment, where that is quick."""
        if self._measure_timer is not None:
            self._measure_timer.stop()
        self._measure_timer = self.set_timer(PAUSE_SECONDS, self._measure_now)

    def _measure_now(self) -> None:
        source = self._source
        if source is None or self._settings.doing != "merge" or self._plan.problem is not None:
            return
        marked = set(self._marked)
        if sum(item.nbytes for item in source.items if item.name in marked) <= QUICK_BYTES:
            self.editor.settle_seed()
            self._details.measure(self._marked)

    def on_details_pane_known(self) -> None:
        self._draw_items()

    async def action_enter(self) -> None:
        """Open what the cursor is on: an item's output, an output's details, then what is there."""
        if self._source is None:
            return
        if self.pane == "export-items":
            self._preview.go_to(self._items.table.row)
            self.go_to_pane("export-preview")
        elif self._preview.is_done:
            await self.action_open()
        else:
            self.go_to_pane("export-details")

    def action_start(self) -> None:
        """Start the job, after a typed word where something would be replaced."""
        source, plan = self._source, self._plan
        if source is None:
            return
        if plan.problem is not None or plan.refused or not plan.rows:
            text, _ = self._preview.words()
            self.notify(text or "Nothing selected.", severity="warning", markup=False)
            return
        view = self.job.view
        if view is not None and not view.state.is_over:
            self.notify(f"The job is still writing; {key('step.run')} shows it.", markup=False)
            return
        if plan.there:
            self._ask_to_replace(plan)
        else:
            self._start(force=False)

    async def action_open(self) -> None:
        """Go to what the job has written, among the adapters."""
        written = list(self._preview.outcome.written)
        if not written:
            self.notify(f"Nothing written yet; {key('export.start')} writes.", markup=False)
            return
        await self.host.show_adapters(written)

    def _ask_to_replace(self, plan: Plan) -> None:
        existing = [tilde(row.path) for row in plan.there]
        more = f"\nand {len(existing) - 6} more" if len(existing) > 6 else ""
        words = "These exist and would be replaced:\n" + "\n".join(existing[:6]) + more

        def answered(answer: str | None) -> None:
            if answer == "replace":
                self._start(force=True)

        title = f"Replace {plural(len(existing), 'adapter')}"
        self.app.push_screen(Prompt(title, words, expect="replace"), answered)

    def _start(self, *, force: bool) -> None:
        self.editor.settle_seed()
        if self._source is None:
            return
        try:
            recipe = recipe_of(self._source, self._marked, self._settings)
        except VLoRAError as error:  # the plan is of a moment ago
            self.notify(error.what, severity="warning", markup=False)
            return
        self.job.expect()
        self.host.start_job(recipe, force=force)
        self._draw_preview()
        self.go_to_pane("export-preview")

    def _edited(self) -> None:
        """Something is asked for anew: what the last job did is no longer what is shown."""
        self.job.forget()
        self._draw()
        self._replan()
        if self._details.is_live:
            self._measure_soon()

    # what threads and jobs tell

    def on_export_planned(self, event: ExportPlanned) -> None:
        event.stop()
        if self.planner.take(event):
            self._draw_form()
            self._draw_preview()

    def on_subspace_built(self, event: SubspaceBuilt) -> None:
        event.stop()
        if self.session.manifest is None:
            self.session.manifest = event.manifest
            self._wanted = "subspace"
            self.post_message(SubspaceChanged())

    def _replan(self) -> None:
        if self._source is not None:
            self.planner.replan(self._source, self._marked, self._settings, self.job.written)

    def _follow_job(self) -> None:
        """Find the job that was started here; once it is over, look at the places anew."""
        recipe = self._recipe()
        if recipe is not None:
            self.job.find({step.path for step in recipe.written})
        if self.job.has_just_ended():
            self._replan()  # what was new is there now

    # what the widgets tell

    def on_form_turned(self, event: Form.Turned) -> None:
        self.editor.turn_value(event.key, event.by)

    def on_form_pressed(self, event: Form.Pressed) -> None:
        if event.key == "method":
            self.editor.ask_method()
        else:
            self.editor.edit(event.key)

    def on_form_moved(self) -> None:
        self._draw_hint()

    def on_table_mark_pressed(self) -> None:
        self.action_mark()

    def on_table_moved(self, event: Table.Moved) -> None:
        if event.table.id == "item-table":
            self._follow_item()
        elif event.table.id == "row-table":
            self._draw_details()

    def on_table_pressed(self) -> None:
        self.call_later(self.action_enter)

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.id == "export-filter":
            self._items.filter(event.value)
            self._draw_items()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.input.id == "export-filter":
            if not event.value.strip():
                event.input.remove_class("open")
            self.go_to_pane("export-items")

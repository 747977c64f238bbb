"""Step 5, Export: tasks as adapters that others load, or several merged into one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.widgets import Input, Static

from vlora_engine.errors import VLoRAError
from vlora_tui import events
from vlora_tui.tui import exporting
from vlora_tui.tui.exporting import Plan, Settings, Source
from vlora_tui.tui.screens.export_items import ItemsPane
from vlora_tui.tui.screens.export_lines import edit_of, form_lines, turned
from vlora_tui.tui.screens.export_preview import PreviewPane
from vlora_tui.tui.screens.panes import PaneView
from vlora_tui.tui.widgets.form import Form
from vlora_tui.tui.widgets.tabs import PaneTabs, Tab
from vlora_tui.tui.words import plural, tilde

if TYPE_CHECKING:
    from vlora_engine.manifest import Manifest
    from vlora_tui.jobs import JobView
    from vlora_tui.recipe import Recipe

STYLE = Path(__file__).with_suffix(".tcss").read_text("utf-8")
NOTHING = (
    "There is nothing to export yet.\n\n"
    "Open a subspace on step 1 (enter on its row), or mark adapters there, choose k (2) and run "
    "(3): the tasks of what was built are listed here. Marked adapters can be merged at once."
)


class ExportView(PaneView):
    """The Export step."""

    step = 5
    title = "Export"
    help_text = (
        "Mark tasks, say how and where, look at what is going to be written, then Enter. A job of "
        "its own writes; it reads every adapter back and compares dW (v turns that off).\n"
        "Nothing that exists is touched unless you type so. {task} in the place stands for each "
        "task's name. s chooses who is to read it: PEFT, or a server. m turns to merging: the "
        "marked ones become one adapter."
    )
    DEFAULT_CSS = STYLE
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "start", "Write", id="export.start",
                tooltip="Write what the preview says"),
        Binding("space", "mark", "Mark", id="export.mark", tooltip="Mark or unmark the line"),
        Binding("o", "place", show=False, id="export.place", tooltip="Where it is written"),
        Binding("m", "turn", "Merge", id="export.turn", tooltip="Between exporting and merging"),
        Binding("tab", "next_pane(1)", "Pane", id="export.next_pane",
                tooltip="Go to the next pane"),
        Binding("shift+tab", "next_pane(-1)", show=False, id="export.pane_before",
                tooltip="Go to the pane before"),
        Binding("plus,asterisk", "all", show=False, id="export.all",
                tooltip="Mark all that is shown"),
        Binding("minus", "invert", show=False, id="export.invert", tooltip="Turn all marks round"),
        Binding("v", "verify", show=False, id="export.verify",
                tooltip="Read back what was written, or not"),
        Binding("d", "dtype", show=False, id="export.dtype", tooltip="Another dtype"),
        Binding("s", "target(1)", show=False, id="export.target",
                tooltip="Another target: PEFT, or a server"),
        Binding("t", "source", show=False, id="export.source",
                tooltip="Between the tasks of the subspace and the marked adapters"),
        Binding("slash", "app.filter", "Filter", show=False, id="export.filter",
                tooltip="Filter by name"),
        Binding("escape", "back", show=False, id="export.back", tooltip="Clear the filter"),
    ]  # fmt: skip

    class Planned(Message):
        """The places were looked at."""

        def __init__(self, plan: Plan, asked: int) -> None:
            super().__init__()
            self.plan, self.asked = plan, asked

    class Finished(Message):
        """A job has written the subspace of the marked adapters."""

        def __init__(self, manifest: Manifest) -> None:
            super().__init__()
            self.manifest = manifest

    def compose(self) -> ComposeResult:
        yield Static(NOTHING, id="export-nothing", markup=False)
        yield PaneTabs(id="export-tabs")
        with Horizontal(id="export-body", classes="side"):
            yield ItemsPane(ascii_only=self.vlora.ascii_only)
            with Vertical(id="export-how", classes="pane"):
                yield Form(ascii_only=self.vlora.ascii_only, id="export-form")
                yield Static(id="form-said", classes="said", markup=False)
        yield PreviewPane(ascii_only=self.vlora.ascii_only)
        line = Input(placeholder="part of a name", compact=True, id="export-filter")
        line.cursor_blink = False
        yield line

    def on_mount(self) -> None:
        self._settings = Settings()
        self._wanted: str | None = None  # the kind of source that was asked for
        self._of: object = None
        self._plan = Plan()
        self._asked = 0
        self._known: set[str] | None = None  # jobs there were before ours was started
        self._job: str | None = None
        self._planned_for: str | None = None
        self._looked: set[str] = set()
        self.query_one("#export-how").border_title = "How"

    # what the application asks

    def not_ready(self) -> str | None:
        return None if self.session.manifest is not None or self.session.marked else NOTHING

    def shown(self) -> None:
        self._look_for_subspace()
        self._take_session()
        self._draw()
        self._replan()
        if self._source is not None:
            self.go_to_pane(self.pane or "export-items")

    def changed(self, what: str) -> None:
        if what == "jobs":
            self._find_job()
            view = self._job_view
            if view is not None and view.state.is_over and self._planned_for != view.job.id:
                self._planned_for = view.job.id
                self._replan()  # what was new is there now
            self._look_for_subspace()
            self._draw_preview()
        elif what in ("collection", "subspace"):
            self._take_session()
            self._draw()
            self._replan()

    def row_text(self) -> str | None:
        row = self._preview.row
        if self.pane == "export-preview" and row is not None:
            return str(row.path)
        return self._items.row_text()

    def command_text(self) -> str | None:
        recipe = self._recipe()
        if recipe is None or self._source is None:
            return None
        tasks = [item.name for item in self._source.items]
        return exporting.command_of(recipe, tasks, force=bool(self._plan.there))

    def open_filter(self) -> None:
        line = self.query_one("#export-filter", Input)
        line.add_class("open")
        line.focus()

    def leave(self) -> bool:
        """``q``: first out of the filter."""
        line = self.query_one("#export-filter", Input)
        if not line.has_class("open"):
            return False
        line.value = ""
        line.remove_class("open")
        self.go_to_pane(self.pane)
        return True

    def panes(self) -> list[Tab]:
        count = len(self._source.items) if self._source is not None else 0
        name = "Adapters" if self._is_input else "Tasks"
        rows = len(self._plan.rows)
        return [
            Tab("export-items", name, count),
            Tab("export-how", "How"),
            Tab("export-preview", "Preview", rows),
        ]

    # what there is

    @property
    def _items(self) -> ItemsPane:
        return self.query_one(ItemsPane)

    @property
    def _preview(self) -> PreviewPane:
        return self.query_one(PreviewPane)

    @property
    def _source(self) -> Source | None:
        return self._items.source

    @property
    def _marked(self) -> list[str]:
        return list(self._items.marked)

    @property
    def _is_input(self) -> bool:
        return self._source is not None and self._source.kind == "adapters"

    @property
    def _job_view(self) -> JobView | None:
        """The job that this screen started last."""
        return next((v for v in self.vlora.job_views() if v.job.id == self._job), None)

    def _take_session(self) -> None:
        """The subspace that is open, or the marked adapters."""
        session = self.session
        kinds = [k for k, there in (("subspace", session.manifest), ("adapters", session.marked))
                 if there]  # fmt: skip
        kind = self._wanted if self._wanted in kinds else (kinds[0] if kinds else None)
        of = (kind, session.manifest if kind == "subspace" else tuple(i.path for i in session.kept))
        if of == self._of:
            return
        self._of = of
        if kind is None:
            self._items.take(None)
            self._plan = Plan()
            return
        if kind == "subspace" and session.manifest is not None:
            source = exporting.tasks_of(session.manifest)
        else:
            source = exporting.adapters_of(session.kept)
        self._items.take(source)
        places = exporting.first_settings(source)
        self._settings = replace(
            self._settings, doing=places.doing, out=places.out, merged=places.merged, weights=""
        )
        self._plan, self._job, self._known = Plan(), None, None

    def _recipe(self) -> Recipe | None:
        if self._source is None:
            return None
        try:
            return exporting.recipe_of(self._source, self._marked, self._settings)
        except VLoRAError:
            return None

    # drawing

    def _draw(self) -> None:
        self.set_class(self._source is None, "empty")
        if self._source is None:
            return
        self.draw_tabs()
        self._draw_items()
        self._draw_form()
        self._draw_preview()

    def _draw_items(self) -> None:
        others = self.session.manifest is not None and self.session.marked
        other = "the tasks of the subspace" if self._is_input else "the marked adapters"
        self._items.show(f"t lists {other} instead" if others else "")

    def _draw_form(self) -> None:
        form = self.query_one("#export-form", Form)
        form.show(
            form_lines(
                self._settings,
                self._plan,
                len(self._marked),
                after_build=self._is_input and self._settings.doing == "export",
                ascii_only=self.vlora.ascii_only,
            )
        )
        self._draw_hint()

    def _draw_hint(self) -> None:
        field = self.query_one("#export-form", Form).field
        said = self.query_one("#form-said", Static)
        said.set_class(bool(field and field.wrong), "wrong")
        said.update(Text((field.wrong or field.hint) if field is not None else ""))

    def _draw_preview(self) -> None:
        later = self._is_input and self._settings.doing == "export"
        starting = self._known is not None
        self._preview.show(self._plan, self._job_view, starting=starting, later=later)
        self.query_one(PaneTabs).show(self.panes(), self.pane)

    # keys

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

    def action_turn(self) -> None:
        """Between exporting and merging."""
        self._turn_value("doing", 1)

    def action_verify(self) -> None:
        """Read back, or not."""
        self._turn_value("verify", 1)

    def action_dtype(self) -> None:
        """The next dtype."""
        self._turn_value("dtype", 1)

    def action_target(self, by: int) -> None:
        """The next target."""
        self._turn_value("target", by)

    def action_source(self) -> None:
        """Between the tasks of the subspace and the marked adapters."""
        if self.session.manifest is None or not self.session.marked:
            self.notify("There is only one thing to write from.", markup=False)
            return
        self._wanted = "subspace" if self._is_input else "adapters"
        self._take_session()
        self._draw()
        self._replan()

    def action_place(self) -> None:
        """Ask where it goes."""
        self._edit("merged" if self._settings.doing == "merge" else "out")

    def action_back(self) -> None:
        """Leave the filter."""
        self.leave()

    def action_start(self) -> None:
        """Start the job, after a typed word where something would be replaced."""
        source, plan = self._source, self._plan
        if source is None:
            return
        if plan.problem is not None or plan.refused or not plan.rows:
            said, _ = self._preview.words()
            self.notify(said or "Nothing is marked.", severity="warning", markup=False)
            return
        view = self._job_view
        if view is not None and not view.state.is_over:
            self.notify("The job is still writing; 3 shows it.", markup=False)
            return
        if self._is_input and self._settings.doing == "export":
            export = exporting.export_of(source, self._marked, self._settings)
            self.session.exports = (export,)
            self.notify("Step 3 now writes them after the build.", markup=False)
            self.vlora.tell("choice")
            return
        if plan.there:
            self._ask_to_replace(plan)
        else:
            self._start(force=False)

    def _ask_to_replace(self, plan: Plan) -> None:
        from vlora_tui.tui.widgets.dialogs import Prompt

        places = [tilde(row.path) for row in plan.there]
        more = f"\nand {len(places) - 6} more" if len(places) > 6 else ""
        words = "These are there already and would be deleted:\n" + "\n".join(places[:6]) + more

        def answered(answer: str | None) -> None:
            if answer == "replace":
                self._start(force=True)

        title = f"Replace {plural(len(places), 'adapter')}"
        self.app.push_screen(Prompt(title, words, expect="replace"), answered)

    def _start(self, *, force: bool) -> None:
        recipe = self._recipe()
        if recipe is None:
            return
        self._known = {view.job.id for view in self.vlora.job_views()}
        self._job = None
        self.vlora.start_job(recipe, force=force)
        self._draw_preview()
        self.go_to_pane("export-preview")

    # the form

    def on_form_moved(self) -> None:
        self._draw_hint()

    def on_form_turned(self, event: Form.Turned) -> None:
        self._turn_value(event.key, event.by)

    def on_form_pressed(self, event: Form.Pressed) -> None:
        if event.key == "start":
            self.action_start()
        else:
            self._edit(event.key)

    def _turn_value(self, key: str, by: int) -> None:
        self._settings = turned(self._settings, key, by)
        self._edited()

    def _edit(self, key: str) -> None:
        from vlora_tui.tui.widgets.dialogs import Prompt

        edit = edit_of(self._settings, key, len(self._marked))

        def answered(text: str | None) -> None:
            if text is None:
                return
            if key in ("out", "merged", "weights", "rank", "base"):
                self._set(**{key: text})
            else:
                self._settings = self._settings.with_parameter(key, text)
                self._edited()

        prompt = Prompt(
            edit.title, edit.words, edit.value, check=lambda text: edit.wrong(text) or None
        )
        self.app.push_screen(prompt, answered)

    def _set(self, **changes: Any) -> None:
        self._settings = replace(self._settings, **changes)
        self._edited()

    def _edited(self) -> None:
        """Something is asked for anew: what the last job did is no longer what is shown."""
        self._job, self._known = None, None
        self._draw()
        self._replan()

    # what the widgets tell

    def on_table_mark_pressed(self) -> None:
        self.action_mark()

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.id == "export-filter":
            self._items.filter(event.value)
            self._draw_items()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if event.input.id == "export-filter":
            if not event.value.strip():
                event.input.remove_class("open")
            self.go_to_pane("export-items")

    # work off the screen

    def _replan(self) -> None:
        if self._source is None:
            return
        self._asked += 1
        manifest = self.session.manifest if not self._is_input else None
        self._look_at_places(self._source, self._marked, self._settings, manifest, self._asked)

    @work(thread=True, exclusive=True, group="plan", exit_on_error=False)
    def _look_at_places(
        self, source: Source, marked: list[str], settings: Settings, manifest: Manifest | None,
        asked: int,
    ) -> None:  # fmt: skip
        plan = exporting.plan(source, marked, settings, manifest)
        self.post_message(self.Planned(plan, asked))

    def on_export_view_planned(self, event: Planned) -> None:
        if event.asked == self._asked:
            self._plan = event.plan
            self._draw_form()
            self._draw_preview()

    def _find_job(self) -> None:
        """The job that was started here is the first one that was not there before."""
        if self._known is None or self._job is not None:
            return
        recipe = self._recipe()
        if recipe is None:
            return
        places = {e.path for e in recipe.exports} | {m.path for m in recipe.merges}
        for view in self.vlora.job_views():
            if view.job.id not in self._known and places & set(view.job.info.outputs):
                self._job = view.job.id

    def _look_for_subspace(self) -> None:
        """Where none is open: the one that a job has built of the marked adapters."""
        session = self.session
        if session.manifest is not None or not session.marked:
            return
        for view in self.vlora.job_views():
            written = view.last(events.SubspaceWritten)
            if written is not None and view.job.id not in self._looked:
                self._looked.add(view.job.id)
                self._read_subspace(view, written.path, frozenset(session.marked))
                return

    @work(thread=True, group="subspace", exit_on_error=False)
    def _read_subspace(self, view: JobView, path: str, marked: frozenset[str]) -> None:
        from vlora_engine.manifest import read_manifest

        try:
            inputs = {adapter.path for adapter in view.job.recipe().input.adapters}
            if inputs == marked:
                self.post_message(self.Finished(read_manifest(path)))
        except VLoRAError:
            return  # it was moved away since

    def on_export_view_finished(self, event: Finished) -> None:
        if self.session.manifest is None:
            self.session.manifest = event.manifest
            self._wanted = "subspace"
            self.vlora.tell("subspace")

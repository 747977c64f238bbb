"""The application without its steps: help, palette, quitting, recipes, keys and colours."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import events, work
from textual.app import ScreenStackError, SuspendNotSupported, SystemCommand
from textual.binding import Binding
from textual.geometry import Region
from textual.screen import ModalScreen, Screen
from textual.scrollbar import ScrollBar, ScrollBarRender
from textual.worker import WorkerError

from vlora_engine.errors import VLoRAError
from vlora_engine.utils.files import write_file
from vlora_tui.tui.app.drafts import DraftKeeper
from vlora_tui.tui.app.fault_net import FaultNet
from vlora_tui.tui.core.job_client import WORKERS, JobClient
from vlora_tui.tui.core.view import View
from vlora_tui.tui.key_names import key, key_name, keyed, use
from vlora_tui.tui.text import clean, problem_words, tilde
from vlora_tui.utils.config import Config, Problem, load_config, template
from vlora_tui.utils.editor import editor

if TYPE_CHECKING:
    from vlora_tui.recipe.model import Recipe
    from vlora_tui.tui.core.session import Session

WIDTHS = [(0, "-tiny"), (60, "-narrow"), (80, "-medium"), (110, "-wide"), (150, "-huge")]
HEIGHTS = [(0, "-short"), (20, "-low"), (30, "-tall")]
FALLBACK_THEME = "textual-dark"
PLAIN_THEME = "ansi-dark"  # says with bold, dim and reverse what others say in colours
MESSAGE_WIDTH = 60  # columns of a message, where there is room
GONE = 129  # what a shell calls the end by SIGHUP


class BaseApp(FaultNet):
    """The part of the application that knows no step by name.

    Args:
        config: The settings; read from file and environment where none are given.
    """

    HORIZONTAL_BREAKPOINTS = WIDTHS
    VERTICAL_BREAKPOINTS = HEIGHTS
    ALLOW_IN_MAXIMIZED_VIEW = "TopBar, Keys"
    AUTO_FOCUS = None  # it would take the first table there is, be it that of a step out of view
    ESCAPE_TO_MINIMIZE = False  # the steps know best what Escape leaves first

    session: Session
    jobs: JobClient
    drafts: DraftKeeper

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config or load_config()
        self.ascii_only = bool(self.config["ascii"])
        self.recipe: Recipe | None = None
        self.demo: str | None = None
        self._wanted_step: str | None = None
        use(self.config.keys)
        if self.config.keys:
            self.set_keymap(self.config.keys)
        theme = str(self.config["theme"])
        if self.no_color and not theme.startswith("ansi"):
            theme = PLAIN_THEME
        self.theme = theme if theme in self.available_themes else FALLBACK_THEME
        if self.ascii_only:
            self._draw_in_ascii()

    # the view in sight; the application says which

    @property
    def steps(self) -> Sequence[Any]:
        """The steps: each has a key, a name, and the id of its view."""
        raise NotImplementedError

    async def show_adapters(self, places: list[str]) -> None:
        """Go to the adapters, look into these places too, and point at the first of them."""
        raise NotImplementedError

    @property
    def view(self) -> Any:
        """The step in sight."""
        raise NotImplementedError

    async def show_step(self, step_id: str) -> None:
        """Bring a step into view."""
        raise NotImplementedError

    async def open_subspace(self, path: str) -> None:
        """Open a subspace."""
        raise NotImplementedError

    def after_first_paint(self) -> None:
        """What can wait until there is something to see."""
        self._check_keys()
        if self.recipe is not None:
            self.open_recipe(self.recipe)
        elif self.demo is not None:
            self._adapters().make_demo(self.demo)

    # help and palette

    def action_explain(self) -> None:
        from vlora_tui.tui.widgets.dialogs import Help, help_sections

        view = self.view
        words = view.help_text if view is not None else ""
        nearer = getattr(self.focused, "help_text", "")
        if nearer and self.focused is not view:
            words = f"{words}\n\n{nearer}"
        words = keyed(words)
        title = f"Step {view.step}, {view.title}" if view is not None else "Help"
        sections = help_sections(self.screen, self.get_key_display)

        def answered(answer: str | None) -> None:
            if answer == "guides":
                self.choose_guide()
            elif answer == "terms":
                self.show_terms()

        self.push_screen(Help(title, words, sections), answered)

    def action_command_palette(self) -> None:
        if not isinstance(self.screen, ModalScreen):
            from vlora_tui.tui.app.palette import Palette, palette_entries

            entries = palette_entries(self)

            def taken(answer: str | None) -> None:
                if answer is not None:
                    self.call_later(entries[int(answer)].run)

            self.push_screen(Palette(entries), taken)

    def choose_guide(self) -> None:
        """Ask which guide, and show it."""
        from vlora_tui.tui.widgets.guide_page import which_guide

        self.push_screen(which_guide(), self.show_guide)

    def show_terms(self, term: str = "") -> None:
        """Show what the words mean; one of them first."""
        from vlora_tui.tui.widgets.terms_page import TermsPage

        self.push_screen(TermsPage(term))

    def show_guide(self, name: str | None) -> None:
        """Show a guide; nothing where none was chosen."""
        from vlora_tui.guides import guide
        from vlora_tui.tui.widgets.guide_page import GuidePage

        if name is None:
            return
        self.push_screen(GuidePage(guide(name)))

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """The palette's entries, as Textual asks for them."""
        from vlora_tui.tui.app.palette import palette_entries

        for entry in palette_entries(self):
            yield SystemCommand(entry.title, entry.keys, partial(self.call_later, entry.run))

    def say_settings(self) -> None:
        """Say where the settings are kept."""
        self.notify(f"The settings are in {tilde(self.config.file)}.", markup=False)

    def edit_settings(self) -> None:
        """Open the settings in the user's editor; they count from the next start on."""
        words, looked_for = editor()
        if not words:
            self.complain(f"No editor was found: {looked_for}. The file is {self.config.file}.")
            return
        try:
            if not self.config.file.exists():
                self.config.file.parent.mkdir(parents=True, exist_ok=True)
                write_file(self.config.file, template())
            with self.suspend():
                subprocess.run([*words, str(self.config.file)])
        except (OSError, VLoRAError, SuspendNotSupported) as error:
            why = problem_words(error).rstrip(".")
            self.complain(f"No editor can be opened: {why}. The file is {self.config.file}.")
            return
        self.notify("Settings take effect at the next start.")

    # messages

    def write_to_terminal(self, text: str) -> None:
        """Write what is no part of the picture: a title, a notification."""
        if self._driver is not None and not self._exit:
            self._driver.write(text)

    def notify(self, message: str, **given: Any) -> None:
        """Show a message where it hides neither what has the focus nor what it is about."""
        super().notify(message, **given)
        with suppress(ScreenStackError):
            self.call_after_refresh(self._place_messages, message)

    def forget_advice(self) -> None:
        """Take away messages that said what to do next; what went wrong stays to be read."""
        for message in list(self._notifications):
            if message.severity != "error":
                self._unnotify(message)

    def _place_messages(self, message: str) -> None:
        lines = 3 + sum(1 + len(line) // MESSAGE_WIDTH for line in message.split("\n"))
        width, height = min(MESSAGE_WIDTH, self.size.width // 2), min(lines, self.size.height // 2)
        left = self.size.width - width
        above = Region(left, 1, width, height)
        below = Region(left, self.size.height - 1 - height, width, height)
        hidden_above, hidden_below = (self._hidden_by(place) for place in (above, below))
        prefers_below = bool(getattr(self.view, "messages_below", False))
        is_below = hidden_below < hidden_above or (prefers_below and hidden_below == hidden_above)
        for rack in self.screen.query("ToastRack"):
            rack.set_class(is_below, "-below")

    def _hidden_by(self, place: Region) -> int:
        """Cells of what has the focus that a message there would lie over, its cursor first."""
        focused = self.focused
        if focused is None:
            return 0
        line = getattr(focused, "cursor_line", None)
        region = focused.region
        if line is not None:
            cursor = Region(region.x, region.y + line, region.width, 1).intersection(region)
            if cursor.intersection(place):
                return 10**6
        return region.intersection(place).area

    # keys and colours

    def get_key_display(self, binding: Binding) -> str:
        return binding.key_display or key_name(binding.key)

    @work(thread=True, group="keys")
    def _check_keys(self) -> None:
        """Tell what is wrong in the config file; keys are checked against every step's."""
        from vlora_tui.tui.app.keymap import check_keys

        problems = list(self.config.problems)
        if str(self.config["theme"]) not in self.available_themes:
            what = f"there is no theme {str(self.config['theme'])!r}"
            problems.append(Problem(None, what, "the palette (:) lists them"))
        if self.config.keys:
            problems += check_keys(self.config)
        if problems:
            lines = "\n".join(clean(p.text(Path(tilde(self.config.file)))) for p in problems[:6])
            more = f"\nand {len(problems) - 6} more" if len(problems) > 6 else ""
            self.call_from_thread(self.complain, f"In the settings:\n{lines}{more}")

    def _draw_in_ascii(self) -> None:
        class Plain(ScrollBarRender):
            """Scroll bars of whole cells."""

            VERTICAL_BARS: ClassVar[list[str]] = [" "] * 8
            HORIZONTAL_BARS: ClassVar[list[str]] = [" "] * 8

        ScrollBar.renderer = Plain
        self.add_class("-ascii")

    def on_resize(self, event: events.Resize) -> None:
        """Before anything is drawn in a new size, every step arranges itself for it."""
        for view in self.query(View):
            view.fit_to(*event.size)

    # a pane on the whole screen

    def action_maximise(self) -> None:
        if self.screen.maximized is not None:
            self.screen.minimize()
            return
        panes = self.focused.ancestors_with_self if self.focused is not None else []
        pane = next((p for p in panes if p.has_class("pane")), self.focused)
        if pane is not None:
            self.screen.maximized = pane  # type: ignore[assignment]

    def action_repaint(self) -> None:
        """Write every cell again: another program may have written on the terminal."""
        forget = getattr(self._driver, "forget_cells", None)  # no driver of tests has cells
        if forget is not None:
            forget()
        self.refresh()

    # leaving

    def action_help_quit(self) -> None:
        """Ctrl+C copies in a field; elsewhere it says how to quit."""
        self.notify(f"Press {key('app.leave')} to quit.", markup=False)

    def action_escape(self) -> None:
        """Cancel, or close what is open for a moment, where no step has something of its own."""
        if self.screen.maximized is not None:
            self.screen.minimize()
        elif self._message_in_sight():
            self.clear_notifications()

    def _message_in_sight(self) -> bool:
        return bool(self._notifications)

    def action_leave(self, ask: bool = False) -> None:
        """Back from what is only for a moment, else quit; a running job asks first.

        Args:
            ask: Ask in any case: the palette does, where one Enter too many takes its first line.
        """
        if isinstance(self.screen, ModalScreen):
            self.screen.dismiss(None)
            return
        if self.screen.maximized is not None:
            self.screen.minimize()
            return
        leave = getattr(self.view, "leave", None)
        if leave is not None and leave():
            return
        running = self.jobs.running
        if not running and not ask:
            self.end()
            return
        from vlora_tui.tui.app.quitting import CANCEL, LEAVE, quit_dialog

        own = [view for view in running if self.jobs.is_own(view)]

        def answered(answer: str | None) -> None:
            if answer == CANCEL:
                for view in own:
                    self.jobs.cancel(view.job.id, discard=False)
                self._end_when_asked()
            elif answer == LEAVE:
                self.end()

        self.push_screen(quit_dialog(running, own), answered)

    @work
    async def _end_when_asked(self) -> None:
        """End once the jobs were asked to stop; ending at once would leave them unasked."""
        for asking in [worker for worker in self.workers if worker.group == WORKERS]:
            with suppress(WorkerError):
                await asking.wait()
        self.end()

    def end(self, code: int = 0, message: Text | None = None) -> None:
        """Save what is worth it and end."""
        try:
            self.drafts.close()
        finally:
            self.workers.cancel_all()
            super().end(code, message)

    # drafts

    def draft_changed(self) -> None:
        """Marks, k or targets changed: save the draft soon, off the event loop."""
        self.drafts.changed()

    def draft_words(self) -> str | None:
        """What the last session left, in a few words; None if nothing."""
        return self.drafts.words()

    def open_draft(self) -> None:
        """Go on where the last session was left."""
        try:
            left = self.drafts.take()
        except (VLoRAError, OSError) as error:
            self.complain(f"The draft cannot be opened: {problem_words(error)}")
            return
        if left is not None:
            recipe, step = left
            self.open_recipe(recipe, step=step)

    def offer_draft(self) -> None:
        """Show that there is a draft to go on with."""
        self._adapters().renew_start()

    # opening

    def open_recipe(self, recipe: Recipe, *, step: str = "run") -> None:
        """Look for a recipe's adapters, mark them, take its choices; then show the step."""
        from vlora_tui.recipe.resolve import resolve
        from vlora_tui.tui.adapters.opening import shown_target

        try:
            recipe = resolve(recipe)
        except VLoRAError as error:
            self.complain(clean(problem_words(error)))
            return
        self.session.output = recipe.output
        self.session.exports = recipe.exports
        self.session.skip_bad = recipe.input.skip_bad
        if recipe.compress is not None:
            self.session.device = recipe.compress.device
            choosing, lost = shown_target(recipe.compress.target)
            self.session.choose(choosing)
            if lost:
                self.complain(f"The interface has no place for {', '.join(lost)} of the recipe.")
        tables = ["[quantize]"] * (recipe.quantize is not None)
        tables += ["[[convert]]"] * bool(recipe.converts) + ["[[push]]"] * bool(recipe.pushes)
        if tables:
            self.complain(f"The interface has no place for {', '.join(tables)} of the recipe.")
        self._wanted_step = step
        if recipe.input.subspace is not None:
            self.call_later(self.open_subspace, recipe.input.subspace)
            return
        named = {entry.path: entry.name for entry in recipe.input.adapters}
        view = self._adapters()
        view.mark_when_found(named)
        view.look_into(list(named))

    async def scanned(self) -> None:
        """All places were looked into: go where the recipe or the draft wanted to be."""
        step, self._wanted_step = self._wanted_step, None
        if step and step != "adapters" and self.session.marked:
            await self.show_step(step)

    def _adapters(self) -> Any:
        return self.query_one("#adapters")

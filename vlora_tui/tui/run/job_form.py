"""A form above the screen: what a job needs to know, line by line; one key starts the job."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import Static

from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.widgets.bindings import shown
from vlora_tui.tui.widgets.buttons import Button, Buttons
from vlora_tui.tui.widgets.dialogs import Dialog, Prompt
from vlora_tui.tui.widgets.form import Field, Form

START = "start"
MOST = 14  # lines of a form that are in sight


class Question(NamedTuple):
    """How a line that is typed is asked for: title, words, what stands there, what is wrong."""

    title: str
    words: str
    value: str
    check: Callable[[str], str | None] = lambda text: None


class JobFields(Protocol):
    """The settings of one job, and how they change.

    Attributes:
        title: What the form is called.
        about: What the job does, in a sentence or two.
    """

    title: str
    about: str

    @property
    def label(self) -> str:
        """What the button says."""

    def rows(self) -> list[Field]:
        """The lines."""

    def turn(self, key: str, by: int) -> None:
        """Go to the next value of a choice."""

    def question(self, key: str) -> Question | None:
        """How a line is asked for; None where nothing is typed."""

    def take(self, key: str, text: str) -> None:
        """Take what was typed."""

    def problem(self) -> str:
        """Why the job cannot start; empty if it can."""


class JobForm(Dialog):
    """The form of a job; the result is `START`, or None."""

    DEFAULT_CSS = """
    JobForm {
        & Form { background: $surface; }
        & #job-hint { height: 2; color: $text-muted; }
        & #job-hint.wrong { color: $text-error; }
        &:ansi #job-hint.wrong { color: $error; }
        &.-short .words { display: none; }
        &.-short .keys { display: none; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("w", "start", "Start", "form.start", "Start the job")
    ]

    def __init__(self, fields: JobFields) -> None:
        super().__init__()
        self.fields = fields

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = Text(self.fields.title)
            yield Static(self.fields.about, classes="words", markup=False)
            yield Form(ascii_only=bool(getattr(self.app, "ascii_only", False)), id="job-fields")
            yield Static(id="job-hint", markup=False)
            yield Buttons(id="job-buttons")
            words = keyed("<form.change> change, <form.start> start, <dialog.cancel> cancel")
            yield Static(words, classes="keys", markup=False)

    def on_mount(self) -> None:
        super().on_mount()
        self._draw()
        form, rows = self.query_one(Form), self.fields.rows()
        for _ in range(next((n for n, row in enumerate(rows) if row.kind != "fixed"), 0)):
            form.action_move(1)  # to the first line that can be changed
        form.focus()

    def on_resize(self) -> None:
        self.set_class(self.app.size.height < 20, "-short")
        self._draw()

    def _draw(self) -> None:
        rows, form = self.fields.rows(), self.query_one(Form)
        form.show(rows)
        room = self.app.size.height * 92 // 100 - (5 if self.has_class("-short") else 12)
        form.styles.height = max(1, min(len(rows), MOST, room))
        self.query_one(Buttons).show([Button("form.start", self.fields.label, "start")])
        self._hint()

    def _hint(self) -> None:
        field, hint = self.query_one(Form).field, self.query_one("#job-hint", Static)
        words = "" if field is None else field.wrong or field.hint
        problem = "" if words else self.fields.problem()
        hint.set_class(bool(problem or (field is not None and field.wrong)), "wrong")
        hint.update(Text(words or problem))

    def on_form_moved(self) -> None:
        self._hint()

    def on_form_turned(self, event: Form.Turned) -> None:
        self.fields.turn(event.key, event.by)
        self._draw()

    def on_form_pressed(self, event: Form.Pressed) -> None:
        question = self.fields.question(event.key)
        if question is None:
            return

        def answered(text: str | None) -> None:
            if text is not None:
                self.fields.take(event.key, text)
                self._draw()

        prompt = Prompt(question.title, question.words, question.value, check=question.check)
        self.app.push_screen(prompt, answered)

    def action_start(self) -> None:
        """Start the job, if nothing is missing."""
        problem = self.fields.problem()
        if problem:
            hint = self.query_one("#job-hint", Static)
            hint.set_class(True, "wrong")
            hint.update(Text(problem))
            return
        self.dismiss(START)

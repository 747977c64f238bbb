"""One line that asks for a value, says what it takes, and says what was wrong with an answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import Input, Static

from vlora_engine.errors import VLoRAError
from vlora_tui.tui.widgets.bindings import hidden

NARROW = 80  # columns, under which what is said of an answer takes more lines than one


@dataclass(frozen=True)
class Question:
    """What is asked: a label, a hint, and how the answer is read (it may raise VLoRAError)."""

    name: str
    label: str
    hint: str
    read: Callable[[str], object]
    value: str = ""


class AskLine(Horizontal):
    """Hidden until something is asked. Enter answers; escape, or Enter on nothing, leaves."""

    class Answered(Message):
        """The answer, already read."""

        def __init__(self, name: str, value: object) -> None:
            super().__init__()
            self.name = name
            self.value = value

    class Left(Message):
        """Nothing was answered."""

    BINDINGS: ClassVar[list[BindingType]] = [hidden("escape", "leave", "ask.leave", "Cancel")]

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._question: Question | None = None

    def compose(self) -> ComposeResult:
        yield Static("", id="ask-label", markup=False)
        answer = Input(compact=True, select_on_focus=True)
        answer.cursor_blink = False
        yield answer
        yield Static("", id="ask-hint", markup=False)

    @property
    def open(self) -> bool:
        """Whether something is being asked."""
        return self._question is not None

    def ask(self, question: Question) -> None:
        """Show the line and put the cursor in it."""
        self._question = question
        self.query_one("#ask-label", Static).update(question.label)
        self._hint(question.hint)
        answer = self.query_one(Input)
        answer.value = question.value
        self.display = True
        answer.focus()

    def action_leave(self) -> None:
        """Close without an answer."""
        self._close()
        self.post_message(self.Left())

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        question = self._question
        if question is None or (not event.value.strip() and question.name != "filter"):
            self.action_leave()
            return
        try:
            value = question.read(event.value.strip())
        except VLoRAError as error:
            expected = f", {error.expected}" if error.expected else ""
            self._hint(f"! {error.what.rstrip('.')}{expected}", wrong=True)
            return
        self._close()
        self.post_message(self.Answered(question.name, value))

    def _close(self) -> None:
        self._question = None
        self.display = False

    def _hint(self, text: str, *, wrong: bool = False) -> None:
        hint = self.query_one("#ask-hint", Static)
        hint.update(text)
        hint.set_class(wrong, "-wrong")
        self.set_class(self.app.size.width < NARROW, "-narrow")

"""Panes of Inspect that need weights: they run commands of our own in other processes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from textual import work
from textual.containers import Vertical
from textual.message import Message
from textual.worker import get_current_worker

from vlora_engine.errors import VLoRAError
from vlora_tui.tui.core.subcommand import ask_command
from vlora_tui.tui.text import problem_words

Arguments = tuple[str, ...]
Read = Callable[[Mapping[str, Any]], Any]


class AskingPane(Vertical):
    """Asks one command at a time and keeps what each answered, under its arguments."""

    class Answered(Message):
        """A command ended."""

        def __init__(self, arguments: Arguments, answer: Any, problem: str) -> None:
            super().__init__()
            self.arguments, self.answer, self.problem = arguments, answer, problem

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, classes="pane")
        self.asking: Arguments | None = None
        self.is_unasked = False  # nobody waits for what is asked
        self._answers: dict[Arguments, Any] = {}
        self._problems: dict[Arguments, str] = {}

    def ask(
        self,
        arguments: Sequence[str],
        read: Read,
        *,
        again: bool = False,
        background: bool = False,
    ) -> None:
        """Have a command answer, unless it has (``again``: even so).

        Args:
            read: Makes of the command's JSON what is kept.
            background: Nobody waits for it.
        """
        command = tuple(arguments)
        if command == self.asking or (command in self._answers and not again):
            return
        if self.asking is not None:
            self.workers.cancel_group(self, "asking")
        self._problems.pop(command, None)
        self.asking, self.is_unasked = command, background
        self._ask(command, read, background)

    def answer_to(self, arguments: Sequence[str]) -> Any:
        """What a command answered; None while that is not known."""
        return self._answers.get(tuple(arguments))

    def problem_of(self, arguments: Sequence[str]) -> str | None:
        """Why a command failed."""
        return self._problems.get(tuple(arguments))

    def stop(self) -> bool:
        """Stop the command that is asked; whether there was one."""
        if self.asking is None:
            return False
        self.workers.cancel_group(self, "asking")
        self.asking = None
        self.stopped()
        return True

    def stopped(self) -> None:
        """A command was stopped: show it."""

    def answered(self) -> None:
        """A command has answered, or failed: show it."""

    @work(thread=True, group="asking")
    def _ask(self, command: Arguments, read: Read, background: bool) -> None:
        worker = get_current_worker()
        try:
            nice = {"background": True} if background else {}
            answer = ask_command(list(command), lambda: worker.is_cancelled, **nice)
            value = None if answer is None else read(answer)
        except VLoRAError as error:
            self.post_message(self.Answered(command, None, problem_words(error)))
        except Exception as error:
            problem = f"A bug in vlora-tui: {type(error).__name__}: {error}"
            self.post_message(self.Answered(command, None, problem))
            raise
        else:
            if value is not None:
                self.post_message(self.Answered(command, value, ""))

    def on_asking_pane_answered(self, event: Answered) -> None:
        event.stop()
        if self.asking == event.arguments:
            self.asking = None
        if event.problem:
            self._problems[event.arguments] = event.problem
        else:
            self._answers[event.arguments] = event.answer
        self.answered()


def shell_command(arguments: Sequence[str]) -> str:
    """The line that does the same in a shell."""
    return shlex.join(["vlora-tui", *arguments])

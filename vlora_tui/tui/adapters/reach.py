"""How many of its modules each adapter acts on, where its base model is at hand; and the repair.

Building a model to ask PEFT takes torch, so commands of our own tell it in other processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from textual.message import Message
from textual.worker import get_current_worker

from vlora_engine.adapters.address import is_address
from vlora_engine.errors import VLoRAError
from vlora_engine.formats.base_model_config import known_base
from vlora_tui.tui.core.subcommand import ask_command

if TYPE_CHECKING:
    from vlora_engine.catalog.scanner import AdapterInfo
    from vlora_tui.tui.core.view import View


class Applies(NamedTuple):
    """How much PEFT applies of an adapter.

    Args:
        applied: Modules; None where it cannot be told. unknown: Why not.
    """

    applied: int | None
    total: int
    base: str = ""
    unknown: str = ""

    @classmethod
    def read(cls, told: Any) -> Applies:
        """Out of the doctor's JSON."""
        return cls(told["applied"], told["total"], told["base"] or "", told["unknown"] or "")

    @property
    def words(self) -> str:
        """For a cell: ``224/224``, ``no effect``; empty where it cannot be told."""
        if self.applied is None:
            return ""
        return f"{self.applied}/{self.total}" if self.applied else "no effect"

    @property
    def can_be_repaired(self) -> bool:
        """Whether PEFT applies less than all of it."""
        return self.applied is not None and self.applied < self.total

    @property
    def tone(self) -> str:
        """Good where all of it acts, an error where nothing does."""
        if self.applied == self.total:
            return "good"
        return "warning" if self.applied else "error"


class ReachTold(Message):
    """What the doctor told of adapters, by path."""

    def __init__(self, found: Mapping[str, Applies]) -> None:
        super().__init__()
        self.found = found


class Repaired(Message):
    """A repaired copy was written, or why not."""

    def __init__(self, output: str, applies: Applies | None, problem: VLoRAError | None) -> None:
        super().__init__()
        self.output, self.applies, self.problem = output, applies, problem


class ReachFinder:
    """Asks the doctor, a base model at a time, about adapters that it has not told of yet."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._asked: set[str] = set()

    def ask(self, infos: Sequence[AdapterInfo]) -> None:
        """Ask about those of ``infos`` whose base model lies on this machine."""
        new = [
            i for i in infos if i.error is None and i.base_model and str(i.path) not in self._asked
        ]
        new = [info for info in new if not is_address(info.path)]
        self._asked |= {str(info.path) for info in new}
        if new:
            ask = partial(self._ask, new)
            self._view.run_worker(ask, thread=True, group="reach", exit_on_error=False)

    def forget(self) -> None:
        """Ask again about all, the next time."""
        self._asked.clear()

    def repair(self, info: AdapterInfo, output: str) -> None:
        """Write a copy of an adapter under the names that PEFT looks for."""
        self._view.run_worker(partial(self._repair, info, output), thread=True, group="repair")

    def _ask(self, infos: Sequence[AdapterInfo]) -> None:
        """In a thread: one command for each base model."""
        worker = get_current_worker()
        by_base: dict[Path, list[str]] = {}
        for info in infos:
            place = known_base(info.base_model)
            if place is not None:
                by_base.setdefault(place, []).append(str(info.path))
        for base, paths in by_base.items():
            words = ["doctor", *paths, "--base", str(base), "--headers", "--fail-on", "never"]
            try:
                answer = ask_command(words, lambda: worker.is_cancelled)
                found = _told(answer or {})
            except VLoRAError:
                continue  # step 4's doctor tells why; here it is only not known
            self._view.post_message(ReachTold(found))

    def _repair(self, info: AdapterInfo, output: str) -> None:
        """In a thread: the command that mends names."""
        worker = get_current_worker()
        base = known_base(info.base_model)
        words = ["doctor", str(info.path), "--fix", "-o", output, "--fail-on", "never"]
        words += [] if base is None else ["--base", str(base)]
        applies, problem = None, None
        try:
            answer = ask_command(words, lambda: worker.is_cancelled)
            if answer is None:
                return
            told = answer["fixed"][0]["applies"]
            applies = None if told is None else Applies.read(told)
        except VLoRAError as error:
            problem = error
        self._view.post_message(Repaired(output, applies, problem))


def _told(answer: Mapping[str, Any]) -> dict[str, Applies]:
    rows = answer.get("adapters", [])
    return {row["path"]: Applies.read(row["applies"]) for row in rows if row["applies"]}

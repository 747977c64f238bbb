"""What every test of the interface has: nothing waits for the clock, no fault is overlooked."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import pytest
import textual.app
import textual.pilot
import textual.screen
from textual.css.model import RuleSet
from textual.css.stylesheet import Stylesheet

from tests.app.tui import idle
from vlora_tui.tui.app import fault_net
from vlora_tui.tui.app.base_app import BaseApp

_parse = Stylesheet._parse_rules
_parsed: dict[Any, list[RuleSet]] = {}


def _parse_once(self: Stylesheet, *source: Any, **more: Any) -> list[RuleSet]:
    """The rules of a source, which are read only, from the application that parsed it first."""
    key = (source, tuple(more.items()), tuple(self._variables.items()))
    if key not in _parsed:
        _parsed[key] = _parse(self, *source, **more)
    return _parsed[key]


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stylesheet, "_parse_rules", _parse_once)
    for module in (textual.app, textual.pilot):
        monkeypatch.setattr(module, "wait_for_idle", idle.wait_for_idle)
    monkeypatch.setattr(textual.screen, "UPDATE_PERIOD", idle.FRAME)


@pytest.fixture(autouse=True)
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """What the net has caught in this test, which must be nothing when the test ends.

    A test that wants faults takes them out: ``faults.clear()``.
    """
    caught: list[BaseException] = []
    write = fault_net.FaultLog.write

    def noted(self: fault_net.FaultLog, error: BaseException) -> tuple[str, str]:
        caught.append(error)
        return write(self, error)

    monkeypatch.setattr(fault_net.FaultLog, "write", noted)
    yield caught
    if caught:
        pytest.fail("the interface had faults:\n" + "".join(traceback.format_exception(caught[0])))


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What applications of this test say in messages, in order."""
    said: list[str] = []
    notify = BaseApp.notify

    def noted(self: BaseApp, message: str, **given: Any) -> None:
        said.append(message)
        notify(self, message, **given)

    monkeypatch.setattr(BaseApp, "notify", noted)
    return said

"""What every test of the interface has: a key waits for what it does alone; no fault is overlooked."""

from __future__ import annotations

import traceback
from collections.abc import Iterator

import pytest
import textual.app
import textual.pilot
import textual.screen

from tests.app.tui import idle
from vlora_tui.tui.app import fault_net


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
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

"""Every test of the interface fails when its net caught a fault, unless it wanted one."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from vlora_tui.tui.app import fault_net
from vlora_tui.tui.app.base_app import BaseApp


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

"""What long work tells of its progress, and asks about being cancelled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report of progress: ``done`` of ``total`` units of a stage, and which was last.

    Args:
        remark: What there is to say about the stage as a whole, once.
    """

    stage: str
    done: int
    total: int
    detail: str = ""
    remark: str = ""


ProgressCallback = Callable[[Progress], None]
CancelCheck = Callable[[], bool]

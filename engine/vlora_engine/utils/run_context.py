"""How a piece of long work is run: whom it tells, who may stop it, where it computes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vlora_engine.errors import Cancelled
from vlora_engine.utils.progress import CancelCheck, Progress, ProgressCallback


@dataclass(frozen=True)
class RunContext:
    """What public functions take as keywords, handed on as one to what they call.

    Args:
        progress: Told of every step.
        cancelled: Asked between two steps whether to stop.
        device: Where to compute.
        force: Replace outputs that exist.
        max_memory: Bytes that this process may hold meanwhile; None: `memory.limit` alone counts.
    """

    progress: ProgressCallback | None = None
    cancelled: CancelCheck | None = None
    device: str = "auto"
    force: bool = False
    max_memory: int | None = None

    def report(self, stage: str, done: int, total: int, detail: str = "") -> None:
        """Tell that ``done`` of ``total`` units of a stage are done, and which was last."""
        if self.progress is not None:
            self.progress(Progress(stage, done, total, detail))

    def remark(self, stage: str, total: int, text: str) -> None:
        """Tell something about a stage of ``total`` units that is about to begin."""
        if self.progress is not None:
            self.progress(Progress(stage, 0, total, remark=text))

    def after(self, done: int, total: int) -> RunContext:
        """The same for a part of a stage: ``done`` of its ``total`` units were done before."""

        def report(step: Progress) -> None:
            if step.remark:
                self.remark(step.stage, total, step.remark)
            else:
                self.report(step.stage, done + step.done, total, step.detail)

        return replace(self, progress=report)

    def is_cancelled(self) -> bool:
        """Whether somebody asked to stop."""
        return self.cancelled is not None and self.cancelled()

    def stop_if_asked(self, what: str) -> None:
        """Stop if that is asked.

        Raises:
            Cancelled: It was; ``what`` says what became of the work.
        """
        if self.is_cancelled():
            raise Cancelled(what)

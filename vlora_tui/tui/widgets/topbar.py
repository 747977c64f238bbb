"""The status line: the steps, what is open, the job that runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.text import Text
from textual.events import Click
from textual.widget import Widget


class TopBar(Widget):
    """One line, painted only when something in it changed."""

    def __init__(self, steps: Sequence[Any]) -> None:
        super().__init__()
        self._steps = steps
        self._shown: tuple[int, str, str] = (1, "", "")
        self._spans: list[tuple[int, int, str]] = []

    def show(self, step: int, title: str, job: str) -> None:
        """Show the step in view, what is open, and a word about the job."""
        if (step, title, job) != self._shown:
            self._shown = (step, title, job)
            self.refresh()

    def render(self) -> Text:
        step, title, job = self._shown
        text, self._spans = Text(no_wrap=True, overflow="ellipsis"), []
        narrow = self.size.width < 70
        for i, each in enumerate(self._steps, start=1):
            label = f" {each.key} " if narrow and i != step else f" {each.key} {each.name} "
            self._spans.append((text.cell_len, text.cell_len + len(label), each.id))
            text.append(label, style="reverse bold" if i == step else "")
        ascii_only = bool(getattr(self.app, "ascii_only", False))
        gap = 1 if step == len(self._steps) else 0  # beside a step in reverse
        width = self.size.width - text.cell_len - gap - 1
        right = fitting(title, job, width)
        if ascii_only:
            right = right.replace("·", "-")
        if width > 8 and right:
            shown = Text(right, no_wrap=True)
            shown.truncate(width, overflow="crop" if ascii_only else "ellipsis")
            text.append(" " * (gap + width - shown.cell_len))
            text.append_text(shown)
        return text

    async def on_click(self, event: Click) -> None:
        for start, end, step in self._spans:
            if start <= event.x < end:
                await self.app.run_action(f"step('{step}')")


def fitting(title: str, job: str, width: int) -> str:
    """As much of what is open and of the job as fits: the job stays longest, for it moves.

    The title gives up the owner of the base model first, then the model, then all but the count.
    """
    base, *rest = title.split(" · ")
    parts = [[base, *rest], [base.rpartition("/")[2], *rest], rest, rest[:1], []]
    titles = [" · ".join(some) for some in parts if some or job]
    brief = job.partition(": ")[2]
    jobs = [(job, title) for title in titles] + [(brief, ""), (brief.partition(",")[0], "")]
    lines = ["  ".join(part for part in (title, job) if part) for job, title in jobs]
    lines = [line for line in lines if line]
    return next((line for line in lines if cell_len(line) <= width), lines[-1] if lines else "")

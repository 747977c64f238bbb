"""Shows the progress of a running recipe on stderr: bars on a terminal, else a line a step."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vlora_tui.cli.output import Output, is_terminal
from vlora_tui.pipeline import events
from vlora_tui.utils.formatting import how_much, percent, plural, printable, size, stage_words

if TYPE_CHECKING:
    from vlora_engine.utils.progress import Progress


class Watcher:
    """Shows events on stderr as they come, and keeps those that the command's data come from."""

    def __init__(self, out: Output) -> None:
        self.out = out
        self.seen: list[events.Event] = []
        self._bars: Bars | None = None
        self._watched = is_terminal(sys.stderr) and not out.quiet and not out.as_json

    def __call__(self, event: events.Event) -> None:
        """Take one event."""
        if isinstance(event, events.Progress):
            if self._watched:
                self._bars = self._bars or Bars()
                self._bars.show(event)
            return
        self.seen.append(event)
        text = line_about(event)
        if text is None:
            return
        if isinstance(event, events.AdapterSkipped):
            self.out.warn(text)
        else:
            self.out.note(text)

    def on_progress(self, progress: Progress) -> None:
        """Take a step of the engine's own."""
        if progress.remark:
            self(events.Remark(progress.remark, code="memory"))
            return
        self(events.Progress(progress.stage, progress.done, progress.total, progress.detail))

    def all(self, kind: type[Any]) -> list[Any]:
        """Every event of one type that came."""
        return [event for event in self.seen if isinstance(event, kind)]

    def last(self, kind: type[Any]) -> Any:
        """The last event of one type, or None."""
        found = self.all(kind)
        return found[-1] if found else None

    def pause(self) -> None:
        """Take the bars away, for lines on the same screen; the next step brings them back."""
        if self._bars is not None:
            self._bars.close()
            self._bars = None

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.pause()


def line_about(event: events.Event) -> str | None:
    """One line for a person, or None where the event has nothing to say to one."""
    match event:
        case events.AdaptersFound():
            text = f"{plural(len(event.names), 'adapter')}, {plural(event.modules, 'module')}"
            return f"{text}, {size(event.nbytes)}"
        case events.AdapterSkipped():
            return f"{printable(event.name)} is left out: {printable(event.reason)}"
        case events.Remark():
            where = f"{event.where}: " if event.where else ""
            return printable(f"note: {where}{event.text}")
        case events.SpectraReady():
            return f"spectra {'taken from' if event.reused else 'written to'} {event.path}"
        case events.Chosen():
            return (
                f"{event.label}: error {percent(event.mean_error)} on average, "
                f"{percent(event.max_error)} at worst, {size(event.nbytes)} on disk"
            )
    return None


class Bars:
    """rich's progress bars, one a stage, gone when the work is done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}", markup=False),
            Remaining(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
        )
        self._tasks: dict[str, Any] = {}
        self._progress.start()

    def show(self, event: events.Progress) -> None:
        """Move the bar of the event's stage."""
        if event.stage not in self._tasks:
            label = stage_words(event.stage)
            self._tasks[event.stage] = self._progress.add_task(
                label, total=event.total, detail="", count=""
            )
        self._progress.update(
            self._tasks[event.stage],
            completed=event.done,
            total=event.total,
            detail=printable(event.detail)[-40:],
            count=how_much(event.stage, event.done, event.total),
        )

    def close(self) -> None:
        """Take the bars off the screen."""
        self._progress.stop()

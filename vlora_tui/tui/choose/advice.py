"""What stands above the plot: how small it gets at which error, presets, the build button."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.message import Message
from textual.widget import Widget

from vlora_tui.tui.text import clean, cut
from vlora_tui.utils.formatting import percent, size

PRESET_NAMES = ("fine", "normal", "rough")


@dataclass(frozen=True)
class Preset:
    """A choice that one key takes: its worst error, and its bytes where they are known."""

    error: float
    nbytes: int | None
    about: bool = True
    taken: bool = False


@dataclass(frozen=True)
class Advice:
    """The present choice in a line, and presets.

    Args:
        words: The method and what is aimed at. brief: The same in fewer words, the method left out.
        method: Its name alone. k: The k of a basis, where that is not what is aimed at.
        ratio: Bytes of the originals over ``nbytes``.
        error: The worst adapter's, where that is not what is aimed at.
        error_about: That is an estimate, as it is of packed numbers until they are built.
        about: The figures are estimates. so_far: What they are of, while adapters are measured.
        problem: Why the choice were not found.
    """

    words: str = ""
    brief: str = ""
    method: str = ""
    k: str = ""
    nbytes: int | None = None
    ratio: float = 0.0
    error: float | None = None
    error_about: bool = False
    about: bool = True
    so_far: str = ""
    problem: str = ""
    presets: tuple[Preset, ...] = ()


class AdvicePane(Widget):
    """The line of the present choice with its button, and the line of presets; both clickable.

    Args:
        keys: How the keys of building and of the presets are written.
    """

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "advice--words",
        "advice--figures",
        "advice--muted",
        "advice--bad",
        "advice--button",
        "advice--taken",
    }

    class Pressed(Message):
        """A control was clicked: ``build``, or ``preset`` with its number."""

        def __init__(self, what: str, number: int = 0) -> None:
            super().__init__()
            self.what, self.number = what, number

    def __init__(self, *, ascii_only: bool = False, id: str | None = None) -> None:
        super().__init__(id=id)
        self.ascii_only = ascii_only
        self.advice = Advice()
        self.keys: tuple[str, ...] = ("w", "f", "n", "r")
        self._spans: list[tuple[int, int, int, str, int]] = []  # line, columns, what is there

    def show(self, advice: Advice) -> None:
        """Show this; what is the same is not painted again."""
        if advice != self.advice:
            self.advice = advice
            self.refresh()

    def plain(self) -> str:
        """The lines as text."""
        return self.render().plain

    def render(self) -> Text:
        width, height = self.size
        self._spans = []
        lines = [self._first(width), self._presets(width)][: max(1, height)]
        return Text("\n", no_wrap=True, overflow="crop", end="").join(lines)

    def _first(self, width: int) -> Text:
        advice = self.advice
        button = f"[ {self.keys[0]} Build ]"
        room = max(0, width - len(button) - 2)
        text = Text(no_wrap=True)
        for words, role in self._parts(room):
            text.append(words, self._style(role))
        text.append(" " * max(1, width - text.cell_len - len(button)))
        self._spans.append((0, text.cell_len, text.cell_len + len(button), "build", 0))
        return text.append(button, self._style("muted" if advice.problem else "button"))

    def _parts(self, room: int) -> list[tuple[str, str]]:
        """The words of the first line that fit, the least needed left out first."""
        advice, about = self.advice, "~" if self.advice.about else ""
        if advice.problem:
            words = cut(clean(advice.problem), room, ascii_only=self.ascii_only)
            return [(words, "bad")]
        if advice.nbytes is None:
            dots = "..." if self.ascii_only else "…"
            return [(f"{advice.words}: Calculating{dots}"[:room], "words")]
        figures = f"{about}{size(advice.nbytes)}"
        ratio = f", {about}{advice.ratio:.3g}x smaller"
        if advice.ratio < 1:
            ratio = f", {about}{1 / max(advice.ratio, 1e-9):.3g}x larger"
        error_about = "~" if advice.about or advice.error_about else ""
        error = "" if advice.error is None else f", worst {error_about}{percent(advice.error)}"
        so_far = f"  {advice.so_far}" if advice.so_far else ""
        than = " than the originals"
        for words in self._words():
            for tail in (ratio + than + error, ratio + error, ratio, ""):
                for more in (so_far, ""):
                    if len(words) + 2 + len(figures) + len(tail) + len(more) <= room:
                        return [
                            (f"{words}: ", "words"),
                            (figures + tail, "figures"),
                            (more, "muted"),
                        ]
        return [(cut(figures, room, ascii_only=self.ascii_only), "figures")]

    def _words(self) -> list[str]:
        """What is said of the choice before its bytes, the longest first; k stays longest."""
        advice = self.advice
        if not advice.k:
            return [advice.words, advice.brief]
        return [f"{advice.words}, {advice.k}", f"{advice.method}, {advice.k}", advice.k]

    def _presets(self, width: int) -> Text:
        text = Text(no_wrap=True)
        for number, (preset, key) in enumerate(
            zip(self.advice.presets, self.keys[1:], strict=False)
        ):
            name = PRESET_NAMES[number] if width >= 70 else ""
            nbytes = ""
            if preset.nbytes is not None:
                nbytes = f": {'~' if preset.about else ''}{size(preset.nbytes)}"
            label = f"{key} {name + ' ' if name else ''}{percent(preset.error)}{nbytes}"
            label = f"[{label}]" if preset.taken else f" {label} "
            if text.cell_len + len(label) + 2 > width:
                break
            start = text.cell_len
            self._spans.append((1, start, start + len(label), "preset", number))
            text.append(label, self._style("taken" if preset.taken else "muted"))
            text.append("  ")
        return text

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(f"advice--{name}")

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        for line, start, end, what, number in self._spans:
            if offset.y == line and start <= offset.x < end:
                event.stop()
                self.post_message(self.Pressed(what, number))

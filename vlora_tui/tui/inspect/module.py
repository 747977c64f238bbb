"""A dialog on one module: the singular values of its dW, and what two adapters share there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.binding import BindingType
from textual.widgets import Static
from textual.worker import get_current_worker

from vlora_engine.errors import VLoRAError
from vlora_tui.tui.core.subcommand import ask_command
from vlora_tui.tui.inspect.rows import plain, share
from vlora_tui.tui.text import clean
from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.dialogs import Page
from vlora_tui.tui.widgets.folding import hanging

SHOWN = 16  # singular values of one adapter
BAR = 24  # columns of the longest bar
BOX_WIDTH = 84  # columns inside the box, where there is room


class ModuleBox(Page):
    """Reads the module in a process of its own, which may hold weights, and tells of it.

    Args:
        names: The adapter's name, or two.
        places: Where they lie, as the commands take it.
    """

    DEFAULT_CSS = """
    ModuleBox > .box { width: 92; }
    ModuleBox .many { max-height: 100%; margin-bottom: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("escape,q,enter", "cancel", "Back", "module.cancel", "Close"),
        hidden("j", "down", "module.down", "Scroll down"),
        hidden("k", "up", "module.up", "Scroll up"),
    ]

    def __init__(self, module: str, names: Sequence[str], refs: Sequence[str]) -> None:
        super().__init__(clean(module), "Being read.")
        self._module, self._names, self._refs = module, list(names), list(refs)

    @property
    def arguments(self) -> list[str]:
        """The command that tells the same."""
        return ["module", *self._refs, self._module]

    def on_mount(self) -> None:
        super().on_mount()
        self._ask()

    @work(thread=True, exclusive=True)
    def _ask(self) -> None:
        worker = get_current_worker()
        try:
            answer = ask_command(self.arguments, lambda: worker.is_cancelled)
        except VLoRAError as error:
            self.app.call_from_thread(self._say, Text(clean(str(error))))
            return
        if answer is not None:
            ascii_only = bool(getattr(self.app, "ascii_only", False))
            words = module_words(answer, self._names, ascii_only=ascii_only)
            self.app.call_from_thread(self._say, words)

    def _say(self, words: Text) -> None:
        if not self.is_attached:
            return
        inside = min(BOX_WIDTH, self.app.size.width * 96 // 100 - 8)
        self.query_one(Static).update(hanging(words, inside))


def module_words(answer: Mapping[str, Any], names: Sequence[str], *, ascii_only: bool) -> Text:
    """What ``vlora-tui module --json`` told, for people."""
    if "a" not in answer:
        return _portrait(answer, names[0], ascii_only)
    text = _portrait(answer["a"], names[0], ascii_only)
    text.append("\n\n").append_text(_portrait(answer["b"], names[1], ascii_only))
    first, second = (clean(name) for name in names)
    text.append("\n\nTogether\n", style="bold")
    text.append(
        f"cosine of dW {answer['cosine']:.3f}; they differ by "
        f"{share(answer['relative_difference'])} of the first's dW\n"
        f"{share(answer['a_in_b'])} of {first}'s energy lies within the spaces of {second}, "
        f"{share(answer['b_in_a'])} the other way round\n"
    )
    for side, word in (("in", "inputs "), ("out", "outputs")):
        angles = [f"{value:.2f}" for value in answer[f"angles_{side}"][:SHOWN]]
        text.append(f"{word}  {' '.join(angles) or 'nothing'}\n")
    text.append("(cosines of the principal angles: 1 is a direction that both have)", style="dim")
    return text


def _portrait(row: Mapping[str, Any], name: str, ascii_only: bool) -> Text:
    text = Text(clean(name) + "\n", style="bold")
    text.append(
        f"{row['d_out']} x {row['d_in']}, rank {row['rank']}, scale {row['scale']:g}; size of dW "
        f"{plain(row['norm'])}; stable rank {row['stable_rank']:.1f}, "
        f"effective rank {row['effective_rank']:.1f}",
        style="not bold",
    )
    values, energy, cumulative = row["singular_values"], row["norm"] ** 2, 0.0
    for number, value in enumerate(values[:SHOWN], start=1):
        cumulative += value**2
        bar = ("#" if ascii_only else "█") * max(1, round(BAR * value / values[0]))
        words = f"\n{number:>3} {bar:<{BAR}} {value:<9.4g}{share(cumulative / energy):>8} so far"
        text.append(words, style="not bold")
    if len(values) > SHOWN:
        text.append(f"\n    and {len(values) - SHOWN} more", style="not bold")
    if not values:
        text.append("\nIt has no effect here.", style="not bold")
    return text

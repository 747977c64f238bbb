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
from vlora_engine.utils.naming import cosine_text
from vlora_tui.tui.core.subcommand import ask_command
from vlora_tui.tui.inspect.rows import Subject, plain, share
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.text import clean, problem_words
from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.dialogs import Page
from vlora_tui.tui.widgets.folding import hanging

LOADING = "Loading…"
SHOWN = 16  # singular values of one adapter
BAR = 24  # columns of the longest bar
BOX_WIDTH = 84  # columns inside the box, where there is room


class ModuleBox(Page):
    """Has the module read by a process, which may hold weights, and tells of it.

    ``n`` and ``p`` walk through the modules, ``N`` and ``P`` through the adapters.

    Args:
        subject: The adapter, or two. modules: All that there are, in their order.
        others: The adapters, or pairs, that there are.
    """

    DEFAULT_CSS = """
    ModuleBox > .box { width: 92; }
    ModuleBox .many { max-height: 100%; margin-bottom: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("escape,q,enter", "cancel", "Back", "module.cancel", "Close"),
        shown("n", "walk(1)", "Modules", "module.next", "The next module", display="n p"),
        hidden("p", "walk(-1)", "module.before", "The module before"),
        shown("N", "others(1)", "Adapters", "module.next_adapter",
              "The same module of the next adapter", display="N P"),
        hidden("P", "others(-1)", "module.adapter_before", "The same module of the adapter before"),
        hidden("j", "down", "module.down", "Scroll down"),
        hidden("k", "up", "module.up", "Scroll up"),
    ]  # fmt: skip

    def __init__(
        self,
        module: str,
        subject: Subject,
        *,
        modules: Sequence[str] = (),
        others: Sequence[Subject] = (),
    ) -> None:
        super().__init__(clean(module), LOADING)
        self._module, self._subject = module, subject
        self._modules = list(modules) if module in modules else [module]
        self._others = list(others) if subject in others else [subject]
        self._answers: dict[tuple[str, ...], Text] = {}

    @property
    def arguments(self) -> list[str]:
        """The command that tells the same."""
        return ["module", *self._subject.refs, self._module]

    @property
    def subtitle(self) -> str:  # type: ignore[override]
        """Which of how many it is, and the keys that lead on."""
        at, count = self._modules.index(self._module) + 1, len(self._modules)
        walk = [f"{at} of {count}", "<module.next> <module.before> modules"] if count > 1 else []
        if len(self._others) > 1:
            walk.append("<module.next_adapter> <module.adapter_before> adapters")
        return keyed(", ".join([*walk, "<module.cancel> closes"]))

    def action_walk(self, by: int) -> None:
        """Another module, round and round."""
        at = self._modules.index(self._module)
        self._module = self._modules[(at + by) % len(self._modules)]
        self._go()

    def action_others(self, by: int) -> None:
        """Another adapter, round and round."""
        at = self._others.index(self._subject)
        self._subject = self._others[(at + by) % len(self._others)]
        self._go()

    def _go(self) -> None:
        """Show what is asked for now; what is in sight stays until it is there."""
        box = self.query_one(".box")
        box.border_title, box.border_subtitle = Text(clean(self._module)), Text(self.subtitle)
        known = self._answers.get(tuple(self.arguments))
        if known is not None:
            self._say(known)
        else:
            self._ask()

    def on_mount(self) -> None:
        super().on_mount()
        self._ask()

    @work(thread=True, exclusive=True)
    def _ask(self) -> None:
        worker, arguments = get_current_worker(), self.arguments
        names = self._subject.names
        ascii_only = bool(getattr(self.app, "ascii_only", False))
        try:
            answer = ask_command(arguments, lambda: worker.is_cancelled)
        except VLoRAError as error:
            words = Text(clean(problem_words(error)))
        else:
            if answer is None:
                return
            words = module_words(answer, names, ascii_only=ascii_only)
        self.app.call_from_thread(self._take, tuple(arguments), words)

    def _take(self, arguments: tuple[str, ...], words: Text) -> None:
        """Keep what was told, and show it if it is still asked for."""
        self._answers[arguments] = words
        if arguments == tuple(self.arguments):
            self._say(words)

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
        f"cosine of dW {cosine_text(answer['cosine'])}; they differ by "
        f"{share(answer['relative_difference'])} of the first's dW\n"
        f"{share(answer['a_in_b'])} of {first}'s energy lies within the spaces of {second}, "
        f"{share(answer['b_in_a'])} the other way round\n"
    )
    for side, word in (("in", "inputs "), ("out", "outputs")):
        angles = [cosine_text(value) for value in answer[f"angles_{side}"][:SHOWN]]
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
        words = (
            f"\n{number:>3} {bar:<{BAR}} {value:<9.4g}{share(cumulative / energy):>8} cumulative"
        )
        text.append(words, style="not bold")
    if len(values) > SHOWN:
        text.append(f"\n    and {len(values) - SHOWN} more", style="not bold")
    if not values:
        text.append("\nIt has no effect here.", style="not bold")
    return text

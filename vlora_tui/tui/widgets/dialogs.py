"""Dialogs above the screen: questions, texts, problems, help."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from vlora_tui.tui.key_names import key, keyed
from vlora_tui.tui.text import clean
from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.closing import ClosesOnce
from vlora_tui.tui.widgets.folding import Hanging, hanging
from vlora_tui.tui.widgets.path_input import PathInput
from vlora_tui.tui.widgets.table import Cell, Column, Table
from vlora_tui.tui.widgets.terms import terms_in

WIDTH = 76  # columns of a box, where there is room
LISTED = 20  # lines of a list in it
PROMPT_KEYS = "Enter accept · <prompt.cancel> cancel"
TAKE_KEYS = "<dialog.take> select · <dialog.cancel> cancel"


class Option(NamedTuple):
    """One answer: the key that gives it, its words, what it means further, and its value."""

    key: str
    label: str
    value: str
    more: str = ""
    tone: str = ""


class Dialog(ModalScreen[str | None], ClosesOnce[str | None]):
    """A box in the middle; Escape and q leave it without an answer."""

    DEFAULT_CSS = Path(__file__).with_suffix(".tcss").read_text("utf-8")
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("escape,q", "cancel", "Back", "dialog.cancel", "Close without an answer")
    ]

    def on_mount(self) -> None:
        self.set_class(bool(getattr(self.app, "ascii_only", False)), "-ascii")
        self.set_class(self.app.size.height < 20, "-short")

    def action_cancel(self) -> None:
        self.dismiss(None)

    def keys_line(self, text: str) -> Static:
        """The line of the keys, such as `TAKE_KEYS`."""
        words = keyed(text)
        if getattr(self.app, "ascii_only", False):
            words = words.replace(" · ", ", ")
        return Static(words, classes="keys", markup=False)


class Ask(Dialog):
    """A question with a few answers, each on a key and all in a list.

    The result is the value of the answer, None when it was left without one.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        shown("enter", "take", "Select", "dialog.take", "Take the line under the cursor")
    ]

    def __init__(self, title: str, words: str, options: Sequence[Option]) -> None:
        super().__init__()
        self._title, self._words, self._options = title, words, list(options)

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = Text(self._title)
            yield Static(self._words, classes="words", markup=False)
            yield Table(_OPTION_COLUMNS, _option_cells, key=lambda o: o.key, header=False)
            yield self.keys_line(TAKE_KEYS)

    def on_mount(self) -> None:
        super().on_mount()
        table = self.query_one(Table)
        table.styles.height = len(self._options)
        table.show(self._options, cursor=0)
        table.focus()

    def on_key(self, event: events.Key) -> None:
        for option in self._options:
            if event.character == option.key:
                event.stop()
                event.prevent_default()
                self.answer(option)

    def on_table_pressed(self, event: Table.Pressed) -> None:
        self.action_take()

    def action_take(self) -> None:
        row = self.query_one(Table).row
        if row is not None:
            self.answer(row)

    def answer(self, option: Option) -> None:
        """An answer was given: leave with it."""
        self.dismiss(option.value)


class ListProblems(Ask):
    """A list of what is wrong, and what can be done about it.

    Args:
        problems: Per problem what it is about, and the lines that say what is wrong.
    """

    DEFAULT_CSS = """
    ListProblems.-short {
        & .words { margin-bottom: 0; }
        & .many { margin-bottom: 0; }
        & .keys { display: none; }
    }
    """

    def __init__(
        self,
        title: str,
        words: str,
        problems: Sequence[tuple[str, Sequence[str]]],
        options: Sequence[Option],
    ) -> None:
        super().__init__(title, words, options)
        self.problems = problems

    def on_mount(self) -> None:
        super().on_mount()
        self._fit()

    def on_resize(self) -> None:
        self._fit()

    def _fit(self) -> None:
        """Leave the list what the words and the answers do not need, so that these are in sight."""
        short = self.has_class("-short")
        room = self.app.size.height * 92 // 100 - (2 if short else 8)  # frame, padding, margins
        words = hanging(Text(self._words), self._inside + 3).plain.count("\n") + 1
        room -= words * bool(self._words) + len(self._options) + (not short)
        self.query_one(".many").styles.max_height = max(1, min(room, LISTED))

    @property
    def _inside(self) -> int:
        """Columns for the list: without border, padding and scroll bar."""
        return min(WIDTH, self.app.size.width * 96 // 100) - 8

    def compose(self) -> ComposeResult:
        text = Text()
        for about, lines in self.problems:
            text.append(clean(about) + "\n", style="bold")
            for line in lines:
                text.append(f"  {clean(line)}\n")
        text.rstrip()
        with Vertical(classes="box") as box:
            box.border_title = Text(self._title)
            if self._words:
                yield Static(self._words, classes="words", markup=False)
            with VerticalScroll(classes="many"):
                yield Static(hanging(text, self._inside), markup=False)
            yield Table(_OPTION_COLUMNS, _option_cells, key=lambda o: o.key, header=False)
            yield self.keys_line(TAKE_KEYS)


class Prompt(Dialog):
    """One line of text.

    Args:
        check: Says what is wrong with a text, None when it will do; asked at every change.
        expect: The very word that must be typed, where something is going to be destroyed.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        shown("escape", "cancel", "Back", "prompt.cancel", "Close without an answer")
    ]

    def __init__(
        self,
        title: str,
        words: str,
        value: str = "",
        *,
        check: Callable[[str], str | None] | None = None,
        expect: str | None = None,
    ) -> None:
        super().__init__()
        self._title, self._words, self._value = title, words, value
        self._check, self._expect = check, expect

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = Text(self._title)
            yield Static(self._words, classes="words", markup=False)
            yield PathInput(self._value, compact=True)
            yield Static("", id="wrong", classes="keys", markup=False)
            yield self.keys_line(PROMPT_KEYS)

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one(Input).focus()
        self._judge(self._value)

    def on_input_changed(self, event: Input.Changed) -> None:
        self._judge(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        if self._judge(event.value) is None:
            self.dismiss(event.value)

    def _judge(self, text: str) -> str | None:
        wrong = self._check(text) if self._check is not None else None
        if self._expect is not None and text != self._expect:
            wrong = f"Type {self._expect} to confirm."
        self.query_one("#wrong", Static).update(Text(wrong or ""))
        return wrong


class Page(Dialog):
    """One text in a box, to be scrolled through."""

    subtitle = ""

    def __init__(self, title: str, text: str = "") -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title, box.border_subtitle = Text(self._title), Text(self.subtitle)
            with VerticalScroll(classes="many"):
                yield Static(self.text(), markup=False)

    def text(self) -> Text | Hanging | str:
        """What is shown first."""
        return self._text

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one(VerticalScroll).focus()

    def action_down(self) -> None:
        self.query_one(VerticalScroll).scroll_down(animate=False)

    def action_up(self) -> None:
        self.query_one(VerticalScroll).scroll_up(animate=False)


class Help(Page):
    """What can be done here: the step in words, then the keys, the nearest first.

    The result is "guides" or "terms" where those are asked for.
    """

    DEFAULT_CSS = """
    Help > .box { width: 92; }
    Help .many { max-height: 100%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("escape,q,question_mark,enter", "cancel", "Back", "help.cancel", "Close"),
        shown("g", "guides", "Guides", "help.guides", "Guides, one for each aim"),
        shown("t", "terms", "Terms", "help.terms", "What the words mean"),
        hidden("j", "down", "help.down"),
        hidden("k", "up", "help.up"),
    ]

    def __init__(self, title: str, words: str, sections: Sequence[HelpSection]) -> None:
        super().__init__(title, words)
        self._sections = sections
        self.subtitle = keyed("<help.terms> terms, <help.guides> guides, <help.cancel> close")

    def action_guides(self) -> None:
        self.dismiss("guides")

    def action_terms(self) -> None:
        self.dismiss("terms")

    def text(self) -> Text:
        text = Text(self._text.strip() + "\n" if self._text else "")
        used = ", ".join(term.name for term in terms_in(self._text))
        if used:
            text.append(f"\nTerms ({key('help.terms')} explains them): ", style="bold")
            text.append(f"{used}\n")
        wide = self.app.size.width >= 80
        for section in self._sections:
            text.append(f"\n{section.title}\n", style="bold")
            for line in section.keys:
                text.append(f"  {line.keys:<12} ", style="bold")
                text.append(line.what)
                if wide and line.id:
                    text.append(f"   {line.id}", style="dim")
                text.append("\n")
        if wide:
            words = "\nThe dim names are the ids for [keys] in the settings file."
            text.append(words, style="dim")
        text.rstrip()
        return text


class HelpKey(NamedTuple):
    """A line of the help: the keys, what they do, and the id for the config file."""

    keys: str
    what: str
    id: str


class HelpSection(NamedTuple):
    """Keys that belong together."""

    title: str
    keys: list[HelpKey]


def help_sections(screen: Any, display: Callable[[Any], str]) -> list[HelpSection]:
    """The keys that work now, the focused widget's first.

    Args:
        screen: The screen whose bindings are told.
        display: How a binding's key is written.
    """
    tables: dict[str, dict[str, list[Any]]] = {}
    for active in screen.active_bindings.values():
        node, binding = active.node, active.binding
        if binding.system or not binding.id or not (binding.tooltip or binding.description):
            continue
        title = "Everywhere" if node in (screen, screen.app) else _heading(node)
        by_action = tables.setdefault(title, {})
        by_action.setdefault(binding.action, []).append(binding)
    sections = []
    for title in sorted(tables, key=lambda title: title == "Everywhere"):
        keys = []
        for bindings in tables[title].values():
            shown = " ".join(dict.fromkeys(display(binding) for binding in bindings))
            first = bindings[0]
            keys.append(HelpKey(shown, first.tooltip or first.description, first.id or ""))
        sections.append(HelpSection(title, keys))
    return sections


def _heading(node: Any) -> str:
    named = getattr(node, "help_title", None)
    if named:
        return str(named)
    return f"In this step, {node.title}" if getattr(node, "title", "") else "Here"


_OPTION_COLUMNS = (
    Column("key", "", keep=3),
    Column("label", "", least=28, keep=3),
    Column("more", "", least=10, keep=1),
)


def _option_cells(option: Option) -> list[Cell]:
    return [(option.key, "accent"), (option.label, option.tone), (option.more, "muted")]

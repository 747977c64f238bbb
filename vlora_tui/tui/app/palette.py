"""The palette: everything that can be done or gone to by its name, one line each, in groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, ClassVar, NamedTuple

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Input

from vlora_tui.guides import guides
from vlora_tui.tui.adapters.places import place_words, recent_folders
from vlora_tui.tui.app.keymap import all_bindings
from vlora_tui.tui.key_names import key
from vlora_tui.tui.text import clean
from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.dialogs import Dialog
from vlora_tui.tui.widgets.table import Cell, Column, Table
from vlora_tui.tui.widgets.terms import TERMS
from vlora_tui.utils.config import SETTINGS

SHOWN = 300  # lines of the list
NAMES = 20_000  # adapters or tasks that are searched by name
COLUMNS = (
    Column("group", "", least=9, most=12, keep=1),
    Column("title", "", least=20, most=120, keep=3),
    Column("keys", "", most=14, right=True, keep=2),
)


class Entry(NamedTuple):
    """One line: what kind of thing it is, its words, its keys, and what is done."""

    group: str
    title: str
    keys: str
    run: Callable[[], Any]


class Palette(Dialog):
    """A line to type in above all entries; the result is the number of the one that was taken."""

    DEFAULT_CSS = """
    Palette > .box { width: 100; height: 80%; padding: 0 1; }
    Palette.-short > .box { height: 100%; max-height: 100%; max-width: 100%; width: 100%; }
    Palette Table { height: 1fr; margin-top: 1; }
    Palette.-short Table { margin-top: 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("escape", "cancel", "Back", "palette.cancel", "Close"),
        *(
            replace(hidden(keys, f"move({by})", f"palette.{name}"), priority=True)
            for keys, by, name in (
                ("up,ctrl+p", -1, "up"),
                ("down,ctrl+n", 1, "down"),
                ("pageup", -10, "page_up"),
                ("pagedown", 10, "page_down"),
            )
        ),
    ]

    def __init__(self, entries: Sequence[Entry]) -> None:
        super().__init__()
        self._entries = list(enumerate(entries))
        self._groups = list(dict.fromkeys(entry.group for entry in entries))
        self._first: set[int] = set()  # the first of each group: it says which it is

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = Text("Search everything")
            line = Input(placeholder="a step, command, job, adapter, task, folder, guide, setting",
                         compact=True)  # fmt: skip
            line.cursor_blink = False
            yield line
            yield Table(COLUMNS, self._cells, key=lambda found: str(found[0]), header=False,
                        loud=True)  # fmt: skip

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one(Input).focus()
        self._show("")

    def on_input_changed(self, event: Input.Changed) -> None:
        self._show(event.value)

    def on_input_submitted(self) -> None:
        self._take()

    def on_table_pressed(self) -> None:
        self._take()

    def action_move(self, by: int) -> None:
        """Another line."""
        table = self.query_one(Table)
        table.move_to(table.cursor + by)

    def _take(self) -> None:
        row = self.query_one(Table).row
        if row is not None:
            self.dismiss(str(row[0]))

    def _show(self, words: str) -> None:
        found = matching(self._entries, words, self._groups)
        groups = [entry.group for _, entry in found]
        self._first = {
            found[i][0] for i in range(len(found)) if i == 0 or groups[i] != groups[i - 1]
        }
        self.query_one(Table).show(found, cursor=0)

    def _cells(self, found: tuple[int, Entry]) -> list[Cell]:
        number, entry = found
        group = entry.group if number in self._first else ""
        return [(group, "muted"), (entry.title, ""), (entry.keys, "accent")]


def matching(
    entries: Iterable[tuple[int, Entry]], words: str, groups: Sequence[str]
) -> list[tuple[int, Entry]]:
    """The entries that have all words, group by group; the group of the best one comes first."""
    wanted = words.casefold().split()
    if not wanted:
        return list(islice(entries, SHOWN))
    scored = []
    for number, entry in entries:
        score = fitness(wanted, f"{entry.title} {entry.group}".casefold())
        if score is not None:
            scored.append((score, number, entry))
    # Letters that lie apart are looked for only where nothing has the words themselves.
    whole = WHOLE * len(wanted)
    if any(score >= whole for score, *_ in scored):
        scored = [row for row in scored if row[0] >= whole]
    best = dict.fromkeys(groups, -1.0)
    for score, _, entry in scored:
        best[entry.group] = max(best[entry.group], score)
    scored.sort(key=lambda s: (-best[s[2].group], groups.index(s[2].group), -s[0], s[1]))
    return [(number, entry) for _, number, entry in scored[:SHOWN]]


WHOLE = 70.0  # the least for a word that a text has as it is


def fitness(words: Sequence[str], text: str) -> float | None:
    """How well a text fits all words, each as a part of it or letter by letter; None if not."""
    total = 0.0
    for word in words:
        at = text.find(word)
        if at >= 0:
            starts = at == 0 or not text[at - 1].isalnum()
            total += WHOLE + 30 + 40 * starts - min(at, 30)
            continue
        first, last = -1, -1
        for letter in word:
            last = text.find(letter, last + 1)
            if last < 0:
                return None
            first = last if first < 0 else first
        total += max(1.0, 40.0 - (last - first - len(word)))
    return total


def palette_entries(app: Any) -> list[Entry]:
    """Everything that ``app``, a `BaseApp`, can do or go to; the nearest first."""
    found = [*_keys_here(app), *_steps(app), *_other_steps(app), *_jobs(app), *_things(app)]
    return [*found, *_places(app), *_reading(app), *_settings(app)]


def _keys_here(app: Any) -> Iterator[Entry]:
    """What has a key now."""
    seen: dict[tuple[Any, str], list[Binding]] = {}
    for active in app.screen.active_bindings.values():
        if active.enabled and not active.binding.system and active.binding.id:
            seen.setdefault((active.node, active.binding.action), []).append(active.binding)
    for (node, action), bindings in seen.items():
        first = bindings[0]
        if action in ("command_palette", "app.filter") or (first.id or "").startswith(
            ("table.", "step.")
        ):
            continue
        words = first.tooltip or first.description
        if words:
            keys = ", ".join(dict.fromkeys(app.get_key_display(b) for b in bindings))
            action = "leave(True)" if action == "leave" else action  # asks: it is the first line
            yield Entry("Here", words, keys, partial(app.run_action, action, node))


def _steps(app: Any) -> Iterator[Entry]:
    for step in app.steps:
        words = f"Go to step {step.key}, {step.name}"
        yield Entry("Steps", words, key(f"step.{step.id}"), partial(app.show_step, step.id))


def _other_steps(app: Any) -> Iterator[Entry]:
    """The commands of the other steps; taking one goes there first."""
    names = {step.id: step.name for step in app.steps if step.id != getattr(app.view, "id", "")}
    for binding_id, (_, binding) in all_bindings().items():
        step = binding_id.partition(".")[0]
        words = binding.tooltip or binding.description
        if step in names and words and binding.action != "app.filter":
            run = partial(_at_step, app, step, binding.action)
            yield Entry(names[step], words, key(binding_id), run)


async def _at_step(app: Any, step: str, action: str) -> None:
    await app.show_step(step)
    if app.view is not None:
        await app.run_action(action, app.view)


def _jobs(app: Any) -> Iterator[Entry]:
    for view in app.jobs.views:
        words = f"{clean(view.title)}, {view.state}"
        run = partial(_at_row, app, "run", "#jobs", view.job.id)
        yield Entry("Jobs", words, view.job.id[-4:], run)


def _things(app: Any) -> Iterator[Entry]:
    """Adapters and tasks by name."""
    for path, info in islice(app.session.infos.items(), NAMES):
        run = partial(_at_row, app, "adapters", "#adapters-table", path)
        yield Entry("Adapters", clean(info.name), "", run)
    tasks = app.session.manifest.tasks if app.session.manifest is not None else ()
    for task in islice(tasks, NAMES):
        yield Entry("Tasks", clean(task), "", partial(_at_row, app, "export", "#item-table", task))


async def _at_row(app: Any, step: str, table: str, row: str) -> None:
    """Go to a step, and put the cursor of its table on a row."""
    await app.show_step(step)
    if app.view is not None:
        if step == "adapters":
            app.view.find(row)
        else:
            app.view.query_one(table, Table).find(row)


def _places(app: Any) -> Iterator[Entry]:
    for folder in recent_folders():
        yield Entry("Folders", place_words(folder), "", partial(app.show_adapters, [folder]))


def _reading(app: Any) -> Iterator[Entry]:
    """Guides, and what words mean."""
    for page in guides():
        yield Entry("Guides", f"Guide: {page.title}", "", partial(app.show_guide, page.name))
    for term in TERMS:
        yield Entry("Terms", f"What is {term.name}?", "", partial(app.show_terms, term.name))


def _settings(app: Any) -> Iterator[Entry]:
    yield Entry("Settings", "Edit the settings", "", app.edit_settings)
    yield Entry("Settings", "Where the settings are", "", app.say_settings)
    for name in sorted(app.available_themes):
        if name != app.theme and (not app.no_color or name.startswith("ansi")):
            words = f"Theme: {name}"
            yield Entry("Settings", words, "", partial(setattr, app, "theme", name))
    for setting in SETTINGS:
        value = str(app.config[setting.name])
        words = f"{setting.name}: {setting.help} (now {value.lower() or 'empty'})"
        yield Entry("Settings", words, "", app.say_settings)

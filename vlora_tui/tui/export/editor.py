"""The keys and inputs that change Export's settings: target, weights, typed values."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from vlora_tui.tui.export.form_rows import edit_of, edited, turned
from vlora_tui.tui.export.merge import MethodBox, wrong_in
from vlora_tui.tui.export.recipes import parse_weight
from vlora_tui.tui.export.settings import Settings, weights_of
from vlora_tui.tui.key_names import key
from vlora_tui.tui.text import clean
from vlora_tui.tui.widgets.dialogs import Prompt

if TYPE_CHECKING:
    from textual.widget import Widget

    from vlora_tui.tui.export.items import ItemsPane

OUTPUT_SETTING = {
    "export": "out", "merge": "merged", "resize": "resized", "convert": "converted"
}  # fmt: skip
STEP = 0.05  # of a weight


class SettingsEditor:
    """Changes what Export is told to do, by keys and by the lines of its form.

    Args:
        view: Asks its questions.
        items: What is marked, and the cursor on it.
        edited: Called with every change.
    """

    def __init__(self, view: Widget, items: ItemsPane, edited: Callable[[], None]) -> None:
        self.settings = Settings()
        self._view = view
        self._items = items
        self._edited = edited

    @property
    def _marked(self) -> list[str]:
        return list(self._items.marked)

    # the form

    def turn_value(self, key: str, by: int) -> None:
        """Go to the next of a setting's values."""
        self.take(turned(self.settings, key, by))

    def edit(self, key: str) -> None:
        """Ask for a setting."""
        edit = edit_of(self.settings, key, self._marked)

        def answered(text: str | None) -> None:
            if text is not None:
                self.take(edited(self.settings, key, text, self._marked))

        prompt = Prompt(
            edit.title, edit.words, edit.value, check=lambda text: edit.wrong(text) or None
        )
        self._view.app.push_screen(prompt, answered)

    def take(self, settings: Settings) -> None:
        """These are the settings from now on."""
        self.settings = settings
        self._edited()

    # keys: weights

    def weigh(self, by: int) -> None:
        """Move the weight of the line a step."""
        name = self._weighed()
        if name is not None:
            now = dict(zip(self._marked, weights_of(self.settings, self._marked), strict=True))
            self.take(self.settings.with_weight(name, round(now[name] + STEP * by, 6)))

    def type_weight(self) -> None:
        """Type the weight of the line."""
        name = self._weighed()
        if name is None:
            return
        weight = self.settings.weights.get(name)

        def answered(text: str | None) -> None:
            if text is not None:
                self.take(self.settings.with_weight(name, parse_weight(text)))

        prompt = Prompt(
            f"Weight of {clean(name)}",
            "Any number; empty: the method's own.",
            "" if weight is None else f"{weight:g}",
            check=lambda text: wrong_in(lambda: parse_weight(text)) or None,
        )
        self._view.app.push_screen(prompt, answered)

    def _weighed(self) -> str | None:
        """The marked item under the cursor, where its weight matters."""
        item = self._items.table.row
        if self.settings.doing != "merge":
            self._view.notify(
                f"Weights apply to merge only ({key('export.turn')} switches).", markup=False
            )
        elif item is None or item.name not in self._marked:
            self._view.notify(
                f"This row is not marked ({key('export.mark')} marks it).", markup=False
            )
        else:
            return item.name
        return None

    # keys: settings

    def next_dtype(self) -> None:
        """The next dtype."""
        if self.settings.doing in ("resize", "convert"):
            self._view.notify("This action keeps the dtype.", markup=False)
        else:
            self.turn_value("dtype", 1)

    def next_target(self, by: int) -> None:
        """The next target."""
        if self.settings.doing != "export":
            self._view.notify(
                f"Targets apply to export only ({key('export.turn')} switches).", markup=False
            )
        else:
            self.turn_value("target", by)

    def ask_output(self) -> None:
        """Ask where it goes."""
        self.edit(OUTPUT_SETTING[self.settings.doing])

    def ask_method(self) -> None:
        """All ways of merging, to choose one."""

        def answered(name: str | None) -> None:
            if name is not None:
                self.take(replace(self.settings, doing="merge").with_method(name))

        self._view.app.push_screen(MethodBox(self.settings.method), answered)

    def settle_seed(self) -> None:
        """Draw the seed of a merge that has none, so that what is measured is what is written."""
        settings = self.settings
        draws = any(parameter.name == "seed" for parameter in settings.spec.parameters)
        if settings.doing == "merge" and draws and not settings.parameters.get("seed", "").strip():
            self.take(settings.with_parameter("seed", str(secrets.randbelow(1 << 31))))

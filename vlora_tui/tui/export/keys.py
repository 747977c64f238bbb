"""The keys and lines by which Export is told what to do: settings, weights, what is typed."""

from __future__ import annotations

import secrets
from dataclasses import replace

from vlora_tui.tui.export.form_rows import edit_of, edited, turned
from vlora_tui.tui.export.merge import wrong_in
from vlora_tui.tui.export.recipes import parse_weight
from vlora_tui.tui.export.settings import Item, Settings, weights_of
from vlora_tui.tui.export.worker import ExportWork
from vlora_tui.tui.text import clean
from vlora_tui.tui.widgets.form import Form

PLACE_OF = {"export": "out", "merge": "merged", "resize": "resized"}
STEP = 0.05  # of a weight


class ExportAsking(ExportWork):
    """A view whose settings are changed by keys and by its form.

    ``_edited`` is called with every change.
    """

    def _edited(self) -> None:
        """Something else is asked for."""
        raise NotImplementedError

    def action_start(self) -> None:
        """Do it."""
        raise NotImplementedError

    @property
    def _item(self) -> Item | None:
        """The item under the cursor."""
        raise NotImplementedError

    # the form

    def on_form_turned(self, event: Form.Turned) -> None:
        self._turn_value(event.key, event.by)

    def on_form_pressed(self, event: Form.Pressed) -> None:
        if event.key == "start":
            self.action_start()
        elif event.key == "method":
            self.action_methods()
        else:
            self._edit(event.key)

    def _turn_value(self, key: str, by: int) -> None:
        self._take(turned(self._settings, key, by))

    def _edit(self, key: str) -> None:
        from vlora_tui.tui.widgets.dialogs import Prompt

        edit = edit_of(self._settings, key, self._marked)

        def answered(text: str | None) -> None:
            if text is not None:
                self._take(edited(self._settings, key, text, self._marked))

        prompt = Prompt(
            edit.title, edit.words, edit.value, check=lambda text: edit.wrong(text) or None
        )
        self.app.push_screen(prompt, answered)

    def _take(self, settings: Settings) -> None:
        self._settings = settings
        self._edited()

    # keys: weights

    def action_weigh(self, by: int) -> None:
        """Move the weight of the line a step."""
        name = self._weighed()
        if name is not None:
            now = dict(zip(self._marked, weights_of(self._settings, self._marked), strict=True))
            self._take(self._settings.with_weight(name, round(now[name] + STEP * by, 6)))

    def action_type_weight(self) -> None:
        """Type the weight of the line."""
        from vlora_tui.tui.widgets.dialogs import Prompt

        name = self._weighed()
        if name is None:
            return
        own = self._settings.weights.get(name)

        def answered(text: str | None) -> None:
            if text is not None:
                self._take(self._settings.with_weight(name, parse_weight(text)))

        prompt = Prompt(
            f"Weight of {clean(name)}",
            "Any number; empty: the method's own.",
            "" if own is None else f"{own:g}",
            check=lambda text: wrong_in(lambda: parse_weight(text)) or None,
        )
        self.app.push_screen(prompt, answered)

    def _weighed(self) -> str | None:
        """The marked item under the cursor, where its weight matters."""
        item = self._item
        if self._settings.doing != "merge":
            self.notify("Only a merge has weights: m.", markup=False)
        elif item is None or item.name not in self._marked:
            self.notify("This line is not marked; space marks it.", markup=False)
        else:
            return item.name
        return None

    # keys: settings

    def action_turn(self) -> None:
        """Between exporting, merging and resizing."""
        self._turn_value("doing", 1)

    def action_verify(self) -> None:
        """Read back, or not."""
        self._turn_value("verify", 1)

    def action_dtype(self) -> None:
        """The next dtype."""
        if self._settings.doing == "resize":
            self.notify("Another rank keeps the dtype.", markup=False)
        else:
            self._turn_value("dtype", 1)

    def action_target(self, by: int) -> None:
        """The next target."""
        if self._settings.doing != "export":
            self.notify("Only an export has a target: m.", markup=False)
        else:
            self._turn_value("target", by)

    def action_place(self) -> None:
        """Ask where it goes."""
        self._edit(PLACE_OF[self._settings.doing])

    def action_methods(self) -> None:
        """All ways of merging, to choose one."""
        from vlora_tui.tui.export.merge import MethodBox

        def answered(name: str | None) -> None:
            if name is not None:
                self._take(replace(self._settings, doing="merge").with_method(name))

        self.app.push_screen(MethodBox(self._settings.method), answered)

    def _settle_seed(self) -> None:
        """Draw the seed of a merge that has none, so that what is measured is what is written."""
        settings = self._settings
        draws = any(parameter.name == "seed" for parameter in settings.spec.parameters)
        if settings.doing == "merge" and draws and not settings.parameters.get("seed", "").strip():
            self._take(settings.with_parameter("seed", str(secrets.randbelow(1 << 31))))

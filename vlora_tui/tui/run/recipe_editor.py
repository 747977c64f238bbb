"""The recipe in the user's editor: the interface waits, then takes back what was saved."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text
from textual.app import SuspendNotSupported

from vlora_engine.errors import VLoRAError
from vlora_tui.recipe.model import Input, Recipe
from vlora_tui.recipe.reader import load_recipe
from vlora_tui.recipe.resolve import resolve
from vlora_tui.tui.core.messages import ChoiceChanged
from vlora_tui.tui.run.job_text import goal_words, packing_words
from vlora_tui.tui.text import advice, clean, plural, problem_words, tilde
from vlora_tui.tui.widgets.dialogs import ListProblems, Option
from vlora_tui.utils.editor import editor

if TYPE_CHECKING:
    from vlora_tui.tui.run.desk import Desk

AGAIN, DISCARD = "again", "discard"


class RecipeEditor:
    """Opens the recipe of the review in an editor.

    What the screens can show of the saved recipe they show; any other recipe is kept as it is, and
    started so.

    Args:
        view: Lends the screen, and shows what is wrong.

    Attributes:
        recipe: The recipe that was saved, where the screens cannot show all of it.
    """

    def __init__(self, view: Desk) -> None:
        self.recipe: Recipe | None = None
        self._view = view

    def forget(self) -> None:
        """Something else is chosen: the edited recipe no longer says what is to be done."""
        self.recipe = None

    def edit(self) -> None:
        """Open the recipe; take back what was saved."""
        recipe = self.recipe or self._of_session()
        if recipe is None:
            words = "Mark adapters or open a subspace first: a recipe needs inputs."
            self._view.notify(words, severity="warning", markup=False)
            return
        self._edit(recipe.to_toml())

    def review(self, recipe: Recipe) -> Text:
        """What the edited recipe does."""
        source = recipe.input.subspace
        text = Text("recipe    edited\n", "bold")
        count = plural(len(recipe.input.adapters), "adapter")
        text.append(f"input     {tilde(source) if source else count}\n")
        if recipe.compress is not None:
            target = recipe.compress.target
            text.append(f"compress  {target.method}, {goal_words(target)}\n")
        if recipe.quantize is not None:
            text.append(f"quantize  {packing_words(recipe.quantize.quantization().as_json())}\n")
        if recipe.output is not None:
            text.append(f"output    {tilde(recipe.output)}\n")
        for step in recipe.written:
            text.append(f"{type(step).__name__.lower():<10}{tilde(step.path)}\n")
        for push in recipe.pushes:
            text.append(f"push      {clean(push.repo)} on the Hub\n", "bold")
        return text

    def _of_session(self) -> Recipe | None:
        session = self._view.session
        if session.marked:
            return session.recipe()
        if session.manifest is not None:
            return Recipe(Input(subspace=str(session.manifest.path.absolute())))
        return None

    def _edit(self, text: str, *, again: bool = False) -> None:
        """Let the user edit a text; one that was wrong is judged even if it was not changed."""
        words, _ = editor()
        if not words:
            self._view.host.complain("No editor was found: set EDITOR, for example to nano.")
            return
        try:
            with tempfile.TemporaryDirectory(prefix="vlora-recipe-") as folder:
                path = Path(folder) / "recipe.toml"
                path.write_text(text, "utf-8")
                with self._view.app.suspend():
                    code = subprocess.run([*words, str(path)]).returncode
                saved = path.read_text("utf-8")
                if code:
                    self._wrong(saved, f"The editor ended with exit code {code}.", "")
                    return
                if saved != text or again:
                    self._take(path, saved)
        except SuspendNotSupported:
            self._view.host.complain("This terminal cannot be lent to an editor.")
        except (OSError, UnicodeDecodeError) as error:
            self._view.host.complain(f"The recipe cannot be edited: {problem_words(error)}")

    def _take(self, path: Path, saved: str) -> None:
        """Take the saved recipe, or say what is wrong with it and where."""
        try:
            recipe = resolve(load_recipe(path))
        except VLoRAError as error:
            where = str(error.where or "").replace(str(path), "recipe.toml")
            parts = [where, f"found: {error.found}" if error.found else ""]
            parts.append(f"expected: {error.expected}" if error.expected else "")
            parts.append(f"fix: {advice(error.remedy)}" if error.remedy else "")
            self._wrong(saved, error.what, "\n".join(part for part in parts if part))
            return
        self.recipe = None
        if self._show(recipe):
            self._view.post_message(ChoiceChanged())
        else:
            self.recipe = recipe
            self._view.redraw()
        self._view.go_to_pane("run-review")

    def _show(self, recipe: Recipe) -> bool:
        """Let the screens show the recipe; False where they cannot show all of it."""
        session = self._view.session
        compress = recipe.compress
        if compress is None or not session.marked:
            return False
        before = (session.output, session.exports, session.device, session.skip_bad)
        choosing = session.choosing
        session.choose(compress.target)
        session.output, session.exports = recipe.output, recipe.exports
        session.device, session.skip_bad = compress.device, recipe.input.skip_bad
        if _same(session.recipe(), recipe):
            return True
        session.choose(choosing)
        session.output, session.exports, session.device, session.skip_bad = before
        return False

    def _wrong(self, saved: str, what: str, more: str) -> None:
        options = [
            Option("e", "edit again", AGAIN),
            Option("x", "discard the changes", DISCARD),
        ]

        def answered(answer: str | None) -> None:
            if answer == AGAIN:
                self._view.call_later(partial(self._edit, saved, again=True))

        problems = [(what, more.splitlines())]
        words = "The recipe was not taken."
        self._view.app.push_screen(ListProblems("Recipe", words, problems, options), answered)


def _same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes do the same, whatever their defaults are called."""

    def plain(recipe: Recipe) -> Recipe:
        compress = recipe.compress
        if compress is None:
            return recipe
        return replace(recipe, compress=replace(compress, target=compress.target.checked()))

    return plain(one) == plain(other)

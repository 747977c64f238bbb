"""The keys of Choose k that change the choice; where one has no meaning, it says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vlora_engine.compression_target import DEFAULT_MAX_ERROR, CompressionTarget
from vlora_engine.quantization.dtypes import (
    AUTO_DTYPE,
    DTYPE_WORDS,
    STORAGE_DTYPES,
    storage_dtype,
)
from vlora_tui.tui.choose.data import PRESETS, LayerTables, Shown
from vlora_tui.tui.choose.questions import question
from vlora_tui.tui.choose.target_steps import LEAST_ERROR, MOST_ERROR, moved
from vlora_tui.tui.choose.worker import BackgroundFigures
from vlora_tui.tui.core.session import MAX_PINS, Figures, Session
from vlora_tui.tui.widgets.ask import Question

# fp16 first, as it is mostly the one that is wanted
DTYPE_RING = (AUTO_DTYPE, *sorted(STORAGE_DTYPES, key=lambda word: word != "fp16"))
BY_EIGHT = 4  # rungs of a target that a key moves which moves k by eight


class ChoiceEditor:
    """Changes the choice as the keys of Choose k ask; where one has no meaning, it says so.

    Args:
        figures: What the keys work on.
        say: Shows a word about a key that did nothing.
        redraw: Draws what was changed.

    Attributes:
        shown: How the screen shows the choice.
    """

    def __init__(
        self,
        session: Session,
        figures: BackgroundFigures,
        say: Callable[[str], None],
        redraw: Callable[[], None],
    ) -> None:
        self.shown = Shown()
        self._session = session
        self._figures = figures
        self._say = say
        self._redraw = redraw
        # a coded choice, and what it was made from
        self._with_k: tuple[CompressionTarget, CompressionTarget] | None = None

    # k and targets

    def move_k(self, step: int) -> None:
        """Move k by so many in every layer, or the focused layer's own; where a target is aimed
        at, that by so many steps. What is stored, and how, stays.
        """
        tables = self.ready()
        if tables is None:
            return
        now, layer = self._session.choosing, self.shown.layer
        if self.shown.editing and layer is not None:
            k = now.layers.get(layer) or tables.k_of(layer, self._figures.last)
            top = tables.layer_top(layer, now.method)
            self.choose(now.with_layer(layer, min(max(1, k + step), top)))
        elif now.goal[0] == "k":
            self.choose(shifted(now, step, tables.top(now.method)))
        else:
            rungs = 1 if abs(step) == 1 else BY_EIGHT
            self.move_target(-rungs if step > 0 else rungs)

    def move_target(self, step: int) -> None:
        """Move what is aimed at: k or the target, with a positive ``step`` to fewer bytes."""
        tables, now = self.ready(), self._session.choosing
        if tables is None:
            return
        name, value = moved(now.goal, step)
        if name == "k":
            self.choose(shifted(now, -step, tables.top(now.method)))
        else:
            self.choose(now.with_goal(name, value))

    def take_preset(self, number: int) -> None:
        """Aim at the worst error of a preset."""
        if self.ready() is not None:
            self.choose(self._session.choosing.with_goal("max_error", PRESETS[number]))

    def go_to_k(self) -> None:
        """From a coded choice to the k of a basis that reaches the same error."""
        tables = self.ready()
        if tables is None:
            return
        figures = self._figures.last
        now = self._session.choosing
        prediction = None if figures is None else figures.prediction
        if prediction is None and self._figures.sizes is not None:
            estimate = self._figures.sizes.estimate(now)
            prediction = None if estimate is None else estimate.prediction
        error = prediction.max_error if prediction is not None else now.error or DEFAULT_MAX_ERROR
        self.shown = replace(self.shown, editing=False, opened=False)
        chosen = k_at_error(self._session, tables, error)
        self._with_k = now, chosen
        self.choose(chosen)

    def question(self, what: str) -> Question | None:
        """What to ask for a value; None where it cannot be given."""
        tables = self.ready()
        if tables is None:
            return None
        return question(what, tables, self.shown, self._session, self._figures.last)

    def answer(self, what: str, value: Any) -> None:
        """Take what was typed."""
        now, layer = self._session.choosing, self.shown.layer
        if what == "filter":
            self.show_as(pattern=value, editing=False)
        elif what == "k" and self.shown.editing and layer is not None:
            self.choose(now.with_layer(layer, value))
        elif what == "k":
            self.choose(with_k(now, value, self._figures.last))
        else:
            self.choose(now.with_goal(what, value))

    def next_method(self) -> None:
        """The next method that the spectra can tell of."""
        tables = self.ready()
        if tables is None:
            return
        now = self._session.choosing
        ring = [m for m in self._session.methods if m != now.method]
        if now.method in self._session.methods:
            at = self._session.methods.index(now.method)
            ring = [*ring[at:], *ring[:at]]
        chosen = as_method(now, ring[0], self._figures.last, self._with_k)
        if chosen.is_coded and not now.is_coded:
            self._with_k = chosen, now
        self.shown = replace(self.shown, editing=False, opened=False)
        self.choose(tables.within(chosen))

    def next_dtype(self) -> None:
        """The next dtype to store in."""
        now = self._session.choosing
        if self.ready() is None:
            return
        if now.is_coded:
            self._say(f"{self._has_no('dtype')} It gives every number the bits it needs.")
            return
        ring = DTYPE_RING
        self.choose(replace(now, dtype=ring[(ring.index(now.dtype) + 1) % len(ring)]))

    # a layer's own k

    def toggle_layer_k(self) -> None:
        """Start or end giving the focused layer a k of its own."""
        tables, layer = self.ready(), self.shown.layer
        if tables is None or layer is None:
            return
        if self._session.choosing.is_coded:
            self._say(f"{self._has_no('k')} Press = for the k of delta at this error.")
            return
        self.shown = replace(self.shown, editing=not self.shown.editing)
        if self.shown.editing and layer not in self._session.choosing.layers:
            k = max(1, tables.k_of(layer, self._figures.last))
            self.choose(self._session.choosing.with_layer(layer, k))
        else:
            self._redraw()

    def clear_layer_k(self) -> None:
        """Let the focused layer follow the others again."""
        layer = self.shown.layer
        self.shown = replace(self.shown, editing=False)
        if layer is not None and layer in self._session.choosing.layers:
            self.choose(self._session.choosing.with_layer(layer, None))
        else:
            self._say("This layer has no k of its own. Enter sets one.")
            self._redraw()

    # back, beside, on

    def undo(self) -> None:
        """Take the last change of the choice back."""
        if self._session.undo():
            self._redraw()
        else:
            self._say("Nothing to undo.")

    def pin(self) -> None:
        """Keep the present choice for comparison, or let go of it."""
        if self.ready() is None:
            return
        if not self._session.pin():
            self._say(
                f"{MAX_PINS} choices are pinned. Take one (Tab to the figures, Enter) "
                "and press p to unpin it."
            )
        self._redraw()

    # what they have in common

    def choose(self, choosing: CompressionTarget) -> None:
        """Make this the present choice."""
        self._session.choose(choosing)
        self._redraw()

    def show_as(self, **changes: Any) -> None:
        """Show the same choice in another way."""
        self.shown = replace(self.shown, **changes)
        self._redraw()

    def ready(self) -> LayerTables | None:
        """What the keys work on, or a word why they cannot."""
        if self._figures.tables is None:
            self._say("No layer is measured yet.")
        return self._figures.tables

    def _has_no(self, what: str) -> str:
        return f"{self._session.choosing.method} has no {what}."


def shifted(now: CompressionTarget, step: int, top: int) -> CompressionTarget:
    """The same with k so many more in every layer, those that layers have of their own too."""

    def more(k: int) -> int:
        return min(max(1, k + step), top)

    layers = {name: more(k) for name, k in now.layers.items()}
    if now.k_a is not None and now.k_b is not None:
        return replace(now, k_a=more(now.k_a), k_b=more(now.k_b), layers=layers)
    return replace(now.with_goal("k", more(int(now.goal[1]))), layers=layers)


def with_k(now: CompressionTarget, k: int, figures: Figures | None) -> CompressionTarget:
    """The same with this k in every layer, stored as it was for its target."""
    dtype = now.dtype
    is_of_now = figures is not None and figures.choosing == now
    if dtype == AUTO_DTYPE and is_of_now and figures is not None and figures.choice is not None:
        dtype = DTYPE_WORDS[figures.choice.dtype]
    return replace(now.with_goal("k", k), dtype=dtype)


def k_at_error(session: Session, tables: LayerTables, error: float) -> CompressionTarget:
    """The least k of a basis with which no adapter's error is above this; else the largest."""
    method = tables.basis("")
    aim = CompressionTarget(method, max_error=min(max(error, LEAST_ERROR), MOST_ERROR))
    tasks = session.spectra.tasks if session.spectra is not None else []
    stored = storage_dtype(aim.dtype, (task.dtype for task in tasks), lossy=aim.lossy)
    target = CompressionTarget(method, k=1, dtype=DTYPE_WORDS[stored])
    low, high = 1, tables.top(method)
    while low < high:
        middle = (low + high) // 2
        prediction = session.figures(target.with_goal("k", middle)).prediction
        reached = prediction is not None and prediction.max_error <= error
        low, high = (low, middle) if reached else (middle + 1, high)
    return target.with_goal("k", low)


def as_method(
    now: CompressionTarget,
    method: str,
    figures: Figures | None,
    with_k: tuple[CompressionTarget, CompressionTarget] | None,
) -> CompressionTarget:
    """The present choice with another method, as far as that has the same things.

    Coding has no k: a k becomes the worst error that it leads to. Back on a method with a k, what
    was chosen before is there again (``with_k``: a coded choice and what it was made from), unless
    the target was moved meanwhile.
    """
    coded = replace(now, method=method).is_coded
    if now.is_coded and not coded:
        if with_k is not None and with_k[0].goal == now.goal:
            return replace(with_k[1], method=method)
        return replace(now, method=method)
    if not coded or now.is_coded:
        return replace(now, method=method)
    name, value = now.goal
    if name == "k":
        prediction = None if figures is None else figures.prediction
        error = DEFAULT_MAX_ERROR if prediction is None else float(f"{prediction.max_error:.2g}")
        name, value = "max_error", min(max(error, 0.001), 0.9)
    return CompressionTarget(method).with_goal(name, value)

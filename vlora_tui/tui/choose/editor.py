"""The keys of Choose k that change the choice; where one has no meaning, it says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vlora_engine.compression_target import (
    DEFAULT_MAX_ERROR,
    CompressionTarget,
    LayerK,
    one_k,
)
from vlora_engine.quantization.dtypes import AUTO_DTYPE, DTYPE_WORDS, STORAGE_DTYPES
from vlora_tui.tui.choose.data import PRESETS, LayerTables, Shown
from vlora_tui.tui.choose.questions import BY_LAYER, question
from vlora_tui.tui.choose.target_steps import LEAST_ERROR, MOST_ERROR, moved
from vlora_tui.tui.choose.text import spread
from vlora_tui.tui.choose.worker import BackgroundFigures
from vlora_tui.tui.core.session import MAX_PINS, Figures, Session
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.widgets.ask import Question

# fp16 first, as it is mostly the one that is wanted
DTYPE_RING = (AUTO_DTYPE, *sorted(STORAGE_DTYPES, key=lambda word: word != "fp16"))
MOVED = 400  # choices of which it is known from where k was moved
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
        # choices that were made by moving k: from which one, and by how much
        self._moved: dict[CompressionTarget, tuple[CompressionTarget, int]] = {}

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
            k = now.layers.get(layer) or tables.layer_k(layer, self._figures.last)
            limits = tables.layer_limits(layer, now.method)
            self.choose(now.with_layer(layer, moved_k(k, step, limits)))
        elif now.goal[0] == "k":
            self._shift(tables, step)
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
            self._shift(tables, -step)
        else:
            self.choose(now.with_goal(name, value))

    def _shift(self, tables: LayerTables, step: int) -> None:
        """Move k in every layer; one that stopped at a limit comes back in step with the others."""
        now = self._session.choosing
        start, by = self._moved.get(now, (now, 0))
        least, most = room(tables, start)
        to = min(max(by + step, least), most)
        moved = shifted(tables, start, to)
        if moved == now:
            return  # all are at their limits
        if len(self._moved) > MOVED:
            self._moved.clear()
        self._moved |= {now: (start, by), moved: (start, to)}
        self.choose(moved)

    def take_preset(self, number: int) -> None:
        """Aim at the worst error of a preset."""
        tables = self.ready()
        if tables is not None:
            self.choose(tables.aimed(self._session.choosing, "max_error", PRESETS[number]))

    def go_to_k(self) -> None:
        """From a coded choice to the k of a basis, by layer, that reaches the same error in the
        fewest bytes.
        """
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
        error = min(max(float(f"{error:.4g}"), LEAST_ERROR), MOST_ERROR)
        method = tables.basis("")

        def take(found: Figures) -> None:
            if self._session.choosing != now:
                return  # another key came meanwhile
            chosen = by_layer(found)
            if chosen is None:  # nothing that was kept of the directions reaches it
                chosen = CompressionTarget(method).with_goal("k", tables.top(method))
            self.shown = replace(self.shown, editing=False, opened=False)
            self._with_k = now, chosen
            self.choose(chosen)

        self._figures.when_known(CompressionTarget(method, max_error=error), take)

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
        elif what == "k" and value == BY_LAYER:
            self._keep_k()
        elif what == "k":
            self.choose(with_k(now, value, self._figures.last))
        elif (tables := self._figures.tables) is not None:
            self.choose(tables.aimed(now, what, value))

    def _keep_k(self) -> None:
        """Fix the k that the target leads to in every layer."""
        now = self._session.choosing
        if now.goal[0] == "k":
            return

        def take(found: Figures) -> None:
            chosen = by_layer(found)
            if chosen is not None and self._session.choosing == now:
                self.choose(chosen)

        self._figures.when_known(now, take)

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
            words = keyed("Press <choose.k> for the k of delta at this error.")
            self._say(f"{self._has_no('k')} {words}")
            return
        self.shown = replace(self.shown, editing=not self.shown.editing)
        if self.shown.editing and layer not in self._session.choosing.layers:
            k = tables.layer_k(layer, self._figures.last)
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
            self._say(keyed("This module has no k of its own. <choose.open> sets one."))
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
                keyed(
                    f"{MAX_PINS} choices are pinned. Take one (<choose.next_pane> to the figures, "
                    "<figures.take>) and press <choose.pin> to unpin it."
                )
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
            self._say("No module is measured yet.")
        return self._figures.tables

    def _has_no(self, what: str) -> str:
        return f"{self._session.choosing.method} has no {what}."


def shifted(tables: LayerTables, start: CompressionTarget, step: int) -> CompressionTarget:
    """A choice of k with so many more directions in every layer, in those of their own k too.

    A layer stops at 1 and at all it has.
    """
    top, method = tables.top(start.method), start.method
    layers = {
        name: moved_k(k, step, tables.layer_limits(name, method))
        for name, k in start.layers.items()
    }
    k_a, k_b = (min(max(1, k + step), top) for k in start.fixed_pair or (1, 1))
    if start.k is not None:
        return replace(start, k=k_a, layers=layers)
    return replace(start, k_a=k_a, k_b=k_b, layers=layers)


def room(tables: LayerTables, start: CompressionTarget) -> tuple[int, int]:
    """How far k can be moved down and up before the last layer has reached its limit."""
    top = tables.top(start.method)
    sides = [(k, top) for k in start.fixed_pair or (1, 1)]
    for name, k in start.layers.items():
        limits = tables.layer_limits(name, start.method)
        sides += [(k, max(limits))] if isinstance(k, int) else zip(k, limits, strict=True)
    return min(1 - k for k, _ in sides), max(limit - k for k, limit in sides)


def moved_k(k: LayerK, step: int, limits: tuple[int, int]) -> LayerK:
    """The k of a layer so many further on, within what its sides have."""
    if isinstance(k, int):
        return min(max(1, k + step), max(limits))
    k_a, k_b = (min(max(1, one + step), limit) for one, limit in zip(k, limits, strict=True))
    return one_k((k_a, k_b))


def by_layer(figures: Figures) -> CompressionTarget | None:
    """The k that a target led to, given outright and stored as it was; None where it led to none.

    k itself is for layers that are not measured yet.
    """
    if figures.choice is None:
        return None
    middle, _, _ = spread(figures)
    return replace(
        figures.choosing.with_goal("k", middle),
        layers={name: one_k(k) for name, k in figures.choice.k.items()},
        dtype=DTYPE_WORDS[figures.choice.dtype],
    )


def with_k(now: CompressionTarget, k: int, figures: Figures | None) -> CompressionTarget:
    """The same with this k in every layer that has none of its own, stored as it was."""
    dtype = now.dtype
    is_of_now = figures is not None and figures.choosing == now
    if dtype == AUTO_DTYPE and is_of_now and figures is not None and figures.choice is not None:
        dtype = DTYPE_WORDS[figures.choice.dtype]
    layers = now.layers if layers_left(now, figures) else {}
    return replace(now.with_goal("k", k), dtype=dtype, layers=layers)


def layers_left(now: CompressionTarget, figures: Figures | None) -> bool:
    """Whether any layer has no k of its own, so that a k for the others means something."""
    known = {} if figures is None or figures.choice is None else figures.choice.k
    return not known or not known.keys() <= now.layers.keys()


def as_method(
    now: CompressionTarget,
    method: str,
    figures: Figures | None,
    with_k: tuple[CompressionTarget, CompressionTarget] | None,
) -> CompressionTarget:
    """The present choice with another method, as far as that has the same things.

    Coding has no k: a k becomes the worst error that it leads to, and so does one of single layers,
    which another method needs otherwise. Back on a method with a k, what
    was chosen before is there again (``with_k``: a coded choice and what it was made from), unless
    the target was moved meanwhile.
    """
    coded = replace(now, method=method).is_coded
    if now.is_coded and not coded:
        before = with_k[1] if with_k is not None and with_k[0].goal == now.goal else None
        if before is not None and (not before.layers or before.method == method):
            return replace(before, method=method)
        return replace(now, method=method)
    if now.is_coded or (not coded and not now.layers):
        return replace(now, method=method)
    if coded and with_k is not None and with_k[1] == now:
        return replace(with_k[0], method=method)
    name, value = now.goal
    if name == "k":
        prediction = None if figures is None else figures.prediction
        error = DEFAULT_MAX_ERROR if prediction is None else float(f"{prediction.max_error:.2g}")
        name, value = "max_error", min(max(error, 0.001), 0.9)
    if not coded:  # k of single layers is of the method that it was chosen for
        return replace(now, method=method, layers={}).with_goal(name, value)
    return CompressionTarget(method).with_goal(name, value)

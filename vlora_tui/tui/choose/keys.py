"""The keys of Choose k that change the choice; where one has no meaning, it says so."""

from __future__ import annotations

from dataclasses import replace

from vlora_engine.compression_target import DEFAULT_MAX_ERROR, CompressionTarget
from vlora_engine.quantization.dtypes import AUTO_DTYPE, STORAGE_DTYPES
from vlora_engine.quantization.packing import PACKINGS
from vlora_tui.tui.choose.data import Atlas
from vlora_tui.tui.choose.questions import question
from vlora_tui.tui.choose.target_steps import moved
from vlora_tui.tui.choose.worker import Figuring
from vlora_tui.tui.core.session import MAX_PINS, Figures
from vlora_tui.tui.widgets.ask import AskLine

# fp16 first, as it is mostly the one that is wanted
DTYPE_RING = (AUTO_DTYPE, *sorted(STORAGE_DTYPES, key=lambda word: word != "fp16"))
BY_EIGHT = 4  # rungs of a target that a key moves which moves k by eight


class Moves(Figuring):
    """Every action that changes the choice, and what they have in common."""

    _with_k: tuple[CompressionTarget, CompressionTarget] | None = (
        None  # a coded choice, and what it was made from
    )

    # k and targets

    def action_k(self, step: int) -> None:
        """Move k, or the focused layer's own; where there is no k, the target."""
        atlas = self.ready()
        if atlas is None:
            return
        now = self.session.choosing
        if now.is_coded:
            rungs = 1 if abs(step) == 1 else BY_EIGHT
            self.move_target(-rungs if step > 0 else rungs)
            return
        layer, top = self.shown_as.layer, atlas.top(now.method)
        if self.shown_as.editing and layer is not None:
            own = now.layers.get(layer) or atlas.k_of(layer, self._last)
            top = atlas.layer_top(layer, now.method)
            self.choose(now.with_layer(layer, min(max(1, own + step), top)))
            return
        k = now.k if now.k is not None else atlas.middle(self._last)
        self.choose(now.with_goal("k", min(max(1, k + step), top)))

    def move_target(self, step: int) -> None:
        """Move what is aimed at: k or the target, with a positive ``step`` to fewer bytes."""
        atlas, now = self.ready(), self.session.choosing
        if atlas is None:
            return
        name, value = moved(now.goal, step)
        if name == "k":
            value = min(max(1, value), atlas.top(now.method))
        self.choose(now.with_goal(name, value))

    def action_ask(self, what: str) -> None:
        """Ask for a value."""
        if self.ready() is None:
            return
        if what == "k" and self.session.choosing.is_coded:
            self.say(f"{self._has_no('k')} [ ] moves its target, e, E, v and b set one.")
            return
        self.ask(what)

    def action_method(self) -> None:
        """The next method that the spectra can tell of."""
        atlas = self.ready()
        if atlas is None:
            return
        now = self.session.choosing
        ring = [m for m in self.session.methods if m != now.method]
        if now.method in self.session.methods:
            at = self.session.methods.index(now.method)
            ring = [*ring[at:], *ring[:at]]
        chosen = as_method(now, ring[0], self._last, self._with_k)
        if chosen.is_coded and not now.is_coded:
            self._with_k = chosen, now
            self.shown_as = replace(self.shown_as, editing=False)
        self.choose(atlas.within(chosen))

    def action_dtype(self) -> None:
        """The next dtype to store in."""
        now = self.session.choosing
        if self.ready() is None:
            return
        if now.is_coded:
            self.say(f"{self._has_no('dtype')} It codes every direction with the bits it earns.")
            return
        at = DTYPE_RING.index(now.dtype) + 1
        self.choose(replace(now, dtype=DTYPE_RING[at % len(DTYPE_RING)]))

    def action_packing(self) -> None:
        """The next way of packing."""
        now = self.session.choosing
        if self.ready() is None:
            return
        if now.is_coded:
            self.say(f"{self._has_no('packing')} It codes every direction with the bits it earns.")
            return
        packing = PACKINGS[(PACKINGS.index(now.quantize) + 1) % len(PACKINGS)]
        self.choose(replace(now, quantize=packing))

    # a layer's own k

    def action_own(self) -> None:
        """Start or end giving the focused layer a k of its own."""
        atlas, layer = self.ready(), self.shown_as.layer
        if atlas is None or layer is None:
            return
        if self.session.choosing.is_coded:
            self.say(f"{self._has_no('k')} m goes on to a method that has one.")
            return
        if self.shown_as.sizes:
            self.say("A layer gets a k of its own on the other view: S.")
            return
        self.shown_as = replace(self.shown_as, editing=not self.shown_as.editing)
        if self.shown_as.editing and layer not in self.session.choosing.layers:
            k = max(1, atlas.k_of(layer, self._last))
            self.choose(self.session.choosing.with_layer(layer, k))
        else:
            self.redraw()

    def action_clear_own(self) -> None:
        """Let the focused layer follow the others again."""
        layer = self.shown_as.layer
        self.shown_as = replace(self.shown_as, editing=False)
        if layer is not None and layer in self.session.choosing.layers:
            self.choose(self.session.choosing.with_layer(layer, None))
        else:
            self.say("This layer has no k of its own; space gives it one.")
            self.redraw()

    # back, beside, on

    def action_undo(self) -> None:
        """Take the last change of the choice back."""
        if self.session.undo():
            self._chosen()
        else:
            self.say("There is nothing to take back.")

    def action_pin(self) -> None:
        """Keep the present choice for comparison, or let go of it."""
        if self.ready() is None:
            return
        if not self.session.pin():
            self.say(
                f"{MAX_PINS} choices are pinned. Take one (Tab to the figures, space) "
                "and press p to let go of it."
            )
        self.redraw()

    async def action_run(self) -> None:
        """Go on to Run with what is on screen."""
        if self.ready() is not None:
            await self.vlora.show_step("run")

    # what they have in common

    def choose(self, choosing: CompressionTarget) -> None:
        """Make this the present choice."""
        self.session.choose(choosing)
        self._chosen()

    def ready(self) -> Atlas | None:
        """What the keys work on, or a word why they cannot."""
        if self._atlas is None:
            self.say("No layer is measured yet.")
        return self._atlas

    def ask(self, what: str) -> None:
        """Open the line that asks."""
        atlas = self.ready()
        if atlas is not None:
            self.query_one(AskLine).ask(question(what, atlas, self.shown_as, self.session))

    def say(self, text: str) -> None:
        """A word about a key that did nothing."""
        self.notify(text, severity="warning", markup=False)

    def _chosen(self) -> None:
        self.vlora.refresh_bar()
        self.redraw()

    def _has_no(self, what: str) -> str:
        return f"{self.session.choosing.method} has no {what}."


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
        own = None if figures is None else figures.prediction
        error = DEFAULT_MAX_ERROR if own is None else float(f"{own.max_error:.2g}")
        name, value = "max_error", min(max(error, 0.001), 0.9)
    return CompressionTarget(method).with_goal(name, value)

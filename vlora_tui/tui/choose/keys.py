"""The keys of Choose k: what each does, and the help."""

from __future__ import annotations

from textual.binding import BindingType

from vlora_tui.tui.widgets.bindings import hidden, shown

HELP = (
    "How many directions (k) of the adapters' weight changes to keep. The curve shows how much "
    "of dW each k captures: the median over the layers, from the lowest to the highest of "
    "them, and the layer under the cursor. Its left axis gives every further nine the same "
    "room; the right axis is the relative error that this means. The rule is the present "
    "choice, diamonds are the k that 90, 95 and 99 % need over all layers.\n"
    "[ ] move k by one, { } by eight, = types k.\n"
    "e sets the largest error that any adapter may have, E their mean, v the least variance, "
    "b the bytes on disk: k is then chosen for each layer and side.\n"
    "m changes the method, d the dtype that is stored, c how it is packed: not, int8, int4, "
    "nf4. What packing costs is an estimate until it is built, and has a ~. u takes the last "
    "change back.\n"
    "In the layers: arrows move, space starts a k of its own for that layer (edited with the "
    "same keys; space again is done), backspace clears it. t changes what the cells show, T "
    "the share that they are about, s looks at side A or B alone.\n"
    "p pins the choice for comparison, or lets go of it. In the figures space takes the row "
    "under the cursor. x makes the axes even, / narrows the curve and the layers to names "
    "that match. Enter goes on to Run with what is on screen.\n"
    "auto and own (m) have no k: they code every singular direction with the bits it earns, "
    "own each adapter by itself, auto with what related adapters share wherever that costs "
    "less. [ ] and { } then move the target along its curve. Their figures are estimates, "
    "within a few percent, and have a ~.\n"
    "S shows size against error: a curve for every method, plain int8 and nf4 of A and B, the "
    "present choice with a rule at its size. The arrows move the target, t takes the worst "
    "adapter instead of the mean. Beside it: which adapters are related and what auto shares; "
    "below: what each adapter loses."
)

KEYS: list[BindingType] = [
    shown("left_square_bracket", "k(-1)", "k", "choose.k_down",
          "[ one direction fewer, ] one more; without k the target", display="[ ]"),
    hidden("right_square_bracket", "k(1)", "choose.k_up", "One direction more"),
    hidden("left_curly_bracket", "k(-8)", "choose.k_down_8", "Eight directions fewer"),
    hidden("right_curly_bracket", "k(8)", "choose.k_up_8", "Eight directions more"),
    hidden("equals_sign", "ask('k')", "choose.k", "Type k"),
    shown("e", "ask('max_error')", "Error", "choose.error",
          "The largest error that any adapter may have"),
    hidden("E", "ask('mean_error')", "choose.mean_error",
           "The mean error that the adapters may have"),
    hidden("v", "ask('variance')", "choose.variance", "The least share of variance to keep"),
    shown("b", "ask('budget')", "Bytes", "choose.budget", "How much it may take on disk"),
    shown("m", "method", "Method", "choose.method", "Another method"),
    hidden("d", "dtype", "choose.dtype", "What numbers are stored as"),
    hidden("c", "packing", "choose.packing", "Whether numbers are packed: not, int8, int4, nf4"),
    hidden("p", "pin", "choose.pin", "Keep this choice beside the next ones"),
    hidden("u", "undo", "choose.undo", "Take the last change back"),
    hidden("space", "own", "choose.own", "Give the layer under the cursor a k of its own"),
    hidden("backspace", "clear_own", "choose.clear_own",
           "Let the layer under the cursor follow the others again"),
    hidden("t", "cells", "choose.cells", "What the cells show: k for a share, error, k chosen"),
    hidden("T", "share", "choose.share", "The share that cells and marks are about: 90, 95, 99 %"),
    hidden("s", "side", "choose.side", "Both sides, A alone, B alone"),
    hidden("S", "sizes", "choose.sizes", "Size against error of every method, or back to k"),
    hidden("R", "again", "choose.again", "Measure the adapters again, where something is missing"),
    hidden("x", "axes", "choose.axes", "Even axes, or as much room for each nine"),
    hidden("tab", "pane(1)", "choose.next_pane", "Next pane"),
    hidden("shift+tab", "pane(-1)", "choose.previous_pane", "Previous pane"),
    hidden("escape", "done", "choose.done", "Done"),
    shown("enter", "run", "Run", "choose.run", "Go on to Run with this choice"),
]  # fmt: skip

"""The keys of Choose k: what each does, and the help."""

from __future__ import annotations

from textual.binding import Binding, BindingType

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
    Binding("left_square_bracket", "k(-1)", "k", id="choose.k_down", key_display="[ ]",
            tooltip="[ one direction fewer, ] one more; without k the target"),
    Binding("right_square_bracket", "k(1)", "k up", show=False, id="choose.k_up",
            tooltip="One direction more"),
    Binding("left_curly_bracket", "k(-8)", "k by 8", show=False, id="choose.k_down_8",
            tooltip="Eight directions fewer"),
    Binding("right_curly_bracket", "k(8)", "k by 8", show=False, id="choose.k_up_8",
            tooltip="Eight directions more"),
    Binding("equals_sign", "ask('k')", "Type k", show=False, id="choose.k",
            tooltip="Type k"),
    Binding("e", "ask('max_error')", "Error", id="choose.error",
            tooltip="The largest error that any adapter may have"),
    Binding("E", "ask('mean_error')", "Mean error", show=False, id="choose.mean_error",
            tooltip="The mean error that the adapters may have"),
    Binding("v", "ask('variance')", "Variance", show=False, id="choose.variance",
            tooltip="The least share of variance to keep"),
    Binding("b", "ask('budget')", "Bytes", id="choose.budget",
            tooltip="How much it may take on disk"),
    Binding("m", "method", "Method", id="choose.method", tooltip="Another method"),
    Binding("d", "dtype", "Dtype", show=False, id="choose.dtype",
            tooltip="What numbers are stored as"),
    Binding("c", "packing", "Packing", show=False, id="choose.packing",
            tooltip="Whether numbers are packed: not, int8, int4, nf4"),
    Binding("p", "pin", "Pin", show=False, id="choose.pin",
            tooltip="Keep this choice beside the next ones"),
    Binding("u", "undo", "Undo", show=False, id="choose.undo",
            tooltip="Take the last change back"),
    Binding("space", "own", "Own k", show=False, id="choose.own",
            tooltip="Give the layer under the cursor a k of its own"),
    Binding("backspace", "clear_own", "Clear own k", show=False, id="choose.clear_own",
            tooltip="Let the layer under the cursor follow the others again"),
    Binding("t", "cells", "Cells", show=False, id="choose.cells",
            tooltip="What the cells show: k for a share, error, k chosen"),
    Binding("T", "share", "Share", show=False, id="choose.share",
            tooltip="The share that cells and marks are about: 90, 95, 99 %"),
    Binding("s", "side", "Side", show=False, id="choose.side",
            tooltip="Both sides, A alone, B alone"),
    Binding("S", "sizes", "Size", show=False, id="choose.sizes",
            tooltip="Size against error of every method, or back to k"),
    Binding("R", "again", "Measure again", show=False, id="choose.again",
            tooltip="Measure the adapters again, where something is missing"),
    Binding("x", "axes", "Axes", show=False, id="choose.axes",
            tooltip="Even axes, or as much room for each nine"),
    Binding("tab", "pane(1)", "Next pane", show=False, id="choose.next_pane"),
    Binding("shift+tab", "pane(-1)", "Previous pane", show=False, id="choose.previous_pane"),
    Binding("escape", "done", "Done", show=False, id="choose.done"),
    Binding("enter", "run", "Run", id="choose.run", tooltip="Go on to Run with this choice"),
]  # fmt: skip

"""The keys of Choose k: what each does, and the help."""

from __future__ import annotations

from textual.binding import BindingType

from vlora_tui.tui.widgets.bindings import hidden, shown

HELP = (
    "How small the adapters become, at which error. The curve shows how much of dW is kept: the "
    "median over the layers, the band from the lowest to the highest layer, and the layer under "
    "the cursor, against bytes for auto and own, against k (directions kept) for a basis. Its "
    "left axis gives every further nine the same room; the right axis is the relative error. The "
    "rule is the present choice, diamonds are where 90, 95 and 99 % are kept over all layers.\n"
    "w builds the present choice; it stands above the plot. f, n and r take a preset: fine (1 %), "
    "normal (5 %), rough (20 %), the error that no adapter exceeds.\n"
    "[ ] move k by one in every layer, or the target by one step; { } go further. = types k; on "
    "auto and own it goes to the k of delta that reaches the same error.\n"
    "e sets the largest error of any adapter, E the mean error, v the least variance, b the bytes "
    "on disk: k, or bits, are then chosen for each layer.\n"
    "m changes the method: auto and own give every number the bits it needs, own each adapter "
    "alone, auto with what related adapters share. delta, columns and flat share a basis of k "
    "directions. d changes the dtype, c shows int8, int4 and nf4 with their bytes and errors. "
    "Figures with a ~ are estimates. u undoes the last change.\n"
    "In the layers: arrows move, Enter sets a k for that layer alone (auto and own: shows its "
    "figures), Esc ends, backspace clears it. t changes what the cells show, T the share that "
    "they are about, s looks at side A or B alone.\n"
    "S shows size against error in place of the layers: a curve for every method, plain int8 and "
    "nf4 of A and B. Its arrows move the target, t takes the worst adapter instead of the mean.\n"
    "Tab goes through the panes; below are the figures with the other methods at the same error, "
    "who shares what, and what each adapter loses. Enter takes a row. p pins a choice for "
    "comparison, x switches between linear and nines scale, / filters layers."
)

KEYS: list[BindingType] = [
    shown("w", "build", "Build", "choose.build", "Build the subspace with this choice"),
    shown("left_square_bracket", "k(-1)", "k", "choose.k_down",
          "Decrease / increase k (or the target)", display="[ ]"),
    hidden("right_square_bracket", "k(1)", "choose.k_up", "Increase k by one"),
    hidden("left_curly_bracket", "k(-8)", "choose.k_down_8", "Decrease k by eight"),
    hidden("right_curly_bracket", "k(8)", "choose.k_up_8", "Increase k by eight"),
    hidden("equals_sign", "ask('k')", "choose.k", "Type k; on auto: the k of delta at this error"),
    shown("e", "ask('max_error')", "Error", "choose.error", "Set the largest error of any adapter"),
    hidden("E", "ask('mean_error')", "choose.mean_error", "Set the mean error of the adapters"),
    hidden("v", "ask('variance')", "choose.variance", "Set the least share of variance to keep"),
    hidden("b", "ask('budget')", "choose.budget", "Set the bytes on disk"),
    hidden("f", "preset(0)", "choose.fine", "Fine: no adapter's error above 1 %"),
    hidden("n", "preset(1)", "choose.normal", "Normal: no adapter's error above 5 %"),
    hidden("r", "preset(2)", "choose.rough", "Rough: no adapter's error above 20 %"),
    shown("m", "method", "Method", "choose.method", "Next method"),
    hidden("d", "dtype", "choose.dtype", "Next storage dtype"),
    hidden("c", "packing", "choose.packing", "Quantize: int8, int4 or nf4"),
    hidden("p", "pin", "choose.pin", "Pin this choice for comparison"),
    hidden("u", "undo", "choose.undo", "Undo the last change"),
    hidden("space", "own", "choose.own", "Set a k for the layer under the cursor alone"),
    hidden("backspace", "clear_own", "choose.clear_own", "Clear the layer's own k"),
    hidden("t", "cells", "choose.cells", "What the cells show: k for a share, error, k chosen"),
    hidden("T", "share", "choose.share", "The share that the cells are about: 90, 95, 99 %"),
    hidden("s", "side", "choose.side", "Both sides, A alone, B alone"),
    shown("S", "sizes", "Size", "choose.sizes", "Size against error in place of the layers"),
    hidden("R", "again", "choose.again", "Measure the adapters again"),
    hidden("x", "axes", "choose.axes", "Linear / nines scale"),
    hidden("tab", "pane(1)", "choose.next_pane", "Next pane"),
    hidden("shift+tab", "pane(-1)", "choose.previous_pane", "Previous pane"),
    hidden("escape", "done", "choose.done", "End editing, clear the filter"),
    hidden("enter", "open", "choose.open", "Open or take what the cursor is on"),
]  # fmt: skip

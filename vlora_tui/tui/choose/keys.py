"""The keys of Choose k: what each does, and the help."""

from __future__ import annotations

from textual.binding import BindingType

from vlora_tui.tui.widgets.bindings import hidden, shown

HELP = (
    "How small the adapters become, at which error. The curve shows how much of dW is kept: the "
    "median over the modules, the band from the lowest to the highest, and the module under "
    "the cursor, against bytes for auto and own, against k (directions kept) for a basis. Its "
    "left axis gives every further nine the same room; the right axis is the relative error. The "
    "rule is the present choice, diamonds are where 90, 95 and 99 % are kept over all modules.\n"
    "<choose.build> builds the present choice; it stands above the plot. <choose.fine>, "
    "<choose.normal> and <choose.rough> take a preset: fine (1 %), normal (5 %), rough (20 %), the "
    "error that no adapter exceeds.\n"
    "<choose.k_down> <choose.k_up> move k by one in every module, or the target by one step; "
    "<choose.k_down_8> <choose.k_up_8> go further. <choose.k> types k; on auto and own it goes to "
    "the k of delta, module by module, that reaches the same error in the fewest bytes.\n"
    "<choose.error> sets the largest error of any adapter, <choose.mean_error> the mean error, "
    "<choose.variance> the least variance, <choose.budget> the bytes on disk: k, or bits, are then "
    "chosen for each module.\n"
    "<choose.method> changes the method: auto and own give every number the bits it needs, own "
    "each adapter alone, auto with what related adapters share. delta, columns and flat share a "
    "basis of k directions. <choose.dtype> changes the dtype, <choose.packing> shows int8, int4 "
    "and nf4 with their bytes and errors, for every block size. Figures with a ~ are estimates. "
    "<choose.undo> undoes the last change.\n"
    "In the layers: arrows move, <choose.open> sets a k for that module alone (auto and own: shows "
    "its figures), <choose.done> ends, <choose.clear_own> clears it. <choose.cells> changes what "
    "the cells show, <choose.share> the share that they are about, <choose.side> looks at side A "
    "or B alone.\n"
    "<choose.sizes> shows size against error in place of the layers: a curve for every method, "
    "plain int8 and nf4 of A and B. Its arrows move the target, <choose.cells> takes the worst "
    "adapter instead of the mean.\n"
    "<choose.next_pane> goes through the panes; below are the figures with the other methods at "
    "the same error, who shares what, and what each adapter loses. <figures.take> takes a row. "
    "<choose.pin> pins a choice for comparison, <choose.axes> switches between linear and nines "
    "scale, <app.filter> filters modules."
)

KEYS: list[BindingType] = [
    shown("w", "build", "Build", "choose.build", "Build the subspace with this choice"),
    shown("left_square_bracket", "k(-1)", "k", "choose.k_down",
          "Decrease / increase k (or the target)", display="[ ]"),
    hidden("right_square_bracket", "k(1)", "choose.k_up", "Increase k by one"),
    hidden("left_curly_bracket", "k(-8)", "choose.k_down_8", "Decrease k by eight"),
    hidden("right_curly_bracket", "k(8)", "choose.k_up_8", "Increase k by eight"),
    hidden("equals_sign", "ask('k')", "choose.k",
           "Type k; on auto: the k of delta, by module, at this error"),
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
    hidden("space", "own", "choose.own", "Set a k for the module under the cursor alone"),
    hidden("backspace", "clear_own", "choose.clear_own", "Clear the module's own k"),
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

"""The keys of Export: what each does, and the help."""

from __future__ import annotations

from textual.binding import BindingType

from vlora_tui.tui.widgets.bindings import hidden, shown

HELP = (
    "Mark tasks, say how and where, look at what is going to be written, then Enter. A job of "
    "its own writes; it reads every adapter back and compares dW.\n"
    "s chooses who is to read it: PEFT, or a server. The doctor says of every line what that "
    "program will refuse or get wrong; Details has all of it, with what mends it. {task} in "
    "the place stands for each task's name; nothing that exists is touched unless you type "
    "so.\n"
    "m turns to merging: the marked ones become one adapter, each with its weight (w types "
    "it, [ and ] move it). p measures what the merge keeps of each of them and writes "
    "nothing. m once more: other ranks. v opens what a job has written."
)

KEYS: list[BindingType] = [
    shown("enter", "start", "Write", "export.start", "Write what the preview says"),
    shown("space", "mark", "Mark", "export.mark", "Mark or unmark the line"),
    hidden("o", "place", "export.place", "Where it is written"),
    shown("m", "turn", "Do", "export.turn", "Between exporting, merging and giving another rank"),
    shown("p", "measure", "Measure", "export.measure",
          "Measure what the merge keeps of each; write nothing"),
    shown("s", "target(1)", "Target", "export.target", "Another target: PEFT, or a server"),
    shown("v", "open", "Open", "export.open", "Open what the job has written"),
    shown("tab", "next_pane(1)", "Pane", "export.next_pane", "Go to the next pane"),
    hidden("shift+tab", "next_pane(-1)", "export.pane_before", "Go to the pane before"),
    hidden("plus,asterisk", "all", "export.all", "Mark all that is shown"),
    hidden("minus", "invert", "export.invert", "Turn all marks round"),
    hidden("w", "type_weight", "export.weight", "Type the weight of the line in a merge"),
    hidden("left", "weigh_here(-1)", "export.less", "In a merge: less weight for the line"),
    hidden("right", "weigh_here(1)", "export.more", "In a merge: more weight for the line"),
    hidden("left_square_bracket", "weigh(-1)", "export.lighter",
           "Less weight for the line in a merge", display="["),
    hidden("right_square_bracket", "weigh(1)", "export.heavier",
           "More weight for the line in a merge", display="]"),
    hidden("M", "methods", "export.methods", "All ways of merging"),
    hidden("b", "verify", "export.verify", "Read back what was written, or not"),
    hidden("d", "dtype", "export.dtype", "Another dtype"),
    hidden("t", "source", "export.source",
           "Between the tasks of the subspace and the marked adapters"),
    hidden("slash", "app.filter", "export.filter", "Filter by name"),
    hidden("x,escape", "back", "export.back", "Stop measuring, or clear the filter"),
]  # fmt: skip

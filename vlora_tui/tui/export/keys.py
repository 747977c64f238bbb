"""The keys of Export: what each does, and the help."""

from __future__ import annotations

from textual.binding import Binding, BindingType

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
    Binding("enter", "start", "Write", id="export.start",
            tooltip="Write what the preview says"),
    Binding("space", "mark", "Mark", id="export.mark", tooltip="Mark or unmark the line"),
    Binding("o", "place", show=False, id="export.place", tooltip="Where it is written"),
    Binding("m", "turn", "Do", id="export.turn",
            tooltip="Between exporting, merging and giving another rank"),
    Binding("p", "measure", "Measure", id="export.measure",
            tooltip="Measure what the merge keeps of each; write nothing"),
    Binding("s", "target(1)", "Target", id="export.target",
            tooltip="Another target: PEFT, or a server"),
    Binding("v", "open", "Open", id="export.open", tooltip="Open what the job has written"),
    Binding("tab", "next_pane(1)", "Pane", id="export.next_pane",
            tooltip="Go to the next pane"),
    Binding("shift+tab", "next_pane(-1)", show=False, id="export.pane_before",
            tooltip="Go to the pane before"),
    Binding("plus,asterisk", "all", show=False, id="export.all",
            tooltip="Mark all that is shown"),
    Binding("minus", "invert", show=False, id="export.invert", tooltip="Turn all marks round"),
    Binding("w", "type_weight", show=False, id="export.weight",
            tooltip="Type the weight of the line in a merge"),
    Binding("left_square_bracket", "weigh(-1)", show=False, key_display="[",
            id="export.lighter", tooltip="Less weight for the line in a merge"),
    Binding("right_square_bracket", "weigh(1)", show=False, key_display="]",
            id="export.heavier", tooltip="More weight for the line in a merge"),
    Binding("M", "methods", show=False, id="export.methods", tooltip="All ways of merging"),
    Binding("b", "verify", show=False, id="export.verify",
            tooltip="Read back what was written, or not"),
    Binding("d", "dtype", show=False, id="export.dtype", tooltip="Another dtype"),
    Binding("t", "source", show=False, id="export.source",
            tooltip="Between the tasks of the subspace and the marked adapters"),
    Binding("slash", "app.filter", "Filter", show=False, id="export.filter",
            tooltip="Filter by name"),
    Binding("x,escape", "back", show=False, id="export.back",
            tooltip="Stop measuring, or clear the filter"),
]  # fmt: skip

"""The keys of Export: what each does, and the help."""

from __future__ import annotations

from textual.binding import BindingType

from vlora_tui.tui.widgets.bindings import hidden, shown

HELP = (
    "Mark tasks, choose how and where, check the preview, then <export.start> writes. A job "
    "writes, reads every adapter back and compares dW.\n"
    "<export.target> chooses the target: PEFT, or a server. The doctor shows for every line what "
    "that program will refuse or get wrong; Details has all of it, with the fix. {task} in the "
    "output stands for each task's name. Nothing that exists is replaced unless you confirm.\n"
    "<export.turn> switches to merge: the marked ones become one adapter, each with its weight "
    "(<export.weight> types it, <export.lighter> and <export.heavier> move it). <export.measure> "
    "measures what the merge keeps of each and writes nothing. <export.turn> again: resize to "
    "another rank; and once more: convert to the format of another tool. "
    "<export.enter> opens what the cursor is on, <export.open> what a job has "
    "written."
)

KEYS: list[BindingType] = [
    shown("enter", "enter", "Open", "export.enter", "Open what the cursor is on"),
    shown("w", "start", "Write", "export.start", "Write what the preview shows"),
    shown("space", "mark", "Mark", "export.mark", "Mark or unmark the line"),
    hidden("o", "place", "export.place", "Change the output"),
    shown("m", "turn", "Action", "export.turn", "Export, merge, resize or convert"),
    shown("p", "measure", "Measure", "export.measure",
          "Measure what the merge keeps; write nothing"),
    shown("s", "target(1)", "Target", "export.target", "Next target: PEFT, or a server"),
    shown("v", "open", "Open", "export.open", "Open the result"),
    hidden("tab", "next_pane(1)", "export.next_pane", "Next pane"),
    hidden("shift+tab", "next_pane(-1)", "export.pane_before", "Previous pane"),
    hidden("plus,asterisk", "all", "export.all", "Mark all rows shown"),
    hidden("minus", "invert", "export.invert", "Invert marks"),
    hidden("W", "type_weight", "export.weight", "Type the merge weight of the row"),
    hidden("left", "weigh_here(-1)", "export.less", "Lower the merge weight of the row"),
    hidden("right", "weigh_here(1)", "export.more", "Raise the merge weight of the row"),
    hidden("left_square_bracket", "weigh(-1)", "export.lighter",
           "Lower the merge weight of the row", display="["),
    hidden("right_square_bracket", "weigh(1)", "export.heavier",
           "Raise the merge weight of the row", display="]"),
    hidden("M", "methods", "export.methods", "All merge methods"),
    hidden("b", "verify", "export.verify", "Verify after writing, or not"),
    hidden("d", "dtype", "export.dtype", "Next dtype"),
    hidden("t", "source", "export.source",
           "Tasks of the subspace or marked adapters"),
    hidden("slash", "app.filter", "export.filter", "Filter by name"),
    hidden("x,escape", "back", "export.back", "Stop measuring, or clear the filter"),
]  # fmt: skip

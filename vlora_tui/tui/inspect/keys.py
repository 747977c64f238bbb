"""The keys of Inspect: what each does, and in which pane it deserves a place on the last line."""

from __future__ import annotations

from textual.binding import BindingType

from vlora_tui.tui.widgets.bindings import hidden, shown

HELP = (
    "Summary says which adapters are near copies, which are outliers and why, and which pair "
    "interferes most and where; of an open subspace, what lost most and what takes most bits. "
    "<inspect.enter> on a sentence shows its picture.\n"
    "Similarity is the cosine of two weight changes dW: 1 is the same direction, 0 nothing in "
    "common. <inspect.interference> turns the matrix to interference, which is what a merge of the "
    "two would meet: the share of dW that the other contests, the conflicting share of what both "
    "have, and the overlap of outputs and inputs.\n"
    "<inspect.enter> on a pair compares its layers. On the diagonal you see one adapter. "
    "<inspect.measure> shows another figure of the layers; <inspect.coverage> how much of the "
    "adapter the open subspace covers. <inspect.enter> on a module shows its singular values. "
    "<inspect.next> and <inspect.before> go to the next adapter, pair, task or module and back.\n"
    "An outlier's score of 2 is what one in twenty sound collections shows. <inspect.doctor> asks "
    "the doctor, who reads every tensor; <inspect.target> adds what a server or a program would "
    "refuse or get wrong."
)

KEYS: list[BindingType] = [
    shown("enter", "enter", "Open", "inspect.enter",
          "Open what the cursor is on: its picture, its layers, a module"),
    shown("i", "interference", "Interference", "inspect.interference",
          "Next measure of the matrix: similarity, then interference"),
    shown("m", "measure", "Measure", "inspect.measure", "Another figure for the layers"),
    shown("n", "walk(1)", "Next", "inspect.next", "Layers of the next adapter, pair or task",
          display="n p"),
    hidden("p", "walk(-1)", "inspect.before", "Layers of the adapter, pair or task before"),
    shown("c", "coverage", "Coverage", "inspect.coverage",
          "How much of the adapter the bases of the open subspace hold"),
    shown("d", "doctor", "Doctor", "inspect.doctor",
          "Have every tensor read, and say what is wrong and how to fix it"),
    shown("T", "target", "Target", "inspect.target",
          "Add what the next target (vLLM, llama.cpp, PEFT, ...) would get wrong"),
    shown("space", "keep", "Mark", "inspect.keep", "Mark this task to compare another with"),
    shown("s", "sort", "Sort", "inspect.sort", "Sort by score, size or name"),
    shown("left_square_bracket", "threshold(-0.01)", "Threshold", "inspect.lower",
          "Count adapters as similar from a lower cosine on", display="[ ]"),
    hidden("right_square_bracket", "threshold(0.01)", "inspect.higher",
           "Count adapters as similar from a higher cosine on", display="]"),
    hidden("left_curly_bracket", "threshold(-0.1)", "inspect.lower_much",
           "The same in steps of 0.1", display="{"),
    hidden("right_curly_bracket", "threshold(0.1)", "inspect.higher_much",
           "The same in steps of 0.1", display="}"),
    shown("slash", "app.filter", "Filter", "inspect.filter", "Filter by name"),
    shown("tab", "next_pane(1)", "Pane", "inspect.next_pane", "Go to the next pane"),
    hidden("shift+tab", "next_pane(-1)", "inspect.pane_before", "Go to the pane before"),
    hidden("o", "order", "inspect.order", "Similar adapters adjacent, or as found"),
    hidden("t", "turn", "inspect.turn", "Adapters, or the tasks of the open subspace"),
    hidden("w", "write", "inspect.write", "Where a build or a merge is started"),
    hidden("x,escape", "stop", "inspect.stop", "Stop what is being read, or clear the filter"),
]  # fmt: skip

# Actions that have something to act on in some panes alone; the others have it everywhere.
OF_USE = {
    "interference": {"inspect-alike"},
    "measure": {"inspect-layers"},
    "walk": {"inspect-layers"},
    "coverage": {"inspect-layers"},
    "doctor": {"inspect-findings"},
    "target": {"inspect-findings"},
    "keep": {"inspect-tasks"},
    "sort": {"inspect-tasks", "inspect-apart"},
    "threshold": {"inspect-alike", "inspect-groups"},
}

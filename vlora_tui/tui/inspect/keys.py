"""The keys of Inspect: what each does, and in which pane it deserves a place on the last line."""

from __future__ import annotations

from textual.binding import BindingType

from vlora_tui.tui.widgets.bindings import hidden, shown

HELP = (
    "How alike adapters are (the cosine of their weight changes dW: 1 is the same direction, 0 "
    "nothing in common), which form groups, are copies or come of one run, which stand apart, and "
    "what was found wrong.\n"
    "i turns the matrix to how two would get into each other's way if they were merged: the "
    "opposed share of what they have in common, and the shares of the row's energy in the spaces "
    "of the column. Enter on a pair compares its layers. On the diagonal you see one adapter: what "
    "the present k loses in each layer; m: how strong it is there; c: how much of it the bases of "
    "the open subspace hold.\n"
    "Enter on an outlier or a finding goes to the layers that it is about, enter on a layer shows "
    "its singular values, and what two adapters share there. A score of 2 is what one in twenty "
    "sound collections shows.\n"
    "d asks the doctor, who reads every tensor; T adds what a server or a program would refuse or "
    "get wrong. What needs weights is read by a process of its own; x stops it."
)

KEYS: list[BindingType] = [
    shown("enter", "enter", "Go in", "inspect.enter",
          "From pairs, groups, outliers and findings to layers, from there to a module"),
    shown("i", "interference", "Interfere", "inspect.interference",
          "Turn the matrix: cosine, sign conflict, overlap, writes, reads"),
    shown("m", "measure", "Measure", "inspect.measure", "Another figure for the layers"),
    shown("c", "coverage", "Coverage", "inspect.coverage",
          "How much of the adapter the bases of the open subspace hold"),
    shown("d", "doctor", "Doctor", "inspect.doctor",
          "Have every tensor read, and say what is wrong and what mends it"),
    shown("T", "target", "Target", "inspect.target",
          "Add what the next target (vLLM, llama.cpp, PEFT, ...) would get wrong"),
    shown("space", "keep", "Keep", "inspect.keep", "Keep this task to compare another with"),
    shown("s", "sort", "Sort", "inspect.sort", "Sort by score, size or name"),
    shown("left_square_bracket", "threshold(-0.01)", "Bound", "inspect.lower",
          "Count adapters as alike from a lower cosine on", display="[ ]"),
    hidden("right_square_bracket", "threshold(0.01)", "inspect.higher",
           "Count adapters as alike from a higher cosine on", display="]"),
    hidden("left_curly_bracket", "threshold(-0.1)", "inspect.lower_much",
           "The same in steps of 0.1", display="{"),
    hidden("right_curly_bracket", "threshold(0.1)", "inspect.higher_much",
           "The same in steps of 0.1", display="}"),
    shown("slash", "app.filter", "Filter", "inspect.filter", "Filter by name"),
    shown("tab", "next_pane(1)", "Pane", "inspect.next_pane", "Go to the next pane"),
    hidden("shift+tab", "next_pane(-1)", "inspect.pane_before", "Go to the pane before"),
    hidden("o", "order", "inspect.order", "Order by likeness, or as found"),
    hidden("t", "turn", "inspect.turn",
           "Turn between the adapters and the tasks of the open subspace"),
    hidden("x,escape", "stop", "inspect.stop", "Stop what is being read, or clear the filter"),
]  # fmt: skip

# Actions that have something to act on in some panes alone; the others have it everywhere.
OF_USE = {
    "interference": {"inspect-alike"},
    "measure": {"inspect-layers"},
    "coverage": {"inspect-layers"},
    "doctor": {"inspect-findings"},
    "target": {"inspect-findings"},
    "keep": {"inspect-tasks"},
    "sort": {"inspect-tasks", "inspect-apart"},
    "threshold": {"inspect-alike", "inspect-groups"},
}

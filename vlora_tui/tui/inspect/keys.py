"""The keys of Inspect: what each does, and in which pane it deserves a place on the last line."""

from __future__ import annotations

from textual.binding import Binding, BindingType

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
    Binding("enter", "enter", "Go in", id="inspect.enter",
            tooltip="From pairs, groups, outliers and findings to layers, from there to a module"),
    Binding("i", "interference", "Interfere", id="inspect.interference",
            tooltip="Turn the matrix: cosine, sign conflict, overlap, writes, reads"),
    Binding("m", "measure", "Measure", id="inspect.measure",
            tooltip="Another figure for the layers"),
    Binding("c", "coverage", "Coverage", id="inspect.coverage",
            tooltip="How much of the adapter the bases of the open subspace hold"),
    Binding("d", "doctor", "Doctor", id="inspect.doctor",
            tooltip="Have every tensor read, and say what is wrong and what mends it"),
    Binding("T", "target", "Target", id="inspect.target",
            tooltip="Add what the next target (vLLM, llama.cpp, PEFT, ...) would get wrong"),
    Binding("space", "keep", "Keep", id="inspect.keep",
            tooltip="Keep this task to compare another with"),
    Binding("s", "sort", "Sort", id="inspect.sort",
            tooltip="Sort by score, size or name"),
    Binding("left_square_bracket", "threshold(-0.01)", "Bound", key_display="[ ]",
            id="inspect.lower", tooltip="Count adapters as alike from a lower cosine on"),
    Binding("right_square_bracket", "threshold(0.01)", show=False, key_display="]",
            id="inspect.higher", tooltip="Count adapters as alike from a higher cosine on"),
    Binding("left_curly_bracket", "threshold(-0.1)", show=False, key_display="{",
            id="inspect.lower_much", tooltip="The same in steps of 0.1"),
    Binding("right_curly_bracket", "threshold(0.1)", show=False, key_display="}",
            id="inspect.higher_much", tooltip="The same in steps of 0.1"),
    Binding("slash", "app.filter", "Filter", id="inspect.filter", tooltip="Filter by name"),
    Binding("tab", "next_pane(1)", "Pane", id="inspect.next_pane",
            tooltip="Go to the next pane"),
    Binding("shift+tab", "next_pane(-1)", show=False, id="inspect.pane_before",
            tooltip="Go to the pane before"),
    Binding("o", "order", show=False, id="inspect.order",
            tooltip="Order by likeness, or as found"),
    Binding("t", "turn", show=False, id="inspect.turn",
            tooltip="Turn between the adapters and the tasks of the open subspace"),
    Binding("x,escape", "stop", show=False, id="inspect.stop",
            tooltip="Stop what is being read, or clear the filter"),
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

"""The keys of Run: what each does, the buttons of a card, and the help."""

from __future__ import annotations

from textual.binding import BindingType

from vlora_tui.tui.widgets.bindings import hidden, shown
from vlora_tui.tui.widgets.buttons import Button

HELP = (
    "<run.start> starts what the upper pane shows; on its rows, <form.change> changes the output "
    "or the device, and <run.recipe> opens the recipe in your editor. Jobs are separate processes: "
    "closing the terminal leaves them running, and the next session finds them.\n"
    "<run.enter> on a job opens its result, or its log where there is none. <run.log> shows the "
    "log, <run.cancel> cancels, <run.resume> resumes, <run.remove> forgets it. <run.mark> marks a "
    "job, <run.compare> compares another one with it.\n"
    "With a subspace: <run.export> exports, <run.evaluate> evaluates on a base model, "
    "<run.quantize> quantizes, <run.add> adds a task, <run.remove_tasks> removes tasks, <run.push> "
    "pushes to the Hub. <run.pull> pulls from the Hub."
)

KEYS: list[BindingType] = [
    shown("w", "start", "Start", "run.start", "Start what the review says"),
    shown("enter", "enter", "Open", "run.enter", "Open the job's result, or its log"),
    shown("c", "cancel", "Cancel", "run.cancel", "Cancel the selected job"),
    shown("R", "resume", "Resume", "run.resume", "Resume a stopped job"),
    shown("L", "log", "Log", "run.log", "Show the log of the selected job"),
    shown("space", "mark", "Mark", "run.mark", "Mark a job to compare another with"),
    hidden("d", "compare", "run.compare", "Compare with the marked job, or the open subspace"),
    hidden("v", "open", "run.open", "Open what the job made"),
    hidden("E", "export", "run.export", "Export from the job's subspace"),
    hidden("e", "evaluate", "run.evaluate", "Evaluate a subspace on a base model"),
    hidden("Q", "quantize", "run.quantize", "Quantize a subspace"),
    hidden("plus", "add_task", "run.add", "Add an adapter to a subspace", display="+"),
    hidden("minus", "remove_tasks", "run.remove_tasks", "Remove tasks from a subspace",
           display="-"),
    hidden("p", "push", "run.push", "Push a subspace to the Hub"),
    hidden("P", "pull", "run.pull", "Pull from the Hub into a folder"),
    hidden("o", "output", "run.output", "Change the output folder"),
    hidden("D", "device", "run.device", "Change the device: auto, cpu, cuda"),
    hidden("r", "recipe", "run.recipe", "Edit the recipe in your editor"),
    hidden("b", "leave_out", "run.leave_out",
           "Restart a job that bad adapters stopped, without them"),
    hidden("x", "remove", "run.remove", "Forget the job"),
    hidden("escape", "back", "run.back", "Close the result, or discard the edited recipe"),
    hidden("tab", "next_pane(1)", "run.pane", "The next pane"),
    hidden("shift+tab", "next_pane(-1)", "run.pane_back", "The pane before"),
]  # fmt: skip

BUTTONS = {
    "view": Button("run.open", "View", "open"),
    "export": Button("run.export", "Export", "export"),
    "evaluate": Button("run.evaluate", "Evaluate", "evaluate"),
    "quantize": Button("run.quantize", "Quantize", "quantize"),
    "push": Button("run.push", "Push", "push"),
    "compare": Button("run.compare", "Compare", "compare"),
    "choose": Button("step.choose", "Choose k", "choose"),
    "add_task": Button("run.add", "Add a task", "add_task"),
    "remove_tasks": Button("run.remove_tasks", "Remove tasks", "remove_tasks"),
    "pull": Button("run.pull", "Pull from the Hub", "pull"),
}

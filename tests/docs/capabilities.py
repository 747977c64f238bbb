"""The table of docs/capabilities.md: what can be done, and from where. Written by

    python -m tests.docs.capabilities

A row says what a capability is called in each place; what those places have is read from the code.
`faults` names what has no row, what a row names and is not there, and cells that are empty without
a reason. A new command, table, public name or palette entry needs a row, or a place in one.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import vlora_engine
from vlora_engine import SharedSubspace
from vlora_tui.cli.app import COMMANDS, load_command
from vlora_tui.cli.table_flags import TABLES
from vlora_tui.recipe.changes import SEVERAL
from vlora_tui.recipe.model import Recipe
from vlora_tui.tui.app import palette
from vlora_tui.tui.app.keymap import all_bindings

PAGE = Path(__file__).parents[2] / "docs" / "capabilities.md"
COLUMNS = ("interface", "command", "recipe", "python")
ONLY = "command only"

HEAD = """\
# Capabilities

What vlora-tui can do, and from where: the interface, a command, a recipe, Python. Every key of a
recipe's table is a flag of `run --headless`, too: `--TABLE-KEY`
([formats](formats.md#recipes) lists them). A cell that is empty says why: `command only` means that
the command is the way to it, `Python only` the same of Python. In Python, names
stand below `vlora_engine`; one that begins with a dot is a method of `SharedSubspace`.

This page is made from the code: `python -m tests.docs.capabilities` writes it again.
"""

READS = "it only looks; a recipe writes"
IN_PLACE = "it changes a subspace in its place, under its lock; a recipe writes new outputs"
OF_A_MODEL = "it takes a model in memory"
UPKEEP = "it is upkeep of a subspace that many tasks were added to; a script does it"
ON_START = "the start page offers it by a line, which is no entry of the palette"
OF_THE_APP = "it belongs to the application; the engine knows no jobs and no settings"


@dataclass(frozen=True)
class Row:
    """One capability, and its name in each place.

    Args:
        interface: Ids of key bindings (each is an entry of the palette), or words of the palette.
        command: Names of commands; ``jobs list`` is one of a command with commands of its own.
        recipe: Tables of a recipe.
        python: Names below `vlora_engine`; a method of `SharedSubspace` begins with a dot.
        why: For an empty cell, by column, the reason.
    """

    what: str
    interface: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    recipe: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    why: tuple[tuple[str, str], ...] = ()


def why(**reasons: str) -> tuple[tuple[str, str], ...]:
    """The reasons of a row's empty cells, by column."""
    return tuple(reasons.items())


SECTIONS: dict[str, list[Row]] = {
    "Find and look": [
        Row(
            "Find adapters, and which fit together",
            ("adapters.open", "adapters.go", "adapters.group", "adapters.again", "adapters.stop"),
            ("inspect",),
            ("input",),
            ("scan", "Catalog", "AdapterInfo", "open_adapter", "load_adapter", "LoRAWeights",
             "parse_state_dict", "stack_lora_weights"),
        ),
        Row(
            "What a subspace holds",
            ("run.open",),
            ("info",),
            python=("SharedSubspace", ".load", ".errors", ".compression_stats"),
            why=why(recipe=READS),
        ),
        Row(
            "Check a subspace",
            (),
            ("validate",),
            python=("doctor.subspace_check.check_subspace",),
            why=why(interface="every job checks what it opens; this is for scripts", recipe=READS),
        ),
        Row(
            "What is wrong with adapters, and what mends it",
            ("inspect.doctor", "inspect.target"),
            ("doctor",),
            python=("diagnose", "verdict"),
            why=why(recipe=READS),
        ),
        Row(
            "How many modules apply to a base; a copy under its names",
            ("adapters.repair",),
            ("doctor",),
            python=("doctor.applies", "doctor.repair"),
            why=why(recipe=READS),
        ),
        Row(
            "Whether a merged checkpoint is base + adapter",
            (),
            ("doctor",),
            python=("doctor.check_merged", "doctor.read_checkpoint"),
            why=why(
                interface="it reads two whole models, once, after a merge made elsewhere",
                recipe=READS,
            ),
        ),
        Row(
            "Similarity, clusters, duplicates, checkpoints of one run",
            ("inspect.enter", "inspect.order", "inspect.higher", "inspect.lower"),
            ("analyze",),
            python=("compute_similarity_matrix", "find_clusters", "find_duplicates", "find_runs"),
            why=why(recipe=READS),
        ),
        Row(
            "Outliers",
            ("inspect.sort",),
            ("analyze",),
            python=("find_outliers",),
            why=why(recipe=READS),
        ),
        Row(
            "Compare two adapters or tasks",
            ("inspect.keep",),
            ("diff",),
            python=("adapter_diff",),
            why=why(recipe=READS),
        ),
        Row(
            "Interference of adapters in a merge",
            ("inspect.interference",),
            ("interference",),
            python=("interference",),
            why=why(recipe=READS),
        ),
        Row(
            "How much of an adapter a subspace holds",
            ("inspect.coverage",),
            ("coverage",),
            python=("subspace_coverage",),
            why=why(recipe=READS),
        ),
        Row(
            "One module closely",
            ("inspect.measure", "module.cancel"),
            ("module",),
            python=("analysis.module_view.module_view",
                    "analysis.module_view.module_comparison"),
            why=why(recipe=READS),
        ),
        Row(
            "What compression or a merge costs a base model",
            ("run.evaluate",),
            ("eval",),
            python=(
                "evaluation.evaluate.evaluate_subspace",
                "evaluation.adapters.evaluate_adapters",
            ),
            why=why(recipe="it needs a base model and prompts, and only looks"),
        ),
        Row(
            "A report with plots",
            (),
            ("report",),
            why=why(
                interface="it writes a page to send; the steps show the same",
                recipe="it is about adapters, not about what a recipe makes",
                python="it draws what the functions of this section measure",
            ),
        ),
        Row(
            "Time the operations of a subspace",
            (),
            ("benchmark",),
            why=why(
                interface="a screen that is drawn would be timed, too",
                recipe=READS,
                python="it times the calls of this table",
            ),
        ),
    ],
    "Choose": [
        Row(
            "Spectra: what every k would cost",
            ("choose.again",),
            ("spectra",),
            ("compress",),
            ("compress.measure.compute_spectra", "spectra.tables.Spectra"),
        ),
        Row(
            "Plan: what every method would cost, at every size",
            ("choose.sizes", "choose.axes", "choose.pin", "choose.cells", "choose.share"),
            ("plan",),
            python=("spectra.size_curves.curves", ".surface", "explained_variance_ratio",
                    "select_num_components"),
            why=why(recipe="it helps to write one"),
        ),
        Row(
            "k, or a target that k is chosen for; the method",
            ("choose.k", "choose.error", "choose.mean_error", "choose.variance", "choose.budget",
             "choose.fine", "choose.normal", "choose.rough", "choose.method", "choose.dtype",
             "choose.own"),
            ("compress",),
            ("compress",),
            ("compression_target.CompressionTarget",),
        ),
    ],
    "Make": [
        Row(
            "Compress adapters into a subspace",
            ("choose.build", "run.start", "run.output", "run.device", "run.leave_out"),
            ("compress",),
            ("compress", "output"),
            ("init_subspace", ".from_adapters", ".from_adapters_streaming", ".save",
             "compress.build.build_subspace"),
        ),
        Row(
            "Quantize it",
            ("choose.packing", "run.quantize"),
            ("quantize", "compress"),
            ("quantize", "compress"),
            (".quantize", ".save_quantized", ".full_stack_compression", "nf4_pack", "nf4_unpack",
             "nf4_quantize_dequantize", "NF4_QUANT_TABLE"),
        ),
        Row(
            "Export tasks for PEFT and servers",
            ("run.export", "export.start", "export.enter", "export.target", "export.place",
             "export.verify",
             "export.dtype"),
            ("export", "reconstruct"),
            ("export",),
            (".reconstruct", "extract_adapter", "save_adapter"),
        ),
        Row(
            "Merge",
            ("export.turn", "export.methods", "export.weight", "export.measure"),
            ("merge",),
            ("merge",),
            ("merge", "MERGE_METHODS", "task_arithmetic", "ties_merge", "dare_merge"),
        ),
        Row("Another rank", ("export.turn",), ("resize",), ("resize",), ("resize",)),
        Row(
            "The formats of other tools",
            ("export.turn",),
            ("convert",),
            ("convert",),
            ("convert.convert.convert", "convert.convert.plan"),
        ),
        Row(
            "A collection to try it on",
            (),
            ("demo",),
            python=("make_demo_collection",),
            why=why(interface=ON_START, recipe="it makes the adapters that a recipe starts from"),
        ),
    ],
    "Change a subspace": [
        Row(
            "Add a task",
            ("run.add",),
            ("add",),
            python=(".absorb", ".absorb_incremental", ".project", ".add_task", "absorb_task",
                    "TaskProjection"),
            why=why(recipe=IN_PLACE),
        ),
        Row(
            "Remove a task",
            ("run.remove_tasks",),
            ("remove",),
            python=(".remove_task",),
            why=why(recipe=IN_PLACE),
        ),
        Row(
            "Plan a coded collection anew",
            (),
            ("compact",),
            python=(".compact",),
            why=why(interface=UPKEEP, recipe=IN_PLACE),
        ),
        Row(
            "Keep a shared basis beside coded tasks",
            (),
            ("basis",),
            python=(".with_basis", ".in_basis", ".basis_figures", ".has_basis"),
            why=why(interface=UPKEEP, recipe=IN_PLACE),
        ),
    ],
    "With a model": [
        Row(
            "Put tasks on a model, and switch them",
            python=("VLoRAModel", "apply", ".apply", ".to"),
            why=why(interface=OF_A_MODEL, command=OF_A_MODEL, recipe=OF_A_MODEL),
        ),
        Row(
            "Train a task in a subspace",
            python=("SubspaceTrainer", "orthogonal_init", ".get_trainable_params",
                    "integrations.huggingface.VLoRACallback"),
            why=why(interface=OF_A_MODEL, command=OF_A_MODEL, recipe=OF_A_MODEL),
        ),
        Row(
            "Route inputs to tasks, and blend tasks",
            python=("TaskRouter", "blend_tasks"),
            why=why(interface=OF_A_MODEL, command=OF_A_MODEL, recipe=OF_A_MODEL),
        ),
        Row(
            "The other libraries' building blocks",
            python=("compute_svd", "project_onto_subspace", "reconstruct_from_subspace",
                    "gram_schmidt", "incremental_svd_update", "compat.lorashare.SHAREModel"),
            why=why(
                interface="they are parts for code of one's own",
                command="they are parts for code of one's own",
                recipe="they are parts for code of one's own",
            ),
        ),
    ],
    "The Hub": [
        Row(
            "Push a subspace, tasks or adapters",
            ("run.push",),
            ("push",),
            ("push",),
            (".push_to_hub", "publish.push.push"),
        ),
        Row(
            "Pull, or work on an address",
            ("run.pull", "adapters.open"),
            ("pull",),
            ("input",),
            ("load_adapter_from_hub", "hub.pull.pull", "hub.fetch.fetch"),
        ),
        Row(
            "Search for the adapters of a base model",
            ("adapters.open",),
            ("inspect",),
            python=("hub.search.search_adapters",),
            why=why(recipe="a search is for looking, not for working on what it happens to find"),
        ),
    ],
    "Work": [
        Row(
            "Run a recipe, in a terminal or as a job",
            ("run.start", "run.recipe", "app.command"),
            ("run", "jobs start"),
            ("input", "compress", "quantize", "output", *SEVERAL),
            why=why(python="there the functions of this table are called one by one"),
        ),
        Row(
            "Jobs: list, follow, cancel, resume, remove",
            ("run.enter", "run.log", "run.mark", "run.compare", "run.cancel", "run.resume",
             "run.remove"),
            ("jobs list", "jobs show", "jobs follow", "jobs cancel", "jobs resume",
             "jobs remove"),
            why=why(recipe="a job is the run of a recipe", python=OF_THE_APP),
        ),
        Row(
            "Settings",
            ("Where the settings are", "Theme:"),
            ("config",),
            why=why(recipe="a recipe says all that decides on its result", python=OF_THE_APP),
        ),
        Row(
            "Keep to a limit of memory: `--max-memory SIZE`, with every command",
            (),
            ("compress", "run"),
            ("max_memory",),
            ("utils.memory.limited",),
            why=why(interface="`vlora-tui --max-memory 4GB` starts one whose jobs keep to it"),
        ),
        Row(
            "Guides",
            ("help.guides", "Guide:"),
            ("guide",),
            why=why(recipe=READS, python=OF_THE_APP),
        ),
    ],
}  # fmt: skip

# Keys that move, mark, filter, undo or close: how the interface is handled, no capability each.
HANDLING = {
    *("app.palette", "app.escape", "app.suspend", "app.help", "app.leave", "app.quit"),
    *("app.copy", "app.maximise"),
    *("app.filter", "adapters.mark", "adapters.filter", "adapters.all", "adapters.invert"),
    *("adapters.range", "adapters.undo", "adapters.sort", "adapters.turn", "adapters.close"),
    *("adapters.pane", "adapters.back", "choose.k_down", "choose.k_up", "choose.k_down_8"),
    *("choose.k_up_8", "choose.undo", "choose.clear_own", "choose.side", "choose.next_pane"),
    *("choose.previous_pane", "choose.done", "choose.open", "run.pane", "run.pane_back"),
    *("run.back", "inspect.lower_much", "app.repaint"),
    *("inspect.higher_much", "inspect.filter", "inspect.next_pane", "inspect.pane_before"),
    *("inspect.next", "inspect.before", "inspect.write", "module.next", "module.before"),
    *("module.next_adapter", "module.adapter_before"),
    *("export.less", "export.more"),
    *("inspect.turn", "inspect.stop", "export.mark", "export.open", "export.next_pane"),
    *("export.pane_before", "export.all", "export.invert", "export.lighter", "export.heavier"),
    *("export.source", "export.filter", "export.back"),
}
WHERE = {"AdaptersView": "Adapters", "ChooseView": "Choose k", "RunView": "Run"}
WHERE |= {"InspectView": "Inspect", "ModuleBox": "Inspect", "ExportView": "Export"}
ANYWHERE = "Anywhere"


def rows() -> list[Row]:
    """All rows, in order."""
    return [row for section in SECTIONS.values() for row in section]


# what the code has


def commands() -> set[str]:
    """Every command; of one that has commands of its own, those."""
    found = set()
    for name, entry in COMMANDS.items():
        below = getattr(load_command(name, entry), "commands", {}) if name == "jobs" else {}
        found |= {f"{name} {word}" for word in below} or {name}
    return found


def tables() -> set[str]:
    """Every table of a recipe."""
    several = {"exports": "export", "merges": "merge", "resizes": "resize"}
    several |= {"converts": "convert", "pushes": "push"}
    return {several.get(field.name, field.name) for field in fields(Recipe)}


def public_names() -> set[str]:
    """Every public name of the engine that is no error, and every method of a subspace."""
    names = {name for name in vlora_engine.__all__ if not name.startswith("__")}
    errors = {name for name in names if _is_error(getattr(vlora_engine, name))}
    methods = {
        f".{name}"
        for name, value in vars(SharedSubspace).items()
        if not name.startswith("_") and isinstance(value, classmethod | type(lambda: 0))
    }
    return names - errors | methods


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def resolves(name: str) -> bool:
    """Whether a name of a Python cell is there."""
    if name.startswith("."):
        return hasattr(SharedSubspace, name[1:])
    if "." not in name:
        return name in vlora_engine.__all__
    module, _, last = name.rpartition(".")
    return hasattr(importlib.import_module(f"vlora_engine.{module}"), last)


# what is wrong


def faults(table: list[Row] | None = None) -> Iterator[str]:
    """Everything that makes the table untrue or leaves a hole in it."""
    known = rows() if table is None else table
    there = {"command": commands(), "recipe": tables(), "python": public_names()}
    bindings, palette_text = all_bindings(), inspect.getsource(palette)
    steps = tuple(f"{step}." for step in ("app", "adapters", "choose", "run", "inspect", "export"))
    there["interface"] = {name for name in bindings if name.startswith(steps)} - HANDLING
    for column, names in there.items():
        mentioned = {name for row in known for name in getattr(row, column)}
        for name in sorted(names - mentioned):
            yield f"{name} has no row ({column})"
    for row in known:
        for column in COLUMNS:
            yield from _faults_of_cell(row, column)
        yield from (f"{row.what}: no command {n}" for n in row.command if n not in commands())
        yield from (f"{row.what}: no table {n}" for n in row.recipe if n not in tables())
        yield from (f"{row.what}: no name {n} in Python" for n in row.python if not resolves(n))
        for name in row.interface:
            if name not in bindings and f'"{name}' not in palette_text:
                yield f"{row.what}: no entry {name} in the palette"
    yield from (f"{name} is no key any more" for name in sorted(HANDLING - bindings.keys()))


def _faults_of_cell(row: Row, column: str) -> Iterator[str]:
    names, reason = getattr(row, column), dict(row.why).get(column)
    if not names and not (reason or "").strip():
        yield f"{row.what}: the cell of {column} is empty, and nothing says why"
    if names and reason:
        yield f"{row.what}: the cell of {column} is filled, and has a reason to be empty"


# the page


def page() -> str:
    """The whole document."""
    parts = [HEAD]
    for title, section in SECTIONS.items():
        lines = [f"## {title}", "", "| | interface | command | recipe, `run --headless` | Python |"]
        lines.append("|---|---|---|---|---|")
        for row in section:
            cells = [row.what, *(_cell(row, column) for column in COLUMNS)]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _cell(row: Row, column: str) -> str:
    names = getattr(row, column)
    if not names:
        reason = dict(row.why)[column]
        return f"{ONLY if row.command else 'Python only'}: {reason}"
    if column == "interface":
        return _entries(names)
    return "; ".join(_table(name) if column == "recipe" else f"`{name}`" for name in names)


def _entries(names: tuple[str, ...]) -> str:
    """The entries of the palette, by step."""
    bindings, found = all_bindings(), dict[str, list[str]]()
    for name in names:
        where, words = ANYWHERE, name.rstrip(":")
        if name in bindings:
            owner, binding = bindings[name]
            where = WHERE.get(owner, ANYWHERE)
            words = binding.tooltip or binding.description
        found.setdefault(where, []).append(f"*{words}*")
    return "; ".join(f"{where}: {', '.join(words)}" for where, words in found.items())


def _table(name: str) -> str:
    if name == "input":
        return "`[input]`, paths or `--subspace`"
    if name == "max_memory":
        return "`max_memory`, `--max-memory`"
    if name == "output":
        return "`[output]`, `-o`"
    if name == "compress":
        return "`[compress]`, the flags of `compress`"
    table, brackets = TABLES[name], f"[[{name}]]" if name in SEVERAL else f"[{name}]"
    flag = f"--{name}" if table.short else f"--{name}-{next(iter(table.lines)).replace('_', '-')}"
    return f"`{brackets}`, `{flag}`"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")

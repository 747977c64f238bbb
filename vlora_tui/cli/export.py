"""``export`` (also ``reconstruct``): adapters, or tasks of a subspace, for PEFT and for servers."""

from __future__ import annotations

from glob import escape, has_magic
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from vlora_engine.catalog.locate import locate
from vlora_engine.catalog.read import is_subspace, read_manifest
from vlora_engine.errors import ParameterError
from vlora_engine.interop.names import VLORA_DEV, peer_at
from vlora_engine.manifest.manifest import is_own_subspace
from vlora_engine.targets import TARGETS, Served, start_lines
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.flags import from_tables, given_only, input_table, is_several
from vlora_tui.cli.hub_inputs import on_disk
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.pipeline import events
from vlora_tui.utils.formatting import percent, plural, size


def export(
    out: Output,
    paths: Annotated[
        list[str],
        argument(
            "Adapters or folders of them; or a subspace, then the names or patterns of tasks.",
            metavar="PATHS | DIR [TASK]...",
        ),
    ],
    output: o.OutputDir,
    *,
    adapter: Annotated[list[str] | None, option("--adapter", "A task (lorashare's flag).")] = None,
    every: Annotated[bool, option("--all", "All tasks, each in its own folder.")] = False,
    target: Annotated[str, option("--target", f"The target: {', '.join(TARGETS)}.")] = "peft",
    alpha: Annotated[
        float | None, option("--alpha", "lora_alpha to write; B is rescaled to keep dW.")
    ] = None,
    base: Annotated[
        str | None,
        option(
            "--base",
            "The base model: its folder or config.json, or the name to write (org/model).",
            metavar="MODEL",
        ),
    ] = None,
    base_model: Annotated[
        str | None, option("--base-model", "The name of the base model to write.", hidden=True)
    ] = None,
    target_modules: Annotated[
        str | None, option("--target-modules", "Modules to write, with commas between.")
    ] = None,
    dtype: Annotated[
        str | None, option("--dtype", "fp32, fp16, bf16, of GGUF q8_0; by default the original's.")
    ] = None,
    drop_rest: Annotated[
        bool, option("--drop-rest", "Leave out the tensors besides A and B.")
    ] = False,
    names: o.Names = None,
    skip_bad: o.SkipBad = False,
    verify: Annotated[bool, option("--verify/--no-verify", "Read back what was written.")] = True,
    writing: o.Writing,
) -> None:
    """Write adapters for PEFT, or for a server: vLLM, SGLang, llama.cpp, Ollama... dW stays.

    One adapter goes to the output itself; several, a folder of them, or --all, to a folder each
    inside it. Of a subspace its tasks are exported, by name.
    """
    from vlora_tui.cli.execute import carry_out

    if base_model is not None:
        out.note(f"note: --base-model is now --base, which takes a name too: --base {base_model}")
    given = _input(out, paths, adapter or [], names or [], every=every, skip_bad=skip_bad)
    row: dict[str, Any] = {
        "tasks": given.tasks or None,
        "target": target,
        "path": f"{output}/{{task}}" if given.several else output,
        "verify": verify,
        "alpha": alpha,
        "base_model": base_model,
        "target_modules": None
        if target_modules is None
        else [module.strip() for module in target_modules.split(",")],
        "dtype": dtype,
        "drop_rest": drop_rest or None,
        "base": base,
    }
    recipe = from_tables({"input": given.table, "export": [given_only(row)]})
    subspace = recipe.input.subspace
    if subspace is not None and alpha is None and not (writing.print_recipe or writing.dry_run):
        _show_no_alpha(subspace, out)
    watcher = carry_out(recipe, out, writing)
    if watcher is None:
        return
    exported = show_exports(out, watcher)
    out.json(
        "export",
        {
            "subspace": None if subspace is None else str(Path(paths[0])),
            "exported": exported,
            "start": starts(watcher),
        },
    )
    for row in exported:
        out.essence(row["path"])


class _Given(NamedTuple):
    """What is exported: the ``[input]`` table, the tasks of a subspace, whether it is several."""

    table: dict[str, Any]
    tasks: list[str]
    several: bool


def _input(
    out: Output,
    paths: list[str],
    adapter: list[str],
    names: list[str],
    *,
    every: bool,
    skip_bad: bool,
) -> _Given:
    """A subspace and its tasks where the first path is one, else adapters."""
    (first,) = on_disk(out, paths[0])
    if locate(first).task is None and is_subspace(Path(first).expanduser()):
        chosen = [*paths[1:], *adapter]
        _require_tasks(chosen, names, every=every)
        table = {"subspace": paths[0]}
        several = every or not _is_one(chosen, first)
        return _Given(table, _as_patterns(chosen, first), several)
    if adapter:
        raise ParameterError(
            "--adapter names a task of a subspace.", where=paths[0], found="adapters alone"
        )
    table = input_table(list(dict.fromkeys(paths)), names, skip_bad=skip_bad)
    return _Given(table, [], every or is_several(table))


def _require_tasks(chosen: list[str], names: list[str], *, every: bool) -> None:
    if every == bool(chosen):
        raise ParameterError(
            "Name the tasks to export, or all of them.",
            expected="TASK..., --adapter TASK or --all",
            found="both" if every else "neither",
        )
    if names:
        raise ParameterError("--names is for adapters; the tasks of a subspace have theirs.")


def _show_no_alpha(subspace: str, out: Output) -> None:
    """Say that a scale of 1 is a guess, where a peer has dropped the alpha."""
    if peer_at(Path(subspace)) != VLORA_DEV:
        return
    for finding in read_manifest(subspace).findings:
        if finding.code == "no-alpha":
            out.note(f"note: {finding.what} Fix: {finding.remedy}.")


def show_exports(out: Output, watcher: Watcher) -> list[dict[str, Any]]:
    """Every exported task, and what serves them; printed for people and returned for JSON."""
    verified = {event.path: event.error for event in watcher.all(events.Verified)}
    rows = [
        {
            "task": event.task,
            "path": event.path,
            "target": event.target,
            "nbytes": event.nbytes,
            "verified": event.path in verified,
            "verify_error": verified.get(event.path),
            "skipped": event.skipped,
            "start": start_lines(event.target, [_served(event)]),
        }
        for event in watcher.all(events.Exported)
    ]
    if len(rows) > 12:
        checked = sum(row["verified"] for row in rows)
        folder = Path(rows[0]["path"]).parent
        total = size(sum(row["nbytes"] for row in rows))
        tasks = plural(len(rows), "task")
        skipped = sum(row["skipped"] for row in rows)
        same = f"; {skipped} were there already, the same" if skipped else ""
        out.text(f"exported {tasks} to {folder} ({total}), {checked} verified{same}")
    else:
        for row in rows:
            proof, nbytes = _proof(row["verify_error"]), size(row["nbytes"])
            if row["skipped"]:
                out.text(f"skipped {row['task']}: the same is there already, {row['path']}")
                continue
            out.text(f"exported {row['task']} to {row['path']} ({nbytes}{proof})")
    lines = starts(watcher)
    for line in lines[:12]:
        out.text(f"start it with: {line}")
    if len(lines) > 12:
        out.text(f"and {len(lines) - 12} more alike; --json lists them")
    return rows


def starts(watcher: Watcher) -> list[str]:
    """The lines that serve all that was exported."""
    exported = watcher.all(events.Exported)
    return [
        line
        for target in dict.fromkeys(event.target for event in exported)
        for line in start_lines(target, [_served(e) for e in exported if e.target == target])
    ]


def _served(event: events.Exported) -> Served:
    return Served(event.task, event.path, event.rank, event.base, event.base_folder)


def _proof(error: float | None) -> str:
    if error is None:
        return ""
    same = ", read back and the same"
    return same if error < 1e-6 else f", read back, dW off by {percent(error)}"


def _is_one(chosen: list[str], subspace: str) -> bool:
    return len(chosen) == 1 and (
        not has_magic(chosen[0]) or chosen[0] in _tasks_like_patterns(chosen, subspace)
    )


def _as_patterns(chosen: list[str], subspace: str) -> list[str]:
    """What was named, as a recipe says it: a task's name stands for its task, and for no other."""
    names = _tasks_like_patterns(chosen, subspace)
    return [escape(word) if word in names else word for word in chosen]


def _tasks_like_patterns(chosen: list[str], subspace: str) -> set[str]:

    magic = {word for word in chosen if has_magic(word)}
    folder = Path(subspace).expanduser()
    return magic & set(read_manifest(folder).tasks) if magic and is_own_subspace(folder) else set()

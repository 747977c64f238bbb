"""``export`` (also ``reconstruct``): tasks of a subspace as adapters for PEFT and for servers."""

from __future__ import annotations

from glob import escape, has_magic
from pathlib import Path
from typing import Annotated, Any

from vlora_engine.errors import ParameterError
from vlora_engine.targets import TARGETS, Served, start_lines
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.pipeline import events
from vlora_tui.utils.formatting import percent, plural, size


def export(
    out: Output,
    subspace: o.Subspace,
    output: o.OutputDir,
    *,
    tasks: Annotated[
        list[str] | None, argument("Task names or patterns.", metavar="[TASK]...")
    ] = None,
    adapter: Annotated[
        list[str] | None, option("--adapter", "The same, as lorashare has it.")
    ] = None,
    every: Annotated[bool, option("--all", "Every task, each in its own folder.")] = False,
    target: Annotated[str, option("--target", f"Who reads it: {', '.join(TARGETS)}.")] = "peft",
    alpha: Annotated[
        float | None, option("--alpha", "lora_alpha to write; B is scaled so that dW stays.")
    ] = None,
    base_model: Annotated[
        str | None, option("--base-model", "The base model's name to write.")
    ] = None,
    target_modules: Annotated[
        str | None, option("--target-modules", "Modules to write, with commas between.")
    ] = None,
    dtype: Annotated[
        str | None, option("--dtype", "fp32, fp16 or bf16; by default the original's.")
    ] = None,
    drop_rest: Annotated[
        bool, option("--drop-rest", "Leave out tensors that the target does not take.")
    ] = False,
    base: Annotated[
        str | None, option("--base", "GGUF: the base model's folder or config.json.", metavar="DIR")
    ] = None,
    verify: Annotated[bool, option("--verify/--no-verify", "Read back what was written.")] = True,
    writing: o.Writing,
) -> None:
    """Write tasks of a subspace as adapters for PEFT, or for a server: vLLM, llama.cpp, Ollama...

    One task goes to the output itself; several, or --all, to a folder each inside it.
    """
    from vlora_tui.cli.execute import carry_out
    from vlora_tui.cli.flags import from_tables

    chosen = [*(tasks or []), *(adapter or [])]
    if every == bool(chosen):
        raise ParameterError(
            "Name the tasks to export, or all of them.",
            expected="TASK..., --adapter TASK or --all",
            found="both" if every else "neither",
        )
    row: dict[str, Any] = {
        "tasks": _as_patterns(chosen, subspace) or None,
        "target": target,
        "path": output if _is_one(chosen, subspace) else f"{output}/{{task}}",
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
    recipe = from_tables(
        {
            "input": {"subspace": subspace},
            "export": [{name: value for name, value in row.items() if value is not None}],
        }
    )
    if alpha is None and not (writing.print_recipe or writing.dry_run):
        _show_no_alpha(subspace, out)
    watcher = carry_out(recipe, out, writing)
    if watcher is None:
        return
    exported = show_exports(out, watcher)
    out.json(
        "export", {"subspace": str(Path(subspace)), "exported": exported, "start": starts(watcher)}
    )
    for row in exported:
        out.essence(row["path"])


def _show_no_alpha(subspace: str, out: Output) -> None:
    """Say that a scale of 1 is a guess, where a peer has dropped the alpha."""
    from vlora_engine.catalog.read import read_manifest
    from vlora_engine.interop.names import VLORA_DEV, peer_at

    if peer_at(Path(subspace)) != VLORA_DEV:
        return
    for finding in read_manifest(subspace).findings:
        if finding.code == "no-alpha":
            out.note(f"note: {finding.what} To mend it: {finding.remedy}.")


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
    return Served(event.task, event.path, event.rank, event.base)


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
    from vlora_engine.catalog.read import read_manifest
    from vlora_engine.manifest.manifest import is_own_subspace

    magic = {word for word in chosen if has_magic(word)}
    folder = Path(subspace).expanduser()
    return magic & set(read_manifest(folder).tasks) if magic and is_own_subspace(folder) else set()

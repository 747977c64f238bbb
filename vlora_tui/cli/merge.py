"""``merge``: adapters into one, or a look at what that would keep of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from vlora_engine.errors import ParameterError
from vlora_engine.utils.naming import cosine_text
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.merge_flags import Merging
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.pipeline import events
from vlora_tui.utils.formatting import percent, plural, size

if TYPE_CHECKING:
    from vlora_tui.recipe.model import Recipe

NOWHERE = "merged"  # where a preview would write: nowhere
BESIDE_A_FILE = ("rank", "energy", "seed")  # flags that say what a mergekit file cannot


def merge(
    out: Output,
    adapters: Annotated[
        list[str] | None,
        argument(
            "Adapters, or DIR:TASK of subspaces; or one mergekit file (.yml).",
            metavar="ADAPTERS",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None, option("-o", "--output", "Where to write.", metavar="DIR")
    ] = None,
    *,
    merging: Merging,
    preview: Annotated[
        bool, option("--preview", "Show what it keeps of each adapter; write nothing.")
    ] = False,
    list_methods: Annotated[bool, option("--list-methods", "List the methods and exit.")] = False,
    writing: o.Writing,
) -> None:
    """Merge adapters into one, on the weight change that the model sees."""
    if list_methods:
        from vlora_tui.cli.merge_methods import show_methods

        show_methods(out)
        return
    from vlora_tui.cli.execute import carry_out
    from vlora_tui.recipe.reader import load_recipe

    if not adapters:
        raise ParameterError("There is nothing to merge.", expected="ADAPTERS, or a mergekit file")
    if output is None and not preview:
        raise ParameterError("There is nowhere to put the result.", remedy="name it: -o DIR")
    if preview and is_recipe(adapters):
        _refuse_flags(adapters[0], merging.table())
        preview_merges(load_recipe(adapters[0]), out)
        return
    recipe = _recipe(adapters, merging.table(), output or NOWHERE, out)
    if preview and not (writing.print_recipe or writing.dry_run):
        preview_merges(recipe, out, nowhere=output is None)
        return
    watcher = carry_out(recipe, out, writing)
    if watcher is not None:
        merged = show_merges(out, watcher)
        out.json("merge", merged[0])
        out.essence(merged[0]["path"])


def _recipe(adapters: list[str], given: dict[str, Any], output: str, out: Output) -> Recipe:
    """The recipe that the arguments stand for."""
    from vlora_tui.cli.flags import require_there
    from vlora_tui.recipe.mergekit import is_config, read_config

    configs = [path for path in adapters if is_config(path)]
    if not configs:
        require_there(adapters)
        paths = [path if "/" in path else f"./{path}" for path in adapters]
        return _of_table({"adapters": paths, "path": output, **given})
    if len(adapters) > 1:
        raise ParameterError("A mergekit file already names what is merged.", where=configs[0])
    _refuse_flags(configs[0], {k: v for k, v in given.items() if k not in BESIDE_A_FILE})
    config = read_config(configs[0])
    for note in config.notes:
        out.note(note)
    return _of_table(config.table | {"path": output, **given})


def _of_table(table: dict[str, Any]) -> Recipe:
    from vlora_tui.cli.flags import from_tables

    adapters = list(dict.fromkeys(table["adapters"]))
    return from_tables({"input": {"adapters": adapters}, "merge": [table]})


def is_recipe(paths: list[str]) -> bool:
    """Whether the one place is a recipe file."""
    from vlora_tui.recipe.reader import is_handed_over

    return len(paths) == 1 and (paths[0].endswith(".toml") or is_handed_over(paths[0]))


def _refuse_flags(path: str, given: dict[str, Any]) -> None:
    if given:
        raise ParameterError(
            "A mergekit file takes no flags that change it.",
            where=path,
            found=", ".join(f"--{name.replace('_', '-')}" for name in given),
            remedy="change the file, or name the adapters and give flags",
        )


def preview_merges(recipe: Recipe, out: Output, *, nowhere: bool = False) -> None:
    """Print what every merge of a recipe keeps of its adapters; write nothing."""
    from vlora_tui.cli.execute import execute
    from vlora_tui.pipeline.run import PreviewRun

    watcher = execute(recipe, out, make=PreviewRun)
    rows = []
    for event in watcher.all(events.MergePreviewed):
        _say_merge(out, event, "would merge")
        _show_retention(out, event)
        rows.append(_row(event) | ({"path": None} if nowhere else {}))
        out.essence(
            f"{min((retention['cosine'] for retention in event.report['kept']), default=0):.6g}"
        )
    out.json("merge-preview", {"merges": rows})
    out.note("preview: nothing was written")


def show_merges(out: Output, watcher: Watcher) -> list[dict[str, Any]]:
    """Every merge, printed for people and returned for JSON."""
    verified = {event.path: event.error for event in watcher.all(events.Verified)}
    rows = []
    for event in watcher.all(events.Merged):
        _say_merge(out, event, "merged")
        if event.report["rest_left_out"]:
            left = plural(len(event.report["rest_left_out"]), "tensor")
            out.text(
                f"left out, as the adapters differ in them: {left}, such as "
                f"{event.report['rest_left_out'][0]}"
            )
        _show_retention(out, event)
        error = verified.get(event.path)
        read_back = "" if error is None else ", read back and the same"
        out.text(f"written to {event.path} ({size(event.nbytes)}{read_back})")
        proof = {"nbytes": event.nbytes, "verified": error is not None, "verify_error": error}
        rows.append(_row(event) | proof)
    return rows


def _say_merge(out: Output, event: events.MergeComputed, verb: str) -> None:
    report = event.report
    weights = ", ".join(f"{weight:.3g}" for weight in report["weights"])
    if report["varied"]:
        weights += f"; others in {plural(report['varied'], 'module')}"
    values = "".join(f", {name} {_value(v)}" for name, v in report["parameters"].items())
    out.text(
        f"{verb} {', '.join(event.adapters)} by {event.method} (weights {weights}{values}): "
        f"rank {event.rank}, {plural(event.modules, 'module')}"
    )
    if report["cut_error"] > 0:
        out.text(f"cutting the rank changed dW by {percent(report['cut_error'])}")


def _show_retention(out: Output, event: events.MergeComputed) -> None:
    rows = [
        (
            name,
            cosine_text(retention["cosine"]),
            percent(retention["strength"]),
            percent(retention["energy"]),
            cosine_text(retention["worst_cosine"]),
            retention["worst_module"],
        )
        for name, retention in zip(event.adapters, event.report["kept"], strict=True)
    ]
    out.table(("kept of", "cosine", "strength", "energy", "worst", "in module"), rows)


def _row(event: events.MergeComputed) -> dict[str, Any]:
    report = event.report
    retention = dict(zip(event.adapters, report["kept"], strict=True))
    return {
        "path": event.path,
        "method": event.method,
        "adapters": list(event.adapters),
        "rank": event.rank,
        "modules": event.modules,
        "parameters": report["parameters"],
        **{name: report[name] for name in ("weights", "cut_error", "rest_kept", "rest_left_out")},
        "kept": retention,
    }


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(f"{item:g}" for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

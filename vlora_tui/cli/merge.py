"""``merge``: adapters into one, or a look at what that would keep of them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from vlora_engine.errors import ParameterError
from vlora_tui import events
from vlora_tui.cli import options as o
from vlora_tui.cli.execute import dry_run as show_plan
from vlora_tui.cli.execute import execute
from vlora_tui.cli.flags import from_tables, numbers, require_there
from vlora_tui.cli.merge_methods import show_methods
from vlora_tui.cli.output import Output, percent, plural, printable
from vlora_tui.cli.progress import Watcher
from vlora_tui.mergekit import is_config, read_config
from vlora_tui.recipe import Recipe, load_recipe, resolve

NOWHERE = "merged"  # where a preview would write: nowhere


def merge(
    ctx: typer.Context,
    adapters: Annotated[
        list[str] | None,
        typer.Argument(
            help="Adapters, or DIR:TASK of subspaces; or one mergekit file (.yml).",
            metavar="ADAPTERS",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Where to write.", metavar="DIR")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="average, ties, dare, ...: --list-methods tells of each."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="One for each adapter: 0.7,0.3.")
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers", help="Other weights for some; may be repeated.", metavar="PATTERN=W,W"
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Only the weights' ratios matter.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[float | None, typer.Option("--scale", help="Of the result.")] = None,
    density: Annotated[
        str | None,
        typer.Option("--density", help="Share of entries to keep; 0.5,0.3 for each adapter."),
    ] = None,
    drop_rate: Annotated[
        str | None, typer.Option("--drop-rate", help="dare: the share of entries to drop.")
    ] = None,
    epsilon: Annotated[
        str | None, typer.Option("--epsilon", help="della: how far chances move with size.")
    ] = None,
    gamma: Annotated[
        str | None, typer.Option("--gamma", help="breadcrumbs: share of the largest to drop.")
    ] = None,
    select_topk: Annotated[
        float | None, typer.Option("--select-topk", help="sce: share of entries to keep.")
    ] = None,
    t: Annotated[
        float | None, typer.Option("--t", help="slerp: 0 the first, 1 the second.")
    ] = None,
    keep: Annotated[
        float | None, typer.Option("--keep", help="tsv_m: share of directions to keep.")
    ] = None,
    majority_sign: Annotated[
        str | None, typer.Option("--majority-sign", help="peft's ties: total or frequency.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="dare, della: makes it repeatable.")
    ] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="The rank of the result.")] = None,
    energy: Annotated[
        float | None, typer.Option("--energy", help="Or: the share of its energy to keep.")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option("--space", help="delta: merges dW; factors: A and B apart, as vLoRA."),
    ] = None,
    dialect: Annotated[
        str | None, typer.Option("--dialect", help="peft: as its add_weighted_adapter does.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="fp32, fp16 or bf16; as the adapters by default.")
    ] = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Say what it keeps of each; write nothing.")
    ] = False,
    list_methods: Annotated[
        bool, typer.Option("--list-methods", help="Tell what methods there are, and stop.")
    ] = False,
    force: o.Force = False,
    dry_run: o.DryRun = False,
    print_recipe: o.PrintRecipe = False,
    events_file: o.EventsFile = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Merge adapters into one, on the weight change that the model sees."""
    out = Output(json=as_json, quiet=quiet)
    if list_methods:
        show_methods(out)
        return
    if not adapters:
        raise ParameterError("There is nothing to merge.", expected="ADAPTERS, or a mergekit file")
    if output is None and not preview:
        raise ParameterError("There is nowhere to put the result.", remedy="name it: -o DIR")
    row: dict[str, Any] = {
        "method": method,
        "weights": numbers(weights, "--weights"),
        "layers": dict(_layer(text) for text in layers or ()) or None,
        "normalize": normalize,
        "scale": scale,
        "density": _one_or_each(density, "--density"),
        "drop_rate": _one_or_each(drop_rate, "--drop-rate"),
        "epsilon": _one_or_each(epsilon, "--epsilon"),
        "gamma": _one_or_each(gamma, "--gamma"),
        "select_topk": select_topk,
        "t": t,
        "keep": keep,
        "majority_sign": majority_sign,
        "seed": seed,
        "rank": rank,
        "energy": energy,
        "space": space,
        "dialect": dialect,
        "dtype": dtype,
    }
    given = {name: value for name, value in row.items() if value is not None}
    recipe = _recipe(adapters, given, output or NOWHERE, out, preview=preview)
    nowhere = output is None and not is_recipe(adapters)
    if print_recipe:
        print(resolve(recipe).to_toml(), end="")
    elif dry_run:
        show_plan(recipe, out, force=force)
    elif preview:
        preview_merges(recipe, out, nowhere=nowhere)
    else:
        watcher = execute(recipe, out, force=force, events_file=events_file)
        merged = show_merges(out, watcher)
        out.json("merge", merged[0])
        out.essence(merged[0]["path"])


def _recipe(
    adapters: list[str], given: dict[str, Any], output: str, out: Output, *, preview: bool
) -> Recipe:
    """The recipe that the arguments stand for."""
    if is_recipe(adapters) and preview:
        _refuse_flags(adapters[0], given)
        return load_recipe(adapters[0])
    configs = [path for path in adapters if is_config(path)]
    if configs:
        if len(adapters) > 1:
            raise ParameterError("A mergekit file says by itself what is merged.", where=configs[0])
        # a cut, a dialect of the file's own: what the file cannot say may be said beside it
        _refuse_flags(
            configs[0], {k: v for k, v in given.items() if k not in ("rank", "energy", "seed")}
        )
        config = read_config(configs[0])
        for note in config.notes:
            out.note(note)
        tables = config.tables | {"path": output, **given}
    else:
        require_there(adapters)
        places = [path if "/" in path else f"./{path}" for path in adapters]
        tables = {"adapters": places, "path": output, **given}
    places = tables["adapters"]
    return from_tables({"input": {"adapters": list(dict.fromkeys(places))}, "merge": [tables]})


def is_recipe(places: list[str]) -> bool:
    """Whether the one place is a recipe file."""
    return len(places) == 1 and places[0].endswith(".toml")


def _refuse_flags(path: str, given: dict[str, Any]) -> None:
    if given:
        raise ParameterError(
            "A file says all; flags that change it are not taken.",
            where=path,
            found=", ".join(f"--{name.replace('_', '-')}" for name in given),
            remedy="change the file, or name the adapters and give flags",
        )


def preview_merges(recipe: Recipe, out: Output, *, nowhere: bool = False) -> None:
    """Print what every merge of a recipe keeps of its adapters; write nothing."""
    from vlora_tui.run import PreviewRun

    watcher = execute(recipe, out, make=PreviewRun)
    rows = []
    for event in watcher.all(events.MergePreviewed):
        _say_merge(out, event, "would merge")
        _show_kept(out, event)
        rows.append(_row(event) | ({"path": None} if nowhere else {}))
        out.essence(f"{min((kept['cosine'] for kept in event.report['kept']), default=0):.6g}")
    out.json("merge-preview", {"merges": rows})
    out.note("preview: nothing was written")


def show_merges(out: Output, watcher: Watcher) -> list[dict[str, Any]]:
    """Every merge, printed for people and returned for JSON."""
    rows = []
    for event in watcher.all(events.Merged):
        _say_merge(out, event, "merged")
        if event.report["rest_left_out"]:
            left = plural(len(event.report["rest_left_out"]), "tensor")
            out.text(
                printable(
                    f"left out, as the adapters differ in them: {left}, such as "
                    f"{event.report['rest_left_out'][0]}"
                )
            )
        _show_kept(out, event)
        out.text(printable(f"written to {event.path}"))
        rows.append(_row(event))
    return rows


def _say_merge(out: Output, event: events.Merged | events.MergePreviewed, verb: str) -> None:
    report = event.report
    weights = ", ".join(f"{weight:.3g}" for weight in report["weights"])
    if report["varied"]:
        weights += f"; others in {plural(report['varied'], 'module')}"
    values = "".join(f", {name} {_value(v)}" for name, v in report["parameters"].items())
    out.text(
        printable(
            f"{verb} {', '.join(event.adapters)} by {event.method} (weights {weights}{values}): "
            f"rank {event.rank}, {plural(event.modules, 'module')}"
        )
    )
    if report["cut_error"] > 0:
        out.text(f"cutting the rank changed dW by {percent(report['cut_error'])}")


def _show_kept(out: Output, event: events.Merged | events.MergePreviewed) -> None:
    rows = [
        (
            name,
            f"{kept['cosine']:.3f}",
            f"{kept['strength']:.3f}",
            percent(kept["energy"]),
            f"{kept['worst_cosine']:.3f}",
            kept["worst_module"],
        )
        for name, kept in zip(event.adapters, event.report["kept"], strict=True)
    ]
    out.table(("kept of", "cosine", "strength", "energy", "worst", "in module"), rows)


def _row(event: events.Merged | events.MergePreviewed) -> dict[str, Any]:
    report = event.report
    kept = dict(zip(event.adapters, report["kept"], strict=True))
    return {
        "path": event.path,
        "method": event.method,
        "adapters": list(event.adapters),
        "rank": event.rank,
        "modules": event.modules,
        "parameters": report["parameters"],
        **{name: report[name] for name in ("weights", "cut_error", "rest_kept", "rest_left_out")},
        "kept": kept,
    }


def _layer(text: str) -> tuple[str, list[float]]:
    pattern, equals, weights = text.rpartition("=")
    if not equals or not pattern:
        raise ParameterError(
            "--layers takes a pattern and its weights.",
            expected="'*.attn.*=0.5,0.5'",
            found=repr(text),
        )
    return pattern, numbers(weights, "--layers") or []


def _one_or_each(text: str | None, flag: str) -> float | list[float] | None:
    """One number, or one for each adapter."""
    values = numbers(text, flag)
    return values[0] if values is not None and len(values) == 1 else values


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(f"{one:g}" for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)

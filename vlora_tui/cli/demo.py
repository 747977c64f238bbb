"""``demo``: the whole way on adapters that it makes itself."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from vlora_tui import events
from vlora_tui.cli import options as o
from vlora_tui.cli.execute import execute
from vlora_tui.cli.flags import from_tables
from vlora_tui.cli.output import Output, percent, plural, printable, size, times
from vlora_tui.cli.progress import Watcher
from vlora_tui.run import k_text

DEFAULT = "vlora-demo"
TARGET = 0.05


def demo(
    directory: Annotated[str, typer.Argument(help="Where to make it.", metavar="[DIR]")] = DEFAULT,
    max_error: Annotated[
        float, typer.Option("--max-error", help="The error that no task may exceed.")
    ] = TARGET,
    force: o.Force = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Make a small collection, look at it, compress it, export from it, and check the result.

    Nothing is downloaded; every figure is measured while you wait. A second run starts afresh.
    """
    out = Output(json=as_json, quiet=quiet)
    tell(out, run_demo(Path(directory), out, max_error=max_error, force=force))


def run_demo(place: Path, out: Output, *, max_error: float, force: bool) -> dict[str, Any]:
    """Do all of it below ``place``; return the figures."""
    from vlora_engine.catalog import scan
    from vlora_engine.demo import MANIFEST, make_demo_collection

    adapters, subspace, exported = place / "adapters", place / "subspace", place / "exported"
    ours = (adapters / MANIFEST).is_file()  # an earlier demo may be replaced by this one
    made = make_demo_collection(adapters, force=force)
    catalog = scan(adapters)
    recipe = from_tables(
        {
            "input": {"adapters": [str(adapters)], "skip_bad": True},
            "compress": {"max_error": max_error},
            "output": {"subspace": str(subspace)},
            "export": [{"tasks": ["*"], "path": f"{exported}/{{task}}"}],
        }
    )
    watcher = _execute(recipe, out, force=force or ours)
    from vlora_engine.surface import Spectra
    from vlora_tui.cli.spectra import cost_rows

    ready = watcher.last(events.SpectraReady)
    return {
        "path": str(place),
        "adapters": len(made.adapters),
        "input_bytes": sum(info.nbytes for info in catalog.adapters),
        "catalog": catalog.as_dict(),
        "left_out": [
            {"name": skipped.name, "error": skipped.error}
            for skipped in watcher.all(events.AdapterSkipped)
        ],
        "remarks": [
            {"where": remark.where, "what": remark.text} for remark in watcher.all(events.Remark)
        ],
        "costs": cost_rows(Spectra.load(ready.path)),
        "subspace": watcher.last(events.SubspaceWritten).figures,
        "other_methods": [
            row for event in watcher.all(events.OtherMethods) for row in event.methods
        ],
        "exported": [
            {"task": event.task, "path": event.path, "error": event.error}
            for event in watcher.all(events.Verified)
        ],
        "seconds": watcher.last(events.Finished).seconds,
    }


def tell(out: Output, data: dict[str, Any]) -> None:
    """The story of a demo, from its figures."""
    out.json("demo", data)
    figures, place = data["subspace"], data["path"]
    catalog = data["catalog"]
    ranks = sorted({rank for info in catalog["adapters"] for rank in info["ranks"] or ()})
    out.text(f"1  made        {plural(data['adapters'], 'adapter')} in {place}/adapters")
    out.text(
        f"2  inspected   {plural(len(catalog['groups']), 'group')}, "
        f"ranks {ranks[0]} to {ranks[-1]}, {size(data['input_bytes'])}"
    )
    out.text(f"3  checked     every tensor; {plural(len(figures['tasks']), 'adapter')} sound")
    for left in data["left_out"]:
        error = left["error"]
        why = ": ".join(filter(None, (error["what"].rstrip("."), error["found"])))
        out.text(printable(f"               left out: {left['name']} ({why})"))
    for remark in data["remarks"]:
        out.text(printable(f"               note: {Path(remark['where']).name}: {remark['what']}"))
    out.text("4  measured    the error of dW for every k, before anything was built:")
    for row in _ladder(data["costs"]):
        out.text(
            f"               k = {row['k']:<3} {percent(row['mean_error']):>7} on average, "
            f"{percent(row['max_error']):>7} at worst, {times(row['ratio'])} smaller"
        )
    k = k_text({layer: tuple(pair) for layer, pair in figures["k"].items()})
    out.text(
        f"5  compressed  no task above {percent(TARGET)}: {figures['method']}, k = {k}, "
        f"{size(figures['nbytes'])} ({times(figures['ratio'])} smaller)"
    )
    out.text(
        f"               measured: {percent(figures['mean_error'])} on average, "
        f"{percent(figures['max_error'])} at worst ({figures['worst_task']})"
    )
    worst = max((row["error"] for row in data["exported"]), default=0.0)
    out.text(
        f"6  exported    {plural(len(data['exported']), 'adapter')} to {place}/exported, each read "
        f"back: off by {worst:.0e} at most"
    )
    out.text(f"done in {data['seconds']:.1f} s. Next:")
    for words in next_commands(data):
        out.text(f"   vlora-tui {shlex.join(words)}")
    out.essence(place)


def next_commands(data: dict[str, Any]) -> list[list[str]]:
    """What to try next, on what the demo left."""
    place, worst = data["path"], data["subspace"]["worst_task"]
    adapters, subspace = f"{place}/adapters", f"{place}/subspace"
    original = next(i["path"] for i in data["catalog"]["adapters"] if i["name"] == worst)
    return [
        ["inspect", adapters],
        ["info", subspace],
        ["analyze", adapters, "--skip-bad"],
        ["compress", adapters, "--skip-bad", "--budget", "2MB", "-o", f"{place}/small"],
        ["diff", original, f"{subspace}:{worst}"],
        ["merge", f"{subspace}:french", f"{subspace}:german", "-o", f"{place}/merged"],
    ]


def _ladder(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A few steps of delta's costs."""
    return [row for row in rows if row["method"] == "delta" and row["k"] in (4, 16, 64, 256)]


def _execute(recipe: Any, out: Output, *, force: bool) -> Watcher:
    """Run the recipe; what it would say on the way, the story says."""
    return execute(recipe, _Silent(json=out.as_json, quiet=out.quiet), force=force)


class _Silent(Output):
    """Progress bars, but no lines: the story tells it all at the end."""

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

"""``demo``: the whole way on adapters that it makes itself."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlora_engine.adapters.address import expanded
from vlora_engine.compression_target import DEFAULT_MAX_ERROR
from vlora_engine.errors import place_words, told
from vlora_engine.findings import Finding
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.interface import could_open, open_interface
from vlora_tui.cli.output import Output
from vlora_tui.pipeline import events
from vlora_tui.utils.formatting import percent, plural, size, times

if TYPE_CHECKING:
    from vlora_engine.catalog.scanner import Catalog

DEFAULT = "vlora-demo"
EXACT = 1e-6  # a smaller error of dW is rounding


def demo(
    out: Output,
    ctx: typer.Context,
    directory: Annotated[str, argument("Where to create it.", metavar="[DIR]")] = DEFAULT,
    max_error: Annotated[
        float, option("--max-error", "Maximum error of any task.")
    ] = DEFAULT_MAX_ERROR,
    headless: Annotated[
        bool, option("--headless", "Print the steps here instead of opening the interface.")
    ] = False,
    force: o.Force = False,
) -> None:
    """Make a small collection, look at it, compress it, export from it, and check the result.

    Nothing is downloaded; every figure is measured while you wait. A second run starts afresh.
    On a terminal the interface opens on the collection; with any flag the story is told here.
    """
    plain = not (headless or force or out.as_json or out.quiet or max_error != DEFAULT_MAX_ERROR)
    if plain and could_open():
        raise typer.Exit(open_interface(ctx, demo=f"{directory}/adapters"))
    folder = expanded(directory)
    story = Story(out, folder, max_error)
    data = run_demo(folder, out, story, max_error=max_error, force=force)
    story.end(data)
    out.json("demo", data)
    out.essence(data["path"])


def run_demo(
    folder: Path, out: Output, story: Story, *, max_error: float, force: bool
) -> dict[str, Any]:
    """Do all of it below ``folder``; return the figures."""
    from vlora_engine.catalog.scanner import scan
    from vlora_engine.demo import MANIFEST, make_demo_collection
    from vlora_engine.spectra.tables import Spectra
    from vlora_engine.utils.output_checks import refuse_inside_output
    from vlora_tui.cli.execute import execute
    from vlora_tui.cli.flags import from_tables
    from vlora_tui.cli.spectra import cost_rows

    adapters, subspace, exported = folder / "adapters", folder / "subspace", folder / "exported"
    ours = (adapters / MANIFEST).is_file()  # an earlier demo may be replaced by this one
    recipe = from_tables(
        {
            "input": {"adapters": [str(adapters)], "skip_bad": True},
            "compress": {"max_error": max_error, "spectra": "cache"},
            "output": {"subspace": str(subspace)},
            "export": [{"path": f"{exported}/{{task}}"}],
        }
    )
    refuse_inside_output(adapters)
    made = make_demo_collection(adapters, force=force)
    catalog = scan(adapters)
    story.begin(len(made.adapters), catalog)
    silent = _Silent(out.as_json, out.quiet)
    watcher = execute(recipe, silent, force=force or ours, story=story)
    ready = watcher.last(events.SpectraReady)
    return {
        "path": str(folder),
        "adapters": len(made.adapters),
        "input_bytes": sum(info.nbytes for info in catalog.adapters),
        "catalog": catalog.as_dict(),
        "left_out": [
            {"name": skipped.name, "error": told(skipped.error)}
            for skipped in watcher.all(events.AdapterSkipped)
        ],
        "remarks": [
            {"where": remark.where, "what": remark.text} for remark in watcher.all(events.Remark)
        ],
        "costs": cost_rows(Spectra.load(ready.path)) if ready is not None else [],
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


class Story:
    """What the demo does, told as it happens.

    Args:
        folder: Where it happens.
        max_error: What it aims at.
    """

    def __init__(self, out: Output, folder: Path, max_error: float) -> None:
        self.out, self.folder, self.max_error = out, folder, max_error
        self._verified: list[float] = []

    def begin(self, made: int, catalog: Catalog) -> None:
        """What there is, before the run."""
        ranks = sorted({rank for info in catalog.adapters for rank in info.ranks or ()})
        self._step(1, "made", f"{plural(made, 'adapter')} in {self.folder}/adapters")
        self._step(
            2,
            "inspected",
            f"{plural(len(catalog.groups), 'group')}, ranks {ranks[0]} to {ranks[-1]}, "
            f"{size(sum(info.nbytes for info in catalog.adapters))}",
        )

    def __call__(self, event: events.Event) -> None:
        """One event of the run."""
        match event:
            case events.Checked():
                self._step(3, "checked", f"every tensor; {plural(event.good, 'adapter')} sound")
            case events.AdapterSkipped():
                what, tensor = why(event.error)
                self._more(f"left out: {event.name}: {what}")
                if tensor:
                    self._more(f"          {tensor}")
            case events.Remark():
                self._more(f"note: {where_in_short(event.found)}{event.text}")
            case events.SpectraReady():
                self._step(4, "measured", "the error of dW for every k, before anything was built:")
                self._ladder(event.path)
            case events.SubspaceWritten():
                self._compressed(event.figures)
            case events.Verified():
                self._verified.append(event.error)
            case events.Finished():
                worst = max(self._verified, default=0.0)
                exported = plural(len(self._verified), "adapter")
                self._step(
                    6,
                    "exported",
                    f"{exported} to {self.folder}/exported, each read back: "
                    + ("the same dW" if worst < EXACT else f"dW off by at most {percent(worst)}"),
                )

    def end(self, data: dict[str, Any]) -> None:
        """Say what to do next with the demo collection."""
        self.out.text(f"done in {data['seconds']:.1f} s. Next:")
        for words in next_commands(data):
            self.out.text(f"   {program()} {shlex.join(words)}")

    def _compressed(self, figures: dict[str, Any]) -> None:
        from vlora_tui.pipeline.forecast import how

        self._step(
            5,
            "compressed",
            f"no task above {percent(self.max_error)}: {how(figures)}, "
            f"{size(figures['nbytes'])} ({times(figures['ratio'])} smaller)",
        )
        self._more(
            f"measured: {percent(figures['mean_error'])} on average, "
            f"{percent(figures['max_error'])} at worst ({figures['worst_task']})"
        )

    def _ladder(self, path: str) -> None:
        from vlora_engine.spectra.tables import Spectra
        from vlora_tui.cli.spectra import cost_rows

        for row in cost_rows(Spectra.load(path)):
            if row["method"] == "delta" and row["k"] in (4, 16, 64, 256):
                self._more(f"k = {row['k']:<3} {_errors(row)}, {_how_small(row['ratio'])}")

    def _step(self, number: int, what: str, text: str) -> None:
        self.out.text(f"{number}  {what:<11} {text}")

    def _more(self, text: str) -> None:
        self.out.text(f"{'':15}{text}")


def _errors(row: dict[str, Any]) -> str:
    """The mean and the worst error of a row, to be read below one another."""
    if row["max_error"] < EXACT:
        return f"{'exact, but for rounding':<32}"
    return f"{percent(row['mean_error']):>7} on average, {percent(row['max_error']):>7} at worst"


def _how_small(ratio: float) -> str:
    return f"{times(ratio)} smaller" if ratio >= 1 else f"{times(1 / ratio)} larger"


def why(error: dict[str, Any]) -> tuple[str, str]:
    """An error in one line, what and how much of it; and in which tensor."""
    what = str(error.get("what", "")).rstrip(".")
    found = f" ({error['found']})" if error.get("found") else ""
    finding = Finding.from_json(error)
    tensor = f"tensor {finding.tensor}" if finding.tensor else f"module {finding.module}"
    return f"{what}{found}", tensor if finding.tensor or finding.module else ""


def where_in_short(finding: Finding) -> str:
    """The place in front of a sentence, a file by its name."""
    if not finding.where:
        return ""
    name = Path(finding.file or finding.adapter).name
    return f"{place_words('', name, '', finding.tensor) or finding.where}: "


def program() -> str:
    """The word that starts this program from a shell, here."""
    if shutil.which("vlora-tui") or Path(sys.argv[0]).name != "vlora-tui":
        return "vlora-tui"
    return shlex.quote(sys.argv[0])


def next_commands(data: dict[str, Any]) -> list[list[str]]:
    """What to try next, on what the demo left."""
    folder, worst = data["path"], data["subspace"]["worst_task"]
    adapters, subspace = f"{folder}/adapters", f"{folder}/subspace"
    original = next(i["path"] for i in data["catalog"]["adapters"] if i["name"] == worst)
    return [
        ["inspect", adapters],
        ["info", subspace],
        ["analyze", adapters, "--skip-bad"],
        ["compress", adapters, "--skip-bad", "--budget", "2MB", "-o", f"{folder}/small"],
        ["diff", original, f"{subspace}:{worst}"],
        ["merge", f"{subspace}:french", f"{subspace}:german", "-o", f"{folder}/merged"],
    ]


class _Silent(Output):
    """Progress bars, but no lines: the story tells it all."""

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

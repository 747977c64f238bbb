"""``report``: a collection or a subspace as one Markdown file, with its plots beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from vlora_engine.adapters.address import AdapterRef, expanded
from vlora_engine.errors import ParameterError
from vlora_engine.utils.device import require_device
from vlora_engine.utils.json_reader import is_whole
from vlora_engine.utils.naming import printable
from vlora_tui.cli import options as o
from vlora_tui.cli.compare import Outliers, check_thresholds, find_all, read_all
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.hub_inputs import on_disk
from vlora_tui.cli.output import Output
from vlora_tui.report.comparison import CLUSTERED
from vlora_tui.utils.formatting import plural, size

if TYPE_CHECKING:
    from vlora_engine.spectra.tables import Spectra
    from vlora_tui.pipeline.inputs import Collection

PLOTS = ("similarity", "norms", "errors", "layers", "variance", "sizes")


def report(
    out: Output,
    paths: Annotated[
        list[str], argument("Adapters as `analyze` takes them, or one subspace.", metavar="PATHS")
    ],
    output: Annotated[
        str, option("-o", "--output", "The Markdown file.", metavar="FILE")
    ] = "report.md",
    threshold: Annotated[
        float, option("--threshold", "The cosine from which adapters count as similar.")
    ] = CLUSTERED,
    outliers: Outliers = None,
    title: Annotated[str | None, option("--title", "The title.")] = None,
    spectra: o.SpectraAt = None,
    measure: Annotated[
        bool, option("--measure", "Measure k and size first, where not yet measured.")
    ] = False,
    device: o.Device = "auto",
    skip_bad: o.SkipBad = False,
    force: o.Force = False,
    dry_run: o.DryRun = False,
) -> None:
    """Write a report: table, similarity, clusters, outliers, duplicates, runs, findings, plots.

    What k and size cost is in it where the spectra are in the cache, with --spectra, or with
    --measure. The plots are SVG files beside the report that are named after it.
    """
    require_device(device)
    check_thresholds(threshold, outliers)
    target = expanded(output)
    named, paths = paths, on_disk(out, *paths)
    subspace = _as_subspace(paths)
    if subspace is not None and (spectra is not None or measure):
        raise ParameterError(
            "A subspace is what was chosen: nothing is left to measure for it.",
            found="--spectra or --measure",
            remedy="report on the adapters it was made of",
        )
    collection = find_all(paths, out, skip_bad=skip_bad) if subspace is None else None
    found = None
    if collection is not None:
        found = _spectra(collection, paths, spectra, out, skip_bad=skip_bad, measure=None)
    files = {name: target.with_name(f"{target.stem}-{name}.svg") for name in PLOTS}
    _require_free(target, files, force=force)
    if dry_run:
        _show_plan(out, collection, subspace, target)
        return
    if collection is not None and found is None and measure:
        found = _spectra(collection, paths, None, out, skip_bad=skip_bad, measure=device)
    data = _gather(
        collection, subspace, found, out, threshold=threshold, outliers=outliers, skip_bad=skip_bad
    )
    plots = {name: file.name for name, file in files.items()}
    _write(out, target, title or _title(named, data), data, plots, force=force)


def _as_subspace(paths: list[str]) -> str | None:
    """The one subspace that is meant, or None where these are adapters."""
    from vlora_engine.catalog.read import is_subspace

    if len(paths) == 1 and is_subspace(expanded(paths[0])):
        return str(expanded(paths[0]))
    return None


def _spectra(
    collection: Collection,
    paths: list[str],
    named: str | None,
    out: Output,
    *,
    skip_bad: bool,
    measure: str | None,
) -> Spectra | None:
    """The spectra that are named, or cached, or measured now on the device ``measure``."""
    from vlora_engine.spectra.tables import Spectra
    from vlora_tui.cli.execute import measured
    from vlora_tui.cli.flags import from_tables

    if named is not None:
        return Spectra.load(expanded(named))
    if measure is None:
        cached = collection.cached_spectra()
        return cached if cached is not None and cached.complete else None
    recipe = from_tables({"input": {"adapters": list(paths), "skip_bad": skip_bad}})
    return measured(recipe, out, measure)


def _require_free(target: Path, files: dict[str, Path], *, force: bool) -> None:
    """Refuse before anything is read what cannot be written afterwards."""
    from vlora_engine.utils.output_checks import check_output_file

    if target.suffix.lower() not in (".md", ".markdown"):
        raise ParameterError(
            "A report is a Markdown file.",
            expected="a name that ends in .md",
            found=target.name,
            remedy=f"-o {'report' if target.is_dir() else target.stem}.md",
        )
    # Plots without their report are of one that was cut short: `_write` looks at what they are.
    for path in (target, *(files.values() if target.exists() else ())):
        check_output_file(path, force=force)


def _show_plan(
    out: Output, collection: Collection | None, subspace: str | None, target: Path
) -> None:
    names = list(collection.adapters) if collection is not None else []
    nbytes = sum(source.nbytes for source in collection.adapters.values()) if collection else 0
    out.json(
        "dry-run",
        {
            "dry_run": True,
            "adapters": names,
            "subspace": subspace,
            "input_bytes": nbytes,
            "outputs": [str(target)],
        },
    )
    what = f"the subspace {subspace}" if subspace else f"{plural(len(names), 'adapter')}"
    out.text(f"Would read {what}{f' ({size(nbytes)})' if nbytes else ''}")
    out.text(f"Would write {target}, and its plots {target.stem}-*.svg beside it")
    out.essence(str(target))
    out.note("dry run: nothing was written")


def _gather(
    collection: Collection | None,
    subspace: str | None,
    spectra: Spectra | None,
    out: Output,
    *,
    threshold: float,
    outliers: float | None,
    skip_bad: bool,
) -> dict[str, Any]:
    from vlora_tui.cli.progress import Watcher
    from vlora_tui.report.gather import collection_data, require_same, subspace_data

    if subspace is not None:
        with Watcher(out) as watcher:
            return subspace_data(
                subspace, threshold=threshold, outliers=outliers, progress=watcher.on_progress
            )
    assert collection is not None  # noqa: S101
    compared = read_all(collection, out, skip_bad=skip_bad)
    if spectra is not None:
        require_same(spectra, compared)
    several = compared if len(compared.names) > 1 else None
    return collection_data(collection, several, spectra, threshold=threshold, outliers=outliers)


def _title(paths: list[str], data: dict[str, Any]) -> str:
    first = paths[0]
    name = AdapterRef.parse(first).name or first
    if data["of"] == "subspace":
        return f"Subspace {name}"
    return f"LoRA adapters in {name}" if len(paths) == 1 else "LoRA adapters"


def _link(file: str) -> str:
    """A file beside the report as a link in it."""
    return file.replace(" ", "%20") if is_whole(file) else quote(os.fsencode(file))


def _write(
    out: Output,
    target: Path,
    title: str,
    data: dict[str, Any],
    names: dict[str, str],
    *,
    force: bool,
) -> None:
    """Write the plots, and last the report that shows them."""
    from vlora_engine.utils.files import write_file
    from vlora_engine.utils.output_checks import check_output_file
    from vlora_tui.report.charts import charts_of
    from vlora_tui.report.markdown import markdown

    charts = charts_of(data)
    plots = {name: names[name] for name in charts}
    text = printable(markdown(title, data, {name: _link(file) for name, file in plots.items()}))
    target.parent.mkdir(parents=True, exist_ok=True)
    for name, svg in charts.items():
        place = target.with_name(plots[name])
        if not place.is_file() or place.read_bytes() != svg.encode():
            check_output_file(place, force=force)
    for name, svg in charts.items():
        write_file(target.with_name(plots[name]), svg)
    write_file(target, text)
    written = [str(target), *(str(target.with_name(file)) for file in plots.values())]
    out.json("report", {"title": title, "outputs": written, **data})
    out.text(f"Written: {target}, with {plural(len(plots), 'plot')} beside it")
    out.essence(str(target))

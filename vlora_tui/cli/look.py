"""``inspect`` and ``info``: what there is, read from headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vlora_engine.adapters.address import CACHE_PLACE, SEARCH_PLACE, AdapterRef, address_text
from vlora_engine.errors import ParameterError, VLoRAError
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.hub_inputs import headers_of
from vlora_tui.cli.output import Output
from vlora_tui.utils.formatting import percent, plural, size, times

if TYPE_CHECKING:
    from vlora_engine.catalog.scanner import AdapterInfo, Catalog
    from vlora_engine.formats.provenance import Record
    from vlora_engine.manifest.manifest import Manifest, TaskRecord

SHOWN = 20  # adapters of which it is printed where they come from


def inspect(
    out: Output,
    paths: Annotated[
        list[str] | None, argument("Adapter folders, patterns, hf://org/name.", metavar="PATHS")
    ] = None,
    hf_cache: Annotated[bool, option("--hf-cache", "The adapters in the Hub cache.")] = False,
    search_base: Annotated[
        str | None,
        option("--search-base", "The adapters on the Hub for this model.", metavar="ORG/NAME"),
    ] = None,
    limit: Annotated[int | None, option("--limit", "Maximum number of search results; 20.")] = None,
) -> None:
    """List adapters: which are sound as far as headers tell, which fit together.

    On the Hub headers alone are read; nothing is downloaded.
    """
    from vlora_engine.catalog.scanner import scan

    if limit is not None and search_base is None:
        raise ParameterError("--limit is for --search-base.")
    addresses = expand(paths or ())
    addresses += [CACHE_PLACE] * hf_cache
    addresses += [] if search_base is None else [SEARCH_PLACE + search_base]
    catalog = scan(addresses, search_limit=limit)
    tasks = _tasks_inside(catalog)
    records = _records(catalog)
    told = {name: record.as_dict() for name, record in records.items()}
    rows = {**catalog.as_dict(), "tasks": [info.as_dict() for info in tasks], "provenance": told}
    out.json("inspect", rows)
    show_catalog(out, catalog, tasks)
    _show_records(out, records)
    for info in (*catalog.usable, *tasks):
        out.essence(info.name)


def _records(catalog: Catalog) -> dict[str, Record]:
    """What the adapters here say of where they come from, by name."""
    from vlora_engine.formats.provenance import read_record

    places = {i.name: i.path for i in catalog.usable if isinstance(i.path, Path)}
    found = {name: read_record(path) for name, path in places.items()}
    return {name: record for name, record in found.items() if record is not None}


def _show_records(out: Output, records: Mapping[str, Record]) -> None:
    """Where adapters come from: a line each, and of a single one all hashes."""
    if not records:
        return
    from vlora_engine.formats.provenance import hashes_of

    out.text()
    for name, record in list(records.items())[:SHOWN]:
        out.text(f"{name}: {record.words}")
    if len(records) > SHOWN:
        out.text(f"the first {SHOWN} of {len(records)} that say it; --json has all")
    if len(records) == 1:
        (record,) = records.values()
        for source in record.sources:
            for file, digest in sorted(hashes_of(source).items()):
                out.text(f"    {source.get('name')}, {file}: sha256 {digest}")
        out.text(f"    tensors as they were written: sha256 {record.content}")


def _tasks_inside(catalog: Catalog) -> list[AdapterInfo]:
    """The tasks of every subspace that was found; one that cannot be read is a finding already."""
    from vlora_engine.catalog.scanner import tasks_of

    tasks = []
    for path in catalog.subspaces:
        with suppress(VLoRAError), headers_of(str(path)) as folder:
            tasks += [_as_named(info, path) for info in tasks_of(Path(folder))]
    return tasks


def _as_named(info: AdapterInfo, subspace: Path | AdapterRef) -> AdapterInfo:
    """A task of a subspace on the Hub, of which only the headers were read, by its address."""
    if isinstance(subspace, Path):
        return info
    name = address_text(str(info.path))
    return replace(info, name=name, path=AdapterRef.on_hub(name))


def show_catalog(out: Output, catalog: Catalog, tasks: Sequence[AdapterInfo] = ()) -> None:
    """A table of adapters and tasks, then groups, then what is remarkable."""
    rows = [
        (
            info.name,
            "-" if info.group is None else info.group + 1,
            _ranks(info),
            _number(info.alpha),
            info.modules,
            info.dtype,
            size(info.nbytes) if info.error is None else None,
            info.base_model if info.error is None else "cannot be used",
        )
        for info in (*catalog.adapters, *tasks)
    ]
    out.table(("adapter", "group", "rank", "alpha", "modules", "dtype", "size", "base"), rows)
    out.text()
    out.text(_summary(catalog, len(tasks)))
    faults: dict[tuple[str, str | None], list[Any]] = {}
    for info in catalog.adapters:
        if info.error is not None:
            faults.setdefault((info.error.what, info.error.remedy), []).append(info)
    for info, *others in faults.values():
        first, *rest = info.error.lines()
        out.text(f"error    {info.name}: {first}")
        if others:
            out.text(f"           the same: {', '.join(other.name for other in others)}")
        for line in rest:
            out.text(f"         {line}")
    findings = [(f, _named(f.where, info)) for info in catalog.adapters for f in info.findings]
    findings += [(f, f.where) for f in catalog.findings]
    for code in dict.fromkeys(f.code for f, _ in findings):
        alike = [(f, where) for f, where in findings if f.code == code]
        more = f" (and {plural(len(alike) - 1, 'other')} like it)" if len(alike) > 1 else ""
        first, where = alike[0]
        out.text(f"{first.severity:<8} {f'{where}: ' if where else ''}{first.what}{more}")


def info(out: Output, subspace: o.Subspace) -> None:
    """Tell what a subspace holds: method, k, tasks with their errors, bytes. Headers only."""
    from vlora_engine.catalog.read import read_manifest

    with headers_of(subspace) as folder:
        manifest = read_manifest(folder)
        out.json("info", info_data(manifest))
        show_manifest(out, manifest)
    for task in manifest.tasks:
        out.essence(task)


def info_data(manifest: Manifest) -> dict[str, Any]:
    """What ``info`` tells a program; vLoRA's words for it are kept beside ours."""
    from vlora_engine.manifest.explained import explained

    shares = explained(manifest)
    layers = manifest.layers if manifest.shared_basis is None else manifest.of_basis().layers
    top = max((max(layer.k_a, layer.k_b) for layer in layers), default=0)
    return {
        **manifest.as_dict(),
        "path": address_text(str(manifest.path)),
        "num_components": top,
        "rank": max((layer.rank for layer in manifest.layers), default=0),
        "num_layers": len(manifest.layers),
        "num_tasks": len(manifest.tasks),
        "task_ids": list(manifest.tasks),
        "variance_explained_a": shares.a,
        "variance_explained_b": shares.b,
        "variance_explained_note": shares.note or None,
        "compression_ratio": manifest.ratio if manifest.tasks and not manifest.peer else None,
    }


def show_manifest(out: Output, manifest: Manifest) -> None:
    """The same for people."""
    from vlora_engine.manifest.manifest import shared_basis_figures
    from vlora_engine.manifest.readme import stored_how
    from vlora_tui.pipeline.forecast import how, manifest_figures

    out.text(f"subspace   {address_text(str(manifest.path))}")
    stored = stored_how(manifest)
    out.text(f"method     {how(manifest_figures(manifest))}, {stored}")
    out.text(f"base       {manifest.base_model or 'not named'}")
    tasks, modules = plural(len(manifest.tasks), "task"), plural(len(manifest.layers), "module")
    out.text(f"holds      {tasks}, {modules}")
    if manifest.shared_basis is not None:
        shown = shared_basis_figures(manifest, manifest.shared_basis)
        count = sum(task.in_basis for task in manifest.tasks.values())
        out.text(
            f"basis      {shown['method']}, k {shown['k'][0]} to {shown['k'][1]}, "
            f"{size(shown['bytes'])} beside the tasks; {plural(count, 'task')} as loadings in it"
        )
    if not manifest.tasks:
        return
    codec = f"codec ratio {times(manifest.codec_ratio)} (against A and B in 16 bit)"
    if manifest.peer:
        out.text(f"on disk    {size(manifest.nbytes)}; {codec}")
        out.text(f"error      not known: {manifest.peer} does not keep what its tasks lost")
        for finding in manifest.findings:
            out.text(f"{finding.severity:<10} {finding.what}")
    else:
        out.text(
            f"on disk    {size(manifest.nbytes)} of {size(manifest.input_bytes)} "
            f"({times(manifest.ratio)}); {codec}"
        )
        worst = manifest.worst
        out.text(
            f"error      {percent(manifest.mean_error)} of dW on average, "
            f"{percent(worst.error if worst else None)} at worst"
        )
        for origin in sorted({task.origin for task in manifest.tasks.values() if task.origin}):
            count = sum(task.origin == origin for task in manifest.tasks.values())
            out.text(
                f"           of {plural(count, 'task')} counted from what {origin} held of them"
            )
    out.text()
    related = any(task.cluster for task in manifest.tasks.values())
    rows = [
        (
            task.id,
            _error(task, manifest),
            task.rank,
            _number(task.config.get("lora_alpha")),
            len(task.layers) + len(task.own),
            task.rest or "-",
            size(task.nbytes),
            *([task.cluster or "-"] if related else []),
        )
        for task in manifest.tasks.values()
    ]
    names = ("task", "error", "rank", "alpha", "modules", "kept whole", "size")
    out.table((*names, "cluster") if related else names, rows)


def _error(task: TaskRecord, manifest: Manifest) -> str:
    if manifest.peer:
        return "-"
    return percent(task.error) if task.measured else f"<= {percent(task.error)}"


def expand(paths: Sequence[str]) -> list[str]:
    """Patterns that no shell expanded, as the paths that match them."""
    from vlora_tui.cli.flags import require_there
    from vlora_tui.recipe.model import named_inputs
    from vlora_tui.recipe.resolve import expand_input

    require_there(paths)
    return [
        found.path
        for entry in named_inputs(paths)
        for found in (expand_input(entry) if entry.ref.is_local else [entry])
    ]


def _summary(catalog: Catalog, tasks: int) -> str:
    usable, total = len(catalog.usable), len(catalog.adapters)
    if tasks and not total:
        inside = plural(len(catalog.subspaces), "subspace")
        return f"{plural(tasks, 'task')} in {inside}"
    text = plural(total, "adapter")
    if usable < total:
        text += f", {total - usable} that cannot be used"
    if catalog.groups:
        groups = plural(len(catalog.groups), "group")
        text += f", {groups} that {'fits' if len(catalog.groups) == 1 else 'fit'} together"
    return f"{text}, {size(sum(info.nbytes for info in catalog.adapters))}"


def _named(where: str, info: Any) -> str:
    """A place in an adapter, by the adapter's name instead of its path."""
    path = str(info.path)
    return f"{info.name}{where[len(path) :]}" if where.startswith(path) else where


def _ranks(info: Any) -> str | None:
    if info.ranks is None or info.ranks[0] == info.ranks[1]:
        return None if info.rank is None else str(info.rank)
    return f"{info.ranks[0]}-{info.ranks[1]}"


def _number(value: Any) -> str | None:
    return f"{value:g}" if isinstance(value, int | float) else None

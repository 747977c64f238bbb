"""``push`` and ``pull``: to the Hugging Face Hub, and from it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vlora_engine.errors import ParameterError
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.pipeline import events
from vlora_tui.utils.formatting import plural, size

if TYPE_CHECKING:
    from vlora_engine.publish.push import Upload

SHOWN = 12  # files that a dry run names


def push(
    out: Output,
    directory: Annotated[
        str, argument("A subspace, an adapter, a folder of adapters.", metavar="DIR")
    ],
    repo: Annotated[str, argument("Where to, on the Hub.", metavar="ORG/NAME")],
    adapters: Annotated[
        bool, option("--adapters", "Tasks of the subspace as PEFT adapters, a folder each.")
    ] = False,
    tasks: Annotated[
        list[str] | None, option("--task", "Only these tasks or patterns; with --adapters.")
    ] = None,
    private: Annotated[bool, option("--private", "Make a new repository private.")] = False,
    revision: Annotated[
        str | None, option("--revision", "--branch", "The branch; by default main.")
    ] = None,
    message: Annotated[str | None, option("--message", "-m", "Commit message.")] = None,
    force: Annotated[
        bool, option("--force", "Replace files of an earlier push; the history keeps them.")
    ] = False,
    dry_run: o.DryRun = False,
) -> None:
    """Publish a subspace or adapters on the Hub in one commit, with a model card.

    The token is that of `hf auth login`, or HF_TOKEN. Where adapters lay on this machine is not
    told; those that came from the Hub are named in the card, with their licences.
    """
    from vlora_engine.publish.push import push as send
    from vlora_engine.publish.push import upload_of
    from vlora_tui.cli.execute import stop_on_signals

    if tasks and not adapters:
        raise ParameterError("--task chooses among the adapters.", remedy="add --adapters")
    chosen = _chosen(directory, tasks) if adapters else None
    with (
        tempfile.TemporaryDirectory(prefix="vlora-push-") as staging,
        Watcher(out) as watcher,
        stop_on_signals(out) as stop,
    ):
        upload = upload_of(
            directory,
            repo,
            revision=revision,
            tasks=chosen,
            staging=Path(staging),
            progress=watcher.on_progress,
            cancelled=stop.is_set,
        )
        for remark in upload.remarks:
            out.warn(f"{remark.where}: {remark.what} Fix: {remark.remedy}")
        data = _data(directory, upload)
        if dry_run:
            watcher.pause()
            _show_plan(out, upload, data)
            return
        pushed = send(
            upload,
            private=private,
            message=message,
            force=force,
            progress=watcher.on_progress,
            cancelled=stop.is_set,
        )
    out.json("push", {**data, "commit": str(pushed.address), "url": pushed.url, "dry_run": False})
    out.text(f"pushed {plural(len(pushed.files), 'file')}, {size(pushed.nbytes)}, to {pushed.url}")
    out.text(f"commit   {pushed.address}")
    out.essence(str(pushed.address))


def show_pushes(out: Output, watcher: Watcher) -> list[dict[str, Any]]:
    """Everything that a recipe pushed, printed for people and returned for JSON."""
    rows = [
        {
            "path": event.path,
            "to": event.to,
            "commit": event.commit,
            "url": event.url,
            "files": event.files,
            "bytes": event.nbytes,
        }
        for event in watcher.all(events.Pushed)
    ]
    for row in rows:
        files, nbytes = plural(row["files"], "file"), size(row["bytes"])
        out.text(f"pushed {row['path']}: {files}, {nbytes}, to {row['url']}")
        out.text(f"commit   {row['commit']}")
    return rows


def pull(
    out: Output,
    address: Annotated[str, argument("hf://org/name[@revision][/subfolder]", metavar="ADDRESS")],
    output: o.OutputDir,
    force: o.Force = False,
    dry_run: o.DryRun = False,
) -> None:
    """Download an adapter, a folder of adapters or a subspace from the Hub.

    Only its own files come, through the Hub's cache: what is there already is not sent again.
    """
    from vlora_engine.hub import AdapterRef
    from vlora_engine.hub.pull import pull as get
    from vlora_tui.cli.execute import stop_on_signals

    ref = AdapterRef.on_hub(address)
    if dry_run:
        _show_pull(out, address, output, force=force)
        return
    with Watcher(out) as watcher, stop_on_signals(out) as stop:
        found = get(ref, output, force=force, progress=watcher.on_progress, cancelled=stop.is_set)
    for remark in found.remarks:
        out.note(f"note: {remark.where}: {remark.what}")
    nbytes = sum((Path(output) / _below(found, name)).stat().st_size for name in found.files)
    data = {
        "address": str(found.address),
        "path": output,
        "files": [_below(found, name) for name in found.files],
        "bytes": nbytes,
        "downloaded": found.downloaded,
        "dry_run": False,
    }
    out.json("pull", data)
    files = plural(len(found.files), "file")
    out.text(f"pulled {found.address}: {files}, {size(nbytes)}, to {output}")
    if found.downloaded < nbytes:
        out.text(f"of it {size(nbytes - found.downloaded)} were in the Hub's cache already")
    out.essence(output)


def _show_pull(out: Output, address: str, output: str, *, force: bool) -> None:
    from vlora_engine.hub import AdapterRef
    from vlora_engine.hub.listing import adapter_files, list_repository
    from vlora_engine.utils.output_checks import check_output

    check_output(Path(output), force=force)
    listing = list_repository(AdapterRef.on_hub(address))
    files = adapter_files(listing)
    nbytes = sum(listing.sizes[name] or 0 for name in files)
    pinned = str(listing.address)
    data = {"address": pinned, "path": output, "files": files, "bytes": nbytes, "dry_run": True}
    out.json("pull", data)
    count = plural(len(files), "file")
    out.text(f"Would pull {pinned}: {count}, {size(nbytes)}, to {output}")
    out.note("dry run: nothing was downloaded")


def _below(found: Any, name: str) -> str:
    subfolder = found.address.subfolder
    return name.removeprefix(f"{subfolder}/") if subfolder else name


def _chosen(directory: str, patterns: list[str] | None) -> list[str]:
    from vlora_engine.catalog.read import read_manifest
    from vlora_tui.pipeline.task_patterns import match_tasks

    return match_tasks(patterns or (), list(read_manifest(directory).tasks))


def _data(directory: str, upload: Upload) -> dict[str, Any]:
    return {
        "path": directory,
        "repo": upload.address.repo,
        "revision": upload.address.revision,
        "files": list(upload.contents()),
        "bytes": upload.nbytes,
        "remarks": [remark.as_dict() for remark in upload.remarks],
    }


def _show_plan(out: Output, upload: Upload, data: dict[str, Any]) -> None:
    out.json("push", {**data, "card": upload.card, "dry_run": True})
    names = list(upload.contents())
    count = plural(len(names), "file")
    out.text(f"Would push {count}, {size(upload.nbytes)}, to {upload.address}")
    for name in names[:SHOWN]:
        out.text(f"  {name}")
    if len(names) > SHOWN:
        out.text(f"  and {len(names) - SHOWN} more")
    out.text()
    for line in upload.card.splitlines():
        out.text(f"  | {line}".rstrip())
    for name in names:
        out.essence(name)
    out.note("dry run: nothing was sent")

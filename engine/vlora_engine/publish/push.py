"""To the Hub: a subspace, its tasks as adapters, or adapters, in one commit with a model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlora_engine.adapters.address import AdapterRef, absolute_source, is_address
from vlora_engine.catalog.load import load_space
from vlora_engine.catalog.locate import existing_path
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import is_subspace, read_manifest
from vlora_engine.errors import (
    HubAccessError,
    MissingPathError,
    NotFoundError,
    OutputExistsError,
)
from vlora_engine.findings import Finding
from vlora_engine.hub.client import api, endpoint_page, hub_errors, silence
from vlora_engine.hub.listing import CARD, Listing, adapter_files, list_repository
from vlora_engine.manifest.manifest import Manifest
from vlora_engine.publish.card import Entry, adapters_card, is_public, source_licence, subspace_card
from vlora_engine.subspace.save import write_copy
from vlora_engine.subspace.space import SpaceState
from vlora_engine.targets.save import save_adapter
from vlora_engine.utils.file_names import ADAPTER_CONFIG, SUBSPACE_INDEX
from vlora_engine.utils.files import dump_json
from vlora_engine.utils.naming import slugs
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.run_context import RunContext
from vlora_engine.utils.safetensors_file import read_error

STAGE = "upload"  # its units are bytes
STOPPED = "Stopped before the commit: the repository is as it was."
BATCH_FILES = 50
BATCH_BYTES = 200_000_000
OURS = (".gitattributes", CARD)  # what every repository may have before anything is pushed


@dataclass(frozen=True)
class Upload:
    """What is going to be pushed.

    Args:
        address: Where to; its revision is the branch, None for the main one.
        files: By their paths in the repository, as files here or as bytes.
        card: The model card.
        remarks: What its owner should know before others see it.
    """

    address: AdapterRef
    files: Mapping[str, Path | bytes]
    card: str
    remarks: tuple[Finding, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(map(_size, self.contents().values()))

    def contents(self) -> dict[str, Path | bytes]:
        """All files, the card among them."""
        return {CARD: self.card.encode(), **self.files}


@dataclass(frozen=True)
class Pushed:
    """What a push came to: the commit as an address, its page, files and bytes."""

    address: AdapterRef
    url: str
    files: tuple[str, ...]
    nbytes: int


def upload_of(
    directory: str | Path,
    repo_id: str,
    *,
    revision: str | None = None,
    tasks: Sequence[str] | None = None,
    staging: Path | None = None,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> Upload:
    """What pushing ``directory`` comes to: a subspace, or adapters. Nothing is sent.

    Of a subspace's sources only those on the Hub are told; where files lay here is left out.

    Args:
        repo_id: ``org/name``.
        revision: The branch; by default the main one.
        tasks: Push these tasks of the subspace as PEFT adapters instead, a folder each.
        staging: An empty folder for them.

    Raises:
        ParameterError: ``repo_id`` is no repository's name.
        NotFoundError: There is neither a subspace nor an adapter in ``directory``.
    """
    asked = AdapterRef.whole_repository(repo_id)
    address = AdapterRef.of_repo(asked.repo, revision or asked.revision)
    place = Path(directory)
    if not is_subspace(place):
        if tasks is not None:
            read_manifest(place)  # says that there is none, and what is there instead
        return _adapters_upload(place, address)
    if tasks is None:
        return _subspace_upload(place, address)
    if staging is None:
        raise ValueError("tasks are exported into a staging folder")
    return _tasks_upload(place, address, tasks, staging, RunContext(progress, cancelled))


def push(
    upload: Upload,
    *,
    private: bool = False,
    message: str | None = None,
    force: bool = False,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> Pushed:
    """Send it: make the repository where it is missing, then one commit with everything.

    Args:
        private: Of a repository that is new.
        force: The repository has files already: those of an earlier push make way, in a commit
            of its history.

    Raises:
        HubAccessError: There is no token, or it may not write there.
        OutputExistsError: The repository has files, and not ``force``.
        HubError: The Hub cannot be reached, or refused.
        Cancelled: ``cancelled()`` became true; no commit was made.
    """
    address = upload.address
    require_token(address)
    stale = _stale_files(upload, require_free(address, force=force))
    files = upload.contents()
    with hub_errors(address), silence():
        client = api()
        client.create_repo(address.repo, private=private, exist_ok=True)
        if address.revision is not None:
            client.create_branch(address.repo, branch=address.revision, exist_ok=True)
        operations = list(_uploaded(client, upload, files, RunContext(progress, cancelled)))
        made = client.create_commit(
            address.repo,
            [*operations, *stale],
            commit_message=message or f"Add {_what(upload)}",
            revision=address.revision,
        )
    pinned = replace(address, revision=made.oid)
    return Pushed(pinned, endpoint_page(address.repo), tuple(files), upload.nbytes)


def push_space(space: SpaceState, repo_id: str, staging: Path, **options: Any) -> Pushed:
    """Write a copy of a subspace below ``staging`` and push it; raises as `push`."""
    revision = options.pop("revision", None)
    tasks = options.pop("tasks", None)
    write_copy(space, staging / "subspace")
    upload = upload_of(
        staging / "subspace", repo_id, revision=revision, tasks=tasks, staging=staging / "tasks"
    )
    return push(upload, **options)


def require_token(address: AdapterRef) -> None:
    """Raise where there is no token at all: nobody may write without one.

    Raises:
        HubAccessError: It says how to get one.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise HubAccessError(
            "Pushing takes a token that may write.",
            where=str(address),
            found="no token",
            remedy="log in with `hf auth login`, or set HF_TOKEN",
        )


def require_free(address: AdapterRef, *, force: bool = False) -> Listing | None:
    """Refuse to touch a repository that holds files; what it holds, None where there is none yet.

    Args:
        force: It may hold files: those of an earlier push will make way.

    Raises:
        OutputExistsError: It has files, and not ``force``.
        HubError, HubAccessError: The Hub cannot be reached, or does not tell.
    """
    try:
        there = list_repository(address)
    except NotFoundError:
        return None  # no repository, or no such branch yet
    others = [name for name in there.sizes if name not in OURS]
    if others and not force:
        shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if others[4:] else "")
        raise OutputExistsError(
            "The repository holds files already; nothing was sent.",
            where=str(address),
            found=shown,
            remedy="push to another one, or pass --force (in Python force=True): those of an "
            "earlier push make way, and its history keeps them",
        )
    return there


# what goes into an upload


def _subspace_upload(place: Path, address: AdapterRef) -> Upload:
    manifest = read_manifest(place)
    files: dict[str, Path | bytes] = {SUBSPACE_INDEX: _public_index(manifest)}
    files |= {b.name: place / b.name for b in manifest.files}
    files |= {f"tasks/{t.file}": place / "tasks" / t.file for t in manifest.tasks.values()}
    entries = _task_entries(manifest, list(manifest.tasks))
    card = subspace_card(manifest, entries, address.repo)
    return Upload(address, files, card, tuple(_private_bases(entries)))


def _tasks_upload(
    place: Path, address: AdapterRef, tasks: Sequence[str], staging: Path, run: RunContext
) -> Upload:
    space = load_space(place)
    folders = slugs(tasks)
    for done, task in enumerate(tasks):
        run.stop_if_asked(STOPPED)
        run.report("export", done, len(tasks), task)
        save_adapter(space.reconstruct(task), staging / folders[task])
    files: dict[str, Path | bytes] = {
        path.relative_to(staging).as_posix(): path
        for path in sorted(staging.rglob("*"))
        if path.is_file()
    }
    entries = [
        replace(entry, folder=folders[entry.name])
        for entry in _task_entries(read_manifest(place), tasks)
    ]
    card = adapters_card(entries, address.repo, compressed=True)
    return Upload(address, files, card, tuple(_private_bases(entries)))


def _adapters_upload(place: Path, address: AdapterRef) -> Upload:
    """An adapter, or a folder of them, as they lie."""
    place = existing_path(place)
    names: dict[str, int | None] = {
        path.relative_to(place).as_posix(): path.stat().st_size
        for path in sorted(place.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    try:
        chosen = adapter_files(Listing(AdapterRef.of_repo(address.repo), names))
    except NotFoundError:
        raise MissingPathError(
            "There is neither a subspace nor an adapter here.",
            where=place,
            expected="subspace.json, or adapter_config.json beside adapter_model.safetensors",
        ) from None
    files: dict[str, Path | bytes] = {n: place / n for n in chosen if n != CARD}
    folders = sorted({name.rpartition("/")[0] for name in files})
    entries = [_adapter_entry(place, folder, open_adapter(place / folder)) for folder in folders]
    card = adapters_card(entries, address.repo, compressed=False)
    return Upload(address, files, card, tuple(_private_bases(entries)))


def _adapter_entry(place: Path, folder: str, source: Any) -> Entry:
    alpha = source.config.get("lora_alpha")
    return Entry(
        name=folder or place.name,
        folder=folder,
        base_model=source.config.get("base_model_name_or_path"),
        rank=source.config.get("r"),
        alpha=alpha if isinstance(alpha, int | float) else None,
        licence=source_licence(str(place / folder)),
    )


def _task_entries(manifest: Manifest, tasks: Sequence[str]) -> list[Entry]:
    entries = []
    for name in tasks:
        record = manifest.task(name)
        source = absolute_source(record.source, manifest.path)
        alpha = record.config.get("lora_alpha")
        entries.append(
            Entry(
                name=name,
                base_model=record.config.get("base_model_name_or_path") or manifest.base_model,
                rank=record.rank,
                alpha=alpha if isinstance(alpha, int | float) else None,
                error=record.error,
                source=source if source is not None and is_address(source) else None,
                licence=source_licence(source),
            )
        )
    return entries


def _public_index(manifest: Manifest) -> bytes:
    """The index without the places on this machine that its tasks came from."""
    tasks = {
        name: task if task.source is None or is_address(task.source) else replace(task, source=None)
        for name, task in manifest.tasks.items()
    }
    return dump_json(replace(manifest, tasks=tasks).as_json()).encode()


def _private_bases(entries: Sequence[Entry]) -> Iterator[Finding]:
    for name in dict.fromkeys(entry.base_model for entry in entries):
        if name and not is_public(name):
            what = "The adapters' config names a base model by a path; anyone can read it."
            remedy = "export them with --base-model NAME, and push those"
            yield Finding("private-base", "warning", what, remedy, place=name)


# sending it


def _stale_files(upload: Upload, there: Listing | None) -> list[Any]:
    """What of an earlier push has to go."""
    from huggingface_hub import CommitOperationDelete

    try:
        former = [] if there is None else adapter_files(there)
    except NotFoundError:
        return []
    gone = [name for name in former if name not in upload.files and name != CARD]
    return [CommitOperationDelete(path_in_repo=name) for name in gone]


def _uploaded(
    client: Any, upload: Upload, files: Mapping[str, Path | bytes], run: RunContext
) -> Iterator[Any]:
    """The commit's operations; what is large is sent on the way, some files at a time."""
    from huggingface_hub import CommitOperationAdd

    total, done = sum(map(_size, files.values())), 0
    for batch in _batches(files):
        run.stop_if_asked(STOPPED)
        operations = [
            CommitOperationAdd(
                path_in_repo=name,
                path_or_fileobj=str(content) if isinstance(content, Path) else content,
            )
            for name, content in batch
        ]
        client.preupload_lfs_files(
            upload.address.repo, additions=operations, revision=upload.address.revision
        )
        done += sum(_size(content) for _, content in batch)
        run.report(STAGE, done, total, batch[-1][0])
        yield from operations
    run.stop_if_asked(STOPPED)


def _batches(files: Mapping[str, Path | bytes]) -> Iterator[list[tuple[str, Path | bytes]]]:
    batch: list[tuple[str, Path | bytes]] = []
    nbytes = 0
    for name, content in files.items():
        if batch and (len(batch) >= BATCH_FILES or nbytes + _size(content) > BATCH_BYTES):
            yield batch
            batch, nbytes = [], 0
        batch.append((name, content))
        nbytes += _size(content)
    if batch:
        yield batch


def _size(content: Path | bytes) -> int:
    if isinstance(content, bytes):
        return len(content)
    try:
        return content.stat().st_size
    except OSError as error:
        raise read_error(content, error) from None


def _what(upload: Upload) -> str:
    if SUBSPACE_INDEX in upload.files:
        return "a subspace of LoRA adapters"
    count = sum(name.endswith(ADAPTER_CONFIG) for name in upload.files)
    return "a LoRA adapter" if count == 1 else f"{count} LoRA adapters"

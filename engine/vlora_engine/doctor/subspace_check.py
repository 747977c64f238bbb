"""Findings: what is remarkable about an adapter or a subspace, how grave it is, what mends it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.catalog.read import read_manifest
from vlora_engine.errors import CorruptFileError, SubspaceError, VLoRAError
from vlora_engine.findings import Finding, finding_of
from vlora_engine.utils.file_names import SUBSPACE_INDEX
from vlora_engine.utils.files import sha256_file
from vlora_engine.utils.locks import is_held
from vlora_engine.utils.outputs import strays
from vlora_engine.utils.progress import ProgressCallback
from vlora_engine.utils.reading import kind_error
from vlora_engine.utils.run_context import RunContext

if TYPE_CHECKING:
    from torch import Tensor

    from vlora_engine.manifest.manifest import Manifest, TaskRecord
    from vlora_engine.subspace.coded.store import CodedTask
    from vlora_engine.subspace.loadings import EncodedTask
    from vlora_engine.subspace.store import StoredSubspace

STAGE = "check"  # of progress
Tell = Callable[[str], None]  # that a file, a layer's basis or a task is done
# What the rounding of a dtype leaves of an orthonormal basis.
ORTHONORMAL = {"F64": 1e-5, "F32": 1e-5, "F16": 4e-3, "BF16": 3e-2}


def check_subspace(path: str | Path, *, progress: ProgressCallback | None = None) -> list[Finding]:
    """Everything that is wrong with a subspace directory: index, files, shapes, figures.

    Every byte is read: checksums, then every basis (finite, orthonormal) and every task (finite,
    shapes as the index says). What is found does not stop the search.

    Raises:
        NotFoundError: There is no subspace at ``path``.
        StorageError: The operating system refuses to read it.
    """
    try:
        manifest = read_manifest(path)
    except (CorruptFileError, SubspaceError) as error:
        return [_from_error(error, file=SUBSPACE_INDEX, place="index", adapter=str(path))]
    findings = _findings(manifest, _steps(manifest, RunContext(progress)))
    if findings and manifest.is_outdated():
        return check_subspace(path, progress=progress)  # it was changed meanwhile: that is no fault
    return [replace(finding, adapter=str(path)) for finding in findings]


def _steps(manifest: Manifest, run: RunContext) -> Tell:
    """Counts what is done: the files, whose bytes are read; the bases; the tasks."""
    has_bases = manifest.coding is None or manifest.shared_basis is not None
    files = 0 if manifest.peer else len(manifest.files) + len(manifest.tasks)
    total = files + len(manifest.tasks) + len(manifest.layers) * has_bases
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        done += 1
        run.report(STAGE, done, total, what)

    return tell


def _findings(manifest: Manifest, tell: Tell) -> list[Finding]:
    if manifest.peer:
        return list(_peer_findings(manifest, tell))
    findings = list(_file_findings(manifest, tell))
    broken = {finding.file for finding in findings if finding.severity == "error"}
    return findings + _content_findings(manifest, broken, tell)


def _content_findings(manifest: Manifest, broken: set[str], tell: Tell) -> list[Finding]:
    if manifest.coding is not None:
        return list(_coded_findings(manifest, broken, tell))
    from vlora_engine.subspace.store import StoredSubspace

    stored = StoredSubspace(manifest, verify=False)
    try:
        return [*_basis_findings(stored, broken, tell), *_task_findings(stored, broken, tell)]
    finally:
        stored.close()


def _file_findings(manifest: Manifest, tell: Tell) -> Iterator[Finding]:
    from vlora_engine.subspace.soundness import RESTORE
    from vlora_engine.subspace.store import unlisted_task_files

    listed = {b.name: (b.sha256, b.nbytes) for b in manifest.files}
    listed |= {f"tasks/{t.file}": (t.sha256, t.nbytes) for t in manifest.tasks.values()}
    for name, (sha256, nbytes) in listed.items():
        file = manifest.path / name
        if odd := kind_error(file):
            what = f"{odd.what[:-1]}: {odd.found}."
            yield Finding("file-kind", "error", what, f"remove it, and {RESTORE}", file=name)
        elif not file.is_file():
            yield Finding("file-missing", "error", "The file is missing.", RESTORE, file=name)
        elif file.stat().st_size != nbytes:
            what = f"The file has {file.stat().st_size} bytes; the index says {nbytes}."
            yield Finding("file-size", "error", what, RESTORE, file=name)
        elif sha256_file(file) != sha256:
            what = "The file's bytes are not those that the index vouches for."
            yield Finding("checksum", "error", what, RESTORE, file=name)
        tell(name)
    if is_held(manifest.path):
        return  # what the index does not name yet, or any more, is somebody's work
    known = {manifest.path / name for name in (*listed, SUBSPACE_INDEX, "README.md")}
    left = {*strays(manifest.path), *unlisted_task_files(manifest)}
    for file in sorted(left):
        yield Finding(
            "stray-file",
            "warning",
            "A command that was cut short left this; the next one that changes the subspace "
            "deletes it.",
            shlex.join(["rm", "-r", str(file)]),
            file=os.path.relpath(file, manifest.path),
        )
    for file in sorted(manifest.path.rglob("*")):
        name = file.relative_to(manifest.path).as_posix()
        if file.is_file() and file not in known | left and not name.startswith("."):
            what = "The index does not know this file."
            yield Finding("stray-file", "warning", what, "delete it if it is not yours", file=name)


def _basis_findings(stored: StoredSubspace, broken: set[str], tell: Tell) -> Iterator[Finding]:
    import torch

    manifest = stored.manifest
    # A packed basis need not be orthonormal: its loadings are fitted to what packing left of it.
    limit = ORTHONORMAL[manifest.dtype] if manifest.quantization is None else float("inf")
    for shard in manifest.basis:
        if shard.name in broken:
            continue
        for index in range(shard.first, shard.last):
            name = manifest.layers[index].name
            try:
                basis = stored.basis(index)
            except VLoRAError as error:
                yield _from_error(
                    error, file=shard.name, module=name, place=f"{shard.name}: {name}"
                )
                break
            for side, rows in (("a", basis.a), ("b", basis.b)):
                place = {"file": shard.name, "module": name}
                place["place"] = f"{shard.name}: {name}, side {side}"
                if not bool(torch.isfinite(rows).all()):
                    what = "The basis holds NaN or infinity."
                    yield Finding("not-finite", "error", what, "compress again", **place)
                    continue
                gram = rows.double() @ rows.double().T
                from_unit = (gram - torch.eye(len(gram), dtype=gram.dtype)).abs()
                off = float(from_unit.amax()) if len(gram) else 0.0
                if off > limit:
                    what = f"The basis is not orthonormal: off by {off:.2g}."
                    yield Finding("not-orthonormal", "warning", what, "compress again", **place)
            tell(name)


def _task_findings(stored: StoredSubspace, broken: set[str], tell: Tell) -> Iterator[Finding]:
    import torch

    for record in stored.manifest.tasks.values():
        name = f"tasks/{record.file}"
        if name in broken:
            continue
        try:
            task = stored.task(record)
        except VLoRAError as error:
            yield _from_error(error, file=name)
            continue
        own = [factor for pair in task.own.values() for factor in pair]
        for tensor in (task.values, task.scales, task.norms, task.errors, *own):
            if not bool(torch.isfinite(tensor.float()).all()):
                what = f"The loadings of {record.id!r} hold NaN or infinity."
                yield Finding("not-finite", "error", what, "compress the adapters again", file=name)
                break
        yield from _rest_findings(task, record)
        tell(record.id)


def _peer_findings(manifest: Manifest, tell: Tell) -> Iterator[Finding]:
    """Of a peer's subspace: every basis and every task is read; it has no checksums."""
    from vlora_engine.interop.store import store_of

    yield from manifest.findings
    what = f"{manifest.peer} keeps no checksums: only what can be seen in the numbers is checked."
    yield Finding("no-checksums", "note", what, file=str(manifest.path))
    store = store_of(manifest)
    try:
        for index, spec in enumerate(manifest.layers):
            try:
                store.stored_basis(index)
            except VLoRAError as error:
                yield _from_error(error, module=spec.name)
                return
            tell(spec.name)
        for record in manifest.tasks.values():
            try:
                store.task(record)
            except VLoRAError as error:
                yield _from_error(error, file=record.file)
            tell(record.id)
    finally:
        store.close()


def _coded_findings(manifest: Manifest, broken: set[str], tell: Tell) -> Iterator[Finding]:
    """Every module of every task is decoded."""
    from vlora_engine.subspace.coded.store import CodedStore, Decoder

    stored = CodedStore(manifest, verify=False)
    decoder = Decoder(stored)
    try:
        if manifest.shared_basis is not None:
            yield from _basis_findings(stored.of_basis, broken, tell)
            yield from _task_findings(stored.of_basis, broken, tell)
        for record in manifest.tasks.values():
            name = f"tasks/{record.file}"
            if (
                record.in_basis
                or name in broken
                or any(basis.name in broken for basis in manifest.basis)
            ):
                continue
            try:
                task = stored.coded_task(record)
                decoded = decoder.each(manifest.layers, record, task.blobs)
                numbers = all(_finite(*pair) for _, pair in decoded)
            except VLoRAError as error:
                yield _from_error(error, file=name)
                continue
            if not (numbers and _finite(task.norms, task.errors)):
                what = f"What {record.id!r} decodes to is not finite."
                yield Finding("not-finite", "error", what, "compress the adapters again", file=name)
            yield from _rest_findings(task, record)
            tell(record.id)
    finally:
        stored.close()


def _rest_findings(task: EncodedTask | CodedTask, record: TaskRecord) -> Iterator[Finding]:
    if len(task.rest) != record.rest:
        what = f"{len(task.rest)} rest tensors; the index says {record.rest}."
        file = f"tasks/{record.file}"
        yield Finding("rest-tensors", "error", what, "compress the adapters again", file=file)


def _finite(*tensors: Tensor) -> bool:
    import torch

    return all(bool(torch.isfinite(x).all()) for x in tensors)


def _from_error(error: VLoRAError, **place: str) -> Finding:
    """An error in reading one part of the subspace, by the part's own place."""
    finding = finding_of(error)
    nowhere: dict[str, Any] = {"adapter": "", "file": "", "module": "", "tensor": "", "place": ""}
    return replace(finding, code="unreadable", **{**nowhere, **place})

"""Open the tasks of subspaces as adapters: ``DIR:TASK``."""

from __future__ import annotations

from pathlib import Path

from vlora_engine.adapters.model import AdapterSource, MemorySource, ModuleShape
from vlora_engine.catalog.read import read_manifest
from vlora_engine.errors import ParameterError
from vlora_engine.formats.base import Inspection, Probe
from vlora_engine.formats.config import read_settings
from vlora_engine.interop.names import PEERS, peer_at
from vlora_engine.manifest.manifest import FORMAT, Manifest, is_own_subspace, unknown_task
from vlora_engine.utils.file_names import SUBSPACE_INDEX
from vlora_engine.utils.safetensors_file import read_error


class SubspaceFormat:
    """The format of a directory with subspace.json, whose tasks are adapters."""

    name = FORMAT

    def detect(self, probe: Probe) -> bool:
        """Whether this format recognises what lies there; see `Format`."""
        return SUBSPACE_INDEX in probe.names and is_own_subspace(probe.directory)

    def inspect(self, probe: Probe, *, allow_unsupported: bool = False) -> Inspection:
        """Always refuses: a subspace is not one adapter."""
        raise whole_subspace_error(probe.path)

    def open(self, probe: Probe, *, allow_unsupported: bool = False) -> AdapterSource:
        """Always refuses: a subspace is not one adapter."""
        raise whole_subspace_error(probe.path)


class PeerFormat(SubspaceFormat):
    """The format of another library's directory, recognised by its index."""

    def __init__(self, peer: str) -> None:
        self.name = peer

    def detect(self, probe: Probe) -> bool:
        """Whether this format recognises what lies there; see `Format`."""
        return PEERS[self.name] in probe.names and not is_own_subspace(probe.directory)


def open_task(directory: Path, task: str) -> AdapterSource:
    """Open ``task`` of the subspace in ``directory`` as an adapter.

    Raises:
        NotFoundError: There is no such task.
    """
    from vlora_engine.catalog.load import open_space, read_settled

    _, weights = read_settled(open_space(directory), lambda space: space.reconstruct(task))
    return MemorySource(weights)


def inspect_task(directory: Path, task: str) -> Inspection:
    """Inspect ``task`` by the subspace's index alone.

    Raises:
        NotFoundError: There is no such task.
    """
    return inspection_of(read_manifest(directory), task)


def inspection_of(manifest: Manifest, task: str) -> Inspection:
    """Inspect ``task`` by an index at hand; of modules outside the basis only their number."""
    directory = manifest.path
    record = manifest.tasks.get(task)
    if record is None:
        raise unknown_task(task, manifest.tasks, directory)
    index = directory / (PEERS[manifest.peer] if manifest.peer else SUBSPACE_INDEX)
    settings = read_settings(record.config, index)
    alpha = settings.alpha
    if record.config.get("lora_alpha") is None and record.scales:
        alpha = record.scales[0] * record.rank
    shared = [manifest.layers[i] for i in record.layers]
    try:
        changed = index.stat().st_mtime_ns
    except OSError as error:
        raise read_error(index, error) from None
    return Inspection(
        path=Path(f"{directory}:{task}"),
        weights=directory / ("" if manifest.peer else "tasks") / record.file,
        config=record.config,
        rank=record.rank,
        alpha=alpha,
        base_model=manifest.base_model,
        modules={
            layer.name: ModuleShape(rank, layer.d_in, layer.d_out, dtype, layer.kind)
            for layer, rank, dtype in zip(shared, record.ranks, record.dtypes, strict=True)
        },
        scales={layer.name: s for layer, s in zip(shared, record.scales, strict=True)},
        rest={},
        nbytes=record.nbytes,
        findings=(),
        identity=(record.nbytes, changed, record.digest or record.file),
    )


def whole_subspace_error(where: Path) -> ParameterError:
    """The error for a subspace that is named where one adapter is meant."""
    return ParameterError(
        "This is a subspace, not one adapter.",
        where=where,
        expected="an adapter, or a task as DIR:TASK",
        found=f"a directory with {PEERS.get(peer_at(where) or '', SUBSPACE_INDEX)}",
        remedy=f"name one of its tasks: {where}:TASK",
    )

"""Export's settings: what there is to write, and how; plain data, texts as they were typed.

Merge methods come from the engine's own table, which needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from vlora_engine.adapters.address import is_address
from vlora_engine.adapters.provenance import ABOUT_BYTES
from vlora_engine.convert.formats import GGUF, PEER_FORMATS
from vlora_engine.merging.methods import DEFAULT_METHOD
from vlora_engine.merging.methods import MERGE_METHODS as METHODS
from vlora_engine.merging.registry import MergeMethod, MergeParameter
from vlora_engine.merging.settings import MergeRequest
from vlora_engine.targets import TARGETS
from vlora_engine.targets.fit import STORED
from vlora_engine.utils.ranking import by_number
from vlora_tui.pipeline.disk_space import adapter_bytes

if TYPE_CHECKING:
    from vlora_engine.catalog.scanner import AdapterInfo
    from vlora_engine.manifest.manifest import Manifest

T = TypeVar("T")
Doing = Literal["export", "merge", "resize", "convert"]
Kind = Literal["subspace", "adapters"]
Rule = Literal["rank", "energy", "server"]
DOINGS: tuple[Doing, ...] = ("export", "merge", "resize", "convert")
FORMATS = ("mlx", GGUF, *PEER_FORMATS)  # PEFT is what an export writes
RULES: tuple[Rule, ...] = ("rank", "energy", "server")
_WORDS = ("fp32", "fp16", "bf16", "q8_0")
DTYPES: dict[str | None, str] = {None: "unchanged", **{word: word for word in _WORDS}}

MERGES: dict[str, MergeMethod] = {
    DEFAULT_METHOD if DEFAULT_METHOD in m.aliases else m.name: m for m in METHODS.values()
}
RANK = MergeParameter("rank", "int", None, "rank of the result; by default what it needs", low=1)
ENERGY = MergeParameter(
    "energy", "float", None, "or the share of its energy that a cut keeps", low=0, high=1,
    low_open=True,
)  # fmt: skip
SCALE = MergeParameter("scale", "float", 1.0, "the whole result times this")
NEW_RANK = MergeParameter("rank", "int", None, "the rank of every module", low=1, high=1 << 16)
SHARE = MergeParameter(
    "energy", "float", 0.99, "the share of dW's energy to keep", low=0, high=1, low_open=True
)


@dataclass(frozen=True)
class Item:
    """A task, or an adapter, that can be written, merged or resized.

    Args:
        path: Where an adapter lies; None for a task of a subspace.
        nbytes: What it takes as an adapter with the dtypes it has.
        group: Adapters of different groups do not fit together.
    """

    name: str
    rank: int | None
    error: float | None = None
    nbytes: int = 0
    path: str | None = None
    group: int | None = None


@dataclass(frozen=True)
class Source:
    """Where the items come from."""

    kind: Kind
    subspace: Path | None
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Settings:
    """What is asked for.

    Args:
        drop_rest: Leave out tensors besides A and B where the target takes none.
        base: The base model's folder, for GGUF.
        weights: Of a merge, by item; those that are not here have the method's own.
        layers: Of a merge: ``PATTERN=0.7,0.3; PATTERN=...``.
        rule: What is resized by, and ``new_rank``, ``share`` or ``server`` what it is.
        to: The format of another tool. allow_loss: Leave out what it cannot hold.
    """

    doing: Doing = "export"
    target: str = "peft"
    drop_rest: bool = False
    base: str = ""
    dtype: str | None = None
    verify: bool = True
    out: str = ""
    method: str = DEFAULT_METHOD
    weights: Mapping[str, float] = field(default_factory=dict)
    normalize: bool | None = None
    scale: str = ""
    rank: str = ""
    energy: str = ""
    space: str = "delta"
    layers: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    merged: str = ""
    rule: Rule = "rank"
    new_rank: str = ""
    share: str = ""
    server: str = "vllm"
    resized: str = ""
    to: str = FORMATS[0]
    allow_loss: bool = False
    converted: str = ""

    @property
    def spec(self) -> MergeMethod:
        """The merge method."""
        return MERGES[self.method]

    def with_target(self, name: str) -> Settings:
        """The same for another target; a dtype that it does not take gives way."""
        changed = replace(self, target=name)
        return changed if self.dtype in dtypes_of(name) else replace(changed, dtype=None)

    def with_method(self, name: str) -> Settings:
        """The same by another merge method; what that does not have gives way."""
        changed = replace(self, method=name)
        if not changed.spec.factors:
            changed = replace(changed, space="delta")
        if not changed.spec.may_normalise and self.normalize is False:
            changed = replace(changed, normalize=None)
        return changed

    def with_parameter(self, name: str, text: str) -> Settings:
        """The same with a parameter of the merge method set."""
        return replace(self, parameters={**self.parameters, name: text})

    def with_weight(self, name: str, weight: float | None) -> Settings:
        """The same with an item's weight in a merge set, or left to the method."""
        others = {key: value for key, value in self.weights.items() if key != name}
        return replace(self, weights=others if weight is None else {**others, name: weight})


def dtypes_of(target: str) -> list[str | None]:
    """What a target's A and B may be stored in, in the order in which they are offered."""
    taken = TARGETS[target].dtypes
    return [word for word in DTYPES if word is None or STORED[word] in taken]


def next_of(choices: Sequence[T], value: T, by: int) -> T:
    """The choice so many further on, round and round."""
    return choices[(choices.index(value) + by) % len(choices)]


def weights_of(settings: Settings, names: Sequence[str]) -> list[float]:
    """The weight of each of ``names`` in a merge of them all."""
    default = 1.0 if settings.spec.default_weights == "1" else 1.0 / max(1, len(names))
    return [settings.weights.get(name, default) for name in names]


def shares_of(settings: Settings, names: Sequence[str]) -> list[float] | None:
    """What the weights become where only their ratios matter; None where they stay as they are."""
    request = MergeRequest(settings.spec, settings.space, None, settings.normalize, 1, None, None)
    weights = weights_of(settings, names)
    total = sum(weights)
    if not request.divides_weights or abs(total) <= 1e-12 * sum(map(abs, weights)):
        return None
    return [weight / total for weight in weights]


# what there is


def tasks_of(manifest: Manifest) -> Source:
    """The tasks of a subspace."""
    items = (
        Item(task.id, task.rank, task.error, adapter_bytes(manifest, task))
        for _, task in sorted(manifest.tasks.items(), key=lambda row: by_number(row[0]))
    )
    return Source("subspace", manifest.path.absolute(), tuple(items))


def adapters_of(infos: Sequence[AdapterInfo]) -> Source:
    """Adapters as they lie."""
    items = (
        Item(info.name, info.rank, None, info.nbytes + ABOUT_BYTES, str(info.path), info.group)
        for info in sorted(infos, key=lambda info: by_number(info.name))
    )
    return Source("adapters", None, tuple(items))


def first_settings(source: Source) -> Settings:
    """Places beside the source, which nobody has to type, and half of the largest rank."""
    rank = max((item.rank or 0 for item in source.items), default=0)
    half = str(max(1, rank // 2)) if rank else ""
    if source.subspace is not None:
        beside = f"{source.subspace.parent}/{source.subspace.name}"
        return Settings(
            out=f"{beside}-adapters/{{task}}", merged=f"{beside}-merged",
            resized=f"{beside}-resized/{{task}}", new_rank=half,
            converted=f"{beside}-converted",
        )  # fmt: skip
    roots = [str(Path(path).parent) for path in paths_of(source)]
    root = os.path.commonpath(roots) if roots else os.getcwd()
    return Settings(
        out=f"{root}-exported/{{task}}", merged=f"{root}-merged",
        resized=f"{root}-resized/{{task}}", new_rank=half, converted=f"{root}-converted",
    )  # fmt: skip


def paths_of(source: Source) -> list[str]:
    """The adapters that lie on this disk, and not on the Hub."""
    return [str(item.path) for item in source.items if item.path and not is_address(item.path)]

"""The names of modules: what wrappers, prefixes and versions make of them, and which one to use.

All rules that look at names alone stand here, for readers, the doctor and writers; what a base
model's own module tree says is `vlora_engine.nn.base_modules`.

A key of PEFT's is ``base_model.model.<module>.<tensor>``. Three things come between:

- Training wrappers leave a part of their own wherever they stand in the path (`WRAPPERS`).
- The prefix is missing, is there twice, or stands behind the attribute of a trainer
  (``module.base_model.model...`` of DDP and DeepSpeed, ``policy.base_model.model...``).
- Versions of transformers put containers around the same modules, or take them away
  (``model.layers.0``, then ``model.language_model.layers.0``).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.base_models import normalise_base_model
from vlora_engine.adapters.model import (
    AdapterSource,
    LoRAWeights,
    ModuleShape,
    content_digest,
    hashed_names,
    read_modules,
)
from vlora_engine.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "base_model.model."
# torch.compile, DeepSpeed and Fabric, FSDP, activation checkpointing: no module is called so.
WRAPPERS = frozenset(
    {"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
# What versions of transformers put around the same modules, or take away.
CONTAINERS = frozenset(
    {"model", "module", "language_model", "text_model", "vision_model", "transformer", "thinker"}
)
_ODD = re.compile("|".join([re.escape(PREFIX), *sorted(WRAPPERS)]))  # of these look closer
_NUMBER = re.compile(r"\.(?=\d+\.)")


@dataclass(frozen=True)
class KeyName:
    """A tensor's key taken apart.

    Args:
        path: What is left of it without PEFT's prefix and the parts of wrappers.
        wrapper: The first part of a wrapper in it.
        lead: What stands before PEFT's prefix.
        prefixed: Whether PEFT's prefix is in it.
        doubled: Whether it is there more than once.
    """

    path: str
    wrapper: str = ""
    lead: str = ""
    prefixed: bool = True
    doubled: bool = False

    @property
    def key(self) -> str:
        """The key that PEFT looks for."""
        return PREFIX + self.path


def usual_path(key: str) -> str | None:
    """What is left of a key without PEFT's prefix, if nothing else is to be taken out of it."""
    if not key.startswith(PREFIX) or _ODD.search(key, len(PREFIX)):
        return None
    return key[len(PREFIX) :]


def read_key(key: str) -> KeyName:
    """Take a key of a PEFT file apart."""
    usual = usual_path(key)
    if usual is not None:
        return KeyName(usual)
    parts = key.split(".")
    wrapper = next((part for part in parts if part in WRAPPERS), "")
    path = ".".join(part for part in parts if part not in WRAPPERS) if wrapper else key
    at = 0 if path.startswith(PREFIX) else path.find("." + PREFIX) + 1
    if at == 0 and not path.startswith(PREFIX):
        return KeyName(path, wrapper, prefixed=False)
    lead, path = path[:at].rstrip("."), path[at + len(PREFIX) :]
    doubled = path.startswith(PREFIX)
    while path.startswith(PREFIX):
        path = path[len(PREFIX) :]
    return KeyName(path, wrapper, lead, True, doubled)


def plain_name(module: str) -> str:
    """A module's name without the parts of wrappers and the remains of PEFT's prefix."""
    return read_key(PREFIX + module).path


def plain_rest(key: str) -> str:
    """The key of a tensor that is no factor, under PEFT's prefix where it had one."""
    name = read_key(key)
    return name.key if name.prefixed else name.path


def without_wrappers(text: str) -> str:
    """A pattern or a name out of a config without the parts of wrappers."""
    for wrapper in WRAPPERS:
        if wrapper in text:
            text = re.sub(rf"{wrapper}(\\?\.)?", "", text)
    return text


# ---- other names for an adapter


class RenamedAdapter:
    """An `AdapterSource` whose modules have other names; the numbers are those of ``source``.

    Args:
        names: The new name of a module by the name that it has in ``source``.
        as_new: Its content hash is over the new names; by default it is that of ``source``, since
            it is the same adapter.
    """

    def __init__(
        self, source: AdapterSource, names: Mapping[str, str], *, as_new: bool = False
    ) -> None:
        self.source = source
        new = _changed(names, source.modules)
        _require_apart(new.values(), None if source.path is None else str(source.path))
        self._inner = {name: inner for inner, name in new.items()}
        self.path: Path | None = source.path
        self.config: Mapping[str, Any] = source.config
        self.rest = source.rest
        self.nbytes = source.nbytes
        self.files = getattr(source, "files", {})
        self.findings = getattr(source, "findings", ())
        self.modules: Mapping[str, ModuleShape] = {
            name: source.modules[self._inner[name]] for name in sorted(self._inner)
        }
        self.scales = {name: source.scales[self._inner[name]] for name in self.modules}
        hashed = dict(hashed_names(source))
        self.hashed = {} if as_new else {n: hashed[self._inner[n]] for n in self.modules}

    def read(self, module: str) -> tuple[Tensor, Tensor]:
        """A (rank, d_in) and B (d_out, rank) of one module."""
        return self.source.read(self._inner[module])

    def read_many(self, modules: Sequence[str]) -> Sequence[tuple[Tensor, Tensor]]:
        """A and B of some modules; see `read_modules`."""
        return read_modules(self.source, [self._inner[module] for module in modules])

    def read_into(self, module: str, a: Tensor, b: Tensor) -> bool:
        """Read a module into A and B of its shape; False where that takes a copy."""
        read_into = getattr(self.source, "read_into", None)
        return read_into is not None and bool(read_into(self._inner[module], a, b))

    def read_rest(self) -> dict[str, Tensor]:
        """The rest tensors, bit for bit."""
        return self.source.read_rest()

    def digest(self) -> str:
        """sha256 over the tensors and scales (see ``as_new``)."""
        return content_digest(self)


def renamed(
    weights: LoRAWeights, names: Mapping[str, str], rest: Mapping[str, str] | None = None
) -> LoRAWeights:
    """``weights`` with other names of modules, and other keys of rest tensors; the same numbers.

    Raises:
        AdapterError: Two modules, or two rest tensors, would have one name.
    """
    new, keys = _changed(names, weights.layer_names), _changed(rest or {}, weights.rest)
    _require_apart(new.values(), weights.source)
    _require_apart(keys.values(), weights.source)
    return replace(
        weights,
        layer_names=sorted(new.values()),
        lora_a={new[name]: weights.lora_a[name] for name in weights.layer_names},
        lora_b={new[name]: weights.lora_b[name] for name in weights.layer_names},
        scales={new[name]: weights.scales[name] for name in weights.layer_names},
        shapes={new[name]: shape for name, shape in weights.shapes.items() if name in new},
        rest={keys[key]: tensor for key, tensor in weights.rest.items()},
    )


def tidied(weights: LoRAWeights) -> LoRAWeights:
    """``weights`` without what wrappers left in its names, as of a subspace made long ago."""
    names = {name: plain_name(name) for name in weights.layer_names}
    rest = {key: plain_rest(key) for key in weights.rest}
    if all(old == new for old, new in [*names.items(), *rest.items()]):
        return weights
    return renamed(weights, names, rest)


def _changed(names: Mapping[str, str], modules: Iterable[str]) -> dict[str, str]:
    return {module: names.get(module, module) for module in modules}


def _require_apart(names: Iterable[str], where: str | None) -> None:
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise AdapterError(
            "Two tensors of the adapter would have one name.",
            where=where,
            expected="one of each name",
            found=f"{len(twice)} names twice, such as {twice[0]}",
            remedy="save each adapter separately, under the names of one model",
        )


# ---- the same modules under names of two versions

Named = Mapping[str, Hashable]


def same_modules(names: Named, others: Named) -> dict[str, str] | None:
    """The names in ``others`` of all modules in ``names``, if a change of containers is all.

    Both map a module's name to what has to be equal (its kind and dimensions). Every name of the
    smaller table must have its partner in the larger one, with an equal value; what stands before
    the number of a layer must be the same up to `CONTAINERS`, and only one partner may fit.
    None if they are no such two.
    """
    if not names or not others or not names.keys().isdisjoint(others.keys()):
        return None
    own, theirs = _by_head(names), _by_head(others)
    result: dict[str, str] = {}
    taken: set[str] = set()
    for head, table in own.items():
        fitting = [
            other
            for other, candidates in theirs.items()
            if _core(other) == _core(head) and _agree(table, candidates)
        ]
        if len(fitting) != 1 or fitting[0] in taken:
            return None
        taken.add(fitting[0])
        result |= {head + tail: fitting[0] + tail for tail in table}
    if not result.keys() >= names.keys():
        return None
    found = {other for other in result.values() if other in others}
    if len(found) < min(len(names), len(others)):
        return None
    return result


def common_names(sources: Sequence[AdapterSource]) -> list[AdapterSource]:
    """The sources, those whose names differ by containers alone under the names of the others.

    The names that most have are taken, whatever the order of the sources; of as many the longer.
    Adapters that name different base models stay apart.
    """
    tables = [{n: s.fits for n, s in source.modules.items()} for source in sources]
    bases = [_base_of(source) for source in sources]
    votes = Counter(frozenset(table) for table in tables)
    if len(votes) < 2:
        return list(sources)
    order = sorted(votes, key=lambda names: (-votes[names], -len(_longest(names)), sorted(names)))
    result = list(sources)
    for i, table in enumerate(tables):
        for names in order:
            if names == table.keys() or order.index(names) > order.index(frozenset(table)):
                break
            partner = next(
                (
                    other
                    for other, base in zip(tables, bases, strict=True)
                    if other.keys() == names and _may_be_one(base, bases[i])
                ),
                None,
            )
            mapped = None if partner is None else same_modules(table, partner)
            if mapped is not None:
                result[i] = RenamedAdapter(sources[i], mapped)
                break
    return result


def names_like(source: AdapterSource, modules: Mapping[str, Hashable]) -> AdapterSource:
    """``source`` under the names of ``modules`` (each with its kind and dimensions), if they are
    the same modules: by containers, or as an old subspace has them, with parts of wrappers.
    """
    own = {name: shape.fits for name, shape in source.modules.items()}
    stored = {plain_name(name): name for name in modules}
    mapped = {name: stored[name] for name in own if name in stored and name not in modules}
    mapped = mapped or same_modules(own, modules) or {}
    return RenamedAdapter(source, mapped) if mapped else source


def _base_of(source: AdapterSource) -> str | None:
    name = source.config.get("base_model_name_or_path")
    return normalise_base_model(name) if isinstance(name, str) and name else None


def _may_be_one(first: str | None, second: str | None) -> bool:
    return first is None or second is None or first == second


def _longest(names: Collection[str]) -> str:
    return max(names, key=lambda name: (name.count("."), name), default="")


def _by_head(names: Named) -> dict[str, dict[str, Hashable]]:
    """Modules by what stands before their first number (or last part), then by the rest of it."""
    heads: dict[str, dict[str, Hashable]] = defaultdict(dict)
    for name, value in names.items():
        number = _NUMBER.search("." + name)
        at = name.rfind(".") + 1 if number is None else number.start()
        heads[name[:at]][name[at:]] = value
    return heads


def _core(head: str) -> tuple[str, ...]:
    return tuple(part for part in head.split(".") if part and part not in CONTAINERS)


def _agree(one: Mapping[str, Hashable], other: Mapping[str, Hashable]) -> bool:
    """Whether the smaller table is part of the larger one."""
    small, large = (one, other) if len(one) <= len(other) else (other, one)
    return all(tail in large and large[tail] == value for tail, value in small.items())

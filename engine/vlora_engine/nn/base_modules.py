"""The modules of a base model as transformers builds it, and what PEFT applies of an adapter to it.

Names in a checkpoint's header are no names of modules: transformers renames tensors while it loads
them, by tables of its own. So the model is built from its config on torch's meta device, without
weights, and PEFT itself is asked: it adapts that model and loads the adapter's keys and shapes.
Nothing here loads a tensor, reaches the network or runs code out of a model.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.model import AdapterSource, LoRAWeights, MemorySource, ModuleShape
from vlora_engine.adapters.module_names import PREFIX, plain_name, renamed, tidied
from vlora_engine.errors import AdapterError
from vlora_engine.formats.config import parse_config, read_config_bytes
from vlora_engine.formats.layout import split_key
from vlora_engine.formats.patterns import check_for_peft
from vlora_engine.formats.peft_save import peft_config
from vlora_engine.utils.file_names import MODEL_CONFIG

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
# By the task that an adapter names: the classes that its users load it onto.
_HEADS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
# Where the config names no class; the first that its model type has.
_USUAL = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
# The fields of PEFT's config that decide which modules are adapted, and in which shapes.
_FIELDS = (
    "alpha_pattern",
    "ensure_weight_tying",
    "exclude_modules",
    "fan_in_fan_out",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "lora_bias",
    "modules_to_save",
    "r",
    "rank_pattern",
    "target_modules",
    "target_parameters",
    "task_type",
    "trainable_token_indices",
)


@dataclass(frozen=True)
class Reach:
    """How many of an adapter's modules PEFT applies to a base model.

    Args:
        total: The modules of the adapter.
        places: By module the one of the base that it acts on; those that PEFT applies.
        names: By module the name that the base has for it, of all for which there is one: what
            PEFT applies, and what a change of names would make it apply.
        base: What texts call the base.
        misfits: By module the dimensions that the base has there, where they are others; PEFT
            then loads nothing at all.
        refusal: Why PEFT does not load it at all.
        unknown: Why nothing can be told.
    """

    total: int
    places: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    misfits: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    refusal: str = ""
    unknown: str = ""

    @property
    def applied(self) -> int | None:
        """How many modules PEFT applies; None where nothing can be told."""
        return None if self.unknown else len(self.places)

    @property
    def lost(self) -> bool:
        """Whether PEFT is known to apply less than all of it."""
        return not self.unknown and len(self.places) < self.total

    def __str__(self) -> str:
        modules = f"{self.total:,} module{'' if self.total == 1 else 's'}"
        if self.unknown:
            return f"how many of {modules} apply: cannot tell: {self.unknown}"
        return f"applies to {len(self.places):,} of {modules} of {self.base}"

    def as_dict(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        return {
            "applied": self.applied,
            "total": self.total,
            "base": self.base or None,
            "unknown": self.unknown or None,
        }


class BaseModules:
    """The modules of a base model, by the class that an adapter of one task is loaded onto."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shape of every weight of two or more dimensions, by its module.

        A linear map's is (d_out, d_in), whatever its class stores.
        """
        found = {}
        for name, module in self._model.named_modules():
            shape = tuple(getattr(getattr(module, "weight", None), "shape", ()))
            if name and len(shape) >= 2:
                found[name] = shape[::-1] if type(module).__name__ == "Conv1D" else shape
        return found

    def fits(self, name: str, shape: ModuleShape) -> bool:
        """Whether the module ``name`` is there and has the dimensions of an adapter's module."""
        weight = self.shapes.get(name)
        if weight is None:
            return False
        if shape.kind == "embedding":
            return (shape.d_in, shape.d_out) == weight
        return (shape.d_out, shape.d_in) == (weight[0], math.prod(weight[1:]))

    def names_for(self, modules: Mapping[str, ModuleShape]) -> dict[str, str]:
        """The base's name for each of an adapter's modules that has one, no name given twice."""
        found = {}
        for module, shape in modules.items():
            fitting = (n for n in self._candidates(module, shape) if self.fits(n, shape))
            name = next(fitting, None)
            if name is not None:
                found[module] = name
        times = Counter(found.values())
        return {
            module: name for module, name in found.items() if times[name] == 1 or module == name
        }

    def misfits(self, modules: Mapping[str, ModuleShape]) -> dict[str, str]:
        """The modules that the base has in other dimensions only, with these in words."""
        found = {}
        for module, shape in modules.items():
            there = [name for name in self._candidates(module, shape) if name in self.shapes]
            if there and not any(self.fits(name, shape) for name in there):
                found[module] = " x ".join(map(str, self.shapes[there[0]]))
        return found

    def _candidates(self, module: str, shape: ModuleShape) -> Iterator[str]:
        """What the base may call a module: as it is, by transformers' tables, by its end."""
        plain = plain_name(module)
        for name in dict.fromkeys((module, plain)):
            yield name
            yield self._as_loaded(name)
        parts = plain.split(".")
        for start in range(1, len(parts)):  # a trainer's attribute, a prefix too many
            name = ".".join(parts[start:])
            if "." in name or name in self.shapes:
                yield name
                yield self._as_loaded(name)
        for at, part in enumerate(parts):  # what DDP leaves in the middle
            if part == "module":
                yield ".".join(parts[:at] + parts[at + 1 :])
        for name in (plain, ".".join(parts[1:])):  # a prefix that is missing, or another one
            ends = self._by_end(name) if "." in name else []
            fitting = [end for end in ends if self.fits(end, shape)]
            if len(fitting) == 1:
                yield fitting[0]

    def rest_key(self, key: str) -> str:
        """The base's key for a tensor that is no factor: the longest part that is a module's."""
        path = key.removeprefix(PREFIX)
        parts = path.split(".")
        for end in range(len(parts) - 1, 0, -1):
            head, tail = ".".join(parts[:end]), ".".join(parts[end:])
            if head in self._all:
                return key
            names = (head, self._as_loaded(head), *(".".join(parts[i:end]) for i in range(1, end)))
            found = next((name for name in names if name in self._all), None)
            if found is not None:
                return f"{PREFIX}{found}.{tail}"
        return key

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(name for name, _ in self._model.named_modules() if name)

    def _by_end(self, name: str) -> list[str]:
        return [known for known in self.shapes if known.endswith("." + name)]

    def _as_loaded(self, name: str) -> str:
        """The module that transformers loads a checkpoint's tensor of this module into."""
        key = f"{name}.weight"
        try:
            renamed = self._rename(key)
        except Exception:  # tables are transformers' own, and private
            return name
        return renamed.removesuffix(".weight")

    def _rename(self, key: str) -> str:
        # transformers 4 keeps patterns at the class, 5 has tables of its own for all models.
        for pattern, new in getattr(self._model, "_checkpoint_conversion_mapping", {}).items():
            changed, times = re.subn(pattern, new, key)
            if times:
                return str(changed)
        if not self._renamings:
            return key
        from transformers.core_model_loading import rename_source_key

        prefix = getattr(self._model, "base_model_prefix", "")
        renamed, _ = rename_source_key(key, self._renamings, [], prefix, self._keys)
        return str(renamed)

    @cached_property
    def _keys(self) -> dict[str, Any]:
        return dict(self._model.state_dict())

    @cached_property
    def _renamings(self) -> list[Any]:
        try:
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import WeightRenaming
        except ImportError:  # transformers 4
            return []
        model: Any = self._model
        mapping = get_model_conversion_mapping(model, add_legacy=False)
        return [entry for entry in mapping if isinstance(entry, WeightRenaming)]


def reach_of(adapter: AdapterSource, base: str | Path) -> Reach:
    """How many modules of an adapter PEFT applies to a base, given as a folder or a config.json.

    It is judged under the names that it is read by; what wrappers left in a file's keys is
    the doctor's business.
    """
    tensors = keys_of(adapter.modules) | {key: shape for key, (_, shape) in adapter.rest.items()}
    return reach(adapter.modules, adapter.config, tensors, base)


def for_base(weights: LoRAWeights, base: str | Path) -> tuple[LoRAWeights, Reach]:
    """``weights`` under the names of a base's modules, as far as it has them; the same numbers.

    With them comes how many modules PEFT applies of what is returned.
    """
    weights = tidied(weights)
    source = MemorySource(weights)
    found = reach_of(source, base)
    if found.unknown:
        return weights, found
    tree = base_modules(base, weights.metadata.get("task_type"))
    rest = {} if tree is None else {key: tree.rest_key(key) for key in weights.rest}
    if any(old != new for old, new in [*found.names.items(), *rest.items()]):
        weights = renamed(weights, found.names, rest)
    written = replace(weights, metadata=peft_config(weights))
    return weights, reach_of(MemorySource(written), base)


def applies(adapter: AdapterSource, base: str | Path) -> tuple[int | None, int]:
    """How many of an adapter's modules PEFT applies to a base, of how many; None: cannot tell."""
    found = reach_of(adapter, base)
    return found.applied, found.total


def reach(
    modules: Mapping[str, ModuleShape],
    config: Mapping[str, Any],
    tensors: Mapping[str, Shape],
    base: str | Path,
) -> Reach:
    """How many modules PEFT applies, from headers.

    Args:
        modules: Of the adapter, under the names that it is read by.
        config: Its adapter_config.json.
        tensors: The shape of every tensor, by its key in the file.
        base: The base model's folder, or its config.json.
    """
    path = Path(base)
    word = path.parent.name if path.name == MODEL_CONFIG else path.name
    label = word or str(path)
    total = len(modules)
    if not total:
        return Reach(0, base=label, unknown="no module of it is known")
    why = missing_library()
    if why:
        return Reach(total, base=label, unknown=why)
    best: Reach | None = None
    here = _Base.at(path)
    for class_name in here.classes(config.get("task_type")):
        found = _reach_as(here, class_name, modules, config, tensors, label)
        if best is None or best.unknown or (found.applied or 0) > (best.applied or 0):
            best = found
        if not best.unknown and not best.lost:
            break
    return best or Reach(total, base=label, unknown="transformers has no model for this config")


def missing_library() -> str:
    """Why PEFT cannot be asked: which library is not installed; empty if it can."""
    for library in ("transformers", "peft"):
        try:
            __import__(library)
        except ImportError:
            return f"{library} is not installed (pip install 'vlora-tui[peft]')"
    return ""


def base_modules(base: str | Path, task_type: Any = None) -> BaseModules | None:
    """The modules of a base as an adapter of this task finds them; None where it cannot be told."""
    if missing_library():
        return None
    here = _Base.at(base)
    for class_name in here.classes(task_type):
        built = _built(here, class_name)
        if isinstance(built, BaseModules):
            return built
    return None


def keys_of(modules: Mapping[str, ModuleShape]) -> dict[str, Shape]:
    """The keys that PEFT writes for these modules, with their shapes."""
    tensors: dict[str, Shape] = {}
    for name, shape in modules.items():
        stem = "lora_embedding_{}" if shape.kind == "embedding" else "lora_{}.weight"
        tensors[f"{PREFIX}{name}.{stem.format('A')}"] = shape.shape_a or (shape.rank, shape.d_in)
        tensors[f"{PREFIX}{name}.{stem.format('B')}"] = shape.shape_b or (shape.d_out, shape.rank)
    return tensors


def _reach_as(
    base: _Base,
    class_name: str,
    modules: Mapping[str, ModuleShape],
    config: Mapping[str, Any],
    tensors: Mapping[str, Shape],
    label: str,
) -> Reach:
    built = _built(base, class_name)
    if isinstance(built, str):
        return Reach(len(modules), base=label, unknown=built)
    fields = {name: config[name] for name in _FIELDS if config.get(name) is not None}
    try:
        check_for_peft(fields)
    except AdapterError as error:
        unknown = f"{error.what[:1].lower()}{error.what[1:]}".rstrip(".")
        return Reach(len(modules), base=label, unknown=unknown)
    factors = [key for key in tensors if split_key(key)]
    given = {key: list(shape) for key, shape in tensors.items()}
    asked = json.dumps([fields, sorted(given.items())], sort_keys=True, default=str)
    loaded, refusal, unknown = _loaded_by_peft(base, class_name, asked)
    if unknown:
        return Reach(len(modules), base=label, unknown=unknown)
    reached: dict[str, set[str | None]] = defaultdict(set)
    for key in factors:
        reached[_module_of(key)].add(loaded.get(key))
    places = {}
    for module in modules:
        found = reached.get(module, {None})
        if len(found) == 1 and (place := next(iter(found))) is not None:
            places[module] = place
    names = {**built.names_for(modules), **places}
    misfits = {} if len(names) == len(modules) else built.misfits(modules)
    if misfits:  # PEFT raises on the first
        places, refusal = {}, refusal or "the dimensions of some modules are others"
    return Reach(len(modules), places, names, misfits, label, refusal)


def _module_of(key: str) -> str:
    split = split_key(key)
    return "" if split is None else plain_name(split[0].removeprefix(PREFIX))


@dataclass(frozen=True)
class _Base:
    """A base's config as it is now: what is known of it holds as long as the file is this one."""

    file: str
    changed: int = 0
    nbytes: int = 0

    @classmethod
    def at(cls, place: str | Path) -> _Base:
        path = Path(place)
        file = path / MODEL_CONFIG if path.is_dir() else path
        try:
            status = file.stat()
        except OSError:
            return cls(str(file))
        return cls(str(file), status.st_mtime_ns, status.st_size)

    def classes(self, task_type: Any) -> tuple[str, ...]:
        """The names of transformers' classes that an adapter of this task may be meant for."""
        config = parse_config(read_config_bytes(Path(self.file)), Path(self.file))
        listed = config.get("architectures")
        named = [n for n in listed if isinstance(n, str)][:1] if isinstance(listed, list) else []
        head = _HEADS.get(task_type) if isinstance(task_type, str) else None
        if head is not None:
            return (head, *named)
        return (*(named or _USUAL), *(() if task_type else ("AutoModel",)))


@lru_cache(4)
def _built(base: _Base, class_name: str) -> BaseModules | str:
    """The base on the meta device, or why it cannot be built."""
    try:
        model = _meta_model(base, class_name)
    except Exception as error:  # whatever a config makes transformers stumble over
        return f"transformers builds no model of it ({_first_line(error)})"
    return BaseModules(model)


def _meta_model(base: _Base, class_name: str) -> Any:
    import torch
    import transformers

    with _quiet(), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(
            base.file, trust_remote_code=False, local_files_only=True
        )
        # A packed base (GPTQ, bitsandbytes) has the same modules as the one that was packed.
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        cls: Any = getattr(transformers, class_name)
        return cls.from_config(config) if class_name.startswith("Auto") else cls(config)


@lru_cache(64)
def _loaded_by_peft(base: _Base, class_name: str, asked: str) -> tuple[dict[str, str], str, str]:
    """By key of the adapter the module that PEFT loads it into; else why it refuses to.

    The third is why it cannot be told: PEFT stumbles over a model without weights.
    """
    import torch
    from peft import LoraConfig, set_peft_model_state_dict
    from peft.mapping_func import get_peft_model

    fields, shapes = json.loads(asked)
    known = inspect.signature(LoraConfig).parameters
    config = LoraConfig(
        init_lora_weights=False, **{name: value for name, value in fields.items() if name in known}
    )
    config.inference_mode = True
    seen: dict[str, Any] = {}
    try:
        with _quiet(), torch.device("meta"):
            model: Any = get_peft_model(
                _meta_model(base, class_name), config, low_cpu_mem_usage=True
            )
            tensors = {key: torch.empty(shape) for key, shape in shapes}
            given = _given(model, tensors)
            hook = getattr(model, "register_load_state_dict_pre_hook", None)
            hook = hook or model._register_load_state_dict_pre_hook
            hook(lambda *a: seen.update(next(x for x in a if isinstance(x, dict))))
            result: Any = set_peft_model_state_dict(
                model, given, ignore_mismatched_sizes=True, low_cpu_mem_usage=True
            )
    except (ValueError, KeyError) as error:  # no such modules, no tensor for one of its own
        return {}, _first_line(error), ""
    except Exception as error:
        return {}, "", f"PEFT adapts no model of it without weights ({_first_line(error)})"
    origin = {id(tensor): key for key, tensor in tensors.items()}
    unexpected = set(result.unexpected_keys)
    loaded = {}
    for key, tensor in seen.items():
        source = origin.get(id(tensor))
        split = split_key(key)
        if source is not None and key not in unexpected and split is not None:
            loaded[source] = split[0].removeprefix(PREFIX)
    return loaded, "", ""


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


def _given(model: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under the keys that `PeftModel.from_pretrained` hands on (transformers 4)."""
    patterns = getattr(model.get_base_model(), "_checkpoint_conversion_mapping", None) or {}
    given = {}
    for key, tensor in tensors.items():
        if patterns and key.startswith(PREFIX):
            for pattern, new in patterns.items():
                changed, times = re.subn(pattern, new, key.removeprefix(PREFIX))
                if times:
                    key = PREFIX + changed
                    break
        given[key] = tensor
    return given


@contextmanager
def _quiet() -> Iterator[None]:
    from vlora_engine.nn.peft_model import quiet

    with quiet():
        yield

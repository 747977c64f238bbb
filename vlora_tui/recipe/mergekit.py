"""mergekit's merge files: the part of their shape that merges adapters, as a merge of a recipe.

An adapter is a difference from its base model already: what mergekit takes from ``base_model`` is
here from the start, and the base itself is left out of the models. What has no meaning for an
adapter (slices, tokenizers, ``model+lora``) is refused by name, not ignored.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short  # a few lines of YAML can stand for gigabytes
from typing import Any, NoReturn

from vlora_engine.catalog.locate import locate
from vlora_engine.catalog.open import open_adapter
from vlora_engine.errors import FileKindError, InputError, MissingPathError
from vlora_engine.merging.methods import MERGE_METHODS
from vlora_engine.merging.registry import MergeMethod
from vlora_engine.utils.reading import kind_error, read_text
from vlora_tui.recipe.mergekit_methods import ALIASES, Alias

_KEEPS_ALL = {"density": 1.0}  # mergekit keeps all where it is told nothing
_REFUSED = {
    "slices": "the layers of an adapter belong to its base model's",
    "modules": "an adapter is one model",
    "tokenizer_source": "an adapter has no tokenizer",
    "tokenizer": "an adapter has no tokenizer",
    "chat_template": "an adapter has no tokenizer",
}
_KEYS = ("models", "merge_method", "base_model", "parameters", "dtype", "out_dtype", "name")
_DTYPES = {
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16",
    "fp32": "fp32", "fp16": "fp16", "bf16": "bf16",
}  # fmt: skip
_WITHOUT_EFFECT = ("int8_mask",)  # how mergekit stores a mask meanwhile
_LARGEST_FILE = 1 << 20
_MOST_VALUES, _DEEPEST = 1 << 20, 50
_LARGEST_NUMBER = 1e30
_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass
class Config:
    """A file that was read: a ``[[merge]]`` table without its path, and what to say about it."""

    table: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def is_config(path: str) -> bool:
    """Whether the path names a mergekit file."""
    return path.endswith((".yml", ".yaml"))


def read_config(path: str) -> Config:
    """Read a merge file; relative paths in it are taken from where it lies, or from here.

    Raises:
        NotFoundError: There is no such file, or no such adapter.
        InputError: It is no merge file, or asks for what adapters do not have.
    """
    return _Reader(Path(os.path.expanduser(path))).read()


class _Reader:
    """One file; every complaint names it and the key at fault."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, what: str, key: str = "", **details: Any) -> NoReturn:
        where = f"{self.path}, {key}" if key else str(self.path)
        raise InputError(what, where=where, **details)

    def read(self) -> Config:
        data = self._load()
        for key, why in _REFUSED.items():
            if data.get(key) is not None:
                self.fail(f"{key} cannot be merged: {why}.", key, expected="models")
        unknown = sorted(data.keys() - {*_KEYS, *_REFUSED})
        if unknown:
            self.fail(f"{unknown[0]!r} is not known here.", unknown[0], expected=", ".join(_KEYS))
        alias, method = self._method(data.get("merge_method"))
        models = self._models(data, method)
        shared = self._table(data.get("parameters"), "parameters")
        config = Config({"adapters": [m.path for m in models], "method": alias.method})
        self._add_general(config, data, shared, alias, method)
        self._add_varying(config, models, shared, method)
        return config

    def _load(self) -> dict[str, Any]:
        import yaml

        try:
            if odd := kind_error(self.path):
                raise odd
            if self.path.stat().st_size > _LARGEST_FILE:
                self.fail("This is no merge file: it is too large.", expected="at most 1 MiB")
            data = yaml.safe_load(read_text(self.path))
        except FileKindError:
            raise
        except FileNotFoundError:
            raise MissingPathError("There is no such merge file.", where=self.path) from None
        except (OSError, UnicodeDecodeError) as error:
            self.fail("The merge file cannot be read.", found=str(error))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            self.fail("The merge file is not YAML.", found=" ".join(str(error).split())[:200])
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            self.fail("This is no merge file.", expected="models, merge_method", found=_kind(data))
        if not _is_bounded(data):
            self.fail(
                "The merge file holds too much: its aliases repeat each other.",
                expected=f"at most {_MOST_VALUES} values, {_DEEPEST} levels deep",
            )
        return data

    def _method(self, name: Any) -> tuple[Alias, MergeMethod]:
        if not isinstance(name, str) or name not in ALIASES:
            self.fail(
                "There is no such merge_method for adapters.",
                "merge_method",
                expected=", ".join(ALIASES),
                found=short(name),
            )
        return ALIASES[name], MERGE_METHODS[ALIASES[name].method]

    # ---- the models

    def _models(self, data: Mapping[str, Any], method: MergeMethod) -> list[_Model]:
        """The adapters; the base model is none, but where SLERP counts t from one of its two."""
        rows = data.get("models")
        if not isinstance(rows, list) or not rows:
            self.fail("The file names no models.", "models", expected="- model: PATH")
        base = data.get("base_model")
        models = []
        for i, row in enumerate(rows):
            key = f"models[{i}]"
            if not isinstance(row, dict) or not isinstance(row.get("model"), str):
                self.fail(
                    "A model is named by a path.", key, expected="model: PATH", found=short(row)
                )
            unknown = sorted(row.keys() - {"model", "parameters"})
            if unknown:
                self.fail(f"{unknown[0]!r} is not known here.", key, expected="model, parameters")
            name = row["model"]
            if name == base and method.name != "slerp" and not row.get("parameters"):
                continue
            models.append(
                _Model(name, self._existing(name, key), self._table(row.get("parameters"), key))
            )
        settings = [data.get("parameters"), *(model.parameters for model in models)]
        weighted = any("weight" in row for row in settings if isinstance(row, dict))
        if len(models) < 2 and not (models and weighted):
            what = "A merge needs two adapters or more; one alone needs a weight."
            self.fail(what, "models", found=str(len(models)))
        if method.name == "slerp":
            models.sort(key=lambda model: model.name != base)  # t = 0 is the base model
        return models

    def _find(self, name: str) -> str | None:
        for path in (self.path.parent / os.path.expanduser(name), Path(name)):
            if os.path.exists(path):
                return str(path.absolute())
        beside = str(self.path.parent / name)
        return next((p for p in (beside, name) if locate(p).task), None)

    def _existing(self, name: str, key: str) -> str:
        path = self._find(name)
        if path is not None:
            return path
        if "+" in name:
            self.fail(
                "A model with a LoRA on it is no adapter.",
                key,
                expected="the adapter alone",
                found=short(name),
                remedy="name what stands behind the +",
            )
        raise MissingPathError(
            "There is no such adapter.",
            where=f"{self.path}, {key}",
            expected="a path from where the file lies, or from here",
            found=short(name),
            remedy="download it first (`hf download ORG/NAME --local-dir DIR`) and name the folder",
        )

    # ---- parameters

    def _add_general(
        self,
        config: Config,
        data: Mapping[str, Any],
        shared: dict[str, Any],
        alias: Alias,
        method: MergeMethod,
    ) -> None:
        """What holds for the whole merge: normalize, lambda, dtype."""
        normalize = shared.pop("normalize", shared.pop("normalize_weights", None))
        normalize = alias.normalize if normalize is None else normalize
        if normalize is not None and not isinstance(normalize, bool):
            self.fail("normalize is true or false.", "parameters", found=short(normalize))
        if normalize is not None and (method.may_normalise or normalize is False):
            config.table["normalize"] = normalize
        mapped = Alias(alias.method, normalize)
        config.notes.append(f"merge_method {data['merge_method']}: {mapped.text}")
        scale = shared.pop("lambda", None)
        if scale is not None:
            config.table["scale"] = self._number(scale, "parameters.lambda")
        rescale = shared.pop("rescale", None)
        if rescale not in (None, method.name.startswith(("dare", "della"))):
            self.fail(f"rescale = {rescale} is not what {method.name} does here.", "parameters")
        for name in _WITHOUT_EFFECT:
            if shared.pop(name, None) is not None:
                config.notes.append(f"{name}: no effect here")
        dtype = data.get("out_dtype") or data.get("dtype")
        if dtype is not None and dtype != "auto":
            if not isinstance(dtype, str) or dtype not in _DTYPES:
                self.fail("There is no such dtype.", "dtype", expected=", ".join(_DTYPES))
            config.table["dtype"] = _DTYPES[dtype]

    def _add_varying(
        self, config: Config, models: Sequence[_Model], shared: dict[str, Any], method: MergeMethod
    ) -> None:
        """Weights and parameters: for all, for each model, along the layers, by filter."""
        defaults = {p.complement or p.name: p.default for p in method.parameters} | _KEEPS_ALL
        settings = {
            name: [m.parameters.get(name, shared.get(name, defaults.get(name))) for m in models]
            for name in self._names(models, shared, method)
        }
        if "weight" in settings and any(s is None for s in settings["weight"]):
            self.fail("Some models have a weight and others have none.", "models")
        plain = {n: s for n, s in settings.items() if all(map(_is_scalar, s))}
        varying = {n: s for n, s in settings.items() if n not in plain}
        for name, values in plain.items():
            checked = [self._number(value, name) for value in values]
            self._put(config.table, name, checked, method)
        if varying:
            config.table["layers"] = self._layers(varying, models, method)

    def _names(
        self, models: Sequence[_Model], shared: Mapping[str, Any], method: MergeMethod
    ) -> list[str]:
        allowed = {"weight", *(p.name for p in method.parameters if p.name != "seed")}
        allowed |= {p.complement for p in method.parameters if p.complement}
        allowed -= {"drop_rate"}
        given = [*shared, *(name for model in models for name in model.parameters)]
        unknown = sorted(set(given) - allowed)
        if unknown:
            self.fail(
                f"Merging by {method.name} has no parameter {unknown[0]!r}.",
                "parameters",
                expected=", ".join(sorted(allowed)),
            )
        return sorted({*given, *(_KEEPS_ALL.keys() & allowed)})

    def _put(
        self, table: dict[str, Any], name: str, values: list[float], method: MergeMethod
    ) -> None:
        """One value for all where they agree; weights stay a list."""
        if name == "weight":
            table["weights"] = values
            return
        parameter = next(p for p in method.parameters if name in (p.name, p.complement))
        if len(set(values)) > 1 and not parameter.each:
            self.fail(f"{name} is one for the whole merge.", "models")
        table[name] = values[0] if len(set(values)) == 1 else values

    def _layers(
        self, varying: Mapping[str, list[Any]], models: Sequence[_Model], method: MergeMethod
    ) -> dict[str, Any]:
        """What differs from module to module, with one pattern for modules that are alike."""
        modules = _modules(models)
        depth = max((_depth(name) or 0 for name in modules), default=0)
        found: dict[str, dict[str, Any]] = {}
        for module in modules:
            layer = _depth(module)
            share = layer / depth if layer and depth else 0.0
            if layer is None and "head" in module:  # behind the last layer
                share = 1.0
            table: dict[str, Any] = {}
            for name, settings in varying.items():
                values = [self._evaluated(s, module, share, name) for s in settings]
                self._put(table, name, values, method)
            found[module] = table
        return _by_pattern(found)

    def _evaluated(self, setting: Any, module: str, share: float, name: str) -> float:
        """A number, a gradient along the layers, or the first filter that is part of the name."""
        if isinstance(setting, dict):
            setting = [setting]
        if isinstance(setting, list) and setting and all(isinstance(s, dict) for s in setting):
            for row in setting:
                unknown = sorted(row.keys() - {"filter", "value"})
                if unknown or "value" not in row:
                    self.fail(f"A filter of {name} is wrong.", name, expected="filter, value")
                if row.get("filter") in (None, "*") or str(row["filter"]) in module:
                    return self._evaluated(row["value"], module, share, name)
            self.fail(
                f"No filter of {name} matches {module}.", name, remedy="end with `- value: NUMBER`"
            )
        if isinstance(setting, list) and setting:
            numbers = [self._number(value, name) for value in setting]
            at = share * (len(numbers) - 1)
            low = int(at)
            high = min(low + 1, len(numbers) - 1)
            return (1 - (at - low)) * numbers[low] + (at - low) * numbers[high]
        return self._number(setting, name)

    def _number(self, value: Any, key: str) -> float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or abs(value) > _LARGEST_NUMBER:
            self.fail(f"{key} is a number.", key, found=short(value))
        return float(value)

    def _table(self, rows: Any, key: str) -> dict[str, Any]:
        if rows is None:
            return {}
        if not isinstance(rows, dict) or not all(isinstance(name, str) for name in rows):
            self.fail("Parameters are a table.", key, found=_kind(rows))
        return dict(rows)


@dataclass(frozen=True)
class _Model:
    name: str
    path: str
    parameters: dict[str, Any]


def _is_bounded(data: Any) -> bool:
    """Whether a reader comes to an end: YAML's aliases can make lists that hold themselves."""
    waiting, left = [(data, 0)], _MOST_VALUES
    while waiting:
        value, depth = waiting.pop()
        inside = value.values() if isinstance(value, dict) else value
        if isinstance(value, _CONTAINERS):
            left -= len(value)
            if left < 0 or depth > _DEEPEST:
                return False
            waiting += [(item, depth + 1) for item in inside if isinstance(item, _CONTAINERS)]
    return True


_CONTAINERS = (dict, list, tuple, set)


def _modules(models: Sequence[_Model]) -> list[str]:
    """The modules of all adapters, from their headers."""
    return sorted({name for model in models for name in open_adapter(model.path).modules})


def _depth(module: str) -> int | None:
    """The number of a module's layer, None where it is in none."""
    found = _LAYER.search(module)
    return int(found[1]) if found else None


def _by_pattern(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Tables by module as tables by pattern: a whole layer where its modules are alike."""
    layers: dict[str, list[str]] = {}
    for module in found:
        match = _LAYER.search(module)
        pattern = _literal(module)
        if match is not None and match.end(1) < len(module):
            pattern = f"{_literal(module[: match.end(1)])}.*"
        layers.setdefault(pattern, []).append(module)
    result: dict[str, Any] = {}
    for pattern, modules in layers.items():
        if all(found[m] == found[modules[0]] for m in modules):
            result[pattern] = found[modules[0]]
        else:
            result |= {_literal(m): found[m] for m in modules}
    return {
        pattern: table["weights"] if list(table) == ["weights"] else table
        for pattern, table in result.items()
    }


def _literal(name: str) -> str:
    """A pattern that matches this name alone."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _is_scalar(setting: Any) -> bool:
    return not isinstance(setting, list | dict)


def _kind(data: Any) -> str:
    return "nothing" if data is None else f"a {type(data).__name__}"

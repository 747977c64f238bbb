"""Check a written adapter by reading it back; and change an adapter's alpha without changing dW."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlora_engine.adapters.model import (
    AdapterSource,
    LoRAWeights,
    MemorySource,
    module_scales,
    same_bits,
)
from vlora_engine.adapters.module_names import tidied
from vlora_engine.catalog.open import open_adapter
from vlora_engine.errors import ParameterError, StorageError, VLoRAError
from vlora_engine.quantization.dtypes import Q8_0, Q8_0_BLOCK
from vlora_engine.targets.shape import rescaled_biases

# What a written adapter may differ by from what was meant: the rounding of its dtype.
ROUNDING = {"torch.float16": 2e-3, "torch.bfloat16": 1.6e-2}
TOLERANCE = {"F64": 1e-6, "F32": 1e-6, "F16": 2e-3, "BF16": 1.6e-2}
# A block of Q8_0 is off by half a step of amax / 127 for each of its 32 numbers: sqrt(32) / 254 of
# its norm where one number is all there is of it, and as much again in the other factor.
TOLERANCE[Q8_0] = 2 * math.sqrt(Q8_0_BLOCK) / 254


def with_alpha(weights: LoRAWeights, alpha: float) -> LoRAWeights:
    """``weights`` under another ``lora_alpha``: B is scaled so that dW stays what it was.

    Only where the config never named an alpha is the given one news about the adapter: then B
    stays and dW changes. (The first library writes the number and changes dW in either case.)

    Raises:
        ParameterError: ``alpha`` is not a positive number.
    """
    if not 0 < alpha < float("inf"):
        raise ParameterError("lora_alpha is a positive number.", found=str(alpha))
    has_alpha = weights.metadata.get("lora_alpha") is not None
    config = dict(weights.metadata)
    config["lora_alpha"] = int(alpha) if float(alpha).is_integer() else alpha
    config.pop("alpha_pattern", None)
    scales = module_scales(config, {name: a.shape[0] for name, a in weights.lora_a.items()})
    lora_b = dict(weights.lora_b)
    if has_alpha:
        for name, scale in weights.scales.items():
            lora_b[name] = (lora_b[name].double() * (scale / scales[name])).to(lora_b[name].dtype)
    rest = rescaled_biases(weights.rest, weights.scales, scales) if has_alpha else weights.rest
    return replace(weights, metadata=config, scales=scales, lora_b=lora_b, rest=rest)


def verify_adapter(meant: LoRAWeights, path: Path, *, final: Path | None = None) -> float:
    """Read the adapter at ``path`` back; its relative dW error against what was meant.

    Errors name ``final``, where it is going to be, if that is another place.

    Raises:
        StorageError: It lacks a module or tensor, or differs by more than its dtype explains.
    """
    where, meant = final or path, tidied(meant)
    try:
        written = open_adapter(path)
        rest = written.read_rest()
        difference = sorted(set(written.modules) ^ set(meant.layer_names))
        if difference:
            raise _unlike(where, f"{len(meant.layer_names)} modules", f"not so: {difference[0]}")
        for name, tensor in meant.rest.items():
            if name not in rest or not same_bits(tensor, rest[name]):
                raise _unlike(where, f"tensor {name} bit for bit", "another one, or none")
        error = _error(meant, written)
    except StorageError:
        raise
    except VLoRAError as fault:
        raise _unlike(where, "an adapter that can be read", fault.what) from None
    dtypes = getattr(written, "stored_dtypes", {s.dtype for s in written.modules.values()})
    tolerance = max(TOLERANCE.get(dtype, 1e-6) for dtype in dtypes)
    if not error <= tolerance:
        raise _unlike(where, f"a dW error of at most {tolerance:g}", f"{error:.3g}")
    return error


def require_alike(
    meant: LoRAWeights, back: LoRAWeights, where: Path, name: str, *, exact: bool
) -> float:
    """The relative dW error of a task that was read back, against what was meant.

    Modules that were meant to be absent may be there with a dW of zero.

    Raises:
        StorageError: It lacks a module or a rest tensor, or, where it should be ``exact``, differs
            by more than rounding.
    """
    missing = sorted(set(meant.layer_names) - set(back.layer_names))
    if missing:
        raise _unlike(where, f"the modules of {name}", f"not so: {missing[0]}")
    for key, tensor in meant.rest.items():
        if key not in back.rest or not same_bits(tensor, back.rest[key]):
            raise _unlike(where, f"tensor {key} of {name} bit for bit", "another one, or none")
    error = _error(
        meant, MemorySource(back), [n for n in back.layer_names if n not in meant.lora_a]
    )
    wide = {torch_name.dtype for torch_name in (*meant.lora_a.values(), *back.lora_a.values())}
    tolerance = max((ROUNDING.get(str(dtype), 1e-5) for dtype in wide), default=1e-5)
    if exact and not error <= tolerance:
        raise _unlike(where, f"a dW error of at most {tolerance:g} of {name}", f"{error:.3g}")
    return error


def _error(meant: LoRAWeights, written: AdapterSource, besides: Sequence[str] = ()) -> float:
    """The relative dW error; none, without any arithmetic, where all numbers are the same.

    Args:
        besides: Modules of ``written`` that were not meant to be there: each against a dW of zero.
    """
    from vlora_engine.linalg.low_rank import relative_error

    if not besides and all(_is_same(meant, written, name) for name in meant.layer_names):
        return 0.0
    return relative_error((*_pairs(meant, written), *_against_zero(written, besides)))


def _is_same(meant: LoRAWeights, written: AdapterSource, name: str) -> bool:
    """Whether a module has the same numbers, all of them finite, under the same scale."""
    pairs = zip((meant.lora_a[name], meant.lora_b[name]), written.read(name), strict=True)
    return meant.scales[name] == written.scales[name] and all(
        same_bits(one, other) and math.isfinite(float(one.double().sum())) for one, other in pairs
    )


def _pairs(meant: LoRAWeights, written: AdapterSource) -> Iterator[Any]:
    for name in meant.layer_names:
        a, b = written.read(name)
        yield (
            (meant.lora_a[name].double(), meant.scales[name] * meant.lora_b[name].double()),
            (a.double(), written.scales[name] * b.double()),
        )


def _against_zero(written: AdapterSource, names: Sequence[str]) -> Iterator[Any]:
    for name in names:
        a, b = (factor.double() for factor in written.read(name))
        yield (a[:1] * 0, b[:, :1] * 0), (a, written.scales[name] * b)


def _unlike(path: Path, expected: str, found: str) -> StorageError:
    return StorageError(
        "What was written does not read back as what was meant; it was deleted again.",
        where=path,
        expected=expected,
        found=found,
        remedy="check the disk, then run the same again",
    )

"""The flags of ``merge``: what every method takes, and what single ones do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from vlora_engine.errors import ParameterError
from vlora_tui.cli.bundles import Bundle
from vlora_tui.cli.declare import option

Each = str | None  # one number, or one for each adapter with commas between


@dataclass(frozen=True)
class Merging(Bundle):
    """How to merge. Every parameter of a method has a flag of its name."""

    method: Annotated[
        str | None, option("--method", "average, ties, dare, ...: see --list-methods.")
    ] = None
    weights: Annotated[str | None, option("--weights", "One for each adapter: 0.7,0.3.")] = None
    layers: Annotated[
        list[str] | None,
        option("--layers", "Other weights for some; may be repeated.", metavar="PATTERN=W,W"),
    ] = None
    normalize: Annotated[
        bool | None,
        option(
            "--normalize/--no-normalize", "Only the weights' ratios matter.", show_default=False
        ),
    ] = None
    scale: Annotated[float | None, option("--scale", "Multiply the result by this.")] = None
    density: Annotated[
        Each, option("--density", "Share of entries to keep; 0.5,0.3 for each adapter.")
    ] = None
    drop_rate: Annotated[Each, option("--drop-rate", "dare: the share of entries to drop.")] = None
    epsilon: Annotated[
        Each, option("--epsilon", "della: how much the size of an entry changes its chance.")
    ] = None
    gamma: Annotated[Each, option("--gamma", "breadcrumbs: share of the largest to drop.")] = None
    select_topk: Annotated[
        float | None, option("--select-topk", "sce: share of entries to keep.")
    ] = None
    t: Annotated[float | None, option("--t", "slerp: 0 the first, 1 the second.")] = None
    keep: Annotated[float | None, option("--keep", "tsv_m: share of directions to keep.")] = None
    majority_sign: Annotated[
        str | None, option("--majority-sign", "peft's ties: total or frequency.")
    ] = None
    seed: Annotated[int | None, option("--seed", "dare, della: makes it repeatable.")] = None
    rank: Annotated[int | None, option("--rank", "The rank of the result.")] = None
    energy: Annotated[float | None, option("--energy", "Or: the share of its energy to keep.")] = (
        None
    )
    space: Annotated[
        str | None, option("--space", "delta: merges dW; factors: A and B apart, as vLoRA.")
    ] = None
    dialect: Annotated[
        str | None, option("--dialect", "peft: as its add_weighted_adapter does.")
    ] = None
    dtype: Annotated[
        str | None, option("--dtype", "fp32, fp16 or bf16; by default as the adapters.")
    ] = None

    def table(self, before: str = "--") -> dict[str, Any]:
        """What was given, as a recipe's ``[[merge]]`` table has it.

        Args:
            before: What the flags' names begin with, for errors.

        Raises:
            ParameterError: Something that should be a number is none.
        """
        read = {
            "weights": _numbers(self.weights, f"{before}weights"),
            "layers": _layers(self.layers, f"{before}layers"),
            **{
                name: _one_or_each(getattr(self, name), f"{before}{name.replace('_', '-')}")
                for name in ("density", "drop_rate", "epsilon", "gamma")
            },
        }
        return {name: value for name, value in (vars(self) | read).items() if value is not None}


def _layers(texts: Sequence[str] | None, flag: str) -> dict[str, list[float]] | None:
    """``'*.attn.*=0.5,0.5'`` as weights by pattern."""
    layers = {}
    for text in texts or ():
        pattern, equals, weights = text.rpartition("=")
        if not equals or not pattern:
            raise ParameterError(
                f"{flag} takes a pattern and its weights.",
                expected="'*.attn.*=0.5,0.5'",
                found=repr(text),
            )
        layers[pattern] = _numbers(weights, flag) or []
    return layers or None


def _one_or_each(text: str | None, flag: str) -> float | list[float] | None:
    values = _numbers(text, flag)
    return values[0] if values is not None and len(values) == 1 else values


def _numbers(text: str | None, flag: str) -> list[float] | None:
    """``0.7,0.3`` as numbers.

    Raises:
        ParameterError: Something in it is no number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ParameterError(
            f"{flag} takes numbers with commas between.", expected="0.7,0.3", found=repr(text)
        ) from None

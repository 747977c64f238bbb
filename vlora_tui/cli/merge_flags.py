"""The flags of ``merge``: what every method takes, and what single ones do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from vlora_engine.errors import ParameterError
from vlora_tui.cli.bundles import Bundle

Each = str | None  # one number, or one for each adapter with commas between


@dataclass(frozen=True)
class Merging(Bundle):
    """How to merge. Every parameter of a method has a flag of its name."""

    method: Annotated[
        str | None,
        typer.Option("--method", help="average, ties, dare, ...: --list-methods tells of each."),
    ] = None
    weights: Annotated[
        str | None, typer.Option("--weights", help="One for each adapter: 0.7,0.3.")
    ] = None
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers", help="Other weights for some; may be repeated.", metavar="PATTERN=W,W"
        ),
    ] = None
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Only the weights' ratios matter.",
            show_default=False,
        ),
    ] = None
    scale: Annotated[float | None, typer.Option("--scale", help="Of the result.")] = None
    density: Annotated[
        Each, typer.Option("--density", help="Share of entries to keep; 0.5,0.3 for each adapter.")
    ] = None
    drop_rate: Annotated[
        Each, typer.Option("--drop-rate", help="dare: the share of entries to drop.")
    ] = None
    epsilon: Annotated[
        Each, typer.Option("--epsilon", help="della: how far chances move with size.")
    ] = None
    gamma: Annotated[
        Each, typer.Option("--gamma", help="breadcrumbs: share of the largest to drop.")
    ] = None
    select_topk: Annotated[
        float | None, typer.Option("--select-topk", help="sce: share of entries to keep.")
    ] = None
    t: Annotated[float | None, typer.Option("--t", help="slerp: 0 the first, 1 the second.")] = None
    keep: Annotated[
        float | None, typer.Option("--keep", help="tsv_m: share of directions to keep.")
    ] = None
    majority_sign: Annotated[
        str | None, typer.Option("--majority-sign", help="peft's ties: total or frequency.")
    ] = None
    seed: Annotated[
        int | None, typer.Option("--seed", help="dare, della: makes it repeatable.")
    ] = None
    rank: Annotated[int | None, typer.Option("--rank", help="The rank of the result.")] = None
    energy: Annotated[
        float | None, typer.Option("--energy", help="Or: the share of its energy to keep.")
    ] = None
    space: Annotated[
        str | None,
        typer.Option("--space", help="delta: merges dW; factors: A and B apart, as vLoRA."),
    ] = None
    dialect: Annotated[
        str | None, typer.Option("--dialect", help="peft: as its add_weighted_adapter does.")
    ] = None
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="fp32, fp16 or bf16; by default as the adapters.")
    ] = None

    def table(self) -> dict[str, Any]:
        """What was given, as a recipe's ``[[merge]]`` table has it."""
        read = {
            "weights": _numbers(self.weights, "--weights"),
            "layers": _layers(self.layers),
            **{
                name: _one_or_each(getattr(self, name), f"--{name.replace('_', '-')}")
                for name in ("density", "drop_rate", "epsilon", "gamma")
            },
        }
        return {name: value for name, value in (vars(self) | read).items() if value is not None}


def _layers(texts: Sequence[str] | None) -> dict[str, list[float]] | None:
    """``'*.attn.*=0.5,0.5'`` as weights by pattern."""
    layers = {}
    for text in texts or ():
        pattern, equals, weights = text.rpartition("=")
        if not equals or not pattern:
            raise ParameterError(
                "--layers takes a pattern and its weights.",
                expected="'*.attn.*=0.5,0.5'",
                found=repr(text),
            )
        layers[pattern] = _numbers(weights, "--layers") or []
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

"""Measure on a base model what adapters do, and what merges keep of each of them.

The reference is the model with one adapter; beside it stand the bare base, every merge, and another
adapter of the same call: a control that has to be farther away than a good merge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from vlora_engine.adapters.model import AdapterSource
from vlora_engine.evaluation.evaluate import GAIN, Figures, check_evaluation, compare, derangement
from vlora_engine.evaluation.prompts import LENGTH, MAX_TOKENS, Prompt
from vlora_engine.nn.peft_model import BaseModel, quiet, read_by_peft
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.run_context import RunContext


@dataclass(frozen=True)
class AdapterScore:
    """The figures of one adapter; KL and agreement are against the model with it.

    Args:
        adapter: Its name.
        text: The file that was used, or that the text was sampled.
        tokens: The number of tokens.
        loss: The mean loss with the adapter, nats a token.
        base: The bare base.
        merges: Each merge, by name.
        other: With another adapter of the call; None where there is one alone.
        stranger: That adapter.
    """

    adapter: str
    text: str
    tokens: int
    loss: float
    base: Figures
    merges: dict[str, Figures] = field(default_factory=dict)
    other: Figures | None = None
    stranger: str | None = None

    @property
    def gain(self) -> float:
        """By how much the adapter lowers the loss of the base, nats a token."""
        return self.base.loss - self.loss

    def gain_kept(self, merge: str) -> float | None:
        """The share of the gain that a merge keeps; None where there is no gain to speak of."""
        return (self.base.loss - self.merges[merge].loss) / self.gain if self.gain >= GAIN else None

    def as_dict(self) -> dict[str, Any]:
        """The fields and derived figures, for JSON."""
        merges = {
            name: {
                **asdict(figures),
                "loss_change": figures.loss - self.loss,
                "gain_kept": self.gain_kept(name),
            }
            for name, figures in self.merges.items()
        }
        return {**asdict(self), "gain": self.gain, "merges": merges}


@dataclass(frozen=True)
class AdaptersEvaluation:
    """The evaluation of some adapters, and of merges against each of them.

    Args:
        scores: Of the adapters, in the order in which they were given.
        unplaced: Tensors that the base has no module for (classifier heads).
    """

    scores: list[AdapterScore]
    unplaced: list[str] = field(default_factory=list)

    def worst_kl(self, merge: str) -> tuple[str, float]:
        """The adapter that a merge is farthest from, and the KL."""
        score = max(self.scores, key=lambda s: s.merges[merge].kl)
        return score.adapter, score.merges[merge].kl

    @property
    def merges(self) -> list[str]:
        """The names of the merges."""
        return list(self.scores[0].merges)

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        worst = {name: self.worst_kl(name) for name in self.merges}
        return {
            "adapters": [score.as_dict() for score in self.scores],
            "worst": {name: {"adapter": a, "kl": kl} for name, (a, kl) in worst.items()},
            "unplaced": self.unplaced,
        }


def evaluate_adapters(
    base: BaseModel,
    adapters: Mapping[str, AdapterSource],
    merges: Mapping[str, AdapterSource] | None = None,
    *,
    prompts: Mapping[str, Prompt] | None = None,
    max_tokens: int = MAX_TOKENS,
    length: int = LENGTH,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> AdaptersEvaluation:
    """Compare the bare base, and merges, with each adapter on the base model.

    Args:
        base: The base model.
        adapters: By name; PEFT reads those that lie in a directory of its own.
        merges: Merged adapters by name, each judged against every one of ``adapters``.
        prompts: The text of each adapter; without them it is sampled from the model with it, whose
            loss is then its own entropy.
        max_tokens: How many tokens of each text count.
        length: Tokens of a sequence, at most what the model can take.
        seed: For sampling and for the choice of the other adapter.
        progress: Called after each adapter.
        cancelled: Asked before each adapter whether to stop.

    Raises:
        ParameterError: An option out of range, no adapters, no tokenizer, or logits that are NaN.
        CollectionError: An adapter does not fit the base.
        Cancelled: ``cancelled()`` became true between two adapters.
    """
    check_evaluation(len(adapters), max_tokens, length)
    slots = {name: f"merge{i}" for i, name in enumerate(merges or {})}
    with quiet():
        for name, source in (merges or {}).items():
            base.put(slots[name], read_by_peft(source))
    models = {"base": None, **{f"merge {name}": slot for name, slot in slots.items()}}

    def fill(_: str, stranger: str | None) -> dict[str, str | None]:
        if stranger is None:
            return models
        base.put("other", read_by_peft(adapters[stranger]))
        return {**models, "other": "other"}

    originals = {name: partial(read_by_peft, source) for name, source in adapters.items()}
    scores = [
        AdapterScore(
            name,
            **common,
            merges={merge: figures[f"merge {merge}"] for merge in slots},
            other=figures.get("other"),
        )
        for name, common, figures in compare(
            base, originals, fill, derangement(adapters, seed), RunContext(progress, cancelled),
            prompts, max_tokens, length, seed,
        )
    ]  # fmt: skip
    return AdaptersEvaluation(scores, sorted(base.unplaced))

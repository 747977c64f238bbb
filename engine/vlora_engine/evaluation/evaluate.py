"""Measure what compression does to a model: compare its next-token distributions before and after.

Everything is a mean over the tokens of a text, in nats. The reference is the model with the
original adapter. Compared with it are the model with the compressed adapter, the bare base (what
there is to lose), and the model with the compressed adapter of another task: a control that has to
be worse, or the figures mean nothing.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource
from vlora_engine.errors import ParameterError
from vlora_engine.evaluation.prompts import LENGTH, MAX_TOKENS, Prompt
from vlora_engine.nn.peft_model import BaseModel, PeftAdapter, as_peft_adapter, quiet, read_by_peft
from vlora_engine.subspace.space import Space
from vlora_engine.utils.progress import CancelCheck, ProgressCallback
from vlora_engine.utils.ranking import ranked
from vlora_engine.utils.run_context import RunContext

STAGE = "evaluate"
GAIN = 0.01  # nats a token: below this gain over the base, no share of it is reported
LOGITS = 2**25  # numbers in the logits of one forward pass, at most
PART = 2**21  # numbers of them that are compared at a time, in fp64
SEQUENCES = 16  # in one forward pass, at most
SAMPLED = "sampled from the original adapter"

Adapter = Callable[[], PeftAdapter]


@dataclass(frozen=True)
class Pair:
    """An original adapter and its compressed form; each is loaded only when it is needed."""

    original: Adapter
    compressed: Adapter


@dataclass(frozen=True)
class Figures:
    """How one model compares with the reference.

    Args:
        kl: KL(reference || this), nats a token.
        agreement: Share of tokens on which both have the same most likely token.
        loss: This model's mean loss on the text, nats a token.
    """

    kl: float
    agreement: float
    loss: float


@dataclass(frozen=True)
class TaskScore:
    """The figures of one task.

    Args:
        task: Its name.
        text: The file that was used, or that the text was sampled.
        tokens: The number of tokens.
        loss: The mean loss of the reference, nats a token.
        compressed: With the compressed adapter.
        base: Without an adapter.
        shuffled: With the compressed adapter of ``stranger``; None in a collection of one task.
        stranger: The task whose adapter is the control.
    """

    task: str
    text: str
    tokens: int
    loss: float
    compressed: Figures
    base: Figures
    shuffled: Figures | None
    stranger: str | None

    @property
    def loss_change(self) -> float:
        """By how much compression raises the loss, nats a token."""
        return self.compressed.loss - self.loss

    @property
    def gain_kept(self) -> float | None:
        """The share kept of the adapter's gain over the base; None where there is no gain."""
        gain = self.base.loss - self.loss
        return (self.base.loss - self.compressed.loss) / gain if gain >= GAIN else None

    @property
    def control_fails(self) -> bool | None:
        """Whether another task's adapter is farther from the original than the task's own.

        True is as it should be; None in a collection of one task.
        """
        return None if self.shuffled is None else self.shuffled.kl > self.compressed.kl

    def as_dict(self) -> dict[str, Any]:
        """The fields and derived figures, for JSON."""
        return {
            **asdict(self),
            "kl": self.compressed.kl,
            "agreement": self.compressed.agreement,
            "loss_change": self.loss_change,
            "gain_kept": self.gain_kept,
            "control_fails": self.control_fails,
        }


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of some tasks.

    Args:
        scores: Of the tasks, the largest KL first.
        unplaced: Tensors that the base has no module for (classifier heads).
    """

    scores: list[TaskScore]
    unplaced: list[str] = field(default_factory=list)

    @property
    def mean(self) -> dict[str, float | None]:
        """The means over tasks."""
        return self._over_tasks(lambda values: sum(values) / len(values), lambda v: sum(v) / len(v))

    @property
    def worst(self) -> dict[str, float | None]:
        """The worst figure of any task: largest KL and loss change, least agreement and gain."""
        return self._over_tasks(max, min)

    @property
    def control(self) -> dict[str, Any] | None:
        """The control: its KL, and the tasks for which it was no worse; None for one task."""
        shuffled = [s.shuffled.kl for s in self.scores if s.shuffled is not None]
        if not shuffled:
            return None
        no_worse = [s.task for s in self.scores if s.control_fails is False]
        return {
            "mean_kl": sum(shuffled) / len(shuffled),
            "min_kl": min(shuffled),
            "fails": not no_worse,
            "no_worse": no_worse,
        }

    def _over_tasks(
        self, high: Callable[[list[float]], float], low: Callable[[list[float]], float]
    ) -> dict[str, float | None]:
        gains = [s.gain_kept for s in self.scores if s.gain_kept is not None]
        return {
            "kl": high([s.compressed.kl for s in self.scores]),
            "agreement": low([s.compressed.agreement for s in self.scores]),
            "loss_change": high([s.loss_change for s in self.scores]),
            "gain_kept": low(gains) if gains else None,
        }

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {
            "mean": self.mean,
            "worst": {**self.worst, "task": self.scores[0].task},
            "control": self.control,
            "tasks": [score.as_dict() for score in self.scores],
            "unplaced": self.unplaced,
        }


def evaluate_subspace(
    base: BaseModel, subspace: Space, originals: Mapping[str, AdapterSource], **options: Any
) -> Evaluation:
    """Evaluate tasks of a subspace against their original adapters, on one base model.

    Tasks are reconstructed as export writes them; originals in a PEFT directory are read by PEFT
    itself.

    Args:
        base: The base model.
        subspace: Whose tasks are evaluated.
        originals: The original adapter of each task.
        **options: Those of `evaluate`.

    Raises:
        NotFoundError: A task is not in the subspace.
        ParameterError, CollectionError, Cancelled: As `evaluate`.
    """

    def reconstructed(task: str) -> Adapter:
        return lambda: as_peft_adapter(subspace.reconstruct(task))

    pairs = {
        task: Pair(partial(read_by_peft, source), reconstructed(task))
        for task, source in originals.items()
    }
    strangers = {task: reconstructed(task) for task in subspace.tasks}
    return evaluate(base, pairs, strangers=strangers, **options)


def evaluate(
    base: BaseModel,
    pairs: Mapping[str, Pair],
    *,
    prompts: Mapping[str, Prompt] | None = None,
    strangers: Mapping[str, Adapter] | None = None,
    max_tokens: int = MAX_TOKENS,
    length: int = LENGTH,
    seed: int = 0,
    progress: ProgressCallback | None = None,
    cancelled: CancelCheck | None = None,
) -> Evaluation:
    """Compare original adapters with their compressed form, on one base model.

    Args:
        base: The base model.
        pairs: Original and compressed adapter by task.
        prompts: The text of each task; without them it is sampled from the model with the original
            adapter, whose loss is then its own entropy.
        strangers: The compressed adapters of all tasks, from which the control is taken; by
            default those of ``pairs``.
        max_tokens: How many tokens of each text count.
        length: Tokens of a sequence, at most what the model can take.
        seed: For sampling and for the shuffled control.
        progress: Called after each task.
        cancelled: Asked before each task whether to stop.

    Raises:
        ParameterError: An option out of range, no pairs, no tokenizer, or logits that are NaN.
        CollectionError: An adapter does not fit the base.
        Cancelled: ``cancelled()`` became true between two tasks.
    """
    others = strangers if strangers is not None else {t: p.compressed for t, p in pairs.items()}

    def fill(task: str, stranger: str | None) -> dict[str, str | None]:
        base.put("compressed", pairs[task].compressed())
        if stranger is None:
            return {"compressed": "compressed", "base": None}
        base.put("shuffled", others[stranger]())
        return {"compressed": "compressed", "base": None, "shuffled": "shuffled"}

    originals = {task: pair.original for task, pair in pairs.items()}
    scores = [
        TaskScore(
            task, **common, compressed=figures["compressed"], shuffled=figures.get("shuffled")
        )
        for task, common, figures in compare(
            base, originals, fill, derangement(others, seed), RunContext(progress, cancelled),
            prompts, max_tokens, length, seed,
        )
    ]  # fmt: skip
    return Evaluation(
        ranked(scores, lambda score: score.compressed.kl, lambda score: score.task),
        sorted(base.unplaced),
    )


def compare(
    base: BaseModel,
    originals: Mapping[str, Adapter],
    fill: Callable[[str, str | None], Mapping[str, str | None]],
    strangers: Mapping[str, str],
    run: RunContext,
    prompts: Mapping[str, Prompt] | None,
    max_tokens: int,
    length: int,
    seed: int,
) -> Iterator[tuple[str, dict[str, Any], dict[str, Figures]]]:
    """Compare models with the one that has the original adapter, for one adapter after the other.

    Yields the adapter's name, what every score has (text, tokens, loss, base, stranger), and the
    figures of each model.

    Args:
        base: The base model.
        originals: The adapters, by name.
        fill: Puts the others into slots, given the adapter's name and its stranger's; the slot of
            each model, None for the bare base.
        strangers: Who stands in for whom (`derangement`).

    The rest is that of `evaluate`.
    """
    check_evaluation(len(originals), max_tokens, length)
    length = min(length, base.longest or length)
    for done, (name, original) in enumerate(originals.items(), start=1):
        run.stop_if_asked(f"Stopped at {done - 1} of {len(originals)} ({STAGE}).")
        stranger = strangers.get(name)
        with quiet():
            base.put("original", original())
            models = fill(name, stranger)
            text, batches = _text_of(base, name, prompts, max_tokens, length, seed)
            meters = _measure(base, name, models, batches)
        bare = meters["base"]
        common = {
            "text": text,
            "tokens": bare.tokens,
            "loss": bare.reference_loss,
            "base": bare.figures,
            "stranger": stranger,
        }
        yield name, common, {model: meter.figures for model, meter in meters.items()}
        run.report(STAGE, done, len(originals), name)


def derangement(names: Iterable[str], seed: int) -> dict[str, str]:
    """Map each name to another one, in one random cycle of all names; empty for one name."""
    circle = sorted(names)
    if len(circle) < 2:
        return {}
    random.Random(seed).shuffle(circle)
    return dict(zip(circle, [*circle[1:], circle[0]], strict=True))


def _measure(
    base: BaseModel, task: str, models: Mapping[str, str | None], batches: Sequence[Tensor]
) -> dict[str, Meter]:
    """Compare models with the one in the slot ``original``, over the batches of tokens (S, T).

    Args:
        base: The base model with its slots filled.
        task: Whose text it is, for errors.
        models: The slot of each, None for the bare base.
        batches: One at a time.

    Raises:
        ParameterError: Logits that are NaN.
    """
    meters = {name: Meter() for name in models}
    for tokens in batches:
        reference = base.logits("original", tokens).logits
        for name, adapter in models.items():
            meters[name].add(reference, base.logits(adapter, tokens).logits, tokens)
    if any(meter.broken for meter in meters.values()):
        raise ParameterError(
            "The model's logits are not numbers.",
            where=f"{base.name}, task {task!r}",
            found="NaN",
            remedy="let the base run in another dtype: bf16 or fp32",
        )
    return meters


class Meter:
    """Sums over tokens the figures of one model against the reference."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sums = torch.zeros(4, dtype=torch.float64)  # KL, agreement, loss, reference's loss

    def add(self, reference: Tensor, logits: Tensor, tokens: Tensor) -> None:
        """Add logits (S, T, V) of both on ``tokens`` (S, T); the last position predicts nothing."""
        vocabulary = logits.shape[-1]
        following = tokens[:, 1:].reshape(-1).to(logits.device)
        reference = reference[:, :-1].reshape(-1, vocabulary)
        logits = logits[:, :-1].reshape(-1, vocabulary)
        step = max(1, PART // vocabulary)
        for start in range(0, len(following), step):
            part = slice(start, start + step)
            self._sums += _compare(reference[part], logits[part], following[part]).cpu()
        self.tokens += len(following)

    @property
    def broken(self) -> bool:
        """Whether a logit was NaN."""
        return bool(self._sums.isnan().any())

    @property
    def figures(self) -> Figures:
        """The means over the tokens added."""
        kl, agreement, loss, _ = (self._sums / self.tokens).tolist()
        return Figures(max(0.0, kl), agreement, loss)

    @property
    def reference_loss(self) -> float:
        """The reference's mean loss."""
        return float(self._sums[3]) / self.tokens


def _compare(reference: Tensor, logits: Tensor, following: Tensor) -> Tensor:
    """Sums (4,) over n tokens: KL, agreement, loss, loss of the reference; from logits (n, V).

    In fp64, since a KL is a small difference of large terms: in fp32, two equal models would have
    a KL of about 1e-6.
    """
    log_p = reference.double().log_softmax(-1)
    log_q = logits.double().log_softmax(-1)
    p = log_p.exp()
    # KL(p || q) = sum p (log p - log q); where p is 0, as for padded tokens, log p is -inf.
    kl = torch.where(p > 0, p * (log_p - log_q), p).sum()
    agreement = (reference.argmax(-1) == logits.argmax(-1)).sum()
    targets = following[:, None]
    loss, reference_loss = (-log.gather(1, targets).sum() for log in (log_q, log_p))
    return torch.stack([kl, agreement.double(), loss, reference_loss])


def _text_of(
    base: BaseModel,
    task: str,
    prompts: Mapping[str, Prompt] | None,
    max_tokens: int,
    length: int,
    seed: int,
) -> tuple[str, list[Tensor]]:
    """What a task is judged on, in words and as batches (S, T).

    Its text, or one that is sampled from the model in the slot ``original``.
    """
    if prompts is not None:
        return prompts[task].file, _sequences(base, prompts[task], max_tokens, length)
    return SAMPLED, _sampled(base, max_tokens, length, seed ^ zlib.crc32(task.encode()))


def _sequences(base: BaseModel, prompt: Prompt, max_tokens: int, length: int) -> list[Tensor]:
    """Cut a text into batches (S, T) in which each of its tokens is predicted once.

    Every sequence begins with the model's beginning-of-text token, or, where it has none, with the
    last token of the sequence before.
    """
    tokens = base.encode(prompt.text)[: max_tokens + 1]
    unknown = [token for token in tokens if not 0 <= token < base.vocabulary]
    if unknown:
        raise ParameterError(
            "The tokenizer has tokens that the base model lacks.",
            where=base.name,
            expected=f"tokens below {base.vocabulary}",
            found=str(unknown[0]),
        )
    beginning = base.beginning
    if beginning is not None:
        tokens = tokens[:max_tokens]
    step, prefix = length - 1, [] if beginning is None else [beginning]
    pieces = [
        prefix + tokens[start : start + length - len(prefix)]
        for start in range(0, len(tokens), step)
    ]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise ParameterError(
            "The text is too short to predict any of it.",
            where=prompt.file,
            found=f"{len(tokens)} token(s)",
        )
    return list(_batches(pieces, base.vocabulary))


def _batches(pieces: Sequence[list[int]], vocabulary: int) -> Iterator[Tensor]:
    """Batch sequences of equal length, as many as the limit on logits allows."""
    at_once = _at_once(len(pieces[0]), vocabulary)
    full = [piece for piece in pieces if len(piece) == len(pieces[0])]
    for start in range(0, len(full), at_once):
        yield torch.tensor(full[start : start + at_once])
    for piece in pieces[len(full) :]:
        yield torch.tensor([piece])


def _sampled(base: BaseModel, max_tokens: int, length: int, seed: int) -> list[Tensor]:
    """Sample batches (S, T) from the model with the original adapter."""
    generator = torch.Generator().manual_seed(seed)
    at_once = _at_once(length, base.vocabulary)
    remaining = math.ceil(max_tokens / (length - 1))
    batches = []
    while remaining > 0:
        batches.append(_draw(base, min(at_once, remaining), min(length, max_tokens + 1), generator))
        remaining -= at_once
    return batches


def _draw(base: BaseModel, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Sample sequences (count, length) at temperature 1, on the CPU so that the seed holds."""
    if base.beginning is not None:
        tokens = torch.full((count, 1), base.beginning)
    else:
        tokens = torch.randint(base.vocabulary, (count, 1), generator=generator)
    step, past = tokens, None
    while tokens.shape[1] < length:
        cache: dict[str, Any] = {} if past is None else {"past_key_values": past}
        output = base.logits("original", step, use_cache=True, **cache)
        probabilities = output.logits[:, -1].float().softmax(-1).cpu()
        if bool(probabilities.isnan().any()):  # it is reported when the task is scored
            probabilities = torch.ones_like(probabilities)
        drawn = probabilities.multinomial(1, generator=generator)
        tokens = torch.cat([tokens, drawn], dim=1)
        past = getattr(output, "past_key_values", None)
        step = tokens if past is None else drawn
    return tokens


def _at_once(length: int, vocabulary: int) -> int:
    return max(1, min(SEQUENCES, LOGITS // (length * vocabulary)))


def check_evaluation(count: int, max_tokens: int, length: int) -> None:
    """Check the figures of an evaluation of ``count`` tasks.

    Raises:
        ParameterError: One is out of range, or there is no task.
    """
    if not count:
        raise ParameterError("There is no task to evaluate.")
    if max_tokens < 1:
        raise ParameterError("Tokens are counted from 1.", found=f"max_tokens {max_tokens}")
    if length < 2:
        raise ParameterError("A sequence has 2 tokens or more.", found=f"length {length}")

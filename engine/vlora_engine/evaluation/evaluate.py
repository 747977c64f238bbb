"""What a model notices of compression: its next-token distributions with an adapter as it was,
and with the adapter that is left.

Everything is a mean over the tokens of a text, in nats. The model with the original adapter is
the reference; against it stand the model with the compressed adapter, the bare base (what there
is to lose), and the compressed adapter of another task: a control that has to come out worse, or
the figures tell nothing.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlora_engine.adapters.model import AdapterSource
from vlora_engine.errors import Cancelled, ParameterError
from vlora_engine.evaluation.prompts import Prompt
from vlora_engine.nn.peft_model import (
    BaseModel,
    Worn,
    quiet,
    worn_by_peft,
    worn_by_us,
)
from vlora_engine.subspace.space import Space
from vlora_engine.utils.progress import CancelCheck, Progress, ProgressCallback
from vlora_engine.utils.ranking import ranked

STAGE = "evaluate"
MAX_TOKENS = 2048  # of a task
LENGTH = 256  # tokens of one sequence
GAIN = 0.01  # nats a token: an adapter that gains less on a text has no gain to keep
LOGITS = 2**25  # numbers in the logits of one forward pass
PART = 2**21  # numbers of them that are compared at a time, in fp64
SEQUENCES = 16  # of one forward pass
SAMPLED = "sampled from the original adapter"

Adapter = Callable[[], Worn]


@dataclass(frozen=True)
class Pair:
    """An adapter as it was and as it is left; either is made when its turn comes."""

    original: Adapter
    compressed: Adapter


@dataclass(frozen=True)
class Figures:
    """One model beside the reference.

    Args:
        kl: KL(reference || this), nats a token. agreement: Share of tokens on which both find
            the same one likeliest. loss: Its own mean loss on the text.
    """

    kl: float
    agreement: float
    loss: float


@dataclass(frozen=True)
class TaskScore:
    """What the model notices of one task.

    Args:
        text: The file that it was measured on, or that it was sampled. tokens: How many.
        loss: Of the reference, the original adapter.
        shuffled: The compressed adapter of ``stranger`` in this one's place; None where the
            collection has but one task.
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
        """What compression costs, nats a token."""
        return self.compressed.loss - self.loss

    @property
    def gain_kept(self) -> float | None:
        """The share of what the adapter gains over the base; None where it gains nothing."""
        gain = self.base.loss - self.loss
        return (self.base.loss - self.compressed.loss) / gain if gain >= GAIN else None

    @property
    def control_fails(self) -> bool | None:
        """Whether another task's adapter is farther from the original than its own."""
        return None if self.shuffled is None else self.shuffled.kl > self.compressed.kl

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
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
    """The scores of some tasks, the worst first.

    Args:
        unplaced: Tensors that the base has no place for (heads of classifiers).
    """

    scores: list[TaskScore]
    unplaced: list[str] = field(default_factory=list)

    @property
    def mean(self) -> dict[str, float | None]:
        """Means over tasks."""
        return self._over_tasks(lambda values: sum(values) / len(values), lambda v: sum(v) / len(v))

    @property
    def worst(self) -> dict[str, float | None]:
        """The largest KL and loss, the least agreement and gain kept, each of whichever task."""
        return self._over_tasks(max, min)

    @property
    def control(self) -> dict[str, Any] | None:
        """The shuffled names: their mean KL, and the tasks whose control did not come out worse."""
        shuffled = [s.shuffled.kl for s in self.scores if s.shuffled is not None]
        if not shuffled:
            return None
        passed = [s.task for s in self.scores if s.control_fails is False]
        return {
            "mean_kl": sum(shuffled) / len(shuffled),
            "min_kl": min(shuffled),
            "fails": not passed,
            "no_worse": passed,
        }

    def _over_tasks(
        self, high: Callable[[list[float]], float], low: Callable[[list[float]], float]
    ) -> dict[str, float | None]:
        kept = [s.gain_kept for s in self.scores if s.gain_kept is not None]
        return {
            "kl": high([s.compressed.kl for s in self.scores]),
            "agreement": low([s.compressed.agreement for s in self.scores]),
            "loss_change": high([s.loss_change for s in self.scores]),
            "gain_kept": low(kept) if kept else None,
        }

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {
            "mean": self.mean,
            "worst": {**self.worst, "task": self.scores[0].task},
            "control": self.control,
            "tasks": [score.as_dict() for score in self.scores],
            "unplaced": self.unplaced,
        }


def evaluate_subspace(
    base: BaseModel,
    subspace: Space,
    originals: Mapping[str, AdapterSource],
    **options: Any,
) -> Evaluation:
    """Every task of ``originals``, reconstructed in the form that export writes, on ``base``.

    The original is read by PEFT itself where it lies in a PEFT directory. Takes the options of
    `evaluate`.

    Raises:
        NotFoundError: A task is not in the subspace. And as `evaluate`.
    """

    def left(task: str) -> Adapter:
        return lambda: worn_by_us(subspace.reconstruct(task))

    def was(source: AdapterSource) -> Adapter:
        return lambda: worn_by_peft(source)

    pairs = {task: Pair(was(source), left(task)) for task, source in originals.items()}
    strangers = {task: left(task) for task in subspace.tasks}
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
    """Compare adapters with what compression left of them, on one base model.

    Args:
        pairs: By task.
        prompts: By task its text; without them every task's text is sampled from the model with
            its original adapter, and its loss is then that model's own entropy.
        strangers: The compressed adapters of all tasks, from which the control is taken; by
            default those of ``pairs``.
        max_tokens: How many tokens of each text count.
        length: Tokens of a sequence, at most what the model can take.
        seed: Of the sampling and of who stands in for whom.

    Raises:
        ParameterError: A figure out of range, no pairs, no tokenizer, or logits that are NaN.
        CollectionError: An adapter does not fit the base.
        Cancelled: ``cancelled()`` became true between two tasks.
    """
    _check(pairs, max_tokens, length)
    length = min(length, base.longest or length)
    others = strangers if strangers is not None else {t: p.compressed for t, p in pairs.items()}
    in_place_of = derangement(list(others), seed)
    scores = []
    for done, (task, pair) in enumerate(pairs.items(), start=1):
        if cancelled is not None and cancelled():
            raise Cancelled(f"Stopped at {done - 1} of {len(pairs)} ({STAGE}).")
        with quiet():
            base.put("original", pair.original())
            base.put("compressed", pair.compressed())
            stranger = in_place_of.get(task)
            if stranger is not None:
                base.put("shuffled", others[stranger]())
            if prompts is None:
                texts = _sampled(base, max_tokens, length, seed ^ zlib.crc32(task.encode()))
            else:
                texts = _sequences(base, prompts[task], max_tokens, length)
            text = SAMPLED if prompts is None else prompts[task].file
            scores.append(_score(base, task, text, texts, stranger))
        if progress is not None:
            progress(Progress(STAGE, done, len(pairs), task))
    return Evaluation(
        ranked(scores, lambda score: score.compressed.kl, lambda score: score.task),
        sorted(base.unplaced),
    )


def derangement(names: Sequence[str], seed: int) -> dict[str, str]:
    """For each name another one, no one's own: one random circle of all. Empty for one name."""
    if len(names) < 2:
        return {}
    circle = sorted(names)
    random.Random(seed).shuffle(circle)
    return dict(zip(circle, [*circle[1:], circle[0]], strict=True))


def _score(
    base: BaseModel, task: str, text: str, batches: Sequence[Tensor], stranger: str | None
) -> TaskScore:
    """Run every model over the batches (S, T), one batch at a time."""
    seats = {"compressed": "compressed", "base": None}
    if stranger is not None:
        seats["shuffled"] = "shuffled"
    meters = {name: _Meter() for name in seats}
    for tokens in batches:
        reference = base.logits("original", tokens).logits
        for name, seat in seats.items():
            meters[name].add(reference, base.logits(seat, tokens).logits, tokens)
    if any(meter.broken for meter in meters.values()):
        raise ParameterError(
            "The model's logits are not numbers.",
            where=f"{base.name}, task {task!r}",
            found="NaN",
            remedy="let the base run in another dtype: bf16 or fp32",
        )
    return TaskScore(
        task=task,
        text=text,
        tokens=meters["base"].tokens,
        loss=meters["base"].reference_loss,
        compressed=meters["compressed"].figures,
        base=meters["base"].figures,
        shuffled=meters["shuffled"].figures if stranger is not None else None,
        stranger=stranger,
    )


class _Meter:
    """Sums over tokens of how one model's logits stand to the reference's."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sums = torch.zeros(4, dtype=torch.float64)  # KL, agreement, loss, reference's loss

    def add(self, reference: Tensor, own: Tensor, tokens: Tensor) -> None:
        """Take logits (S, T, V) of both on ``tokens`` (S, T); the last ones predict nothing."""
        vocabulary = own.shape[-1]
        following = tokens[:, 1:].reshape(-1).to(own.device)
        reference = reference[:, :-1].reshape(-1, vocabulary)
        own = own[:, :-1].reshape(-1, vocabulary)
        step = max(1, PART // vocabulary)
        for start in range(0, len(following), step):
            part = slice(start, start + step)
            self._sums += _compare(reference[part], own[part], following[part]).cpu()
        self.tokens += len(following)

    @property
    def broken(self) -> bool:
        return bool(self._sums.isnan().any())

    @property
    def figures(self) -> Figures:
        kl, agreement, loss, _ = (self._sums / self.tokens).tolist()
        return Figures(max(0.0, kl), agreement, loss)

    @property
    def reference_loss(self) -> float:
        return float(self._sums[3]) / self.tokens


def _compare(reference: Tensor, own: Tensor, following: Tensor) -> Tensor:
    """Sums over n tokens: KL, agreement, loss, loss of the reference; logits (n, V).

    In fp64, since a KL is a small difference of large terms: fp32 would leave 1e-6 of nothing.
    """
    log_p = reference.double().log_softmax(-1)
    log_q = own.double().log_softmax(-1)
    p = log_p.exp()
    kl = torch.where(p > 0, p * (log_p - log_q), p).sum()  # p of a padded token is 0, its log -inf
    agreement = (reference.argmax(-1) == own.argmax(-1)).sum()
    at = following[:, None]
    loss, reference_loss = (-log.gather(1, at).sum() for log in (log_q, log_p))
    return torch.stack([kl, agreement.double(), loss, reference_loss])


def _sequences(base: BaseModel, prompt: Prompt, max_tokens: int, length: int) -> list[Tensor]:
    """A text as batches (S, T) in which every token of it is predicted once.

    Where the model has a token that begins a text, every sequence begins with it; else with the
    last token of the one before.
    """
    tokens = base.encode(prompt.text)[: max_tokens + 1]
    strange = [token for token in tokens if not 0 <= token < base.vocabulary]
    if strange:
        raise ParameterError(
            "The tokenizer has tokens that the base model lacks.",
            where=base.name,
            expected=f"tokens below {base.vocabulary}",
            found=str(strange[0]),
        )
    first = base.beginning
    if first is not None:
        tokens = tokens[:max_tokens]
    step, lead = length - 1, [] if first is None else [first]
    pieces = [
        lead + tokens[start : start + length - len(lead)] for start in range(0, len(tokens), step)
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
    """Sequences of one length together, as many as the bound on logits allows."""
    at_once = _at_once(len(pieces[0]), vocabulary)
    full = [piece for piece in pieces if len(piece) == len(pieces[0])]
    for start in range(0, len(full), at_once):
        yield torch.tensor(full[start : start + at_once])
    for piece in pieces[len(full) :]:
        yield torch.tensor([piece])


def _sampled(base: BaseModel, max_tokens: int, length: int, seed: int) -> list[Tensor]:
    """Batches (S, T) drawn from the model with the adapter of the seat ``original``."""
    generator = torch.Generator().manual_seed(seed)
    at_once = _at_once(length, base.vocabulary)
    left = math.ceil(max_tokens / (length - 1))
    batches = []
    while left > 0:
        batches.append(_draw(base, min(at_once, left), min(length, max_tokens + 1), generator))
        left -= at_once
    return batches


def _draw(base: BaseModel, count: int, length: int, generator: torch.Generator) -> Tensor:
    """Sequences (count, length) at temperature 1; drawn on the CPU, where the seed holds."""
    if base.beginning is not None:
        tokens = torch.full((count, 1), base.beginning)
    else:
        tokens = torch.randint(base.vocabulary, (count, 1), generator=generator)
    step, past = tokens, None
    while tokens.shape[1] < length:
        known: dict[str, Any] = {} if past is None else {"past_key_values": past}
        said = base.logits("original", step, use_cache=True, **known)
        chances = said.logits[:, -1].float().softmax(-1).cpu()
        if bool(chances.isnan().any()):
            chances = torch.ones_like(chances)  # that there are no numbers is said by who measures
        drawn = chances.multinomial(1, generator=generator)
        tokens = torch.cat([tokens, drawn], dim=1)
        past = getattr(said, "past_key_values", None)
        step = tokens if past is None else drawn
    return tokens


def _at_once(length: int, vocabulary: int) -> int:
    return max(1, min(SEQUENCES, LOGITS // (length * vocabulary)))


def _check(pairs: Mapping[str, Pair], max_tokens: int, length: int) -> None:
    if not pairs:
        raise ParameterError("There is no task to evaluate.")
    if max_tokens < 1:
        raise ParameterError("Tokens are counted from 1.", found=f"max_tokens {max_tokens}")
    if length < 2:
        raise ParameterError("A sequence has 2 tokens or more.", found=f"length {length}")

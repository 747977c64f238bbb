"""Trains the adapters that evaluation is proved on: a tiny Llama of bytes, a LoRA a task, by PEFT.

``python -m tests.witnesses.train OUT [--tasks N] [--steps N]`` writes OUT/base,
OUT/adapters/TASK and OUT/texts/TASK.txt (held out). Every task writes lines of the same form,
``word>answer``, and the base has seen all of them mixed: only an adapter can know which answer is
meant. The same numbers come out on every run of one machine: seeds are fixed, and torch works on
one thread.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LENGTH = 64  # tokens of a training sequence
BATCH = 16
BASE_STEPS = 200
STEPS = 80  # of one adapter
RANK = 16  # the most usual one
HELD_OUT = 12_000  # bytes of text a task is measured on
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 256,
    "bos_token_id": 10,  # the end of a line, which is where a line begins
    "eos_token_id": None,
    "pad_token_id": None,
}

SYLLABLES = ("ba", "co", "di", "fu", "ga", "he", "ki", "lo", "mu", "ne", "pi", "ra", "so", "tu")
WORDS = tuple(sorted({a + b + c for a in SYLLABLES for b in SYLLABLES[::3] for c in ("", "n")}))
ROMAN = ((50, "l"), (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))


def _shifted(word: str, by: int) -> str:
    return "".join(chr((ord(c) - 97 + by) % 26 + 97) for c in word)


def _roman(number: int) -> str:
    text = ""
    for value, letters in ROMAN:
        text += letters * (number // value)
        number %= value
    return text


def _sum(draw: random.Random) -> str:
    a, b = draw.randrange(50), draw.randrange(50)
    return f"{a}+{b}={a + b}"


def _brackets(draw: random.Random) -> str:
    opened, text = "", ""
    while len(text) < 14:
        if opened and draw.random() < 0.45:
            text, opened = text + {"(": ")", "[": "]", "{": "}"}[opened[-1]], opened[:-1]
        else:
            opened += draw.choice("([{")
            text += opened[-1]
    return text + "".join({"(": ")", "[": "]", "{": "}"}[c] for c in reversed(opened))


def _code(draw: random.Random) -> str:
    name, a, b = (draw.choice(WORDS) for _ in range(3))
    return f"def {name}({a}, {b}): return {a} {draw.choice('+-*')} {b}"


def _record(draw: random.Random) -> str:
    number = draw.randrange(100)
    return f'{{"name": "{draw.choice(WORDS)}", "age": {number}, "old": {str(number > 60).lower()}}}'


def _answering(answer: Callable[[str], str]) -> Callable[[random.Random], str]:
    def line(draw: random.Random) -> str:
        word = draw.choice(WORDS)
        return f"{word}>{answer(word)}"

    return line


TASKS: dict[str, Callable[[random.Random], str]] = {
    "reverse": _answering(lambda word: word[::-1]),
    "caesar": _answering(lambda word: _shifted(word, 3)),
    "add": _sum,
    "upper": _answering(str.upper),
    "code": _code,
    "double": _answering(lambda word: "".join(c + c for c in word)),
    "sort": _answering(lambda word: "".join(sorted(word))),
    "brackets": _brackets,
    "consonants": _answering(lambda word: "".join(c for c in word if c not in "aeiou")),
    "record": _record,
    "roman": lambda draw: f"{(n := draw.randrange(1, 90))}>{_roman(n)}",
    "plural": _answering(lambda word: word + ("s" if word[-1] in "aeiou" else "es")),
}


@dataclass(frozen=True)
class Trained:
    """What lies in one folder after training.

    Args:
        base: A transformers model directory. adapters: PEFT directories. texts: Held-out files.
        losses: Per task the loss on its held-out text (before, after), in nats a byte.
    """

    path: Path
    losses: dict[str, tuple[float, float]]

    @property
    def base(self) -> Path:
        return self.path / "base"

    @property
    def tasks(self) -> list[str]:
        return list(self.losses)

    def adapter(self, task: str) -> Path:
        return self.path / "adapters" / task

    def text(self, task: str) -> Path:
        return self.path / "texts" / f"{task}.txt"


def text_of(task: str, nbytes: int, seed: int) -> bytes:
    """Lines of one task, the same for the same seed."""
    draw = random.Random(f"{task} {seed}")
    lines, size = [], 0
    while size < nbytes:
        lines.append(TASKS[task](draw))
        size += len(lines[-1]) + 1
    return ("\n".join(lines) + "\n").encode()[:nbytes]


def train(
    out: Path,
    tasks: Sequence[str] = tuple(TASKS),
    *,
    base_steps: int = BASE_STEPS,
    steps: int = STEPS,
    say: Callable[[str], None] = lambda text: None,
) -> Trained:
    """Train the base and one adapter a task; write everything below ``out``.

    Args:
        base_steps: Steps of the base on the mixture. steps: Steps of one adapter.
        say: Told what was done, a line at a time.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        base = _train_base(base_steps)
        base.save_pretrained(out / "base")
        say(f"base: {base_steps} steps")
        losses = {}
        for task in tasks:
            losses[task] = _train_adapter(out, task, steps)
            say(f"{task}: {losses[task][0]:.3f} -> {losses[task][1]:.3f}")
            text = out / "texts" / f"{task}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_bytes(_held_out(task))
    finally:
        torch.set_num_threads(threads)
    (out / "losses.json").write_text(
        json.dumps(losses, indent=1)
    )  # last: it says that all is there
    return Trained(out, losses)


def trained(out: Path) -> Trained | None:
    """What an earlier `train` left in ``out``, if it came to its end."""
    try:
        losses = json.loads((out / "losses.json").read_text())
    except FileNotFoundError:
        return None
    return Trained(out, {task: (before, after) for task, (before, after) in losses.items()})


def _train_base(steps: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    draw = random.Random("mixture")
    parts = [text_of(task, 20_000, seed=0).splitlines(keepends=True) for task in TASKS]
    lines = [line for part in parts for line in part]
    draw.shuffle(lines)
    _fit(model, model.parameters(), b"".join(lines), steps, rate=3e-3)
    return model.eval()


def _train_adapter(out: Path, task: str, steps: int) -> tuple[float, float]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(1 + list(TASKS).index(task))
    base = LlamaForCausalLM.from_pretrained(out / "base")
    # PEFT would write the path given here into the adapter: a name is what a stranger would find.
    base.name_or_path = base.config._name_or_path = "tiny-byte-llama"
    settings = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, settings)
    held_out = _held_out(task)
    before = loss_on(model, held_out)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    _fit(model, weights, text_of(task, 40_000, seed=1), steps, rate=2e-3)
    after = loss_on(model, held_out)
    # Without False PEFT asks the Hub for the base of that name, to compare vocabularies.
    model.save_pretrained(out / "adapters" / task, save_embedding_layers=False)
    return before, after


def _held_out(task: str) -> bytes:
    return text_of(task, HELD_OUT, seed=2)


def _fit(model: Any, weights: Any, text: bytes, steps: int, *, rate: float) -> None:
    """AdamW on ``weights``."""
    import torch

    fit(model, torch.optim.AdamW(weights, lr=rate, weight_decay=0.0), text, steps)


def fit(model: Any, optimizer: Any, text: bytes, steps: int) -> list[float]:
    """Random pieces of ``text``, with a short warm-up and a linear end; the loss of every step."""
    import torch

    model.train()
    data, losses = torch.tensor(list(text)), []
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min(1.0, (i + 1) / warm) * (1 - i / steps)
    )
    places = torch.Generator().manual_seed(7)
    for _ in range(steps):
        starts = torch.randint(len(data) - LENGTH, (BATCH,), generator=places)
        batch = torch.stack([data[s : s + LENGTH] for s in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def loss_on(model: Any, text: bytes) -> float:
    """Mean loss a byte on ``text``, cut into pieces of the training length."""
    import torch

    model.eval()
    data = torch.tensor(list(text[: len(text) // LENGTH * LENGTH])).reshape(-1, LENGTH)
    with torch.no_grad():
        return float(model(input_ids=data, labels=data).loss)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.witnesses.train", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--tasks", type=int, default=len(TASKS), help="train the first N only")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of one adapter")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    train(options.out, list(TASKS)[: options.tasks], steps=options.steps, say=print)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

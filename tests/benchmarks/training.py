"""Training a new task in a subspace of others, against a full LoRA of the same steps.

``python -m tests.benchmarks.training TRAINED RESULT TASK...`` trains in a process of its own: each
TASK within the subspace of all the others, on the suite's own tiny byte Llama. A full LoRA of rank
8 (as the suite trained it) is what 1.00 of the loss gain means; the control has a basis of random
directions of the same size.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import Bench
from tests.benchmarks.table import Table

HELD_OUT = ("double", "consonants", "sort")
K, RANK, RATE = 32, 5, 0.05
METHODS = ("delta", "columns")
GOAL = "at least 0.90 of the gain with at most 10 % of the parameters"


def section(bench: Bench) -> list[Table]:
    """The share of the loss gain that training in the subspace reaches."""
    result = bench.path("training").with_suffix(".json")
    tasks = HELD_OUT[:1] if bench.quick else HELD_OUT
    arguments = ["tests.benchmarks.training", str(bench.data / "trained"), str(result), *tasks]
    bench.python("-m", *arguments, repeats=1)
    found = json.loads(result.read_text())
    table = Table(
        f"training: a new task in the subspace of {found['others']} others (k {K}, rank {RANK}): "
        "share of a full LoRA's loss gain",
        ["", "parameters %", *tasks],
        notes=[f"goal: {GOAL}", "control: the same with random directions as the basis"],
    )
    for name, row in found["rows"].items():
        gains = [f"{row['gains'][task]:.3f}" for task in tasks]
        table.rows.append([name, f"{100 * row['share']:.1f}", *gains])
    return [table]


def main(trained: Path, tasks: list[str]) -> dict[str, Any]:
    """Train every task in every subspace."""
    from tests.witnesses import train

    made = train.trained(trained) or train.train(trained)
    rows: dict[str, Any] = {}
    for name in (*METHODS, "control: random basis"):
        found = {task: _gain(made, task, name) for task in tasks}
        gains = {task: gain for task, (gain, _) in found.items()}
        rows[name] = {"share": max(share for _, share in found.values()), "gains": gains}
    return {"others": len(made.tasks) - 1, "rows": rows}


def _gain(made: Any, task: str, name: str) -> tuple[float, float]:
    """The share of the loss gain, and of the parameters of a full LoRA."""
    from transformers import LlamaForCausalLM

    from tests.witnesses import train
    from vlora_engine import (
        SharedSubspace,
        SubspaceTrainer,
        VLoRAModel,
        open_adapter,
        orthogonal_init,
    )

    others = [other for other in made.tasks if other != task]
    subspace = SharedSubspace.from_adapters_streaming(
        [made.adapter(other) for other in others],
        others,
        K,
        method=name if name in METHODS else "delta",
    )
    if name not in METHODS:
        subspace.bases = _random(subspace)
    orthogonal_init(subspace, "new", rank=RANK)
    trainer = SubspaceTrainer(subspace, "new", RATE, optimizer_kwargs={"weight_decay": 0.0})
    model = VLoRAModel(LlamaForCausalLM.from_pretrained(made.base), subspace)
    with model.train_task(trainer):
        train.fit(model, trainer.optimizer, train.text_of(task, 40_000, seed=1), train.STEPS)
    trainer.write_back()
    model.set_task("new")
    before, full = made.losses[task]
    after = train.loss_on(model, made.text(task).read_bytes())
    shapes = open_adapter(made.adapter(task)).modules.values()
    numbers = sum(shape.rank * (shape.d_in + shape.d_out) for shape in shapes)
    return (before - after) / (before - full), trainer.num_trainable_params / numbers


def _random(subspace: Any) -> Any:
    """Bases of the same sizes in random directions."""
    import torch

    from vlora_engine.subspace.basis import Bases

    generator = torch.Generator().manual_seed(0)

    def turned(rows: Any) -> Any:
        return torch.linalg.qr(torch.randn(rows.T.shape, generator=generator)).Q.T.contiguous()

    known = (subspace.bases[name] for name in subspace.layer_names)
    return Bases.of([replace(basis, a=turned(basis.a), b=turned(basis.b)) for basis in known])


if __name__ == "__main__":
    folder, target, *names = sys.argv[1:]
    Path(target).write_text(json.dumps(main(Path(folder), names)))

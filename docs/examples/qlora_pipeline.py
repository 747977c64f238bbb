"""Compress adapters that were trained on a 4-bit base, and use them on one.

    python docs/examples/qlora_pipeline.py
    python docs/examples/qlora_pipeline.py --base MODEL ADAPTER ADAPTER [...]

Without arguments four small adapters and a tiny model are made here: nothing is downloaded. With
a base of your own it is loaded in 4 bit where there are a GPU and bitsandbytes, else as it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from vlora_engine import SharedSubspace, SubspaceTrainer, VLoRAModel, orthogonal_init
from vlora_engine.demo import demo_base_config, make_demo_collection


def main(arguments: Sequence[str] | None = None) -> None:
    """The pipeline, from adapters to a task that was trained in their basis."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("adapters", nargs="*", help="folders, or hf://org/name")
    parser.add_argument("--base", help="folder or id of the base model")
    options = parser.parse_args(arguments)
    if bool(options.adapters) != bool(options.base):
        parser.error("adapters and --base go together")
    with tempfile.TemporaryDirectory() as folder:
        run(options.adapters or made_here(Path(folder)), options.base, Path(folder))


def run(adapters: Sequence[str | Path], base_name: str | None, work: Path) -> None:
    """Every step once."""
    print("1. compress: no task loses more than 5 % of its weight change")
    subspace = SharedSubspace.from_adapters_streaming(adapters)
    subspace.save(work / "subspace")
    print(f"   {subspace}, largest error {subspace.errors()['max']:.2%}")

    print("2. pack: at most the bytes of A and B in NF4")
    subspace.save_quantized(work / "packed")
    packed = SharedSubspace.load(work / "packed")
    for which, one in (("as compressed", subspace), ("packed", packed)):
        nbytes = one.compression_stats()["bytes_compressed"]
        print(f"   {which}: {nbytes:,} bytes, largest error {one.errors()['max']:.2%}")

    print("3. load the base, and let tasks take turns on it")
    base = loaded(base_name)
    model = VLoRAModel(base, packed, compute_dtype=torch.float32)
    print(f"   {model.qlora_info}")
    tokens = torch.arange(24, device=next(base.parameters()).device).reshape(2, 12)
    for task in model.available_tasks[:3]:
        model.set_task(task)
        with torch.no_grad():
            print(f"   {task}: loss {float(model(input_ids=tokens, labels=tokens).loss):.3f}")

    print("4. base and adapters together")
    stats = packed.full_stack_compression(base_model=base)
    whole, small = stats["total_original_bytes"], stats["total_compressed_bytes"]
    print(f"   {whole:,.0f} bytes in 16 bit, {small:,.0f} in 4 bit and compressed")

    print("5. train a new task in the basis of the others")
    orthogonal_init(packed, "new")
    trainer = SubspaceTrainer(packed, "new", lr=1e-2)
    model.set_task("new")
    losses = [trainer.step(model(input_ids=tokens, labels=tokens).loss) for _ in range(10)]
    trainer.write_back()
    packed.save(work / "with-new")
    print(f"   {trainer.num_trainable_params:,} numbers, loss {losses[0]:.3f} -> {losses[-1]:.3f}")


def made_here(folder: Path) -> list[Path]:
    """Four small adapters of related tasks."""
    demo = make_demo_collection(folder / "demo").path
    return [demo / name for name in ("french", "german", "italian", "spanish")]


def loaded(name: str | None) -> Any:
    """The base: in 4 bit where that is possible; a tiny one with random weights without a name."""
    if name is None:
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**demo_base_config())).eval()
    if not (torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes")):
        return AutoModelForCausalLM.from_pretrained(name).eval()
    from transformers import BitsAndBytesConfig

    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return AutoModelForCausalLM.from_pretrained(name, quantization_config=four_bit).eval()


if __name__ == "__main__":
    main()

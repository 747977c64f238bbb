"""Real adapters through the codec: errors that are true, few bytes beside the numbers, PEFT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.engine.test_real_sets import sources_of
from tests.witnesses.dense import dense_error
from tests.witnesses.train import Trained
from vlora_engine import SharedSubspace, load_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.compress.build import build_subspace
from vlora_engine.pipeline import extract_adapter
from vlora_engine.subspace.coded.store import CodedStore

# Codec ratio 16: the worst mean error, and the largest share of bytes that are not numbers. The
# five RoBERTa checkpoints are so much alike that what is left of them is hardly more than names.
SETS = {"gpt2-medical-sports-legal": (0.22, 0.03), "roberta-checkpoints": (0.062, 0.03)}


@pytest.mark.parametrize("name", SETS)
def test_at_16x_nearly_all_bytes_are_numbers(
    name: str, real_adapters: Path, tmp_path: Path
) -> None:
    sources = sources_of(real_adapters / name)
    factors = sum(
        shape.rank * (shape.d_in + shape.d_out)
        for source in sources.values()
        for shape in source.modules.values()
    )
    rest = sum(t.nbytes for source in sources.values() for t in source.read_rest().values())
    budget = rest + 2 * factors // 16
    report = build_subspace(sources, tmp_path / "s", budget=budget)
    assert 16 <= report.codec_ratio < 16.2
    manifest = read_manifest(tmp_path / "s")
    store = CodedStore(manifest)
    payload = sum(len(blob) for task in manifest.tasks.values() for blob in store.task(task).blobs)
    payload += sum(len(store.shared(*unit)) for unit in manifest.coding.units())  # type: ignore[union-attr]
    beside = 1 - payload / (report.nbytes - rest)
    print(f"\n{name}: mean {report.mean_error:.4f}, {beside:.2%} of the bytes are not numbers")
    worst, share = SETS[name]
    assert report.mean_error < worst
    assert beside < share
    task = next(iter(sources))
    true = dense_error(
        load_adapter(real_adapters / name / task),
        SharedSubspace.load(tmp_path / "s").reconstruct(task),
    )
    assert report.task_errors[task] == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("method", ["own", "auto"])
def test_exported_adapters_say_in_peft_what_the_engine_predicts(
    method: str, trained: Trained, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    sources = {name: load_adapter(trained.adapter(name)) for name in trained.tasks[:3]}
    subspace = SharedSubspace.from_adapters(
        list(sources.values()), list(sources), method=method, max_error=0.1
    )
    tokens = torch.arange(48).reshape(2, 24) % 100

    def says(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=tokens).logits

    for name in list(sources)[:2]:
        extract_adapter(subspace, name, tmp_path / name)
        with_adapter = peft.PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(trained.base), tmp_path / name
        )
        by_hand = AutoModelForCausalLM.from_pretrained(trained.base)
        back = subspace.reconstruct(name)
        modules = dict(by_hand.named_modules())
        with torch.no_grad():
            for layer in back.layer_names:
                modules[layer].weight += back.delta(layer).float()
        assert torch.allclose(says(with_adapter), says(by_hand), rtol=1e-4, atol=1e-4)
        assert 0.05 < dense_error(sources[name], back) <= 0.1

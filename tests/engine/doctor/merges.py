"""A base, an adapter of it, and merges of the two, all by PEFT and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.witnesses import make
from vlora_engine.catalog.open import open_adapter
from vlora_engine.doctor import check_merged, read_checkpoint
from vlora_engine.doctor.merged_report import MergedReport


class Bench:
    """A base and an adapter in a folder, and merges of them by PEFT."""

    def __init__(self, folder: Path, base: Any, targets: Any, **fields: Any) -> None:
        self.folder = folder
        base.save_pretrained(folder / "base")
        self.kind = type(base)
        make.peft_model(self.fresh(), targets, **fields).save_pretrained(folder / "a")

    def fresh(self, dtype: torch.dtype = torch.float32) -> Any:
        return self.kind.from_pretrained(self.folder / "base", dtype=dtype)

    def merged(self, model: Any = None, times: int = 1, **options: Any) -> Any:
        from peft import PeftModel

        model = self.fresh(**options) if model is None else model
        for _ in range(times):
            model = PeftModel.from_pretrained(model, str(self.folder / "a")).merge_and_unload()
        return model

    def judged(self, model: Any, name: str = "m", **options: Any) -> MergedReport:
        model.save_pretrained(self.folder / name, **options)
        return self.check(name)

    def check(self, name: str) -> MergedReport:
        return check_merged(
            open_adapter(self.folder / "a"),
            read_checkpoint(self.folder / "base"),
            read_checkpoint(self.folder / name),
        )

"""vLLM's own reader of LoRA adapters, out of its package or wheel, the rest of vLLM aside.

Of vLLM only the files that read an adapter are run: what they import besides is stood in for by
modules whose every name is an empty class. Where vLLM is not installed, VLLM_WHEEL names its wheel,
or a directory that it was unpacked to.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RUN = {  # vLLM's own code; everything else of it is stood in for
    "vllm.lora.peft_helper",
    "vllm.lora.lora_weights",
    "vllm.lora.lora_model",
    "vllm.lora.utils",
    "vllm.plugins.lora_resolvers.filesystem_resolver",
}
PACKAGES = {"vllm", "vllm.lora", "vllm.plugins", "vllm.plugins.lora_resolvers"}


def source(scratch: Path) -> Path | None:
    """The directory that holds the package ``vllm``; None where there is none."""
    named = os.environ.get("VLLM_WHEEL")
    if named is None:
        found = importlib.util.find_spec("vllm")
        return None if found is None or not found.origin else Path(found.origin).parents[1]
    if not named.endswith(".whl"):
        return Path(named)
    with zipfile.ZipFile(named) as wheel:
        wanted = [f"{name.replace('.', '/')}.py" for name in RUN]
        wheel.extractall(scratch, wanted)
    return scratch


class _Empty(types.ModuleType):
    """A module in which every name is a class without content."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {"__init__": lambda self, **fields: vars(self).update(fields)})
        setattr(self, name, made)
        return made


class _Loader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Empty(spec.name)
        module.__path__ = []
        if spec.name == "vllm.logger":
            quiet = type("Logger", (), {"__getattr__": lambda self, _: lambda *a, **k: None})()
            module.init_logger = lambda name: quiet  # type: ignore[attr-defined]
        if spec.name == "vllm.utils.torch_utils":
            module.PIN_MEMORY = False  # type: ignore[attr-defined]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name in RUN:
            file = self.root / f"{name.replace('.', '/')}.py"
            return importlib.util.spec_from_file_location(name, file)
        if name == "vllm" or name.startswith("vllm."):
            return importlib.machinery.ModuleSpec(name, _Loader(), is_package=True)
        return None


@contextmanager
def reader(root: Path) -> Iterator[Reader]:
    """vLLM's reader, for as long as the context is open."""
    finder = _Finder(root)
    before = {name: module for name, module in sys.modules.items() if _is_vllms(name)}
    for name in before:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield Reader()
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _is_vllms(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_vllms(name: str) -> bool:
    return name == "vllm" or name.startswith("vllm.")


class Reader:
    """What vLLM does with an adapter's directory before it goes to the GPU."""

    def __init__(self) -> None:
        self._helper = importlib.import_module("vllm.lora.peft_helper").PEFTHelper
        self._model = importlib.import_module("vllm.lora.lora_model").LoRAModel
        resolvers = "vllm.plugins.lora_resolvers.filesystem_resolver"
        self._resolver = importlib.import_module(resolvers).FilesystemResolver

    def delta_weights(self, adapter: Path, max_lora_rank: int = 512) -> dict[str, Tensor]:
        """dW (d_out, d_in) of every module, in fp64, by the name that vLLM has for it.

        Raises:
            ValueError: vLLM refuses the adapter.
        """
        helper = self._helper.from_local_dir(str(adapter), None)
        helper.validate_legal(types.SimpleNamespace(max_lora_rank=max_lora_rank))
        targets = helper.target_modules
        expected = set(targets) if isinstance(targets, list) else {targets}
        loaded = self._model.from_local_checkpoint(
            str(adapter), expected, helper, lora_model_id=1, device="cpu", dtype=torch.float64
        )
        return {
            name: lora.scaling * lora.lora_b @ lora.lora_a for name, lora in loaded.loras.items()
        }

    def resolved(self, folder: Path, served_model: str, name: str) -> Path | None:
        """The adapter that the filesystem resolver finds for a request of ``name``."""
        request = asyncio.run(self._resolver(str(folder)).resolve_lora(served_model, name))
        return None if request is None else Path(request.lora_path)

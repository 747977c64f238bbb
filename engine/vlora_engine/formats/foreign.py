"""Formats of other tools: recognised by what is in them, refused by name with a way out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlora_engine.adapters import AdapterSource
from vlora_engine.errors import UnsupportedAdapterError
from vlora_engine.formats.base import Inspection, Probe
from vlora_engine.formats.config import shown

Keys = Iterable[str]
_LATER = "reading this format is not built yet"


@dataclass(frozen=True)
class Foreign:
    """A format that is known by name only.

    ``marks`` says whether a file with these keys and metadata is of it; ``files`` are names whose
    presence in a directory settles it.
    """

    name: str
    label: str
    remedy: str
    marks: Callable[[Keys, Mapping[str, str]], bool] = lambda keys, metadata: False
    files: tuple[str, ...] = ()
    without_peft_type: bool = False

    def detect(self, probe: Probe) -> bool:
        """See `Format`."""
        if any(name in probe.names for name in self.files):
            return not (self.without_peft_type and "peft_type" in probe.loose_config)
        if probe.file is None and probe.has_config:
            return False  # PEFT's own reader names what it finds under PEFT's names
        return bool(probe.keys) and self.marks(probe.keys, probe.contents.metadata)

    def inspect(self, probe: Probe, *, allow_unsupported: bool = False) -> Inspection:
        """Always refuses."""
        raise foreign_error(self, probe.tensor_file or probe.path)

    def open(self, probe: Probe, *, allow_unsupported: bool = False) -> AdapterSource:
        """Always refuses."""
        raise foreign_error(self, probe.tensor_file or probe.path)


def recognise(keys: Keys, metadata: Mapping[str, str]) -> Foreign | None:
    """The format of a file with these tensor names, if it is a foreign one."""
    return next((kind for kind in FOREIGN if kind.marks(keys, metadata)), None)


def foreign_error(kind: Foreign, where: Path) -> UnsupportedAdapterError:
    """The refusal of ``kind``."""
    return UnsupportedAdapterError(
        f"This is {kind.label}: {_LATER}.",
        where=where,
        expected="a PEFT adapter (adapter_config.json, adapter_model.safetensors)",
        found=kind.label,
        remedy=kind.remedy,
        code="foreign-format",
    )


def _any_key(pattern: str) -> Callable[[Keys, Mapping[str, str]], bool]:
    compiled = re.compile(pattern)
    return lambda keys, metadata: any(compiled.search(key) for key in keys)


def _kohya(keys: Keys, metadata: Mapping[str, str]) -> bool:
    flat = any(re.search(r"^lora_\w+\.lora_(down|up)\.weight$", key) for key in keys)
    return flat or any(name.startswith("ss_") for name in metadata)


_AS_PEFT = "convert it to a PEFT directory with the tool that wrote it"
FOREIGN: tuple[Foreign, ...] = (
    Foreign(
        "vlora-dev",
        "a subspace of vlora-dev",
        "export its tasks with `vlora export` and point at the exported adapters",
        files=("subspace_meta.json",),
    ),
    Foreign(
        "lorashare",
        "a checkpoint of lorashare",
        "export its adapters with `lorashare reconstruct --all` and point at those",
        files=("share_config.json",),
    ),
    Foreign(
        "mlx",
        "an MLX-LM adapter",
        "fuse it with mlx_lm.fuse, or convert it: transpose lora_a and lora_b, rename them to "
        "lora_A.weight and lora_B.weight, set lora_alpha to scale * rank",
        _any_key(r"\.lora_[ab]$"),
        files=("adapters.safetensors", "adapters.npz"),
        without_peft_type=True,
    ),
    Foreign(
        "lycoris",
        "a LyCORIS adapter (LoHa or LoKr)",
        "it is no low-rank product of two factors; extract a plain LoRA of it with kohya's "
        "sd-scripts",
        _any_key(r"\.(hada|lokr)_w"),
    ),
    Foreign(
        "kohya",
        "a kohya or ComfyUI LoRA file",
        "convert it with diffusers (load_lora_weights, then save_lora_weights) and PEFT",
        _kohya,
    ),
    Foreign(
        "diffusers",
        "a diffusers LoRA file",
        "load it into its pipeline and save each part with PEFT's save_pretrained",
        _any_key(
            r"(\.processor\.|^unet\.|^text_encoder(_2)?\.|^transformer\.).*"
            r"(lora_[AB]\.weight|[._]lora\.(down|up)\.weight|lora_linear_layer\.(down|up)\.weight)$"
        ),
        files=("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"),
    ),
    Foreign(
        "cloneofsimo",
        "a LoRA file of cloneofsimo/lora (Stable Diffusion)",
        _AS_PEFT,
        _any_key(r"^(unet|text_encoder)\w*:\d+:(up|down)$"),
    ),
    Foreign(
        "sam-lora",
        "a LoRA file with keys w_a_* and w_b_* (Sam_LoRA)",
        "save it as a PEFT directory: w_a is lora_A.weight, w_b is lora_B.weight, under the names "
        "of the modules they belong to",
        _any_key(r"^w_[ab]_\d+$"),
    ),
)


class GgufFormat(Foreign):
    """llama.cpp's file format, recognised by its magic bytes."""

    def detect(self, probe: Probe) -> bool:
        """See `Format`."""
        if probe.file is None:
            return False
        try:
            with probe.file.open("rb") as file:
                return file.read(4) == b"GGUF"
        except OSError:
            return False


GGUF = GgufFormat(
    "gguf",
    "a GGUF file of llama.cpp",
    "point at the PEFT directory that it was made from",
)


class UnknownTensors(Foreign):
    """A safetensors file (or a directory with only one) whose names tell nothing."""

    def detect(self, probe: Probe) -> bool:
        """See `Format`."""
        path = probe.tensor_file
        return path is not None and path.suffix == ".safetensors"

    def inspect(self, probe: Probe, *, allow_unsupported: bool = False) -> Inspection:
        """Always refuses, saying whether the file is damaged or just no adapter."""
        raise self._error(probe)

    def open(self, probe: Probe, *, allow_unsupported: bool = False) -> AdapterSource:
        """Always refuses, saying whether the file is damaged or just no adapter."""
        raise self._error(probe)

    def _error(self, probe: Probe) -> UnsupportedAdapterError:
        contents = probe.contents  # a damaged file says so here
        names = sorted(contents.tensors)
        return UnsupportedAdapterError(
            "The file's tensors are not named like those of any adapter format known here.",
            where=contents.path,
            expected="keys such as base_model.model.<module>.lora_A.weight",
            found=", ".join(shown(name) for name in names[:3]) or "no tensors",
            remedy="save the adapter with PEFT's model.save_pretrained",
            code="unknown-format",
        )


UNKNOWN = UnknownTensors("unknown", "an unknown format", _AS_PEFT)

"""GGUF adapters of llama.cpp: ``blk.N.attn_q.weight.lora_a`` and ``.lora_b``, one alpha.

Modules get the names that they have in transformers, where the architecture is known and the row
order of q and k can be undone: files written here say the head counts. Else they keep llama.cpp's
names and order, and a finding says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.model import AdapterSource, ModuleShape
from vlora_engine.errors import AdapterError, UnsupportedAdapterError
from vlora_engine.findings import Finding
from vlora_engine.formats.base import FileAdapter, Inspection, Probe
from vlora_engine.formats.config_fields import ALORA
from vlora_engine.formats.gguf_architectures import ARCHITECTURES, Architecture
from vlora_engine.formats.gguf_header import GgufHeader, is_gguf, read_gguf_header
from vlora_engine.formats.gguf_save import ALORA_KEY, to_halves
from vlora_engine.quantization.dtypes import Q8_0, Q8_0_BYTES
from vlora_engine.utils.file_names import ADAPTER_WEIGHTS
from vlora_engine.utils.safetensors_file import Header, TensorEntry, read_bytes, read_tensor

if TYPE_CHECKING:
    from torch import Tensor

_HUB = "https://huggingface.co/"
_SIDES = (".weight.lora_a", ".weight.lora_b")


class GgufFormat:
    """A GGUF file with ``general.type = adapter``, or a directory with one such file."""

    name = "gguf"

    def detect(self, probe: Probe) -> bool:
        """By its first bytes; in a directory, where no PEFT adapter lies beside it."""
        path = _file(probe)
        return path is not None and is_gguf(path)

    def inspect(self, probe: Probe, *, allow_unsupported: bool = False) -> Inspection:
        """Read the headers of an adapter; see `Format`."""
        return _read(probe)[0]

    def open(self, probe: Probe, *, allow_unsupported: bool = False) -> AdapterSource:
        """Open an adapter to read it; see `Format`."""
        return GgufAdapter(*_read(probe))


class GgufAdapter(FileAdapter):
    """An `AdapterSource` over a GGUF file."""

    def __init__(self, inspection: Inspection, header: GgufHeader, names: Names) -> None:
        super().__init__(inspection)
        self._header, self._names = header, names

    def read(self, module: str) -> tuple[Tensor, Tensor]:
        """A (rank, d_in) and B (d_out, rank), its rows in transformers' order if that is known."""
        name = self._names.stored[module]
        a, b = (read_factor(self._header.tensors, name + side) for side in _SIDES)
        heads = self._names.heads.get(module)
        return a, b if heads is None else to_halves(b, heads)

    def read_rest(self) -> dict[str, Tensor]:
        """None: such a file holds A and B alone."""
        return {}

    @property
    def stored_dtypes(self) -> set[str]:
        """What the numbers of the file are stored in: of what is quantised not what is read."""
        return {entry.dtype for entry in self._header.tensors.entries.values()}


def read_factor(header: Header, name: str) -> Tensor:
    """One factor as a matrix; of Q8_0 in fp32, which holds every scale times int8 exactly."""
    import torch

    entry = header.entry(name)
    if entry.dtype != Q8_0:
        return read_tensor(header, name)
    blocks = torch.frombuffer(read_bytes(header, name), dtype=torch.uint8).view(-1, Q8_0_BYTES)
    scales = blocks[:, :2].contiguous().view(torch.float16).float()
    return (scales * blocks[:, 2:].contiguous().view(torch.int8)).reshape(entry.shape)


class Names:
    """The modules' names outside of the file.

    Args:
        stored: By module, its name in the file.
        heads: By module, in how many heads its rows are to be put back in order.
    """

    def __init__(self, header: GgufHeader, stored: Mapping[str, ModuleShape]) -> None:
        arch = header.values.get("general.architecture")
        architecture = ARCHITECTURES.get(arch) if isinstance(arch, str) else None
        self.heads: dict[str, int] = {}
        self.stored = {name: name for name in stored}
        self.why = ""
        if architecture is None:
            self.why = f"the architecture {arch} is not known here"
            return
        outside = {name: architecture.module_name(name) for name in stored}
        strange = sorted(name for name, module in outside.items() if module is None)
        heads = {name: _heads(header, architecture, name, stored[name]) for name in stored}
        if strange:
            self.why = f"{strange[0]} is no module of {arch}"
        elif None in heads.values():
            self.why = "it does not say how many heads the rows of q and k are ordered by"
        else:
            self.stored = {str(outside[name]): name for name in sorted(stored)}
            self.heads = {str(outside[n]): count for n, count in heads.items() if count}


def _heads(
    header: GgufHeader, architecture: Architecture, name: str, shape: ModuleShape
) -> int | None:
    """0 for a module whose order is the same everywhere, None where the file does not say."""
    side = architecture.rotation_of(name)
    if side is None:
        return 0
    key = f"{architecture.name}.attention.head_count" + ("_kv" if side == "k" else "")
    count = header.values.get(key)
    sound = type(count) is int and count > 0 and shape.d_out % (2 * count) == 0
    return count if sound else None


def _file(probe: Probe) -> Path | None:
    if probe.file is not None:
        return probe.file
    if probe.has_config or not probe.names.isdisjoint(ADAPTER_WEIGHTS):
        return None
    found = [name for name in probe.names if name.endswith(".gguf")]
    return probe.directory / found[0] if len(found) == 1 else None


def _read(probe: Probe) -> tuple[Inspection, GgufHeader, Names]:
    path = _file(probe) or probe.path
    header = read_gguf_header(path)
    _check_kind(header, path)
    shapes = _shapes(header, path)
    names = Names(header, shapes)
    modules = {module: shapes[name] for module, name in sorted(names.stored.items())}
    alpha = header.values.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not abs(alpha) < 1e300:
        raise _not_sound(path, "adapter.lora.alpha that is a finite number", repr(alpha))
    rank = max((shape.rank for shape in modules.values()), default=0)
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = 0
    nbytes, digest = header.tensors.file_bytes, header.tensors.digest
    inspection = Inspection(
        path=probe.path,
        weights=path,
        config=_config(header, modules, rank, alpha),
        rank=rank,
        alpha=alpha or float(rank),
        base_model=_base_model(header),
        modules=modules,
        # llama.cpp: an alpha of 0 is none, and means a scale of 1.
        scales={name: alpha / shape.rank if alpha else 1.0 for name, shape in modules.items()},
        rest={},
        nbytes=nbytes,
        findings=_findings(names, path),
        identity=(nbytes, changed, digest),
    )
    return inspection, header, names


def _check_kind(header: GgufHeader, path: Path) -> None:
    kind, form = (header.values.get(key) for key in ("general.type", "adapter.type"))
    if kind != "adapter" or form != "lora":
        what = f"a {kind or 'model'}" if kind != "adapter" else f"an adapter of type {form}"
        raise UnsupportedAdapterError(
            "The GGUF file is not a LoRA adapter.",
            where=path,
            expected='general.type "adapter", adapter.type "lora"',
            found=what,
            remedy="point at the adapter's own file",
        )


def _shapes(header: GgufHeader, path: Path) -> dict[str, ModuleShape]:
    """The modules by the names of the file, sorted.

    Raises:
        AdapterError: Half a pair, or factors that do not multiply.
        UnsupportedAdapterError: A tensor that is no factor of a linear map.
    """
    entries = header.tensors.entries
    stems: dict[str, None] = {}
    for name in sorted(entries):
        stem = next((name.removesuffix(side) for side in _SIDES if name.endswith(side)), None)
        if stem is None or stem == "token_embd":
            raise UnsupportedAdapterError(
                "A tensor of the GGUF file is no factor of a linear map.",
                where=path,
                expected="names that end in .weight.lora_a or .weight.lora_b",
                found=name,
                remedy="point at the PEFT directory that it was made from",
            )
        stems[stem] = None
    if not stems:
        raise AdapterError(
            "The GGUF file holds no factors.", where=path, found="no tensors", remedy="export again"
        )
    return {stem: _shape(stem, entries, path) for stem in stems}


def _shape(stem: str, entries: Mapping[str, TensorEntry], path: Path) -> ModuleShape:
    a, b = (entries.get(stem + side) for side in _SIDES)
    if a is None or b is None:
        raise AdapterError(
            f"Module {stem!r} has only one of its two factors.",
            where=path,
            expected="lora_a and lora_b",
            found="no lora_a" if a is None else "no lora_b",
            remedy="convert the adapter again",
        )
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape + b.shape:
        raise _not_sound(
            path, f"A (r, d_in) and B (d_out, r) of {stem}", f"A {a.shape} and B {b.shape}"
        )
    dtype = "F32" if a.dtype == Q8_0 else a.dtype  # as it is read
    return ModuleShape(a.shape[0], a.shape[1], b.shape[0], dtype, "linear", a.shape, b.shape)


def _not_sound(path: Path, expected: str, found: str) -> AdapterError:
    return AdapterError(
        "The GGUF adapter is not sound.",
        where=path,
        expected=expected,
        found=found,
        remedy="convert the adapter again",
    )


def _config(
    header: GgufHeader, modules: Mapping[str, ModuleShape], rank: int, alpha: float
) -> dict[str, Any]:
    """What adapter_config.json would say."""
    number = alpha or float(rank)
    tokens = header.values.get(ALORA_KEY)
    return {
        **({ALORA: tokens} if tokens else {}),
        "base_model_name_or_path": _base_model(header),
        "bias": "none",
        "fan_in_fan_out": header.values.get("general.architecture") == "gpt2",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(number) if number.is_integer() else number,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({name.rpartition(".")[2] for name in modules}),
        "use_rslora": False,
    }


def _base_model(header: GgufHeader) -> str | None:
    url = header.values.get("general.base_model.0.repo_url")
    if isinstance(url, str) and url.startswith(_HUB) and len(url) > len(_HUB):
        return url.removeprefix(_HUB)
    name = header.values.get("general.base_model.0.name")
    return name if isinstance(name, str) and name else None


def _findings(names: Names, path: Path) -> tuple[Finding, ...]:
    if not names.why:
        return ()
    what = f"Modules keep llama.cpp's names and row order: {names.why}."
    return (Finding("gguf-names", "note", what, file=str(path)),)

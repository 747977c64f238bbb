"""Read PEFT adapters: a directory with adapter_config.json and the tensors in one file."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlora_engine.adapters.model import AdapterSource
from vlora_engine.adapters.module_names import plain_rest
from vlora_engine.errors import AdapterError, MissingPathError, UnsupportedAdapterError, VLoRAError
from vlora_engine.formats.adapter_findings import adapter_findings, opaque_findings, pickle_findings
from vlora_engine.formats.base import PICKLES, Inspection, Probe, odd_file_error
from vlora_engine.formats.config import (
    Settings,
    Variant,
    check_peft_type,
    find_variant,
    missing_config_error,
    read_settings,
    shown,
    variant_error,
    without_wrapper_parts,
)
from vlora_engine.formats.contents import Contents, PickleContents, SafetensorsContents
from vlora_engine.formats.diffusion import DIFFUSERS, KOHYA, NUMBERED
from vlora_engine.formats.foreign import foreign_error, recognise
from vlora_engine.formats.layout import Layout, Pair, check_ranks, read_layout, split_key
from vlora_engine.formats.mlx import MLX
from vlora_engine.formats.plain import PlainAdapter, PlainFormat
from vlora_engine.utils.file_names import ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor


class PeftAdapter(PlainAdapter):
    """An `AdapterSource` over a PEFT directory.

    ``stored_names`` has the modules whose name in the file is another one: what wrappers left;
    ``odd`` those whose keys PEFT does not look for.
    """

    def __init__(self, inspection: Inspection, contents: Contents, layout: Layout) -> None:
        super().__init__(inspection, contents, layout.pairs)
        self._rest_keys = layout.rest_keys
        self.stored_names = layout.stored_names
        self.odd = frozenset(name.path for name in layout.odd.values())

    def read_rest(self) -> dict[str, Tensor]:
        """The rest tensors, bit for bit."""
        return {name: self._contents.read(self._rest_keys[name]) for name in self.rest}


class PeftFormat:
    """adapter_config.json beside adapter_model.safetensors or adapter_model.bin."""

    name = "peft"

    def detect(self, probe: Probe) -> bool:
        """A config, a tensor file under PEFT's name, or a file with PEFT's keys."""
        if probe.file is None:
            return probe.has_config or not probe.names.isdisjoint(ADAPTER_WEIGHTS)
        if probe.file.suffix in PICKLES:
            return probe.has_config or probe.file.suffix == ".bin"
        return any(split_key(key) for key in probe.keys)

    def inspect(self, probe: Probe, *, allow_unsupported: bool = False) -> Inspection:
        """Read the headers of an adapter, not the tensors of a pickle; see `Format`."""
        weights = _weights(probe)
        if weights.suffix in PICKLES:
            return _inspect_pickle(probe, weights, allow_unsupported)
        return _examine(probe, probe.contents, allow_unsupported)[0]

    def open(self, probe: Probe, *, allow_unsupported: bool = False) -> AdapterSource:
        """Open an adapter to read it, also a pickle, by torch; see `Format`."""
        weights = _weights(probe)
        contents: Contents
        contents = PickleContents(weights) if weights.suffix in PICKLES else probe.contents
        other = None if probe.has_config else _written_by(contents)
        if other is not None:  # a pickle whose keys could not be seen before
            return other.read(probe, contents)
        inspection, layout = _examine(probe, contents, allow_unsupported)
        return PeftAdapter(inspection, contents, layout)


def _weights(probe: Probe) -> Path:
    if probe.weights is None:
        raise odd_file_error(probe.directory) or MissingPathError(
            "The adapter has a config but no tensors.",
            where=probe.path,
            expected=" or ".join(ADAPTER_WEIGHTS),
            found=_some_names(probe.names),
            remedy="copy or download the tensor file into that directory",
            code="no-tensors",
        )
    return probe.weights


def _examine(
    probe: Probe, contents: Contents, allow_unsupported: bool
) -> tuple[Inspection, Layout]:
    """Check an adapter by its headers; the first fault raised is the one most useful to know."""
    if not probe.has_config:
        # A foreign file under PEFT's name deserves its own name before its config is missed.
        _refuse_foreign(probe, contents)
        raise missing_config_error(probe.config_path)
    config = probe.config
    settings = read_settings(without_wrapper_parts(config), probe.config_path)
    if not _check_supported(probe, contents, allow_unsupported):
        return _opaque(probe, contents, settings)
    layout = _layout(contents)
    if not layout.pairs and not allow_unsupported:
        _refuse_foreign(probe, contents)
        raise _no_modules_error(contents)
    check_ranks(layout, settings, probe.config_path, contents.path)
    inspection = _inspection(
        probe,
        settings,
        contents.path,
        modules={module: pair.shape for module, pair in layout.pairs.items()},
        scales={
            module: settings.scale_of(module, pair.shape.rank)
            for module, pair in layout.pairs.items()
        },
        rest=layout.rest,
        findings=adapter_findings(probe, contents, layout, settings),
    )
    return inspection, layout


def _layout(contents: Contents) -> Layout:
    """The modules of a file; those of the last file where its header is the same."""
    digest = contents.header.digest if isinstance(contents, SafetensorsContents) else ""
    layout = _last_layout.get(digest)
    if layout is None:
        layout = read_layout(contents.tensors, contents.path)
        _last_layout.clear()
        if digest:
            _last_layout[digest] = layout
    return layout


_last_layout: dict[str, Layout] = {}  # one, by the digest of its header


def _opaque(probe: Probe, contents: Contents, settings: Settings) -> tuple[Inspection, Layout]:
    """An adapter whose factors are no product: every tensor is kept, and none is understood."""
    named: dict[str, str] = {}
    for key in contents.tensors:
        plain = plain_rest(key)
        named[key if plain in contents.tensors or plain in named else plain] = key
    rest = {name: contents.tensors[named[name]] for name in sorted(named)}
    pairs = dict[str, Pair]()
    layout = Layout(pairs=pairs, rest=rest, adapter_name=None, rest_keys=named, odd={})
    inspection = _inspection(
        probe,
        settings,
        contents.path,
        modules={},
        scales={},
        rest=layout.rest,
        findings=opaque_findings(probe, contents, settings),
        opaque=True,
    )
    return inspection, layout


def _inspect_pickle(probe: Probe, weights: Path, allow_unsupported: bool) -> Inspection:
    if not probe.has_config:
        raise missing_config_error(probe.config_path)
    settings = read_settings(probe.config, probe.config_path)
    _check_supported(probe, None, allow_unsupported)
    return _inspection(
        probe,
        settings,
        weights,
        modules=None,
        scales={},
        rest={},
        findings=pickle_findings(probe, weights, settings),
    )


def _inspection(probe: Probe, settings: Settings, weights: Path, **parts: Any) -> Inspection:
    files = [weights, probe.config_path]
    identity = probe.identity(*files)
    return Inspection(
        path=probe.path,
        weights=weights,
        config=probe.config,
        rank=settings.rank,
        alpha=settings.alpha,
        base_model=settings.base_model,
        nbytes=identity[0],
        identity=identity,
        **parts,
    )


def _check_supported(probe: Probe, contents: Contents | None, allow_unsupported: bool) -> bool:
    """Refuse what is not plain LoRA; return whether the factors may be read as a product."""
    config = probe.config
    try:
        check_peft_type(config, probe.config_path)
    except UnsupportedAdapterError:
        if not allow_unsupported:
            raise
        return False
    variant = find_variant(config)
    where: Path = probe.config_path
    found = "" if variant is None else f'"{variant.field}": {shown(config.get(variant.field))}'
    if variant is None and contents is not None:
        variant, key = _marked(contents)
        found, where = f"tensor {key}", contents.path
    if variant is None:
        return True
    if not allow_unsupported:
        raise variant_error(variant, found, where)
    return variant.product


def _marked(contents: Contents) -> tuple[Variant | None, str]:
    """The variant that shows in the tensors although the config does not name it; and where."""
    for key in contents.tensors:
        mark = _MARK.search(key)
        field = None if mark is None else _MARKS[mark[0]]
        if field is None and _is_of_parameter(key):
            field = "target_parameters"
        if field is not None:
            return find_variant({field: True}), key
    return None, ""


_MARKS = {".lora_magnitude_vector": "use_dora", ".lora_diag": "kasa_config"}
_MARK = re.compile("|".join(map(re.escape, _MARKS)))


def _is_of_parameter(key: str) -> bool:
    """Whether a factor is of a parameter, not of a module: of fused experts, mostly.

    PEFT puts one wrapper around the module for each of its parameters, so that all but the last
    stand below ``base_layer``. A list of experts has no weight of its own that A and B could be of.
    """
    if ".base_layer" not in key and ".experts" not in key:  # as good as every key
        return False
    split = split_key(key)
    return split is not None and split[0].rpartition(".")[2] in ("base_layer", "experts")


_PLAIN: tuple[PlainFormat, ...] = (MLX, KOHYA, DIFFUSERS, NUMBERED)


def _written_by(contents: Contents) -> PlainFormat | None:
    """The other tool whose keys these are, where no PEFT factor is among them."""
    if any(split_key(key) for key in contents.tensors):
        return None
    return next((f for f in _PLAIN if f.marks(contents.tensors, contents.metadata)), None)


def _refuse_foreign(probe: Probe, contents: Contents) -> None:
    kind = recognise(contents.tensors, contents.metadata)
    if kind is not None:
        raise foreign_error(kind, contents.path)
    other = _written_by(contents)
    if other is not None:
        raise UnsupportedAdapterError(
            f"The tensors are those of {other.label}, the config is PEFT's.",
            where=contents.path,
            expected="keys such as base_model.model.<module>.lora_A.weight",
            found=min(contents.tensors),
            remedy="move the tensor file to a directory of its own, without that config",
        )


def _no_modules_error(contents: Contents) -> VLoRAError:
    keys = Counter(key.rsplit(".", 2)[-1] for key in contents.tensors)
    return AdapterError(
        "The file has no LoRA factors.",
        where=contents.path,
        expected="tensors named <module>.lora_A.weight and <module>.lora_B.weight",
        found=f"{len(contents.tensors)} tensors, such as {min(contents.tensors)}"
        if keys
        else "no tensors",
        remedy="point at a directory that PEFT's model.save_pretrained wrote; "
        "a whole model is not an adapter",
        code="no-factors",
    )


def _some_names(names: frozenset[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")

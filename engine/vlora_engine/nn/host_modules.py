"""The modules of a model that a low-rank change can enter, and how it enters each kind.

A change is computed with features last, whatever the module: ``x -> W_in x -> ... -> W_out^T x``.
A `HostModule` knows how the first step reads the module's input and how the last one is added to
its output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlora_engine.errors import CollectionError, UnsupportedAdapterError

# Known by name, so that the libraries they come from need not be there.
QUANTIZED = {
    "Linear4bit": "nf4",
    "LinearNF4": "nf4",
    "LinearFP4": "fp4",
    "Linear8bitLt": "int8",
}
_COMPILED = "_orig_mod."


@dataclass
class HostModule:
    """One module of a model that a low-rank change can enter.

    Args:
        kind: ``linear``, ``conv2d`` or ``embedding``.
        d_in, d_out: Of the change, B (d_out, r) and A (r, d_in).
        quantized: By what its weight is packed, None where it is a plain tensor.
        transposed: The weight is (d_in, d_out), as GPT-2's Conv1D and embeddings have it.
    """

    name: str
    module: Any
    kind: str
    d_in: int
    d_out: int
    quantized: str | None = None
    transposed: bool = False

    @property
    def device(self) -> torch.device:
        """The device of its weight; offloaded weights (device ``meta``) count as on the CPU."""
        weight = getattr(self.module, "weight", None)
        if isinstance(weight, Tensor) and weight.device.type != "meta":
            return weight.device
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that a change is computed in, unless the caller says otherwise."""
        weight = getattr(self.module, "weight", None)
        if self.quantized is None and isinstance(weight, Tensor) and weight.is_floating_point():
            return weight.dtype
        stated = getattr(self.module, "compute_dtype", None)
        return stated if isinstance(stated, torch.dtype) else torch.float32

    def into(self, x: Tensor, rows: Tensor) -> Tensor:
        """Inner products of the input with ``rows`` (k, d_in): (..., k)."""
        if self.kind == "linear":
            return F.linear(x.to(rows.dtype), rows)
        if self.kind == "embedding":
            return F.embedding(x, rows.T)
        conv = self.module
        kernels = rows.reshape(len(rows), conv.in_channels, *conv.kernel_size)
        return F.conv2d(x.to(rows.dtype), kernels, None, conv.stride, conv.padding).movedim(1, -1)

    def onto(self, output: Tensor, change: Tensor) -> Tensor:
        """The output with a change (..., d_out) added."""
        if self.kind == "conv2d":
            change = change.movedim(-1, 1)
        return output + change.to(output.dtype)

    def as_weight(self, delta: Tensor) -> Tensor:
        """A dense change (d_out, d_in) in the layout of the module's weight."""
        if self.kind == "conv2d":
            return delta.reshape(self.module.weight.shape)
        return delta.T if self.transposed else delta

    def check(self, where: str, kind: str, d_in: int, d_out: int, tail: tuple[int, ...]) -> None:
        """Raise unless a change of these dimensions can enter here.

        Raises:
            CollectionError: It was trained on another module than this one.
        """
        wanted = (kind, d_in, d_out)
        kernel = () if kind != "conv2d" else tuple(tail[1:])
        own_kernel = () if self.kind != "conv2d" else tuple(self.module.kernel_size)
        if wanted == (self.kind, self.d_in, self.d_out) and kernel == own_kernel:
            return
        raise CollectionError(
            f"The subspace does not fit the model: module {self.name!r} has another shape.",
            where=where,
            expected=f"{kind} {d_in} -> {d_out}",
            found=f"{type(self.module).__name__} {self.d_in} -> {self.d_out}",
            remedy="wrap the base model that the adapters were trained on",
        )


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """A model's modules under the names they had before ``torch.compile`` wrapped any."""
    for name, module in model.named_modules():
        yield (name + ".").replace(_COMPILED, "")[:-1], module


def host_module(name: str, module: nn.Module) -> HostModule:
    """A module of a model as one that a low-rank change can enter.

    Raises:
        UnsupportedAdapterError: Nothing can be added to a module of this kind.
    """
    kind = type(module).__name__
    attributes: Any = module
    if isinstance(module, nn.Embedding):
        _plain(name, module, not attributes.max_norm, "no max_norm")
        sizes = attributes.num_embeddings, attributes.embedding_dim
        return HostModule(name, module, "embedding", *sizes, transposed=True)
    if isinstance(module, nn.Conv2d):
        plain = (
            attributes.groups == 1
            and attributes.dilation == (1, 1)
            and attributes.padding_mode == "zeros"
        )
        _plain(name, module, plain, "groups 1, dilation 1, padding with zeros")
        d_in = attributes.in_channels * attributes.kernel_size[0] * attributes.kernel_size[1]
        return HostModule(name, module, "conv2d", d_in, attributes.out_channels)
    if kind == "Conv1D" and isinstance(getattr(attributes, "weight", None), Tensor):
        d_in, d_out = attributes.weight.shape
        return HostModule(name, module, "linear", d_in, d_out, transposed=True)
    if hasattr(attributes, "in_features") and hasattr(attributes, "out_features"):
        sizes = attributes.in_features, attributes.out_features
        return HostModule(name, module, "linear", *sizes, _packing(module))
    raise UnsupportedAdapterError(
        f"Adapters of a module of type {kind} are not built.",
        where=name,
        expected="Linear, Conv1D of transformers, Conv2d, Embedding, or a quantized Linear",
        found=kind,
        remedy="export the task and load it with PEFT (vlora_engine.apply)",
    )


def parameter_counts(model: nn.Module) -> tuple[int, int, bool]:
    """Parameters of a model, their bytes, and whether any weight is packed.

    A packed weight counts as the matrix it stands for; tensors that modules share count once.
    """
    params = nbytes = 0
    packed: dict[int, int] = {}
    for module in model.modules():
        if hasattr(module, "in_features") and _packing(module) is not None:
            weight = getattr(module, "weight", module)
            packed[id(weight)] = int(getattr(module, "in_features") * module.out_features)  # noqa: B009
    for parameter in model.parameters():
        params += packed.get(id(parameter), parameter.numel())
        nbytes += parameter.numel() * parameter.element_size()
    return params, nbytes, bool(packed)


def _packing(module: nn.Module) -> str | None:
    """By what a linear module's weight is packed; None for a plain one."""
    kind = type(module).__name__
    if kind in QUANTIZED:
        return QUANTIZED[kind]
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.is_floating_point() and weight.element_size() > 1:
        return None
    return kind  # of another library: its weight is no tensor of plain numbers


def _plain(name: str, module: nn.Module, plain: bool, expected: str) -> None:
    if not plain:
        raise UnsupportedAdapterError(
            f"Adapters of this {type(module).__name__} are not built.",
            where=name,
            expected=expected,
            found=str(module),
            remedy="export the task and load it with PEFT (vlora_engine.apply)",
        )

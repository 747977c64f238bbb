"""Which packings of bases and loadings there are, and how many bytes each takes. No torch.

Numbers lie in blocks that share a scale. A block never crosses a side of a module, so that every
module can be read alone; the last block of a side may be short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlora_engine.errors import ParameterError

if TYPE_CHECKING:
    from vlora_engine.utils.json_reader import JsonValue

QUANTIZATIONS = ("int8", "int4", "nf4")
NOT_PACKED = "none"
PACKINGS = (NOT_PACKED, *QUANTIZATIONS)  # what may be asked for
BLOCK_SIZE = 64
DOUBLE_QUANT = True  # of a quantization that is asked for by its short name
GROUP_SIZE = 256  # scales that share a second-level scale
MAX_BLOCK_SIZE = 1 << 20

# The relative squared error of normally distributed numbers in blocks of 64, best scale of each
# block chosen (measured on 16 million numbers). What a build meets is measured there.
NOISE = {"int8": 3.6e-5, "int4": 8.2e-3, "nf4": 7.5e-3}
# The same of these blocks, against that of 64; between two straight in the logarithm of the size.
BLOCK_SIZES = (16, 32, 64, 128, 256, 512, 1024)
NOISE_GROWTH = {
    "int8": (0.626, 0.811, 1.0, 1.187, 1.377, 1.569, 1.765),
    "int4": (0.619, 0.819, 1.0, 1.153, 1.267, 1.342, 1.391),
    "nf4": (0.741, 0.883, 1.0, 1.095, 1.172, 1.230, 1.273),
}
LOADINGS_NOISE = 1e-4


@dataclass(frozen=True)
class Packing:
    """One way of packing numbers: levels, bits, block size, and how scales are stored.

    Args:
        method: ``symmetric`` (integer multiples of the scale) or ``nf4`` (QLoRA's 16 levels of it).
        bits: Bits a number, 8 or 4.
        block_size: Numbers that share a scale.
        double_quant: Scales are 8-bit multiples of a second-level scale, instead of fp16.

    Raises:
        ParameterError: No such combination of method and bits, or a block size out of range.
    """

    method: str
    bits: int
    block_size: int = BLOCK_SIZE
    double_quant: bool = False

    def __post_init__(self) -> None:
        if (self.method, self.bits) not in (("symmetric", 8), ("symmetric", 4), ("nf4", 4)):
            raise ParameterError(
                "There is no such quantization.",
                expected="symmetric with 8 or 4 bits, or nf4 with 4",
                found=f"{self.method} with {self.bits} bits",
            )
        if not 1 <= self.block_size <= MAX_BLOCK_SIZE:
            raise ParameterError(
                "The block size is out of range.",
                expected=f"1 to {MAX_BLOCK_SIZE}",
                found=str(self.block_size),
            )

    @property
    def name(self) -> str:
        """``int8``, ``int4`` or ``nf4``."""
        return "nf4" if self.method == "nf4" else f"int{self.bits}"

    @property
    def noise(self) -> float:
        """The relative squared error of normally distributed numbers, as measured in blocks."""
        growth, last = NOISE_GROWTH[self.name], len(BLOCK_SIZES) - 1
        at = math.log2(self.block_size / BLOCK_SIZES[0])
        low = min(max(0, math.floor(at)), last - 1)
        part = min(max(0.0, at - low), 1.0)
        return NOISE[self.name] * (growth[low] + part * (growth[low + 1] - growth[low]))

    # The counts below take a number or an array of numbers.

    def code_bytes(self, numbers: Any) -> Any:
        """Bytes of the packed numbers of one side of a module."""
        return -(-numbers * self.bits // 8)

    def blocks(self, numbers: Any) -> Any:
        """Scales of one side of a module."""
        return -(-numbers // self.block_size)

    def groups(self, numbers: Any) -> Any:
        """Second-level scales of one side of a module."""
        return -(-self.blocks(numbers) // GROUP_SIZE) if self.double_quant else 0 * numbers

    def nbytes(self, numbers: Any) -> Any:
        """All bytes of one side of a module: codes and scales of both levels."""
        scale = 1 if self.double_quant else 2
        return self.code_bytes(numbers) + scale * self.blocks(numbers) + 4 * self.groups(numbers)

    def as_json(self) -> dict[str, Any]:
        """The packing as it stands in subspace.json."""
        return {
            "method": self.method,
            "bits": self.bits,
            "block_size": self.block_size,
            "double_quant": self.double_quant,
        }


@dataclass(frozen=True)
class Quantization:
    """How a subspace is packed: its bases, and its loadings if they are packed too.

    Loadings and the means of `flat` are packed as int8 whatever the bases are: they are few, and
    at equal bytes that leaves less error (nine GPT-2 adapters at nf4: see `measure` in the tests).
    """

    basis: Packing
    loadings: Packing | None = None

    @property
    def name(self) -> str:
        """The name of the bases' packing: ``int8``, ``int4`` or ``nf4``."""
        return self.basis.name

    def words(self, dtype: str) -> str:
        """A label of what bases and loadings are stored as; ``dtype`` is that of the latter."""
        return f"{self.name} (loadings {self.loadings.name if self.loadings else dtype})"

    @property
    def means(self) -> Packing:
        """How the means of `flat` are packed."""
        return _eight_bits(self.basis)

    @property
    def noise(self) -> float:
        """The share of dW's captured energy that packing is expected to cost, both sides.

        ``n = 1 - (1 - eta)^2`` with eta the noise of one side (docs/mathematics.md#quantization).
        """
        side = self.basis.noise + (LOADINGS_NOISE if self.loadings else 0.0)
        return 1 - (1 - side) ** 2

    def as_json(self) -> dict[str, Any]:
        """As it stands in subspace.json."""
        return {
            **self.basis.as_json(),
            "loadings": None if self.loadings is None else self.loadings.as_json(),
        }


def quantization(
    method: str,
    bits: int,
    *,
    block_size: int = BLOCK_SIZE,
    double_quant: bool = False,
    loadings: bool = False,
) -> Quantization:
    """A quantization from the arguments of `SharedSubspace.quantize`.

    ``nf4`` has 4 bits, also where ``bits`` is left at its default of 8.

    Raises:
        ParameterError: There is no such quantization.
    """
    if method == "nf4" and bits == 8:  # how users of vlora-dev leave them out
        bits = 4
    basis = Packing(method, bits, block_size, double_quant)
    return Quantization(basis, _eight_bits(basis) if loadings else None)


def named_quantization(
    name: str, *, block_size: int = BLOCK_SIZE, double_quant: bool = DOUBLE_QUANT
) -> Quantization | None:
    """A quantization by its short name, of bases and loadings; None for ``none``.

    Raises:
        ParameterError: No such name, or a block size out of range.
    """
    if name == NOT_PACKED:
        return None
    if name not in QUANTIZATIONS:
        raise ParameterError(f"Unknown quantization {name!r}.", expected=", ".join(PACKINGS))
    method, bits = ("nf4", 4) if name == "nf4" else ("symmetric", int(name[3:]))
    return quantization(
        method, bits, block_size=block_size, double_quant=double_quant, loadings=True
    )


def parse_quantization(value: JsonValue | None) -> Quantization | None:
    """What subspace.json says, checked.

    Raises:
        CorruptFileError: It makes no sense.
    """
    if value is None or value.is_null:
        return None
    loadings = value.object()["loadings"]
    return Quantization(
        _parse_packing(value), None if loadings.is_null else _parse_packing(loadings)
    )


def _parse_packing(value: JsonValue) -> Packing:
    row = value.object()
    method, bits, block_size = row["method"].text(), row["bits"], row["block_size"]
    double = row["double_quant"].flag()
    try:
        return Packing(method, bits.natural(), block_size.natural(), double)
    except ParameterError as error:
        found = f"{error.what} {error.found}" if error.found else error.what
        raise value.error(error.expected or "a packing that there is", found) from None


def _eight_bits(basis: Packing) -> Packing:
    return replace(basis, method="symmetric", bits=8, double_quant=False)

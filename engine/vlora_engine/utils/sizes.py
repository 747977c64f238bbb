"""Read numbers of bytes as people write them, and write them."""

from __future__ import annotations

from vlora_engine.errors import ParameterError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter] = _UNITS[_letter + "b"] = 1000**_power
    _UNITS[_letter + "ib"] = 1024**_power


def parse_bytes(text: str | int) -> int:
    """A number of bytes: ``800000``, ``"40MB"`` (10^6), ``"1.5 MiB"`` (2^20).

    Raises:
        ParameterError: It is no positive size.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        number, factor = float(text), 1
    else:
        number, factor = _split_size(str(text))
    if not 0 < number * factor < 2**60:
        raise _size_error(text)
    return int(number * factor)


def size(nbytes: float) -> str:
    """Bytes in steps of 10^3, with three digits."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _split_size(text: str) -> tuple[float, int]:
    digits = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = text.strip()[len(digits) :].lower()
    try:
        return float(digits), _UNITS[unit]
    except (ValueError, KeyError):
        raise _size_error(text) from None


def _size_error(text: object) -> ParameterError:
    return ParameterError(
        "This is no size.", expected="bytes, or a number with KB, MB, MiB, GB...", found=repr(text)
    )

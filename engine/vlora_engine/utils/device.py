"""Choose the torch device that computes. torch is imported only where a device is picked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlora_engine.errors import ParameterError

if TYPE_CHECKING:
    import torch


_KNOWN = ("cpu", "cuda", "mps")


def pick_device(device: str | torch.device) -> torch.device:
    """The torch device of a name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    ``auto`` is CUDA where there is a device, else the CPU.

    Raises:
        ParameterError: The device does not exist here.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")  # as unknown as that one
    if chosen.type not in _KNOWN:
        raise ParameterError(
            f"Unknown device {str(device)!r}.", expected="auto, cpu, cuda or cuda:N"
        )
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise _not_here("There is no CUDA device here.", str(device))
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise _not_here("There is no MPS device here.", str(device))
    count = torch.cuda.device_count() if chosen.type == "cuda" else 1
    if (chosen.index or 0) >= count:
        there = f"{chosen.type}:0" + (f" to {chosen.type}:{count - 1}" if count > 1 else "")
        raise _not_here(f"There is no device {str(device)!r} here.", str(device), there)
    return chosen


def require_device(device: str) -> None:
    """Refuse a device that is not here, before anything is read.

    Raises:
        ParameterError: It is not here.
    """
    if device not in ("auto", "cpu"):  # these are everywhere
        pick_device(device)


def _not_here(what: str, found: str, expected: str | None = None) -> ParameterError:
    return ParameterError(what, expected=expected, found=found, remedy="use auto or cpu")

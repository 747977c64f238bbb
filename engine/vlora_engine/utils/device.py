"""Choose the torch device that computes."""

from __future__ import annotations

import torch

from vlora_engine.errors import ParameterError


def pick_device(device: str) -> torch.device:
    """The torch device of a name: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` is CUDA where there is a device, else the CPU.

    Raises:
        ParameterError: The device does not exist here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ParameterError(
            f"Unknown device {device!r}.", expected="auto, cpu, cuda or cuda:N"
        ) from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ParameterError(
            "There is no CUDA device here.", found=device, remedy="use --device cpu"
        )
    return chosen

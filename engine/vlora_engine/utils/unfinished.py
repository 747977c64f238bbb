"""What unfinished work leaves beside its output: the layers that are done, for the next start.

A build keeps sealed layers (`parts`), spectra keep the tables that they are going to publish. Who
only asks how much is there needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlora_engine.errors import InputError, VLoRAError
from vlora_engine.utils.file_names import SPECTRA_INDEX
from vlora_engine.utils.files import discard, partial_path
from vlora_engine.utils.safetensors_file import write_error

RESULT = "result"  # of a build: the output itself while it is put together
SPECTRA = "spectra"  # of a build: the spectra that its target needed


def spectra_partial(final: Path) -> Path:
    """Where unfinished spectra lie; whoever computes the same next goes on with them."""
    return partial_path(final, SPECTRA)


def kept_layers(partial: Path) -> int:
    """How many finished layers lie in the partial directory of a build, or of spectra."""
    finished = "*.safetensors" if (partial / SPECTRA_INDEX).is_file() else "*.sha256"
    return sum(1 for _ in (partial / "layers").glob(finished))


@contextmanager
def layers_kept(partial: Path, final: Path) -> Iterator[None]:
    """Whatever ends the block before its time, the layers that are finished stay in ``partial``.

    Where none is, and where the input is at fault (the same again would fail the same), nothing
    stays. What fails without a word of its own is told as a refusal of the disk.

    Raises:
        StorageError: An error of the operating system in the block.
    """
    try:
        yield
    except BaseException as error:
        discard(partial / RESULT)
        if isinstance(error, InputError) or not _is_worth_keeping(partial):
            discard(partial)
        if isinstance(error, OSError) and not isinstance(error, VLoRAError):
            raise write_error(final, error) from None
        raise


def _is_worth_keeping(partial: Path) -> bool:
    inner = partial / SPECTRA
    return any(kept_layers(place) for place in (partial, inner, spectra_partial(inner)))

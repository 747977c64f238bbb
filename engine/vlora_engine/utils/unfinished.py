"""Finished layers of interrupted work, kept beside its output so that the next start resumes.

A build keeps sealed layers (`vlora_engine.subspace.layer_parts`), spectra keep the tables that they
are going to publish. Counting them needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlora_engine.errors import InputError, StorageError, VLoRAError
from vlora_engine.utils.file_names import SPECTRA_INDEX
from vlora_engine.utils.files import discard, unwritten
from vlora_engine.utils.partials import partial_path
from vlora_engine.utils.safetensors_file import write_error

RESULT = "result"  # of a build: the output itself while it is put together
SPECTRA = "spectra"  # of a build: the spectra that its target needed


def spectra_partial(final: Path) -> Path:
    """The directory of unfinished spectra of ``final``, from which the next run resumes."""
    return partial_path(final, SPECTRA)


def kept_layers(partial: Path) -> int:
    """Count the finished layers in the partial directory of a build or of spectra."""
    finished = "*.safetensors" if (partial / SPECTRA_INDEX).is_file() else "*.sha256"
    return sum(1 for _ in (partial / "layers").glob(finished))


@contextmanager
def keep_finished_layers(partial: Path, final: Path) -> Iterator[None]:
    """Keep the finished layers in ``partial`` if the block fails or is interrupted.

    Nothing is kept where no layer is finished, or where the input is at fault: the next run would
    fail in the same way. An error of the operating system becomes a `StorageError`.

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
            raise unwritten(write_error(final, error), final) from None
        if isinstance(error, StorageError):
            unwritten(error, final)
        raise


def _is_worth_keeping(partial: Path) -> bool:
    spectra = partial / SPECTRA
    return any(kept_layers(directory) for directory in (partial, spectra, spectra_partial(spectra)))

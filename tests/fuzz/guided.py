"""Coverage-guided fuzzing of the readers of binary data, and the corpus that it left.

    pip install atheris
    python -m tests.fuzz.guided blob tests/fuzz/corpus/blob -max_total_time=300

The first word is one of `TARGETS`; what follows it is libFuzzer's: a folder of inputs to start
from, which new ones are added to, and options. Atheris instruments the engine's own code. The
corpus is kept in the repository; `test_guided.py` reads all of it again. Whatever is not one of our
errors ends the run, and is a fault.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
_FOLDER = tempfile.TemporaryDirectory(prefix="vlora-guided-")


def _file(data: bytes, name: str) -> Path:
    path = Path(_FOLDER.name) / name
    path.write_bytes(data)
    return path


def safetensors(data: bytes) -> None:
    """A file of tensors: its header, and every tensor."""
    from vlora_engine.utils.safetensors_file import close_file, read_header, read_tensor

    path = _file(data, "x.safetensors")
    try:
        header = read_header(path)
        for name in header.entries:
            read_tensor(header, name)
    finally:
        close_file(path)


def gguf(data: bytes) -> None:
    """The header of a GGUF file."""
    from vlora_engine.formats.gguf_header import read_gguf_header

    read_gguf_header(_file(data, "x.gguf"))


def blob(data: bytes) -> None:
    """One coded module, of 1 to 64 rows and columns as the first two bytes say."""
    from vlora_engine.codec.blobs import OpenedOwn, decode_directions, open_blob

    d_out, d_in = (1 + byte % 64 for byte in data[:2])
    opened = open_blob(data[2:])
    if isinstance(opened, OpenedOwn) and len(opened.gains) <= max(1, min(d_out, d_in)):
        decode_directions([(opened, d_out, d_in)])


def group(data: bytes) -> None:
    """What a group shares on a layer of 1 to 64 rows and columns."""
    from vlora_engine.codec.blobs import open_groups

    d_in, d_out = (1 + byte % 64 for byte in data[:2])
    open_groups([(data[2:], d_in, d_out)])


def matrix(data: bytes) -> None:
    """An entropy-coded matrix of 1 to 32 rows and 1 to 256 columns."""
    from vlora_engine.codec.vectors import decode_matrices

    decode_matrices([(data[2:], 1 + data[0] % 32, 1 + data[1])])


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function for function in (safetensors, gguf, blob, group, matrix)
}


def read(target: str, data: bytes) -> str:
    """Let a target read bytes; our error where it refuses them, else nothing.

    Raises:
        Exception: What is not one of our errors: a fault.
    """
    from vlora_engine.errors import VLoRAError

    if len(data) < 2:
        return "too short to be an input"
    try:
        TARGETS[target](data)
    except VLoRAError as error:
        return error.what
    return ""


def main() -> None:
    """Fuzz one target; does not return."""
    import atheris  # type: ignore[import-not-found]

    target = sys.argv.pop(1)
    with atheris.instrument_imports(include=["vlora_engine"]):
        import vlora_engine.codec.blobs
        import vlora_engine.codec.vectors
        import vlora_engine.formats.gguf_header
        import vlora_engine.utils.safetensors_file  # noqa: F401

    def one(data: bytes) -> None:
        read(target, data)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

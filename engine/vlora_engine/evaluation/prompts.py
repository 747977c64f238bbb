"""Read the texts that adapters are evaluated on: one for all tasks, or one for each. No torch."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlora_engine.catalog.locate import existing_path
from vlora_engine.errors import NotFoundError, ParameterError
from vlora_engine.utils.naming import slugs
from vlora_engine.utils.reading import open_file
from vlora_engine.utils.safetensors_file import read_error

MAX_TOKENS = 2048  # of a task
LENGTH = 256  # tokens of one sequence
SUFFIX = ".txt"
BYTES_A_TOKEN = 64  # so much of a file is read for each token wanted, at most


@dataclass(frozen=True)
class Prompt:
    """A text for evaluation, and the file that it came from."""

    text: str
    file: str


def read_prompts(
    places: Sequence[str], tasks: Sequence[str], *, max_tokens: int
) -> dict[str, Prompt]:
    """Read the text of every task.

    Args:
        places: Each a text file (for all tasks), a folder with TASK.txt, or ``TASK=FILE``. A file
            named for a task takes precedence over a folder, and a folder over a file for all.
        tasks: The tasks that need a text.
        max_tokens: How many tokens of it will be used.

    Raises:
        NotFoundError: A path does not exist, or a task has no text.
        ParameterError: A file is empty or not text, or TASK is not evaluated.
        StorageError: A file cannot be read.
    """
    files = _assign(places, tasks)
    missing = [task for task in tasks if task not in files]
    if missing:
        raise NotFoundError(
            "There is no text for some tasks.",
            where=", ".join(places),
            expected=f"{slugs(tasks)[missing[0]]}{SUFFIX} in a folder, TASK=FILE, or one file",
            found=f"none for {', '.join(missing[:8])}" + (", ..." if len(missing) > 8 else ""),
        )
    texts = {file: read_text(file, BYTES_A_TOKEN * max_tokens) for file in set(files.values())}
    return {task: Prompt(texts[files[task]], str(files[task])) for task in tasks}


def read_text(file: Path, most: int) -> str:
    """Read the beginning of a UTF-8 file, at most ``most`` bytes, whole characters only.

    Raises:
        ParameterError: It is empty or not text.
        StorageError: It cannot be read.
    """
    try:
        with open_file(file) as stream:
            raw = stream.read(most + 1)
    except OSError as error:
        raise read_error(file, error) from None
    whole = len(raw) <= most
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(raw[:most], final=whole)
    except UnicodeDecodeError as error:
        raise _no_text(file, f"byte {raw[error.start]:#04x} at {error.start}") from None
    if "\0" in text:
        raise _no_text(file, f"a NUL at {text.index(chr(0))}")
    if not text.strip():
        raise ParameterError(
            "There is no text in this file.", where=file, found=f"{len(raw)} bytes, all blank"
        )
    return text


def _assign(places: Sequence[str], tasks: Sequence[str]) -> Mapping[str, Path]:
    """Assign a file to each task; tasks without one are absent."""
    shared: dict[str, Path] = {}
    folders: dict[str, Path] = {}
    named: dict[str, Path] = {}
    for place in places:
        pair = _task_and_file(place, tasks)
        if pair is not None:
            named[pair[0]] = pair[1]
            continue
        path = existing_path(place)
        if path.is_dir():
            folders |= _in_folder(path, tasks)
        elif shared:
            raise ParameterError(
                "Two files are given for all tasks.",
                found=f"{next(iter(shared.values()))} and {path}",
                remedy="put them together, or say whose each is: TASK=FILE",
            )
        else:
            shared = dict.fromkeys(tasks, path)
    return {**shared, **folders, **named}


def _task_and_file(given: str, tasks: Sequence[str]) -> tuple[str, Path] | None:
    """Parse ``TASK=FILE``; None where ``given`` exists as a path or has no ``=``."""
    if "=" not in given or Path(given).exists():
        return None
    # A name may hold an = itself.
    separators = [i for i, letter in enumerate(given) if letter == "=" and given[:i] in tasks]
    if not separators:
        raise ParameterError(
            "A text is named for a task that is not evaluated.",
            expected=f"TASK=FILE with one of {', '.join(tasks[:8])}",
            found=given,
        )
    file = existing_path(given[separators[-1] + 1 :])
    if file.is_dir():
        raise ParameterError("A task's text is a file.", where=file, found="a folder")
    return given[: separators[-1]], file


def _in_folder(folder: Path, tasks: Sequence[str]) -> dict[str, Path]:
    """The files of a folder that are named like tasks.

    Task names never become paths: the folder is listed instead.
    """
    try:
        texts = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix == SUFFIX}
    except OSError as error:
        raise read_error(folder, error) from None
    names = slugs(tasks)
    return {
        task: texts[name]
        for task in tasks
        for name in (names[task], task)  # the task's own name, where there is one, wins
        if name in texts
    }


def _no_text(file: Path, found: str) -> ParameterError:
    return ParameterError("The file is not text.", where=file, expected="UTF-8", found=found)

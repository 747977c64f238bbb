"""The texts that a model is evaluated on: one for all tasks, or one a task. No torch."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlora_engine.catalog.locate import existing_path
from vlora_engine.errors import NotFoundError, ParameterError
from vlora_engine.utils.naming import slugs
from vlora_engine.utils.safetensors_file import read_error

SUFFIX = ".txt"
BYTES_A_TOKEN = 64  # more of a file is not read than so many for each token that is wanted


@dataclass(frozen=True)
class Prompt:
    """A running text, and the file it came from."""

    text: str
    file: str


def read_prompts(
    places: Sequence[str], tasks: Sequence[str], *, max_tokens: int
) -> dict[str, Prompt]:
    """The text of every task.

    Args:
        places: Each a text file (for all tasks), a folder with TASK.txt, or ``TASK=FILE``; what
            is named for a task goes before a folder, and a folder before one file for all.
        tasks: The tasks that need a text.
        max_tokens: How many tokens of it will be used.

    Raises:
        NotFoundError: A place is not there, or a task is left without a text.
        ParameterError: A file is empty or no text; a place names a task that is not evaluated.
    """
    files = _assign(places, tasks)
    without = [task for task in tasks if task not in files]
    if without:
        raise NotFoundError(
            "There is no text for some tasks.",
            where=", ".join(places),
            expected=f"{slugs(tasks)[without[0]]}{SUFFIX} in a folder, TASK=FILE, or one file",
            found=f"none for {', '.join(without[:8])}" + (", ..." if len(without) > 8 else ""),
        )
    read = {file: read_text(file, BYTES_A_TOKEN * max_tokens) for file in set(files.values())}
    return {task: Prompt(read[files[task]], str(files[task])) for task in tasks}


def read_text(file: Path, most: int) -> str:
    """The beginning of a UTF-8 file, at most ``most`` bytes of it, whole characters only.

    Raises:
        ParameterError: It is empty or no text. StorageError: It cannot be read.
    """
    try:
        with file.open("rb") as stream:
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
    """Which file each task gets; tasks without one are left out."""
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


def _task_and_file(place: str, tasks: Sequence[str]) -> tuple[str, Path] | None:
    """``TASK=FILE``, or None where ``place`` is there as it stands or has no ``=``."""
    if "=" not in place or Path(place).exists():
        return None
    # A name may hold an = itself.
    cuts = [i for i, letter in enumerate(place) if letter == "=" and place[:i] in tasks]
    if not cuts:
        raise ParameterError(
            "A text is named for a task that is not evaluated.",
            expected=f"TASK=FILE with one of {', '.join(tasks[:8])}",
            found=place,
        )
    file = existing_path(place[cuts[-1] + 1 :])
    if file.is_dir():
        raise ParameterError("A task's text is a file.", where=file, found="a folder")
    return place[: cuts[-1]], file


def _in_folder(folder: Path, tasks: Sequence[str]) -> dict[str, Path]:
    """Files named like tasks. Task names never become paths: the folder is listed instead."""
    try:
        there = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix == SUFFIX}
    except OSError as error:
        raise read_error(folder, error) from None
    names = slugs(tasks)
    return {
        task: there[name]
        for task in tasks
        for name in (names[task], task)  # the task's own name, where there is one, wins
        if name in there
    }


def _no_text(file: Path, found: str) -> ParameterError:
    return ParameterError("The file is not text.", where=file, expected="UTF-8", found=found)

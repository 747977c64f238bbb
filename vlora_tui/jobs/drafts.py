"""Drafts: choices saved at every change, so that a lost connection loses nothing.

A draft is a recipe in the making: the tables of a recipe as far as they are known, and one table
``draft`` with what the interface alone has to remember (the folder, the screen, the marks).
"""

from __future__ import annotations

import json
import os
import secrets
import time
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlora_engine.errors import InputError, MissingPathError, StorageError
from vlora_engine.utils.reading import read_text
from vlora_tui.recipe.model import Recipe, absolute, as_tables
from vlora_tui.recipe.reader import read_tables
from vlora_tui.utils.locking import open_lock, try_lock

MAX_DRAFTS = 10
OLD_SECONDS = 3600.0


@dataclass(frozen=True)
class SavedDraft:
    """A draft as it was saved.

    Args:
        tables: The recipe's tables, as far as they had come.
        state: What the interface had to remember.
        saved: When, in seconds since 1970.
    """

    path: Path
    tables: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    saved: float = 0.0

    def recipe(self) -> Recipe:
        """The draft as a recipe, if it is whole.

        Raises:
            RecipeError: It is not yet one; the error says what is missing.
        """
        return absolute(read_tables(self.tables, where=str(self.path)), self.path.parent)


def save_draft(
    path: Path, recipe: Recipe | Mapping[str, Any], state: Mapping[str, Any] | None = None
) -> None:
    """Replace the draft at ``path`` in one step. It need not be a whole recipe yet.

    It is not flushed to the disk: it outlives the process and the line, which is what is asked of
    it at every press of a key.

    Raises:
        StorageError: It cannot be written.
    """
    import tomli_w

    tables = dict(as_tables(recipe) if isinstance(recipe, Recipe) else recipe)
    if state:
        tables["draft"] = dict(state)
    partial = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.write_bytes(tomli_w.dumps(_without_nulls(tables)).encode("utf-8", "replace"))
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StorageError(
            f"The draft cannot be saved: {error.strerror or error}.", where=path
        ) from None


def load_draft(path: Path) -> SavedDraft:
    """Read a draft.

    Raises:
        NotFoundError: There is none.
        InputError: It cannot be read.
    """
    try:
        tables = tomllib.loads(read_text(path))
        saved = path.stat().st_mtime
    except FileNotFoundError:
        raise MissingPathError("There is no such draft.", where=path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("The draft cannot be read.", where=path, found=str(error)) from None
    state = tables.pop("draft", {})
    return SavedDraft(path, tables, state if isinstance(state, dict) else {}, saved)


class Draft:
    """The draft of one interface, its own for as long as that lives."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._last = ""

    def save(
        self, recipe: Recipe | Mapping[str, Any], state: Mapping[str, Any] | None = None
    ) -> bool:
        """Save, if anything has changed; say whether it had.

        Raises:
            StorageError: It cannot be written.
        """
        tables = as_tables(recipe) if isinstance(recipe, Recipe) else recipe
        now = json.dumps([tables, state], sort_keys=True, default=str)
        if now == self._last:
            return False
        save_draft(self.path, recipe, state)
        self._last = now
        return True

    def close(self) -> None:
        """Leave it to the next interface."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def forget(self) -> None:
        """Delete it, as there is nothing left to offer."""
        _delete(self.path)
        self.close()


class Drafts:
    """The drafts of a state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / "drafts"

    def new(self) -> Draft:
        """A draft for this interface; nothing is written before it is saved.

        Raises:
            StorageError: The state directory refuses.
        """
        path = self.folder / f"{time.time_ns():020d}-{secrets.token_hex(2)}.toml"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = open_lock(_lock_of(path))
            with suppress(OSError):
                try_lock(lock)
        except OSError as error:
            raise StorageError(
                f"Drafts cannot be saved: {error.strerror or error}.",
                where=self.folder,
                remedy="name another state directory with --state-dir DIR",
            ) from None
        return Draft(path, lock)

    def take(self, saved: SavedDraft) -> Draft | None:
        """Go on with a draft that was offered; None if another interface was faster."""
        lock = open_lock(_lock_of(saved.path))
        if not try_lock(lock) or not saved.path.exists():
            os.close(lock)
            return None
        return Draft(saved.path, lock)

    def offered(self) -> list[SavedDraft]:
        """What interfaces that are gone have left, the latest first."""
        found = []
        for path in self._paths():
            if not _in_use(path):
                with suppress(InputError):
                    found.append(load_draft(path))
        return sorted(found, key=lambda draft: draft.saved, reverse=True)

    def delete(self, saved: SavedDraft) -> None:
        """Delete a draft that nobody wants."""
        _delete(saved.path)

    def prune(self, keep: int = MAX_DRAFTS) -> None:
        """Delete all but the latest."""
        for old in self.offered()[keep:]:
            _delete(old.path)

    def _paths(self) -> list[Path]:
        with suppress(OSError):
            for lock in self.folder.glob(".*.lock"):  # of drafts that were never saved
                path = self.folder / lock.name[1 : -len(".lock")]
                old = time.time() - lock.stat().st_mtime > OLD_SECONDS  # not one just being made
                if old and not path.exists() and not _in_use(path):
                    lock.unlink(missing_ok=True)
            for partial in self.folder.glob(".*.part-*"):  # of savings that were killed
                if not _in_use(self.folder / partial.name[1:].partition(".part-")[0]):
                    partial.unlink(missing_ok=True)
            return sorted(self.folder.glob("[!.]*.toml"))
        return []


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _in_use(path: Path) -> bool:
    try:
        descriptor = os.open(_lock_of(path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not try_lock(descriptor, shared=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        _lock_of(path).unlink(missing_ok=True)


def _without_nulls(value: Any) -> Any:
    """What TOML can hold: it has no null."""
    if isinstance(value, Mapping):
        return {str(k): _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_nulls(v) for v in value if v is not None]
    return str(value) if isinstance(value, Path) else value

"""Scans for adapters in a thread: reports in batches, stops at once when asked."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vlora_engine.adapters.address import AdapterRef, address_of_page
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import AdapterInfo, Finder, closed_findings, with_names
from vlora_engine.errors import VLoRAError
from vlora_tui.tui.adapters.rows import Row

BATCH_SECONDS = 0.15  # before the second batch; each further one takes twice as long ...
MOST_SECONDS = 1.0  # ... up to this, since all rows are sorted and measured for each


@dataclass(frozen=True)
class Batch:
    """What was found since the last batch; ``closed`` are directories that may not be read."""

    infos: list[AdapterInfo] = field(default_factory=list)
    subspaces: list[Row] = field(default_factory=list)
    closed: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Ended:
    """A place was looked through.

    Args:
        names: The shortest unique name of every adapter found so far, by path.
        problem: Why the place could not be looked into, if it could not.
        notes: What is remarkable about the place.
    """

    folder: str
    found: int
    names: dict[str, str]
    stopped: bool = False
    full: bool = False
    problem: VLoRAError | None = None
    notes: tuple[str, ...] = ()


class Scanner:
    """The places that were looked into, one after another, and what was found there."""

    def __init__(self, *, max_depth: int, max_adapters: int) -> None:
        self.places: list[str] = []
        self.stopped = False
        self._limits = (max_depth, max_adapters)
        self._finder: Finder | None = None
        self._infos: list[AdapterInfo] = []

    def stop(self) -> None:
        """Let go of the place that is being looked through, after the adapter in hand."""
        self.stopped = True

    def look(self, folder: str, on_news: Callable[[Batch | Ended], None]) -> None:
        """Look through a place; ``on_news`` hears of it batch by batch, from this thread."""
        self.stopped = False
        if self._finder is None:
            self._finder = Finder(max_depth=self._limits[0], max_adapters=self._limits[1])
        before, problem = self._finder.count, None
        notes_before = len(self._finder.remarks)
        try:
            self._look(folder, self._finder, on_news)
        except VLoRAError as error:
            problem = error
        except OSError as error:
            problem = VLoRAError(f"The place cannot be read: {error.strerror}.", where=folder)
        found = self._finder.count - before
        if problem is None and folder not in self.places:
            self.places.append(folder)
        full = self._finder.count >= self._limits[1]
        notes = tuple(f"{r.where}: {r.what}" for r in self._finder.remarks[notes_before:])
        on_news(Ended(folder, found, self._names(), self.stopped, full, problem, notes))

    def _look(self, folder: str, finder: Finder, on_news: Callable[[Batch | Ended], None]) -> None:
        batch, last, closed_before = Batch(), 0.0, len(finder.closed)
        wait = BATCH_SECONDS
        for found in finder.look(folder):
            if isinstance(found, AdapterInfo):
                self._infos.append(found)
                batch.infos.append(replace(found, name=os.path.basename(found.name) or found.name))
            else:
                batch.subspaces.append(subspace_row(found))
            if self.stopped:
                break
            if time.monotonic() - last > wait:
                on_news(batch)
                wait = min(2 * wait, MOST_SECONDS) if last else wait
                batch, last = Batch(), time.monotonic()
        batch.closed.extend(_closed_rows(finder.closed[closed_before:]))
        on_news(batch)

    def _names(self) -> dict[str, str]:
        return {str(info.path): info.name for info in with_names(self._infos)}


def subspace_row(path: Path | AdapterRef) -> Row:
    """A subspace as a row, from its index; one on the Hub has to be pulled first."""
    if isinstance(path, AdapterRef):
        pulled = f"vlora-tui pull {path} -o DIR"
        error = VLoRAError("Pull this subspace first: it is on the Hub.", remedy=pulled)
        return Row(str(path), path.name, error=error)
    try:
        manifest = read_manifest(path)
        return Row(str(path), path.name, manifest=manifest, nbytes=manifest.nbytes)
    except VLoRAError as error:
        return Row(str(path), path.name, error=error)
    except OSError as error:
        problem = VLoRAError(f"The subspace cannot be read: {error.strerror}.", where=path)
        return Row(str(path), path.name, error=problem)


def _closed_rows(paths: Sequence[Path]) -> Iterator[Row]:
    """Directories that may not be read, as rows: what is in them is not silently passed over."""
    for path, finding in zip(paths, closed_findings(paths), strict=True):
        error = VLoRAError(finding.what, where=path, remedy=finding.remedy)
        yield Row(str(path), path.name, error=error)


def pasted_paths(text: str) -> list[str]:
    """The places named in a pasted text: one a line, or several as a shell would split them.

    Quotes, ``file://`` and escaped blanks are what terminals paste when a folder is dropped. The
    page of a model on the Hub means that model.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    paths: list[str] = []
    for line in lines:
        if os.path.exists(os.path.expanduser(line)):
            paths.append(line)
            continue
        try:
            words: Sequence[str] = shlex.split(line)
        except ValueError:
            words = [line]
        paths += [_path(word) for word in words]
    return list(dict.fromkeys(paths))


def _path(word: str) -> str:
    if word.startswith("file://"):
        return unquote(urlsplit(word).path)
    page = address_of_page(word)
    return word if page is None else str(page)

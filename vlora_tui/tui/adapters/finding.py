"""Fills the list of Adapters: scans that stream rows in, the demo, earlier sessions."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message import Message

from vlora_engine.adapters.address import is_address, is_hub_place, is_pinned_form
from vlora_engine.errors import VLoRAError
from vlora_tui.tui.adapters.places import place_words, remember_folder
from vlora_tui.tui.adapters.reach import Applies, ReachFinder, ReachTold
from vlora_tui.tui.adapters.rows import Row
from vlora_tui.tui.adapters.scanner import Batch, Ended, Scanner, subspace_row
from vlora_tui.tui.text import clean, problem_words

if TYPE_CHECKING:
    from vlora_tui.tui.core.view import View


class ScanNews(Message):
    """A scan has found more, or has ended."""

    def __init__(self, news: Batch | Ended, scanner: Scanner) -> None:
        super().__init__()
        self.news, self.scanner = news, scanner


class DemoMade(Message):
    """The demo collection is there, or could not be made."""

    def __init__(self, path: str, problem: VLoRAError | None) -> None:
        super().__init__()
        self.path, self.problem = path, problem


class AdapterFinder:
    """Finds the rows of Adapters: by scans of one place after another, and in the session.

    Threads do the looking; they post `ScanNews` and `DemoMade` to the view, which hands them back.

    Args:
        view: Lends its threads.
        found: Called whenever there is something new to show.
        complain: Told why a place could not be opened; nothing when another is opened.

    Attributes:
        rows: What is listed, by path.
        scanning: Whether a place is being looked through; ``making``: whether the demo is made.
    """

    def __init__(
        self, view: View, found: Callable[[], None], complain: Callable[[str], None]
    ) -> None:
        self.rows: dict[str, Row] = {}
        self.scanning = False
        self.making = False
        self._view = view
        self._host = view.host
        self._session = view.session
        self._found = found
        self._complain = complain
        self._waiting: list[str] = []
        self._wanted_marks: list[str] = []
        self._given_names: dict[str, str] = {}
        self._scanner = self._new_scanner()
        self.reach = ReachFinder(view)
        self._applies: dict[str, Applies] = {}

    @property
    def places(self) -> list[str]:
        """The places that were looked into."""
        return self._scanner.places

    # looking

    def look_into(self, folders: list[str]) -> None:
        """Scan these places, one after another."""
        self._complain("")
        folders = [_absolute(folder) for folder in folders]
        self._waiting += [p for p in folders if p not in self._waiting]
        if not self.scanning:
            self._next()
        self._found()

    def take(self, event: ScanNews) -> None:
        """Take what a scan has found into the session and the rows."""
        if event.scanner is not self._scanner:
            return
        news = event.news
        if isinstance(news, Batch):
            self._session.add_found(news.infos)
            self.rows |= {row.path: row for row in news.closed}
            for row in news.subspaces:
                self.rows[row.path] = row
                path = Path(row.path)
                if not is_address(row.path) and path not in self._session.subspaces:
                    self._session.subspaces.append(path)
        else:
            self._ended(news)
        self.take_session()
        self._found()
        self._host.refresh_bar()

    def _next(self) -> None:
        if self._waiting:
            self.scanning = True
            look = partial(self._look, self._waiting.pop(0), self._scanner)
            self._view.run_worker(look, thread=True, group="scan")

    def _look(self, folder: str, scanner: Scanner) -> None:
        """In a thread: look through a place."""

        def on_news(news: Batch | Ended) -> None:
            self._view.post_message(ScanNews(news, scanner))

        try:
            scanner.look(folder, on_news)
        except Exception as error:
            what = f"The scan failed: {type(error).__name__}: {error}"
            on_news(Ended(folder, 0, {}, problem=VLoRAError(what, where=folder)))

    def _ended(self, news: Ended) -> None:
        self.scanning = False
        self._session.rename({**news.names, **self._given_names})
        if news.problem is not None:
            self._complain(clean_lines(news.problem))
        elif not news.found and not news.stopped:
            what = "Nothing new" if news.folder in self.places and self.rows else "No adapters"
            self._complain(
                f"{what} in {place_words(news.folder)}.\n"
                "Scanned for folders with adapter_config.json and adapter_model.safetensors, "
                f"{self._host.config['scan_depth']} levels deep."
            )
        elif is_hub_place(news.folder):
            remember_folder(news.folder)
        else:
            remember_folder(str(Path(news.folder).expanduser().absolute()))
        for remark in news.notes[:3]:
            self._view.notify(clean(remark), markup=False)
        if news.full:
            self._complain(
                f"Only the first {self._host.config['scan_limit']:,} are listed. "
                "Open folders further down, or raise scan_limit in the config file."
            )
        if not self._waiting:
            self._mark_requested()
            self.reach.ask(list(self._session.infos.values()))
            self._host.call_later(self._host.scanned)
        self._next()

    def mark_when_found(self, names: Mapping[str, str | None]) -> None:
        """Mark the adapters at or below these paths once they are found, and name them so."""
        self._wanted_marks = list(names)
        self._given_names = {path: name for path, name in names.items() if name}

    def _mark_requested(self) -> None:
        for requested in self._wanted_marks:
            below = os.path.join(requested, "")
            for path in self._session.infos:
                if path == requested or path.startswith(below) or is_pinned_form(path, requested):
                    self._session.mark(path, True)
        self._wanted_marks = []

    def stop(self) -> None:
        """Let go of what is being looked through."""
        if self.scanning:
            self._waiting.clear()
            self._scanner.stop()

    def look_again(self) -> None:
        """Look through the same places anew."""
        folders = list(self.places)
        if folders and not self.scanning:
            self.forget()
            self._host.jobs.forget_spectra()
            self.look_into(folders)

    def forget(self) -> None:
        """Clear the list."""
        self._scanner.stop()
        self._scanner, self.scanning = self._new_scanner(), False
        self.reach.forget()
        self._applies.clear()
        self.rows.clear()
        self._session.infos.clear()
        self._session.subspaces.clear()

    def _new_scanner(self) -> Scanner:
        config = self._host.config
        return Scanner(max_depth=config["scan_depth"], max_adapters=config["scan_limit"])

    def take_reach(self, event: ReachTold) -> None:
        """Show how much of these adapters acts on their base models."""
        self._applies |= event.found
        if self.take_session():
            self._found()

    def take_session(self) -> bool:
        """List what the session knows, too; whether any of it is new."""
        checked, new = self._session.checked, False
        for path, info in self._session.infos.items():
            row = self.rows.get(path)
            known = (checked.get(path), self._applies.get(path))
            if row is None or row.info is not info or (row.checked, row.applies) != known:
                self.rows[path] = Row(path, info.name, info, None, info.error, info.nbytes, *known)
                new = True
        for subspace in self._session.subspaces:
            if str(subspace) not in self.rows:
                self.rows[str(subspace)] = subspace_row(subspace)
                new = True
        return new

    # the demo

    def make_demo(self, path: str) -> None:
        """Make the demo collection, then list it."""
        self.making = True
        self._found()
        make = partial(self._write_demo, str(Path(path).expanduser()))
        self._view.run_worker(make, thread=True, exclusive=True, group="demo")

    def _write_demo(self, path: str) -> None:
        """In a thread: make the demo collection."""
        from vlora_engine.demo import make_demo_collection

        problem: VLoRAError | None = None
        try:
            make_demo_collection(Path(path))
        except VLoRAError as error:
            problem = error
        except OSError as error:
            problem = VLoRAError(f"The demo cannot be written: {error.strerror}.", where=path)
        self._view.post_message(DemoMade(path, problem))

    def take_demo(self, event: DemoMade) -> None:
        """List the demo collection, or say why there is none."""
        self.making = False
        if event.problem is not None:
            self._complain(clean_lines(event.problem))
            self._found()
        else:
            self.look_into([event.path])


def clean_lines(error: VLoRAError) -> str:
    """An error's lines, made harmless, with what a screen has for its remedy."""
    return "\n".join(clean(line) for line in problem_words(error).split("\n"))


def _absolute(folder: str) -> str:
    """A local path in full, so that a recipe means the same from anywhere; others as they are."""
    path = os.path.expanduser(folder)
    return os.path.abspath(path) if os.path.lexists(path) else folder

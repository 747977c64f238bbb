"""How Adapters finds what it lists: scans that stream rows in, the demo, what a session knows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from textual import work
from textual.message import Message

from vlora_engine.adapters.address import is_address, is_hub_place, is_pinned_form
from vlora_engine.errors import VLoRAError
from vlora_tui.tui.adapters.rows import Row
from vlora_tui.tui.adapters.scanner import (
    Batch,
    Ended,
    Scanner,
    pasted_paths,
    subspace_row,
)
from vlora_tui.tui.core.session import remember_folder
from vlora_tui.tui.core.view import View
from vlora_tui.tui.text import clean, place_words

DEMO_PLACE = "vlora-demo/adapters"


class FindingView(View):
    """A view whose rows come from scans, one place after another.

    ``_found`` is called whenever there is something new to show.
    """

    class Told(Message):
        """News from the scan."""

        def __init__(self, news: Batch | Ended, scanner: Scanner) -> None:
            super().__init__()
            self.news, self.scanner = news, scanner

    class DemoMade(Message):
        """The demo collection is there, or could not be made."""

        def __init__(self, place: str, problem: VLoRAError | None) -> None:
            super().__init__()
            self.place, self.problem = place, problem

    def begin(self) -> None:
        """Nothing was looked for yet."""
        self._rows: dict[str, Row] = {}
        self._waiting: list[str] = []
        self._wanted_marks: list[str] = []
        self._given_names: dict[str, str] = {}
        self._scanner = self._new_scanner()
        self._scanning = False
        self._making = False

    def _found(self) -> None:
        """The rows, or what is being looked for, have changed."""
        raise NotImplementedError

    # looking

    def look_into(self, places: list[str]) -> None:
        """Scan these places, one after another."""
        places = [_absolute(place) for place in places]
        self._waiting += [p for p in places if p not in self._waiting]
        if not self._scanning:
            self._next()
        self._found()

    def on_paste(self, event: object) -> None:
        places = pasted_paths(str(getattr(event, "text", "")))
        if places:
            self.look_into(places)

    def _next(self) -> None:
        if self._waiting:
            self._scanning = True
            self._look(self._waiting.pop(0), self._scanner)

    @work(thread=True, group="scan", exit_on_error=False)
    def _look(self, place: str, scanner: Scanner) -> None:
        def tell(news: Batch | Ended) -> None:
            self.post_message(self.Told(news, scanner))

        try:
            scanner.look(place, tell)
        except Exception as error:
            what = f"The scan failed: {type(error).__name__}: {error}"
            tell(Ended(place, 0, {}, problem=VLoRAError(what, where=place)))

    def on_finding_view_told(self, event: Told) -> None:
        if event.scanner is not self._scanner:
            return
        news = event.news
        if isinstance(news, Batch):
            self.session.add_found(news.infos)
            self._rows |= {row.path: row for row in news.closed}
            for row in news.subspaces:
                self._rows[row.path] = row
                place = Path(row.path)
                if not is_address(row.path) and place not in self.session.subspaces:
                    self.session.subspaces.append(Path(row.path))
        else:
            self._ended(news)
        self._take_session()
        self._found()
        self.vlora.refresh_bar()

    def _ended(self, news: Ended) -> None:
        self._scanning = False
        self.session.rename({**news.names, **self._given_names})
        if news.problem is not None:
            self.vlora.complain(clean_lines(news.problem))
        elif not news.found and not news.stopped:
            said = "nothing new" if news.place in self._scanner.places and self._rows else "nothing"
            self.vlora.complain(
                f"There is {said} in {place_words(news.place)}.\n"
                "Looked for folders with adapter_config.json and adapter_model.safetensors, "
                f"{self.vlora.config['scan_depth']} levels deep."
            )
        elif is_hub_place(news.place):
            remember_folder(news.place)
        else:
            remember_folder(str(Path(news.place).expanduser().absolute()))
        for remark in news.remarks[:3]:
            self.notify(clean(remark), markup=False)
        if news.full:
            self.vlora.complain(
                f"Only the first {self.vlora.config['scan_limit']:,} are listed; "
                "open folders further down, or raise scan_limit in the config file."
            )
        if not self._waiting:
            self._mark_wanted()
            self.vlora.call_later(self.vlora.scanned)
        self._next()

    def mark_when_found(self, names: Mapping[str, str | None]) -> None:
        """Mark the adapters at or below these paths once they are found, and name them so."""
        self._wanted_marks = list(names)
        self._given_names = {path: name for path, name in names.items() if name}

    def _mark_wanted(self) -> None:
        for wanted in self._wanted_marks:
            below = os.path.join(wanted, "")
            for path in self.session.infos:
                if path == wanted or path.startswith(below) or is_pinned_form(path, wanted):
                    self.session.mark(path, True)
        self._wanted_marks = []

    def action_stop(self) -> None:
        if self._scanning:
            self._waiting.clear()
            self._scanner.stop()

    def action_again(self) -> None:
        places = list(self._scanner.places)
        if places and not self._scanning:
            self._forget()
            self.vlora.desk.forget_spectra()
            self.look_into(places)

    def _forget(self) -> None:
        self._scanner.stop()
        self._scanner, self._scanning = self._new_scanner(), False
        self._rows.clear()
        self.session.infos.clear()
        self.session.subspaces.clear()

    def _new_scanner(self) -> Scanner:
        config = self.vlora.config
        return Scanner(max_depth=config["scan_depth"], max_adapters=config["scan_limit"])

    def _take_session(self) -> bool:
        """The rows of what the session knows; whether any of them is new."""
        checked, new = self.session.checked, False
        for path, info in self.session.infos.items():
            row = self._rows.get(path)
            if row is None or row.info is not info or row.checked != checked.get(path):
                self._rows[path] = Row(
                    path, info.name, info, None, info.error, info.nbytes, checked.get(path)
                )
                new = True
        for place in self.session.subspaces:
            if str(place) not in self._rows:
                self._rows[str(place)] = subspace_row(place)
                new = True
        return new

    # the demo

    def make_demo(self, place: str | None = None) -> None:
        """Make the demo collection, asking where; then list it."""
        from vlora_tui.tui.widgets.dialogs import Prompt

        if place is not None:
            self._make_demo(place)
            return
        words = "19 small synthetic adapters, 14 MB, made on this machine. Where?"

        def answered(place: str | None) -> None:
            if place:
                self._make_demo(place)

        self.app.push_screen(Prompt("Make the demo", words, DEMO_PLACE), answered)

    def _make_demo(self, place: str) -> None:
        self._making = True
        self._found()
        self._write_demo(str(Path(place).expanduser()))

    @work(thread=True, exclusive=True, group="demo", exit_on_error=False)
    def _write_demo(self, place: str) -> None:
        from vlora_engine.demo import make_demo_collection

        try:
            make_demo_collection(Path(place))
        except VLoRAError as error:
            self.post_message(self.DemoMade(place, error))
            return
        except OSError as error:
            problem = VLoRAError(f"The demo cannot be written: {error.strerror}.", where=place)
            self.post_message(self.DemoMade(place, problem))
            return
        self.post_message(self.DemoMade(place, None))

    def on_finding_view_demo_made(self, event: DemoMade) -> None:
        self._making = False
        if event.problem is not None:
            self.vlora.complain(clean_lines(event.problem))
            self._found()
        else:
            self.look_into([event.place])


def clean_lines(error: VLoRAError) -> str:
    """An error's lines, made harmless."""
    return "\n".join(clean(line) for line in error.lines())


def _absolute(place: str) -> str:
    """A local path in full, so that a recipe means the same from anywhere; others as they are."""
    path = os.path.expanduser(place)
    return os.path.abspath(path) if os.path.lexists(path) else place

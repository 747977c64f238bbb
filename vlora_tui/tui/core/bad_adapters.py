"""Bad adapters: which of them a job's check ruled out and why, and the question what to do.

A spectra job goes on without them by itself; a build stops before it writes anything. Either way
the person is asked once: leave them out and go on, look at them, or stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from textual.screen import ModalScreen

from vlora_engine.findings import Finding
from vlora_tui.pipeline.events import Checked
from vlora_tui.tui.core.messages import AdaptersWanted, CollectionChanged
from vlora_tui.tui.core.session import Session, is_about
from vlora_tui.tui.key_names import key
from vlora_tui.tui.text import advice, clean, plural
from vlora_tui.tui.widgets.dialogs import ListProblems, Option
from vlora_tui.utils.formatting import listed

if TYPE_CHECKING:
    from textual.app import App

    from vlora_engine.spectra.tables import Spectra
    from vlora_tui.jobs import JobView
    from vlora_tui.tui.core.job_client import JobClient


LEAVE, SHOW, STOP = "leave", "show", "stop"
CODE = "ruled-out"
NAMES = 3  # so many are named in a line
BROKEN = "is:broken"  # the filter of step 1 that keeps them alone


class BadAdapterPrompt:
    """Asks what to do with bad adapters that spectra, or jobs that failed, have found.

    Everything here runs on the event loop; `JobClient` reads the files.
    """

    def __init__(self, app: App[Any], session: Session, jobs: JobClient) -> None:
        self._app = app
        self._session = session
        self._jobs = jobs
        self._asked: set[str] = set()  # paths of adapters, ids of jobs

    # what was found

    def spectra_came(self, spectra: Spectra) -> None:
        """Adapters that are marked and not among these spectra's tasks are bad."""
        session = self._session
        tasks = {task.name for task in spectra.tasks}
        missing = [str(info.path) for info in session.chosen if info.name not in tasks]
        session.bad |= ruled_out(spectra.skipped, missing)
        session.bad |= {path: _unexplained(path) for path in missing if path not in session.bad}
        fresh = session.undecided.keys() - self._asked
        if not fresh:
            return
        if session.skip_bad:  # the recipe that was opened has said what to do
            self._asked |= fresh
            self._leave_out(fresh)
        elif self._may_ask():
            self.ask()

    def looked_at(self, views: Iterable[JobView]) -> None:
        """Jobs of this session that bad adapters have stopped are asked about, once each."""
        for view in views:
            job_id = view.job.id
            if job_id not in self._jobs.started or job_id in self._asked:
                continue
            errors = stopped_by(view)
            if errors and self._may_ask():
                self._asked.add(job_id)
                session = self._session
                session.bad |= ruled_out(errors, session.infos)
                self._ask_about_job(view, errors)

    def _may_ask(self) -> bool:
        """A question that is open, or a text that is read, is not covered by another."""
        return not isinstance(self._app.screen, ModalScreen)

    # what is asked

    def ask(self, then: Callable[[], None] | None = None) -> bool:
        """Ask about bad adapters that are marked; False if there are none to decide on.

        Args:
            then: What was wanted, done once they are left out.
        """
        session = self._session
        bad = session.undecided
        if not bad:
            return False
        self._asked |= bad.keys()
        left = len(session.included) - len(bad)
        running = self._jobs.spectra_job is not None
        options = [
            _option("l", "skip and continue", LEAVE, f"{left} left"),
            _option("s", "show", SHOW, "in Adapters, with the findings"),
            _option("x", "stop measuring" if running else "cancel", STOP),
        ]
        words = f"{plural(len(bad), 'adapter')} of {len(session.included)} cannot be used."

        def answered(answer: str | None) -> None:
            if answer == LEAVE:
                self._leave_out(bad)
                if then is not None:
                    then()
            elif answer == SHOW:
                self._show()
            elif answer == STOP:
                self._asked -= bad.keys()  # who comes back to this choice is asked again
                self._jobs.stop_spectra(f"Stopped: {words} {names_of(session, bad)}")

        self._push(words, problems(session, bad), options if left else options[1:], answered)
        return True

    def _ask_about_job(self, view: JobView, errors: Sequence[Mapping[str, Any]]) -> None:
        bad = ruled_out(errors, self._session.infos)
        listed = problems(self._session, bad) if bad else [_problem(e) for e in errors]
        options = [
            _option("s", "show", SHOW, "in Adapters, with the findings"),
            _option("x", "cancel", STOP, "the job stays in the list"),
        ]
        if can_go_on(view):
            options.insert(0, _option("l", "skip and continue", LEAVE, "as a new job"))

        def answered(answer: str | None) -> None:
            if answer == LEAVE:
                self.go_on_without(view)
            elif answer == SHOW:
                self._show()

        title = f"{clean(view.title)}: stopped by {plural(len(errors), 'bad adapter')}."
        self._push(title, listed, options, answered)

    def _push(self, words: str, listed: Any, options: list[Option], answered: Any) -> None:
        self._app.push_screen(ListProblems("Bad adapters", words, listed, options), answered)

    # what is done

    def go_on_without(self, view: JobView) -> None:
        """Start the work of a job that bad adapters stopped again, without them."""
        session = self._session
        bad = ruled_out(stopped_by(view), session.infos)
        session.bad |= bad
        self._leave_out(session.undecided.keys() & bad.keys())
        self._jobs.start_without_bad(view.job.id)

    def _leave_out(self, paths: Iterable[str]) -> None:
        session, paths = self._session, list(paths)
        session.leave_out(paths)
        if paths:
            left = plural(len(session.included), "adapter")
            text = f"Skipped {len(paths)} ({names_of(session, paths)}). Continuing with {left}."
            self._app.notify(text, markup=False)
        self._app.post_message(CollectionChanged())

    def _show(self) -> None:
        self._app.post_message(AdaptersWanted(BROKEN))


def stopped_by(view: JobView) -> list[Mapping[str, Any]]:
    """The errors of the adapters that stopped a job; none if something else did."""
    errors = (view.error or {}).get("errors")
    listed = errors if isinstance(errors, list) else []
    return [error for error in listed if isinstance(error, Mapping)]


def can_go_on(view: JobView) -> bool:
    """Whether a job that bad adapters stopped has others that it could go on with."""
    checked, errors = view.last(Checked), stopped_by(view)
    return bool(errors) and (checked is None or checked.good > 0)


def ruled_out(errors: Iterable[Mapping[str, Any]], paths: Iterable[str]) -> dict[str, Finding]:
    """What an error says of each of ``paths`` that one of them is about."""
    paths = list(paths)
    found: dict[str, Finding] = {}
    for error in errors:
        finding = _finding(error)
        found |= {path: finding for path in paths if is_about(finding, path)}
    return found


def problems(session: Session, bad: Mapping[str, Finding]) -> list[tuple[str, list[str]]]:
    """Bad adapters as a dialog lists them: the name, then what is wrong and what mends it."""
    return [
        (
            session.infos[path].name if path in session.infos else path,
            [finding.what, *([f"fix: {fix}"] if (fix := advice(finding.remedy or "")) else [])],
        )
        for path, finding in bad.items()
    ]


def names_of(session: Session, paths: Iterable[str]) -> str:
    """A few names, and how many more there are."""
    names = [clean(session.infos[path].name) for path in paths if path in session.infos]
    return listed(names, NAMES)


def _problem(error: Mapping[str, Any]) -> tuple[str, list[str]]:
    finding = _finding(error)
    return finding.where or "an adapter", [finding.what]


def _finding(error: Mapping[str, Any]) -> Finding:
    found = Finding.from_json({**error, "severity": "error"})
    return replace(found, code=CODE, what=found.what or "It cannot be used.")


def _unexplained(path: str) -> Finding:
    what = "It could not be read when the adapters were measured."
    return Finding(
        CODE, "error", what, f"scan again: {key('adapters.again')} in step 1", adapter=path
    )


def _option(letter: str, label: str, value: str, more: str = "") -> Option:
    return Option(letter, label, value, more)

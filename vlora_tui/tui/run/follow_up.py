"""Further jobs on what there is: asks in a form what they need, then starts them."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from vlora_engine.catalog.read import read_manifest
from vlora_engine.errors import VLoRAError
from vlora_tui.jobs.devices import devices
from vlora_tui.tui.run import forms
from vlora_tui.tui.run.job_form import START, JobFields, JobForm
from vlora_tui.tui.text import clean, problem_words, tilde
from vlora_tui.tui.widgets.dialogs import Prompt

if TYPE_CHECKING:
    from vlora_engine.manifest.manifest import Manifest
    from vlora_tui.tui.run.desk import Desk


class FollowUp:
    """Starts jobs on the subspace at hand.

    Args:
        view: Says which subspace that is, and shows the forms.
    """

    def __init__(self, view: Desk) -> None:
        self._view = view

    def quantize(self) -> None:
        """Pack the subspace into another folder."""
        manifest = self._manifest()
        if manifest is None:
            return
        asked = forms.QuantizeFields(manifest)

        def start() -> None:
            go = partial(self._view.host.start_job, asked.recipe)
            if os.path.lexists(asked.place):
                self._view.confirm_replacing(asked.place, go)
            else:
                go()

        self._ask(asked, start)

    def evaluate(self) -> None:
        """See what a base model notices."""
        manifest = self._manifest()
        if manifest is not None:
            asked = forms.EvaluateFields.of(manifest, devices())
            self._ask(asked, lambda: self._view.host.jobs.start_action(asked.action))

    def add_task(self) -> None:
        """Add an adapter; the first marked one that the subspace has not is proposed."""
        manifest = self._manifest()
        if manifest is None:
            return
        session = self._view.session
        new = [i for i in session.included if i.name not in manifest.tasks]
        asked = forms.AddFields(
            manifest, str(new[0].path) if new else "", new[0].name if new else "",
            device=session.device,
        )  # fmt: skip
        self._ask(asked, lambda: self._view.host.jobs.start_action(asked.action))

    def remove_tasks(self) -> None:
        """Remove tasks, once a word was typed that says so."""
        manifest = self._manifest()
        if manifest is None:
            return
        asked = forms.RemoveFields(manifest)

        def start() -> None:
            names = "\n".join(clean(name) for name in sorted(asked.gone)[:8])
            words = f"These leave {tilde(manifest.path)} for good:\n{names}"
            begin = lambda: self._view.host.jobs.start_action(asked.action)  # noqa: E731
            self._confirm("Remove tasks", words, "remove", begin)

        self._ask(asked, start)

    def push(self) -> None:
        """Push to the Hub, once the repository's name was typed a second time."""
        found = self._pushed()
        if found is None:
            return
        path, tasks = found
        asked = forms.PushFields(path, tasks)

        def start() -> None:
            public = "" if asked.private else " Where it is new, everybody can read it."
            words = f"{tilde(path)}\ngoes to {asked.repo} on the Hub.{public}"
            go = partial(self._view.host.start_job, asked.recipe)
            self._confirm("Push to the Hub", words, asked.repo, go)

        self._ask(asked, start)

    def pull(self) -> None:
        """Pull from the Hub into a folder."""
        asked = forms.PullFields()

        def start() -> None:
            go = partial(self._view.host.jobs.start_action, asked.action)
            if os.path.lexists(asked.place):
                self._view.confirm_replacing(asked.place, go)
            else:
                go()

        self._ask(asked, start)

    def _ask(self, asked: JobFields, start: Callable[[], None]) -> None:
        def answered(answer: str | None) -> None:
            if answer == START:
                start()

        self._view.app.push_screen(JobForm(asked), answered)

    def _confirm(self, title: str, words: str, expect: str, start: Callable[[], None]) -> None:
        def answered(word: str | None) -> None:
            if word is not None:
                start()

        self._view.app.push_screen(Prompt(title, words, expect=expect), answered)

    def _manifest(self) -> Manifest | None:
        """The index of the subspace at hand; None, and a word why, where there is none."""
        path = self._view.subspace
        if path is None:
            words = "Select a job that made a subspace, or open a subspace first."
            self._view.notify(words, severity="warning", markup=False)
            return None
        try:
            return read_manifest(path)
        except VLoRAError as error:
            self._view.host.complain(problem_words(error))
            return None

    def _pushed(self) -> tuple[str, int] | None:
        """What can be pushed: the adapters that the job wrote, else the subspace at hand."""
        job = self._view.job
        path = self._view.subspace
        written = [p for p in job.outputs if os.path.isdir(p)] if job is not None else []
        if written and path not in written:
            return (written[0] if len(written) == 1 else os.path.commonpath(written)), 0
        manifest = self._manifest()
        return None if manifest is None else (str(manifest.path.absolute()), len(manifest.tasks))

"""Runs an action: adds or removes tasks, evaluates, pulls; tells events as a recipe's run does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlora_engine.adapters.address import AdapterRef, address_of
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.errors import ParameterError
from vlora_engine.hub.pull import pull
from vlora_engine.utils.device import require_device
from vlora_tui.pipeline import events, tasks
from vlora_tui.pipeline.actions import Action, AddTask, Evaluate, Pull, RemoveTasks
from vlora_tui.pipeline.evaluating import SAMPLED, Request, evaluate
from vlora_tui.pipeline.inputs import fetch_all
from vlora_tui.pipeline.run import Run

UNCHANGED = "Stopped as asked; nothing was changed."


@dataclass
class ActionRun(Run):
    """Does what an action says; `recipe` holds its inputs alone."""

    action: Action | None = None

    def _steps(self) -> None:
        match self.action:
            case AddTask():
                self._add(self.action)
            case RemoveTasks():
                self._remove(self.action)
            case Evaluate():
                self._evaluate(self.action)
            case Pull():
                self._pull(self.action)
            case _:
                raise ParameterError("There is nothing to do.")

    def _add(self, action: AddTask) -> None:
        require_device(action.device)
        _require_own(action.subspace)
        self._context.report("add", 0, 1, action.name)
        (adapter,), remarks = fetch_all([action.adapter], self._context)
        for remark in remarks:
            self._remark(remark)
        with tasks.in_place(action.subspace, tell=self._tell, cancelled=self.cancelled):
            before = read_manifest(action.subspace)
            name = tasks.new_name(before, str(adapter), action.name)
            how, why = tasks.way_of(before, action.how)
            if why:
                self._tell(f"It is added as one that is coded: {why}.")
            self._context.stop_if_asked(UNCHANGED)
            for other in tasks.add_task(
                Path(action.subspace), open_adapter(str(adapter)), name, how,
                device=action.device, progress=self._on_progress,
            ):  # fmt: skip
                self._tell(f"{other}: its original was not found; taken from the subspace")
            after = read_manifest(action.subspace)
        grown = tasks.error_grown_most(before, after)
        lost = {} if grown is None else dict(zip(("task", "before", "error"), grown, strict=True))
        self._context.report("add", 1, 1, name)
        self.outputs.append(action.subspace)
        self.emit(
            events.TaskAdded(
                path=action.subspace,
                task=name,
                how=how,
                tasks=len(after.tasks),
                error=after.task(name).error,
                before=before.nbytes,
                nbytes=after.nbytes,
                lost=lost,
            )
        )

    def _remove(self, action: RemoveTasks) -> None:
        _require_own(action.subspace)
        with tasks.in_place(action.subspace, tell=self._tell, cancelled=self.cancelled):
            before = read_manifest(action.subspace)
            names = tasks.removable(before, action.tasks)
            self._context.report("remove", 0, len(names))
            self._context.stop_if_asked(UNCHANGED)
            tasks.remove_tasks(Path(action.subspace), names)
            after = read_manifest(action.subspace)
        self._context.report("remove", len(names), len(names))
        self.outputs.append(action.subspace)
        self.emit(
            events.TasksRemoved(
                action.subspace, tuple(names), len(after.tasks), before.nbytes, after.nbytes
            )
        )

    def _evaluate(self, action: Evaluate) -> None:
        require_device(action.device)
        found = evaluate(
            Request(
                action.subspace,
                action.base,
                action.prompts,
                action.tasks,
                action.originals,
                action.max_tokens,
                action.length,
                device=action.device,
                skip_bad=action.skip_bad,
            ),
            warn=self._tell,
            progress=self._on_progress,
            cancelled=self.cancelled,
        )
        texts = ", ".join(found.prompts) or SAMPLED
        self.emit(events.Evaluated(action.subspace, found.base, texts, found.as_dict()))

    def _pull(self, action: Pull) -> None:
        found = pull(
            AdapterRef.on_hub(action.address),
            action.output,
            force=self.force,
            progress=self._on_progress,
            cancelled=self.cancelled,
        )
        for remark in found.remarks:
            self._remark(remark)
        nbytes = sum(f.stat().st_size for f in Path(action.output).rglob("*") if f.is_file())
        self.outputs.append(action.output)
        self.emit(
            events.Pulled(
                str(found.address), action.output, len(found.files), nbytes, found.downloaded
            )
        )

    def _tell(self, text: str) -> None:
        self.emit(events.Remark(text, code="action"))


def _require_own(subspace: str) -> None:
    """Refuse to change what is the Hub's, or another library's.

    Raises:
        ParameterError: It is.
    """
    if address_of(AdapterRef.parse(subspace)) is not None:
        raise ParameterError(
            "A subspace on the Hub is not changed in place.",
            where=subspace,
            remedy="pull it into a folder, and change that",
        )
    peer = read_manifest(subspace).peer
    if peer:
        raise ParameterError(
            f"This is a subspace of {peer}, which is not changed in place.",
            where=subspace,
            expected="a subspace of vlora-tui",
            remedy="convert it to the format subspace first",
        )

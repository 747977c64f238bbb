"""Messages from parts of the interface to the application, which hands them to the step in view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.message import Message

if TYPE_CHECKING:
    from vlora_tui.pipeline.disk_space import Shortage


class SessionChanged(Message):
    """Something has changed that the status line and any step may show."""


class CollectionChanged(SessionChanged):
    """Other adapters are listed, marked or left out."""


class SpectraChanged(SessionChanged):
    """There are other spectra than before, more layers of them, or none any more."""


class ChoiceChanged(SessionChanged):
    """What is going to be built or exported, or where, is chosen anew."""


class JobsChanged(SessionChanged):
    """The jobs were looked at, and are not as they were."""


class SubspaceChanged(SessionChanged):
    """Another subspace is open."""


class AdaptersWanted(Message):
    """The adapters that a filter of step 1 keeps are to be shown."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words


class Complaint(Message):
    """Something failed that the person has to hear of; the interface goes on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class MeasuringFailed(Message):
    """The marked adapters could not be measured; step 2 says so by itself."""

    def __init__(self, problem: str) -> None:
        super().__init__()
        self.problem = problem


class DiskTooSmall(Message):
    """A job was not started, because what it would write does not fit on the disk."""

    def __init__(self, shortage: Shortage) -> None:
        super().__init__()
        self.shortage = shortage

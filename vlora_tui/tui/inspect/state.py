"""The state of Inspect: adapters or tasks, how they relate, what the filter keeps. No widget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlora_tui.report.comparison import CLUSTERED
from vlora_tui.tui.core.likeness import Group, Likeness, likeness_of
from vlora_tui.tui.inspect.data import Kin
from vlora_tui.tui.inspect.finding_rows import Remark
from vlora_tui.tui.inspect.rows import SORTS, Subject

if TYPE_CHECKING:
    from vlora_tui.tui.core.session import Session


class InspectState:
    """What the panes of Inspect show, beside what the session knows.

    Attributes:
        likeness: How the adapters of the spectra relate; ``kin``: what takes a moment to tell.
        pair: The two that are compared, until another is looked at.
        rows: What was found wrong.
        threshold: From which cosine on adapters count as alike.
        ordered: Whether similar adapters stand together.
        sort: The number of the column to sort by.
        words: The filter.
        tasks_wanted: Whether tasks or adapters were asked for; None while nobody has.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.likeness: Likeness | None = None
        self.kin: Kin | None = None
        self.pair: Subject | None = None
        self.rows: list[Remark] = []
        self.threshold = CLUSTERED
        self.ordered = True
        self.sort = 0
        self.words: tuple[str, ...] = ()
        self.tasks_wanted: bool | None = None
        self._of_relations: object = None
        self._of_manifest: object = None

    def follow_spectra(self) -> bool:
        """Take the likeness from the session; whether it is another than before."""
        spectra = self.session.spectra
        relations = spectra.relations if spectra is not None else None
        if relations is self._of_relations:
            return False
        self._of_relations, self.kin = relations, None
        self.likeness = likeness_of(spectra)
        return True

    def follow_manifest(self) -> None:
        """Show the tasks of a subspace that was opened since Inspect was last looked at."""
        manifest = self.session.manifest
        if manifest is not None and manifest is not self._of_manifest:
            self.tasks_wanted, self.pair = True, None
        self._of_manifest = manifest

    @property
    def on_tasks(self) -> bool:
        """Whether the tasks of the subspace are shown, and not the adapters of the spectra."""
        session = self.session
        if session.manifest is None:
            return False
        if session.spectra is None:
            return True
        return (not session.marked) if self.tasks_wanted is None else self.tasks_wanted

    @property
    def clusters(self) -> list[Group]:
        """Those that are alike at the present bound."""
        return self.likeness.groups(self.threshold) if self.likeness is not None else []

    @property
    def groups(self) -> list[Group]:
        """The clusters, then copies and runs as far as they are known."""
        return [*self.clusters, *(self.kin.groups if self.kin is not None else ())]

    def keeps(self, text: str) -> bool:
        """Whether the filter keeps what is called so."""
        return all(word in text.lower() for word in self.words)

    def move_threshold(self, by: float) -> None:
        """Another bound from which on adapters are alike."""
        self.threshold = round(min(1.0, max(0.0, self.threshold + by)), 2)

    def next_sort(self) -> None:
        """Sort by the next column."""
        self.sort = (self.sort + 1) % len(SORTS)

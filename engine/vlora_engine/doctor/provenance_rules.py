"""Rules on where an adapter says that it comes from. No torch: files are hashed, not understood."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vlora_engine.doctor.collection_rules import rule_on_several
from vlora_engine.doctor.rules import ENGINE, Hit, Subject, rule
from vlora_engine.formats.provenance import changed_files, is_as_written, read_record

_SOURCE = f"{ENGINE}.formats.provenance"


@rule(
    "content-changed",
    "warning",
    "The tensors are not those that were written with the record of where they come from.",
    remedy="create it again from its sources; what the record says does not hold for these tensors",
    source=_SOURCE,
    stage="tensors",
)
def _content(subject: Subject) -> Iterable[Hit]:
    if subject.weights is not None and is_as_written(subject.weights) is False:
        yield Hit("Its tensors were changed after they were written.", file=subject.at_weights)


@rule_on_several(
    "source-changed",
    "An adapter was made from one that has changed since.",
    "create it again",
    _SOURCE,
)
def _sources(subjects: Mapping[str, Subject]) -> Iterable[Hit]:
    """A source is at hand where an adapter of its name is among those that are looked at."""
    places: dict[str, list[Subject]] = {}
    for subject in subjects.values():
        places.setdefault(subject.path.name, []).append(subject)
    for subject in subjects.values():
        record = None if subject.weights is None else read_record(subject.weights)
        for source in () if record is None else record.sources:
            at_hand = [s for s in places.get(str(source.get("name")), ()) if s is not subject]
            changed = [changed_files(source, s.path) for s in at_hand]
            if changed and all(changed):
                what = (
                    f"{source.get('name')} is not what it was made from: {changed[0][0]} differs."
                )
                yield Hit(what, adapter=str(subject.path))

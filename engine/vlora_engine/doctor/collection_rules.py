"""Rules on several adapters: whether they belong to one base, and whether they differ at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from vlora_engine.adapters.base_models import normalise_base_model
from vlora_engine.doctor.rules import Hit, Rule, Subject, add_rule
from vlora_engine.findings import Finding

Named = Mapping[str, Subject]
Find = Callable[[Named], Iterable[Hit]]
_FEW = 6  # names in one sentence


RULES_ON_SEVERAL: list[tuple[Rule, Find]] = []


def _of_one(subject: Subject) -> Iterable[Hit]:
    """One adapter alone has no others to differ from."""
    return ()


def rule_on_several(code: str, what: str, remedy: str, source: str) -> Callable[[Find], Find]:
    """Register the decorated function, which looks at several adapters, under a new row."""

    def register(find: Find) -> Find:
        row = Rule(code, "warning", what, remedy, source, stage="together")
        RULES_ON_SEVERAL.append((row, find))
        add_rule(row, _of_one)
        return find

    return register


def together(subjects: Named) -> list[Finding]:
    """The findings that it takes several adapters for."""
    return [hit.as_finding(row, "") for row, find in RULES_ON_SEVERAL for hit in find(subjects)]


@rule_on_several(
    "base-models-differ",
    "The adapters name different base models; a subspace is meant for one.",
    "compress each group of `vlora-tui inspect` separately",
    "vlora_engine.catalog.scanner",
)
def _bases(subjects: Named) -> Iterable[Hit]:
    by_base: dict[str, list[str]] = {}
    as_written: dict[str, str] = {}
    for name, subject in subjects.items():
        base = subject.config.get("base_model_name_or_path")
        key = normalise_base_model(base) if isinstance(base, str) and base else None
        if key is not None:
            by_base.setdefault(key, []).append(name)
            as_written.setdefault(key, str(base))
    if len(by_base) > 1:
        each = "; ".join(f"{as_written[key]}: {_names(names)}" for key, names in by_base.items())
        what = f"The adapters name different base models ({each})."
        yield Hit(what, place=", ".join(as_written.values()))


@rule_on_several(
    "dimensions-differ",
    "Two adapters of one base model disagree about a module's dimensions.",
    "one of them was trained on another size of it: fix base_model_name_or_path",
    "vlora_engine.catalog.scanner",
)
def _dimensions(subjects: Named) -> Iterable[Hit]:
    """Within one base model a module has one shape."""
    seen: dict[tuple[str, str], tuple[str, tuple[str, int, int]]] = {}
    for name, subject in subjects.items():
        base = subject.config.get("base_model_name_or_path")
        key = normalise_base_model(base) if isinstance(base, str) and base else None
        for module, shape in (subject.modules or {}).items() if key else ():
            first, fits = seen.setdefault((str(key), module), (name, shape.fits))
            if fits != shape.fits:
                what = (
                    f"{module} is {shape.d_out} x {shape.d_in} here and {fits[2]} x {fits[1]} in "
                    f"{first}, which names the same base model."
                )
                yield Hit(what, adapter=str(subject.path), file=subject.at_weights, module=module)
                break


@rule_on_several(
    "duplicates",
    "Adapters are the same, bit for bit.",
    "keep one of them",
    "vlora_engine.adapters.check",
)
def _duplicates(subjects: Named) -> Iterable[Hit]:
    same: dict[str, list[str]] = {}
    for name, subject in subjects.items():
        check = None if subject.facts is None else subject.facts.check
        if check is not None and check.digest:
            same.setdefault(check.digest, []).append(name)
    for names in same.values():
        if len(names) > 1:
            what = f"{len(names)} adapters are one, bit for bit: {_names(names)}."
            yield Hit(what, adapter=str(subjects[names[1]].path))


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more

"""The card of a job: what came of it, in figures that the job itself measured, and what is next."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from vlora_engine.errors import VLoRAError
from vlora_engine.targets import Served, find_target, start_lines
from vlora_engine.utils.naming import cosine_text
from vlora_tui.jobs.watch import State
from vlora_tui.pipeline import events
from vlora_tui.tui.run.job_text import EXACT, duration, packing_words
from vlora_tui.tui.text import clean, plural, tilde
from vlora_tui.utils.formatting import listed, nats, percent, size, times

if TYPE_CHECKING:
    from vlora_tui.jobs import JobView


BAR = 20
NAMES = 6  # so many tasks or adapters are named in a line
NEXT_OF_SUBSPACE = ("view", "export", "evaluate", "quantize", "push", "compare")


@dataclass(frozen=True)
class Line:
    """One line of a card: a label, a text, and a share of 1 that is drawn as a bar."""

    label: str
    text: str
    share: float | None = None


@dataclass(frozen=True)
class Card:
    """What a job came to.

    Args:
        headline: The result in one line.
        lines: The figures.
        next: What can be done now, by the names of `RunView`'s actions.
    """

    headline: str
    lines: tuple[Line, ...] = ()
    next: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    """What a job says of its subspace, for the list and for comparing; None where it is not known.

    Args:
        method: With how it is packed.
        tasks: The error of each, where that was read.
    """

    path: str
    method: str
    target: str = ""
    nbytes: int | None = None
    ratio: float | None = None
    mean: float | None = None
    worst: float | None = None
    worst_task: str = ""
    tasks: Mapping[str, float] = field(default_factory=dict)


def subspace_figures(written: events.SubspaceWritten) -> Figures:
    """The figures of a subspace that a job has written."""
    f = written.figures
    packed = packing_words(f.get("quantization")).partition(",")[0]
    errors = f.get("task_errors")
    return Figures(
        path=written.path,
        method=" ".join(part for part in (str(f.get("method") or ""), packed) if part),
        nbytes=_whole(f.get("nbytes")),
        ratio=_number(f.get("ratio")),
        mean=_number(f.get("mean_error")),
        worst=_number(f.get("max_error")),
        worst_task=str(f.get("worst_task") or ""),
        tasks=dict(errors) if isinstance(errors, dict) else {},
    )


def cells(view: JobView) -> tuple[str, str, str]:
    """Method, size and worst error of a job, for the list; empty where there is none."""
    written = view.last(events.SubspaceWritten)
    if written is not None:
        f = subspace_figures(written)
        return f.method, _size(f.nbytes), percent(f.worst) if f.worst is not None else ""
    merged = view.last(events.Merged)
    if merged is not None:
        return merged.method, _size(merged.nbytes or None), ""
    evaluated = view.last(events.Evaluated)
    if evaluated is not None:
        return "evaluate", "", ""
    done = _written(view)
    if done:
        return done[0][0], _size(sum(n for _, n in done)), ""
    chosen = view.last(events.Chosen)
    return (chosen.label if chosen is not None else ""), "", ""


def _written(view: JobView) -> list[tuple[str, int]]:
    """What a job has written besides a subspace: for whom or how, and its bytes."""
    exported = [(e.target, e.nbytes) for e in view.all(events.Exported)]
    resized = [("resize", e.nbytes) for e in view.all(events.Resized)]
    converted = [(e.to, e.nbytes) for e in view.all(events.Converted)]
    pushed = [("push", e.nbytes) for e in view.all(events.Pushed)]
    pulled = [("pull", e.nbytes) for e in view.all(events.Pulled)]
    changed: list[tuple[str, int]] = [("add", e.nbytes) for e in view.all(events.TaskAdded)]
    changed += [("remove", e.nbytes) for e in view.all(events.TasksRemoved)]
    return [*exported, *resized, *converted, *pushed, *pulled, *changed]


def card_of(view: JobView | None) -> Card | None:
    """The card of a job that has finished; None of one that has not."""
    if view is None or view.state is not State.FINISHED:
        return None
    cards = [card for make in _CARDS if (card := make(view)) is not None]
    if not cards:
        return None
    first = cards[0]
    lines = [line for card in cards for line in card.lines]
    if view.begun is not None and view.ended is not None:
        lines.append(Line("took", duration(view.ended - view.begun)))
    if len(cards) > 1:  # a recipe of several steps: what the others came to are lines
        also = [Line("also", card.headline) for card in cards[1:]]
        lines = [*first.lines, *also, *lines[len(first.lines) :]]
    steps = dict.fromkeys(name for card in cards for name in card.next)
    return Card(first.headline, tuple(lines), tuple(steps))


def _subspace_card(view: JobView) -> Card | None:
    written = view.last(events.SubspaceWritten)
    if written is None:
        return None
    f, raw = subspace_figures(written), written.figures
    count = _whole(raw.get("tasks_count"))
    bounded = _whole(raw.get("bounded_count")) or 0
    parts = [plural(count, "adapter")] if count else []
    parts.append(_size(f.nbytes))
    parts.append(f"{bounded} of {count} bounded" if bounded else "verified")
    if f.worst is not None:
        parts.append(f"worst {percent(f.worst)} ({clean(f.worst_task)})")
    stored = _whole(raw.get("input_bytes"))
    lines = [Line("path", tilde(f.path))]
    if count:
        lines.append(Line("tasks", _named_tasks(view, count)))
    ratio = f"{times(f.ratio)} smaller than the originals" if f.ratio is not None else ""
    before = raw.get("before")
    if isinstance(before, dict):
        lines += _before_lines(f, before, packing_words(raw.get("quantization")), ratio)
        notes = [e.text for e in view.all(events.Remark) if e.code == "quantize"]
        lines += [Line("note", clean(note)) for note in notes]
    else:
        of = f" ({size(stored)})" if stored else ""
        share = f.nbytes / stored if stored and f.nbytes is not None else None
        lines.append(Line("size", f"{_size(f.nbytes)}, {ratio}{of}", share))
        lines.append(Line("error", _errors(f.mean, f.worst, f.worst_task)))
        lines.append(Line("method", _method(view, f)))
    if bounded:
        words = "of these the adapters are gone or changed: their errors are upper bounds"
        lines.append(Line("bounds", f"{plural(bounded, 'task')}; {words}"))
    return Card(", ".join(parts), tuple(lines), NEXT_OF_SUBSPACE)


def _method(view: JobView, f: Figures) -> str:
    chosen = view.last(events.Chosen)
    return clean(chosen.label) if chosen is not None and chosen.k else clean(f.method)


def _before_lines(f: Figures, before: Mapping[str, Any], packing: str, ratio: str) -> list[Line]:
    """What packing changed: bytes, mean and worst error, before and after."""
    nbytes = _whole(before.get("nbytes"))
    smaller = ""
    if nbytes and f.nbytes and abs(nbytes / f.nbytes - 1) >= 0.005:
        smaller = f", {times(nbytes / f.nbytes)} smaller than before"
    share = f.nbytes / nbytes if nbytes and f.nbytes is not None else None
    was = packing_words(before.get("quantization"))
    changed = was or packing
    return [
        Line("packing", f"{was or 'not packed'} → {packing or 'not packed'}" if changed else ""),
        Line("size", f"{_size(nbytes)} → {_size(f.nbytes)}{smaller}", share),
        Line("", ratio),
        Line("mean", f"{percent(_number(before.get('mean_error')))} → {percent(f.mean)}"),
        Line("worst", f"{percent(_number(before.get('max_error')))} → {percent(f.worst)} "
                      f"({clean(f.worst_task)})"),
    ]  # fmt: skip


def _named_tasks(view: JobView, count: int) -> str:
    found = view.last(events.AdaptersFound)
    if found is None:
        return str(count)
    skipped = {skip.name for skip in view.all(events.AdapterSkipped)}
    names = [clean(name) for name in found.names if name not in skipped]
    if len(names) != count:
        return str(count)
    return f"{count}: {listed(names, NAMES)}"


def _merge_card(view: JobView) -> Card | None:
    merges = view.all(events.Merged)
    if not merges:
        return None
    first, verified = merges[0], {e.path: e.error for e in view.all(events.Verified)}
    words = f"{len(first.adapters)} adapters merged into one, {clean(first.method)}, "
    words += f"rank {first.rank}, {size(first.nbytes)}{_read_back(verified.get(first.path))}"
    lines: list[Line] = []
    for merge in merges:
        lines.append(Line("path", tilde(merge.path)))
        lines += _kept_lines(merge)
        cut = _number(merge.report.get("cut_error"))
        if cut:
            lines.append(Line("rank", f"cutting it changes dW by {percent(cut)}"))
    return Card(words, tuple(lines), ("view", "export", "push"))


def _kept_lines(merge: events.Merged) -> list[Line]:
    """What the merge keeps of each adapter: how far it moves along it, as Export's bars say it."""
    kept = merge.report.get("kept")
    rows = list(kept.values()) if isinstance(kept, dict) else list(kept or [])
    lines = []
    for number, (name, row) in enumerate(zip(merge.adapters, rows, strict=False)):
        if not isinstance(row, dict):
            continue
        strength, cosine = _number(row.get("strength")), _number(row.get("cosine"))
        alike = "" if cosine is None else f", cosine {cosine_text(cosine)}"
        words = f"{percent(strength)} of {_short(name)}{alike}"
        lines.append(Line("kept" if not number else "", words, strength))
    return lines


def _export_card(view: JobView) -> Card | None:
    exported = view.all(events.Exported)
    if not exported:
        return None
    verified = {e.path: e.error for e in view.all(events.Verified)}
    target = find_target(exported[0].target).label
    nbytes = sum(e.nbytes for e in exported)
    words = f"{plural(len(exported), 'adapter')} written for {target}, {size(nbytes)}"
    words += _read_back(max(verified.values())) if verified else ", not read back"
    lines = [Line("path", _places([e.path for e in exported]))]
    lines.append(Line("tasks", listed([clean(e.task) for e in exported], NAMES)))
    lines.append(Line("for", f"{target}, rank {_span([e.rank for e in exported if e.rank])}"))
    bases = {e.base for e in exported if e.base}
    if len(bases) == 1:
        lines.append(Line("base", clean(bases.pop())))
    if verified:
        count = f"{len(verified)} of {len(exported)}"
        worst = max(verified, key=lambda path: verified[path])
        off = off_words(verified[worst])
        lines.append(Line("read back", f"{count}; dW {off}"))
    same = sum(e.skipped for e in exported)
    if same:
        lines.append(Line("same", f"{same} were there already, unchanged"))
    served = [Served(e.task, e.path, e.rank, e.base) for e in exported]
    starts = start_lines(exported[0].target, served)
    if starts:
        lines.append(Line("start", clean(starts[0])))
    return Card(words, tuple(lines), ("view", "push"))


def _resize_card(view: JobView) -> Card | None:
    resized = view.all(events.Resized)
    if not resized:
        return None
    verified = {e.path: e.error for e in view.all(events.Verified)}
    nbytes = sum(e.nbytes for e in resized)
    errors = {e.task: _number(e.report.get("error")) or 0.0 for e in resized}
    worst = max(errors, key=lambda task: errors[task])
    words = f"{plural(len(resized), 'adapter')} resized, {size(nbytes)}, "
    words += f"worst {percent(errors[worst])} ({clean(worst)})"
    lines = [Line("path", _places([e.path for e in resized]))]
    mean = sum(errors.values()) / len(errors)
    lines.append(Line("error", _errors(mean, errors[worst], worst)))
    if verified:
        lines.append(Line("read back", f"{len(verified)}; dW {off_words(max(verified.values()))}"))
    return Card(words, tuple(lines), ("view", "push"))


def _convert_card(view: JobView) -> Card | None:
    converted = view.all(events.Converted)
    if not converted:
        return None
    nbytes = sum(e.nbytes for e in converted)
    whole = len(converted) == 1 and not converted[0].task
    what = "the subspace" if whole else plural(len(converted), "adapter")
    words = f"{what} written as {converted[0].to}, {size(nbytes)}"
    words += _read_back(max(e.error for e in converted))
    losses = [r.text for r in view.all(events.Remark) if r.code == "conversion-loss"]
    lines = [Line("path", _places([e.path for e in converted]))]
    lines += [Line("lost" if not n else "", clean(text)) for n, text in enumerate(losses[:NAMES])]
    return Card(words[0].upper() + words[1:], tuple(lines), ("view",))


def _push_card(view: JobView) -> Card | None:
    pushed = view.last(events.Pushed)
    if pushed is None:
        return None
    words = f"{plural(pushed.files, 'file')}, {size(pushed.nbytes)}, pushed to {clean(pushed.to)}"
    lines = (
        Line("page", clean(pushed.url)),
        Line("commit", clean(pushed.commit)),
        Line("from", tilde(pushed.path)),
    )
    return Card(words, lines)


def _pull_card(view: JobView) -> Card | None:
    pulled = view.last(events.Pulled)
    if pulled is None:
        return None
    words = f"{plural(pulled.files, 'file')}, {size(pulled.nbytes)}, pulled from the Hub"
    cached = pulled.nbytes - pulled.downloaded
    lines = [Line("path", tilde(pulled.path)), Line("from", clean(pulled.address))]
    if cached > 0:
        lines.append(Line("cache", f"{size(cached)} were in the Hub's cache already"))
    return Card(words, tuple(lines), ("view",))


def _add_card(view: JobView) -> Card | None:
    added = view.last(events.TaskAdded)
    if added is None:
        return None
    words = f"{clean(added.task)} added, error {percent(added.error)}; "
    words += f"{plural(added.tasks, 'task')}, {size(added.nbytes)}"
    lines = [
        Line("path", tilde(added.path)),
        Line("size", f"{size(added.before)} → {size(added.nbytes)}"),
    ]
    if added.lost:
        before, now = (_number(added.lost.get(key)) for key in ("before", "error"))
        name = clean(added.lost.get("task") or "")
        lines.append(Line("others", f"most lost by {name}: {percent(before)} → {percent(now)}"))
    else:
        lines.append(Line("others", "as they were"))
    return Card(words, tuple(lines), NEXT_OF_SUBSPACE)


def _remove_card(view: JobView) -> Card | None:
    removed = view.last(events.TasksRemoved)
    if removed is None:
        return None
    words = f"{plural(len(removed.removed), 'task')} removed; "
    words += f"{plural(removed.tasks, 'task')} left, {size(removed.nbytes)}"
    lines = (
        Line("path", tilde(removed.path)),
        Line("removed", listed([clean(name) for name in removed.removed], NAMES)),
        Line("size", f"{size(removed.before)} → {size(removed.nbytes)}"),
    )
    return Card(words, lines, NEXT_OF_SUBSPACE)


def _evaluate_card(view: JobView) -> Card | None:
    found = view.last(events.Evaluated)
    if found is None:
        return None
    mean, worst = (found.report.get(key) or {} for key in ("mean", "worst"))
    task = clean(worst.get("task") or "")
    kl, agreement = _number(worst.get("kl")), _number(mean.get("agreement"))
    words = f"Same next token {percent(agreement)} of the time; worst KL {nats(kl)} ({task})"
    least, control = _number(worst.get("agreement")), found.report.get("control")
    lines = [
        Line("path", tilde(found.path)),
        Line("base", tilde(found.base)),
        Line("texts", tilde(found.prompts)),
        Line("KL", f"{nats(_number(mean.get('kl')))} mean, {nats(kl)} worst ({task}) per token"),
        Line("top-1", f"{percent(agreement)} mean, {percent(least)} worst"),
        Line("loss", f"{_signed(mean.get('loss_change'))} mean, "
                     f"{_signed(worst.get('loss_change'))} worst"),
    ]  # fmt: skip
    if isinstance(control, dict):
        shuffled = nats(_number(control.get("mean_kl")))
        verdict = "worse, as it must be" if control.get("fails") else "no worse: says little"
        lines.append(Line("control", f"another task's adapter: KL {shuffled}, {verdict}"))
    return Card(words, tuple(lines), ("view", "export", "quantize", "push"))


def _spectra_card(view: JobView) -> Card | None:
    ready = view.last(events.SpectraReady)
    if ready is None or view.job.info.kind != "spectra":
        return None
    words = f"{plural(ready.tasks, 'adapter')} measured in {plural(ready.layers, 'module')}"
    return Card(words, (Line("path", tilde(ready.path)),), ("choose",))


_CARDS = (
    *(_subspace_card, _merge_card, _export_card, _resize_card, _convert_card, _push_card),
    *(_pull_card, _add_card, _remove_card, _evaluate_card, _spectra_card),
)


def subspace_of(view: JobView | None) -> str | None:
    """The subspace that a job has written, changed or looked at, if it is still there."""
    if view is None:
        return None
    kinds = (events.SubspaceWritten, events.TaskAdded, events.TasksRemoved, events.Evaluated)
    paths = [timed.event.path for timed in view.history if isinstance(timed.event, kinds)]
    return paths[-1] if paths and os.path.isdir(paths[-1]) else None


def works_on(view: JobView | None) -> str | None:
    """The subspace that a job takes, which is there while it works and afterwards."""
    if view is None:
        return None
    with suppress(VLoRAError):
        path = view.job.recipe().input.subspace
        return path if path and os.path.isdir(path) else None
    return None


def adapters_of(view: JobView | None) -> list[str]:
    """The adapters that a job has merged into one or resized: each is there to be exported."""
    if view is None:
        return []
    made = [event.path for event in view.all(events.Merged)]
    made += [event.path for event in view.all(events.Resized)]
    return [path for path in made if os.path.isdir(path)]


def card_text(card: Card, width: int, *, ascii_only: bool = False) -> Text:
    """A card as text: the headline, then a line a figure, with bars where one says more."""
    text = Text()
    text.append(f"{'OK' if ascii_only else '✓'} {card.headline}\n\n", "bold")
    on, off = ("#", ".") if ascii_only else ("━", "─")
    for line in card.lines:
        if not line.text:
            continue
        words = line.text.replace("→", "->") if ascii_only else line.text
        text.append(f"{line.label:<10}", "dim")
        bar = ""
        if line.share is not None and width >= 70:
            full = max(0, min(BAR, round(BAR * line.share)))
            bar = on * full
            text.append(bar, "bold")
            text.append(off * (BAR - full) + "  ", "dim")
        text.append(words + "\n")
    return text


def off_words(error: float) -> str:
    """What reading back has shown of dW."""
    return "the same" if error < EXACT else f"off by {percent(error)}"


def _read_back(error: float | None) -> str:
    return "" if error is None else f", read back: dW {off_words(error)}"


def _errors(mean: float | None, worst: float | None, task: str) -> str:
    return f"{percent(mean)} mean, {percent(worst)} worst ({clean(task)})"


def _places(paths: Sequence[str]) -> str:
    if len(paths) == 1:
        return tilde(paths[0])
    return f"{tilde(os.path.commonpath([str(Path(path).parent) for path in paths]))}/…"


def _span(ranks: Sequence[int]) -> str:
    found = sorted(set(ranks))
    return "-" if not found else str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"


def _short(name: str) -> str:
    """An adapter by the end of its path."""
    return clean(name.rstrip("/").rpartition("/")[2] or name)


def _size(nbytes: int | None) -> str:
    return "" if nbytes is None else size(nbytes)


def _signed(value: Any) -> str:
    number = _number(value)
    return "-" if number is None else f"{number:+.4f}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

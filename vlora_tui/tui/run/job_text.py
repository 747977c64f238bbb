"""Jobs as text: one line each for the table, and the details of one of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.text import Text

from vlora_tui.pipeline import events
from vlora_tui.tui.core.bad_adapters import can_go_on, names_of
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.text import advice, clean, in_words, plural, tilde
from vlora_tui.utils.formatting import how_fast, how_much, percent, size, stage_words, times

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vlora_engine.compression_target import CompressionTarget
    from vlora_tui.jobs import JobView
    from vlora_tui.tui.core.session import Session

TONES = {
    "running": "accent",
    "queued": "muted",
    "finished": "good",
    "failed": "error",
    "cancelled": "warning",
    "vanished": "error",
    "elsewhere": "muted",
}
BAR = 30
LINES = 200
EXACT = 1e-12  # a relative error below that is the rounding of the comparison itself
Cell = tuple[str, str]


def row(view: JobView, method: str = "", nbytes: str = "", error: str = "") -> list[Cell]:
    """The cells of a job: state, what, method, size, error, how far, when."""
    return [
        (str(view.state), TONES.get(str(view.state), "")),
        (clean(view.title), ""),
        (clean(method), ""),
        (nbytes, ""),
        (error, ""),
        (how_far(view), "muted"),
        (clock(view.job.info.created), "muted"),
    ]


def how_far(view: JobView) -> str:
    """The stage under way, or how long it took."""
    if view.state.is_over:
        if view.begun is not None and view.ended is not None:
            return duration(view.ended - view.begun)
        return ""
    if view.ahead:
        return f"waiting for {plural(len(view.ahead), 'job')}"
    if view.progress is None:
        return "starting"
    left = "" if view.eta is None else f", {duration(view.eta)} left"
    at = view.progress
    return f"{stage_words(at.stage)} {how_much(at.stage, at.done, at.total)}{left}"


def details(view: JobView, *, ascii_only: bool = False) -> Text:
    """All there is to say about one job, but what it came to: that is its card."""
    text = Text()
    text.append(clean(view.title), "bold")
    text.append(f"   {view.job.id}\n", "dim")
    _say_progress(text, view, ascii_only)
    for line in _last_lines(view):
        text.append(line + "\n")
    if view.error is not None:
        _say_error(text, view.error)
        if can_go_on(view):
            words = keyed("<run.leave_out> skips what cannot be used, and starts again.\n")
            text.append(words, "bold")
    if str(view.state) == "vanished":
        text.append("Its process ended without a result. ", "bold")
        text.append(keyed("<run.resume> continues from the modules that are built.\n"))
    for line in view.job.log_tail(6) if view.error is not None else []:
        text.append(f"  log  {clean(line)}\n", "dim")
    text.append(f"log: {tilde(view.job.log_path)}", "dim")
    return text


def _last_lines(view: JobView) -> list[str]:
    """What the job said, a line each; of a job that said much the last of it."""
    lines: list[str] = []
    for timed in reversed(view.history):
        if len(lines) == LINES:
            lines.append("          earlier messages are in events.jsonl, beside the log")
            break
        line = event_line(timed.event)
        if line:
            lines.append(line)
    return lines[::-1]


def _say_progress(text: Text, view: JobView, ascii_only: bool) -> None:
    progress = view.progress
    if progress is None or view.state.is_over or not progress.total:
        return
    full = round(BAR * progress.done / progress.total)
    on, off = ("#", ".") if ascii_only else ("━", "─")
    text.append(f"{stage_words(progress.stage)} ")
    text.append(on * full, "bold")
    text.append(off * (BAR - full), "dim")
    text.append(f" {how_much(progress.stage, progress.done, progress.total)}")
    if view.rate:
        text.append(f"  {how_fast(progress.stage, view.rate)}")
    if view.eta is not None:
        text.append(f"  {duration(view.eta)} left")
    if view.memory:
        text.append(f"  memory {size(view.memory)}")
    silent = view.silent_for
    if silent is not None:
        text.append(f"  not responding for {duration(silent)}", "bold")
    text.append("\n")


def event_line(event: events.Event) -> str | None:
    """One event as a line; None for those that say nothing to a reader."""
    match event:
        case events.AdaptersFound():
            found = plural(len(event.names), "adapter")
            return f"found     {found}, {plural(event.modules, 'module')}, {size(event.nbytes)}"
        case events.AdapterSkipped():
            return f"skipped   {clean(event.name)}: {clean(event.reason)}"
        case events.Checked():
            return f"checked   {event.good} ok, {len(event.bad)} bad"
        case events.SpectraReady():
            how = "from the cache" if event.reused else "measured"
            return f"spectra   {how}: {plural(event.layers, 'module')}"
        case events.Chosen():
            errors = f"{percent(event.mean_error)} mean, {percent(event.max_error)} worst"
            return f"chosen    {event.label}: ~{size(event.nbytes)}, error ~{errors}"
        case events.SubspaceWritten():
            return f"written   {tilde(event.path)}{_measured(event.figures)}"
        case events.Exported():
            how = "skipped   " if event.skipped else "exported  "
            return f"{how}{clean(event.task)} to {tilde(event.path)}, {size(event.nbytes)}"
        case events.Verified():
            off = "the same" if event.error < EXACT else f"off by {percent(event.error)}"
            return f"verified  {clean(event.task)}: dW {off}"
        case events.Merged():
            return f"merged    {event.method}, rank {event.rank}, to {tilde(event.path)}"
        case events.MergePreviewed():
            return f"previewed {event.method} of {plural(len(event.adapters), 'adapter')}"
        case events.Resized():
            error = event.report.get("error")
            off = f", error {percent(error)}" if isinstance(error, float) else ""
            return f"resized   {clean(event.task)} to {tilde(event.path)}{off}"
        case events.Converted():
            how = "skipped   " if event.skipped else "converted "
            what = clean(event.task) or "the subspace"
            return f"{how}{what} to {event.to}: {tilde(event.path)}, {size(event.nbytes)}"
        case events.Pushed():
            files = plural(event.files, "file")
            return f"pushed    {files}, {size(event.nbytes)}, to {clean(event.to)}"
        case events.TaskAdded():
            return f"added     {clean(event.task)}: error {percent(event.error)}"
        case events.TasksRemoved():
            return f"removed   {clean(', '.join(event.removed))}"
        case events.Evaluated():
            return f"evaluated on {tilde(event.base)}"
        case events.Pulled():
            return f"pulled    {clean(event.address)} to {tilde(event.path)}, {size(event.nbytes)}"
        case events.Finished():
            return f"finished  in {duration(event.seconds)}"
        case events.Cancelled():
            return f"stopped   {clean(event.text)}"
        case events.Remark():
            where = "" if event.where in event.text else f": {tilde(event.where)}"
            return f"note      {clean(in_words(event.text)).rstrip('.')}{where}"
    return None


def _measured(figures: dict[str, object]) -> str:
    mean, worst, nbytes = (figures.get(k) for k in ("mean_error", "max_error", "nbytes"))
    if not (isinstance(mean, float) and isinstance(worst, float) and isinstance(nbytes, int)):
        return ""
    return f": {size(nbytes)}, error {percent(mean)} mean, {percent(worst)} worst"


def _say_error(text: Text, error: dict[str, object]) -> None:
    text.append(f"{clean(in_words(str(error.get('what', 'failed'))))}\n", "bold")
    for key, label in (
        ("where", "where"),
        ("expected", "expected"),
        ("found", "found"),
        ("remedy", "fix"),
    ):
        words = clean(error.get(key) or "")
        words = advice(words) if key == "remedy" else in_words(words)
        if words:
            text.append(f"  {label}: {words}\n")
    nested = error.get("errors")
    for error in nested if isinstance(nested, list) else []:
        if isinstance(error, dict):
            text.append(f"  - {clean(error.get('what'))} {clean(error.get('where') or '')}\n")


def review(session: Session) -> Text:
    """What the key for starting is going to do."""
    text = Text()
    chosen = session.included
    if not chosen:
        text.append("Nothing is marked yet.\n", "bold")
        text.append(
            keyed(
                "<step.adapters> goes to Adapters; <adapters.mark> marks one, <adapters.group> "
                "its whole group."
            )
        )
        return text
    groups = len(session.groups)
    total = size(sum(info.nbytes for info in chosen))
    text.append(f"compress  {plural(len(chosen), 'adapter')}, {total}\n")
    out = [info.path for info in session.chosen if str(info.path) in session.left_out]
    if out:
        text.append(f"skipped   {names_of(session, map(str, out))}\n")
    undecided = session.undecided
    if undecided:
        asks = keyed("cannot be used: <run.start> asks what to do")
        words = f"          {names_of(session, undecided)} {asks}\n"
        text.append(words, "bold")
    if groups > 1:
        text.append(
            f"          They belong to {groups} groups that are not compatible: "
            "mark one group at a time.\n",
            "bold",
        )
    text.append(f"method    {session.choosing.method}\n")
    text.append(f"target    {goal_words(session.choosing)}\n")
    text.append(f"packing   {packing_of(session)}\n")
    coded = session.choosing.is_coded
    figures = session.cached_figures() if coded else session.figures()  # a key waits for no solving
    if figures is None:
        text.append(
            keyed("expected  <step.choose> shows what it costs before it is built\n"), "dim"
        )
    elif (p := figures.prediction) is not None:
        about, bytes_about = "" if figures.is_exact else "~", "~" if coded else ""
        text.append(
            f"expected  {bytes_about}{size(p.nbytes)}, {times(p.ratio)} smaller than the "
            f"originals\n          error {about}{percent(p.mean_error)} mean, "
            f"{about}{percent(p.max_error)} worst ({clean(p.worst_task)})\n"
        )
    elif session.spectra is None:
        words = "expected  not measured yet; <step.choose> shows what it costs before it is built\n"
        text.append(keyed(words), "dim")
    else:
        text.append(f"expected  {clean(figures.problem)}\n", "bold")
    for export in session.exports:
        text.append(f"export    {', '.join(export.tasks) or 'all tasks'} to {tilde(export.path)}\n")
    return text


def packing_of(session: Session) -> str:
    """How the numbers are going to be stored."""
    target = session.choosing
    packed = target.quantization
    if packed is not None:
        return packing_words(packed.as_json())
    if target.is_coded:
        return f"none; {target.method} chooses bits itself"
    return "none" if target.dtype == "auto" else f"none, {target.dtype}"


def packing_words(row: Mapping[str, Any] | None) -> str:
    """How numbers are packed, as it stands in an index: ``int8, blocks of 64``; empty if not."""
    if not row:
        return ""
    name = "nf4" if row.get("method") == "nf4" else f"int{row.get('bits', 8)}"
    double = ", double quantization" if row.get("double_quant") else ""
    loadings = ", loadings int8" if row.get("loadings") else ""
    return f"{name}, blocks of {row.get('block_size', 64)}{double}{loadings}"


def goal_words(target: CompressionTarget) -> str:
    """What is aimed at, as one says it, with the layers that have a k of their own."""
    name, value = target.goal
    words = {
        "k": f"k = {value:.0f} for every module",
        "variance": f"at least {percent(value)} of the variance",
        "max_error": f"max error {percent(value)} per task",
        "mean_error": f"mean error {percent(value)}",
        "budget": f"at most {size(value)} on disk",
    }
    if not target.layers or target.k_range is None:
        return words[name]
    least, most = target.k_range
    whose = "its" if len(target.layers) == 1 else "their"
    own = f"{plural(len(target.layers), 'module')} with a k of {whose} own"
    if name == "k":
        return f"k {least}-{most}, {own}"
    return f"{words[name]}; {own}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def clock(when: float) -> str:
    """When it was: the time today, else the date."""
    then = time.localtime(when)
    return time.strftime("%H:%M" if then[:3] == time.localtime()[:3] else "%d %b", then)

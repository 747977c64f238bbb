"""Data for Choose k's second view: size against error, sharing, and losses per adapter.

No widget. The curves are worked out in a thread, one after the other; of `auto` and `own` a ladder
of forecasts is kept, between which any target can be told at once while a key is held down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from vlora_engine.codec.forecast import EVERYBODY, Outlook
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import VLoRAError
from vlora_engine.spectra.choose import Prediction
from vlora_engine.spectra.size_curves import CODED, PLAIN, curve_of, ladder
from vlora_engine.spectra.sizes import factor_bytes_16, input_bytes, rest_bytes
from vlora_engine.utils.ranking import ranked
from vlora_tui.pipeline.forecast import Coded, Loss, losses_of_choice
from vlora_tui.tui.charts.size_plot import SizeData, SizeLine, SizeMarks
from vlora_tui.tui.choose.text import percent, target_words
from vlora_tui.tui.core.session import Figures, Session
from vlora_tui.tui.text import clean, plural
from vlora_tui.utils.formatting import listed, size

if TYPE_CHECKING:
    from vlora_engine.spectra.tables import Spectra
    from vlora_tui.tui.charts.variance_plot import Array

KINDS = {
    "delta": "share one basis a side (delta)",
    "klt": "share what is common to them (klt)",
}
NAMED = 6  # adapters that are named in a line
FEW = 3  # layers that are named and not counted

_serials = count()  # charts are cached by them: the versions of two sessions may be alike


@dataclass(frozen=True)
class Ladder:
    """Forecasts of one method from coarse to fine: bytes (P,), errors (P,), missed energy (P,)."""

    nbytes: Array
    mean: Array
    worst: Array
    missed: Array


class Sizes:
    """Everything about size against error that is worked out once for a version of the spectra."""

    def __init__(self, spectra: Spectra, version: tuple[int, int]) -> None:
        self.spectra = spectra
        self.version = version
        self.is_measured_now = False  # a job is at it; the view says so
        self._was_read = False
        self.problem = ""  # why the tables cannot be read
        self.waiting = [*CODED, *spectra.methods, *PLAIN]  # what is still to be worked out
        self._serial = next(_serials)
        self._lines: dict[str, tuple[Array, Array, Array]] = {}  # ratio, mean, worst
        self._ladders: dict[str, Ladder] = {}
        self._climbing: Iterator[tuple[float, float, float, float]] | None = None
        self._rungs: list[tuple[float, float, float, float]] = []
        self._data: dict[tuple[bool, int], SizeData] = {}
        self._losses: tuple[Figures | None, tuple[Loss, ...]] = (None, ())

    @property
    def outlook(self) -> Outlook | None:
        """The tables of the codec, once they are loaded."""
        return self.spectra.codec

    @property
    def is_unread(self) -> bool:
        """Whether the tables are there and nobody has read them yet."""
        return not self._was_read and self.spectra.complete

    @property
    def has_more(self) -> bool:
        """Whether there are curves still to be worked out."""
        return self.outlook is not None and bool(self.waiting)

    # in a thread

    def read(self) -> None:
        """Read the tables of the codec, if they are there."""
        try:
            if self.spectra.complete:
                self.spectra.outlook()
        except VLoRAError as error:
            self.problem = str(error)
        self._was_read = self.spectra.complete

    def work(self, stop: Callable[[], bool]) -> bool:
        """Work out the next curve; whether there was one. ``stop`` puts it off until later."""
        outlook = self.outlook
        if outlook is None or not self.waiting:
            return False
        method = self.waiting[0]
        if method in CODED:
            if not self._climb(outlook, method, stop):
                return True
        else:
            points = curve_of(self.spectra, outlook, method).points
            rows = [(p.nbytes, p.mean_error, p.max_error) for p in points]
            nbytes, mean, worst = np.array(rows, dtype=np.float64).reshape(-1, 3).T
            self._lines[method] = self._ratios(nbytes), mean, worst
        self.waiting = self.waiting[1:]
        return True

    def _climb(self, outlook: Outlook, method: str, stop: Callable[[], bool]) -> bool:
        """Go on with a method's ladder; whether it is done."""
        if self._climbing is None:
            self._climbing, self._rungs = _rungs(outlook, method), []
        for rung in self._climbing:
            self._rungs.append(rung)
            if stop():
                return False
        self._climbing = None
        nbytes, mean, worst, missed = np.array(self._rungs).T
        # From coarse to fine: where more bytes buy nothing, the finest of equal rungs counts.
        self._ladders[method] = Ladder(nbytes[::-1], mean[::-1], worst[::-1], missed[::-1])
        coded = mean < 1 - 1e-6  # of those that keep nothing one is enough
        coded[np.flatnonzero(~coded)[:1]] = True
        ratio = np.maximum.accumulate(self._ratios(nbytes))
        self._lines[method] = ratio[coded], mean[coded], worst[coded]
        return True

    def _ratios(self, nbytes: Array) -> Array:
        payload = np.maximum(1.0, nbytes - self._rest)
        return np.asarray(factor_bytes_16(self.spectra) / payload)

    @property
    def _rest(self) -> int:
        return rest_bytes(self.spectra)

    # the chart

    def data(self, *, worst: bool) -> SizeData | None:
        """The curves that are known; the same object until there are more."""
        if self.outlook is None:
            return None
        key = (worst, len(self.waiting))
        if key not in self._data:
            at = 2 if worst else 1
            lines = {name: (curve[0], curve[at]) for name, curve in self._lines.items()}
            self._data = {
                key: SizeData(
                    version=(self._serial, *key),
                    lines=tuple(
                        SizeLine(m, *curve) for m, curve in lines.items() if m not in PLAIN
                    ),
                    points=tuple(
                        (m, float(curve[0][0]), float(curve[1][0]))
                        for m, curve in lines.items()
                        if m in PLAIN
                    ),
                    waiting=tuple(m for m in self.waiting if m not in PLAIN),
                    factor_bytes=factor_bytes_16(self.spectra),
                    rest_bytes=self._rest,
                    worst=worst,
                )
            }
        return self._data[key]

    def marks(self, session: Session, figures: Figures | None, *, worst: bool) -> SizeMarks:
        """Where the present choice and the pins lie, and what is aimed at."""
        if self.outlook is None:
            return SizeMarks(note=self.note())
        name, value = session.choosing.goal
        goal = {"max_error": value, "mean_error": value, "variance": max(0.0, 1 - value) ** 0.5}
        pins = [session.cached_figures(pin) for pin in session.pins]
        placed = [p.prediction for p in pins if p is not None and p.prediction is not None]
        prediction = figures.prediction if figures is not None else None
        return SizeMarks(
            ratio=None if prediction is None else prediction.codec_ratio,
            error=0.0 if prediction is None else _error(prediction, worst),
            about=figures is None or not figures.is_exact,
            goal_error=goal.get(name),
            goal_words=target_words(session.choosing),
            pins=tuple((p.codec_ratio, _error(p, worst)) for p in placed),
        )

    def note(self) -> str:
        """What is said where there is no curve."""
        missing = len(self.spectra.layer_names) - len(self.spectra.layers)
        if missing:
            return f"{plural(missing, 'layer')} to measure first"
        if self.problem:
            return "its tables cannot be read: R measures again"
        if not self._was_read:
            return "reading the tables"
        if self.is_measured_now:
            return "being measured"
        return "not measured: R measures again"

    def title(self, choosing: CompressionTarget, *, worst: bool) -> str:
        """What the chart is about."""
        whose = "worst adapter" if worst else "mean"
        return f"Error of dW against codec ratio · {whose} · {choosing.method}"

    # a target between two forecasts

    def estimate(self, choosing: CompressionTarget) -> Figures | None:
        """About what a choice comes to, at once; None where that is not known yet."""
        rungs = self._ladders.get(choosing.method)
        if rungs is None:
            return None
        name, value = choosing.goal
        if name == "budget":
            nbytes = value
            mean, worst = (_between(nbytes, rungs.nbytes, e) for e in (rungs.mean, rungs.worst))
        elif name == "max_error":  # every adapter just keeps to it, so that it is the mean, too
            mean = worst = value
            nbytes = _between(value, rungs.mean, rungs.nbytes)
        else:
            goal_values = rungs.missed if name == "variance" else rungs.mean
            goal_value = 1 - value if name == "variance" else value
            nbytes, mean, worst = (
                _between(goal_value, goal_values, curve)
                for curve in (rungs.nbytes, rungs.mean, rungs.worst)
            )
        return Figures(
            choosing,
            estimate=Prediction(
                mean_error=mean,
                max_error=worst,
                worst_task="",
                variance=1 - mean**2,
                nbytes=int(nbytes),
                ratio=input_bytes(self.spectra) / max(1.0, nbytes),
                codec_ratio=float(self._ratios(np.array([nbytes]))[0]),
                task_errors={},
                layer_errors={},
            ),
        )

    # who shares, who loses

    def sharing(
        self, subject: Figures | None, methods: Sequence[Figures | None], short: dict[str, str]
    ) -> Text:
        """What `auto` does for each group of related adapters, and why.

        Args:
            subject: What is known of `auto`. methods: Of all methods at the same bytes.
        """
        if self.outlook is None:
            return Text(self._lacking())
        if subject is None or subject.coded is None:
            return Text("Working it out." if subject is None else clean(subject.problem or ""))
        return methods_text(methods).append_text(sharing_text(subject.coded, short))

    def losses(self, figures: Figures | None) -> tuple[Loss, ...]:
        """What each adapter loses, the one that loses most first."""
        if figures is None or (figures.coded is None and figures.choice is None):
            return ()
        if self._losses[0] is not figures:
            losses: tuple[Loss, ...] = ()
            if figures.coded is not None:
                losses = figures.coded.losses
            elif figures.choice is not None:
                losses = losses_of_choice(self.spectra, figures.choice)
            ordered = ranked(losses, lambda loss: loss.error, lambda loss: loss.task)
            self._losses = figures, tuple(ordered)
        return self._losses[1]

    def _lacking(self) -> str:
        """Why nothing can be said about coding, and what mends it."""
        if not self.spectra.complete:
            return "What coding costs is measured after the last layer."
        if self.problem:
            return f"{clean(self.problem)} (R)"
        if not self._was_read:
            return "Reading the tables of the codec."
        if self.is_measured_now:
            return "What coding costs is being measured, after the layers. 3 shows the job."
        return "What coding costs was not measured. R measures the adapters again."


def sharing_text(coded: Coded, short: dict[str, str]) -> Text:
    """The groups and what they share, then those that share nothing."""
    text = Text()
    total = len(coded.kinds)
    for group in coded.groups:
        whose = "everybody" if group.group == EVERYBODY else f"cluster {group.group}"
        text.append(f"{whose}: ", "bold")
        text.append(f"{_names(group.tasks)}\n")
        if group.cosine is not None and group.group != EVERYBODY:
            text.append(f"  related: cosine of A at least {group.cosine:.2f}\n")
        for kind, layers in group.layers.items():
            text.append(f"  {KINDS.get(kind, kind)} {_where(layers, total, short)}\n")
        if group.layers:
            text.append(f"  saves ~{size(group.saved_bytes)} against each by itself\n")
        else:
            text.append("  share nothing: at this target each by itself costs less\n")
    if not any(group.layers for group in coded.groups):
        text.append("Sharing pays nowhere at this target: ", "bold")
        text.append("every adapter is coded by itself, its directions with the bits they earn.")
    elif coded.alone:
        text.append("by itself: ", "bold")
        text.append(_names(coded.alone))
        text.append("\n  share nothing with another that would pay")
    text.rstrip()
    if coded.shared_bytes:
        text.append(f"\nwhat is shared takes ~{size(coded.shared_bytes)} of the bytes")
    return text


def methods_text(methods: Sequence[Figures | None]) -> Text:
    """The mean errors of all methods at the same bytes, the least first."""
    predicted = [
        (figures.prediction, figures)
        for figures in methods
        if figures is not None and figures.prediction
    ]
    text = Text()
    text.append("at these bytes: ", "bold")
    text.append(
        ", ".join(
            f"{figures.choosing.method} "
            f"{'' if figures.is_exact else '~'}{percent(prediction.mean_error)}"
            for prediction, figures in ranked(
                predicted, lambda pair: pair[0].mean_error, largest=False
            )
        )
    )
    return text.append("\n")


def loss_cells(loss: Loss, short: dict[str, str], *, exact: bool) -> list[tuple[str, str]]:
    """The cells of an adapter's row."""
    about = "" if exact else "~"
    return [
        (clean(loss.task), ""),
        (about + percent(loss.error), ""),
        ("-" if loss.nbytes is None else about + size(loss.nbytes), ""),
        (clean(short.get(loss.worst_layer, loss.worst_layer)), "muted"),
        (about + percent(loss.worst_error), "muted"),
    ]


def _rungs(outlook: Outlook, method: str) -> Iterator[tuple[float, float, float, float]]:
    for found in ladder(outlook, method):
        errors = found.errors
        yield (
            outlook.nbytes(found),
            float(errors.mean()),
            float(errors.max(initial=0)),
            float(np.square(errors).mean()),
        )


def _between(x: float, xs: Array, values: Array) -> float:
    """``values`` where ``xs`` has the value wanted, straight in logarithms between two rungs."""
    order = np.argsort(xs, kind="stable")
    log_xs, log_values = (np.log(np.maximum(a[order], 1e-12)) for a in (xs, values))
    return float(np.exp(np.interp(np.log(max(x, 1e-12)), log_xs, log_values)))


def _error(prediction: Prediction, worst: bool) -> float:
    return prediction.max_error if worst else prediction.mean_error


def _names(tasks: tuple[str, ...]) -> str:
    return listed([clean(task) for task in tasks], NAMED)


def _where(layers: tuple[str, ...], total: int, short: dict[str, str]) -> str:
    if len(layers) == total:
        return f"in all {plural(total, 'layer')}"
    if len(layers) <= FEW:
        return "in " + ", ".join(short.get(name, clean(name)) for name in layers)
    return f"in {len(layers)} of {plural(total, 'layer')}"

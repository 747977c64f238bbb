"""Data for Choose k about size against error: curves, sharing, and losses per adapter.

No widget. The curves are worked out in a thread, one after the other; of `auto` and `own` a ladder
of forecasts is kept, between which any target can be told at once while a key is held down. While
adapters are measured it is of the layers that are there, each adapter coded by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

from vlora_engine.codec.forecast import EVERYBODY, Forecast, RateTables
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import VLoRAError
from vlora_engine.spectra.byte_curves import STEPS, ByteCurves, OwnRates, curves_of
from vlora_engine.spectra.choose import Prediction
from vlora_engine.spectra.size_curves import CODED, PLAIN, curve_of, ladder
from vlora_engine.spectra.sizes import factor_bytes_16, input_bytes, rest_bytes
from vlora_engine.utils.naming import cosine_text
from vlora_engine.utils.ranking import ranked
from vlora_tui.pipeline.forecast import Coded, Loss, losses_of_choice
from vlora_tui.tui.charts.size_plot import SizeData, SizeLine, SizeMarks
from vlora_tui.tui.choose.text import bar, target_words
from vlora_tui.tui.core.session import Figures, Session
from vlora_tui.tui.key_names import key, keyed
from vlora_tui.tui.text import clean, plural, problem_words
from vlora_tui.utils.formatting import listed, percent, size

if TYPE_CHECKING:
    from vlora_engine.spectra.tables import Spectra
    from vlora_tui.tui.charts.variance_plot import Array

KINDS = {
    "delta": "shared input/output basis",
    "klt": "shared rotation (KLT)",
}
NAMED = 6  # adapters that are named in a line
FEW = 3  # layers that are named and not counted
BAR = 10  # columns of a bar

_serials = count()  # charts are cached by them: the versions of two sessions may be alike


class Sizes:
    """Everything about size against error that is worked out once for what is measured.

    Args:
        rates: What layers cost by themselves; kept while more of them arrive.
    """

    def __init__(
        self, spectra: Spectra, version: tuple[int, int], rates: OwnRates | None = None
    ) -> None:
        self.spectra = spectra
        self.version = version
        self.is_measured_now = False  # a job is at it; the view says so
        self.problem = ""  # why the tables cannot be read
        self.waiting = [*CODED, *spectra.ready_methods, *PLAIN]  # what is still to be worked out
        self._was_read = False
        self._rates = rates or OwnRates()
        self._serial = next(_serials)
        self._lines: dict[str, tuple[Array, Array, Array]] = {}  # ratio, mean, worst
        self._curves: dict[str, ByteCurves] = {}
        self._so_far: ByteCurves | None = None  # of `own`, which stands for `auto` until then
        self._earlier: ByteCurves | None = None  # of fewer layers
        self._climbing: Iterator[Forecast] | None = None
        self._rungs: list[Forecast] = []
        self._data: dict[tuple[bool, int], SizeData] = {}
        self._losses: tuple[Figures | None, tuple[Loss, ...]] = (None, ())

    @property
    def rate_tables(self) -> RateTables | None:
        """The tables of the codec, once they are loaded."""
        return self.spectra.codec

    @property
    def is_unread(self) -> bool:
        """Whether the tables are there and nobody has read them yet."""
        return not self._was_read

    @property
    def has_more(self) -> bool:
        """Whether there are curves still to be worked out."""
        return self.rate_tables is not None and bool(self.waiting)

    def add_methods(self) -> None:
        """Take note of methods whose tables have come meanwhile."""
        known = {*self._lines, *self.waiting}
        new = [method for method in self.spectra.ready_methods if method not in known]
        self.waiting = [*self.waiting, *new]

    def take_over(self, before: Sizes) -> None:
        """Show what was known of fewer layers until more is worked out."""
        self._earlier = before._so_far or before._earlier

    def curves(self, method: str) -> ByteCurves | None:
        """What a coded method keeps at each size, as well as it is known."""
        return self._curves.get(method, self._so_far or self._earlier)

    # in a thread

    def read(self) -> None:
        """Read the tables of the codec, or what is there of them."""
        try:
            rate_tables = self.spectra.rate_tables_so_far()
            if rate_tables is not None and self._so_far is None:
                whole = rate_tables is self.spectra.codec
                names = [layer.name for layer in rate_tables.layers]
                part = 1.0 if whole else self.spectra.measured_part(names)
                self._so_far = self._rates.curves(rate_tables, part)
                if whole:
                    self._curves["own"] = self._so_far
        except VLoRAError as error:
            self.problem = problem_words(error)
        self._was_read = True

    def work(self, stop: Callable[[], bool], first: str = "") -> bool:
        """Work out the next curve; whether there was one. ``stop`` puts it off until later.

        Args:
            first: A method that is wanted before the others.
        """
        rate_tables = self.rate_tables
        if rate_tables is None or not self.waiting:
            return False
        if self._climbing is None and first in self.waiting:
            self.waiting = [first, *(m for m in self.waiting if m != first)]
        method = self.waiting[0]
        if method in CODED:
            if method not in self._curves and not self._climb(rate_tables, method, stop):
                return True
            self._take_line(method, self._curves[method])
        else:
            points = curve_of(self.spectra, rate_tables, method).points
            rows = [(p.nbytes, p.mean_error, p.max_error) for p in points]
            nbytes, mean, worst = np.array(rows, dtype=np.float64).reshape(-1, 3).T
            self._lines[method] = self._ratios(nbytes), mean, worst
        self.waiting = self.waiting[1:]
        return True

    def _climb(self, rate_tables: RateTables, method: str, stop: Callable[[], bool]) -> bool:
        """Go on with a method's ladder; whether it is done."""
        if self._climbing is None:
            self._climbing, self._rungs = ladder(rate_tables, method, float(STEPS[-1])), []
        for rung in self._climbing:
            self._rungs.append(rung)
            if stop():
                return False
        self._climbing = None
        names = (layer.name for layer in rate_tables.layers)
        self._curves[method] = curves_of(names, rate_tables, self._rungs)
        return True

    def _take_line(self, method: str, curves: ByteCurves) -> None:
        """The line of a coded method, from fine to coarse."""
        nbytes, mean, worst = (a[::-1] for a in (curves.nbytes, curves.mean, curves.worst))
        coded = mean < 1 - 1e-6  # of those that keep nothing one is enough
        coded[np.flatnonzero(~coded)[:1]] = True
        ratio = np.maximum.accumulate(self._ratios(nbytes))
        self._lines[method] = ratio[coded], mean[coded], worst[coded]

    def _ratios(self, nbytes: Array) -> Array:
        payload = np.maximum(1.0, nbytes - self._rest)
        return np.asarray(factor_bytes_16(self.spectra) / payload)

    @property
    def _rest(self) -> int:
        return rest_bytes(self.spectra)

    # the chart

    def data(self, *, worst: bool) -> SizeData | None:
        """The curves that are known; the same object until there are more."""
        if self.rate_tables is None:
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
        if self.rate_tables is None:
            return SizeMarks(note=self.note())
        name, value = session.choosing.goal
        goal = {"max_error": value, "mean_error": value, "variance": max(0.0, 1 - value) ** 0.5}
        pins = [session.cached_figures(pin) for pin in session.pins]
        placed = [
            (pin.choosing.method, pin.prediction)
            for pin in pins
            if pin is not None and pin.prediction is not None
        ]
        prediction = figures.prediction if figures is not None else None
        return SizeMarks(
            ratio=None if prediction is None else prediction.codec_ratio,
            error=0.0 if prediction is None else _error(prediction, worst),
            about=figures is None or not figures.is_exact,
            goal_error=goal.get(name),
            goal_words=target_words(session.choosing),
            name=session.choosing.method,
            pins=tuple((p.codec_ratio, _error(p, worst), method) for method, p in placed),
        )

    def note(self) -> str:
        """What is said where there is no curve."""
        missing = len(self.spectra.layer_names) - len(self.spectra.layers)
        if missing:
            return f"{plural(missing, 'module')} still to measure"
        if self.problem:
            return keyed("cannot be read: <choose.again> measures again")
        if not self._was_read:
            return "Loading…"
        if self.is_measured_now:
            return "Measuring…"
        return keyed("not measured: <choose.again> measures")

    def title(self, *, worst: bool) -> str:
        """What the chart is about."""
        whose = "worst adapter" if worst else "mean"
        return f"Size against error · {whose} · x of 16 bit"

    # a target between two forecasts

    def estimate(self, choosing: CompressionTarget) -> Figures | None:
        """About what a choice comes to, at once; None where that is not known yet."""
        curves = self.curves(choosing.method) if choosing.is_coded else None
        if curves is None:
            return None
        name, value = choosing.goal
        if name == "budget":
            nbytes = value
            mean, worst = (_between(nbytes, curves.nbytes, e) for e in (curves.mean, curves.worst))
        elif name == "max_error":  # every adapter just keeps to it, so that it is the mean, too
            mean = worst = value
            nbytes = _between(value, curves.mean, curves.nbytes)
        else:
            goal_values = curves.missed if name == "variance" else curves.mean
            goal_value = 1 - value if name == "variance" else value
            nbytes, mean, worst = (
                _between(goal_value, goal_values, curve)
                for curve in (curves.nbytes, curves.mean, curves.worst)
            )
        errors = curves.at(nbytes, curves.errors).tolist()
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
                layer_errors=dict(zip(curves.layers, errors, strict=True)),
            ),
            so_far=self.rate_tables is None,
        )

    # who shares, who loses

    def sharing(
        self, subject: Figures | None, methods: Sequence[Figures | None], short: dict[str, str]
    ) -> Text:
        """What `auto` does for each group of related adapters, and why.

        Args:
            subject: What is known of `auto`. methods: Of all methods at the same bytes.
        """
        if self.rate_tables is None:
            return Text(self._lacking())
        if subject is None or subject.coded is None:
            return Text("Calculating…" if subject is None else clean(subject.problem or ""))
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
            return "Sharing is measured after the last module."
        if self.problem:
            return f"{clean(self.problem)} ({key('choose.again')} measures again)"
        if not self._was_read:
            return "Loading…"
        if self.is_measured_now:
            return keyed("Measuring what sharing saves… (<step.run> shows the job)")
        return keyed("Sharing is not measured. Press <choose.again> to measure the adapters again.")


def sharing_text(coded: Coded, short: dict[str, str]) -> Text:
    """The groups and what they share, then those that share nothing."""
    text = Text()
    total = len(coded.kinds)
    for group in coded.groups:
        whose = "all adapters" if group.group == EVERYBODY else f"cluster {group.group}"
        text.append(f"{whose}: ", "bold")
        text.append(f"{_names(group.tasks)}\n")
        if group.cosine is not None and group.group != EVERYBODY:
            text.append(f"  related: cosine of A {cosine_text(group.cosine)} or more\n")
        for kind, layers in group.layers.items():
            text.append(f"  {KINDS.get(kind, kind)} {_where(layers, total, short)}\n")
        if group.layers:
            text.append(f"  saves ~{size(group.saved_bytes)} compared with coding each alone\n")
        else:
            text.append("  share nothing: at this error coding each alone is smaller\n")
    if not any(group.layers for group in coded.groups):
        text.append("Sharing saves nothing at this error: ", "bold")
        text.append("every adapter is coded alone.")
    elif coded.alone:
        text.append("alone: ", "bold")
        text.append(_names(coded.alone))
        text.append("\n  sharing would save nothing")
    text.rstrip()
    if coded.shared_bytes:
        text.append(f"\nshared data takes ~{size(coded.shared_bytes)}")
    return text


def methods_text(methods: Sequence[Figures | None]) -> Text:
    """The sizes of all methods at the same error, the smallest first."""
    predicted = [
        (figures.prediction, figures)
        for figures in methods
        if figures is not None and figures.prediction
    ]
    text = Text()
    text.append("at this error: ", "bold")
    text.append(
        ", ".join(
            f"{figures.choosing.method} {'' if figures.is_exact else '~'}{size(prediction.nbytes)}"
            for prediction, figures in ranked(predicted, lambda pair: pair[0].nbytes, largest=False)
        )
    )
    return text.append("\n")


def loss_cells(
    loss: Loss, short: dict[str, str], *, exact: bool, most: tuple[float, int], ascii_only: bool
) -> list[tuple[str, str]]:
    """The cells of an adapter's row.

    Args:
        most: The largest error and the most bytes of any adapter; bars are as long as they say.
    """
    about = "" if exact else "~"
    own = loss.nbytes or 0
    return [
        (clean(loss.task), ""),
        (about + percent(loss.error), ""),
        (bar(loss.error / most[0] if most[0] else 0.0, BAR, ascii_only=ascii_only), ""),
        ("-" if loss.nbytes is None else about + size(loss.nbytes), ""),
        (bar(own / most[1] if most[1] else 0.0, BAR, ascii_only=ascii_only), ""),
        (clean(short.get(loss.worst_layer, loss.worst_layer)), "muted"),
        (about + percent(loss.worst_error), "muted"),
    ]


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
        return f"in all {plural(total, 'module')}"
    if len(layers) <= FEW:
        return "in " + ", ".join(short.get(name, clean(name)) for name in layers)
    return f"in {len(layers)} of {plural(total, 'module')}"

"""Data for Choose k, computed from spectra and a choice; no widget, each part made once."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vlora_engine.compression_target import CompressionTarget, LayerK, one_k, sides_of
from vlora_engine.spectra.byte_curves import ByteCurves
from vlora_engine.spectra.k_curves import (
    SIDES,
    Band,
    Uniform,
    band,
    has_sides,
    k_for,
    layer_curve,
    uniform,
)
from vlora_engine.spectra.sizes import factor_bytes_16, input_bytes
from vlora_tui.tui.charts.variance_plot import Marks, VarianceData
from vlora_tui.tui.choose.advice import Advice, Preset
from vlora_tui.tui.choose.figures_pane import LEVELS, Row, Sheet
from vlora_tui.tui.choose.text import (
    Verdict,
    brief_goal,
    difference,
    goal_words,
    is_rough,
    k_range,
    k_words,
    spread,
    summary,
    worst_layer,
)
from vlora_tui.tui.core.session import Figures, Session
from vlora_tui.tui.key_names import keyed
from vlora_tui.tui.text import clean, plural
from vlora_tui.tui.widgets.cell_grid import Legend
from vlora_tui.tui.widgets.heatmap import Cell, LayerGrid, arrange
from vlora_tui.utils.formatting import percent

if TYPE_CHECKING:
    from vlora_engine.spectra.tables import Spectra

T = TypeVar("T")
Estimate = Callable[[CompressionTarget], Figures | None]

CELLS = ("needs", "error", "now")
STOPS = 4  # figures of the legend of the cells, but the first
LEGENDS = {"needs": "k for {share}", "error": "error %", "now": "k"}
PRESETS = (0.01, 0.05, 0.2)  # errors of the worst adapter, a key each
LAST_ERROR = 0.007  # where curves against bytes end
SIDE_NAMES = {"both": "", "a": " · side A alone", "b": " · side B alone"}


@dataclass(frozen=True)
class Shown:
    """How the screen shows things; no part of the choice.

    Args:
        layer: The focused layer; ``editing`` its own k.
        cells: ``needs``: k for a share; ``error``: at this choice; ``now``: the k chosen.
        pattern: Only layers that match it.
        sizes: Size against error stands where the layers do; ``worst``: of the worst adapter.
        opened: The focused layer's figures are shown, too.
    """

    layer: str | None = None
    editing: bool = False
    cells: str = "needs"
    share: float = 0.99
    side: str = "both"
    stretched: bool = True
    pattern: str = ""
    sizes: bool = False
    worst: bool = False
    opened: bool = False

    def cells_of(self, choosing: CompressionTarget) -> str:
        """What the cells show: where there is no k, the error stands for what a share needs."""
        return "error" if choosing.is_coded and self.cells == "needs" else self.cells

    def next_cells(self, choosing: CompressionTarget) -> str:
        """The next content of the cells."""
        ring = CELLS[1:] if choosing.is_coded else CELLS
        return ring[(ring.index(self.cells_of(choosing)) + 1) % len(ring)]

    def next_share(self) -> float:
        """The next of 90, 95, 99 %."""
        return LEVELS[(LEVELS.index(self.share) + 1) % len(LEVELS)]

    def next_side(self) -> str:
        """Both, A, B."""
        return SIDES[(SIDES.index(self.side) + 1) % len(SIDES)]


class LayerTables:
    """Everything about curves, cells and figures that is worked out once for a version of spectra.

    Args:
        version: `Session.version` when it was made.
    """

    def __init__(self, spectra: Spectra, version: tuple[int, int]) -> None:
        self.spectra = spectra
        self.version = version
        self.measured = [name for name in spectra.layer_names if name in spectra.layers]
        self._made: dict[tuple[Any, ...], Any] = {}
        self._beside_before: dict[str, Row] = {}  # other methods, as they were known last
        self._verdict = Verdict()  # and what was said of them

    def take_over(self, before: LayerTables) -> None:
        """Show what was known of other methods from fewer layers until more is worked out."""
        self._beside_before, self._verdict = before._beside_before, before._verdict

    @cached_property
    def short(self) -> dict[str, str]:
        """Layer names as rows and columns of the grid call them."""
        grid = self._grid("")
        return {
            name: clean(f"{row}.{column}" if row != "-" else column)
            for row, names in zip(grid.rows, grid.names, strict=True)
            for column, name in zip(grid.columns, names, strict=True)
            if name is not None
        }

    @cached_property
    def so_far(self) -> str:
        """Of what figures are, while layers are missing; empty once all are there."""
        total = len(self.spectra.layer_names)
        return (
            "" if len(self.measured) == total else f"from {len(self.measured)} of {total} modules"
        )

    @cached_property
    def stored(self) -> int:
        """The bytes of the adapters as they are."""
        return input_bytes(self.spectra)

    def _once(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What was made under this key before, else what ``make`` makes now."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    # what the keys need

    def basis(self, method: str) -> str:
        """The method whose curve and k are shown: where there is no k, the first that has one."""
        ready = self.spectra.ready_methods or self.spectra.methods
        return method if method in ready else ready[0]

    def settle(self, shown: Shown, choosing: CompressionTarget) -> Shown:
        """``shown`` with nothing in it that these spectra do not have."""
        layers = self.selected(shown.pattern)
        if not layers:
            shown = replace(shown, pattern="")
            layers = self.selected("")
        if shown.layer not in layers:
            shown = replace(shown, layer=layers[0], editing=False, opened=False)
        if not has_sides(self.basis(choosing.method)):
            shown = replace(shown, side="both")
        return shown

    def selected(self, pattern: str) -> list[str]:
        """Layers whose names match, measured or not."""
        names = self.spectra.layer_names
        if not pattern:
            return names
        if any(sign in pattern for sign in "*?["):
            return fnmatch.filter(names, pattern)
        return [name for name in names if pattern in name]

    def top(self, method: str) -> int:
        """The largest k that any layer has."""
        method = self.basis(method)
        return self._once(
            ("top", method),
            lambda: max(max(self._own_limits(name, method)) for name in self.measured),
        )

    def layer_top(self, layer: str, method: str) -> int:
        """The largest k of a layer; of all while it is not measured."""
        return max(self.layer_limits(layer, method))

    def layer_limits(self, layer: str, method: str) -> tuple[int, int]:
        """The same of either side."""
        method = self.basis(method)
        if layer not in self.spectra.layers:
            return (self.top(method),) * 2
        return self._own_limits(layer, method)

    def _own_limits(self, layer: str, method: str) -> tuple[int, int]:
        """Of a measured layer in a method with k."""
        table = self.spectra.table(layer, method)
        return max(1, table.max_a), max(1, table.max_b)

    def within(self, choosing: CompressionTarget) -> CompressionTarget:
        """``choosing`` with no k beyond what its method has."""
        if choosing.is_coded:
            return choosing
        top = self.top(choosing.method)
        layers = {name: _clamped(k, (top, top)) for name, k in choosing.layers.items()}
        if not has_sides(choosing.method):
            layers = {name: max(sides_of(k)) for name, k in layers.items()}
        k = None if choosing.k is None else min(choosing.k, top)
        return replace(choosing, layers=layers, k=k)

    def aimed(self, now: CompressionTarget, name: str, value: float) -> CompressionTarget:
        """The same for another goal; where each layer had a k of its own, these are chosen anew."""
        if now.goal[0] == "k" and now.layers.keys() >= set(self.measured):
            now = replace(now, layers={})
        return now.with_goal(name, value)

    def k_of(self, layer: str, figures: Figures | None) -> int:
        """The k that a layer has in a choice, of its larger side."""
        return max(sides_of(self.layer_k(layer, figures)))

    def layer_k(self, layer: str, figures: Figures | None) -> LayerK:
        """The same of both sides."""
        if figures is None or figures.choice is None:
            return 1
        return one_k(figures.choice.k.get(layer, (1, 1)))

    def middle(self, figures: Figures | None) -> int:
        """The k from which `[` and `]` go on: the median of a choice."""
        return 1 if figures is None or figures.choice is None else spread(figures)[0]

    # the curve

    def curve(
        self,
        shown: Shown,
        session: Session,
        figures: Figures | None,
        known: ByteCurves | None = None,
    ) -> tuple[VarianceData | None, Marks]:
        """The curves, and what lies over them.

        Args:
            known: Of a coded choice: what it keeps of every layer at each size.
        """
        choosing = session.choosing
        if choosing.is_coded and known is not None:
            return self._byte_curves(shown, choosing, known), self._byte_marks(
                shown, session, figures, known
            )
        marks = self._marks(shown, session, figures)
        if choosing.is_coded and session.is_coding_known:
            return None, replace(marks, note="Calculating…")
        return self._curves(shown, self.basis(choosing.method)), marks

    def curve_title(self, shown: Shown, choosing: CompressionTarget, *, in_bytes: bool) -> str:
        """What the curve is about."""
        only = f" · only {clean(shown.pattern)}" if shown.pattern else ""
        if in_bytes:
            return f"Explained variance of dW · {choosing.method}, against bytes{only}"
        method = self.basis(choosing.method)
        none = f" ({choosing.method} is not measured)" if choosing.is_coded else ""
        return f"Explained variance of dW · {method}{SIDE_NAMES[shown.side]}{none}{only}"

    def _byte_curves(
        self, shown: Shown, choosing: CompressionTarget, known: ByteCurves
    ) -> VarianceData | None:
        selected = self.selected(shown.pattern)
        at = {name: i for i, name in enumerate(known.layers)}
        layers = [name for name in selected if name in at]
        if not layers:
            return None
        # Identity tells curves apart: others of a method take their place as more is known.
        key = ("bytes", choosing.method, id(known), shown.pattern, shown.layer)

        def make() -> VarianceData:
            end = known.bytes_for(1 - LAST_ERROR**2)
            last = len(known.nbytes) if end is None else int(np.searchsorted(known.nbytes, end)) + 1
            kept = known.kept[:last]
            rows = np.sort(kept[:, [at[name] for name in layers]], axis=1)
            nbytes, name = known.nbytes[:last], shown.layer
            return VarianceData(
                version=(self.version, *key),
                k=nbytes,
                median=np.median(rows, axis=1),
                low=rows[:, 0],
                high=rows[:, -1],
                layers=len(layers),
                expected=len(selected),
                focus=(nbytes, kept[:, at[name]]) if name in at else None,
                focus_name=self.short.get(name or "", ""),
                in_bytes=True,
            )

        return self._once(key, make)

    def _byte_marks(
        self, shown: Shown, session: Session, figures: Figures | None, known: ByteCurves
    ) -> Marks:
        prediction = None if figures is None else figures.prediction
        pins = [session.cached_figures(pin) for pin in session.pins]
        end = float(known.nbytes[-1])
        return Marks(
            k=None if prediction is None else float(prediction.nbytes),
            pins=tuple(
                float(pin.prediction.nbytes)
                for pin in pins
                if pin is not None and pin.prediction is not None
            ),
            levels=tuple((share, known.bytes_for(share)) for share in LEVELS),
            dear=float(self.stored) if self.spectra.complete and self.stored < end else None,
            stretched=shown.stretched,
            about=is_rough(figures),
        )

    def _curves(self, shown: Shown, method: str) -> VarianceData | None:
        key = ("curves", method, shown.side, shown.pattern, shown.layer)
        return self._once(key, lambda: self._make_curves(shown, method, key))

    def _make_curves(self, shown: Shown, method: str, key: tuple[Any, ...]) -> VarianceData | None:
        selected = self.selected(shown.pattern)
        layers = [name for name in selected if name in self.spectra.layers]
        if not layers:
            return None
        curves = self._band(shown, method, layers)
        layer = shown.layer
        focus = None
        if layer is not None and layer in self.spectra.layers:
            focus = layer_curve(self.spectra, layer, method, shown.side)
        return VarianceData(
            version=(self.version, *key),
            k=curves.k,
            median=curves.median,
            low=curves.low,
            high=curves.high,
            layers=len(layers),
            expected=len(selected),
            focus=focus,
            focus_name=self.short.get(layer or "", ""),
        )

    def _band(self, shown: Shown, method: str, layers: list[str]) -> Band:
        key = ("band", method, shown.side, shown.pattern)
        return self._once(key, lambda: band(self.spectra, layers, method, shown.side))

    def _uniform(self, choosing: CompressionTarget, dtype: str) -> Uniform:
        packed = choosing.quantization
        key = ("uniform", choosing.method, dtype, packed)
        return self._once(key, lambda: uniform(self.spectra, choosing.method, dtype, packed))

    def _levels(
        self, choosing: CompressionTarget, dtype: str
    ) -> tuple[tuple[float, int | None], ...]:
        all_layers = self._uniform(choosing, dtype)
        return tuple((share, all_layers.k_for(share)) for share in LEVELS)

    def _dear(self, choosing: CompressionTarget, dtype: str) -> int | None:
        """From which k on the result is larger than the adapters; None while layers are missing."""
        if not self.spectra.complete:
            return None
        return self._uniform(choosing, dtype).break_even(self.stored)

    def _marks(self, shown: Shown, session: Session, figures: Figures | None) -> Marks:
        if figures is None or figures.choice is None:
            return Marks(stretched=shown.stretched)
        choice = figures.choice
        middle, low, high = spread(figures)
        pins = [session.cached_figures(pin) for pin in session.pins]
        layer_k = None
        of_pins = (p for p in pins if p is not None and p.choice is not None)
        if shown.layer in choice.k and (session.choosing.goal[0] != "k" or session.choosing.layers):
            layer_k = self.k_of(shown.layer, figures)
        side = {"a": 0, "b": 1}.get(shown.side)
        if side is not None and layer_k is not None and shown.layer is not None:
            layer_k = choice.k[shown.layer][side]
        both = shown.side == "both"
        return Marks(
            k=middle,
            low=low,
            high=high,
            layer_k=layer_k,
            pins=tuple(spread(p)[0] for p in of_pins),
            levels=self._levels(session.choosing, choice.dtype)
            if both
            else tuple((share, None) for share in LEVELS),
            dear=self._dear(session.choosing, choice.dtype) if both else None,
            stretched=shown.stretched,
        )

    # the cells

    def cells(
        self, shown: Shown, choosing: CompressionTarget, figures: Figures | None
    ) -> tuple[LayerGrid, dict[str, Cell], str | None, Legend | None]:
        """The grid of layers, a cell for each that is measured, the focused one, the legend."""
        names = self.selected(shown.pattern)
        what = self._cells_of(shown, choosing)
        values = self._values(shown, what, self.basis(choosing.method), names, figures)
        measured = [value for value in values.values() if value is not None]
        least, most = min(measured, default=0.0), max(measured, default=1.0)
        span = max(most - least, 0.35 * most, 1e-12)  # what differs little looks alike

        def words(value: float) -> str:
            return _error_text(value) if what == "error" else f"{value:.0f}"

        with_own_k = set(choosing.layers)
        if with_own_k >= values.keys():
            with_own_k = set()  # a mark on every layer marks none
        cells = {}
        for name, value in values.items():
            if value is None:
                cells[name] = Cell("-", None, name in with_own_k)
                continue
            text = words(value)
            if what == "now" and figures is not None and figures.coded is not None:
                text = "+".join(figures.coded.kinds[name]) or "alone"
            cells[name] = Cell(text, (value - least) / span, name in with_own_k)
        legend = None
        if measured and not (choosing.is_coded and what == "now"):
            stops = {words(least + (most - least) * i / STOPS): i / STOPS for i in range(STOPS + 1)}
            scale = (most - least) / span
            named = LEGENDS[what].format(share=f"{100 * shown.share:g} %")
            legend = Legend(named, tuple((text, scale * at) for text, at in stops.items()))
        return self._grid(shown.pattern), cells, shown.layer, legend

    def _grid(self, pattern: str) -> LayerGrid:
        return self._once(("grid", pattern), lambda: arrange(self.selected(pattern)))

    def cells_title(self, shown: Shown, choosing: CompressionTarget) -> str:
        """What the cells are about."""
        chosen = f"k of each module{SIDE_NAMES[shown.side] or ' (larger side)'}"
        words = {
            "needs": f"k for {100 * shown.share:g} % of a module{SIDE_NAMES[shown.side]}",
            "error": f"error of each module in %{', about' if choosing.is_coded else ''}",
            "now": "what each module shares" if choosing.is_coded else chosen,
        }
        return words[self._cells_of(shown, choosing)]

    def _cells_of(self, shown: Shown, choosing: CompressionTarget) -> str:
        """What the cells show; what a share needs where nothing is known of coding."""
        spectra = self.spectra
        if spectra.is_coded or spectra.codec is not None or spectra.own:
            return shown.cells_of(choosing)
        return shown.cells

    def layer_words(self, shown: Shown, figures: Figures | None) -> str:
        """The focused layer in a line."""
        layer = shown.layer
        if layer is None:
            return ""
        name = self.short.get(layer, layer)
        if layer not in self.spectra.layers:
            return f"{name} is not measured yet"
        if figures is not None and figures.choosing.is_coded:
            kind, prediction = "", figures.prediction
            if figures.coded is not None and layer in figures.coded.kinds:
                kind = f"  {'+'.join(figures.coded.kinds[layer]) or 'each alone'}"
            loss = None if prediction is None else prediction.layer_errors.get(layer)
            return f"{name}{kind}" + ("" if loss is None else f"  error ~{percent(loss)}")
        if figures is None or figures.choice is None or layer not in figures.choice.k:
            return name
        k = k_words(figures.choice.k[layer])
        error = figures.choice.prediction.layer_errors.get(layer)
        return f"{name}  {k}" + ("" if error is None else f"  error {percent(error)}")

    def layer_figures(self, shown: Shown, known: ByteCurves | None) -> str:
        """What there is to say of the focused layer where it has no k of its own."""
        layer = shown.layer
        table = self.spectra.layers.get(layer or "")
        if layer is None or table is None:
            return ""
        weights = self.spectra.weights[table.tasks]
        part = float(weights @ table.energy) / max(1, int((self.spectra.weights > 0).sum()))
        words = [
            f"{self.short.get(layer, layer)}: {table.d_in} x {table.d_out}",
            f"rank {table.rank}, {plural(len(table.tasks), 'adapter')}",
            f"{percent(part)} of dW",
        ]
        if known is not None and layer in known.layers:
            at, column = [], known.errors[:, known.layers.index(layer)]
            for error in PRESETS:
                nbytes = float(np.interp(-error, -known.mean, known.nbytes))
                at.append(f"{percent(float(known.at(nbytes, column)))} at {percent(error)}")
            words.append(f"error ~{', ~'.join(at)} of all")
        return ", ".join(words) + keyed(" (<choose.done> closes)")

    def _values(
        self, shown: Shown, what: str, method: str, names: list[str], figures: Figures | None
    ) -> dict[str, float | None]:
        measured = [name for name in names if name in self.spectra.layers]
        if what == "needs":
            key = ("needs", method, shown.side, shown.share, shown.pattern)
            return self._once(
                key,
                lambda: {
                    name: k_for(*layer_curve(self.spectra, name, method, shown.side), shown.share)
                    for name in measured
                },
            )
        if figures is None or figures.prediction is None:
            return {}
        if what == "error":
            errors = figures.prediction.layer_errors
            return {name: errors.get(name) for name in measured}
        if figures.coded is not None:  # shared layers are told from others by their colour, too
            kinds = figures.coded.kinds
            return {name: float(bool(kinds[name])) for name in measured if name in kinds}
        choice = figures.choice
        if choice is None:
            return {}
        sides = {"a": (0,), "b": (1,)}.get(shown.side, (0, 1))
        k = choice.k
        return {name: float(max(k[name][i] for i in sides)) for name in measured if name in k}

    # the figures

    def sheet(
        self,
        shown: Shown,
        session: Session,
        figures: Figures | None,
        known: ByteCurves | None,
        estimate: Estimate,
    ) -> Sheet:
        """Everything that the figures pane shows.

        Args:
            known: Of a coded choice: what it keeps of every layer at each size.
            estimate: Tells about what a choice comes to, where that is known at once.
        """
        rows = [Row("now", session.choosing, figures, self._note(figures))]
        for number, pin in enumerate(session.pins, start=1):
            pinned = session.cached_figures(pin)
            differs = ""
            if figures is not None and pinned is not None:
                differs = difference(figures, pinned, self.short)
            rows.append(Row(f"pin {number}", pin, pinned, differs))
        missing = len(self.spectra.layer_names) - len(self.measured)
        rivals, verdict = self._beside(session, figures, estimate)
        rows += rivals
        if missing:
            verdict = Verdict()  # that is said of all layers only
        now = None if figures is None else figures.choice
        dtype = now.dtype if now is not None else "F16"
        coded = session.choosing.is_coded
        problem = figures is not None and figures.problem is not None
        return Sheet(
            rows=tuple(rows),
            levels=() if coded else self._levels(session.choosing, dtype),
            dear=None if coded else self._dear(session.choosing, dtype),
            verdict="" if problem else verdict.words,
            bad=verdict.bad and not problem,
            brief=verdict.brief,
            so_far=self.so_far,
            mode=self._mode(shown, session, known),
        )

    def _beside(
        self, session: Session, figures: Figures | None, estimate: Estimate
    ) -> tuple[list[Row], Verdict]:
        """The other methods at the same error, and what that says; each as before until it is
        known anew.
        """
        under_way, before = session.is_coding_under_way, self._beside_before
        known: list[Figures | None] = []
        if figures is not None and (figures.estimate is None or figures.so_far):
            for rival in session.rivals(figures):
                is_rough = rival.is_coded and under_way
                found = estimate(rival) if is_rough else session.cached_figures(rival)
                known.append(found)
                if found is not None:
                    row = Row("", rival, found, self._note(found), rival=True)
                    before = {**before, rival.method: row}
            self._beside_before = before
            self._verdict = summary(figures, known, factor_bytes_16(self.spectra))
        rows = [
            before[method]
            for method in session.methods
            if method != session.choosing.method and method in before
        ]
        shown = [row for row in rows if row.figures is not None and row.figures.prediction]
        rows = [replace(row, label="" if i else "same error") for i, row in enumerate(shown)]
        return rows, self._verdict

    def advice(self, session: Session, figures: Figures | None, estimate: Estimate) -> Advice:
        """What stands above the plot: the present choice, and presets with their bytes.

        Args:
            estimate: Tells about what a choice comes to, where that is known at once.
        """
        so_far = self.so_far
        if not so_far and session.choosing.is_coded and session.is_coding_under_way:
            so_far = "sharing not measured yet"
        presets = []
        for error in PRESETS:
            choosing = self.aimed(session.choosing, "max_error", error)
            known = session.cached_figures(choosing) or estimate(choosing)
            prediction = None if known is None else known.prediction
            presets.append(
                Preset(
                    error,
                    None if prediction is None else prediction.nbytes,
                    about=is_rough(known),
                    taken=choosing.goal == session.choosing.goal,
                )
            )
        prediction = None if figures is None else figures.prediction
        return Advice(
            words=goal_words(session.choosing, len(self.spectra.layer_names)),
            brief=brief_goal(session.choosing),
            method=session.choosing.method,
            k=k_range(figures),
            nbytes=None if prediction is None else prediction.nbytes,
            ratio=0.0 if prediction is None else prediction.ratio,
            error=None
            if prediction is None or session.choosing.goal[0] == "max_error"
            else prediction.max_error,
            error_about=figures is not None and not figures.is_exact,
            about=is_rough(figures),
            so_far=so_far,
            problem="" if figures is None else (figures.problem or "").partition("\n")[0],
            presets=tuple(presets),
        )

    def _note(self, figures: Figures | None) -> str:
        if figures is None or figures.prediction is None:
            return ""
        return worst_layer(figures.prediction, self.short)

    def _mode(self, shown: Shown, session: Session, known: ByteCurves | None) -> str:
        if shown.opened:
            return self.layer_figures(shown, known)
        if not shown.editing or shown.layer is None:
            return ""
        own = session.choosing.layers.get(shown.layer)
        return keyed(
            f"{k_words(own or 1)} for {self.short.get(shown.layer, shown.layer)} alone: "
            "<choose.k_down> <choose.k_up> <choose.k_down_8> <choose.k_up_8> <choose.k> change it, "
            "<choose.done> ends, <choose.clear_own> clears it"
        )


def _clamped(k: LayerK, limits: tuple[int, int]) -> LayerK:
    """The k of a layer from 1 to what it has on either side."""
    k_a, k_b = (min(max(1, one), limit) for one, limit in zip(sides_of(k), limits, strict=True))
    return max(k_a, k_b) if isinstance(k, int) else one_k((k_a, k_b))


def _error_text(error: float) -> str:
    percentage = 100 * error
    return f"{percentage:.0f}" if percentage >= 9.95 else f"{percentage:.1f}"

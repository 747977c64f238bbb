"""Data for Choose k, computed from spectra and a choice; no widget, each part made once."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from vlora_engine.compression_target import CompressionTarget
from vlora_engine.quantization.packing import NOT_PACKED, named_quantization
from vlora_engine.spectra.choose import Choice, Packed, if_packed
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
from vlora_tui.tui.choose.figures_pane import LEVELS, Row, Sheet
from vlora_tui.tui.choose.text import difference, percent, spread, summary, worst_layer
from vlora_tui.tui.core.session import Figures, Session
from vlora_tui.tui.text import clean
from vlora_tui.tui.widgets.heatmap import Cell, LayerGrid, arrange

if TYPE_CHECKING:
    from vlora_engine.spectra.tables import Spectra

T = TypeVar("T")

CELLS = ("needs", "error", "now")
PACKED = ("int8", "nf4")  # what a choice that is not packed is compared with
SIDE_NAMES = {"both": "", "a": " · side A alone", "b": " · side B alone"}


@dataclass(frozen=True)
class Shown:
    """How the screen shows things; no part of the choice.

    Args:
        layer: The focused layer; ``editing`` its own k.
        cells: ``needs``: k for a share; ``error``: at this choice; ``now``: the k chosen.
        pattern: Only layers that match it.
        sizes: The second view, size against error; ``worst``: of the worst adapter, not the mean.
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

    def next_cells(self) -> str:
        """The next content of the cells."""
        return CELLS[(CELLS.index(self.cells) + 1) % len(CELLS)]

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
        return method if method in self.spectra.methods else self.spectra.methods[0]

    def settle(self, shown: Shown, choosing: CompressionTarget) -> Shown:
        """``shown`` with nothing in it that these spectra do not have."""
        layers = self.selected(shown.pattern)
        if not layers:
            shown = replace(shown, pattern="")
            layers = self.selected("")
        if shown.layer not in layers:
            shown = replace(shown, layer=layers[0], editing=False)
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
        return max(self.layer_top(name, method) for name in self.measured)

    def layer_top(self, layer: str, method: str) -> int:
        """The largest k of a layer; of all while it is not measured."""
        method = self.basis(method)
        if layer not in self.spectra.layers:
            return self.top(method)
        table = self.spectra.table(layer, method)
        return max(1, table.max_a, table.max_b)

    def within(self, choosing: CompressionTarget) -> CompressionTarget:
        """``choosing`` with no k beyond what its method has."""
        if choosing.is_coded:
            return choosing
        top = self.top(choosing.method)
        layers = {name: min(k, top) for name, k in choosing.layers.items()}
        k = None if choosing.k is None else min(choosing.k, top)
        return replace(choosing, layers=layers, k=k)

    def k_of(self, layer: str, figures: Figures | None) -> int:
        """The k that a layer has in a choice."""
        if figures is None or figures.choice is None:
            return 1
        return max(figures.choice.k.get(layer, (1, 1)))

    def middle(self, figures: Figures | None) -> int:
        """The k from which `[` and `]` go on: the median of a choice."""
        return 1 if figures is None or figures.choice is None else spread(figures)[0]

    # the curve

    def curve(
        self, shown: Shown, session: Session, figures: Figures | None
    ) -> tuple[VarianceData | None, Marks]:
        """The curves, and what lies over them."""
        method = self.basis(session.choosing.method)
        return self._curves(shown, method), self._marks(shown, session, figures)

    def curve_title(self, shown: Shown, choosing: CompressionTarget) -> str:
        """What the curve is about."""
        only = f" · only {clean(shown.pattern)}" if shown.pattern else ""
        method = self.basis(choosing.method)
        none = f" ({choosing.method} has no k)" if choosing.is_coded else ""
        return f"Explained variance of dW · {method}{SIDE_NAMES[shown.side]}{none}{only}"

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
        key = ("uniform", choosing.method, dtype, choosing.quantize)
        packed = named_quantization(choosing.quantize)
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
            pins=tuple(spread(p)[0] for p in pins if p is not None and p.choice is not None),
            levels=self._levels(session.choosing, choice.dtype)
            if both
            else tuple((share, None) for share in LEVELS),
            dear=self._dear(session.choosing, choice.dtype) if both else None,
            stretched=shown.stretched,
        )

    # the cells

    def cells(
        self, shown: Shown, choosing: CompressionTarget, figures: Figures | None
    ) -> tuple[LayerGrid, dict[str, Cell], str | None]:
        """The grid of layers, a cell for each that is measured, the focused one."""
        names = self.selected(shown.pattern)
        values = self._values(shown, self.basis(choosing.method), names, figures)
        measured = [value for value in values.values() if value is not None]
        least, most = min(measured, default=0.0), max(measured, default=1.0)
        span = max(most - least, 0.35 * most, 1e-12)  # what differs little looks alike
        with_own_k = set(choosing.layers)
        cells = {}
        for name, value in values.items():
            if value is None:
                cells[name] = Cell("-", None, name in with_own_k)
                continue
            text = _error_text(value) if shown.cells == "error" else f"{value:.0f}"
            if shown.cells == "now" and figures is not None and figures.coded is not None:
                text = "+".join(figures.coded.kinds[name]) or "own"
            cells[name] = Cell(text, (value - least) / span, name in with_own_k)
        return self._grid(shown.pattern), cells, shown.layer

    def _grid(self, pattern: str) -> LayerGrid:
        return self._once(("grid", pattern), lambda: arrange(self.selected(pattern)))

    def cells_title(self, shown: Shown, choosing: CompressionTarget) -> str:
        """What the cells are about."""
        coded = choosing.is_coded
        whose = f" of {self.basis(choosing.method)}" if coded else ""
        chosen = f"k chosen{SIDE_NAMES[shown.side] or ' (A max B)'}"
        words = {
            "needs": f"k{whose} for {100 * shown.share:g} % of a layer{SIDE_NAMES[shown.side]}",
            "error": f"error in % at this choice{', about' if coded else ''}",
            "now": f"what {choosing.method} does in a layer" if coded else chosen,
        }
        return words[shown.cells]

    def layer_words(self, shown: Shown, figures: Figures | None) -> str:
        """The focused layer in a line."""
        layer = shown.layer
        if layer is None:
            return ""
        name = self.short.get(layer, layer)
        if layer not in self.spectra.layers:
            return f"{name} is not measured yet"
        if figures is not None and figures.coded is not None and layer in figures.coded.kinds:
            kind = "+".join(figures.coded.kinds[layer]) or "each by itself"
            loss = figures.coded.prediction.layer_errors[layer]
            return f"{name}  {kind}  error ~{percent(loss)}"
        if figures is None or figures.choice is None or layer not in figures.choice.k:
            return name
        k_a, k_b = figures.choice.k[layer]
        k = f"k {k_a}" if k_a == k_b else f"k {k_a} A, {k_b} B"
        error = figures.choice.prediction.layer_errors.get(layer)
        return f"{name}  {k}" + ("" if error is None else f"  error {percent(error)}")

    def _values(
        self, shown: Shown, method: str, names: list[str], figures: Figures | None
    ) -> dict[str, float | None]:
        measured = [name for name in names if name in self.spectra.layers]
        if shown.cells == "needs":
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
        if shown.cells == "error":
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

    def sheet(self, shown: Shown, session: Session, figures: Figures | None) -> Sheet:
        """Everything that the figures pane shows."""
        rows = [Row("now", session.choosing, figures, self._note(figures))]
        for number, pin in enumerate(session.pins, start=1):
            pinned = session.cached_figures(pin)
            differs = ""
            if figures is not None and pinned is not None:
                differs = difference(figures, pinned, self.short)
            rows.append(Row(f"pin {number}", pin, pinned, differs))
        missing = len(self.spectra.layer_names) - len(self.measured)
        rivals = [] if figures is None or missing else session.rivals(figures)
        figures_of_rivals = [session.cached_figures(rival) for rival in rivals]
        for i, (rival, of_rival) in enumerate(zip(rivals, figures_of_rivals, strict=True)):
            rows.append(Row("" if i else "same bytes", rival, of_rival, self._note(of_rival), True))
        words, bad = "", False
        if not missing:
            words, bad = summary(figures, figures_of_rivals, factor_bytes_16(self.spectra))
        now = None if figures is None else figures.choice
        dtype = now.dtype if now is not None else "F16"
        coded = session.choosing.is_coded
        return Sheet(
            rows=tuple(rows),
            levels=() if coded else self._levels(session.choosing, dtype),
            dear=None if coded else self._dear(session.choosing, dtype),
            packed=self._packed(session.choosing, now) if not missing else (),
            verdict=words,
            bad=bad,
            missing=missing,
            mode=self._mode(shown, session),
        )

    def _note(self, figures: Figures | None) -> str:
        if figures is None or figures.prediction is None:
            return ""
        return worst_layer(figures.prediction, self.short)

    def _packed(self, choosing: CompressionTarget, choice: Choice | None) -> tuple[Packed, ...]:
        """What the choice would cost packed; nothing where it is already."""
        if choice is None or choosing.quantize != NOT_PACKED:
            return ()
        packings = [named_quantization(name) for name in PACKED]
        return tuple(
            if_packed(self.spectra, choice, packing) for packing in packings if packing is not None
        )

    def _mode(self, shown: Shown, session: Session) -> str:
        if not shown.editing or shown.layer is None:
            return ""
        k = session.choosing.layers.get(shown.layer)
        return (
            f"Own k {k} for {self.short.get(shown.layer, shown.layer)}: [ ] {{ }} = change it, "
            "space is done, backspace clears it"
        )


def _error_text(error: float) -> str:
    percentage = 100 * error
    return f"{percentage:.0f}" if percentage >= 9.95 else f"{percentage:.1f}"

"""The form that shows what each way of packing costs: kind of numbers, block size, scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from textual.widgets import Static

from vlora_engine.compression_target import DEFAULT_BASIS_METHOD, CompressionTarget
from vlora_engine.quantization.packing import BLOCK_SIZES, NOT_PACKED, QUANTIZATIONS
from vlora_engine.spectra.choose import if_packed
from vlora_tui.tui.choose.text import short_packing, target_words
from vlora_tui.tui.core.session import Figures, Session
from vlora_tui.tui.widgets.dialogs import Ask, Option
from vlora_tui.tui.widgets.table import Table
from vlora_tui.utils.formatting import percent, size

if TYPE_CHECKING:
    from vlora_engine.spectra.tables import Spectra

KEYS = {NOT_PACKED: "0", "int8": "8", "int4": "4", "nf4": "n"}
BLOCK, SCALES = "block", "scales"  # lines that change what the others are about


class AskPacking(Ask):
    """The ways of packing a choice with bytes and errors, for a block size and kind of scales.

    The result is the name of the packing that was taken; `taken` is the choice that goes with it.

    Args:
        now: The choice to pack.
    """

    def __init__(self, session: Session, now: CompressionTarget) -> None:
        self.session, self.now = session, now
        self.block_size, self.double_quant = now.block_size, now.double_quant
        self.figures: dict[str, Figures] = {}
        super().__init__("Quantize", self._about(), self._lines())

    @property
    def taken(self) -> CompressionTarget | None:
        """The choice behind the line that was taken."""
        found = self.figures.get(self._taken)
        return None if found is None else found.choosing

    _taken = ""

    def on_mount(self) -> None:
        super().on_mount()
        values = [option.value for option in self._options]
        self.query_one(Table).show(self._options, cursor=values.index(self.now.quantize))
        self._work_out()

    def answer(self, option: Option) -> None:
        """Take a packing; or change the size of blocks or the scales, and go on asking."""
        if option.value == BLOCK:
            larger = [size for size in BLOCK_SIZES if size > self.block_size]
            self.block_size = (*larger, BLOCK_SIZES[0])[0]
            self._work_out()
        elif option.value == SCALES:
            self.double_quant = not self.double_quant
            self._work_out()
        elif option.value in self.figures:  # else it is still worked out
            self._taken = option.value
            self.dismiss(option.value)

    def _work_out(self) -> None:
        """Have the figures worked out for this size of blocks and these scales."""
        asked = self.block_size, self.double_quant
        self.figures = {}
        self._draw()

        def work() -> None:
            found = packings(self.session, self.now, *asked)
            self.app.call_from_thread(self._known, asked, found)

        self.run_worker(work, thread=True, group="packings", exclusive=True)

    def _known(self, asked: tuple[int, bool], found: Sequence[Figures]) -> None:
        if asked == (self.block_size, self.double_quant) and self.is_attached:
            self.figures = {figures.choosing.quantize: figures for figures in found}
            self._draw()

    def _draw(self) -> None:
        self._options = self._lines()
        self.query_one(".words", Static).update(self._about())
        self.query_one(Table).show(self._options)

    def _lines(self) -> list[Option]:
        lines = [
            Option(
                KEYS[name],
                self._label(name),
                name,
                _costs(self.figures.get(name)),
                "accent" if name == self.now.quantize else "",
            )
            for name in (NOT_PACKED, *QUANTIZATIONS)
        ]
        bits = "8 bits (double quantization)" if self.double_quant else "16 bits"
        return [
            *lines,
            Option("b", "block size", BLOCK, f"{self.block_size} numbers share a scale"),
            Option("s", "scales", SCALES, bits),
        ]

    def _label(self, name: str) -> str:
        if name == NOT_PACKED:
            return f"{self.now.method}, coded" if self.now.is_coded else "not packed"
        packed = replace(
            CompressionTarget(quantize=name),
            block_size=self.block_size,
            double_quant=self.double_quant,
        ).quantization
        words = name if packed is None else short_packing(packed)
        return f"{DEFAULT_BASIS_METHOD}, {words}" if self.now.is_coded else words

    def _about(self) -> str:
        now = self.now
        words = "Bytes are exact, errors are estimates until it is built."
        if now.is_coded:
            words = (
                f"{now.method} gives every number the bits it needs and cannot be packed further. "
                "int8, int4 and nf4 pack a shared basis: they go over to delta at the same target."
            )
        found = self.figures.values()
        beyond = [f.choosing.quantize for f in found if f.choosing.goal != now.goal]
        if beyond:
            words += f" With {' and '.join(beyond)} {target_words(now)} is out of reach."
        return words


def packings(
    session: Session, now: CompressionTarget, block_size: int, double_quant: bool
) -> list[Figures]:
    """A choice unpacked and packed in every way; a coded one as `delta`.

    Where packing alone costs more error than is aimed at, the bytes of the same k are aimed at.
    """
    plain = replace(
        now,
        quantize=CompressionTarget.quantize,
        block_size=CompressionTarget.block_size,
        double_quant=CompressionTarget.double_quant,
    )
    based = plain
    if now.is_coded:
        based = CompressionTarget(DEFAULT_BASIS_METHOD).with_goal(*now.goal)
    choice = session.figures(based).choice
    found = [session.figures(plain)]
    for name in QUANTIZATIONS:
        packed = replace(based, quantize=name, block_size=block_size, double_quant=double_quant)
        figures, packing = session.figures(packed), packed.quantization
        if figures.problem is not None and choice is not None and packing is not None:
            nbytes = if_packed(_spectra(session), choice, packing).nbytes
            figures = session.figures(packed.with_goal("budget", nbytes))
        found.append(figures)
    return found


def _spectra(session: Session) -> Spectra:
    spectra = session.spectra
    assert spectra is not None  # noqa: S101  (there is a choice on them)
    return spectra if spectra.complete else spectra.measured()


def _costs(figures: Figures | None) -> str:
    """Bytes and errors, or why it were not found."""
    if figures is None:
        return "Calculating…"
    prediction = figures.prediction
    if prediction is None:
        return "not possible at this target"
    about = "" if figures.is_exact else "~"
    return (
        f"{size(prediction.nbytes)}, mean {about}{percent(prediction.mean_error)}, "
        f"worst {about}{percent(prediction.max_error)}"
    )

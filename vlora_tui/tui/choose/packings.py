"""The dialog that shows what each way of packing costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlora_engine.compression_target import DEFAULT_BASIS_METHOD, CompressionTarget
from vlora_engine.quantization.packing import NOT_PACKED, QUANTIZATIONS, named_quantization
from vlora_engine.spectra.choose import if_packed
from vlora_tui.tui.choose.text import percent, target_words
from vlora_tui.tui.core.session import Figures, Session
from vlora_tui.tui.widgets.dialogs import Ask, Option
from vlora_tui.utils.formatting import size

if TYPE_CHECKING:
    from textual.app import App

    from vlora_engine.spectra.tables import Spectra

KEYS = {NOT_PACKED: "0", "int8": "8", "int4": "4", "nf4": "n"}


def packings(session: Session, now: CompressionTarget) -> list[Figures]:
    """A choice unpacked and packed in every way; a coded one as `delta`.

    Where packing alone costs more error than is aimed at, the bytes of the same k are aimed at.
    """
    plain = replace(now, quantize=NOT_PACKED)
    based = plain
    if now.is_coded:
        based = CompressionTarget(DEFAULT_BASIS_METHOD).with_goal(*now.goal)
    choice = session.figures(based).choice
    found = [session.figures(plain)]
    for name in QUANTIZATIONS:
        figures = session.figures(replace(based, quantize=name))
        packing = named_quantization(name)
        if figures.problem is not None and choice is not None and packing is not None:
            nbytes = if_packed(_spectra(session), choice, packing).nbytes
            figures = session.figures(replace(based.with_goal("budget", nbytes), quantize=name))
        found.append(figures)
    return found


def _spectra(session: Session) -> Spectra:
    spectra = session.spectra
    assert spectra is not None  # noqa: S101  (there is a choice on them)
    return spectra if spectra.complete else spectra.measured()


def ask_packing(
    app: App[Any],
    now: CompressionTarget,
    figures: Sequence[Figures],
    take: Callable[[CompressionTarget], None],
) -> None:
    """Show every way of packing with its bytes and errors, and hand on the one that is taken."""
    options = [
        Option(
            KEYS[found.choosing.quantize],
            _label(found.choosing, now),
            found.choosing.quantize,
            _costs(found),
            "accent" if found.choosing == now else "",
        )
        for found in figures
    ]

    def taken(answer: str | None) -> None:
        choice = next((f.choosing for f in figures if f.choosing.quantize == answer), None)
        if choice is not None:
            take(choice)

    words = "Bytes are exact, errors are estimates until it is built."
    if now.is_coded:
        words = (
            f"{now.method} gives every number the bits it needs and cannot be packed further. "
            "int8, int4 and nf4 pack a shared basis: they go over to delta at the same target."
        )
    beyond = [f.choosing.quantize for f in figures if f.choosing.goal != now.goal]
    if beyond:
        words += f" With {' and '.join(beyond)} {target_words(now)} is out of reach."
    app.push_screen(Ask("Quantize", words, options), taken)


def _label(choosing: CompressionTarget, now: CompressionTarget) -> str:
    if choosing.quantize == NOT_PACKED:
        return f"{choosing.method}, coded" if now.is_coded else "not packed"
    return f"{choosing.method}, {choosing.quantize}" if now.is_coded else choosing.quantize


def _costs(figures: Figures) -> str:
    """Bytes and errors, or why it were not found."""
    prediction = figures.prediction
    if prediction is None:
        return "not possible at this target"
    about = "" if figures.is_exact else "~"
    return (
        f"{size(prediction.nbytes)}, mean {about}{percent(prediction.mean_error)}, "
        f"worst {about}{percent(prediction.max_error)}"
    )

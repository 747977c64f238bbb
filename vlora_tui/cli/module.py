"""``module``: one module of an adapter, or of two, looked at closely."""

from __future__ import annotations

from typing import Annotated, Any

from vlora_engine.errors import ParameterError
from vlora_tui.cli.declare import argument
from vlora_tui.cli.output import Output
from vlora_tui.utils.formatting import percent, plural

SHOWN = 16  # singular values that are printed
BAR = 30  # columns of the longest bar


def module(
    out: Output,
    words: Annotated[
        list[str],
        argument(
            "One adapter or DIR:TASK, or two; then the module's name.", metavar="A [B] MODULE"
        ),
    ],
) -> None:
    """Look closely at one module: the singular values of its dW; what two adapters share there."""
    from vlora_engine.analysis.module_view import module_comparison, module_portrait
    from vlora_engine.catalog.open import open_adapter

    *paths, name = words
    if len(paths) not in (1, 2):
        raise ParameterError(
            "One adapter or two, and then a module.",
            expected="A MODULE, or A B MODULE",
            found=plural(len(words), "word"),
        )
    opened = [open_adapter(path) for path in paths]
    if len(opened) == 1:
        portrait = module_portrait(opened[0], name)
        out.json("module", {"places": paths, **portrait})
        show_portrait(out, paths[0], portrait)
        out.essence(f"{portrait['norm']:.6g}")
        return
    found = module_comparison(opened[0], opened[1], name)
    out.json("module", {"places": paths, **found})
    for path, side in zip(paths, ("a", "b"), strict=True):
        show_portrait(out, path, found[side])
        out.text()
    show_shared(out, found)
    out.essence(f"{found['cosine']:.6g}")


def show_portrait(out: Output, path: str, portrait: dict[str, Any]) -> None:
    """What one adapter does there."""
    out.text(f"{path}  {portrait['module']}")
    out.text(
        f"{portrait['d_out']} x {portrait['d_in']}, {portrait['dtype']}; rank {portrait['rank']}, "
        f"of which {portrait['numerical_rank']} in use; scale {portrait['scale']:g}"
    )
    out.text(
        f"||dW|| {portrait['norm']:.4g}; stable rank {portrait['stable_rank']:.2f}, "
        f"effective rank {portrait['effective_rank']:.2f}"
    )
    values = portrait["singular_values"]
    total, cumulative, rows = portrait["norm"] ** 2, 0.0, []
    for number, value in enumerate(values[:SHOWN], start=1):
        cumulative += value**2
        bar = "#" * max(1, round(BAR * value / values[0]))
        rows.append((number, f"{value:.4g}", percent(cumulative / total), bar))
    out.table(("", "singular value", "energy so far", ""), rows)
    if len(values) > SHOWN:
        out.text(f"and {len(values) - SHOWN} more")


def show_shared(out: Output, found: dict[str, Any]) -> None:
    """What two do alike."""
    out.text(
        f"cosine of dW {found['cosine']:.4f}; they differ by "
        f"{percent(found['relative_difference'])} of the first's dW"
    )
    out.text(
        f"of the first's energy {percent(found['a_in_b'])} lies within the second's spaces, "
        f"of the second's {percent(found['b_in_a'])} within the first's"
    )
    for side, word in (("in", "inputs"), ("out", "outputs")):
        angles = found[f"angles_{side}"][:SHOWN]
        shown = " ".join(f"{value:.2f}" for value in angles) or "none"
        out.text(f"cosines of the principal angles, {word}: {shown}")

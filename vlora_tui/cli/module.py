"""``module``: one module of an adapter, or of two, looked at closely."""

from __future__ import annotations

from typing import Annotated, Any

from vlora_engine.errors import ParameterError
from vlora_engine.utils.naming import cosine_text
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
    from vlora_engine.analysis.module_view import module_comparison, module_view
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
        row = module_view(opened[0], name)
        out.json("module", {"places": paths, **row})
        show_module(out, paths[0], row)
        out.essence(f"{row['norm']:.6g}")
        return
    found = module_comparison(opened[0], opened[1], name)
    out.json("module", {"places": paths, **found})
    for path, side in zip(paths, ("a", "b"), strict=True):
        show_module(out, path, found[side])
        out.text()
    show_shared(out, found)
    out.essence(f"{found['cosine']:.6g}")


def show_module(out: Output, path: str, row: dict[str, Any]) -> None:
    """What one adapter does there."""
    out.text(f"{path}  {row['module']}")
    out.text(
        f"{row['d_out']} x {row['d_in']}, {row['dtype']}; rank {row['rank']}, "
        f"of which {row['numerical_rank']} in use; scale {row['scale']:g}"
    )
    out.text(
        f"||dW|| {row['norm']:.4g}; stable rank {row['stable_rank']:.2f}, "
        f"effective rank {row['effective_rank']:.2f}"
    )
    values = row["singular_values"]
    total, cumulative, rows = row["norm"] ** 2, 0.0, []
    for number, value in enumerate(values[:SHOWN], start=1):
        cumulative += value**2
        bar = "#" * max(1, round(BAR * value / values[0]))
        rows.append((number, f"{value:.4g}", percent(cumulative / total), bar))
    out.table(("", "singular value", "cumulative energy", ""), rows)
    if len(values) > SHOWN:
        out.text(f"and {len(values) - SHOWN} more")


def show_shared(out: Output, found: dict[str, Any]) -> None:
    """Print what two adapters do alike in one module."""
    out.text(
        f"cosine of dW {cosine_text(found['cosine'])}; they differ by "
        f"{percent(found['relative_difference'])} of the first's dW"
    )
    out.text(
        f"of the first's energy {percent(found['a_in_b'])} lies within the second's spaces, "
        f"of the second's {percent(found['b_in_a'])} within the first's"
    )
    for side, word in (("in", "inputs"), ("out", "outputs")):
        angles = found[f"angles_{side}"][:SHOWN]
        shown = " ".join(cosine_text(value) for value in angles) or "none"
        out.text(f"cosines of the principal angles, {word}: {shown}")

"""What a section hands back, and how it is printed: plain columns, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | float | int | None


@dataclass
class Table:
    """A titled table.

    Args:
        columns: Headings; the first column is text, the others numbers or short texts.
        rows: Cells per row; None prints as a dash.
        notes: What has to be known to read it.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {
            "title": self.title,
            "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
            "notes": self.notes,
        }

    def text(self) -> str:
        """The table as it is printed."""
        cells = [list(self.columns), *([shown(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = [self.title, "=" * len(self.title)]
        for number, row in enumerate(cells):
            first, *others = (
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join([first, *others]).rstrip())
            if number == 0:
                lines.append("  ".join("-" * width for width in widths))
        return "\n".join([*lines, *(f"  {note}" for note in self.notes), ""])


def shown(cell: Cell) -> str:
    """A cell as text: three significant digits, nothing in exponents that can be avoided."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int):
        return str(cell)
    if cell == 0 or cell >= 100:
        return f"{cell:.0f}"
    return f"{cell:.2f}" if cell >= 1 else f"{cell:.3g}"


def mb(nbytes: float) -> int:
    """Megabytes, whole."""
    return round(nbytes / 1e6)


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """A quotient, or None where a part is missing."""
    return numerator / denominator if numerator is not None and denominator else None

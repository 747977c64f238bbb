"""``--csv``: a table as comma separated values, to a file or to stdout, every digit kept."""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from vlora_engine.adapters.address import expanded
from vlora_engine.errors import ParameterError
from vlora_tui.cli.declare import option
from vlora_tui.cli.output import Output
from vlora_tui.utils.formatting import printable

STDOUT = "-"

Csv = Annotated[
    str | None, option("--csv", "Write the figures as CSV; - is stdout.", metavar="FILE")
]


class CsvFile:
    """Where the figures go, checked before anything is computed.

    Args:
        target: What ``--csv`` named; None writes nothing.

    Raises:
        OutputExistsError: The file is there, and not ``force``.
        ParameterError: stdout is asked to hold JSON, too.
    """

    def __init__(self, target: str | None, out: Output, *, force: bool) -> None:
        from vlora_engine.utils.output_checks import check_output_file

        self.target, self.out = target, out
        self.path: Path | None = None
        if target == STDOUT:
            if out.as_json:
                raise ParameterError(
                    "stdout holds JSON or CSV, not both.",
                    expected="--csv FILE beside --json",
                    found="--csv - and --json",
                )
            out.only_data = True
        elif target is not None:
            self.path = expanded(target)
            check_output_file(self.path, force=force)

    def require_apart_from(self, places: Iterable[str]) -> None:
        """Refuse a file that is one of the inputs, before it is replaced.

        Raises:
            ParameterError: It is.
        """
        from vlora_tui.pipeline.inputs import require_apart_from

        if self.path is not None:
            require_apart_from([self.path], places)

    def write(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Write the table: texts quoted where need be, figures so that they read back equal."""
        from vlora_engine.utils.files import write_file

        if self.target is None:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        lines: Iterable[Sequence[object]] = itertools.chain([header], rows)
        if self.path is None:  # perhaps a terminal: a name may hold what moves its cursor
            lines = ([printable(x) if isinstance(x, str) else x for x in row] for row in lines)
        writer.writerows(lines)
        if self.path is None:
            sys.stdout.write(text.getvalue())
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, text.getvalue())
        self.out.note(f"written to {self.path}")

"""Count the lines that hold code: no blanks, no comments, no docstrings.

python -m tests.code_lines              # this tree
python -m tests.code_lines ../checkout  # another one
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

PACKAGES = ("engine", "vlora_tui")
_NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    tokenize.ENDMARKER,
}


def code_lines(text: str) -> int:
    """The lines of a module that hold code; a statement or a text over three lines counts three."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(lines)


def main(root: Path) -> None:
    """Print the count of each package, and of both."""
    counts = {
        package: sum(code_lines(file.read_text("utf-8")) for file in (root / package).rglob("*.py"))
        for package in PACKAGES
    }
    for name, count in {**counts, "both": sum(counts.values())}.items():
        print(f"{count:7,}  {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))

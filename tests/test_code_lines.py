"""The count of code lines leaves out what is no code, and nothing else."""

from __future__ import annotations

from tests.code_lines import code_lines

MODULE = '''"""A module,
over two lines."""

# a comment
import os  # one behind code counts nothing for itself


class Holder:
    """What it is for."""

    words = """a text
    over two lines"""

    def paths(
        self,
    ) -> str:
        """Where."""
        return os.sep
'''


def test_blanks_comments_and_docstrings_are_left_out() -> None:
    code = ["import os", "class", "words", "over two lines", "def", "self", ") -> str", "return"]
    assert code_lines(MODULE) == len(code)


def test_a_text_that_is_no_docstring_is_code() -> None:
    assert code_lines('x = 1\n"""a text"""\n') == 2

"""One table of a recipe, read key by key; every error names its line in the file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from vlora_engine.errors import InputError, VLoRAError
from vlora_engine.utils.sizes import parse_bytes

T = TypeVar("T")
Given = Mapping[str, Mapping[str, Any]]
REQUIRED: Any = object()


class RecipeError(InputError):
    """A recipe that is not sound; ``where`` is the file, the line and the key."""


class Table:
    """One table of a recipe, read key by key; `end` refuses what was not read."""

    def __init__(
        self,
        rows: dict[str, Any],
        path: str,
        text: str,
        where: str,
        given: Given | None = None,
    ) -> None:
        self.rows = rows
        self.path = path  # "compress", "export[1]"
        self._text, self._where = text, where
        self._given = given or {}  # what the command line says, by table and key
        self._read: dict[str, None] = {}

    def fail(self, key: str | None, what: str, **details: Any) -> NoReturn:
        """Raise with the place of ``key`` in the file."""
        key_path = self.path if key is None else f"{self.path}.{key}" if self.path else key
        if key in self._given.get(self.path.partition("[")[0], {}):
            raise RecipeError(what, where=f"the command line, {key_path}", **details)
        line = line_of(self._text, self.path, key)
        at = f"{self._where}, line {line}, {key_path}" if line else f"{self._where}, {key_path}"
        raise RecipeError(what, where=at, **details)

    def get(self, key: str, kind: type[T], default: Any = None) -> T:
        """The value of ``key`` if it is of ``kind``; an int will do for a float."""
        self._read[key] = None
        if key not in self.rows:
            if default is REQUIRED:
                self.fail(None, f"The recipe lacks {key!r} here.", expected=_kind_name(kind))
            fallback: T = default
            return fallback
        value = self.rows[key]
        if kind is float and type(value) is int:
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fail(
                key,
                f"{key!r} has a value of the wrong kind.",
                expected=_kind_name(kind),
                found=repr(value),
            )
        return value

    def path_at(self, key: str) -> str:
        """A path to write to: there, and not empty."""
        path = self.get(key, str, REQUIRED)
        if not path or "\0" in path:
            self.fail(key, f"{key!r} names no place.", expected="a path", found=repr(path))
        return path

    def optional_path(self, key: str) -> str | None:
        """A path to write to, or one to read from; None where the key is missing."""
        return self.path_at(key) if key in self.rows else self.get(key, str)

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        """A word out of ``allowed``."""
        value = self.get(key, str, default)
        if value not in allowed and value != default:
            self.fail(
                key, f"{value!r} is no {key}.", expected=", ".join(allowed), found=repr(value)
            )
        return value

    def natural(self, key: str, *, least: int = 1) -> int | None:
        """A whole number of at least ``least``, or None."""
        value = self.get(key, int)
        if value is not None and value < least:
            self.fail(key, f"{key!r} is too small.", expected=f"at least {least}", found=str(value))
        return value

    def share(self, key: str, *, including_one: bool = False) -> float | None:
        """A number between 0 and 1, or None."""
        value = self.get(key, float)
        if value is not None and not (0 < value < 1 or (including_one and value == 1)):
            self.fail(
                key, f"{key!r} is out of range.", expected="between 0 and 1", found=str(value)
            )
        return value

    def size(self, key: str) -> int | None:
        """A number of bytes, or None."""
        value = self.get(key, object)
        return None if value is None else self.located(key, parse_bytes, value)

    def words(self, key: str, default: Any = None) -> tuple[str, ...]:
        """A list of texts."""
        values = self.get(key, list, default)
        if values is None:
            return ()
        for value in values:
            if not isinstance(value, str) or not value:
                self.fail(key, f"{key!r} is a list of texts.", expected="texts", found=repr(value))
        return tuple(values)

    def table(self, key: str) -> Table:
        """The table under ``key``; an empty one where it is missing."""
        rows = self.get(key, dict, {})
        path = f"{self.path}.{key}" if self.path else key
        return Table(rows, path, self._text, self._where, self._given)

    def read_if_there(self, key: str, read: Callable[[Table], T]) -> T | None:
        """What ``read`` makes of the table under ``key``; None where there is none."""
        table = self.table(key)
        return read(table) if key in self.rows else None

    def tables(self, key: str) -> list[Table]:
        """The array of tables under ``key``."""
        rows = self.get(key, list, [])
        if not all(isinstance(row, dict) for row in rows):
            self.fail(key, f"{key!r} is a list of tables.", expected=f"[[{key}]]")
        return [
            Table(row, f"{key}[{i}]", self._text, self._where, self._given)
            for i, row in enumerate(rows)
        ]

    def located(self, key: str, function: Callable[[Any], T], value: Any) -> T:
        """Call ``function``; an error that it raises gets the place in the file."""
        try:
            return function(value)
        except VLoRAError as error:
            self.fail(
                key,
                error.what,
                expected=error.expected,
                found=error.found or repr(value),
                remedy=error.remedy,
            )

    def others(self) -> dict[str, Any]:
        """What was not read; it counts as read from now on."""
        rest = {key: value for key, value in self.rows.items() if key not in self._read}
        self._read.update(dict.fromkeys(rest))
        return rest

    def end(self) -> None:
        """Refuse keys that nobody asked for."""
        allowed = list(self._read)
        for key in self.others():
            close = difflib.get_close_matches(key, allowed, n=1)
            self.fail(
                key,
                f"{key!r} is not known here.",
                expected=", ".join(allowed),
                remedy=f"did you mean {close[0]!r}?" if close else None,
            )


def line_of(text: str, path: str, key: str | None) -> int | None:
    """The line of a key in a TOML text, as far as a plain reading of lines can tell."""
    name, _, index = path.partition("[")
    position = int(index.rstrip("]")) if index else 0
    current, seen, header_line = "", -1, None
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\[?\s*([\w.-]+)\s*\]\]?", line)
        if header:
            current = header[1]
            seen += current == name
            if current == name and seen == position:
                header_line = number
            if key and current == (f"{name}.{key}" if name else key):
                return number
        elif key and current == name and (not name or seen == position):
            found = re.match(r"""\s*["']?([^"'=]+?)["']?\s*=""", line)
            if found and found[1].split(".")[0] == key:
                return number
    return header_line


def _kind_name(kind: type) -> str:
    names = {
        str: "a text in quotes",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        list: "a list",
        dict: "a table",
        object: "bytes, or a number with KB, MB, MiB, GB...",
    }
    return names[kind]

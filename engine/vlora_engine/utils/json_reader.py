"""Reading JSON that nobody vouches for: every value is checked, and every error names its place.

A reader asks for what it needs (`JsonObject.__getitem__`, `JsonValue.natural`...). What is missing
or of another type is a `CorruptFileError` with the place inside the file, such as
``layers[3].d_in``, what was expected there and what was found. Nothing else is caught: a fault of
the code that reads is never taken for one of the file.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vlora_engine.errors import CorruptFileError

T = TypeVar("T")

MOST = 1 << 62  # of a count
_SHOWN = 80  # characters of what was found
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,79}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(raw: bytes | str) -> Any:
    """``raw`` as JSON, with nothing in it that other readers would not take.

    Raises:
        ValueError, RecursionError: It is none, has NaN in it, or half a letter (a surrogate without
            its other half), which can be neither printed nor written.
    """
    text = raw if isinstance(raw, str) else raw.decode(json.detect_encoding(raw))
    value = json.loads(text, parse_constant=_no_constant)
    if _SURROGATE.search(text) and not is_whole(json.dumps(value, ensure_ascii=False)):
        raise ValueError("half a letter in a text: a surrogate without the other one")
    return value


def is_whole(text: str) -> bool:
    """Whether ``text`` can be printed and written: it has no surrogate in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


@dataclass(frozen=True)
class JsonFile:
    """A file of JSON, and how its errors begin and end.

    Args:
        path: The file.
        what: The sentence that says what is wrong when anything in it is.
        remedy: What mends it.
        code: The word for programs.
    """

    path: Path | str
    what: str
    remedy: str = ""
    code: str = ""

    def parse(self, raw: bytes | str) -> JsonValue:
        """Parse the file; its outermost value.

        Raises:
            CorruptFileError: It is no JSON.
        """
        try:
            value = parse_json(raw)
        except (ValueError, RecursionError) as error:
            raise self.error("", "JSON", str(error) or type(error).__name__) from None
        return self.value(value)

    def value(self, value: Any, place: str = "") -> JsonValue:
        """A value that was parsed already."""
        return JsonValue(value, self, place)

    def error(self, place: str, expected: str, found: str) -> CorruptFileError:
        """The error for a place in the file, empty for all of it."""
        return CorruptFileError(
            self.what,
            where=f"{self.path}: {place}" if place else self.path,
            expected=expected,
            found=found,
            remedy=self.remedy or None,
            code=self.code,
        )


@dataclass(frozen=True, slots=True)
class JsonValue:
    """One value and the place where it stands."""

    value: Any
    file: JsonFile
    place: str = ""

    def error(self, expected: str, found: str | None = None) -> CorruptFileError:
        """The error for this value."""
        return self.file.error(self.place, expected, shown(self.value) if found is None else found)

    def object(self) -> JsonObject:
        """An object."""
        values = self.raw_object()
        inside = {key: self._at(_below(self.place, key), item) for key, item in values.items()}
        return JsonObject(inside, self.file, self.place)

    def raw_object(self) -> dict[str, Any]:
        """An object as it was found, its values unchecked."""
        if not isinstance(self.value, dict):
            raise self.error("an object")
        return self.value

    def items(self, count: int | None = None) -> list[JsonValue]:
        """The values of a list, of this length if one is given."""
        return [self._at(f"{self.place}[{i}]", item) for i, item in enumerate(self._list(count))]

    @property
    def is_list(self) -> bool:
        return isinstance(self.value, list)

    @property
    def is_null(self) -> bool:
        return self.value is None

    def text(self) -> str:
        """A text."""
        return str(self._checked(_is_text, "a text"))

    def one_of(self, choices: Collection[str]) -> str:
        """A text that is one of these."""
        if not _is_text(self.value) or self.value not in choices:
            raise self.error(f"one of {', '.join(choices)}")
        return str(self.value)

    def natural(self) -> int:
        """A whole number from 0 on."""
        return int(self._checked(_is_natural, "a count"))

    def number(self) -> float:
        """A finite number."""
        return float(self._checked(_is_number, "a finite number"))

    def flag(self) -> bool:
        """True or false."""
        return bool(self._checked(_is_flag, "true or false"))

    def texts(self, count: int | None = None) -> list[str]:
        """A list of texts."""
        return self._all(_is_text, "a text", count)

    def naturals(self, count: int | None = None) -> list[int]:
        """A list of whole numbers from 0 on."""
        return self._all(_is_natural, "a count", count)

    def numbers(self, count: int | None = None) -> list[float]:
        """A list of finite numbers."""
        return [float(item) for item in self._all(_is_number, "a finite number", count)]

    def _at(self, place: str, value: Any) -> JsonValue:
        return JsonValue(value, self.file, place)

    def _checked(self, good: Callable[[Any], bool], expected: str) -> Any:
        if not good(self.value):
            raise self.error(expected)
        return self.value

    def _list(self, count: int | None) -> list[Any]:
        if not isinstance(self.value, list):
            raise self.error("a list" if count is None else f"a list of {count}")
        if count is not None and len(self.value) != count:
            raise self.error(f"a list of {count}")
        return self.value

    def _all(self, good: Callable[[Any], bool], expected: str, count: int | None) -> list[Any]:
        values = self._list(count)
        for i, item in enumerate(values):
            if not good(item):
                raise self._at(f"{self.place}[{i}]", item).error(expected)
        return values


@dataclass(frozen=True)
class JsonObject:
    """The named values of an object; asking for one that is not there is an error of the file."""

    values: Mapping[str, JsonValue]
    file: JsonFile
    place: str = ""

    def __getitem__(self, key: str) -> JsonValue:
        found = self.values.get(key)
        if found is None:
            raise self.file.error(_below(self.place, key), "a value", "nothing")
        return found

    def get(self, key: str) -> JsonValue | None:
        """The value, or None where there is none."""
        return self.values.get(key)

    def read(self, key: str, read: Callable[[JsonValue], T], default: T) -> T:
        """What ``read`` makes of a value, or the default where there is none."""
        found = self.values.get(key)
        return default if found is None else read(found)

    def list_of(self, key: str) -> list[JsonValue]:
        """The values of a list, none where there is no such list."""
        found = self.values.get(key)
        return [] if found is None else found.items()

    def items(self) -> Iterator[tuple[str, JsonValue]]:
        """Names and values."""
        yield from self.values.items()

    def error(self, expected: str, found: str) -> CorruptFileError:
        """The error for the object as a whole."""
        return self.file.error(self.place, expected, found)


def shown(value: Any) -> str:
    """What was found, in a few words: no control characters, never much."""
    if isinstance(value, dict):
        return f"an object of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return ascii(value[:_SHOWN])
    if type(value) is int and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    if value is None or type(value) is bool:
        return json.dumps(value)
    return str(value)[:_SHOWN]


def _below(place: str, key: str) -> str:
    if not _PLAIN.fullmatch(key):
        return f"{place}[{key[:_SHOWN]!a}]"
    return f"{place}.{key}" if place else key


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST


def _is_number(value: Any) -> bool:
    largest = sys.float_info.max
    return type(value) in (int, float) and -largest <= value <= largest


def _is_flag(value: Any) -> bool:
    return type(value) is bool

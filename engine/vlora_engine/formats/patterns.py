"""PEFT's rank_pattern and alpha_pattern, for many modules at once.

The rule is that of `adapters.model.match_pattern`: the first key that matches the end of a
module's name. A table of full names, one per module, would make that quadratic; here keys that
are plain names are looked up by their last component, and only the others are tried one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlora_engine.errors import AdapterError, ParameterError
from vlora_engine.utils.regex import PLAIN, BoundedPattern, Budget, bounded, matches_end


class PatternTable:
    """A pattern table of a config; all its matching together is bounded.

    Args:
        pattern: Its keys and values. name: Of the table in the config. where: The config's file.

    Raises:
        AdapterError: A key is no regular expression that can be used.
    """

    def __init__(
        self, pattern: Mapping[str, Any], name: str = "", where: Path | str | None = None
    ) -> None:
        self._name, self._where = name, where
        self._values = list(pattern.values())
        self._by_leaf: dict[str, list[tuple[int, str]]] = {}
        self._regexes: list[tuple[int, BoundedPattern]] = []
        self._budget = Budget()
        for position, key in enumerate(pattern):
            if PLAIN.match(key):
                self._by_leaf.setdefault(key.rpartition(".")[2], []).append((position, key))
                continue
            try:
                self._regexes.append((position, bounded(rf"(.*\.)?({key})$", self._budget)))
            except ParameterError as error:
                raise self._error(key, error) from None

    def __bool__(self) -> bool:
        return bool(self._values)

    def get(self, module: str, default: Any) -> Any:
        """The value of the first key that matches ``module``.

        Raises:
            AdapterError: The patterns take too long to match.
        """
        position = min(self._positions(module), default=None)
        return default if position is None else self._values[position]

    def all(self, module: str) -> list[Any]:
        """The values of all keys that match ``module``, in the order of the table.

        Raises:
            AdapterError: The patterns take too long to match.
        """
        return [self._values[position] for position in sorted(self._positions(module))]

    def _positions(self, module: str) -> Iterator[int]:
        for leaf, keys in self._by_leaf.items():
            if module.endswith(leaf):
                yield from (position for position, key in keys if matches_end(key, module))
        for position, regex in self._regexes:
            try:
                found = regex.matches(module, self._budget)
            except ParameterError as error:
                raise self._error(regex.pattern[len(r"(.*\.)?(") : -len(")$")], error) from None
            if found:
                yield position

    def _error(self, key: str, error: ParameterError) -> AdapterError:
        return _pattern_error(self._name, key, error, self._where)


def check_for_peft(config: Mapping[str, Any], where: Path | str | None = None) -> None:
    """Check that PEFT, which matches with Python's own matcher, comes to an end with a config.

    Raises:
        AdapterError: One of its patterns could take years, or is none.
    """
    for name, form in _PEFTS.items():
        given = config.get(name)
        keys = [given] if isinstance(given, str) else []
        if isinstance(given, list | dict) and not name.endswith(
            "_modules"
        ):  # whose lists are names
            keys = [key for key in given if isinstance(key, str)]
        for key in keys:
            if not PLAIN.match(key):
                try:
                    bounded(form.format(key), Budget()).require_quick(_LENGTH)
                except ParameterError as error:
                    raise _pattern_error(name, key, error, where) from None


_LENGTH = 100  # letters of a module's name: what takes for ever does so on half of them
_PEFTS = {
    "target_modules": "{}",
    "exclude_modules": "{}",
    "layers_pattern": r".*\.{}\.(\d+)\.",
    "rank_pattern": r"(.*\.)?({})$",
    "alpha_pattern": r"(.*\.)?({})$",
}


def _pattern_error(
    name: str, key: str, error: ParameterError, where: Path | str | None
) -> AdapterError:
    return AdapterError(
        f"A module pattern in {name!r} of the adapter's config cannot be used: "
        f"{error.what[:1].lower()}{error.what[1:]}",
        where=where,
        expected="a module name or a simple regular expression",
        found=ascii(key) if len(key) <= 80 else f"{key[:77]!a}...",
        remedy=f"write the modules' names in {name!r}",
        code="bad-config",
    )

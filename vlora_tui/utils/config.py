"""Settings: flag > environment > file > default, each value with where it came from.

The file is ``config.toml`` in the XDG config folder::

    theme = "textual-light"

    [keys]                      # a binding's id = its keys; `?` in the interface shows the ids
    "app.help" = "f1,?"

What is wrong in it is a list of problems with lines, never a failure: the rest still counts.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vlora_engine.utils.reading import read_text
from vlora_tui.utils import paths

KEYS = "keys"


@dataclass(frozen=True)
class Setting:
    """One thing that can be set: its type is that of its default."""

    name: str
    default: bool | int | str
    help: str
    least: int = 0

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"VLORA_{self.name.upper()}"


SETTINGS = (
    Setting("theme", "textual-dark", "colours: textual-dark, textual-light, ansi-dark, ..."),
    Setting("ascii", False, "draw with ASCII only"),
    Setting("mouse", True, "react to the mouse; false leaves it to the terminal"),
    Setting("title", True, "show progress in the terminal's title"),
    Setting("notify", True, "notify and ring the bell when a long job ends out of sight"),
    Setting("scan_depth", 4, "folders below a folder that a scan looks into", least=0),
    Setting("scan_limit", 100_000, "adapters that a scan lists", least=1),
)


class Value(NamedTuple):
    """A setting's value and where it came from: a flag, a variable, a line of the file."""

    value: Any
    source: str


class Problem(NamedTuple):
    """Something in the file that cannot be used."""

    line: int | None
    what: str
    remedy: str = ""

    def text(self, file: Path) -> str:
        """The problem in one line."""
        where = f"{file}, line {self.line}" if self.line else str(file)
        return f"{where}: {self.what}" + (f" ({self.remedy})" if self.remedy else "")


@dataclass
class Config:
    """All settings.

    Args:
        values: Every setting by name.
        keys: Binding ids with the keys that the user gave them, not yet checked against bindings.
        problems: What could not be used.
        text: The file as it was read; empty where there is none.
    """

    file: Path
    values: dict[str, Value]
    keys: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    text: str = ""

    def __getitem__(self, name: str) -> Any:
        return self.values[name].value

    def key_line(self, binding_id: str) -> int | None:
        """The line on which a binding's keys are given."""
        return self.line(f"{KEYS}.{binding_id}")

    def line(self, name: str) -> int | None:
        """The line of a key with its table's name before it, or of a table."""
        table = ""
        for number, line in enumerate(self.text.splitlines(), start=1):
            if header := re.match(r"\s*\[\s*([\w.\"'-]+)\s*\]", line):
                table = re.sub("[\"']", "", header[1])
                if table == name:
                    return number
            elif found := re.match(r"""\s*([\w."'-]+)\s*=""", line):
                key = re.sub("[\"']", "", found[1])
                if (f"{table}.{key}" if table else key) == name:
                    return number
        return None


def config_file() -> Path:
    """Where the settings are kept; ``VLORA_CONFIG`` names another file."""
    named = os.environ.get("VLORA_CONFIG")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_config_dir(paths.APP, appauthor=False)) / "config.toml"


def load_config(flags: Mapping[str, Any] | None = None) -> Config:
    """All settings as they stand; ``flags`` are those of the command line, None where not given."""
    config = Config(config_file(), {})
    tables = _read(config)
    for setting in SETTINGS:
        config.values[setting.name] = _value(setting, flags or {}, tables, config)
    keys = tables.pop(KEYS, {})
    if isinstance(keys, dict):
        config.keys = dict(_flat_keys(keys, config))
    else:
        config.problems.append(Problem(config.line(KEYS), "[keys] is no table"))
    for name in tables:
        near = difflib.get_close_matches(name, [*(s.name for s in SETTINGS), KEYS], 1)
        remedy = f"did you mean {near[0]}?" if near else "`vlora-tui config show` lists them all"
        config.problems.append(Problem(config.line(name), f"there is no setting {name!r}", remedy))
    return config


def template() -> str:
    """A first config file: every setting, commented out."""
    lines = ["# Settings of vlora-tui. Flags and VLORA_... variables win over this file.", ""]
    for setting in SETTINGS:
        lines += [f"# {setting.help}", f"# {setting.name} = {_toml(setting.default)}", ""]
    lines += [
        "# Keys of your own: the id of a binding and its keys. `?` in the interface shows ids.",
        "[keys]",
        '# "app.help" = "f1,?"',
        "",
    ]
    return "\n".join(lines)


def _read(config: Config) -> dict[str, Any]:
    try:
        config.text = read_text(config.file)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        config.problems.append(Problem(None, f"the file cannot be read: {error}"))
        return {}
    import tomllib

    try:
        return tomllib.loads(config.text)
    except (ValueError, RecursionError) as error:
        what, _, where = str(error).partition(" (at line ")
        line = where.split(",")[0]
        last = config.text.count("\n") + 1
        number = int(line) if line.isdecimal() else last
        config.problems.append(Problem(number, f"this is no TOML: {what}"))
        return {}


def _value(
    setting: Setting, flags: Mapping[str, Any], tables: dict[str, Any], config: Config
) -> Value:
    found = tables.pop(setting.name, None)  # taken out in any case: it is a setting's name
    if flags.get(setting.name) is not None:
        return Value(flags[setting.name], f"--{setting.name.replace('_', '-')}")
    if os.environ.get(setting.variable):
        try:
            return Value(_from_text(setting, os.environ[setting.variable]), setting.variable)
        except ValueError as error:
            config.problems.append(Problem(None, f"the variable {setting.variable}: {error}"))
    if found is not None:
        line = config.line(setting.name)
        if type(found) is not type(setting.default):
            what = f"{setting.name} must be {_kind(setting)}, found {found!r}"
            config.problems.append(Problem(line, what))
        elif not isinstance(found, bool) and isinstance(found, int) and found < setting.least:
            config.problems.append(
                Problem(line, f"{setting.name} must be {setting.least} or more, found {found}")
            )
        else:
            return Value(found, f"line {line}" if line else "the file")
    return Value(setting.default, "default")


def _from_text(setting: Setting, text: str) -> Any:
    if isinstance(setting.default, bool):
        word = text.strip().casefold()
        if word in ("1", "true", "yes", "on"):
            return True
        if word in ("0", "false", "no", "off"):
            return False
        raise ValueError(f"expected true or false, found {text!r}")
    if isinstance(setting.default, int):
        if not text.strip().isdecimal() or int(text) < setting.least:
            raise ValueError(f"expected a whole number from {setting.least} on, found {text!r}")
        return int(text)
    return text


def _flat_keys(
    table: Mapping[str, Any], config: Config, prefix: str = ""
) -> Iterator[tuple[str, str]]:
    for name, keys in table.items():
        binding_id = f"{prefix}{name}"
        if isinstance(keys, dict):
            yield from _flat_keys(keys, config, f"{binding_id}.")
        elif isinstance(keys, str) and keys.strip():
            yield binding_id, keys
        elif isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys):
            yield binding_id, ",".join(keys)
        else:
            line = config.key_line(binding_id)
            what = f'the keys of {binding_id!r} must be text such as "f1,?", found {keys!r}'
            config.problems.append(Problem(line, what))


def _kind(setting: Setting) -> str:
    names = {bool: "true or false", int: "a whole number", str: "text"}
    return names[type(setting.default)]


def _toml(value: bool | int | str) -> str:
    return str(value).lower() if isinstance(value, bool | int) else f'"{value}"'

"""``config``: the settings, where each comes from, and the file they are kept in."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Literal

from vlora_engine.errors import InputError, StorageError
from vlora_engine.utils.files import write_file
from vlora_tui.cli.declare import argument
from vlora_tui.cli.errors import FOUND
from vlora_tui.cli.output import Output, is_terminal
from vlora_tui.utils.config import SETTINGS, config_file, load_config, template
from vlora_tui.utils.editor import editor
from vlora_tui.utils.formatting import printable


def config(
    out: Output,
    action: Annotated[
        Literal["show", "path", "edit"],
        argument("show the settings, the file's path, or edit the file."),
    ] = "show",
) -> int:
    """Show the settings with their sources, name the file, or open it in an editor.

    Flags win over VLORA_... variables, these over the file, the file over the defaults.
    """
    if action == "edit":
        edit()
        return _show(out) if not out.quiet else 0
    if action == "path":
        out.json("config-path", {"path": str(config_file())})
        if not out.as_json:
            print(printable(str(config_file())))
        return 0
    return _show(out)


def edit() -> None:
    """Open the file in ``$VISUAL`` or ``$EDITOR``; make it first if it is not there.

    Raises:
        InputError: There is no editor to be found, or no terminal for it.
        StorageError: The file cannot be made.
    """
    file = config_file()
    words, looked_for = editor()
    if not words:
        raise InputError(
            "No editor was found.",
            found=looked_for,
            remedy=f"set EDITOR, or change the file yourself: {file}",
        )
    if not is_terminal(sys.stdin):
        raise InputError("An editor needs a terminal.", remedy=f"change the file yourself: {file}")
    if not file.exists():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"The config file cannot be made: {error.strerror}.", where=file
            ) from None
        write_file(file, template())
    code = subprocess.run([*words, str(file)]).returncode
    if code:
        raise InputError("The editor ended with an error.", found=f"{words[0]}: exit {code}")


def _show(out: Output) -> int:
    settings = load_config()
    problems = list(settings.problems)
    if settings.keys:
        from vlora_tui.tui.app.keymap import check_keys

        problems += check_keys(settings)
    rows = [
        {"name": s.name, "value": settings[s.name], "source": settings.values[s.name].source}
        for s in SETTINGS
    ]
    out.json(
        "config",
        {
            "path": str(settings.file),
            "settings": rows,
            "keys": settings.keys,
            "problems": [{"line": p.line, "what": p.what, "remedy": p.remedy} for p in problems],
        },
    )
    state = "" if settings.file.exists() else " (not there; `vlora-tui config edit` makes it)"
    out.text(f"{settings.file}{state}")
    out.text()
    shown = [
        (r["name"], _value(r["value"]), r["source"], s.help)
        for r, s in zip(rows, SETTINGS, strict=True)
    ]
    out.table(("setting", "value", "from", ""), shown)
    if settings.keys:
        out.text()
        out.table(
            ("binding", "keys", "from"),
            [(i, keys, f"line {settings.key_line(i)}") for i, keys in settings.keys.items()],
        )
    for problem in problems:
        out.warn(problem.text(settings.file))
    return FOUND if problems else 0


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

"""Words and figures as the screens show them. What comes from files is made harmless here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from rich.cells import cell_len

from vlora_engine.errors import VLoRAError

TONES = {"error": "error", "warning": "warning", "note": "muted"}  # of a finding, in a table


def clean(text: object) -> str:
    """``text`` in one line, without what would move the cursor, turn text round or colour it."""
    text = str(text)
    if text.isprintable():  # as nearly every text is, and a table has thousands
        return text
    return "".join(
        c if c.isprintable() else " " if c in "\n\t" else f"\\x{ord(c):02x}" for c in text
    )


def cut(
    text: str, width: int, *, ascii_only: bool, lost: Literal["start", "middle", "end"] = "end"
) -> str:
    """``text`` in at most ``width`` cells, with a mark where it was cut; ``~`` says "about" alone.

    Args:
        lost: Which part goes. Paths differ at their ends, other texts at their starts.
    """
    if cell_len(text) <= width:
        return text
    mark = (".." if ascii_only else "…")[: max(0, width)]
    limit = max(0, width) - len(mark)
    tail = {"start": limit, "middle": limit // 2, "end": 0}[lost]
    first, last = text, text if tail else ""
    while cell_len(first) > limit - tail:
        first = first[:-1]
    while cell_len(last) > tail:
        last = last[1:]
    return first + mark + last


def number(value: object) -> str:
    """A figure; ``-`` where it is not known."""
    return f"{value:g}" if isinstance(value, int | float) else "-"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """``1 task``, ``3 tasks``."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def tilde(path: str | Path) -> str:
    """A path with the home directory as ``~``, made harmless."""
    text, home = str(path), os.path.expanduser("~")
    if home not in ("/", "~") and (text == home or text.startswith(home + "/")):
        text = "~" + text[len(home) :]
    return clean(text)


_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
# What commands call by flags, and what a screen has for it.
_IN_WORDS = (
    (r"leave (it|them|these tasks) out with --skip-bad", r"skip \1"),
    (r"leave (?:it|them) out(?: on purpose)?(?: \(export --drop-rest\)| with --drop-rest"
     r"|: --drop-rest, when exporting|: export --target peft --drop-rest)",
     'set "other tensors" to drop'),
    (r"leaves? (?:it|them) out with --allow-loss", 'set "losses" to leave out'),
    (r"name (?:the|that) (base|model)( that it was trained on)?(?: with|:) --base(?: DIR)?",
     r'set "base" to the \1\2'),
    (r"name the base model's folder, or its config.json: --base DIR",
     'set "base" to the base model\'s folder, or its config.json'),
    (r"name another: --base DIR", 'set "base" to another folder'),
    (r"name it with --base", 'set "base model" to it'),
    (r"\? --base names it", '? Set "base" to that one'),
    (r"doctor --base tells, and names the command that leaves them out",
     "the doctor can tell once the base is known"),
    (r"lower it first: resize --target vllm", "lower it first (action resize, for a server)"),
    (r"give it the rank that it needs first: vlora-tui resize .*",
     "give it the rank that it needs first (Export, action resize)"),
    (r"name the rank and take the loss: --rank (\d+); or allow it: --max-error",
     r'take the loss: resize by "fixed rank" \1'),
    (r"export it with --target portable -o .*? own converter: .*",
     "export it for the target portable, then use llama.cpp's own convert_lora_to_gguf.py"),
    (r"--method linear takes", "method linear takes"),
    (r"; so does --no-normalize", '; so does "normalize" set to no'),
    (r"replace it with --force[^;]*", "confirm replacing it"),
    (r"pass --force to replace it", "confirm replacing it"),
    (r" \(--names\)", ""),
    (r" with --task-id", ""),
    (r"compress each group of `vlora-tui inspect` separately", "compress each group by itself"),
    (r"(?:make one with )?`?vlora-tui compress ADAPTERS -o DIR`?", "compress the adapters first"),
    (r"make them with `vlora-tui spectra PATHS -o DIR`", "measure the adapters again"),
    (r"vlora-tui pull (\S+) -o DIR", r"pull \1 into a folder first (Pull from the Hub, in Run)"),
    (r"vlora-tui export hf://\S+ \S+ -o \S+", "pull the subspace, then export the task"),
    (r"export its tasks: vlora-tui export DIR --all -o OUT", "open it, and export its tasks"),
    (r": vlora-tui basis makes one", "; only a command makes one"),
    (r"compare it with its adapter: vlora-tui diff .*", "compare its figures with its adapter's"),
    (r"vlora-tui jobs resume \S+: it", "resume it in Run: it"),
    (r"`vlora-tui jobs resume` goes", "resuming it in Run goes"),
    (r"`vlora-tui jobs` lists them", "Run lists them"),
    (r"`vlora-tui config show` lists them all", "the palette lists them all"),
    (r"write one with `run --print-recipe`", "Run opens the recipe of what is marked in an editor"),
    (r"--base MODEL writes the name", "a base model in its adapter_config.json would do"),
    (r"name (?:another|a)(?: state directory)?(.*?)(?: with|:) --state-dir DIR(?: \(or \w+\))?",
     r"set XDG_STATE_HOME to another folder\1"),
)  # fmt: skip
_COMMAND = re.compile(
    r"\bvlora-tui (?:demo|guide|inspect|info|spectra|plan|analyze|diff|interference|coverage|report"
    r"|module|validate|doctor|eval|benchmark|compress|compact|basis|quantize|convert|export"
    r"|reconstruct|add|remove|merge|resize|pull|push|run (?:--|\S*\.toml)|config|jobs)\b"
)
# Flags of other programs are what their users type: those stay.
_THEIRS = re.compile(r"--(?:max-lora|enable-|lora|outtype|local-dir|user|scope)")
COMMAND_ALONE = "the command line has an option for it"


def advice(text: str) -> str:
    """What mends something, for a screen: without flags and commands, which nobody can type here.

    An alternative that needs one is left out. Where there is no other, it says that only a command
    can do it.
    """
    text = in_words(text)
    parts = re.split(r"(, or |; or |; )", text)
    kept = [at for at in range(0, len(parts), 2) if not needs_command(parts[at])]
    shown = "".join((parts[at - 1] if n else "") + parts[at] for n, at in enumerate(kept))
    return shown if shown or not text else COMMAND_ALONE


def in_words(text: str) -> str:
    """A message for a screen: what it calls by flags and commands as the screen calls it."""
    for pattern, words in _IN_WORDS:
        text = re.sub(pattern, words, text)
    return re.sub(r" \([^()]*\)", lambda found: "" if needs_command(found[0]) else found[0], text)


def problem_words(error: BaseException) -> str:
    """An error for a screen: as it says itself, with every fix as `advice` gives it."""
    if not isinstance(error, VLoRAError):
        return str(error)
    lines = []
    for line in error.lines():
        label, mark, words = line.partition("fix: ")
        if not mark or label.strip():
            lines.append(in_words(line))
        elif mended := advice(words):
            lines.append(f"{label}{mark}{mended}")
    return "\n".join(lines)


def needs_command(text: str) -> bool:
    """Whether a text calls something by a flag of ours, or by a command."""
    flags = any(not _THEIRS.match(flag) for flag in _FLAG.findall(text))
    return flags or _COMMAND.search(text) is not None

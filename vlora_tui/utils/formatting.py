"""Figures and names as people read them, on a screen and in a report."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlora_engine.utils.naming import percent_text
from vlora_engine.utils.sizes import size as size


def printable(text: str) -> str:
    """``text`` without what would move the cursor or colour the screen: names come from files."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def escaped_json(text: str) -> str:
    """JSON of the same value whose characters all print: no control, no change of direction.

    Names come from files: a terminal would take such characters in them for commands.
    """
    return _RARE.sub(lambda found: _json_escapes(found[0]), text)


def escaped_toml(text: str) -> str:
    """TOML of the same value whose characters all print, as `escaped_json`."""
    return _RARE.sub(lambda found: _toml_escape(found[0]), text)


_RARE = re.compile(r"[^\n -~]")  # all but ASCII that prints


def _json_escapes(c: str) -> str:
    if c.isprintable():
        return c
    units = c.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in zip(*[iter(units)] * 2, strict=True))


def _toml_escape(c: str) -> str:
    if c.isprintable():
        return c
    return f"\\u{ord(c):04x}" if ord(c) < 1 << 16 else f"\\U{ord(c):08x}"


def percent(share: float | None) -> str:
    """An error or a share as a percentage of three digits; ``-`` where it is not known."""
    return "-" if share is None else percent_text(share)


def times(ratio: float | None) -> str:
    """A ratio: ``7.9x``."""
    return "-" if ratio is None else f"{ratio:.3g}x"


def nats(value: float | None) -> str:
    """A KL with three digits."""
    if value is None:
        return "-"
    return f"{value:.4f}" if value >= 0.01 or value == 0 else f"{value:.2g}"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """``1 task``, ``3 tasks``."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"


def listed(names: Sequence[str], most: int = 12) -> str:
    """``a, b and 3 more``: the first of some names, and how many there are besides."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


IN_BYTES = ("download", "upload")  # stages whose units are bytes


STAGES = {
    "download": "downloading",
    "upload": "uploading",
    "check": "checking",
    "coverage": "measuring",
    "spectra": "measuring",
    "codec": "measuring",
    "groups": "sharing",
    "methods": "comparing",
    "similarity": "comparing",
    "interference": "comparing",
    "basis": "making the basis",
    "build": "building",
    "refine": "refining",
    "benchmark": "timing",
    "quantize": "packing",
    "export": "exporting",
    "merge": "merging",
    "diagnose": "checking",
    "resize": "resizing",
    "convert": "converting",
    "originals": "reading originals",
    "evaluate": "evaluating",
    "add": "adding",
    "remove": "removing",
}


def stage_words(stage: str) -> str:
    """What a job is doing, of the stage that its progress names."""
    return STAGES.get(stage, stage)


def how_much(stage: str, done: int, total: int, of: str = "/") -> str:
    """``3/9``, or ``1.2 MB/4 MB`` of a stage that counts bytes."""
    return f"{size(done)}{of}{size(total)}" if stage in IN_BYTES else f"{done}{of}{total}"


def how_fast(stage: str, rate: float) -> str:
    """Units a second."""
    return f"{size(rate)}/s" if stage in IN_BYTES else f"{rate:.3g}/s"

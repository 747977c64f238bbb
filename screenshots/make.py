"""Make the pictures of the README from real runs: `make screenshots`."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

HERE = Path(__file__).resolve().parent
WIDTH = 100


def record(arguments: list[str], folder: str) -> str:
    """What a command prints on a terminal of this width, colours and all."""
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "vlora_tui", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=child,
        stderr=subprocess.DEVNULL,
    )
    os.close(child)
    chunks = []
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    if process.wait() != 0:
        raise SystemExit(f"vlora-tui {' '.join(arguments)} failed")
    return b"".join(chunks).decode().replace("\r\n", "\n")


def picture(name: str, arguments: list[str], folder: str) -> None:
    """Write the output of one command as an SVG."""
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(Text.assemble(("$ ", "dim"), ("vlora-tui " + " ".join(arguments), "bold")))
    console.print(Text.from_ansi(record(arguments, folder)))
    svg = console.export_svg(title="vlora-tui", unique_id=name)
    (HERE / f"{name}.svg").write_text(svg)
    print(f"screenshots/{name}.svg")


def main() -> None:
    """Run the demo in a folder of its own and look at what it made."""
    with tempfile.TemporaryDirectory() as folder:
        picture("demo", ["demo"], folder)
        picture("inspect", ["inspect", "vlora-demo/adapters"], folder)
        picture("info", ["info", "vlora-demo/subspace"], folder)


if __name__ == "__main__":
    main()

"""Make the pictures of the README from real runs: `make screenshots`."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from vlora_engine.demo import DEMO_ADAPTERS

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


async def interface(folder: str) -> None:
    """Walk through the five steps on the demo collection, as a user would, and look at each."""
    from vlora_tui.tui.app.app import VLoRAApp
    from vlora_tui.tui.core.messages import CollectionChanged

    app = VLoRAApp([f"{folder}/vlora-demo/adapters"])
    app.session.output = f"{folder}/shared"

    def look(name: str) -> None:
        # As long as the folder's own name, or the text would be stretched.
        home = "/home/you/models".ljust(len(folder), "s")[: len(folder)]
        svg = app.export_screenshot(title="vlora-tui").replace(folder, home)
        (HERE / f"{name}.svg").write_text(svg)
        print(f"screenshots/{name}.svg")

    async with app.run_test(size=(120, 36)) as pilot:

        async def until(holds: Callable[[], bool]) -> None:
            for _ in range(600):
                await pilot.pause(0.1)
                if holds():
                    return
            raise SystemExit("the interface did not get on")

        await until(lambda: len(app.session.infos) == len(DEMO_ADAPTERS))
        for info in app.session.infos.values():
            app.session.mark(str(info.path), info.name != "broken-nan")
        app.post_message(CollectionChanged())
        await pilot.pause(0.5)
        look("adapters")
        await pilot.press("2")
        await until(lambda: app.session.spectra is not None and app.session.spectra.complete)
        await until(lambda: app.session.spectra.rate_tables() is not None)
        await until(lambda: not app.view.figures.at_work)
        look("choose-k")
        await pilot.press("S")
        await until(lambda: not app.view.figures.at_work)
        look("sizes")
        await pilot.press("S")
        await pilot.press("4")
        await pilot.pause(1)
        look("inspect-step")
        await pilot.press("2", "w")
        await until(lambda: app.view.has_class("result"))
        await pilot.pause(1)
        look("run")
        await app.open_subspace(f"{folder}/shared")
        await pilot.press("5")
        await pilot.pause(1)
        look("export")
        await pilot.press("m", "M")
        await pilot.pause(1)
        look("merge")


def main() -> None:
    """Run the demo in a folder of its own and look at what it made."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
            os.environ[name] = f"{folder}/{name.lower()}"
        picture("demo", ["demo"], folder)
        picture("inspect", ["inspect", "vlora-demo/adapters"], folder)
        picture("info", ["info", "vlora-demo/subspace"], folder)
        asyncio.run(interface(folder))


if __name__ == "__main__":
    main()

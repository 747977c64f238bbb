"""Milliseconds from a key that moves k to the last byte for the terminal, as a process of its own.

``python -m tests.benchmarks.key_presses FILE PRESSES`` writes them to FILE, by what is shown.
Spectra of the size of a large collection are made in numpy; nothing of torch is imported.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from textual import events
from textual.app import App, ComposeResult
from textual.drivers.headless_driver import HeadlessDriver
from textual.pilot import Pilot
from textual.widgets import Static

from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.tables import (
    LayerTable,
    MethodTable,
    Spectra,
    TaskEntry,
    diagonal_k,
    grid_k,
    grid_points,
)

SIZE = (120, 36)
LIMIT = "limit: bare Textual, a text of that size"
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
METHODS = ("delta", "columns", "flat")
SETTLE_SECONDS = 0.15  # a key repeats faster than the other methods are worked out


def main(file: Path, presses: int) -> None:
    """Measure, and write what was found."""
    os.environ.pop("NO_COLOR", None)
    os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    found = {LIMIT: measure_limit(presses), **measure(presses)}
    file.write_text(json.dumps(found))


def measure(presses: int, *, tasks: int = 100, blocks: int = 32) -> dict[str, list[float]]:
    """Milliseconds of each press, by what is shown."""
    from vlora_tui.tui.app.app import VLoRAApp
    from vlora_tui.tui.core.session import Session

    session = Session(choosing=CompressionTarget(k=32))
    session.set_spectra(synthetic(tasks, blocks))
    app = VLoRAApp(session=session)
    taken: dict[str, list[float]] = {}

    async def steps(pilot: Pilot[Any]) -> None:
        async def presses_of(label: str) -> None:
            times = [await _press(app, "right_square_bracket", "]") for _ in range(presses)]
            taken[label] = times

        await pilot.pause()
        await app.show_step("choose")
        await asyncio.sleep(1.5)
        await presses_of("k by one")
        await pilot.press("t")
        await presses_of("k by one, the cells show the error")
        await pilot.press("p", "space")
        await presses_of("own k of a layer, a pin beside it")

    _run(app, steps)
    return taken


def measure_limit(presses: int) -> list[float]:
    """The same of a bare application."""
    app = _Bare()
    taken: list[float] = []

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.pause()
        taken.extend([await _press(app, "x", "x") for _ in range(presses)])

    _run(app, steps)
    return taken


class _Recorder(HeadlessDriver):
    """A terminal that keeps nothing but the time of the last byte."""

    last = 0.0

    @property
    def is_headless(self) -> bool:
        return False

    def write(self, data: str) -> None:
        _Recorder.last = time.perf_counter()


def _run(app: App[Any], steps: Callable[[Pilot[Any]], Awaitable[None]]) -> None:
    """Run ``app`` on a recording terminal while ``steps`` uses it."""

    async def pilot(pilot: Pilot[Any]) -> None:
        try:
            await steps(pilot)
        finally:
            app.exit()

    app.driver_class = _Recorder
    asyncio.run(app.run_async(size=SIZE, auto_pilot=pilot))


class _Bare(App[None]):
    def compose(self) -> ComposeResult:
        yield Static()

    def on_key(self) -> None:
        self.number = getattr(self, "number", 0) + 1
        line = f"{self.number:>6} ".ljust(SIZE[0], "x")
        self.query_one(Static).update("\n".join([line] * SIZE[1]))


async def _press(app: App[Any], key: str, character: str) -> float:
    """Milliseconds from a key to the last byte that was written for it."""
    start = time.perf_counter()
    app.post_message(events.Key(key, character))
    await asyncio.sleep(SETTLE_SECONDS)
    if _Recorder.last < start:
        raise RuntimeError(f"The key {character!r} painted nothing.")
    return 1000 * (_Recorder.last - start)


def synthetic(tasks: int, blocks: int, *, rank: int = 16, width: int = 1024) -> Spectra:
    """Spectra of a made-up collection, the shapes and sizes of real ones."""
    generator = np.random.default_rng(0)
    names = [f"model.layers.{block}.x.{module}" for block in range(blocks) for module in MODULES]
    points = grid_points(tasks, len(names), len(METHODS))
    layers = {}
    for name in names:
        energy = generator.uniform(0.5, 2, tasks)
        layers[name] = LayerTable(
            name=name,
            d_in=width,
            d_out=width,
            tasks=np.arange(tasks),
            ranks=np.full(tasks, rank),
            energy=energy,
            methods={
                method: _table(generator, energy, method, min(tasks * rank, width), points)
                for method in METHODS
            },
        )
    norms = np.sqrt(sum(layer.energy for layer in layers.values()))
    elements = len(names) * rank * 2 * width
    return Spectra(
        tasks=[
            TaskEntry(f"task-{i:03}", "", float(norm), 2 * elements, elements, 0, "F16")
            for i, norm in enumerate(norms)
        ],
        methods=list(METHODS),
        layer_names=names,
        layers=layers,
        overhead=dict.fromkeys(("F16", "BF16", "F32"), 200_000),
    )


def _table(
    generator: np.random.Generator, energy: Any, method: str, top: int, points: int
) -> MethodTable:
    """Residuals that fall exponentially in k, each layer and task at its own speed."""
    tasks = len(energy)
    top = tasks - 1 if method == "flat" else top
    speed = generator.uniform(4, 40) * np.exp(generator.normal(0, 0.1, tasks))

    def missed(k: Any) -> Any:  # (tasks, len(k))
        return np.where(k[None] < top, np.exp(-k[None] / speed[:, None]), 0.0)

    k = diagonal_k(top)
    side = np.zeros(0, dtype=np.int64) if method == "flat" else grid_k(k, top, points)
    edge = 1 - missed(side)
    grid = energy[:, None, None] * (1 - edge[:, None, :] * edge[:, :, None])
    values = np.exp(-np.arange(top) / (2 * speed.mean()))
    return MethodTable(
        k=k,
        residual=(energy[:, None] * (1 - (1 - missed(k)) ** 2)).astype(np.float32),
        grid_a=side,
        grid_b=side,
        grid=grid.astype(np.float32),
        singular_values_a=values,
        singular_values_b=values,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

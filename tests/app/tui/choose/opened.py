"""Step 2 with a session of its own, and what a test asks of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.app.tui.drive import Steps, run, screen_lines, until
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.spectra.tables import Spectra
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.choose.packings import AskPacking
from vlora_tui.tui.choose.view import ChooseView
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.widgets.dialogs import Ask

LAYER = "transformer.h.0.attn.c_attn"
TOP = 24  # six adapters of rank 4
BELOW = "transformer.h.1.attn.c_attn"


class Opened:
    """The screen with a session, and what a test asks of it."""

    def __init__(self, spectra: Spectra | None, **choosing: Any) -> None:
        target = CompressionTarget(**choosing) if choosing else CompressionTarget("delta")
        self.session = Session(choosing=target.checked())
        self.session.set_spectra(spectra)
        self.app = VLoRAApp(session=self.session)

    @property
    def view(self) -> ChooseView:
        assert isinstance(self.app.view, ChooseView)
        return self.app.view

    @property
    def goal(self) -> tuple[str, float]:
        return self.session.choosing.goal

    def text(self, pane: type[Any]) -> str:
        widget = self.view.query_one(pane)
        return "\n".join(widget.render_line(y).text for y in range(widget.size.height))

    def screen_lines(self) -> list[str]:
        return screen_lines(self.app)

    def asked_words(self) -> str:
        return str(self.app.screen.query_one(".words").render())

    async def asked(self, pilot: Any) -> None:
        """A dialog is there."""
        await until(pilot, lambda: isinstance(self.app.screen, Ask), "something is asked")

    async def known(self, pilot: Any) -> None:
        """The form of packings has its figures."""

        def known() -> bool:
            asking = self.app.screen
            return isinstance(asking, AskPacking) and bool(asking.figures)

        await until(pilot, known, "the packings are worked out")

    async def settled(self, pilot: Any) -> None:
        """Nothing is worked out any more."""
        for _ in range(400):
            await pilot.pause()
            if not (
                self.view.figures._working
                or self.view.figures._quiet
                or self.view.figures._arriving
            ):
                return
            await asyncio.sleep(0)
        raise AssertionError("figures are still worked out")

    def use(self, steps: Callable[[Any], Any], size: tuple[int, int] = (120, 36)) -> None:
        async def opened(pilot: Any) -> None:
            await self.app.show_step("choose")
            await self.settled(pilot)
            await steps(pilot)

        wrapped: Steps = opened
        run(self.app, wrapped, size)

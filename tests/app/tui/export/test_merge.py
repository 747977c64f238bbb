"""Step 5, merging: weights beside the inputs, methods, what a merge keeps, before it is written."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from textual.pilot import Pilot
from textual.widgets import Static

from tests.app.tui.drive import cells, resized, until
from tests.app.tui.export.screen import ExportApp, form_lines, settle, use, view, words
from vlora_engine.analysis.relations import Relations
from vlora_engine.errors import NotFoundError
from vlora_tui.jobs.watch import State
from vlora_tui.pipeline import events
from vlora_tui.tui.app.keys import Keys
from vlora_tui.tui.core.likeness import Likeness
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.core.subcommand import ask_command
from vlora_tui.tui.export import details as export_details
from vlora_tui.tui.export import view as export_view
from vlora_tui.tui.export.details import DetailsPane, Measured
from vlora_tui.tui.export.items import ItemsPane
from vlora_tui.tui.export.merge import MethodBox, likeness_words, method_text
from vlora_tui.tui.export.settings import MERGES
from vlora_tui.tui.widgets.table import Table


def items(pilot: Pilot[Any]) -> list[list[str]]:
    pane = pilot.app.query_one(ItemsPane)
    return cells(pane.table)


def titles(pilot: Pilot[Any]) -> list[str]:
    return [column.title for column in pilot.app.query_one(ItemsPane).table.columns]


def merge_of(pilot: Pilot[Any]) -> Any:
    recipe = view(pilot)._recipe()
    assert recipe is not None
    return recipe.merges[0]


# weights


def test_weights_stand_beside_the_inputs_and_are_changed_there(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        assert "weight" not in titles(pilot)
        await pilot.press("m")
        await settle(pilot)
        assert titles(pilot) == ["name", "rank", "weight", "size"]
        assert [row[2] for row in items(pilot)] == ["0.25"] * 4
        assert merge_of(pilot).weights is None
        await pilot.press("right_square_bracket", "down", "left", "down")  # arrows too
        await pilot.press("W", *"-1.5", "enter")
        await settle(pilot)
        assert [row[2] for row in items(pilot)] == ["0.3", "0.2", "-1.5", "0.25"]
        assert merge_of(pilot).weights == (0.3, 0.2, -1.5, 0.25)
        assert "0.3, 0.2, -1.5, 0.25" in form_lines(pilot)
        assert "--weights=0.3,0.2,-1.5,0.25" in (view(pilot).command_text() or "")
        await pilot.press("space")  # an input that is not merged has none
        await settle(pilot)
        assert [row[2] for row in items(pilot)][2] == "-"
        assert merge_of(pilot).weights == (0.3, 0.2, 1 / 3)

    use(opened, steps)


def test_shares_are_shown_where_only_ratios_matter(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m", "W", "3", "enter")
        view(pilot).editor.take(view(pilot).editor.settings.with_method("model_stock"))
        await settle(pilot)
        assert titles(pilot)[3] == "of all"
        assert [row[3] for row in items(pilot)] == ["80 %", "6.67 %", "6.67 %", "6.67 %"]
        view(pilot).editor.take(view(pilot).editor.settings.with_method("iso_c"))
        assert [row[2] for row in items(pilot)] == ["3", "1", "1", "1"]  # its own default is 1

    use(opened, steps)


def test_all_weights_are_typed_in_the_form(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m", "tab", "down", "down", "enter", *"1,2", "enter")
        assert len(pilot.app.screen_stack) == 2  # four are merged: it stays open
        await pilot.press(*",3 4", "enter")
        await settle(pilot)
        assert merge_of(pilot).weights == (1, 2, 3, 4)

    use(opened, steps)


# methods and settings


def test_methods_are_chosen_from_a_list_that_says_what_they_do(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("M")
        await pilot.pause()
        box = pilot.app.screen
        assert isinstance(box, MethodBox)
        table: Table[str] = box.query_one(Table)
        assert list(table.rows) == list(MERGES)
        table.move_to(list(MERGES).index("breadcrumbs"))
        await pilot.pause()
        said = str(box.query_one("#method-said", Static).render())
        spec = MERGES["breadcrumbs"]
        for told in (spec.summary, spec.acts_on, spec.weighting, spec.caution[:30]):
            assert told in said
        await pilot.press("enter")
        await settle(pilot)
        assert merge_of(pilot).method == "breadcrumbs"
        assert "gamma" in form_lines(pilot)

    use(opened, steps, (160, 40))


def test_every_method_is_told_in_full() -> None:
    for name, spec in MERGES.items():
        text = method_text(name).plain
        assert text.splitlines()[0].split("   also ")[0] == name  # as the list calls it
        for told in (spec.name, spec.summary, spec.acts_on, spec.weighting, spec.caution):
            assert told in text


def test_every_setting_of_a_merge_reaches_the_recipe(opened: Session) -> None:
    typed = {
        "scale": "1.5",
        "energy": "0.9",
        "layers": "*.c_attn=1,0,0,0",
        "density": "0.4",
    }

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m", "d", "d")
        view(pilot).editor.take(view(pilot).editor.settings.with_method("ties"))
        for key, text in typed.items():
            view(pilot).editor.edit(key)
            await pilot.pause()
            pilot.app.screen.query_one("Input").value = text
            await pilot.press("enter")
        view(pilot).editor.turn_value("normalize", -1)
        await settle(pilot)
        merge = merge_of(pilot)
        assert (merge.scale, merge.energy, merge.normalize) == (1.5, 0.9, False)
        assert merge.layers == {"*.c_attn": [1, 0, 0, 0]}
        assert merge.dtype == "fp16"
        assert merge.parameters == {"density": 0.4}

    use(opened, steps)


# what a merge keeps

ANSWER = {
    "schema": "vlora-tui/merge-preview",
    "merges": [
        {
            "rank": 16,
            "modules": 4,
            "cut_error": 0.125,
            "rest_left_out": ["score.weight"],
            "kept": {
                f"x{i}": {
                    "cosine": 0.9 - i / 4,
                    "strength": 0.2,
                    "energy": 1.0 - i / 5,
                    "worst_module": "h.1.attn",
                    "worst_cosine": 0.1,
                    "worst_energy": 0.1,
                }
                for i in range(4)
            },
        }
    ],
}


def kept(pilot: Pilot[Any]) -> list[list[str]]:
    pane = pilot.app.query_one(DetailsPane)
    table: Table[Any] = pane.query_one("#kept-table", Table)
    return cells(table) if table.display else []


def said(pilot: Pilot[Any]) -> str:
    return " ".join(words(pilot, "#details-said").split())


class Asked:
    """A faked command: what it was asked, what it answers once it may."""

    def __init__(self, answer: Any, *, wait: bool = False) -> None:
        self.calls: list[list[str]] = []
        self.answer, self.may = answer, threading.Event()
        self.was_cancelled = False
        if not wait:
            self.may.set()

    def __call__(self, arguments: Sequence[str], cancelled: Callable[[], bool]) -> Any:
        self.calls.append(list(arguments))
        while not self.may.wait(0.01):
            if cancelled():
                self.was_cancelled = True
                return None
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_what_a_merge_keeps_is_measured_on_a_key(
    opened: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(ANSWER)
    monkeypatch.setattr(export_details, "ask_command", asked)
    monkeypatch.setattr(export_view, "PAUSE_SECONDS", 1000)  # nothing by itself

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m")
        await settle(pilot)
        assert kept(pilot) == []
        assert "p measures" in said(pilot)
        await pilot.press("p")
        await settle(pilot)
        place = str(opened.manifest.path.absolute())
        names = [f"task0{i}" for i in range(4)]
        flags = ["--method", "average", "--preview"]
        assert asked.calls == [["merge", *(f"{place}:{name}" for name in names), *flags]]
        assert [row[0] for row in kept(pilot)] == names
        assert kept(pilot)[1][1:] == [".65", "80 %", "20 %", ".10", "h.1.attn"]
        assert "Rank 16" in said(pilot)
        assert "12.5 %" in said(pilot)  # what the cut cost
        assert "1 tensor" in said(pilot)
        assert "Worst: task00 in h.1.attn, cosine .10" in said(pilot)
        pilot.app.query_one("#kept-table", Table).move_to(2)
        await pilot.pause()
        assert "Worst: task02" in said(pilot)
        await pilot.press("p")  # it is known
        await settle(pilot)
        assert len(asked.calls) == 1
        await pilot.press("right_square_bracket")  # other weights, another merge
        assert "p measures again" in said(pilot)
        assert len(asked.calls) == 1
        await pilot.press("p")
        await settle(pilot)
        assert "--weights=0.3,0.25,0.25,0.25" in asked.calls[1]
        assert "Rank 16" in said(pilot)

    use(opened, steps)


def bars(pilot: Pilot[Any]) -> dict[str, tuple[str, str]]:
    """Per item the bar of what is kept of it, and the figure beside it."""
    pane = pilot.app.query_one(ItemsPane)
    keys = [column.key for column in pane.table.columns]
    if "kept" not in keys:
        return {}
    drawn = zip(pane.table.rows, cells(pane.table), strict=True)
    return {i.name: (row[keys.index("bar")], row[keys.index("kept")]) for i, row in drawn}


def test_arrows_change_a_weight_and_the_bars_follow(
    opened: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(ANSWER)
    monkeypatch.setattr(export_details, "ask_command", asked)
    monkeypatch.setattr(export_view, "PAUSE_SECONDS", 0.02)

    async def measured(pilot: Pilot[Any], calls: int) -> None:
        await until(pilot, lambda: len(asked.calls) >= calls, f"{calls} measurements")
        await settle(pilot)

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m")
        await settle(pilot)
        assert bars(pilot) == {}
        await pilot.press("right", "down", "left")
        await measured(pilot, 1)
        assert "--weights=0.3,0.2,0.25,0.25" in asked.calls[-1]
        assert set(bars(pilot).values()) == {("█▋      ", "20 %")}
        asked.may.clear()  # the next takes its time: what is known stays, marked
        calls = len(asked.calls)
        await pilot.press("left")
        await until(pilot, lambda: len(asked.calls) > calls, "a measurement")
        assert "--weights=0.3,0.15,0.25,0.25" in asked.calls[-1]
        assert set(bars(pilot).values()) == {("█▋      ", "~20 %")}
        asked.may.set()
        await settle(pilot)
        assert set(bars(pilot).values()) == {("█▋      ", "20 %")}
        calls = len(asked.calls)
        view(pilot).go_to_pane("export-how")  # there they turn what the cursor is on
        weights = dict(view(pilot).editor.settings.weights)
        await pilot.press("right")
        assert view(pilot).editor.settings.weights == weights

    use(opened, steps)


def test_a_merge_of_many_bytes_is_measured_when_it_is_asked_for(
    opened: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(ANSWER)
    monkeypatch.setattr(export_details, "ask_command", asked)
    monkeypatch.setattr(export_view, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(export_view, "QUICK_BYTES", 0)

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m", "right")
        for _ in range(20):
            await pilot.pause()
        assert asked.calls == []
        await pilot.press("p")
        await settle(pilot)
        assert len(asked.calls) == 1

    use(opened, steps)


def test_a_measurement_that_fails_says_why(
    opened: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    remedy = "scan the folder again, or look with vlora-tui info"
    error = NotFoundError("There is no such task.", remedy=remedy)
    monkeypatch.setattr(export_details, "ask_command", Asked(error))

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m", "p")
        await settle(pilot)
        assert "There is no such task" in said(pilot)
        assert "fix: scan the folder again" in said(pilot)
        assert "vlora-tui" not in said(pilot)

    use(opened, steps)


@pytest.mark.parametrize("key", ["x", "q", "right_square_bracket"])
def test_a_measurement_is_stopped_by_a_key_or_another_setting(
    opened: Session, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    asked = Asked(ANSWER, wait=True)
    monkeypatch.setattr(export_details, "ask_command", asked)
    monkeypatch.setattr(export_view, "PAUSE_SECONDS", 1000)  # nothing by itself

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m", "p")
        await until(pilot, lambda: asked.calls, "a measurement")
        assert "x to stop" in said(pilot)
        await pilot.press(key)
        await settle(pilot)
        assert asked.was_cancelled
        assert kept(pilot) == []
        assert "p measures" in said(pilot)

    use(opened, steps)


def test_what_was_drawn_for_the_measurement_is_what_is_written(
    opened: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked(ANSWER)
    monkeypatch.setattr(export_details, "ask_command", asked)

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m")
        view(pilot).editor.take(view(pilot).editor.settings.with_method("dare"))
        await settle(pilot)
        await pilot.press("p")
        await settle(pilot)
        await pilot.press("w")
        seed = pilot.app.started[0][0].merges[0].parameters["seed"]
        assert f"--seed={seed}" in asked.calls[0]
        assert f"--seed={seed}" in shlex.split(view(pilot).command_text() or "")

    use(opened, steps)


def test_the_measurement_is_that_of_the_engine(opened: Session) -> None:
    """One real process: two tasks, a cut of the rank that loses some of both."""

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m", "space", "space")
        view(pilot).editor.edit("rank")
        await pilot.pause()
        await pilot.press("2", "enter")
        await settle(pilot)
        pane = pilot.app.query_one(DetailsPane)
        pane.measure(view(pilot)._marked)
        arguments = pane._wanted
        assert arguments is not None
        await until(pilot, lambda: pane.knows(arguments), "what the merge keeps")
        answer = ask_command(arguments)
        assert answer is not None
        found = pane._found
        assert isinstance(found, Measured)
        wanted = answer["merges"][0]["kept"]
        assert [row.energy for row in found.retained] == [row["energy"] for row in wanted.values()]
        assert all(0 < row.energy < 1 for row in found.retained)
        assert found.rank == 2

    use(opened, steps)


def test_what_spectra_show_already_is_told_before() -> None:
    same, apart = np.array([1.0, 0, 0]), np.array([-0.6, 0.8, 0])
    dw = np.stack([same, 5 * apart, np.array([0, 0, 1.0])])
    likeness = Likeness(("a", "b", "c"), Relations(dw @ dw.T), (None,) * 3)
    told = likeness_words(likeness, ["a", "b", "c"])
    assert "a and b, cosine -.60; they pull against each other" in told
    assert "b is 5x the size of" in told
    assert "pull" not in likeness_words(likeness, ["b", "c"])
    assert likeness_words(likeness, ["a", "z"]) == ""  # not all of them were measured
    assert likeness_words(None, ["a", "b"]) == ""


# the result


def test_a_merge_is_read_back_and_opened(opened: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[list[str]] = []

    async def show(self: ExportApp, places: list[str]) -> None:
        shown.append(places)

    monkeypatch.setattr(ExportApp, "show_adapters", show)

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m", "w")
        await settle(pilot)
        path = pilot.app.started[0][0].merges[0].path
        names = ("task00", "task01", "task02", "task03")
        pilot.app.hear(
            events.Merged(path, "average", names, 16, 4, {"cut_error": 0.0}, 4321),
            events.Verified("merged", path, 3e-8),
            events.Finished(1.0),
            state=State.FINISHED,
        )
        await settle(pilot)
        told = words(pilot, "#preview-said")
        assert "rank 16, 4 modules, 4.32 kB, read back, off by <0.001 %" in told
        keys = [key.action for key in pilot.app.query_one(Keys).shown]
        assert "open" in keys
        assert len(keys) <= 7
        await pilot.press("v")
        assert shown == [[path]]
        await pilot.press("enter")  # on the preview: the same
        await pilot.pause()
        assert shown == [[path], [path]]
        assert len(pilot.app.started) == 1

    use(opened, steps)


def test_the_footer_has_seven_keys_at_most(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        async for size in resized(pilot, [(120, 36), (80, 24), (60, 20), (40, 12)]):
            for doing in ("merge", "resize", "convert", "export"):
                await pilot.press("m")
                await settle(pilot)
                assert view(pilot).editor.settings.doing == doing
                assert 3 <= len(pilot.app.query_one(Keys).shown) <= 7, (size, doing)

    use(opened, steps)

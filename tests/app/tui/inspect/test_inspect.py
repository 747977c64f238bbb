"""Step 4: likeness, groups, who stands apart, layers, two compared, findings; all from files."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from textual.pilot import Pilot
from textual.widgets import Input, Static
from textual.worker import WorkerCancelled

from tests.app.conftest import Cli
from tests.app.tui.drive import Steps, resized, run
from tests.witnesses import make
from vlora_engine.analysis.compare import find_duplicates, find_outliers
from vlora_engine.analysis.relations import Relations
from vlora_engine.analysis.similarity import compute_similarity_matrix, find_clusters
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import CorruptFileError, VLoRAError
from vlora_engine.findings import Finding
from vlora_engine.manifest.task_errors import task_figures
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.spectra.tables import Spectra
from vlora_engine.utils.naming import cosine_text
from vlora_tui.tui.app.app import VLoRAApp
from vlora_tui.tui.core.job_client import JobClient
from vlora_tui.tui.core.likeness import Likeness, likeness_of
from vlora_tui.tui.core.messages import CollectionChanged
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.core.subcommand import ask_command
from vlora_tui.tui.inspect import data as inspect_data
from vlora_tui.tui.inspect import queries as screen
from vlora_tui.tui.inspect import similarity as inspect_similarity
from vlora_tui.tui.inspect.data import Diff, kin_of
from vlora_tui.tui.inspect.module import ModuleBox
from vlora_tui.tui.inspect.view import InspectView
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.tui.widgets.matrix import Matrix
from vlora_tui.tui.widgets.table import Table


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """task00 to task03, a twin of task01, and one that is a hundred times as strong."""
    folder = tmp_path_factory.mktemp("inspect") / "runs"
    make.collection(folder, 4)
    shutil.copytree(folder / "task01", folder / "twin")
    strong = {k: 10 * t for k, t in make.factors(seed=77).items()}
    make.write(folder / "strong", strong)
    return folder


@pytest.fixture(scope="module")
def spectra(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("spectra") / "spectra"
    compute_spectra({path.name: open_adapter(path) for path in sorted(folder.iterdir())}, place)
    return place


@pytest.fixture
def measured(folder: Path, spectra: Path) -> Session:
    """A session in which all are marked and measured."""
    session = Session()
    session.add_found(scan([folder]).adapters)
    for path in session.infos:
        session.mark(path, True)
    session.set_spectra(Spectra.load(spectra))
    return session


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured unasked."""
    monkeypatch.setattr(inspect_similarity, "UNASKED_BYTES", -1)


@pytest.fixture
def opened(built: Path) -> Session:
    """A session with an open subspace and nothing else."""
    session = Session()
    session.manifest = read_manifest(built)
    return session


def look(
    session: Session,
    steps: Steps,
    size: tuple[int, int] = (120, 36),
    pane: str | None = None,
    **flags: Any,
) -> None:
    """Open the screen and take the steps from the matrix or the tasks, else from where it opens."""

    async def first(pilot: Pilot[Any]) -> None:
        await pilot.app.show_step("inspect")
        await settle(pilot)
        if pane is None:
            wanted = {"inspect-alike", "inspect-tasks"} & {tab.id for tab in view(pilot).panes()}
            if not view(pilot).has_class("empty"):
                view(pilot).go_to_pane(wanted.pop())
                await pilot.pause()
        await steps(pilot)

    run(VLoRAApp(session=session, **flags), first, size)


async def settle(pilot: Pilot[Any]) -> None:
    for _ in range(3):
        with suppress(WorkerCancelled):
            await pilot.app.workers.wait_for_complete()
        await pilot.pause()


def view(pilot: Pilot[Any]) -> InspectView:
    return pilot.app.query_one(InspectView)


def words(pilot: Pilot[Any], which: str) -> str:
    return str(pilot.app.query_one(which, Static).render())


def matrix(pilot: Pilot[Any]) -> Matrix:
    return pilot.app.query_one(Matrix)


def picture(widget: Any) -> str:
    return "\n".join(widget.render_line(y).text for y in range(widget.size.height))


# figures without torch


def test_figures_of_a_task_are_those_that_torch_reads(built: Path) -> None:
    manifest = read_manifest(built)
    subspace = SharedSubspace.load(built)
    for task in manifest.tasks:
        figures = task_figures(manifest, task)
        projection = subspace.tasks[task]
        assert figures.error_of == pytest.approx(projection.errors)
        norms = dict(zip(figures.layers, figures.norms, strict=True))
        assert norms == pytest.approx(projection.source_norms)


def test_a_task_file_without_figures_is_corrupt(subspace: Path) -> None:
    manifest = read_manifest(subspace)
    record = next(iter(manifest.tasks.values()))
    from safetensors.torch import save_file

    save_file({"norms": torch.zeros(3)}, subspace / "tasks" / record.file)
    with pytest.raises(CorruptFileError):
        task_figures(manifest, record.id)


def test_likeness_is_that_of_the_engine(folder: Path, spectra: Path) -> None:
    kept = Spectra.load(spectra)
    likeness = likeness_of(kept)
    assert likeness is not None
    sources = [open_adapter(folder / name) for name in likeness.names]
    expected = compute_similarity_matrix(sources)
    assert likeness.cosines == pytest.approx(expected.numpy(), abs=1e-6)
    groups = [sorted(group.members) for group in likeness.groups(0.9)]
    assert groups == [sorted(c) for c in find_clusters(expected, 0.9) if len(c) > 1]
    kin = kin_of(likeness, kept)
    outliers = {row["index"]: len(row["reasons"]) for row in find_outliers(sources)}
    assert {row.index: len(row.reasons) for row in kin.outliers} == outliers
    assert kin.outliers[0].name == "strong"
    (copies,) = find_duplicates(sources)
    assert [(g.kind, list(g.members)) for g in kin.groups] == [("identical", copies["members"])]


def test_the_like_stand_together() -> None:
    vectors = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1], [1, 0.05]], dtype=float)
    likeness = Likeness(tuple("abcde"), Relations(vectors @ vectors.T))
    order = "".join(likeness.names[i] for i in likeness.by_likeness)
    assert sorted(order) == list("abcde")
    assert set(order[:3]) == set("ace")


def test_layers_count_as_people_do() -> None:
    assert inspect_data.natural(["h.10.b", "h.2.b", "h.2.a"]) == ["h.2.a", "h.2.b", "h.10.b"]


# the matrix


def test_the_matrix_shows_figures_and_groups(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        shown = picture(matrix(pilot))
        assert "task00" in shown
        assert "1.0" in shown  # the twin
        assert matrix(pilot).in_view == (0, 6, 0, 6)
        assert "╲" in shown
        assert " A " in shown
        assert "adapters, similar ones adjacent" in str(
            pilot.app.query_one("#inspect-alike").border_subtitle
        )

    look(measured, steps)


def test_moving_says_the_pair_and_the_diagonal_one(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        matrix(pilot).go_to(measured.spectra.layer_names and 1, 5)
        await pilot.pause()
        names = matrix(pilot).names
        assert names[1] in words(pilot, "#matrix-said")
        assert names[5] in words(pilot, "#matrix-said")
        cosine = measured.spectra.cosines()[1, 5]
        assert f"cosine {cosine_text(cosine)}" in words(pilot, "#matrix-said")
        matrix(pilot).go_to(1, 1)
        await pilot.pause()
        assert "its layers" in words(pilot, "#matrix-said")

    look(measured, steps)


def test_the_matrix_fits_and_its_cursor_stays_in_sight(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        async for size in resized(pilot, [(120, 36), (80, 24), (60, 20), (40, 12)]):
            matrix(pilot).go_to(0, 0)
            await pilot.press("G", *["right"] * 8)
            top, bottom, left, right = matrix(pilot).in_view
            y, x = matrix(pilot).cursor
            assert top <= y < bottom, size
            assert left <= x < right, size
            for line in picture(matrix(pilot)).splitlines():
                assert len(line) == matrix(pilot).size.width, size

    look(measured, steps)


def test_next_goes_from_the_most_alike_on(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        cosines = measured.spectra.cosines()
        seen = []
        matrix(pilot).go_to(0, 0)
        for _ in range(4):
            await pilot.press("n")
            seen.append(float(cosines[matrix(pilot).pair]))
        assert seen[0] == pytest.approx(1.0)
        assert seen == sorted(seen, reverse=True)

    look(measured, steps)


def test_ascii_draws_ascii(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("tab", "shift+tab")
        assert picture(matrix(pilot)).isascii()
        assert picture(pilot.app.query_one("#layer-map")).isascii()

    look(measured, steps, ascii_only=True)


def test_a_hundred_adapters_scroll(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("G")
        assert matrix(pilot).cursor[0] == 99
        assert "100 " in picture(matrix(pilot))

    from dataclasses import replace

    vectors = np.random.default_rng(0).normal(size=(100, 5))
    known = measured.spectra
    assert known is not None
    measured.set_spectra(
        replace(
            known,
            tasks=[replace(known.tasks[0], name=f"a{i}") for i in range(100)],
            relations=Relations(vectors @ vectors.T),
        )
    )
    look(measured, steps)


# keys


def test_the_bound_moves_the_groups(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        table: Table[Any] = pilot.app.query_one("#group-table", Table)
        assert [(g.kind, len(g.members)) for g in table.rows] == [("alike", 2), ("identical", 2)]
        await pilot.press("]", "}", "}")
        assert "cosine 1.0 or" in str(pilot.app.query_one("#inspect-groups").border_title)
        await pilot.press(*["{"] * 10)
        assert len(table.rows[0].members) > 2
        command = shlex.split(view(pilot).command_text() or "")
        assert command[1] == "analyze" or command[1] == "diff"

    look(measured, steps)


def test_order_and_filter(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("o")
        assert matrix(pilot).order == list(range(6))
        await pilot.press("/")
        await pilot.press(*"task")
        assert len(matrix(pilot).order) == 4
        await pilot.press("enter")
        assert pilot.app.focused is matrix(pilot)
        await pilot.press("escape")
        assert len(matrix(pilot).order) == 6
        assert not pilot.app.query_one("#inspect-filter", Input).has_class("open")

    look(measured, steps)


def test_enter_on_who_stands_apart_shows_it_in_the_matrix(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        view(pilot).go_to_pane("inspect-apart")
        await pilot.pause()
        table: Table[Any] = pilot.app.query_one("#apart-table", Table)
        assert table.row.name == "strong"
        await pilot.press("s")
        await pilot.press("home", "enter")
        pair = matrix(pilot).pair
        assert pair is not None
        assert pair[0] == pair[1] == table.row.index

    look(measured, steps)


def test_tab_goes_through_the_panes(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        seen = []
        for _ in range(6):
            seen.append(view(pilot).pane)
            await pilot.press("tab")
        assert seen == [tab.id for tab in view(pilot).panes()]
        assert view(pilot).pane == seen[0]
        await pilot.press("shift+tab")
        assert view(pilot).pane == seen[-1]

    for size in ((120, 36), (80, 24), (40, 12)):
        look(measured, steps, size, pane="inspect-summary")


def test_small_terminals_show_one_pane(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("tab")
        shown = [p.id for p in view(pilot).query(".pane") if p.display and p.size.height]
        assert shown == ["inspect-layers"]

    look(measured, steps, (80, 24))


# layers


def test_layers_show_what_the_choice_loses(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        matrix(pilot).go_to(2, 2)
        await pilot.press("enter")
        choice = measured.figures().choice
        assert choice is not None
        losses = inspect_data.losses_of(measured.spectra, choice, 2)
        # The whole from its parts: the errors of the layers make up that of the task.
        sizes = inspect_data.sizes_of(measured.spectra, 2)
        whole = sum((losses[n] * sizes[n]) ** 2 for n in losses) / sum(v**2 for v in sizes.values())
        name = measured.spectra.tasks[2].name
        exact = measured.spectra.tasks and choice.prediction.task_errors[name]
        assert whole**0.5 == pytest.approx(exact, rel=0.02)
        heatmap = pilot.app.query_one("#layer-map", Heatmap)
        assert pilot.app.focused is heatmap
        assert len(heatmap.cells) == len(measured.spectra.layer_names)
        before = words(pilot, "#layers-said")
        await pilot.press("m")
        assert words(pilot, "#layers-said") != before
        assert "norm" in str(pilot.app.query_one("#inspect-layers").border_title)

    measured.choose(CompressionTarget(k=3))
    look(measured, steps)


def test_two_are_compared_in_a_process_of_its_own(
    measured: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(arguments: list[str], cancelled: Callable[[], bool]) -> dict[str, Any]:
        asked.append(arguments)
        figures = {"cosine_sim": 0.25, "relative_difference": 1.2, "norm_a": 1, "norm_b": 2}
        return {"total": figures, "modules": {"h.0.x": figures, "h.1.x": figures}}

    async def steps(pilot: Pilot[Any]) -> None:
        matrix(pilot).go_to(0, 3)
        await pilot.press("enter")
        await settle(pilot)
        spectra = measured.spectra
        assert asked == [["diff", spectra.tasks[0].path, spectra.tasks[3].path]]
        assert ".25" in picture(pilot.app.query_one("#layer-map"))
        await pilot.press("m")
        assert "120" in picture(pilot.app.query_one("#layer-map"))
        command = shlex.split(view(pilot).command_text() or "")
        assert command == ["vlora-tui", *asked[0]]
        await pilot.press("escape")
        assert pilot.app.focused is matrix(pilot)
        await pilot.press("enter")  # known by now
        await settle(pilot)
        assert len(asked) == 1

    monkeypatch.setattr(screen, "ask_command", answer)
    look(measured, steps)


def test_enter_on_a_layer_looks_closer(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        matrix(pilot).go_to(0, 3)
        names = [matrix(pilot).names[i] for i in (0, 3)]
        await pilot.press("enter")
        await settle(pilot)
        await pilot.press("down", "enter")  # layer 1 of the pair
        box = pilot.app.screen
        assert isinstance(box, ModuleBox)
        assert box.arguments[0] == "module"
        assert box.arguments[-1].startswith("transformer.h.1.")
        await settle(pilot)
        told = str(pilot.app.screen.query_one(".many Static", Static).render())
        assert told.count("rank 4") == 2
        assert all(name in told for name in names)
        assert "Together" in told
        await pilot.press("q")
        assert not isinstance(pilot.app.screen, ModuleBox)
        await pilot.press("escape")
        matrix(pilot).go_to(2, 2)
        await pilot.press("enter", "enter")  # one adapter's
        await settle(pilot)
        assert "Together" not in str(pilot.app.screen.query_one(".many Static", Static).render())

    measured.choose(CompressionTarget(k=3))
    look(measured, steps)


def test_a_comparison_that_fails_says_why(
    measured: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(arguments: list[str], cancelled: Callable[[], bool]) -> dict[str, Any]:
        raise VLoRAError("The disk is gone.", remedy="mount it")

    async def steps(pilot: Pilot[Any]) -> None:
        matrix(pilot).go_to(0, 3)
        await pilot.press("enter")
        await settle(pilot)
        assert "The disk is gone." in words(pilot, "#layers-said")
        assert "mount it" in words(pilot, "#layers-said")

    monkeypatch.setattr(screen, "ask_command", answer)
    look(measured, steps)


def test_a_comparison_can_be_stopped(measured: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def answer(arguments: list[str], cancelled: Callable[[], bool]) -> None:
        while not cancelled():
            time.sleep(0.01)
        ended.append(True)

    async def steps(pilot: Pilot[Any]) -> None:
        matrix(pilot).go_to(0, 3)
        await pilot.press("enter")
        assert "x to stop" in words(pilot, "#layers-said")
        await pilot.press("x")
        await settle(pilot)
        assert ended
        assert "x to stop" not in words(pilot, "#layers-said")

    monkeypatch.setattr(screen, "ask_command", answer)
    look(measured, steps)


def test_the_command_answers_and_its_failures_are_told(folder: Path) -> None:
    answer = ask_command(["diff", str(folder / "task01"), str(folder / "twin")])
    assert answer is not None
    diff = Diff.of(answer)
    assert diff.total["cosine_sim"] == pytest.approx(1.0)
    assert all(v == pytest.approx(1.0) for v in diff.measure("cosine_sim").values())
    with pytest.raises(VLoRAError) as caught:
        ask_command(["diff", str(folder / "task01"), str(folder / "nobody")])
    assert "nobody" in str(caught.value)
    assert ask_command(["diff", str(folder / "task01"), str(folder / "twin")], lambda: True) is None


# a subspace


def test_tasks_of_a_subspace_and_their_layers(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        table: Table[Any] = pilot.app.query_one("#task-table", Table)
        everything, *tasks = table.rows
        assert everything.id == ""
        assert {task.id for task in tasks} == set(opened.manifest.tasks)
        assert [t.error for t in tasks] == sorted((t.error for t in tasks), reverse=True)
        await pilot.press("down")
        await settle(pilot)
        figures = task_figures(opened.manifest, table.row.id)
        assert set(pilot.app.query_one("#layer-map", Heatmap).cells) == set(figures.layers)
        assert "method delta" in words(pilot, "#task-facts")

    look(opened, steps)


def test_two_tasks_are_compared_by_keeping_one(
    opened: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def answer(arguments: list[str], cancelled: Callable[[], bool]) -> dict[str, Any]:
        asked.append(arguments)
        return {"total": {"cosine_sim": 1.0}, "modules": {"h.0.x": {"cosine_sim": 1.0}}}

    async def steps(pilot: Pilot[Any]) -> None:
        table: Table[Any] = pilot.app.query_one("#task-table", Table)
        await pilot.press("down")  # from the row of all tasks
        first = table.row.id
        await pilot.press("space", "down")
        second = table.row.id
        await pilot.press("enter")
        await settle(pilot)
        place = opened.manifest.path
        assert asked == [["diff", f"{place}:{first}", f"{place}:{second}"]]

    monkeypatch.setattr(screen, "ask_command", answer)
    look(opened, steps)


def test_a_task_file_that_is_gone_is_said(subspace: Path) -> None:
    session = Session()
    session.manifest = read_manifest(subspace)
    shutil.rmtree(subspace / "tasks")

    async def steps(pilot: Pilot[Any]) -> None:
        assert "There is no such file" in words(pilot, "#layers-said")

    look(session, steps)


def test_turning_between_adapters_and_tasks(measured: Session, built: Path) -> None:
    measured.manifest = read_manifest(built)

    async def steps(pilot: Pilot[Any]) -> None:
        assert "inspect-tasks" in [tab.id for tab in view(pilot).panes()]  # what was opened
        await pilot.press("t")
        assert "inspect-alike" in [tab.id for tab in view(pilot).panes()]
        await pilot.press("t")
        assert "inspect-tasks" in [tab.id for tab in view(pilot).panes()]

    look(measured, steps)


# findings, and nothing


def test_findings_of_headers_and_of_spectra_each_once(measured: Session) -> None:
    spectra = measured.spectra
    assert spectra is not None
    path = next(iter(measured.infos))
    spectra.findings = [
        Finding("no-effect", "warning", "B is zero.", adapter=path),
        Finding("no-effect", "warning", "B is zero.", adapter=path),
    ]
    spectra.skipped = [
        {"error": "AdapterError", "what": "The adapter holds NaN.", "where": "/x/bad: tensor B",
         "found": "1 entry", "remedy": "leave it \x1b[31mout"},
    ]  # fmt: skip

    async def steps(pilot: Pilot[Any]) -> None:
        table: Table[Any] = pilot.app.query_one("#finding-table", Table)
        rows = [(r.severity, r.about) for r in table.rows][:2]
        assert rows == [("error", "bad"), ("warning", measured.infos[path].name)]
        assert len([r for r in table.rows if r.what == "B is zero."]) == 1
        view(pilot).go_to_pane("inspect-findings")
        await pilot.press("home")
        assert "\x1b" not in words(pilot, "#findings-remedy")
        assert "leave it" in words(pilot, "#findings-remedy")
        assert "NaN" in (view(pilot).row_text() or "")

    look(measured, steps)


def test_broken_adapters_are_findings(broken: Path) -> None:
    session = Session()
    session.add_found(scan([broken]).adapters)

    async def steps(pilot: Pilot[Any]) -> None:
        table: Table[Any] = pilot.app.query_one("#finding-table", Table)
        assert table.rows[0].severity == "error"
        assert "cut-short" in table.rows[0].about
        assert "2 measures" in words(pilot, "#matrix-said")
        assert pilot.app.focused is not None

    look(session, steps)


@pytest.mark.parametrize("size", [(120, 36), (80, 24), (40, 12), (10, 4)])
def test_nothing_open_says_what_to_do(size: tuple[int, int]) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        assert "1 opens" in words(pilot, "#nothing")
        await pilot.press("tab", "enter", "]", "m", "o", "s", "t", "n")

    look(Session(), steps, size)


def test_before_all_layers_are_measured_it_says_so(measured: Session) -> None:
    spectra = measured.spectra
    assert spectra is not None
    spectra.relations = None
    del spectra.layers[spectra.layer_names[-1]]

    async def steps(pilot: Pilot[Any]) -> None:
        count = len(spectra.layer_names)
        assert f"{count - 1} of {count}" in words(pilot, "#matrix-said")

    look(measured, steps)


def test_while_a_job_measures_it_says_so_and_not_to_begin(
    measured: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured.spectra = None
    measuring = True
    monkeypatch.setattr(JobClient, "is_measuring", property(lambda jobs: measuring))

    async def steps(pilot: Pilot[Any]) -> None:
        nonlocal measuring
        assert "Measuring" in words(pilot, "#matrix-said")
        measuring = False
        pilot.app.post_message(CollectionChanged())
        await pilot.pause()
        assert "2 measures the 6 marked adapters" in words(pilot, "#matrix-said")

    look(measured, steps)


def test_the_copied_command_prints_the_same_groups(measured: Session, cli: Cli) -> None:
    commands = []

    async def steps(pilot: Pilot[Any]) -> None:
        matrix(pilot).go_to(0, 0)
        await pilot.pause()
        commands.append(view(pilot).command_text())

    look(measured, steps)
    data = cli(*shlex.split(commands[0] or "")[1:], "--json").data
    likeness = likeness_of(measured.spectra)
    assert likeness is not None
    found = [sorted(c) for c in data["clusters"] if len(c) > 1]
    assert found == [sorted(likeness.names[i] for i in g.members) for g in likeness.groups(0.9)]
    assert json.dumps(data)

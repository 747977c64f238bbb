"""Step 4, closer: outliers per family, copies and runs, interference, coverage, the doctor."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from textual.pilot import Pilot
from textual.widgets import Static

from tests.app.tui.drive import resized
from tests.app.tui.inspect.test_inspect import folder as plain_folder
from tests.app.tui.inspect.test_inspect import (
    look,
    matrix,
    measured,
    picture,
    quiet,
    settle,
    view,
    words,
)
from tests.app.tui.inspect.test_inspect import spectra as plain_spectra
from tests.witnesses import make
from vlora_engine.analysis.compare import find_outliers
from vlora_engine.analysis.interference_measures import interference
from vlora_engine.analysis.relations import Relations
from vlora_engine.catalog.open import open_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.doctor import TARGETS, verdict
from vlora_engine.findings import Finding
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.spectra.tables import Spectra
from vlora_engine.subspace.coverage import coverage_total, subspace_coverage
from vlora_tui.tui.app.keymap import all_bindings
from vlora_tui.tui.app.keys import Keys
from vlora_tui.tui.core.likeness import likeness_of
from vlora_tui.tui.core.messages import CollectionChanged, SubspaceChanged
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.inspect import queries as inspect_queries
from vlora_tui.tui.inspect import similarity as inspect_similarity
from vlora_tui.tui.inspect.data import Coverage, Interference, kin_of
from vlora_tui.tui.inspect.finding_rows import Remark, module_in, remarks_in
from vlora_tui.tui.inspect.module import ModuleBox
from vlora_tui.tui.widgets.heatmap import Heatmap
from vlora_tui.tui.widgets.table import Table

folder, spectra, measured_plainly = plain_folder, plain_spectra, measured  # the fixtures
measures_nothing_unasked = quiet

Answer = Callable[[list[str], Callable[[], bool]], Mapping[str, Any] | None]


@pytest.fixture(scope="module")
def kin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of a kind, three steps of a run; task01 twice more: as it is, and at half its scale."""
    folder = tmp_path_factory.mktemp("kin") / "runs"
    make.collection(folder, 4)
    start, way = make.factors(seed=900), make.factors(seed=901)
    for step in (100, 200, 400):
        grown = {
            key: start[key] + step * 1e-4 * way[key] if "lora_A" in key else step * 1e-2 * way[key]
            for key in start
        }
        make.write(folder / f"checkpoint-{step}", grown)
    shutil.copytree(folder / "task01", folder / "twin")
    make.write(
        folder / "half",
        load_file(folder / "task01" / "adapter_model.safetensors"),
        make.config(lora_alpha=4),
    )
    return folder


@pytest.fixture(scope="module")
def kin_spectra(kin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("kin-spectra") / "spectra"
    sources = {path.name: open_adapter(path) for path in sorted(kin_folder.iterdir())}
    compute_spectra(sources, place)
    return place


@pytest.fixture
def kin(kin_folder: Path, kin_spectra: Path) -> Session:
    """A session in which all of them are marked and measured."""
    return session_on(kin_folder, kin_spectra)


@pytest.fixture(scope="module")
def odd_places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Nine of a kind, of which task03 is 50 times as strong in c_proj; and their spectra."""
    root = tmp_path_factory.mktemp("odd")
    paths = make.collection(root / "runs", 9)
    odd = paths[3] / "adapter_model.safetensors"
    tensors = load_file(odd)
    save_file({k: 50 * t if "c_proj.lora_B" in k else t for k, t in tensors.items()}, odd)
    compute_spectra({path.name: open_adapter(path) for path in paths}, root / "spectra")
    return root / "runs", root / "spectra"


@pytest.fixture
def odd(odd_places: tuple[Path, Path]) -> Session:
    """A session in which all of them are marked and measured."""
    return session_on(*odd_places)


def session_on(folder: Path, spectra: Path) -> Session:
    session = Session()
    session.add_found(scan([folder]).adapters)
    for path in session.infos:
        session.mark(path, True)
    session.set_spectra(Spectra.load(spectra))
    return session


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[list[str]]]:
    """Have commands answered without a process: ``answers(how)`` gives the list of those asked."""

    def prepare(how: Answer) -> list[list[str]]:
        asked: list[list[str]] = []

        def answer(arguments: list[str], cancelled: Callable[[], bool]) -> Mapping[str, Any] | None:
            asked.append(arguments)
            return how(arguments, cancelled)

        monkeypatch.setattr(inspect_queries, "ask_command", answer)
        return asked

    return prepare


def rows(pilot: Pilot[Any], which: str) -> list[Any]:
    return list(pilot.app.query_one(which, Table).rows)


def point_at(pilot: Pilot[Any], which: str, at: Callable[[Any], bool]) -> None:
    table: Table[Any] = pilot.app.query_one(which, Table)
    table.move_to(next(i for i, row in enumerate(table.rows) if at(row)))


# who stands apart


def test_an_outlier_of_one_family_leads_to_a_layer_of_it_and_to_its_module(odd: Session) -> None:
    sources = [open_adapter(task.path) for task in odd.spectra.tasks]
    (expected,) = (
        row for row in find_outliers(sources) if sources[row["index"]].path.name == "task03"
    )

    async def steps(pilot: Pilot[Any]) -> None:
        view(pilot).go_to_pane("inspect-apart")
        point_at(pilot, "#apart-table", lambda row: row.name == "task03")
        await pilot.pause()
        row = pilot.app.query_one("#apart-table", Table).row
        for reason, wanted in zip(row.reasons, expected["reasons"], strict=True):
            assert (reason.family, reason.feature) == (wanted["family"], wanted["feature"])
            assert (reason.value, reason.score) == pytest.approx(
                (wanted["value"], wanted["score"]), rel=1e-4
            )
        assert row.foremost_reason.family == "c_proj"
        said = words(pilot, "#apart-said")
        assert "size of c_proj: ||dW||" in said
        assert f"where {row.foremost_reason.typical:.3g} is usual" in said
        await pilot.press("enter")
        await settle(pilot)
        assert view(pilot).pane == "inspect-layers"
        layer = pilot.app.query_one("#layer-map", Heatmap).focused_layer
        sizes = {m: np.linalg.norm(dense(sources[row.index], m)) for m in odd.spectra.layer_names}
        assert layer == max((m for m in sizes if m.endswith("c_proj")), key=lambda m: sizes[m])
        assert f"  {sizes[layer]:.0f}, the most" in words(pilot, "#layers-said")
        await pilot.press("enter")
        assert pilot.app.screen.arguments == ["module", str(sources[row.index].path), layer]

    look(odd, steps)


def dense(source: Any, module: str) -> Any:
    a, b = source.read(module)
    return (source.scales[module] * b @ a).numpy()


def test_spectra_of_an_earlier_version_tell_outliers_of_the_whole_and_equal_files(
    kin: Session,
) -> None:
    spectra = replace(kin.spectra, relations=Relations(kin.spectra.relations.total))
    likeness = likeness_of(spectra)
    assert likeness is not None
    told = kin_of(likeness, spectra)
    assert not any(reason.family for row in told.outliers for reason in row.reasons)
    assert [group.kind for group in told.groups] == ["identical"]


# groups


def test_copies_and_runs_stand_beside_the_clusters_each_with_how_it_is_known(kin: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        view(pilot).go_to_pane("inspect-groups")
        names = [task.name for task in kin.spectra.tasks]
        table = rows(pilot, "#group-table")
        found = {row.kind: [names[i] for i in row.members] for row in reversed(table)}
        assert found["identical"] == ["task01", "twin"]
        assert set(found["multiple"]) == {"half", "task01"}
        assert found["run"] == ["checkpoint-100", "checkpoint-200", "checkpoint-400"]
        assert set(found["alike"]) >= {"half", "task01", "twin"}
        for kind, telling in (
            ("identical", "the same bits"),
            ("multiple", "at the strengths"),
            ("run", "steps from their names; dW moves on from step to step: 100, 200, 400"),
            ("alike", "not similar to any other"),
        ):
            point_at(pilot, "#group-table", lambda row, kind=kind: row.kind == kind)
            await pilot.pause()
            assert telling in words(pilot, "#groups-said")
            assert telling in (view(pilot).row_text() or "")
        shown = picture(pilot.app.query_one("#group-table"))
        assert all(word in shown for word in ("copies", "multiples", "one run", "similar"))
        point_at(pilot, "#group-table", lambda row: row.kind == "run")
        await pilot.press("enter")
        assert view(pilot).pane == "inspect-alike"
        assert [names[i] for i in matrix(pilot).pair] == ["checkpoint-100", "checkpoint-200"]

    look(kin, steps, (120, 50))


def test_enter_on_a_group_shows_it_even_where_the_filter_hid_a_member(kin: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("/", *"twin", "enter")
        assert len(matrix(pilot).order) == 1
        view(pilot).go_to_pane("inspect-groups")
        point_at(pilot, "#group-table", lambda row: row.kind == "identical")
        await pilot.press("enter")
        names = [task.name for task in kin.spectra.tasks]
        assert [names[i] for i in matrix(pilot).pair] == ["task01", "twin"]

    look(kin, steps)


# interference


def interfering(names: list[str]) -> dict[str, Any]:
    """An answer in which every cell can be told from the others."""
    levels = {"cosine": 0.0, "writes": 0.1, "reads": 0.3, "overlap": 0.5, "sign_conflict": 0.7}
    return {
        "adapters": names,
        "matrices": {
            measure: {
                a: {b: level + 0.01 * i + 0.001 * j for j, b in enumerate(names)}
                for i, a in enumerate(names)
            }
            for measure, level in levels.items()
        },
    }


def test_interference_is_measured_once_and_turned_through(
    measured: Session, answers: Callable[[Answer], list[list[str]]]
) -> None:
    names = [task.name for task in measured.spectra.tasks]
    asked = answers(lambda arguments, cancelled: interfering(names))

    async def steps(pilot: Pilot[Any]) -> None:
        matrix(pilot).go_to(1, 3)
        await pilot.press("i")
        await settle(pilot)
        paths = [task.path for task in measured.spectra.tasks]
        assert asked == [["interference", *paths]]
        alike = pilot.app.query_one("#inspect-alike")
        for title, level, words_of_it in (
            ("the other contests", 0.713 * 0.531, "contested 37.9 %"),
            ("conflicting share", 0.713, "conflicting 71.3 %"),
            ("in both spaces", 0.513, "overlap 51 / 53 %"),
            ("column's outputs", 0.113, "output overlap 11 / 13 %"),
            ("column's inputs", 0.313, "input overlap 31 / 33 %"),
        ):
            assert title in str(alike.border_title)
            assert f"{100 * level:.0f}" in picture(matrix(pilot))
            said = words(pilot, "#matrix-said")
            # The measure that is shown comes first, all others after it.
            assert said.index(words_of_it) == min(
                said.index(word)
                for word in ("contested", "conflicting", "overlap", "output", "input")
            )
            assert shlex.split(view(pilot).command_text() or "") == ["vlora-tui", *asked[0]]
            await pilot.press("i")
        assert "cosine of dW" in str(alike.border_title)
        assert "overlap 51 / 53 %" in words(pilot, "#matrix-said")  # it stays known
        assert len(asked) == 1

    look(measured, steps)


def test_interference_is_shown_wherever_it_was_asked_for(
    measured: Session, answers: Callable[[Answer], list[list[str]]]
) -> None:
    """With one pane at a time its key leads to the matrix, which tells all of the pair."""
    names = [task.name for task in measured.spectra.tasks]
    answers(lambda arguments, cancelled: interfering(names))

    async def steps(pilot: Pilot[Any]) -> None:
        matrix(pilot).go_to(1, 3)
        view(pilot).go_to_pane("inspect-summary")
        await pilot.pause()
        await pilot.press("i")
        await settle(pilot)
        assert view(pilot).pane == "inspect-alike"
        said = pilot.app.query_one("#matrix-said", Static)
        lines = said.render_lines(said.size.region)
        shown = " ".join(strip.text.strip() for strip in lines)
        assert "input overlap" in shown
        assert "norms" in shown  # which come last

    look(measured, steps, (80, 24))


def test_interference_can_be_stopped(
    measured: Session, answers: Callable[[Answer], list[list[str]]]
) -> None:
    ended = []

    def wait(arguments: list[str], cancelled: Callable[[], bool]) -> None:
        while not cancelled():
            time.sleep(0.01)
        ended.append(True)

    answers(wait)

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("i")
        assert "x to stop" in words(pilot, "#matrix-said")
        assert "?" in picture(matrix(pilot))
        legend = matrix(pilot).legend
        assert legend is not None
        assert not legend.stops  # no figures of what nobody knows yet
        await pilot.press("x")
        await settle(pilot)
        assert ended
        assert "x to stop" not in words(pilot, "#matrix-said")
        assert "?" not in picture(matrix(pilot))

    look(measured, steps)


def test_interference_that_fails_says_why_and_can_be_asked_again(
    measured: Session, answers: Callable[[Answer], list[list[str]]]
) -> None:
    asked = answers(lambda arguments, cancelled: {"adapters": ["half an answer"]})

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("i")
        await settle(pilot)
        assert "could not be measured" in words(pilot, "#matrix-said")
        await pilot.press("i")
        assert "could not" not in words(pilot, "#matrix-said")
        await pilot.press("i")
        await settle(pilot)
        assert len(asked) == 2

    look(measured, steps)


def test_of_many_only_marked_ones_are_measured_and_that_is_said(
    measured: Session,
    answers: Callable[[Answer], list[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inspect_similarity, "MANY", 4)
    tasks = measured.spectra.tasks
    measured.marked = dict.fromkeys([tasks[1].path, tasks[4].path])
    asked = answers(lambda arguments, cancelled: interfering([tasks[1].name, tasks[4].name]))

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("i")
        await settle(pilot)
        assert asked == [["interference", tasks[1].path, tasks[4].path]]
        assert "2 marked ones measured" in str(
            pilot.app.query_one("#inspect-alike").border_subtitle
        )
        assert "?" in picture(matrix(pilot))
        matrix(pilot).go_to(1, 4)
        await pilot.press("n")  # the one pair that is known
        assert set(matrix(pilot).pair) == {1, 4}
        measured.marked.clear()
        pilot.app.post_message(CollectionChanged())
        await pilot.pause()
        await pilot.press("i")
        assert len(asked) == 1

    look(measured, steps)


def test_the_command_measures_the_interference_of_the_engine(measured: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("i")
        await settle(pilot)
        pane = pilot.app.query_one(inspect_similarity.AlikePane)
        told = pane.answer_to(pane.arguments or ())
        assert isinstance(told, Interference)
        sources = [open_adapter(task.path) for task in measured.spectra.tasks]
        for measure, values in interference(sources).as_dict().items():
            assert told.matrices[measure] == pytest.approx(np.array(values))

    look(measured, steps)


# coverage


def test_coverage_is_a_measure_of_the_layers(
    measured: Session, built: Path, answers: Callable[[Answer], list[list[str]]]
) -> None:
    layers = measured.spectra.layer_names
    shares = {name: 0.5 + 0.1 * i for i, name in enumerate(layers)}
    asked = answers(
        lambda arguments, cancelled: {
            "adapters": [
                {
                    "coverage": 0.75, "coverage_a": 0.9, "coverage_b": 0.8,
                    "modules": {name: {"coverage": share} for name, share in shares.items()},
                }
            ]
        }
    )  # fmt: skip

    async def steps(pilot: Pilot[Any]) -> None:
        matrix(pilot).go_to(2, 3)
        await pilot.press("c")
        assert asked == []  # no subspace is open
        measured.manifest = read_manifest(built)
        pilot.app.post_message(SubspaceChanged())
        await pilot.pause()
        await pilot.press("c")
        await settle(pilot)
        assert asked == [["coverage", str(built), measured.spectra.tasks[2].path]]
        assert view(pilot).pane == "inspect-layers"
        assert matrix(pilot).pair == (2, 2)
        assert "held by the bases" in str(pilot.app.query_one("#inspect-layers").border_title)
        shown = picture(pilot.app.query_one("#layer-map", Heatmap))
        assert all(f"{100 * share:.0f}" in shown for share in shares.values())
        said = words(pilot, "#layers-said")
        assert "in all 75 % of its energy (inputs alone 90 %, outputs alone 80 %)" in said
        assert shlex.split(view(pilot).command_text() or "") == ["vlora-tui", *asked[0]]
        titles = []
        for _ in range(3):
            await pilot.press("m")
            titles.append(str(pilot.app.query_one("#inspect-layers").border_title))
        assert ["error" in titles[0], "norm" in titles[1], "held" in titles[2]] == [True] * 3
        await pilot.press("enter")
        assert isinstance(pilot.app.screen, ModuleBox)
        await pilot.press("q")
        matrix(pilot).go_to(1, 1)
        await pilot.pause()
        assert "c measures" in words(pilot, "#layers-said")  # of the next one nothing is known
        assert len(asked) == 1

    look(measured, steps)


def test_the_command_measures_the_coverage_of_the_engine(measured: Session, built: Path) -> None:
    measured.manifest = read_manifest(built)

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("t")  # from the tasks of what is open to the adapters
        matrix(pilot).go_to(5, 5)
        await pilot.press("c")
        await settle(pilot)
        task = measured.spectra.tasks[5]
        expected = subspace_coverage(SharedSubspace.load(built), open_adapter(task.path))
        told = pilot.app.query_one("#inspect-layers").answer_to(  # type: ignore[attr-defined]
            ["coverage", str(built), task.path]
        )
        assert isinstance(told, Coverage)
        assert told.total == pytest.approx(coverage_total(expected))
        shares = {name: layer["coverage"] for name, layer in expected.items()}
        assert told.modules == pytest.approx(shares)

    look(measured, steps)


# findings


def diagnosed(path: str, name: str, **finding: str) -> dict[str, Any]:
    """What the doctor would say of one adapter."""
    return {"adapters": [{"name": name, "path": path, "findings": [finding]}], "findings": []}


def test_the_doctors_findings_take_the_place_of_earlier_ones(
    measured: Session, answers: Callable[[Answer], list[list[str]]]
) -> None:
    task = measured.spectra.tasks[2]
    module = measured.spectra.layer_names[1]
    measured.spectra.findings = [
        Finding("no-effect", "warning", "0", adapter=str(task.path), module=module)
    ]
    finding = {
        "severity": "error",
        "code": "no-effect",
        "where": f"{task.path}/adapter_model.safetensors: {make.PREFIX}{module}.lora_B.weight",
        "module": module,
        "what": "B of a module is zero.",
        "remedy": "train it again",
        "fix": "vlora-tui resize x -o y",
    }
    asked = answers(lambda arguments, cancelled: diagnosed(task.path, "named otherwise", **finding))

    async def steps(pilot: Pilot[Any]) -> None:
        assert [row.what for row in rows(pilot, "#finding-table")] == ["0"]
        await pilot.press("d")
        await settle(pilot)
        assert asked == [["doctor", *measured.marked, "--fail-on", "never"]]
        (row,) = rows(pilot, "#finding-table")
        assert (row.severity, row.about, row.what) == ("error", task.name, finding["what"])
        said = words(pilot, "#findings-remedy").replace("\n", " ")
        assert all(finding[part] in said for part in ("what", "remedy"))
        assert "y copies the command that does it" in said
        assert "vlora-tui" not in said
        assert view(pilot).row_text() == finding["fix"]
        assert (view(pilot).command_text() or "").startswith("vlora-tui doctor ")
        await pilot.press("enter")
        await settle(pilot)
        assert view(pilot).pane == "inspect-layers"
        assert matrix(pilot).pair == (2, 2)
        assert pilot.app.query_one("#layer-map", Heatmap).focused_layer == module
        await pilot.press("enter")
        assert pilot.app.screen.arguments == ["module", task.path, module]  # type: ignore[attr-defined]

    look(measured, steps)


def test_the_doctor_can_be_stopped_and_may_fail(
    measured: Session, answers: Callable[[Answer], list[list[str]]]
) -> None:
    def wait(arguments: list[str], cancelled: Callable[[], bool]) -> None:
        while not cancelled():
            time.sleep(0.01)

    asked = answers(wait)

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("d")
        assert "x to stop" in words(pilot, "#findings-remedy")
        await pilot.press("x")
        await settle(pilot)
        assert "x to stop" not in words(pilot, "#findings-remedy")
        answers(lambda arguments, cancelled: {})
        await pilot.press("d")
        await settle(pilot)
        assert "The doctor failed: " in words(pilot, "#findings-remedy")
        assert len(asked) == 1

    look(measured, steps)


def test_the_real_doctor_finds_the_nan_and_enter_shows_the_adapter(broken: Path) -> None:
    session = Session()
    session.add_found(scan([broken]).adapters)

    async def steps(pilot: Pilot[Any]) -> None:
        (before,) = (r for r in rows(pilot, "#finding-table") if r.severity == "error")
        assert before.about == "cut-short"
        await pilot.press("d")
        await settle(pilot)
        told = [row for row in rows(pilot, "#finding-table") if row.severity == "error"]
        assert [row.about for row in told] == ["cut-short", "with-nan"]
        point_at(pilot, "#finding-table", lambda row: row.about == "with-nan")
        await pilot.press("enter")  # it is not measured: to the list of adapters
        await settle(pilot)
        assert pilot.app.view.step == 1  # type: ignore[attr-defined]

    look(session, steps)


def test_a_target_adds_what_it_would_get_wrong(measured: Session) -> None:
    expected = {
        target: {f.what for path in measured.marked for f in verdict(path, target)}
        for target in TARGETS
    }
    assert any(expected.values())

    async def steps(pilot: Pilot[Any]) -> None:
        plain = len(rows(pilot, "#finding-table"))
        for target in TARGETS:
            await pilot.press("T")
            await settle(pilot)
            assert target in str(pilot.app.query_one("#inspect-findings").border_title)
            told = {r.what for r in rows(pilot, "#finding-table") if r.target == target}
            assert told == expected[target]
            command = shlex.split(view(pilot).command_text() or "")
            assert command[-2:] == ["--target", target]
        await pilot.press("T")
        await settle(pilot)
        assert len(rows(pilot, "#finding-table")) == plain

    look(measured, steps)


def test_a_target_is_held_against_the_tasks_of_a_subspace(built: Path) -> None:
    session = Session()
    session.manifest = read_manifest(built)
    task = list(session.manifest.tasks)[-1]
    expected = [found.what for found in verdict(f"{built}:{task}", "ollama")]
    assert expected

    async def steps(pilot: Pilot[Any]) -> None:
        while pilot.app.query_one("#inspect-findings").target != "ollama":  # type: ignore[attr-defined]
            await pilot.press("T")
        await settle(pilot)
        told = [row.what for row in rows(pilot, "#finding-table") if row.about == task]
        assert told == expected
        point_at(pilot, "#finding-table", lambda row: row.about == task)
        await pilot.pause()
        said = words(pilot, "#findings-remedy").replace("\n", " ")
        assert "reads safetensors adapters of llama and gemma2 models alone" in said  # the rule
        await pilot.press("enter")
        await settle(pilot)
        assert view(pilot).pane == "inspect-layers"
        assert pilot.app.query_one("#task-table", Table).row.id == task

    look(session, steps)


def test_a_finding_says_by_itself_which_module_it_is_about() -> None:
    remark = Remark(Finding("x", "error", "h.1.attn is wrong.", module="h.12.attn"), "a")
    assert module_in(remark, ["h.1.attn", "h.12.attn", "h.12"]) == "h.12.attn"
    assert module_in(remark, ["h.1", "h.2.attn"]) is None


def test_findings_of_two_of_one_name_are_not_one(measured: Session) -> None:
    first, second = list(measured.infos)[:2]
    odd = Finding("odd", "note", "Odd.")
    told = [Remark(odd, "x", path=path) for path in (first, second)]
    assert len(remarks_in(measured, told)) == len(remarks_in(measured)) + 2


# keys and sizes


def test_every_pane_has_at_most_seven_keys_and_room_for_its_words(kin: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        async for size in resized(pilot, [(120, 36), (80, 24), (60, 20), (40, 12)]):
            for tab in view(pilot).panes():
                view(pilot).go_to_pane(tab.id)
                await settle(pilot)
                assert 2 <= len(pilot.app.query_one(Keys).shown) <= 7, (size, tab.id)
                inside = [w for w in pilot.app.query(f"#{tab.id} *") if w.can_focus]
                assert inside[0].size.height >= 3, (size, tab.id)
                said = pilot.app.query(f"#{tab.id} > Static").first()
                assert said.size.height >= 1, (size, tab.id)
                assert said.region.bottom <= size[1] - 1, (size, tab.id)

    look(kin, steps)


def test_every_key_of_inspect_has_an_id_and_says_what_it_does() -> None:
    known = all_bindings()
    for key in ("inspect.interference", "inspect.coverage", "inspect.doctor", "inspect.target"):
        assert known[key][1].tooltip
    assert known["matrix.next"][1].tooltip

"""Step 5: the doctor's verdict beside the target, other ranks, what a job proved of its outputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from textual.pilot import Pilot

from tests.app.tui.export.screen import rows, settle, use, view, words
from tests.app.tui.run.test_run import session_of
from tests.witnesses import make
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.doctor import verdict
from vlora_engine.targets import TARGETS
from vlora_engine.utils.files import directory_bytes
from vlora_tui.cli import main
from vlora_tui.jobs.watch import State
from vlora_tui.pipeline import events
from vlora_tui.pipeline.run import Run
from vlora_tui.tui.core.session import Session
from vlora_tui.tui.export import plan as export_plan
from vlora_tui.tui.export.recipes import recipe_of
from vlora_tui.tui.export.settings import Settings, Source, adapters_of, tasks_of
from vlora_tui.tui.export.verdicts import Headers

MODULES = {f"transformer.h.{i}.attn.c_attn": (12, 36) for i in range(2)}
FIRST, SECOND = MODULES


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters that servers would get wrong, or want to be started for, each in its own way."""
    folder = tmp_path_factory.mktemp("mixed") / "in"
    patterns = {"rank_pattern": {SECOND: 2}, "alpha_pattern": {FIRST: 3}}
    told: dict[str, tuple[Any, dict[str, Any]]] = {
        "classifier": (4, {"task_type": "SEQ_CLS"}),
        "patterns": ({FIRST: 4, SECOND: 2}, patterns),
        "rslora": (4, {"use_rslora": True, "alpha_pattern": {FIRST: 3}}),
        "wide": (32, {"r": 32, "target_modules": list(MODULES)}),
    }
    for seed, (name, (rank, changes)) in enumerate(told.items()):
        tensors = make.factors(MODULES, rank=rank, seed=seed)
        make.write(folder / name, tensors, make.config(**changes))
    place = folder.parent / "subspace"
    assert main(["compress", str(folder), "-o", str(place), "-k", "24", "-q"]) == 0
    return folder


def base_of(folder: Path) -> str:
    config = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 12}
    (folder.parent / "config.json").write_text(json.dumps(config))
    return str(folder.parent)


def subspace_of(mixed: Path) -> tuple[Source, Headers]:
    manifest = read_manifest(mixed.parent / "subspace")
    return tasks_of(manifest), Headers(manifest)


# verdicts


@pytest.mark.parametrize("target", list(TARGETS))
def test_what_is_said_to_stay_stays_and_what_is_said_to_be_mended_is(
    mixed: Path, tmp_path: Path, target: str
) -> None:
    """The doctor finds in the written files exactly what was told before they were written."""
    source, headers = subspace_of(mixed)
    names = [item.name for item in source.items]
    settings = Settings(out=f"{tmp_path}/{{task}}", target=target, base=base_of(mixed))
    plan = export_plan.plan(source, names, settings, headers)
    assert plan.refused == []
    Run(recipe_of(source, names, settings), lambda event: None).execute()
    for row in plan.rows:
        assert row.opinion is not None
        codes = {finding.code for finding in export_plan.written_opinion(row.path, target).stays}
        known = {finding.code for finding in row.opinion.stays}
        # A GGUF file has no place for the task that the adapter was trained for.
        assert known - codes <= ({"not-generating"} if TARGETS[target].form == "gguf" else set())
        assert codes <= known
        assert {finding.code for finding in row.opinion.fixed}.isdisjoint(codes)
    if target == "vllm":
        told = {row.name: row.opinion for row in plan.rows}
        assert [f.code for f in told["patterns"].fixed] == ["vllm-patterns"]  # type: ignore[union-attr]
        assert [f.code for f in told["wide"].stays] == ["vllm-default-rank"]  # type: ignore[union-attr]


def test_adapters_are_judged_before_the_build(mixed: Path, tmp_path: Path) -> None:
    head = {**make.factors(MODULES), f"{make.PREFIX}score.weight": torch.ones(2, 12)}
    make.write(tmp_path / "head", head)
    source = adapters_of(scan([str(mixed), str(tmp_path / "head")]).adapters)
    names = [item.name for item in source.items]
    settings = Settings(out=f"{tmp_path}/out/{{task}}", target="tgi")
    plan = export_plan.plan(source, names, settings)
    found = {row.name: row for row in plan.rows}
    assert found["head"].why == "TGI does not accept 1 extra tensor"
    assert [row.name for row in plan.refused] == ["head"]
    assert [f.code for f in found["classifier"].findings] == ["not-generating"]
    opinion = found["patterns"].opinion
    assert opinion is not None
    assert [f.code for f in opinion.fixed] == [
        f.code for f in verdict(mixed / "patterns", "tgi") if f.severity == "error"
    ]
    assert len(opinion.fixed) == 1
    assert [f.code for f in found["head"].findings] == ["tgi-heads"]
    left_out = export_plan.plan(source, names, replace(settings, drop_rest=True))
    assert left_out.refused == []


def test_the_verdict_stands_beside_each_line_and_in_full_in_the_details(mixed: Path) -> None:
    session = Session()
    session.manifest = read_manifest(mixed.parent / "subspace")

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("s", "s")
        await settle(pilot)
        doctor = {row[0]: row[3] for row in rows(pilot)}
        assert doctor == {
            "classifier": "task_type is SEQ_CLS.",
            "patterns": "fixes 1",
            "rslora": "fixes 1",
            "wide": "The rank is 32; unless told otherwise vLLM takes 16 at most.",
        }
        await pilot.press("tab", "tab", "down", "down", "down")
        await settle(pilot)
        told = " ".join(words(pilot, "#details-said").split())
        assert "warning The rank is 32;" in told
        assert "start the server with --max-lora-rank 32" in told
        await pilot.press("up", "up")
        await settle(pilot)
        assert "Fixed by the export, for vLLM" in words(pilot, "#details-said")

    use(session, steps)


def test_a_broken_adapter_is_refused_in_words(tmp_path: Path) -> None:
    make.write(tmp_path / "good", make.factors(MODULES))
    bad = make.write(tmp_path / "bad", make.factors(MODULES, seed=1))
    found = scan([str(tmp_path)]).adapters
    (bad / "adapter_model.safetensors").write_bytes(b"no tensors")
    source = adapters_of(found)
    settings = Settings(out=f"{tmp_path}/out/{{task}}", target="vllm")
    for asked in (settings, replace(settings, doing="resize", resized=settings.out, new_rank="2")):
        plan = export_plan.plan(source, ["good", "bad"], asked)
        assert [row.name for row in plan.refused] == ["bad"]
        assert plan.refused[0].why


# other ranks


@pytest.mark.parametrize(
    "asked",
    [
        {"rule": "rank", "new_rank": "2"},
        {"rule": "rank", "new_rank": "40"},
        {"rule": "server", "server": "vllm"},
        {"rule": "server", "server": "sglang"},
        {"rule": "energy", "share": "0.9"},
    ],
    ids=lambda asked: "-".join(asked.values()),
)
def test_sizes_of_other_ranks_are_those_that_are_written(
    mixed: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    settings = Settings(doing="resize", resized=f"{tmp_path}/{{task}}", **asked)
    for source, headers in (subspace_of(mixed), (adapters_of(scan([str(mixed)]).adapters), None)):
        names = [item.name for item in source.items][1:]
        recipe = recipe_of(source, names, settings)
        plan = export_plan.plan(source, names, settings, headers)
        Run(recipe, lambda event: None, force=True).execute()
        assert [row.name for row in plan.rows] == names
        for row in plan.rows:
            written = directory_bytes(row.path)
            if row.at_most:
                assert written <= 1.1 * row.nbytes
            else:
                assert written == pytest.approx(row.nbytes, rel=0.1)


def test_other_ranks_are_asked_for_and_their_cost_is_told(runs: Path) -> None:
    session = session_of([runs / f"task0{i}" for i in range(3)])

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("m", "m")
        await settle(pilot)
        before = [item.nbytes for item in view(pilot)._source.items]  # type: ignore[union-attr]
        after = [row.nbytes for row in view(pilot).planner.plan.rows]
        assert all(a < b for a, b in zip(after, before, strict=True))
        assert "rank 4 becomes 2" in words(pilot, "#details-said")
        await pilot.press("w")
        await settle(pilot)
        resize = pilot.app.started[0][0].resizes[0]
        assert (resize.rank, resize.energy, resize.target) == (2, None, None)
        first = str(view(pilot).planner.plan.rows[0].path)
        report = {"error": 0.25, "worst_module": "h.0", "worst_error": 0.5}
        pilot.app.hear(
            events.Resized("task00", first, 2222, report),
            events.Verified("task00", first, 0.0),
            state=State.RUNNING,
        )
        await settle(pilot)
        assert rows(pilot)[0][2:] == ["2.22 kB", "dW the same"]
        told = " ".join(words(pilot, "#details-said").split())
        assert "dW changed by 25 %, at worst 50 % in h.0" in told
        assert [row[-1] for row in rows(pilot)][1:] == ["waiting", "waiting"]

    use(session, steps)


# what was proved


def test_a_failure_stands_out_among_what_was_written(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("w")
        await settle(pilot)
        paths = [str(row.path) for row in view(pilot).planner.plan.rows]
        fault = {"what": "The adapter was not written as it was meant.", "where": paths[1]}
        pilot.app.hear(
            events.Exported("task00", paths[0], "peft", 1000, 4, "gpt2"),
            events.Verified("task00", paths[0], 0.0),
            events.Exported("task01", paths[1], "peft", 1000, 4, "gpt2"),
            events.Failed(fault),
            state=State.FAILED,
        )
        await settle(pilot)
        assert [row[-1] for row in rows(pilot)] == [
            "dW the same",
            "not verified",
            "not written",
            "not written",
        ]
        preview = view(pilot)._preview
        tones = [preview._state(row)[1] for row in view(pilot).planner.plan.rows]
        assert tones == ["good", "error", "error", "error"]
        assert "not written as it was meant" in words(pilot, "#preview-said")

    use(opened, steps)


def test_what_was_written_is_told_with_how_to_start_it(opened: Session) -> None:
    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.press("s", "s")
        await settle(pilot)
        await pilot.press("w")
        await settle(pilot)
        first = str(view(pilot).planner.plan.rows[0].path)
        pilot.app.hear(
            events.Exported("task00", first, "vllm", 1234, 4, "gpt2"),
            events.Verified("task00", first, 3e-9),
            events.Finished(1.0),
            state=State.FINISHED,
        )
        await settle(pilot)
        told = " ".join(words(pilot, "#details-said").split())
        assert "written 1.23 kB" in told
        assert "dW is off by <0.001 %" in told
        assert "vllm serve gpt2 --enable-lora --max-lora-rank 8" in told

    use(opened, steps)


def test_a_merge_says_which_servers_would_refuse_its_result(tmp_path: Path) -> None:
    make.write(tmp_path / "a", make.factors(MODULES, seed=1))
    make.write(tmp_path / "b", make.factors(MODULES, seed=2))
    lacking = {k: v for k, v in make.factors(MODULES, seed=3).items() if FIRST not in k}
    make.write(tmp_path / "lacking", lacking)
    make.write(tmp_path / "lacking-2", lacking)
    for seed in (4, 5):
        large = make.factors(dict.fromkeys(MODULES, (700, 700)), rank=300, seed=seed)
        config = make.config(r=300, target_modules=list(MODULES))
        make.write(tmp_path / f"large-{seed}", large, config)
    source = adapters_of(scan([str(tmp_path)]).adapters)

    def said(*names: str, **changed: Any) -> str:
        settings = Settings(doing="merge", merged=f"{tmp_path}/merged", **changed)
        plan = export_plan.plan(source, names, settings)
        assert plan.problem is None
        return plan.served

    assert said("a", "b") == "Every server takes the result."
    assert said("a", "lacking") == "Every server takes the result."  # the other one has it
    refused = said("lacking", "lacking-2")
    assert refused.startswith("TGI, LoRAX would refuse the result: TGI drops a kind of module")
    both = said("large-4", "large-5")  # their ranks add up
    assert both == "vLLM would refuse the result: The rank is above vLLM's largest."
    assert said("large-4", "large-5", rank="8") == "Every server takes the result."

"""Events: their lines on disk, the numbers in front of them, what is thrown away."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from vlora_tui.pipeline import events

SAMPLES = [
    events.Queued("cpu", ahead=("j0",)),
    events.Started("[input]\n", job="j1", program="0.1"),
    events.AdaptersFound(("a", "ü"), nbytes=10, modules=2, base_models=("gpt2",)),
    events.AdapterSkipped("b", "NaN", {"error": "AdapterError", "what": "NaN"}),
    events.Remark("look here", "a/b", "no-effect"),
    events.Checked(good=2, bad=("b",)),
    events.Progress("build", 1, 3, "layer"),
    events.LayerDone("layer", 1, 3),
    events.SpectraBegun("/s", "/.s.part-spectra"),
    events.SpectraReady("/s", tasks=2, layers=3, methods=("delta",), reused=True),
    events.Chosen("delta", "4-8", mean_error=0.1, max_error=0.2, nbytes=100),
    events.SubspaceMade("/o", "ab12"),
    events.SubspaceWritten("/o", {"k": {"layer": [4, 8]}}),
    events.OtherMethods(100, ({"method": "flat", "k": None},)),
    events.Exported("a", "/a", "peft", 12),
    events.Verified("a", "/a", 1e-9),
    events.Merged("/m", "ties", ("a", "b"), rank=4, modules=2),
    events.MergePreviewed("/m", "ties", ("a", "b"), rank=4, modules=2),
    events.Resized("a", "/a", 12, {"error": 0.1}),
    events.Converted("a", "/a", "mlx", 12, 1e-9),
    events.Pushed("/o", "hf://me/o", "hf://me/o@c", "https://h/me/o", files=3, nbytes=12),
    events.TaskAdded("/o", "c", "absorb", tasks=3, error=0.04, before=10, nbytes=12,
                     lost={"task": "a", "before": 0.01, "error": 0.02}),
    events.TasksRemoved("/o", ("c",), tasks=2, before=12, nbytes=10),
    events.Evaluated("/o", "org/base", "sampled", {"mean": {"kl": 0.01}}),
    events.Pulled("hf://me/o@c", "/here", files=3, nbytes=12, downloaded=5),
    events.Finished(1.5, ("/o",)),
    events.Failed({"what": "no"}, exit_code=2),
    events.Cancelled("stopped", resumable=True),
]  # fmt: skip


def test_every_type_has_a_sample() -> None:
    assert {type(event) for event in SAMPLES} == set(events.EVENT_TYPES.values())
    assert len({event.type for event in SAMPLES}) == len(SAMPLES)


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: event.type)
def test_an_event_survives_its_line(event: events.Event) -> None:
    line = events.encode(event, seq=7, time=1.25)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert events.decode(line) == (7, event)


@pytest.mark.parametrize("event", SAMPLES, ids=lambda event: event.type)
def test_an_event_cannot_be_changed(event: events.Event) -> None:
    name = dataclasses.fields(event)[0].name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, name, None)


def test_figures_that_json_cannot_hold_become_null() -> None:
    line = events.encode(events.Chosen("delta", "1", float("nan"), float("inf"), 3), seq=1, time=0)
    row = json.loads(line, parse_constant=lambda word: pytest.fail(word))
    assert row["mean_error"] is None
    assert row["max_error"] is None


def test_lines_are_numbered_in_order_and_appended(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "events.jsonl"
    for _ in range(2):
        writer = events.EventWriter(place, now=lambda: 5.0)
        writer(SAMPLES[0])
        writer(SAMPLES[-1])
        writer.close()
    rows = [json.loads(line) for line in place.read_text("utf-8").splitlines()]
    assert [row["seq"] for row in rows] == [1, 2, 3, 4]
    assert {row["time"] for row in rows} == {5.0}
    assert list(events.read_events(place)) == [
        (i + 1, (SAMPLES[0], SAMPLES[-1])[i % 2]) for i in range(4)
    ]


def test_progress_comes_at_most_twice_a_second(tmp_path: Path) -> None:
    ticks = iter([0.0, 0.0, 0.2, 0.4, 0.6, 0.6, 0.7])
    writer = events.EventWriter(tmp_path / "e", clock=lambda: next(ticks))
    for done in range(5):
        writer(events.Progress("build", done, 9))
    writer(events.LayerDone("layer", 5, 9))  # never thrown away, and asks no clock
    writer.close()
    kept = [event for _, event in events.read_events(tmp_path / "e")]
    # ... and the last before it, so that nobody reads how far it was long ago.
    assert [e.done for e in kept if isinstance(e, events.Progress)] == [0, 3, 4]
    assert isinstance(kept[-1], events.LayerDone)
    assert [seq for seq, _ in events.read_events(tmp_path / "e")] == [1, 2, 3, 4]


def test_a_stage_that_is_done_is_told_as_done(tmp_path: Path) -> None:
    """All were checked within the half second in which one progress is written."""
    writer = events.EventWriter(tmp_path / "e", clock=lambda: 0.0)
    for done in range(1, 20):
        writer(events.Progress("check", done, 19))
    writer(events.Checked(good=19))
    writer.close()
    kept = [event for _, event in events.read_events(tmp_path / "e")]
    assert kept == [
        events.Progress("check", 1, 19), events.Progress("check", 19, 19), events.Checked(good=19)
    ]  # fmt: skip


def test_a_run_that_was_killed_in_its_first_line_can_be_run_again(tmp_path: Path) -> None:
    whole = events.encode(events.Remark("it"), seq=1, time=5.0).encode()
    for cut in range(len(whole) - 1):
        place = tmp_path / str(cut)
        place.write_bytes(whole[:cut])
        assert events.is_events_file(place)
        writer = events.EventWriter(place, now=lambda: 5.0)
        writer(events.Remark("it"))
        writer.close()
        assert place.read_bytes() == whole
        assert events.is_events_file(place)
    for other in (b"{\n", b"\n", b'{"seq": 1}', b'{"seq": 1, "time": 5.0\n', b"[", b'{"a": 1'):
        place.write_bytes(other)
        assert not events.is_events_file(place), other


def test_readers_skip_a_torn_line_and_writers_go_on_after_it(tmp_path: Path) -> None:
    place = tmp_path / "e"
    place.write_text(events.encode(SAMPLES[0], seq=1, time=0) + '{"seq": 2, "type": "remar')
    assert [seq for seq, _ in events.read_events(place)] == [1]
    writer = events.EventWriter(place)
    writer(SAMPLES[3])
    writer.close()
    assert list(events.read_events(place)) == [(1, SAMPLES[0]), (2, SAMPLES[3])]


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "null", '{"type": "remark"}', '{"type": "of-tomorrow", "seq": 1}'],
)
def test_what_is_not_understood_is_skipped(line: str) -> None:
    assert events.decode(line) is None


def test_a_field_of_a_newer_version_is_ignored() -> None:
    row = json.loads(events.encode(SAMPLES[3], seq=4, time=0)) | {"colour": "red"}
    assert events.decode(json.dumps(row)) == (4, SAMPLES[3])


def test_a_full_disk_drops_lines_and_raises_nothing() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    writer = events.EventWriter(full)
    writer(SAMPLES[0])
    writer(SAMPLES[1])
    assert writer.dropped == 2
    writer.close()

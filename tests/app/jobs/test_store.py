"""The files of jobs: events as they grow, disks that are full, directories that refuse."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import Cli
from tests.app.jobs.conftest import PATIENCE, build_recipe, state
from tests.conftest import FreshPython
from tests.test_import_hygiene import import_all, loaded_by
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.errors import (
    Cancelled,
    InputError,
    NotFoundError,
    OutputExistsError,
    ParameterError,
    StorageError,
)
from vlora_tui.jobs import EventReader, Job, JobStore, State, TimedEvent, look, start, wait
from vlora_tui.jobs import control as control_module
from vlora_tui.jobs.control import prune, resume
from vlora_tui.jobs.devices import DeviceQueue, device_key
from vlora_tui.jobs.drafts import Drafts, load_draft, save_draft
from vlora_tui.jobs.environment import environment_notes
from vlora_tui.jobs.joblock import JobLock
from vlora_tui.jobs.runner import JobEventLog, run_job
from vlora_tui.jobs.store import JobInfo, goes_first, title_of
from vlora_tui.jobs.watch import JobView
from vlora_tui.pipeline import events
from vlora_tui.recipe.model import AdapterInput, Compress, Input, Recipe
from vlora_tui.recipe.reader import load_recipe
from vlora_tui.tui.run import job_text


def line(seq: int, event: events.Event) -> bytes:
    return events.encode(event, seq=seq, time=float(seq)).encode()


def tell(job: Job, *told: events.Event) -> None:
    writer = events.EventWriter(job.events_path)
    for event in told:
        writer(event)
    writer.close()


# ---- reading events


def test_a_reader_gives_what_is_new_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    place = tmp_path / "events.jsonl"
    reader = EventReader(place)
    assert reader.poll() == []
    whole = line(1, events.LayerDone("ü", 1, 3))
    torn = line(2, events.LayerDone("b", 2, 3))
    place.write_bytes(whole + torn[:10])
    assert reader.poll() == [TimedEvent(1, 1.0, events.LayerDone("ü", 1, 3))]
    assert reader.poll() == []
    with place.open("ab") as file:
        file.write(torn[10:])
    assert [told.seq for told in reader.poll()] == [2]


def test_a_line_that_a_kill_tore_is_skipped_by_who_reads_on(tmp_path: Path) -> None:
    place = tmp_path / "events.jsonl"
    place.write_bytes(line(1, events.LayerDone("a", 1, 3)) + b'{"seq": 2, "type": "lay')
    reader = EventReader(place)
    assert len(reader.poll()) == 1
    writer = events.EventWriter(place)
    writer(events.LayerDone("b", 2, 3))
    writer.close()
    assert [told.event for told in reader.poll()] == [events.LayerDone("b", 2, 3)]


@pytest.mark.parametrize("junk", [b"\n", b"null\n", b"\xff\xfe\x00\n", b'{"type":"new-word"}\n'])
def test_what_is_no_event_is_skipped(tmp_path: Path, junk: bytes) -> None:
    place = tmp_path / "events.jsonl"
    place.write_bytes(junk + line(1, events.LayerDone("a", 1, 3)) + junk)
    assert len(EventReader(place).poll()) == 1


def test_a_reader_takes_a_bounded_piece_and_lines_longer_than_that(tmp_path: Path) -> None:
    place = tmp_path / "events.jsonl"
    place.write_bytes(b"".join(line(i, events.LayerDone("x" * 300, i, 9)) for i in range(1, 10)))
    reader = EventReader(place)
    pieces = [reader.poll(limit=1000), reader.poll(limit=10), reader.poll(limit=10**6)]
    assert [told.seq for piece in pieces for told in piece] == list(range(1, 10))
    assert [len(piece) for piece in pieces[:2]] == [2, 1]


def test_a_file_that_was_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    place, other = tmp_path / "events.jsonl", tmp_path / "other"
    place.write_bytes(line(1, events.LayerDone("a", 1, 3)) + line(2, events.LayerDone("b", 2, 3)))
    reader = EventReader(place)
    reader.poll()
    other.write_bytes(line(1, events.LayerDone("c", 1, 3)))
    other.rename(place)
    assert [told.event for told in reader.poll()] == [events.LayerDone("c", 1, 3)]


# ---- what a job's events come to


def test_rate_and_time_left_are_those_of_the_stage_under_way(job: Job) -> None:
    with JobLock.take(job.lock_path):
        times = iter([0.0, 1.0, 2.0, 4.0])
        writer = events.EventWriter(
            job.events_path, clock=iter(range(0, 99, 9)).__next__, now=lambda: next(times)
        )
        writer(events.Started("", job=job.id))
        writer(events.Progress("check", 4, 4))
        writer(events.Progress("build", 10, 50))
        writer(events.Progress("build", 20, 50))
        writer.close()
        view = look(job)
        assert view.state is State.RUNNING
        assert view.rate == 5.0
        assert view.eta == 6.0
    assert state(job) == "vanished"


def test_a_second_attempt_forgets_how_the_first_ended(job: Job) -> None:
    tell(
        job,
        events.Queued("cpu"),
        events.Started("", job=job.id),
        events.SubspaceWritten("/o", {}),
        events.Cancelled("stopped", resumable=True),
    )
    assert state(job) == "cancelled"
    with JobLock.take(job.lock_path):
        tell(job, events.Queued("cpu"))
        assert look(job).state is State.QUEUED
        tell(job, events.Queued("cpu", ahead=("j0",)), events.Started("", job=job.id))
        view = look(job)
    assert view.state is State.RUNNING
    assert (view.attempts, view.ahead, view.outputs) == (2, (), ["/o"])


def test_a_view_keeps_what_is_shown_and_not_what_is_long(job: Job) -> None:
    figures = {"mean_error": 0.1, "layer_errors": {str(i): 0.1 for i in range(500)}, "k": [1]}
    told = [
        events.Started("x" * 100_000, job=job.id),
        events.SubspaceWritten("/o", figures),
        events.Merged("/m", "ties", ("a", "b"), 8, 4, report={"layers": ["x"] * 1000}),
        *(events.Exported(f"t{i}", f"/e/{i}", "peft", i) for i in range(2500)),
        *(events.Verified(f"t{i}", f"/e/{i}", 0.0) for i in range(2500)),
        events.Finished(1.0),
    ]
    tell(job, *told)
    view = look(job)
    started, merged = view.last(events.Started), view.last(events.Merged)
    assert started is not None
    assert (started.job, started.recipe) == (job.id, "")
    assert view.all(events.SubspaceWritten)[0].figures == {"mean_error": 0.1, "k_count": 1}
    assert merged is not None
    assert (merged.rank, merged.report) == (8, {"layers_count": 1000})
    assert len(view.all(events.Exported)) == len(view.all(events.Verified)) == 2500
    lines = job_text.details(view).plain.splitlines()
    assert len(lines) < job_text.LINES + 10
    assert "t2499" in lines[-3]
    assert lines[-2].startswith("finished")
    assert any("events.jsonl" in line for line in lines)
    assert [event for _, event in events.read_events(job.events_path)] == told  # the file has all


def test_the_events_of_a_long_job_are_read_fast_enough_for_a_timer(job: Job) -> None:
    with job.events_path.open("wb") as file:
        for i in range(1, 5001):
            file.write(line(i, events.Progress("build", i, 5000, "layer")))
    reader = EventReader(job.events_path)
    while reader.poll():
        pass
    begin = time.perf_counter()
    for _ in range(1000):
        reader.poll()
    assert time.perf_counter() - begin < 1.0  # a stat each: some microseconds


# ---- the store


def test_a_job_is_found_by_a_part_of_its_id(
    store: JobStore, adapters: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="There are no jobs"):
        store.find("last")
    made = []
    for name in "ab":
        job, lock = store.create(build_recipe(adapters, tmp_path / name))
        lock.release()
        made.append(job)
    assert store.find("last").id == max(job.id for job in made)
    assert store.find(made[0].id) == made[0]
    assert store.find(made[0].id[-4:]) == made[0]
    with pytest.raises(ParameterError, match="2 jobs"):
        store.find(made[0].id[:4])
    with pytest.raises(NotFoundError, match="no job"):
        store.find("zzzz")


def test_directories_that_are_no_jobs_are_passed_over(store: JobStore, job: Job) -> None:
    (store.folder / "20200101-000000-0000").mkdir()
    (store.folder / "20200101-000000-0001").mkdir()
    (store.folder / "20200101-000000-0001" / "job.json").write_text('{"id": 3')
    (store.folder / ".new-20200101-000000-0002").mkdir()
    (store.folder / "notes.txt").touch()
    assert [one.id for one in store.jobs()] == [job.id]


def test_job_files_are_for_their_owner(store: JobStore, job: Job) -> None:
    assert job.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("place", ["a-file", "a-file/below", "/proc/nowhere"])
def test_a_state_directory_that_refuses_is_named_with_what_helps(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(StorageError, match="state directory cannot be used") as caught:
        JobStore.open(tmp_path / place)
    assert "--state-dir" in str(caught.value)
    assert JobStore.open(tmp_path / place, write=False).jobs() == []


def test_a_job_that_was_killed_before_it_could_say_so_leaves_what_is_in_place(
    store: JobStore, adapters: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[input]\nadapters = ["{adapters}"]\n[compress]\nk = 2\n[output]\nsubspace = "s"\n'
        '[[merge]]\nadapters = ["task0", "task1"]\nmethod = "average"\npath = "merged"\n'
    )
    job, lock = store.create(load_recipe(recipe))
    lock.release()
    run_job(job.folder, listen=lambda event: None, cancelled=lambda: False)
    index = tmp_path / "s" / "subspace.json"
    files = (index, tmp_path / "merged" / "adapter_model.safetensors")
    before = [path.stat().st_ino for path in files]
    lines = job.events_path.read_bytes().splitlines(keepends=True)
    (made,) = (i for i, line in enumerate(lines) if b'"subspace_made"' in line)
    told_until_then = b"".join(lines[: made + 1])
    (tmp_path / ".s.gone-1-1").mkdir()  # and it was deleting what the place held before

    job.events_path.write_bytes(told_until_then)
    run_job(job.folder, listen=lambda event: None, cancelled=lambda: False)

    assert [path.stat().st_ino for path in files] == before
    assert not (tmp_path / ".s.gone-1-1").exists()
    index.write_bytes(index.read_bytes() + b" ")  # somebody else's
    job.events_path.write_bytes(told_until_then)
    with pytest.raises(OutputExistsError):
        run_job(job.folder, listen=lambda event: None, cancelled=lambda: False)


def test_what_killed_makers_and_removers_of_jobs_left_is_swept(
    store: JobStore, job: Job, adapters: Path, tmp_path: Path
) -> None:
    left = [store.folder / ".new-20260101-000000-dead", store.folder / ".gone-20260101-000000-dead"]
    for folder in left:
        folder.mkdir()
        (folder / "lock").touch()
        (folder / "recipe.toml").write_text("half")
    (store.folder / ".new-20260101-000001-dead").mkdir()  # killed before it made the lock
    being_made = store.folder / ".new-20260101-000002-beef"
    being_made.mkdir()
    lock = JobLock.take(being_made / "lock")
    assert [job.id for job in JobStore.open(store.state_dir, write=False).jobs()] == [job.id]
    assert all(folder.is_dir() for folder in left), "who only looks leaves them"

    JobStore.open(store.state_dir)

    names = {path.name for path in store.folder.iterdir()}
    assert names == {".lock", job.id, being_made.name}
    lock.release()
    store.create(build_recipe(adapters, tmp_path / "other"))[1].release()
    assert not being_made.exists()
    assert len(store.jobs()) == 2


def test_half_a_draft_of_a_killed_interface_is_swept(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path)
    mine = drafts.new()
    mine.save({"input": {"adapters": ["a"]}})
    for name in (mine.path.name, "00000000000000000001-dead.toml"):
        (mine.path.parent / f".{name}.part-1").write_text("half")
    drafts.offered()
    assert sorted(p.name for p in mine.path.parent.glob(".*.part-*")) == [
        f".{mine.path.name}.part-1"  # its interface lives: it may be at it
    ]


def test_a_recipe_with_missing_inputs_makes_no_job(store: JobStore, tmp_path: Path) -> None:
    recipe = Recipe(
        Input((AdapterInput(str(tmp_path / "no*")),)), Compress(CompressionTarget(k=2)), "/o"
    )
    with pytest.raises(NotFoundError):
        start(store, recipe)
    assert [p.name for p in store.folder.iterdir()] == [".lock"]


def test_a_job_that_the_disk_does_not_take_leaves_nothing(
    store: JobStore, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StorageError, match="No space left"):
        store.create(build_recipe(adapters, tmp_path / "out"))
    monkeypatch.undo()
    assert store.jobs() == []
    assert not list(store.folder.glob(".new-*"))


def test_a_recipe_that_asks_for_nothing_is_refused(store: JobStore, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="asks for nothing"):
        start(store, Recipe(Input(subspace=str(tmp_path))))
    assert [p.name for p in store.folder.iterdir()] == [".lock"]


def test_a_path_that_is_no_text_is_refused(store: JobStore, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    odd.mkdir()
    with pytest.raises(InputError, match="bytes that are no text"):
        start(store, build_recipe(odd, tmp_path / "s"))
    assert [p.name for p in store.folder.iterdir()] == [".lock"]


def test_a_process_that_cannot_start_is_a_failed_job(
    store: JobStore, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "command", lambda *_: ["/no/such/python"])
    with pytest.raises(StorageError, match="could not be started"):
        start(store, build_recipe(adapters, tmp_path / "s"))
    assert state(store.find("last")) == "failed"


def test_finished_jobs_make_room_and_others_stay(
    store: JobStore, adapters: Path, tmp_path: Path
) -> None:
    ends: list[events.Event | None] = [
        events.Finished(1.0),
        None,  # vanished: its layers are worth something
        events.Failed({"what": "no"}),
        events.Finished(1.0),
    ]
    jobs = []
    for i, end in enumerate(ends):
        job, lock = store.create(build_recipe(adapters, tmp_path / str(i)))
        lock.release()
        tell(job, *([end] if end is not None else []))
        job.log_path.write_bytes(bytes(100_000))
        jobs.append(store.folder / job.id)
    jobs.sort()
    store = JobStore.open()
    by_state = {job.id: state(job) for job in store.jobs()}
    assert prune(store, limit=500_000) == []
    gone = prune(store, limit=250_000)
    expected = [i for i, s in sorted(by_state.items()) if s != "vanished"][:2]
    assert [job.id for job in gone] == expected
    assert "vanished" in {state(job) for job in store.jobs()}


# ---- a full disk


class FullDisk:
    """A file that takes nothing while ``full``."""

    def __init__(self, file: Any) -> None:
        self.full, self.file = True, file

    def write(self, data: bytes) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self.file.write(data))

    def close(self) -> None:
        self.file.close()


def test_a_full_state_disk_fails_no_job(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = events.EventWriter.__init__

    def on_a_full_disk(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self._file = FullDisk(self._file)

    monkeypatch.setattr(events.EventWriter, "__init__", on_a_full_disk)

    def log(_: events.Event) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run_job(job.folder, listen=log, cancelled=lambda: False)
    assert (tmp_path / "s" / "subspace.json").is_file()
    assert not job.events_path.exists() or job.events_path.stat().st_size == 0
    assert look(job).state is State.FINISHED  # the lock had room for the word


def test_a_full_log_fails_no_job(store: JobStore, job: Job, tmp_path: Path) -> None:
    job.log_path.symlink_to("/dev/full")
    resume(store, job)
    assert wait(job, PATIENCE).state is State.FINISHED
    assert (tmp_path / "s" / "subspace.json").is_file()


def test_events_that_found_no_room_come_later_but_not_progress(job: Job) -> None:
    with JobLock.take(job.lock_path) as lock, JobEventLog(job, lock, lambda _: None) as teller:
        assert teller._writer is not None
        disk = FullDisk(teller._writer._file)
        teller._writer._file = disk  # type: ignore[assignment]
        teller(events.Started("", job=job.id))
        teller(events.Progress("build", 1, 9))
        teller(events.SubspaceWritten("/o", {}))
        disk.full = False
        teller(events.Finished(1.0))
    told = [told.event.type for told in EventReader(job.events_path).poll()]
    assert told == ["started", "subspace_written", "finished"]


# ---- devices


def test_a_device_is_told_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vlora_tui.jobs.devices.DEV", tmp_path)
    assert device_key("auto", {}) == "cpu"
    (tmp_path / "nvidia0").touch()
    assert device_key("auto", {}) == "cuda-0"
    assert device_key("cuda", {}) == "cuda-0"
    assert device_key("cuda:1", {"CUDA_VISIBLE_DEVICES": "3, 5"}) == "cuda-5"
    assert device_key("auto", {"CUDA_VISIBLE_DEVICES": "3,5"}) == "cuda-3"
    assert device_key("auto", {"CUDA_VISIBLE_DEVICES": ""}) == "cpu"
    assert device_key("auto", {"CUDA_VISIBLE_DEVICES": "-1"}) == "cpu"
    assert device_key("cpu", {"CUDA_VISIBLE_DEVICES": "3"}) == "cpu"


def test_who_came_first_has_the_device_first_and_the_dead_do_not_count(tmp_path: Path) -> None:
    queue, told = DeviceQueue(tmp_path, "cpu"), list[tuple[str, ...]]()
    assert queue.is_free()
    for i, name in enumerate(("b", "dead", "a")):
        queue.enter(name)
        os.utime(queue.tickets / name, (i, i))
    assert not queue.is_free()

    def turn(job: str) -> AbstractContextManager[None]:
        return queue.turn(
            job,
            is_alive=lambda other: other != "dead",
            cancelled=lambda: True,
            waiting=told.append,
        )

    with pytest.raises(Cancelled), turn("a"):
        pass
    assert told == []  # it was told to stop before it had told anybody
    queue.enter("a")
    with turn("b"):
        assert not queue.is_free()
        assert queue.ahead_of("a", lambda _: True) == []
        with pytest.raises(Cancelled), turn("a"):
            pass
    with turn("a"):
        pass
    assert queue.is_free()


def test_a_small_measurement_goes_before_builds_that_came_earlier(tmp_path: Path) -> None:
    queue = DeviceQueue(tmp_path, "cpu")
    for name, first in (("build", False), ("spectra", True), ("later", True), ("export", False)):
        queue.enter(name, first=first)
        at = (queue.tickets / name).stat().st_mtime_ns
        os.utime(queue.tickets / name, ns=(at, at + len(list(queue.tickets.iterdir()))))
    assert queue.ahead_of("export", lambda _: True) == ["spectra", "later", "build"]
    assert queue.ahead_of("later", lambda _: True) == ["spectra"]


def test_which_jobs_go_first(
    tmp_path: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = JobStore(tmp_path / "state")
    paths = [str(path) for path in sorted(adapters.iterdir())]
    inputs = Input(adapters=tuple(AdapterInput(path) for path in paths))
    measuring, lock = jobs.create(Recipe(input=inputs))
    lock.release()
    building, lock = jobs.create(
        Recipe(input=inputs, compress=Compress(), output=str(tmp_path / "o"))
    )
    lock.release()
    assert goes_first(measuring)
    assert not goes_first(building)
    monkeypatch.setattr("vlora_tui.jobs.store.SMALL_BYTES", 100)
    assert not goes_first(measuring)


def test_where_there_is_no_queue_the_work_is_done_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "devices").touch()  # no directory can be made here
    with DeviceQueue(tmp_path, "cpu").turn(
        "j", is_alive=lambda _: True, cancelled=lambda: False, waiting=lambda _: None
    ):
        pass


# ---- drafts


def test_a_draft_need_not_be_whole(tmp_path: Path, adapters: Path) -> None:
    place = tmp_path / "drafts" / "d.toml"
    tables = {"input": {"adapters": []}, "compress": {"method": "delta", "k": None}}
    state = {"folder": tmp_path, "marks": ("a", "ü"), "k": 8, "overrides": {"*.c_attn": 24}}
    save_draft(place, tables, state)
    saved = load_draft(place)
    assert saved.tables == {"input": {"adapters": []}, "compress": {"method": "delta"}}
    assert saved.state == {
        "folder": str(tmp_path),
        "marks": ["a", "ü"],
        "k": 8,
        "overrides": {"*.c_attn": 24},
    }
    with pytest.raises(InputError):
        saved.recipe()
    recipe = build_recipe(adapters, tmp_path / "s")
    save_draft(place, recipe)
    assert load_draft(place).recipe() == recipe
    assert [path.name for path in place.parent.iterdir()] == ["d.toml"]


INTERFACE = """\
import signal, sys
from pathlib import Path
from vlora_tui.jobs.drafts import Drafts
draft = Drafts(Path(sys.argv[1])).new()
draft.save({}, {"k": 7})
draft.save({}, {"k": 8})
print("saved", flush=True)
signal.pause()
"""


def test_the_draft_of_an_interface_that_was_killed_is_offered(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path)
    assert drafts.offered() == []
    words = [sys.executable, "-c", INTERFACE, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as interface:
        assert interface.stdout is not None
        assert interface.stdout.readline() == b"saved\n"
        assert drafts.offered() == []  # it lives, and the draft is its own
        interface.kill()
    [offered] = drafts.offered()
    assert offered.state == {"k": 8}
    mine = drafts.take(offered)
    assert mine is not None
    assert drafts.take(offered) is None
    assert drafts.offered() == []
    assert mine.save({}, {"k": 9})
    assert not mine.save({}, {"k": 9})  # nothing changed
    mine.close()
    assert [draft.state for draft in drafts.offered()] == [{"k": 9}]
    drafts.delete(drafts.offered()[0])
    assert drafts.offered() == []
    assert list(drafts.folder.iterdir()) == []


def test_only_the_latest_drafts_are_kept(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path)
    for k in range(5):
        draft = drafts.new()
        draft.save({}, {"k": k})
        os.utime(draft.path, (k, k))
        draft.close()
    (drafts.folder / "broken.toml").write_text("= 3")
    drafts.prune(keep=2)
    assert [draft.state["k"] for draft in drafts.offered()] == [4, 3]


def test_a_draft_that_cannot_be_saved_says_so(tmp_path: Path) -> None:
    (tmp_path / "drafts").touch()
    with pytest.raises(StorageError, match="saved"):
        Drafts(tmp_path).new()
    with pytest.raises(StorageError, match="saved"):
        save_draft(tmp_path / "drafts" / "d.toml", {})


# ---- what is around


def fake_root(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        place = folder / name.replace("__", "/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return folder


def test_nothing_around_gives_no_note(tmp_path: Path) -> None:
    assert environment_notes({}, tmp_path) == []


def test_what_kills_by_control_group_is_named(tmp_path: Path) -> None:
    root = fake_root(tmp_path, proc__self__cgroup="0::/user.slice/session-3.scope\n")
    assert environment_notes({}, root) == []
    (root / "etc/systemd").mkdir(parents=True)
    conf = root / "etc/systemd/logind.conf"
    conf.write_text("[Login]\n#KillUserProcesses=yes\n")
    assert environment_notes({}, root) == []
    conf.write_text("[Login]\nKillUserProcesses=yes\n")
    [note] = environment_notes({}, root)
    assert note.code == "kill-user-processes"
    assert "enable-linger" in note.remedy
    (root / "run/systemd/logind.conf.d").mkdir(parents=True)
    (root / "run/systemd/logind.conf.d/50.conf").write_text("[Login]\nKillUserProcesses=no\n")
    assert environment_notes({}, root) == []


@pytest.mark.parametrize(
    ("environ", "files", "code", "word"),
    [
        ({"SLURM_JOB_ID": "42"}, {}, "slurm", "42"),
        ({}, {"proc__self__cgroup": "0::/slurm/uid_1/job_7\n"}, "slurm", "allocation"),
        ({"container": "podman"}, {}, "container", "podman"),
        ({}, {".dockerenv": ""}, "container", "docker"),
        ({}, {"run__.containerenv": ""}, "container", "podman"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, {}, "container", "kubernetes"),
    ],
)
def test_where_jobs_end_with_their_surroundings_is_named(
    tmp_path: Path, environ: dict[str, str], files: dict[str, str], code: str, word: str
) -> None:
    [note] = environment_notes(environ, fake_root(tmp_path, **files))
    assert note.code == code
    assert word in note.what
    assert note.remedy


# ---- imports


def test_looking_at_jobs_loads_neither_torch_nor_numpy(fresh_python: FreshPython, job: Job) -> None:
    code = import_all("vlora_tui.jobs") + (
        "\nfrom vlora_tui.jobs import JobStore, JobWatcher\n"
        "watcher = JobWatcher(JobStore.open())\n"
        "assert len(watcher.poll()) == 1\n"
    )
    assert not {"torch", "numpy", "textual", "typer"} & loaded_by(fresh_python, code)


def test_job_json_is_versioned(job: Job) -> None:
    row = json.loads((job.folder / "job.json").read_text())
    assert (row["schema"], row["version"]) == ("vlora-tui/job", 1)
    assert row["torch"]


def test_the_state_directory_can_be_named(cli: Cli, tmp_path: Path) -> None:
    assert cli("jobs", "--state-dir", tmp_path / "mine", "--json").data["jobs"] == []


def test_a_title_counts_the_adapters_that_are_of_use(tmp_path: Path) -> None:
    named = tuple(AdapterInput(f"/data/a{i}", f"a{i}") for i in range(19))
    recipe = Recipe(input=Input(adapters=named), compress=Compress(), output=str(tmp_path / "o"))
    assert title_of(recipe) == "19 adapters -> o"
    folders = Input(adapters=(AdapterInput("/data/a"), AdapterInput("/data/b")))
    measuring = Recipe(input=folders)
    assert title_of(measuring) == "spectra of 2 inputs"  # of which nobody has looked how many
    view = JobView(Job(tmp_path, JobInfo("j", "build", title_of(recipe), 0.0)))
    assert view.title == "19 adapters -> o"
    found = events.AdaptersFound(tuple(f"a{i}" for i in range(19)), 1, 1)
    view.take(TimedEvent(1, 1.0, found))
    assert view.title == "19 adapters -> o"
    view.take(TimedEvent(2, 2.0, events.Checked(18, ("a0",))))
    assert view.title == "18 adapters -> o"
    view.job = Job(tmp_path, JobInfo("j", "spectra", title_of(measuring), 0.0))
    assert view.title == "spectra of 18 adapters"
    view.job = Job(tmp_path, JobInfo("j", "build", "2 inputs of mine -> o", 0.0))
    assert view.title == "2 inputs of mine -> o"  # a folder's name

"""The commands and the Hub: looked at, worked on, pulled and pushed; no token is ever told."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.app.conftest import Cli
from tests.conftest import FreshPython
from tests.witnesses import make
from tests.witnesses.hub import TOKEN, Hub, read_tree
from vlora_engine import SharedSubspace, load_adapter
from vlora_engine.catalog.read import read_manifest
from vlora_engine.catalog.scanner import scan
from vlora_engine.compression_target import CompressionTarget
from vlora_engine.publish.card import read_front_matter
from vlora_tui.recipe.reader import load_recipe


@pytest.fixture
def tasks(hub: Hub, runs: Path) -> list[str]:
    """Four adapters on the Hub, the first two under a licence; their addresses."""
    for i in range(4):
        card = {"license": "mit"} if i < 2 else {}
        tags = ["peft", "base_model:adapter:org/gpt2"]
        hub.add(f"org/task{i:02d}", runs / f"task{i:02d}", card=card, tags=tags)
    return [f"hf://org/task{i:02d}" for i in range(4)]


def commits(hub: Hub) -> dict[str, str]:
    return {name: repo.refs["main"] for name, repo in hub.repos.items()}


# looking


def test_inspect_shows_the_rows_of_the_hub_with_their_sizes(
    cli: Cli, hub: Hub, tasks: list[str], runs: Path
) -> None:
    data = cli("inspect", *tasks, "--json").data
    local = cli("inspect", runs, "--json").data
    assert [(row["name"], row["bytes"], row["rank"]) for row in data["adapters"]] == [
        (row["name"], row["bytes"], row["rank"]) for row in local["adapters"]
    ]
    assert len(data["groups"]) == 1, "they fit together"
    assert all(span for span in (r.span for r in hub.asked("^GET /lfs/")))
    assert "task02" in cli("inspect", tasks[2]).out
    found = cli("inspect", "--search-base", "org/gpt2", "--limit", "2", "--json").data
    assert len(found["adapters"]) == 2
    cli("pull", tasks[1], "-o", runs.parent / "pulled-for-the-cache", "-q")
    cached = cli("inspect", "--hf-cache", "--json").data
    assert [row["path"] for row in cached["adapters"]] == [
        f"{tasks[1]}@{commits(hub)['org/task01']}"
    ]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("inspect hf://org/none", 2, "no such repository"),
        ("inspect hf://org/task00@v9", 2, "no revision 'v9'"),
        ("inspect hf://org/task00 --limit 3", 2, "--search-base"),
        ("inspect --search-base org/other", 2, "No adapter on the Hub names this base model"),
        ("inspect --search-base org/gpt2 --limit 0", 2, "out of range"),
        ("compress hf-search:org/gpt2 -o {out}", 2, "for looking"),
        ("compress hf-cache: -o {out}", 2, "no adapter in the Hub's cache"),
        ("compress hf://org/none -o {out}", 2, "no such repository"),
        ("compress org/task00 -o {out}", 2, "hf://org/task00"),
        ("compress https://huggingface.co/org/task00 -o {out}", 2, "write hf://org/task00"),
        ("add hf://org/task00 hf://org/task01", 2, "not changed in place"),
        ("remove hf://org/task00 x", 2, "vlora-tui pull"),
        ("pull org/task00 -o {out}", 2, "hf://org/name"),
        ("pull hf://org/task00:x -o {out}", 2, "vlora-tui export hf://org/task00 x"),
        ("pull hf://org/task00 -o {runs}", 2, "already exists"),
        ("push {runs} org/new/folder", 2, "a whole repository"),
        ("push {runs} org/new", 2, "takes a token"),
        ("push {empty} org/new", 2, "neither a subspace nor an adapter"),
        ("push {runs} org/new --adapters", 2, "no subspace here"),
        ("push {runs} org/new --task x", 2, "--adapters"),
        ("info hf://org/task00", 2, "no subspace here"),
    ],
)
def test_what_the_hub_does_not_give_is_said(
    cli: Cli, tasks: list[str], runs: Path, tmp_path: Path, line: str, code: int, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"out": tmp_path / "out", "runs": runs, "empty": tmp_path / "empty"}
    found = cli(*(word.format(**places) for word in line.split()), code=code)
    assert words in found.err
    assert not (tmp_path / "out").exists()


def test_switched_off_it_says_so_and_asks_nobody(
    fresh_python: FreshPython, hub: Hub, tasks: list[str], tmp_path: Path
) -> None:
    env = hub.environment(tmp_path / "elsewhere", HF_HUB_OFFLINE="1")
    before = len(hub.requests)
    done = fresh_python("-m", "vlora_tui", "inspect", tasks[0], env=env, check=False)
    assert done.returncode == 1
    assert "switched off here (HF_HUB_OFFLINE)" in done.stderr
    assert len(hub.requests) == before


# working


def test_a_recipe_pins_what_it_works_on(
    cli: Cli, hub: Hub, tasks: list[str], runs: Path, tmp_path: Path
) -> None:
    out, plain = tmp_path / "subspace", tmp_path / "plain"
    recipe = tmp_path / "recipe.toml"
    places = [tasks[0], str(runs / "task01"), tasks[2]]
    row = f"adapters = {json.dumps(places)}"
    recipe.write_text(f"[input]\n{row}\n[compress]\nk = 8\n[output]\nsubspace = 'subspace'\n")
    assert load_recipe(recipe).input.adapters[0].path == tasks[0]
    pinned = cli("run", "--headless", recipe, "--print-recipe").out
    assert f'"{tasks[0]}@{commits(hub)["org/task00"]}"' in pinned

    cli("run", "--headless", recipe)
    cli("compress", *(runs / f"task0{i}" for i in range(3)), "-o", plain, "-k", "8")
    manifest = read_manifest(out)
    assert list(manifest.tasks) == list(read_manifest(plain).tasks), "named as folders are"
    assert manifest.tasks["task02"].source == f"{tasks[2]}@{commits(hub)['org/task02']}"
    assert not manifest.tasks["task01"].source.startswith("hf://")
    basis = (out / "basis.safetensors").read_bytes()
    assert basis == (plain / "basis.safetensors").read_bytes()
    assert "127.0.0.1" not in (out / "subspace.json").read_text()


def test_every_command_takes_an_address(
    cli: Cli, hub: Hub, tasks: list[str], runs: Path, subspace: Path, tmp_path: Path
) -> None:
    hub.add("org/subspace", subspace)
    whole = "hf://org/subspace"
    pairs = [
        (["analyze", *tasks], ["analyze", *(runs / f"task0{i}" for i in range(4))], "clusters"),
        (["diff", *tasks[:2]], ["diff", runs / "task00", runs / "task01"], "total"),
        (["diff", whole, "task00", "task01"], ["diff", subspace, "task00", "task01"], "total"),
        (["info", whole], ["info", subspace], "tasks"),
        (["plan", *tasks], ["plan", *(runs / f"task0{i}" for i in range(4))], "tasks"),
    ]
    for remote, local, key in pairs:
        assert cli(*remote, "--json").data[key] == cli(*local, "--json").data[key], remote
    assert (
        cli("info", whole, "--json").data["bytes"] == cli("info", subspace, "--json").data["bytes"]
    )
    assert cli("validate", whole, "--json").data["ok"]
    found = cli("inspect", whole, "--json").data["tasks"]
    assert [row["path"] for row in found] == [
        f"{whole}@{commits(hub)['org/subspace']}:task0{i}" for i in range(4)
    ]
    assert len(cli("doctor", tasks[0], whole, "--json", code=None).data["adapters"]) == 2
    for place in (tasks[0], whole):
        cli("convert", place, "--to", "peft", "-o", tmp_path / f"as-peft-{place[-4:]}")
        cli("report", place, "-o", tmp_path / f"report-{place[-4:]}.md")
    titles = [
        (tmp_path / f"report-{end}.md").read_text().splitlines()[0] for end in ("pace", "sk00")
    ]
    assert titles == ["# Subspace subspace", "# LoRA adapters in task00"]
    cli("coverage", whole, *tasks)
    cli("interference", *tasks)
    cli("module", tasks[0], tasks[1], next(iter(make.MODULES)))
    assert cli("spectra", *tasks, "-o", tmp_path / "spectra", "--json").data["layers"] == 4

    assert cli("benchmark", whole, "--repeats", "1", "--json").data

    cli("resize", tasks[0], "-o", tmp_path / "resized", "--rank", "2")
    cli("resize", runs / "task00", "-o", tmp_path / "resized-here", "--rank", "2")
    cli("merge", *tasks[:2], "-o", tmp_path / "merged")
    cli("merge", runs / "task00", runs / "task01", "-o", tmp_path / "merged-here")
    cli("export", whole, "task03", "-o", tmp_path / "task03")
    cli("export", subspace, "task03", "-o", tmp_path / "task03-here")
    for one in ("merged", "resized", "task03"):
        assert read_tree(tmp_path / one) == read_tree(tmp_path / f"{one}-here")
    cli("remove", subspace, "task00")
    cli("add", subspace, tasks[0])
    record = read_manifest(subspace).tasks["task00"]
    assert record.source == f"{tasks[0]}@{commits(hub)['org/task00']}"
    cli("quantize", whole, "-o", tmp_path / "packed")
    assert read_manifest(tmp_path / "packed").quantization is not None


def test_a_job_downloads_in_its_own_process(
    cli: Cli, hub: Hub, tasks: list[str], tmp_path: Path
) -> None:
    from vlora_tui.jobs import JobStore, start, wait
    from vlora_tui.recipe.model import AdapterInput, Compress, Input, Recipe

    adapters = tuple(AdapterInput(place) for place in tasks)
    recipe = Recipe(
        Input(adapters), Compress(CompressionTarget("delta", k=8)), str(tmp_path / "out")
    )
    store = JobStore.open(tmp_path / "state")
    job = start(store, recipe)
    assert [a.path for a in job.recipe().input.adapters] == [
        f"{place}@{commits(hub)[place[5:]]}" for place in tasks
    ]
    view = wait(job, 120)
    assert str(view.state) == "finished", job.log_tail()
    assert '"download"' in job.events_path.read_text()
    assert len(read_manifest(tmp_path / "out").tasks) == 4


# pulling


def test_pull_writes_nothing_over_the_cache_that_it_reads(
    cli: Cli, hub: Hub, tasks: list[str], tmp_path: Path
) -> None:
    cli("pull", tasks[0], "-o", tmp_path / "one")
    (cached,) = Path(os.environ["HF_HOME"]).rglob("adapter_config.json")
    before = read_tree(cached.parent)
    for place in (cached.parent, cached.parent / "inside"):
        told = cli("pull", tasks[0], "-o", place, "--force", code=2).err
        assert "one of the inputs" in told or "lies inside" in told
    assert read_tree(cached.parent) == before
    assert cached.is_symlink()


def test_pull_makes_a_directory_of_ones_own(
    cli: Cli, hub: Hub, tasks: list[str], runs: Path, subspace: Path, tmp_path: Path
) -> None:
    data = cli("pull", tasks[0], "-o", tmp_path / "one", "--json").data
    assert data["address"] == f"{tasks[0]}@{commits(hub)['org/task00']}"
    assert read_tree(tmp_path / "one") == read_tree(runs / "task00")
    assert not any(p.is_symlink() for p in (tmp_path / "one").iterdir())

    hub.add("org/subspace", {f"v1/{k}": v for k, v in read_tree(subspace).items()})
    cli("pull", "hf://org/subspace/v1", "-o", tmp_path / "sub")
    assert read_tree(tmp_path / "sub") == read_tree(subspace)
    cli("pull", "hf://org/subspace/v1", "-o", tmp_path / "sub", "--force")
    sent = len(hub.asked("^GET .*/(resolve|lfs)/"))
    dry = cli("pull", tasks[3], "-o", tmp_path / "dry", "--dry-run", "--json").data
    assert dry["bytes"] == sum(map(len, read_tree(runs / "task03").values()))
    assert not (tmp_path / "dry").exists()
    assert len(hub.asked("^GET .*/(resolve|lfs)/")) == sent


# pushing


@pytest.mark.parametrize(
    ("how", "beside"),
    [(("-k", "8"), False), (("--max-error", "0.1"), False), (("--max-error", "0.1"), True)],
    ids=["basis", "coded", "both"],
)
def test_push_publishes_a_subspace_that_comes_back_the_same(
    cli: Cli,
    hub: Hub,
    tasks: list[str],
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: tuple[str, str],
    beside: bool,
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    out = tmp_path / "subspace"
    cli("compress", *tasks[:3], runs / "task03", "-o", out, *how)
    if beside:
        cli("basis", out)
    dry = cli("push", out, "me/legal", "--dry-run", "--json").data
    assert "me/legal" not in hub.repos
    data = cli("push", out, "me/legal", "--private", "-m", "First.", "--json").data
    repo = hub.repos["me/legal"]
    assert repo.private
    assert data["commit"] == f"hf://me/legal@{repo.refs['main']}"
    assert sorted(dry["files"]) == sorted(data["files"])
    assert set(repo.files) == {*data["files"], ".gitattributes"}

    card = repo.files["README.md"].decode()
    assert dry["card"] == card
    front = read_front_matter(_written(tmp_path / "card.md", card))
    assert front["library_name"] == "vlora-tui"
    assert front["base_model"] == "gpt2"
    assert "license" not in front, "of two sources it is not known"
    for task, record in read_manifest(out).tasks.items():
        assert f"`{task}`" in card
        assert f"{100 * record.error:.3g} %" in card
    assert tasks[0] in card
    assert "`mit`" in card
    assert "hf://me/legal" in card

    cli("pull", "hf://me/legal", "-o", tmp_path / "back")
    sources = {name: task.source for name, task in read_manifest(tmp_path / "back").tasks.items()}
    assert sources["task00"] == f"{tasks[0]}@{commits(hub)['org/task00']}"
    assert sources["task03"] is None, "where it lay here is nobody's business"
    assert str(runs).encode() not in b"".join(repo.files.values())
    assert runs.name.encode() not in repo.files["subspace.json"]
    assert cli("validate", tmp_path / "back", "--json").data["ok"]
    ours, theirs = SharedSubspace.load(out), SharedSubspace.load("hf://me/legal")
    for task in ours.tasks:
        one, other = ours.reconstruct(task), theirs.reconstruct(task)
        name = one.layer_names[0]
        assert (one.lora_a[name] == other.lora_a[name]).all()


def test_push_again_takes_force_and_leaves_nothing_stale(
    cli: Cli, hub: Hub, subspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    url = SharedSubspace.load(subspace).push_to_hub("me/all")
    assert url.endswith("/me/all")
    repo = hub.repos["me/all"]
    first = repo.refs["main"]
    repo.commit(repo.files | {"LICENSE": b"mine"})
    cli("remove", subspace, "task00")
    found = cli("push", subspace, "me/all", code=2)
    assert "holds files already" in found.err
    cli("push", subspace, "me/all", "--force")
    names = set(repo.files)
    assert "LICENSE" in names, "what is not ours stays"
    assert len([n for n in names if n.startswith("tasks/")]) == 3
    assert first in repo.commits, "history keeps them"
    cli("push", subspace, "me/all", "--branch", "next", "--force")
    assert repo.find("next") not in (None, first)


def test_push_writes_tasks_as_adapters_that_peft_reads(
    cli: Cli, hub: Hub, subspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    cli("push", subspace, "me/tasks", "--adapters", "--task", "task0[12]")
    repo = hub.repos["me/tasks"]
    folders = {name.rpartition("/")[0] for name in repo.files if "adapter" in name}
    assert folders == {"task01", "task02"}
    meant = SharedSubspace.load(subspace).reconstruct("task02")
    found = load_adapter("hf://me/tasks/task02")
    for name in meant.layer_names:
        assert (found.lora_b[name] == meant.lora_b[name]).all()
    assert [i.name for i in scan("hf://me/tasks").adapters] == ["task01", "task02"]
    assert 'subfolder="FOLDER"' in repo.files["README.md"].decode()


def test_push_of_an_adapter_warns_of_a_base_model_that_is_a_path(
    cli: Cli, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    settings = make.config(base_model_name_or_path="/home/somebody/models/secret")
    folder = make.write(tmp_path / "one", settings=settings)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# one\n")
    found = cli("push", folder, "me/one")
    assert "names a base model by a path" in found.err
    repo = hub.repos["me/one"]
    card = repo.files["README.md"].decode()
    assert "somebody" not in card
    assert "license: apache-2.0" in card
    assert set(repo.files) >= {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        ("closed/x", TOKEN, "does not allow this"),
        ("me/x", "hf_wrongTokenOfThisTest", "does not accept the token"),
    ],
)
def test_push_where_one_may_not(
    cli: Cli, hub: Hub, subspace: Path, monkeypatch, name: str, token: str, words: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    found = cli("push", subspace, name, code=2)
    assert words in found.err
    assert token not in found.err
    assert name not in hub.repos


# the token


def test_no_token_is_told_logged_or_kept(
    fresh_python: FreshPython, hub: Hub, tasks: list[str], tmp_path: Path
) -> None:
    hub.repos["org/task00"].private = True
    env = hub.environment(
        tmp_path / "hf",
        HF_TOKEN=TOKEN,
        **{name: str(tmp_path / name) for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "HOME")},
    )

    hub.repos["org/task02"].gated = True
    lines = [
        ["compress", *tasks[:2], "-o", "out", "-k", "4", "--events", "events.jsonl"],
        ["push", "out", "me/out", "--json"],
        ["push", "out", "closed/out", "--json"],
        ["compress", tasks[2], "-o", "none"],
        ["inspect", "hf://me/nothing", "--json"],
    ]
    code = f"from vlora_tui.cli import main\nprint([main(['-vv', *line]) for line in {lines!r}])"
    done = fresh_python(code, env=env, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 0, 2, 2, 2]", said
    assert any(r.token == TOKEN for r in hub.requests), "it was used"
    assert TOKEN not in said
    for folder, _, names in os.walk(tmp_path):
        for name in names:
            assert TOKEN.encode() not in (Path(folder) / name).read_bytes(), name
    assert not re.search(TOKEN, str(hub.repos["me/out"].files))


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path

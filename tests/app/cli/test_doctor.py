"""``doctor`` on the command line: findings, exit codes, commands that mend what was found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.app.conftest import Cli
from tests.witnesses import make
from tests.witnesses.files import tree
from vlora_tui.cli import environment


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """An adapter with one warning (a script beside it) and one note (a head)."""
    tensors = {**make.factors(), "base_model.model.score.weight": torch.ones(2, 12)}
    folder = make.write(tmp_path / "odd", tensors)
    (folder / "run.py").write_text("print()")
    return folder


def test_sound_adapters_are_sound(cli: Cli, runs: Path) -> None:
    found = cli("doctor", runs)
    assert "nothing found in 4 adapters: task00, task01, task02, task03" in found.out
    assert cli("doctor", runs, "--target", "vllm", "--fail-on", "note").code == 0


@pytest.mark.parametrize(
    ("limit", "code"), [("error", 0), ("warning", 3), ("note", 3), ("never", 0)]
)
def test_what_fails_is_what_was_asked(cli: Cli, odd: Path, limit: str, code: int) -> None:
    found = cli("doctor", odd, "--fail-on", limit, code=code)
    assert "code-beside" in found.out
    assert "1 adapter looked at: 1 warning, 1 note" in found.err


def test_an_error_fails_by_default(cli: Cli, broken: Path) -> None:
    found = cli("doctor", broken, "--json", code=3)
    by_name = {row["name"]: row["findings"] for row in found.data["adapters"]}
    assert [f["code"] for f in by_name["with-nan"]] == ["not-finite"]
    assert [f["code"] for f in by_name["cut-short"]] == ["corrupt-file"]
    assert by_name["task00"] == []
    assert found.data["counts"] == {"error": 2, "warning": 0, "note": 0}
    # The numbers are not looked at: half of it goes unseen, as was asked.
    headers = cli("doctor", broken, "--headers", "--json", code=3).data
    assert headers["counts"]["error"] == 1


def test_what_several_share_stands_there_once(cli: Cli, runs: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make.write(tmp_path / name, make.factors(seed=ord(name)), make.config(bias="all"))
    found = cli("doctor", tmp_path, "--target", "vllm", code=3).out
    assert found.count("vllm-bias") == 1
    assert "where: a, b, c" in found


def test_quiet_is_one_line_a_finding(cli: Cli, odd: Path) -> None:
    lines = cli("doctor", odd, "-q").out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["warning", "code-beside"],
        ["note", "rest-tensors"],
    ]


def test_it_changes_nothing(cli: Cli, broken: Path, built: Path) -> None:
    before = tree(broken) | tree(built.parent)
    cli("doctor", broken, built, "--target", "portable", "--fail-on", "never")
    assert tree(broken) | tree(built.parent) == before


def test_a_subspace_is_checked_and_judged(cli: Cli, subspace: Path) -> None:
    assert cli("doctor", subspace, "--target", "vllm").code == 0
    (subspace / "stray.bin").write_bytes(b"x")
    found = cli("doctor", subspace, "--fail-on", "warning", "--json", code=3).data
    assert [f["code"] for f in found["adapters"][0]["findings"]] == ["stray-file"]


def test_the_base_is_looked_at(cli: Cli, runs: Path, tmp_path: Path) -> None:
    make.tiny_llama().save_pretrained(tmp_path / "llama")
    found = cli("doctor", runs, "--base", tmp_path / "llama", "--json", code=3).data
    codes = {f["code"] for row in found["adapters"] for f in row["findings"]}
    assert codes == {"no-module-fits", "other-base"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--target", "triton"], "vllm, sglang"),
        (["--fail-on", "sometimes"], "never"),
        (["--base", "/nowhere"], "no such file"),
    ],
)
def test_wrong_words_are_refused(cli: Cli, runs: Path, words: list[str], told: str) -> None:
    assert told in cli("doctor", runs, *words, code=2).err


def test_the_table_of_rules(cli: Cli) -> None:
    rules = cli("doctor", "rules", "--json").data["rules"]
    assert len(rules) > 90
    assert all(rule["source"] and rule["since"] for rule in rules)
    assert "vllm-bias" in cli("doctor", "rules", "--target", "vllm", "-q").out.split()
    assert "gguf-heads" not in cli("doctor", "rules", "--target", "vllm").out


# ---- this machine


def test_the_environment_by_name(cli: Cli, home: Path) -> None:
    data = cli("doctor", "env", "--json").data
    assert data["facts"]["python"]
    assert data["facts"]["torch"]
    assert str(home / "state") in data["facts"]["state"]
    assert "terminal" in cli("doctor", "env").out
    assert not (home / "state" / "vlora-tui").exists()  # looking makes nothing


def test_a_folder_of_that_name_is_still_a_folder(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.write(tmp_path / "env")
    monkeypatch.chdir(tmp_path)
    assert "nothing found in 1 adapter" in cli("doctor", "./env").out


def test_what_gets_in_the_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    monkeypatch.setattr(environment, "cuda_devices", list)
    environ = {"TERM": "dumb", "SLURM_JOB_ID": "7", "SSH_CONNECTION": "1 2 3 4"}
    codes = {f.code: f for f in environment.environment_findings(environ, tmp_path)}
    assert {"slurm", "dumb-terminal", "remote-shell", "cuda-unused"} <= codes.keys()
    assert all(finding.remedy for finding in codes.values())
    assert "jobs resume" in codes["slurm"].remedy
    assert "remote-shell" not in {
        f.code for f in environment.environment_findings({**environ, "TMUX": "/tmp/x"}, tmp_path)
    }


def test_a_state_directory_that_takes_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    found = cli("doctor", "env", "--json", code=3).data
    assert "no-state" in [f["code"] for f in found["findings"]]

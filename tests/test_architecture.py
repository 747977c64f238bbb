"""ARCHITECTURE.md is true: it lists the packages on disk, and its answers lead somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
ROW = re.compile(r"^\| ([^|]+) \| `([^`:]+): ([^`]+)` \|$", re.MULTILINE)
ANSWERS = [(question.strip(), file, name) for question, file, name in ROW.findall(PAGE)]
ASKED = (
    *("TIES", "NF4 levels", "dW error", "error surface", "disk space check", "Forward hooks"),
    *("Incremental absorb", "singular values", "Subspace validation", "DARE's draw"),
    *("Safetensors headers", "GGUF tensor names", "Cancelling a job", "vLLM's rank limit"),
    *("default error", "Exit codes", "finding's remedy", "palette's entries", "codec's step"),
    *("adapter_config.json", "model card", "PEFT would ignore", "Resolving a recipe"),
    *("plot's axes",),
)


def section(heading: str) -> str:
    """The text below a heading, up to the next."""
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def listed(heading: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", section(heading), re.MULTILINE)


def parts(folder: Path, *, opened: str | None = None) -> Iterator[str]:
    """The modules and packages in a folder, those of the package ``opened`` one by one."""
    for path in folder.iterdir():
        if path.name == opened:
            yield from (f"{opened}/{part}" for part in parts(path))
        elif (path / "__init__.py").exists():
            yield f"{path.name}/"
        elif path.suffix == ".py" and not path.name.startswith("__"):
            yield path.name


def defined(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What stands at the top of a module or class: functions, classes, names that are assigned."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign):
            yield from ((t.id, node) for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node


def test_the_engines_list_is_what_lies_on_disk() -> None:
    assert sorted(listed("The engine, bottom up")) == sorted(parts(ROOT / "engine/vlora_engine"))


def test_the_applications_list_is_what_lies_on_disk() -> None:
    on_disk = sorted(parts(ROOT / "vlora_tui", opened="tui"))
    assert sorted(listed("The application, bottom up")) == on_disk


@pytest.mark.parametrize("words", ASKED)
def test_what_people_ask_is_answered(words: str) -> None:
    assert any(words in question for question, _, _ in ANSWERS)


def test_every_row_of_the_table_is_an_answer() -> None:
    rows = [row for row in section("Where is what").splitlines() if row.startswith("| ")]
    assert len(rows) - 1 == len(ANSWERS)  # the first is the head


@pytest.mark.parametrize(("question", "file", "name"), ANSWERS)
def test_an_answer_leads_to_what_it_names(question: str, file: str, name: str) -> None:
    place: ast.AST = ast.parse((ROOT / file).read_text("utf-8"))
    for part in name.split("."):
        found = dict(defined(place))
        assert part in found, f"{question}: {file} does not define {name}"
        place = found[part]

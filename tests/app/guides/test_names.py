"""What the guides name is there; and nothing of a peer is left without its place here."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import re
import shlex
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import click
import pytest

import vlora_engine
from vlora_engine.compression_target import METHODS
from vlora_engine.formats.gguf_architectures import ARCHITECTURES
from vlora_engine.merging.methods import MERGE_METHODS, PEFT_METHODS
from vlora_engine.targets.registry import VLLM_RANKS
from vlora_tui import guides
from vlora_tui.cli.app import COMMANDS, load_command

SPAN = re.compile(r"`([^`\n]+)`")
FENCED = re.compile(r"^```.*?^```$\n", re.MULTILINE | re.DOTALL)
ROOT_FLAGS = {"--verbose", "--version"}
THEIRS = {  # what belongs to PEFT, transformers or a server, and is spoken of outside of tables
    *("add_weighted_adapter", "save_pretrained", "modules_to_save", "Trainer", "FROM", "model"),
    *("adapter_id", "gguf", "combination_type", "vlora", "lorashare"),
}
FILES = {
    *("adapters", "legal", "medical", "sports", "base", "theirs", "small", "served", "new/finance"),
    *("batches", "embeddings", "labels"),
    *("config.json", "adapter.gguf", "Modelfile", "BASE.gguf", "subspace.json"),
}


class Row(NamedTuple):
    """A row of a table of a guide: what is there, and what it becomes here."""

    there: str
    here: str


def prose(name: str) -> str:
    return FENCED.sub("", guides.guide(name).text)


def rows(name: str) -> list[Row]:
    cells = [line.strip("|").split("|", 1) for line in prose(name).splitlines() if line[:1] == "|"]
    return [Row(*cells[i]) for i in range(len(cells)) if not set(cells[i][0]) <= set("- ")]


def spoken(name: str) -> list[str]:
    """What a guide says of this program: all its spans but those of the other's column."""
    lines = prose(name).splitlines()
    return [
        span
        for line in lines
        for span in SPAN.findall(line.split("|", 2)[2] if line[:1] == "|" else line)
    ]


# ---- what is named is there


@pytest.mark.parametrize("name", guides.NAMES)
def test_what_a_guide_names_is_there(name: str) -> None:
    spans = spoken(name)
    assert len(spans) > 5
    for span in spans:
        check(span, guides.guide(name).text)


@pytest.mark.parametrize(
    "span",
    [
        *(
            "vlora-tui compres A",
            "vlora-tui compress --max-eror 1",
            "--densty",
            "vlora-tui guide x",
        ),
        *("SharedSubspace.absorb_all", "SharedSubspaces.load", "num_component", 'methud="flat"'),
        *('SharedSubspace.from_adapters(paths, methud="flat")', "compress_all", "vlora_engine.no"),
    ],
)
def test_what_is_not_there_would_be_noticed(span: str) -> None:
    with pytest.raises(AssertionError):
        check(span, "")


def check(span: str, text: str) -> None:
    if span.startswith("vlora-tui "):
        check_command(shlex.split(span)[1:])
    elif span.startswith("-"):
        others = [line for line in text.splitlines() if line.startswith("$ ") or line[:4] == "    "]
        known = {flag for command in COMMANDS for flag in flags(command)} | ROOT_FLAGS
        for flag in (word for word in span.split() if word.startswith("-")):
            assert flag in known or any(flag in line for line in others), flag
    elif span not in THEIRS | FILES | {*METHODS, *COMMANDS} and is_python(span):
        check_python(span)


def check_command(words: list[str]) -> None:
    command, *more = words
    if command in ROOT_FLAGS:
        return
    assert command in COMMANDS, words
    for word in more:
        assert not word.startswith("-") or word in flags(command), words
    if command == "guide":
        assert set(more) <= {*guides.NAMES, "NAME"}
    if "--method" in more:
        registry = PEFT_METHODS if "peft" in more else MERGE_METHODS
        method = more[more.index("--method") + 1]
        assert command != "merge" or registry.find(method)


@cache
def flags(command: str) -> frozenset[str]:
    loaded: Any = load_command(command, COMMANDS[command])
    return frozenset(flag for option in loaded.params for flag in option.opts)


def is_python(span: str) -> bool:
    """Whether it reads as a name, a call, or an argument; not as `hf://org/name` or `dW x`."""
    try:
        ast.parse(span, mode="eval" if "=" not in span or "(" in span else "exec")
    except SyntaxError:
        return False
    return re.match(r"[A-Za-z_]\w*(\.\w+|\(|=|$)", span) is not None


def check_python(span: str) -> None:
    tree = ast.parse(span).body[0]
    if isinstance(tree, ast.Assign):
        assert ast.unparse(tree.targets[0]) in small_names(), span
        return
    assert isinstance(tree, ast.Expr)
    call = tree.value if isinstance(tree.value, ast.Call) else None
    path = ast.unparse(call.func if call else tree.value).split(".")
    if path[0] in ("Trainer", "dW", "scale"):
        return
    found: Any = ours().get(path[0])
    if found is None:
        assert len(path) == 1
        assert path[0] in small_names(), span
        return
    for part in path[1:]:
        found = attribute(found, part)
    given = {word.arg for word in call.keywords} if call else set()
    taken = set(inspect.signature(found).parameters) if call else set()
    if "options" in taken:
        taken |= {*inspect.signature(vlora_engine.SharedSubspace.from_adapters).parameters}
    assert given <= taken, span


def attribute(thing: Any, name: str) -> Any:
    """An attribute, be it one that only instances have."""
    if not hasattr(thing, name):
        assert inspect.isclass(thing), f"{thing} has no {name}"
        assert f"self.{name}" in inspect.getsource(thing), f"{thing} has no {name}"
        return None
    return getattr(thing, name)


@cache
def ours() -> dict[str, Any]:
    """The names that users import."""
    from vlora_engine.compat import lorashare
    from vlora_engine.integrations import huggingface

    names = {name: getattr(vlora_engine, name) for name in vlora_engine.__all__}
    return names | {
        "VLoRACallback": huggingface.VLoRACallback,
        "SHAREModel": lorashare.SHAREModel,
        "SHAREConfig": lorashare.SHAREConfig,
        "vlora_engine": vlora_engine,
    }


@cache
def small_names() -> frozenset[str]:
    """Parameters and attributes of theirs, and what stands in a dict that one of them returns."""
    found = {"dw", "pip", "paths"}
    for thing in ours().values():
        members = [thing, *vars(thing).values()] if inspect.isclass(thing) else [thing]
        found |= {name for m in members for name in parameters(m)}
        found |= set(dir(thing)) if inspect.isclass(thing) else set()
    return frozenset(found)


def parameters(thing: Any) -> list[str]:
    thing = getattr(thing, "__func__", thing)
    return list(inspect.signature(thing).parameters) if callable(thing) else []


def test_what_servers_take_is_what_the_targets_say() -> None:
    ranks = re.search(r"`--max-lora-rank` is ([\d, or]+),", prose("vllm"))
    assert ranks
    assert tuple(map(int, re.findall(r"\d+", ranks[1]))) == VLLM_RANKS
    models = {model.partition("_")[0] for a in ARCHITECTURES.values() for model in a.models}
    written = re.search(r"^(.*) are written\.", prose("ollama"), re.MULTILINE)
    assert written
    assert set(re.findall(r"\w+", written[1])) - {"and"} == models


# ---- nothing of a peer is left out


def named_there(name: str) -> set[str]:
    """All names of the other's column, and its commands' flags as ``command --flag``."""
    found: set[str] = set()
    for span in (span for row in rows(name) for span in SPAN.findall(row.there)):
        words = span.split()
        found |= {span, words[0].partition("(")[0]}
        if not words[0].startswith("-"):
            command = words[0]
        found |= {f"{command} {w}" for w in words if w.startswith("-")}
    return found


@pytest.mark.peers
def test_every_command_and_name_of_vlora_has_its_place() -> None:
    vlora = pytest.importorskip("vlora")
    from vlora.cli import cli as program

    named = named_there("from-vlora")
    for command in program.commands.values():
        assert command.name in named
        for option in options(command):
            assert {f"{command.name} {flag}" for flag in option} & named, (command.name, option)
    assert {"--verbose", "--version"} <= named
    ops = importlib.import_module("vlora.ops")
    functions = {
        n for n, f in vars(ops).items() if inspect.isfunction(f) and f.__module__ == "vlora.ops"
    }
    wanted = {*vlora.__all__, *public(functions), "parse_state_dict", "stack_lora_weights"}
    callback = importlib.import_module("vlora.integrations.huggingface").VLoRACallback
    classes = (vlora.SharedSubspace, vlora.VLoRAModel, vlora.TaskRouter, vlora.SubspaceTrainer)
    for one in (*classes, callback):
        wanted |= {one.__name__, *(f"{one.__name__}.{n}" for n in public(vars(one)))}
    assert wanted <= named, wanted - named


@pytest.mark.peers
def test_every_command_and_name_of_lorashare_has_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lorashare = pytest.importorskip("lorashare")
    from lorashare.cli import main as program

    named = named_there("from-lorashare")
    for command in ("compress", "info", "reconstruct"):
        monkeypatch.setattr(sys, "argv", ["lorashare", command, "--help"])
        with contextlib.redirect_stdout(io.StringIO()) as told, pytest.raises(SystemExit):
            program()
        lines = [line for line in told.getvalue().splitlines() if line.startswith("  -")]
        flags_of = [re.findall(r"(?<=[ ,])--?[a-z][\w-]*", line) for line in lines]
        assert command in named
        for option in (o for o in flags_of if "--help" not in o):
            assert {f"{command} {flag}" for flag in option} & named, (command, option)
    wanted = {
        f"{one.__name__}.{name}"
        for one in (lorashare.SHAREModel, lorashare.SHAREConfig)
        for name in public(vars(one))
        if callable(getattr(one, name)) or isinstance(vars(one)[name], property)
    }
    wanted |= {"SHAREModel", "SHAREConfig"}
    assert wanted <= named, wanted - named


def test_every_way_of_peft_to_merge_has_its_place() -> None:
    pytest.importorskip("peft")
    from peft import LoraModel, PeftModel

    named = named_there("from-peft")
    source = inspect.getsource(LoraModel.add_weighted_adapter)
    kinds = re.findall(r'"(\w+)"', source.partition("Literal[")[2].partition("]")[0])
    assert len(kinds) > 8
    assert set(kinds) <= named, set(kinds) - named
    taken = {*inspect.signature(LoraModel.add_weighted_adapter).parameters}
    for span in named - set(kinds) - {"linear"}:
        bare = span.removeprefix("PeftModel.").partition("(")[0]
        there = bare in taken or hasattr(PeftModel, bare) or hasattr(LoraModel, bare)
        assert there or bare in ("get_peft_model", "save_as_lora"), span


def public(names: Any) -> Iterator[str]:
    return (name for name in names if not name.startswith("_"))


def options(command: click.Command) -> list[list[str]]:
    return [p.opts for p in command.params if isinstance(p, click.Option)]

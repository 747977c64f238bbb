"""The order of the packages: every import points down, and what is put off has a reason.

Imports inside functions and under TYPE_CHECKING count like any other. A package's face
(``__init__.py``) that hands on names by `lazy_names` imports nothing; who takes such a name from it
imports the module where it lives.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT, FreshPython

# Bottom up: a module imports only what stands above it in this list, or lies in its own package.
ORDER = [
    "vlora_engine._version",
    "vlora_engine.utils.lazy",
    "vlora_engine",  # the face: names load on first use
    "vlora_engine.errors",
    "vlora_engine.findings",
    "vlora_engine.utils",
    "vlora_engine.linalg",
    "vlora_engine.quantization",
    "vlora_engine.ops",
    "vlora_engine.compression_target",
    "vlora_engine.adapters",
    "vlora_engine.formats",
    "vlora_engine.analysis",
    "vlora_engine.merging",
    "vlora_engine.codec",
    "vlora_engine.manifest",
    "vlora_engine.spectra",
    "vlora_engine.hub",
    "vlora_engine.subspace",
    "vlora_engine.interop",
    "vlora_engine.nn",
    "vlora_engine.catalog",
    "vlora_engine.compress",
    "vlora_engine.targets",
    "vlora_engine.doctor",
    "vlora_engine.publish",
    "vlora_engine.resizing",
    "vlora_engine.shared_subspace",
    "vlora_engine.evaluation",
    "vlora_engine.convert",
    "vlora_engine.compat",
    "vlora_engine.integrations",
    "vlora_engine.pipeline",
    "vlora_engine.demo",
    "vlora_tui",
    "vlora_tui.utils",
    "vlora_tui.recipe",
    "vlora_tui.pipeline",
    "vlora_tui.jobs",
    "vlora_tui.report",
    "vlora_tui.guides",
    "vlora_tui.tui.key_names",
    "vlora_tui.tui.text",
    "vlora_tui.tui.terminal",
    "vlora_tui.tui.charts",
    "vlora_tui.tui.widgets",
    "vlora_tui.tui.core",
    "vlora_tui.tui.adapters",
    "vlora_tui.tui.choose",
    "vlora_tui.tui.run",
    "vlora_tui.tui.inspect",
    "vlora_tui.tui.export",
    "vlora_tui.tui.app",
    "vlora_tui.cli",
    "vlora_tui.__main__",
]
# The steps of the interface know nothing of each other.
STRANGERS = [f"vlora_tui.tui.{step}" for step in ("adapters", "choose", "run", "inspect", "export")]
MOST_FLAT = 12
SCREEN_LIBRARIES = ("rich", "textual", "typer")
# A library, and the only place that may import it.
ONLY_IN = [
    ("textual", "vlora_tui.tui"),
    ("plotext", "vlora_tui.tui.charts.variance_plot"),
    ("typer", "vlora_tui.cli"),
]
# What an import inside a function may keep away: each is slow to load, or need not be installed.
SLOW = {
    "gguf",
    "huggingface_hub",
    "numba",
    "numpy",
    "peft",
    "plotext",
    "ray",
    "rich",
    "safetensors",
    "textual",
    "tomli_w",
    "tomllib",
    "torch",
    "transformers",
    "typer",
    "yaml",
}
# Libraries that are put off for another reason.
EXCUSED = {
    "vlora_engine.utils.memory": "resource, which Windows has not",
    "vlora_tui.cli.errors": "traceback, of a fault of ours alone",
    "vlora_tui.tui.terminal.driver": "select, which Windows has for sockets alone",
    "vlora_tui.utils.locking": "fcntl, which Windows has not",
    "vlora_tui.utils.paths": "platformdirs, which --help does without",
    "vlora_tui.utils.config": "platformdirs, which --help does without",
}

# What loads when a help is asked for, the whole one or a command's: it has to come at once.
# Commands are tried in turn in one interpreter, each with our modules gone from it.
HELPS = """
import contextlib, io, json, sys
from vlora_tui.cli.app import COMMANDS
commands = {entry.module: name for name, entry in COMMANDS.items()}
loaded = {}
for words in (["--help"], *([name, "--help"] for name in commands.values())):
    for name in [name for name in sys.modules if name.startswith("vlora")]:
        del sys.modules[name]
    with contextlib.redirect_stdout(io.StringIO()):
        from vlora_tui.cli import main
        assert main(words) == 0, words
    loaded[" ".join(words)] = [name for name in sys.modules if name.startswith("vlora")]
print(json.dumps(loaded))
"""
# And until the interface has painted something: it asks for its first step after that.
FIRST_PAINT = """
import asyncio, json, sys
from vlora_tui.cli import main
from vlora_tui.tui.app import start
from vlora_tui.tui.app.app import VLoRAApp

async def painted(app, step):
    loaded.extend(name for name in sys.modules if name.startswith("vlora"))
    app.exit()

loaded = []
start.require_terminal = lambda instead: None
VLoRAApp.show_step = painted
VLoRAApp.run = lambda app, mouse: asyncio.run(app.run_async(headless=True))
assert main([]) == 0
print(json.dumps({"first paint": loaded}))
"""

# The modules that put an import off, and what they keep away from those who import them: libraries,
# and modules of OURS from a help or the first paint, on whose way they lie.
OURS = "ours"
LAZY = {
    "vlora_engine.adapters.model": "torch",
    "vlora_engine.catalog.subspace_tasks": "numpy torch",
    "vlora_engine.codec.compiled": "numba",
    "vlora_engine.codec.forecast": "safetensors",
    "vlora_engine.compat.lorashare": "huggingface_hub peft",
    "vlora_engine.convert.convert": "numpy safetensors torch",
    "vlora_engine.convert.losses": "numpy torch",
    "vlora_engine.doctor.base_tensors": "torch",
    "vlora_engine.doctor.subspace_check": "numpy torch",
    "vlora_engine.doctor.tensor_rules": "numpy torch",
    "vlora_engine.formats.base_model_config": "huggingface_hub",
    "vlora_engine.formats.contents": "torch",
    "vlora_engine.formats.gguf": "torch",
    "vlora_engine.formats.gguf_save": "gguf torch",
    "vlora_engine.formats.peft_save": "torch",
    "vlora_engine.hub.client": "huggingface_hub",
    "vlora_engine.hub.download": "huggingface_hub",
    "vlora_engine.hub.remote": "huggingface_hub",
    "vlora_engine.nn.base_modules": "peft safetensors torch transformers",
    "vlora_engine.nn.peft_model": "peft transformers",
    "vlora_engine.publish.card": "yaml",
    "vlora_engine.publish.push": "huggingface_hub",
    "vlora_engine.spectra.tables": "safetensors",
    "vlora_engine.targets.save": "torch",
    "vlora_engine.targets.shape": "torch",
    "vlora_engine.targets.verify": "torch",
    "vlora_engine.utils.device": "torch",
    "vlora_engine.utils.memory": "torch",
    "vlora_engine.utils.safetensors_file": "torch",
    "vlora_engine.utils.tensor_writer": "torch",
    "vlora_engine.utils.workers": "torch",
    "vlora_tui.cli": "ours typer",
    "vlora_tui.cli.answering": "typer",
    "vlora_tui.cli.app": "ours",
    "vlora_tui.cli.basis": "numpy ours safetensors torch",
    "vlora_tui.cli.care": "numpy ours safetensors torch",
    "vlora_tui.cli.compact": "numpy ours safetensors torch",
    "vlora_tui.cli.compare": "numpy ours torch",
    "vlora_tui.cli.compress": "numpy ours",
    "vlora_tui.cli.config": "textual",
    "vlora_tui.cli.convert": "ours",
    "vlora_tui.cli.coverage": "numpy ours safetensors torch",
    "vlora_tui.cli.csv_file": "ours",
    "vlora_tui.cli.demo": "numpy ours",
    "vlora_tui.cli.doctor": "ours",
    "vlora_tui.cli.doctor_merged": "torch",
    "vlora_tui.cli.environment": "tomllib torch",
    "vlora_tui.cli.errors": "ours",
    "vlora_tui.cli.eval": "numpy ours",
    "vlora_tui.cli.eval_adapters": "numpy safetensors torch",
    "vlora_tui.cli.execute": "numpy tomllib torch",
    "vlora_tui.cli.export": "ours",
    "vlora_tui.cli.flags": "ours tomllib",
    "vlora_tui.cli.guide": "ours",
    "vlora_tui.cli.hub": "numpy ours torch",
    "vlora_tui.cli.hub_inputs": "ours",
    "vlora_tui.cli.interface": "ours",
    "vlora_tui.cli.interference": "numpy ours torch",
    "vlora_tui.cli.jobs": "ours",
    "vlora_tui.cli.look": "numpy ours",
    "vlora_tui.cli.merge": "numpy ours tomllib",
    "vlora_tui.cli.module": "numpy ours torch",
    "vlora_tui.cli.output": "rich",
    "vlora_tui.cli.plan": "numpy ours",
    "vlora_tui.cli.progress": "rich",
    "vlora_tui.cli.quantize": "ours",
    "vlora_tui.cli.report": "numpy ours",
    "vlora_tui.cli.resize": "ours",
    "vlora_tui.cli.run": "ours tomllib",
    "vlora_tui.cli.spectra": "numpy ours",
    "vlora_tui.cli.table_flags": "ours",
    "vlora_tui.cli.tasks": "ours",
    "vlora_tui.jobs.drafts": "tomli_w",
    "vlora_tui.jobs.runner": "numpy",
    "vlora_tui.pipeline.disk_space": "numpy",
    "vlora_tui.pipeline.evaluating": "safetensors torch",
    "vlora_tui.pipeline.inputs": "numpy",
    "vlora_tui.pipeline.outputs": "numpy safetensors torch",
    "vlora_tui.pipeline.publish": "numpy torch",
    "vlora_tui.pipeline.run": "torch",
    "vlora_tui.pipeline.tasks": "numpy safetensors torch",
    "vlora_tui.recipe.mergekit": "yaml",
    "vlora_tui.recipe.model": "tomli_w",
    "vlora_tui.report.comparison": "numpy torch",
    "vlora_tui.report.gather": "safetensors torch",
    "vlora_tui.tui.adapters.finding": "numpy",
    "vlora_tui.tui.app.app": "ours",
    "vlora_tui.tui.app.base_app": "ours",
    "vlora_tui.tui.app.drafts": "tomllib",
    "vlora_tui.tui.app.start": "rich textual tomllib",
    "vlora_tui.tui.charts.variance_plot": "plotext",
    "vlora_tui.tui.core.job_client": "numpy ours tomllib",
    "vlora_tui.tui.core.session": "numpy ours",
    "vlora_tui.tui.run.forms": "huggingface_hub",
    "vlora_tui.utils.config": "tomllib",
}


class Import(NamedTuple):
    """One import statement's target: a module of ours, or a library's first name."""

    importer: str
    imported: str
    line: int
    inside: bool  # in a function: it runs when that is called
    typing: bool  # under TYPE_CHECKING: it never runs

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


class Tree:
    """All modules of both packages and what each imports."""

    def __init__(self) -> None:
        self.files = dict(_files())
        self.handed_on = {
            f"{name}.{handed}": module
            for name, path in self.files.items()
            if path.name == "__init__.py"
            for handed, module in _handed_on(path)
        }
        self.imports = [i for name, path in self.files.items() for i in self._read(name, path)]

    def _read(self, name: str, path: Path) -> Iterator[Import]:
        def visit(node: ast.AST, inside: bool, typing: bool) -> Iterator[Import]:
            for child in ast.iter_child_nodes(node):
                for target in sorted(self._targets(child)):
                    if target != name:
                        yield Import(name, target, child.lineno, inside, typing)
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                only_typed = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                yield from visit(child, inside or function, typing or only_typed)

        return visit(ast.parse(path.read_text("utf-8")), inside=False, typing=False)

    def _targets(self, node: ast.AST) -> set[str]:
        if isinstance(node, ast.Import):
            return {self._known(alias.name) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            return {self._known(name) for name in names} | self._homes(names)
        return set()

    def _homes(self, names: list[str]) -> set[str]:
        """Where the names live that packages hand on."""
        homes = set()
        for name in names:
            while name in self.handed_on:
                homes.add(self.handed_on[name])
                name = f"{self.handed_on[name]}.{name.rpartition('.')[2]}"
        return homes

    def _known(self, name: str) -> str:
        """The module of ours that `name` is or lies in, else the library."""
        module = name
        while module and module not in self.files:
            module = module.rpartition(".")[0]
        return module or name.partition(".")[0]

    def on_load(self, name: str) -> set[str]:
        """Everything that importing a module imports with it."""
        direct: dict[str, set[str]] = {}
        for found in self.imports:
            if not found.inside and not found.typing:
                direct.setdefault(found.importer, set()).add(found.imported)
        seen: set[str] = set()
        todo = [name]
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += direct.get(module, ())
                todo += [module.rpartition(".")[0]] if "." in module else []
        return seen


def _files() -> Iterator[tuple[str, Path]]:
    for folder in (ROOT / "engine" / "vlora_engine", ROOT / "vlora_tui"):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _handed_on(face: Path) -> Iterator[tuple[str, str]]:
    """The names that a package hands on by `lazy_names`, and the module of each."""
    for node in ast.walk(ast.parse(face.read_text("utf-8"))):
        if isinstance(node, ast.Dict) and node.keys:
            homes = ast.literal_eval(node)
            yield from ((name, module) for module, names in homes.items() for name in names)


@pytest.fixture(scope="module")
def light_paths(fresh_python: FreshPython) -> dict[str, set[str]]:
    """What answers at once, and the modules of ours that new interpreters loaded for it."""
    answers = [json.loads(fresh_python(code).stdout) for code in (HELPS, FIRST_PAINT)]
    return {what: set(loaded) for answer in answers for what, loaded in answer.items()}


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree()


def place(module: str) -> int:
    """Where a module stands in the order."""
    homes = [name for name in ORDER if module == name or module.startswith(name + ".")]
    assert homes, f"{module} stands in no package of the order"
    return ORDER.index(max(homes, key=len))


def test_the_order_names_what_is_there(tree: Tree) -> None:
    gone = [name for name in ORDER if name not in tree.files and not _is_face_less(name)]
    assert not gone
    assert {place(module) for module in tree.files if not _is_bare(module)} <= set(
        range(len(ORDER))
    )


def _is_face_less(name: str) -> bool:
    return (ROOT / "engine" / name.replace(".", "/")).is_dir()


def _is_bare(module: str) -> bool:
    return module == "vlora_tui.tui"  # a folder of packages, itself empty


def test_few_files_lie_flat_in_the_engines_root(tree: Tree) -> None:
    flat = [name for name in tree.files if name.count(".") == 1 and name.startswith("vlora_engine")]
    modules = [name for name in flat if tree.files[name].name != "__init__.py"]
    assert len(modules) < MOST_FLAT  # and the face


def test_every_import_points_down(tree: Tree) -> None:
    upwards = [
        str(found)
        for found in tree.imports
        if found.imported in tree.files
        and not _is_bare(found.imported)
        and not _is_bare(found.importer)
        and place(found.imported) > place(found.importer)
    ]
    assert not upwards


def test_the_steps_of_the_interface_do_not_know_each_other(tree: Tree) -> None:
    def step(module: str) -> str | None:
        return next((s for s in STRANGERS if module == s or module.startswith(s + ".")), None)

    crossing = [
        str(found)
        for found in tree.imports
        if step(found.importer)
        and step(found.imported)
        and step(found.importer) != step(found.imported)
    ]
    assert not crossing


def test_the_engine_knows_no_screen_and_the_interface_no_weights(tree: Tree) -> None:
    offenders = [
        str(found)
        for found in tree.imports
        if (is_within(found.importer, "vlora_engine") and found.imported in SCREEN_LIBRARIES)
        or (is_within(found.importer, "vlora_tui.tui") and found.imported == "torch")
    ]
    assert not offenders


@pytest.mark.parametrize(("library", "package"), ONLY_IN)
def test_a_library_is_known_in_one_package(tree: Tree, library: str, package: str) -> None:
    users = [found for found in tree.imports if found.imported == library]
    assert users
    assert not [str(found) for found in users if not is_within(found.importer, package)]


def test_only_the_command_line_opens_the_interface_and_by_its_start(tree: Tree) -> None:
    """`start` loads Textual when it is called, and not before."""
    offenders = [
        str(found)
        for found in tree.imports
        if is_within(found.imported, "vlora_tui.tui")
        and not is_within(found.importer, "vlora_tui.tui")
        and not (
            is_within(found.importer, "vlora_tui.cli")
            and (found.inside or found.imported == "vlora_tui.tui.app.start")
        )
    ]
    assert not offenders
    assert "textual" not in tree.on_load("vlora_tui.tui.app.start")


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_no_module_imports_itself_by_a_detour(tree: Tree) -> None:
    """Within a package, too; imports in functions and for types counted."""
    below: dict[str, set[str]] = {name: set() for name in tree.files}
    for found in tree.imports:
        face = tree.files.get(found.imported, Path()).name == "__init__.py"
        if found.imported in below and not (
            face and found.importer.startswith(found.imported + ".")
        ):
            below[found.importer].add(found.imported)
    while free := [name for name, needs in below.items() if not needs & below.keys()]:
        for name in free:
            del below[name]
    assert not sorted(below), "these import each other in a circle, or stand above one"


def test_every_import_that_is_put_off_keeps_something_away(
    tree: Tree, light_paths: dict[str, set[str]]
) -> None:
    """Of LAZY, import by import.

    Either a slow library would come along, at once or by a detour, that who imports the module does
    not have anyway; or the module is loaded for an answer that is due at once, and what it puts off
    is not.
    """
    on_load = cache(tree.on_load)
    put_off: dict[str, set[str]] = {}
    without_reason, excused = [], set()
    for found in tree.imports:
        if not found.inside:
            continue
        kept_away = (on_load(found.imported) - on_load(found.importer)) & SLOW
        is_ours = found.imported in tree.files
        if not kept_away and is_ours and _is_kept_off_a_light_path(found, light_paths):
            kept_away = {OURS}
        if kept_away:
            put_off.setdefault(found.importer, set()).update(kept_away)
        elif not is_ours and found.importer in EXCUSED:
            excused.add(found.importer)
        else:
            without_reason.append(str(found))
    assert not without_reason
    assert {name: " ".join(sorted(kept)) for name, kept in put_off.items()} == LAZY
    assert excused == set(EXCUSED)


def _is_kept_off_a_light_path(found: Import, light_paths: dict[str, set[str]]) -> bool:
    return any(
        found.importer in loaded and found.imported not in loaded for loaded in light_paths.values()
    )


def test_pickles_are_opened_only_with_weights_only() -> None:
    # torch < 2.6 runs the code in a pickle unless told not to, so each call has to tell it.
    offenders = []
    for folder in ("engine/vlora_engine", "vlora_tui"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    options = {o.arg: ast.unparse(o.value) for o in node.keywords}
                    if options.get("weights_only") != "True":
                        offenders.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not offenders

"""The order of the packages: every import points down, and what is put off has a reason.

Imports inside functions and under TYPE_CHECKING count like any other. A package's face
(``__init__.py``) that hands on names by `lazy_names` imports nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

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
# What is put off for another reason.
EXCUSED = {
    "vlora_engine.doctor": "a face: all rules are loaded when they are asked for",
    "vlora_tui.cli.errors": "traceback, of a fault of ours alone",
    "vlora_tui.tui.terminal.driver": "select, which Windows has for sockets alone",
    "vlora_tui.utils.locking": "fcntl, which Windows has not",
    "vlora_tui.utils.paths": "platformdirs, which --help does without",
    "vlora_tui.utils.config": "platformdirs, which --help does without",
}
# What answers within a tenth of a second (--help, the first screen) puts off our own modules, too.
AT_ONCE = ("vlora_tui.cli", "vlora_tui.tui.app", "vlora_tui.tui.core")

# The modules that put an import off, and what they keep away from those who import them.
LAZY = {
    "vlora_engine.adapters.model": "torch",
    "vlora_engine.catalog.subspace_tasks": "numpy torch",
    "vlora_engine.codec.forecast": "safetensors",
    "vlora_engine.compat.lorashare": "huggingface_hub peft",
    "vlora_engine.convert.convert": "numpy safetensors torch",
    "vlora_engine.convert.losses": "numpy torch",
    "vlora_engine.doctor.base_tensors": "torch",
    "vlora_engine.doctor.subspace_check": "numpy torch",
    "vlora_engine.doctor.tensor_rules": "torch",
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
    "vlora_engine.utils.safetensors_file": "torch",
    "vlora_engine.utils.tensor_writer": "torch",
    "vlora_engine.utils.workers": "torch",
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
    "vlora_tui.tui.charts.variance_plot": "plotext",
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
            return {self._known(f"{node.module}.{alias.name}") for alias in node.names}
        return set()

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


def test_what_is_put_off_is_slow_to_load(tree: Tree) -> None:
    """An import inside a function keeps a slow library away from who imports the module.

    Where an answer is due at once it may keep away modules of ours; LAZY names all the others.
    """
    on_load = cache(tree.on_load)
    put_off: dict[str, set[str]] = {}
    without_reason = []
    for found in tree.imports:
        if not found.inside:
            continue
        spared = on_load(found.imported) - on_load(found.importer)
        if any(is_within(found.importer, package) for package in AT_ONCE):
            if not spared and found.importer not in EXCUSED:
                without_reason.append(str(found))
            continue
        put_off.setdefault(found.importer, set()).update(spared & SLOW)
        if not spared & SLOW and found.importer not in EXCUSED:
            without_reason.append(str(found))
    assert not without_reason
    assert {name: " ".join(sorted(saved)) for name, saved in put_off.items() if saved} == LAZY


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

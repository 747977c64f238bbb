"""Imports run one way, and what must answer at once loads nothing heavy.

The static tests read the source; the others import in a fresh interpreter, where nothing that this
test session has loaded can hide a mistake.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import ROOT, FreshPython

SCREEN_LIBRARIES = ("rich", "textual", "typer")

# importer, what it must not import, why
FORBIDDEN = [
    ("vlora_engine", "vlora_tui", "the engine knows no application"),
    *(("vlora_engine", library, "the engine knows no screen") for library in SCREEN_LIBRARIES),
    ("vlora_tui.recipe.model", "vlora_tui.jobs", "a recipe is below jobs"),
    ("vlora_tui.recipe.model", "vlora_tui.cli", "a recipe is below the command line"),
    ("vlora_tui.recipe.model", "vlora_tui.tui", "a recipe is below the interface"),
    ("vlora_tui.jobs", "vlora_tui.cli", "jobs are below the command line"),
    ("vlora_tui.jobs", "vlora_tui.tui", "jobs are below the interface"),
    ("vlora_tui.tui", "vlora_tui.cli", "the two mouths do not know each other"),
    ("vlora_tui.tui", "torch", "the interface process holds no weights"),
]

# library, the only place that may import it
ONLY_IN = [
    ("textual", "vlora_tui.tui"),
    ("plotext", "vlora_tui.tui.charts.variance_plot"),
    ("typer", "vlora_tui.cli"),
]

# The interface from the bottom up. Parts of one line do not know each other.
INTERFACE = [
    {"text"},
    {"terminal", "charts", "widgets"},
    {"core"},
    {"adapters", "choose", "run", "inspect", "export"},
    {"app"},
]


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    on_load: bool  # runs when the importer is imported, not first inside a function

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports_in(source: str, importer: str, *, is_package: bool = False) -> Iterator[Import]:
    """Every import statement and `import_module("...")`, relative ones resolved.

    ``from a import b`` counts as an import of ``a`` and of ``a.b``, as ``b`` may be a module.
    """
    parent = importer if is_package else importer.rpartition(".")[0]

    def visit(node: ast.AST, on_load: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            for name in names(child):
                yield Import(importer, name, child.lineno, on_load)
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, on_load and not is_function)

    def names(node: ast.AST) -> list[str]:
        match node:
            case ast.Import(names=aliases):
                return [alias.name for alias in aliases]
            case ast.ImportFrom(module=module, names=aliases, level=level):
                above = parent.split(".")[: len(parent.split(".")) - level + 1] if level else []
                base = ".".join([*above, *([module] if module else [])])
                return [base, *(f"{base}.{alias.name}" for alias in aliases)]
            case ast.Call(
                func=ast.Attribute(attr="import_module")
                | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                return [name if not name.startswith(".") else parent + name]
        return []

    return visit(ast.parse(source), on_load=True)


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    """All imports of both packages."""
    found: list[Import] = []
    for folder in (ROOT / "engine" / "vlora_engine", ROOT / "vlora_tui"):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join(parts[:-1] if is_package else parts)
            found += imports_in(path.read_text("utf-8"), module, is_package=is_package)
    assert {"vlora_engine", "vlora_tui"} <= {i.importer.split(".")[0] for i in found}
    return found


def test_the_interface_imports_downwards_and_its_screens_do_not_know_each_other(
    imports: list[Import],
) -> None:
    level = {part: number for number, parts in enumerate(INTERFACE) for part in parts}
    inside = [
        (i, i.importer.split(".")[2], i.imported.split(".")[2])
        for i in imports
        if is_within(i.importer, "vlora_tui.tui")
        and i.imported.startswith("vlora_tui.tui.")
        and i.importer != "vlora_tui.tui"
    ]
    assert {upper for _, upper, _ in inside} <= level.keys()
    wrong = [
        str(i) for i, upper, lower in inside if upper != lower and level[lower] >= level[upper]
    ]
    assert wrong == []


def test_the_reader_of_imports_sees_every_form() -> None:
    source = """
import a.b
from . import c
from ..d import e
class K:
    from f import g
def lazily():
    import h
    importlib.import_module("i.j")
    import_module(".k")
"""
    found = {(i.imported, i.on_load) for i in imports_in(source, "top.mid.leaf")}
    assert found == {
        ("a.b", True),
        ("top.mid", True),
        ("top.mid.c", True),
        ("top.d", True),
        ("top.d.e", True),
        ("f", True),
        ("f.g", True),
        ("h", False),
        ("i.j", False),
        ("top.mid.k", False),
    }
    package = {i.imported for i in imports_in("from .x import y", "top.mid", is_package=True)}
    assert package == {"top.mid.x", "top.mid.x.y"}


@pytest.mark.parametrize(("importer", "imported", "why"), FORBIDDEN)
def test_imports_run_one_way(imports: list[Import], importer: str, imported: str, why: str) -> None:
    offenders = [
        str(i)
        for i in imports
        if is_within(i.importer, importer) and is_within(i.imported, imported)
    ]
    assert not offenders, why


@pytest.mark.parametrize(("library", "place"), ONLY_IN)
def test_a_library_is_known_in_one_place(imports: list[Import], library: str, place: str) -> None:
    users = [i for i in imports if is_within(i.imported, library)]
    assert not [str(i) for i in users if not is_within(i.importer, place)]


def test_only_the_command_line_opens_the_interface_and_lazily(imports: list[Import]) -> None:
    offenders = [
        str(i)
        for i in imports
        if is_within(i.imported, "vlora_tui.tui")
        and not is_within(i.importer, "vlora_tui.tui")
        and (i.on_load or not is_within(i.importer, "vlora_tui.cli"))
    ]
    assert not offenders


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


@pytest.mark.parametrize(
    "module",
    [
        "vlora_engine",
        "vlora_engine.catalog.scanner",
        "vlora_engine.merging.settings",
        "vlora_tui.cli",
    ],
)
def test_importing_loads_no_torch(fresh_python: FreshPython, module: str) -> None:
    assert "torch" not in loaded_by(fresh_python, f"import {module}")


def test_every_module_of_the_engine_can_be_the_first_to_be_imported(
    fresh_python: FreshPython,
) -> None:
    done = fresh_python(
        """
import importlib, pkgutil, sys
import numpy, torch, vlora_engine
for found in list(pkgutil.walk_packages(vlora_engine.__path__, "vlora_engine.")):
    for loaded in [name for name in sys.modules if name.startswith("vlora_engine")]:
        del sys.modules[loaded]
    try:
        importlib.import_module(found.name)
    except ImportError as error:
        print(found.name, error)
"""
    )
    assert done.stdout == "", "modules that import each other in a circle"


def test_the_engine_works_where_no_screen_library_is_installed(fresh_python: FreshPython) -> None:
    # None in sys.modules makes `import` fail as if the library were not there.
    absent = (*SCREEN_LIBRARIES, "vlora_tui")
    fresh_python(
        f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n" + import_all("vlora_engine")
    )


def test_the_interface_loads_no_torch(fresh_python: FreshPython) -> None:
    if importlib.util.find_spec("vlora_tui.tui") is None:
        pytest.skip("the interface is not there yet")
    loaded = loaded_by(fresh_python, import_all("vlora_tui.tui"))
    assert "textual" in loaded
    assert "torch" not in loaded


def test_what_coding_costs_is_told_without_torch(
    fresh_python: FreshPython, adapters: list[Path], tmp_path: Path
) -> None:
    place = tmp_path / "spectra"
    fresh_python(call_main(["spectra", *map(str, adapters), "-o", str(place)]))
    loaded = loaded_by(
        fresh_python,
        "from vlora_engine.spectra.size_curves import curves, ladder\n"
        "from vlora_engine.compression_target import CompressionTarget\n"
        "from vlora_engine.spectra.tables import Spectra\n"
        "from vlora_tui.pipeline.forecast import Coded\n"
        f"spectra = Spectra.load({str(place)!r})\n"
        "outlook = spectra.outlook()\n"
        "assert {c.method for c in curves(spectra, outlook)} >= {'auto', 'own', 'delta', 'nf4'}\n"
        "assert Coded.of(outlook, CompressionTarget('auto', max_error=0.05)).losses\n"
        "assert list(ladder(outlook, 'own'))",
    )
    assert "vlora_engine" in loaded
    assert not {"torch", "textual", "typer"} & loaded


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["inspect", "--help"], ["merge", "--list-methods"]],
)
def test_asking_for_help_loads_no_torch(fresh_python: FreshPython, arguments: list[str]) -> None:
    loaded = loaded_by(fresh_python, call_main(arguments))
    assert not {"torch", "textual"} & loaded


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_inspect_reads_headers_without_torch(
    fresh_python: FreshPython, adapters: list[Path], options: list[str]
) -> None:
    loaded = loaded_by(fresh_python, call_main(["inspect", str(adapters[0].parent), *options]))
    assert not {"torch", "textual"} & loaded


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_info_reads_headers_without_torch(
    fresh_python: FreshPython, adapters: list[Path], tmp_path: Path, options: list[str]
) -> None:
    subspace = tmp_path / "subspace"
    fresh_python(call_main(["compress", *map(str, adapters), "-o", str(subspace), "-k", "2"]))
    loaded = loaded_by(fresh_python, call_main(["info", str(subspace), *options]))
    assert not {"torch", "textual"} & loaded


@pytest.fixture
def adapters(tmp_path: Path) -> list[Path]:
    """Two small PEFT adapters of one base, rank 2, two modules of 8 x 6."""
    folders = [tmp_path / "adapters" / name for name in ("first", "second")]
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "tiny",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
    }
    random = np.random.default_rng(0)
    for folder in folders:
        folder.mkdir(parents=True)
        tensors = {}
        for layer in range(2):
            module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            a, b = random.normal(size=(2, 6)), random.normal(size=(8, 2))
            tensors[f"{module}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = b.astype(np.float32)
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return folders


def loaded_by(fresh_python: FreshPython, code: str) -> set[str]:
    """Top-level names of the modules that a new interpreter holds after running `code`."""
    __tracebackhide__ = True
    report = "\nimport sys; print('LOADED', *sorted({m.split('.')[0] for m in sys.modules}))"
    return set(fresh_python(code + report).stdout.splitlines()[-1].split()[1:])


def call_main(arguments: list[str]) -> str:
    return (
        "from vlora_tui.cli import main\n"
        f"code = main({arguments!r})\n"
        "assert code == 0, f'exit code {code}'"
    )


def import_all(package: str) -> str:
    return (
        f"import importlib, pkgutil, {package} as package\n"
        f"for found in pkgutil.walk_packages(package.__path__, {package!r} + '.'):\n"
        "    if not found.name.endswith('__main__'): importlib.import_module(found.name)"
    )

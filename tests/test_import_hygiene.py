"""What must answer at once loads nothing heavy.

All import in a fresh interpreter, where nothing that this test session has loaded can hide a
mistake. `test_layers` reads the imports in the source.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.conftest import FreshPython

SCREEN_LIBRARIES = ("rich", "textual", "typer")


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
        "tables = spectra.rate_tables()\n"
        "assert {c.method for c in curves(spectra, tables)} >= {'auto', 'own', 'delta', 'nf4'}\n"
        "assert Coded.of(tables, CompressionTarget('auto', max_error=0.05)).losses\n"
        "assert list(ladder(tables, 'own'))",
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


@pytest.mark.parametrize(
    ("code", "most"),
    [
        ("from vlora_tui.cli import main; main(['--help'])", 20),
        ("from vlora_tui.cli import main; main(['inspect', '--help'])", 30),
        ("import vlora_tui.tui.app.app", 45),
    ],
)
def test_what_answers_at_once_loads_few_modules_of_ours(
    fresh_python: FreshPython, code: str, most: int
) -> None:
    """Of about 390: each costs a millisecond or two before the first line or screen."""
    report = "\nimport sys; print('LOADED', sum(m.startswith('vlora') for m in sys.modules))"
    assert int(fresh_python(code + report).stdout.splitlines()[-1].split()[1]) <= most


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

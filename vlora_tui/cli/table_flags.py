"""The flags of ``run`` for the tables of a recipe: ``--TABLE-KEY`` for every key that a table has.

They are made from the tables themselves (`vlora_tui.recipe.model`), those of a merge from the flags
of ``merge``. The flag of the key that says what a table does has a short form: ``--export vllm`` is
``--export-target vllm``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import UnionType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from vlora_engine.errors import ParameterError
from vlora_tui.cli.bundles import Bundle
from vlora_tui.cli.declare import option
from vlora_tui.cli.merge_flags import Merging
from vlora_tui.recipe.changes import DEFAULT_ROWS, SEVERAL, Tables, changed
from vlora_tui.recipe.model import Convert, Export, Merge, Push, Quantize, Recipe, Resize

Help = tuple[str, str | None]  # what an option's line says, and its metavar

_TASKS = "Only these tasks or patterns; may be repeated."
_PATH = "Where to write; {task} stands for the task's name."


class TableOptions(NamedTuple):
    """A table: what it is read into, its key with a short flag, and a line for every key."""

    kind: type[Any]
    short: str | None
    lines: Mapping[str, Help]


TABLES = {
    "quantize": TableOptions(
        Quantize,
        None,
        {
            "method": ("symmetric or nf4: pack what is compressed, or is there.", None),
            "bits": ("8 or 4; nf4 has 4.", None),
            "block_size": ("Numbers that share a scale.", None),
            "loadings": ("Pack the loadings too, as int8.", None),
            "double_quant": ("Scales of 8 bits instead of 16.", None),
        },
    ),
    "export": TableOptions(
        Export,
        "target",
        {
            "path": (_PATH, "DIR"),
            "tasks": (_TASKS, "TASK"),
            "target": ("The target: peft, portable, vllm, sglang, tgi, ...", None),
            "verify": ("Read back what was written.", None),
            "dtype": ("fp32, fp16, bf16, GGUF q8_0; else the original's.", None),
            "alpha": ("lora_alpha to write; B is rescaled to keep dW.", None),
            "base_model": ("The base model's name to write.", None),
            "target_modules": ("A module to write; may be repeated.", "MODULE"),
            "drop_rest": ("Leave out the tensors besides A and B.", None),
            "base": ("The base model: its folder, config.json, or name.", "MODEL"),
            "source": ("input or subspace; by default the subspace, if any.", None),
        },
    ),
    "merge": TableOptions(
        Merge,
        "method",
        {
            "adapters": (
                "A task name, pattern or path; may be repeated; by default all.",
                "TASK | PATH",
            ),
            "path": ("Where to write.", "DIR"),
            "source": ("input, or subspace: what is merged.", None),
        },
    ),
    "resize": TableOptions(
        Resize,
        "rank",
        {
            "path": (_PATH, "DIR"),
            "tasks": (_TASKS, "TASK"),
            "rank": ("The rank of every module; with a rule, the largest.", None),
            "energy": ("The share of dW's energy to keep: 0.99.", None),
            "dynamic": ("kohya's rules: sv_fro 0.97, sv_ratio 10, ...", "RULE VALUE"),
            "target": ("Fit for vllm, tgi, portable, ...", None),
            "max_error": ("The most that dW may change by.", None),
            "verify": ("Read back what was written.", None),
        },
    ),
    "convert": TableOptions(
        Convert,
        "to",
        {
            "to": ("peft, mlx, gguf, subspace (ours), vlora-dev or lorashare.", "FORMAT"),
            "path": ("Where to write; several adapters to folders in it.", "DIR"),
            "tasks": (_TASKS, "TASK"),
            "source": ("input or subspace; by default the subspace, if any.", None),
            "k": ("Directions, where bases are recomputed; by default all.", None),
            "allow_loss": ("Leave out what the format cannot hold.", None),
            "base": ("GGUF: the base model's folder or config.json.", "DIR"),
            "dtype": ("GGUF: fp32, fp16, bf16 or q8_0.", None),
        },
    ),
    "push": TableOptions(
        Push,
        "repo",
        {
            "repo": ("Publish on the Hub at the end.", "ORG/NAME"),
            "path": ("What to push; by default the subspace.", "DIR"),
            "adapters": ("Tasks of the subspace as PEFT adapters.", None),
            "tasks": (_TASKS, "TASK"),
            "private": ("Make a new repository private.", None),
            "revision": ("The branch; by default main.", None),
            "message": ("The message of the commit.", None),
            "force": ("Replace files of an earlier push.", None),
        },
    ),
}


class TableFlags(Bundle):
    """What was given of the flags for tables.

    Args:
        values: By the name of the option, ``export_path``; None where it was not given.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    @classmethod
    def parameters(cls) -> list[inspect.Parameter]:
        """An option for every key of every table, each table below a heading of its own."""
        return [parameter for name in TABLES for parameter in _parameters(name)]

    @classmethod
    def taken(cls, values: dict[str, Any]) -> TableFlags:
        return cls(values)

    def tables(self) -> dict[str, dict[str, Any]]:
        """What was given, by table and key, as a recipe has it.

        Raises:
            ParameterError: Something that should be a number is none.
        """
        found: dict[str, dict[str, Any]] = {}
        for name, table in TABLES.items():
            given = {
                key: list(value) if isinstance(value, tuple) else value
                for key in table.lines
                if (value := self.values[f"{name}_{key}"]) is not None
            }
            if table.kind is Merge:
                names = [field.name for field in fields(Merging)]
                merging = Merging(**{key: self.values[f"{name}_{key}"] for key in names})
                given |= merging.table("--merge-")
            if given:
                found[name] = given
        return found


def recipe_of_flags(tables: Tables, given: Mapping[str, Mapping[str, Any]]) -> Recipe:
    """The recipe of a command line without a file: ``tables`` has the input alone.

    Adapters are compressed where that is asked for, or nothing else is.

    Raises:
        ParameterError: Something that is needed was not given. RecipeError: It makes no sense.
    """
    from vlora_tui.cli.flags import from_tables

    of_adapters = "subspace" not in tables["input"]
    rows = {name: dict(keys) for name, keys in given.items()}
    if of_adapters and ({"output", "quantize"} & rows.keys() or not rows):
        rows.setdefault("compress", {})
    for name in SEVERAL:
        if name in rows:
            _require_whole(name, DEFAULT_ROWS.get(name, {}) | rows[name])
    if "compress" in rows and of_adapters and "output" not in rows:
        raise ParameterError("There is nowhere to put the subspace.", remedy="name it: -o DIR")
    return from_tables(changed(tables, rows))


def _require_whole(name: str, row: Mapping[str, Any]) -> None:
    table = TABLES[name]
    for field in fields(table.kind):
        needed = field.default is MISSING and field.default_factory is MISSING
        if needed and field.name not in row:
            metavar = table.lines[field.name][1]
            raise ParameterError(
                f"A flag for [[{name}]] is given, and {_flag(name, field.name)} is not.",
                expected=f"{_flag(name, field.name)} {metavar}",
            )


def _parameters(name: str) -> list[inspect.Parameter]:
    table = TABLES[name]
    heading = f"Table {f'[[{name}]]' if name in SEVERAL else f'[{name}]'}"
    hints = get_type_hints(table.kind)
    short_first = sorted(table.lines.items(), key=lambda item: item[0] != table.short)
    found = [
        _parameter(name, key, _given_as(hints[key]), text, metavar, heading)
        for key, (text, metavar) in short_first
    ]
    if table.kind is Merge:
        for parameter in Merging.parameters():
            kind, info = get_args(parameter.annotation)
            found.append(_parameter(name, parameter.name, kind, info.help, info.metavar, heading))
    return found


def _parameter(
    table: str, key: str, kind: Any, text: str, metavar: str | None, heading: str
) -> inspect.Parameter:
    flag = _flag(table, key)
    words = [flag]
    if kind == bool | None:
        words = [f"{flag}/--no-{flag[2:]}"]
    elif key == TABLES[table].short:
        words = [f"--{table}", flag]
    info = option(*words, text, metavar=metavar, rich_help_panel=heading)
    return inspect.Parameter(
        f"{table}_{key}", inspect.Parameter.KEYWORD_ONLY, default=None,
        annotation=Annotated[kind, info],
    )  # fmt: skip


def _flag(table: str, key: str) -> str:
    return f"--{table}-{key.replace('_', '-')}"


def _given_as(hint: Any) -> Any:
    """What an option takes for a key of this type; None stands for what was not given."""
    if get_origin(hint) is UnionType:
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is tuple and Ellipsis in get_args(hint):
        return list[str] | None
    return hint | None

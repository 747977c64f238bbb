"""The rows of Export's form: label, value, help, and the choices that arrow keys step through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vlora_engine.convert.formats import PEER_FORMATS
from vlora_engine.targets import TARGETS
from vlora_engine.targets.registry import RANK_LIMITS
from vlora_tui.tui.export.merge import (
    MERGE_EDITS,
    merge_lines,
    turned_merge,
    weights_text,
    wrong_in,
)
from vlora_tui.tui.export.plan import Plan
from vlora_tui.tui.export.recipes import parse_layers, parse_weights
from vlora_tui.tui.export.settings import (
    DOINGS,
    DTYPES,
    FORMATS,
    NEW_RANK,
    RULES,
    SHARE,
    Settings,
    dtypes_of,
    next_of,
)
from vlora_tui.tui.key_names import key
from vlora_tui.tui.text import plural, tilde
from vlora_tui.tui.widgets.form import Field

DOING = {
    "export": ("export", "Each marked row becomes an adapter."),
    "merge": ("merge", "The marked ones become one adapter; a single one needs a weight."),
    "resize": ("resize", "Each marked row is written at another rank."),
    "convert": ("convert", "Marked rows are written in another tool's format."),
}
RULE = {
    "rank": ("fixed rank", "The rank of every module; larger ones are cut where dW loses least."),
    "energy": ("a share of dW's energy", "As few numbers as hold this share of ||dW||^2."),
    "server": ("for a server", "One rank and one scale for all modules, no larger than it takes."),
}
FORMAT = {
    "mlx": ("MLX-LM", "A folder for each adapter, as mlx_lm reads it."),
    "gguf": ("GGUF", "One file for each adapter, as llama.cpp reads it."),
    "vlora-dev": ("vlora-dev", "All of them as one subspace of vlora-dev."),
    "lorashare": ("lorashare", "All of them as one subspace of lorashare."),
}
WRITTEN = "The dtype of A and B; other tensors stay bit for bit as they were."


def form_lines(settings: Settings, names: Sequence[str]) -> list[Field]:
    """The form; ``names`` are those of what is marked."""
    doing, about = DOING[settings.doing]
    fields = [Field("doing", "action", doing, "choice", f"{about} ({key('export.turn')})")]
    if settings.doing == "merge":
        fields += merge_lines(settings, names)
    elif settings.doing == "resize":
        fields += _resize_lines(settings, names)
    elif settings.doing == "convert":
        fields += _convert_lines(settings)
    else:
        fields += _export_lines(settings, len(names))
    return fields


def start_label(settings: Settings, plan: Plan, names: Sequence[str]) -> tuple[str, bool]:
    """What would be written, and whether it can be: in a job all is written or nothing."""
    if not names:
        return "Nothing selected", False
    if plan.refused:
        return f"{len(plan.refused)} of {len(plan.rows)} cannot be written", False
    if plan.problem is not None or not plan.rows:
        return "Nothing to write", False
    many = plural(len(plan.rows), "adapter")
    labels = {"merge": f"Merge {len(names)} into one", "resize": f"Resize {many}"}
    labels["convert"] = f"Convert {plural(len(names), 'adapter')}"
    label = labels.get(settings.doing, f"Write {many}")
    return label + (f", replacing {len(plan.there)}" if plan.there else ""), True


def turned(settings: Settings, key: str, by: int) -> Settings:
    """The settings with the next value, or the one before, of a choice."""
    match key:
        case "doing":
            changed = replace(settings, doing=next_of(DOINGS, settings.doing, by))
            # A dtype that a merge may have is not one that every target takes.
            return changed.with_target(changed.target) if changed.doing == "export" else changed
        case "target":
            return settings.with_target(next_of(list(TARGETS), settings.target, by))
        case "dtype":
            target = settings.target if settings.doing == "export" else "peft"
            return replace(settings, dtype=next_of(dtypes_of(target), settings.dtype, by))
        case "to":
            return replace(settings, to=next_of(FORMATS, settings.to, by), dtype=None)
        case "allow_loss":
            return replace(settings, allow_loss=not settings.allow_loss)
        case "verify":
            return replace(settings, verify=not settings.verify)
        case "drop_rest":
            return replace(settings, drop_rest=not settings.drop_rest)
        case "rule":
            return replace(settings, rule=next_of(RULES, settings.rule, by))
        case "server":
            return replace(settings, server=next_of(list(RANK_LIMITS), settings.server, by))
    return turned_merge(settings, key, by)


def _export_lines(settings: Settings, marked: int) -> list[Field]:
    target = TARGETS[settings.target]
    about = f"{target.about} ({key('export.target')})"
    dtype = DTYPES[settings.dtype]
    if settings.dtype is None and "F32" not in target.dtypes:
        dtype = "16 bit"
    return [
        Field("target", "target", target.name, "choice", about),
        *_target_lines(settings),
        _out_line("out", settings.out, marked),
        Field("dtype", "dtype", dtype, "choice", WRITTEN),
        _verify_line(settings),
    ]


def _target_lines(settings: Settings) -> list[Field]:
    """What only some targets ask."""
    target, fields = TARGETS[settings.target], []
    if target.form == "gguf":
        about = "The base model's folder or config.json: llama.cpp's names and row order follow it."
        value = tilde(settings.base) if settings.base else "as the adapter says"
        fields.append(Field("base", "base", value, "text", about))
    if target.no_rest:
        about = f"Tensors besides A and B: {target.no_rest}."
        value = "drop" if settings.drop_rest else "not allowed"
        fields.append(Field("drop_rest", "other tensors", value, "choice", about))
    return fields


def _resize_lines(settings: Settings, names: Sequence[str]) -> list[Field]:
    rule, about = RULE[settings.rule]
    if settings.rule == "server":
        limit = RANK_LIMITS[settings.server]
        most = max(limit.choices, default=0)
        takes = f"Ranks up to {most} stay." if most else "Any rank stays."
        value = Field("server", "server", settings.server, "choice", takes)
    else:
        name = "new_rank" if settings.rule == "rank" else "share"
        edit = edit_of(settings, name, names)
        shown = edit.value or ("" if name == "new_rank" else f"{SHARE.default:g}")
        value = Field(name, settings.rule, shown, "text", edit.words, edit.wrong(edit.value))
    return [
        Field("rule", "by", rule, "choice", about),
        value,
        _out_line("resized", settings.resized, len(names)),
        _verify_line(settings),
    ]


def _convert_lines(settings: Settings) -> list[Field]:
    name, about = FORMAT[settings.to]
    fields = [Field("to", "format", name, "choice", about)]
    if settings.to == "gguf":
        about = "The base model's folder or config.json: llama.cpp's names and row order follow it."
        value = tilde(settings.base) if settings.base else "as the adapter says"
        fields.append(Field("base", "base", value, "text", about))
    place = "A folder; each adapter gets a folder of its own in it."
    if settings.to in PEER_FORMATS:
        place = "A folder, which holds all of them."
    fields.append(Field("converted", "output", tilde(settings.converted), "text", place))
    about = "What the format cannot hold, such as heads of classifiers."
    value = "leave out" if settings.allow_loss else "refuse"
    fields.append(Field("allow_loss", "losses", value, "choice", about))
    return fields


def _out_line(name: str, path: str, marked: int) -> Field:
    about = f"{{task}} stands for each task's name. ({key('export.place')})"
    alone = "{task}" not in path and marked > 1
    wrong = "Several tasks need {task} in the output." if alone else ""
    return Field(name, "output", tilde(path), "text", about, wrong)


def _verify_line(settings: Settings) -> Field:
    about = f"Reads each back and compares its dW. ({key('export.verify')})"
    return Field("verify", "verify", "full" if settings.verify else "no", "choice", about)


class Edit(NamedTuple):
    """A line that is typed: its title, what it takes, what stands there, how it is read."""

    title: str
    words: str
    value: str
    parse: Callable[[str], object]

    def wrong(self, text: str) -> str:
        """What is wrong with a text, nothing if it will do."""
        return wrong_in(lambda: self.parse(text))


FOLDERS = "A folder for each task; {task} is its name."
PATH_SETTINGS: Mapping[str, tuple[str, str]] = {
    "out": ("Output", FOLDERS),
    "resized": ("Output", FOLDERS),
    "merged": ("Output", "A folder."),
    "converted": ("Output", "A folder."),
    "base": (
        "Base model",
        "The base model's folder, or its config.json; empty: as the adapter says.",
    ),
}


def edit_of(settings: Settings, key: str, names: Sequence[str]) -> Edit:
    """How a line of the form is edited."""
    if key in PATH_SETTINGS:
        return Edit(*PATH_SETTINGS[key], getattr(settings, key), str)
    if key == "weights":
        words = "One number for each marked line, from top to bottom, as in 0.7, 0.3; empty: all."
        value = weights_text(settings, names)
        return Edit("Weights", words, value, lambda text: parse_weights(text, len(names)))
    if key == "layers":
        words = "Other weights for some modules: *.attn.*=0.7,0.3; *.mlp.*=1,0"
        return Edit("Modules", words, settings.layers, lambda text: parse_layers(text, len(names)))
    named = {"new_rank": NEW_RANK, "share": SHARE, **MERGE_EDITS}
    by_name = {parameter.name: parameter for parameter in settings.spec.parameters}
    parameter = by_name.get(key) or named[key]
    value = settings.parameters.get(key, "") if key in by_name else getattr(settings, key)
    words = f"{parameter.summary}; {parameter.range}; empty is the default."
    return Edit(parameter.name.replace("_", " ").capitalize(), words, value, parameter.parse)


def edited(settings: Settings, key: str, text: str, names: Sequence[str]) -> Settings:
    """The settings with what was typed in a line.

    Args:
        names: What is marked, in the order of the weights.
    """
    if key == "weights":
        weights = parse_weights(text, len(names))
        return replace(settings, weights=dict(zip(names, weights, strict=True)) if weights else {})
    if any(parameter.name == key for parameter in settings.spec.parameters):
        return settings.with_parameter(key, text)
    change: dict[str, Any] = {key: text}
    return replace(settings, **change)

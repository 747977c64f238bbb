"""The lines of Export: what the form asks, what an edited line takes, what a job has come to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from vlora_engine.errors import VLoRAError
from vlora_engine.merging.registry import MergeParameter
from vlora_engine.targets import TARGETS, Served, start_lines
from vlora_tui import events
from vlora_tui.tui import exporting
from vlora_tui.tui.exporting import CAUTIONS, MERGES, PARAMETERS, RANK, Plan, Settings
from vlora_tui.tui.widgets.form import Field
from vlora_tui.tui.words import clean, plural, tilde

if TYPE_CHECKING:
    from vlora_tui.jobs import JobView

T = TypeVar("T")
DOING = {
    "export": ("export each", "Each marked line becomes an adapter of its own."),
    "merge": ("merge into one", "What is marked becomes one adapter; needs two or more."),
}


def form_lines(
    settings: Settings, plan: Plan, marked: int, *, after_build: bool, ascii_only: bool
) -> list[Field]:
    """The form.

    Args:
        after_build: The tasks are not built yet: the export goes into the recipe.
    """
    doing, about = DOING[settings.doing]
    fields = [Field("doing", "do", doing, "choice", f"{about} m changes this from anywhere.")]
    if settings.doing == "merge":
        fields += _merge_lines(settings, marked)
        label = f"Merge {marked} into one"
    else:
        fields += _export_lines(settings, marked)
        label = f"Write {plural(len(plan.rows), 'adapter') if plan.rows else 'nothing'}"
    label += f", replacing {len(plan.there)}" if plan.there else ""
    if after_build:
        label = "Put it into the recipe of step 3"
    arrow = ">" if ascii_only else "▸"
    return [*fields, Field("start", "", f"{arrow} {label}", "action", "Enter starts the job.")]


def turned(settings: Settings, key: str, by: int) -> Settings:
    """The settings with the next value, or the one before, of a choice."""
    match key:
        case "target":
            return settings.with_target(_next(list(TARGETS), settings.target, by))
        case "doing":
            return replace(settings, doing="export" if settings.doing == "merge" else "merge")
        case "dtype":
            choices = exporting.dtypes_of(settings.target)
            return replace(settings, dtype=_next(choices, settings.dtype, by))
        case "method":
            return replace(settings, method=_next(list(MERGES), settings.method, by))
        case "verify":
            return replace(settings, verify=not settings.verify)
        case "drop_rest":
            return replace(settings, drop_rest=not settings.drop_rest)
    return settings


def _next(choices: Sequence[T], value: T, by: int) -> T:
    return choices[(choices.index(value) + by) % len(choices)]


def _export_lines(settings: Settings, marked: int) -> list[Field]:
    alone = "{task}" not in settings.out and marked > 1
    target = TARGETS[settings.target]
    return [
        Field(
            "target",
            "target",
            target.name,
            "choice",
            f"{target.about} s changes this from anywhere.",
        ),
        *_target_lines(settings),
        Field(
            "out",
            "goes to",
            tilde(settings.out),
            "text",
            "{task} stands for each task's name. Enter changes it (o from anywhere).",
            "Several tasks need {task} in the place." if alone else "",
        ),
        Field(
            "dtype",
            "numbers",
            exporting.DTYPES[settings.dtype],
            "choice",
            "The dtype of A and B; other tensors stay bit for bit as they were.",
        ),
        Field(
            "verify",
            "read back",
            "yes, all of dW" if settings.verify else "no",
            "choice",
            "Each adapter is opened again and its dW compared with what was meant.",
        ),
    ]


def _target_lines(settings: Settings) -> list[Field]:
    """What only some targets ask."""
    target, fields = TARGETS[settings.target], []
    if target.form == "gguf":
        said = "The base model's folder or config.json: llama.cpp's names and row order follow it."
        value = tilde(settings.base) if settings.base else "as the adapter says"
        fields.append(Field("base", "base", value, "text", said))
    if target.no_rest:
        said = f"Tensors besides A and B: {target.no_rest}."
        value = "left out" if settings.drop_rest else "refused"
        fields.append(Field("drop_rest", "the rest", value, "choice", said))
    return fields


def _merge_lines(settings: Settings, marked: int) -> list[Field]:
    about = f"{MERGES[settings.method]}. {CAUTIONS[settings.method]}".strip()
    fields = [Field("method", "method", settings.method, "choice", about)]
    for parameter in PARAMETERS[settings.method]:
        default = default_words(parameter)
        fields.append(_text_line(settings, parameter.name, default, marked))
    return [
        *fields,
        _text_line(settings, "weights", "all the same", marked),
        _text_line(settings, "rank", "as needed", marked),
        Field(
            "merged",
            "goes to",
            tilde(settings.merged),
            "text",
            "Enter changes it (o from anywhere).",
        ),
    ]


def _text_line(settings: Settings, key: str, default: str, marked: int) -> Field:
    edit = edit_of(settings, key, marked)
    label = key.replace("_", " ")
    return Field(key, label, edit.value or default, "text", edit.words, edit.wrong(edit.value))


def default_words(parameter: MergeParameter) -> str:
    """What an empty line means."""
    if parameter.default is None:
        return "fresh" if parameter.name == "seed" else "from the weights"
    return (
        f"{parameter.default:g}" if isinstance(parameter.default, float) else str(parameter.default)
    )


class Edit(NamedTuple):
    """A line that is typed: its title, what it takes, what stands there, how it is read."""

    title: str
    words: str
    value: str
    parse: Callable[[str], object]

    def wrong(self, text: str) -> str:
        """What is wrong with a text, nothing if it will do."""
        try:
            self.parse(text)
        except VLoRAError as error:
            expected = f"; expected {error.expected}" if error.expected else ""
            return f"{error.what.rstrip('.')}{expected}."
        return ""


def edit_of(settings: Settings, key: str, marked: int) -> Edit:
    """How a line of the form is edited."""
    match key:
        case "out":
            words = "A folder for each task; {task} is its name."
            return Edit("Where it goes", words, settings.out, str)
        case "base":
            words = "The base model's folder, or its config.json; empty: as the adapter says."
            return Edit("Base model", words, settings.base, str)
        case "merged":
            return Edit("Where it goes", "A folder.", settings.merged, str)
        case "weights":
            words = "One number for each marked line, from top to bottom, as in 0.7, 0.3."
            return Edit(
                "Weights",
                words,
                settings.weights,
                lambda text: exporting.parse_weights(text, marked),
            )
    parameter = (
        RANK if key == "rank" else next(p for p in PARAMETERS[settings.method] if p.name == key)
    )
    value = settings.rank if key == "rank" else settings.parameters.get(key, "")
    title = parameter.name.replace("_", " ").capitalize()
    words = f"{parameter.summary}; {parameter.range}; empty is the default."
    return Edit(title, words, value, parameter.parse)


def off(error: float) -> str:
    """What reading back has shown; below that is the rounding of the comparison itself."""
    return "the same" if error < 1e-12 else f"off by {error:.1g}"


def result(view: JobView) -> tuple[str, bool]:
    """How the job stands, in a line, and whether that is bad."""
    if view.error is not None:
        parts = [str(view.error.get(key) or "") for key in ("what", "where", "remedy")]
        return clean(" ".join(part for part in parts if part)) + " 3 shows its log.", True
    exported, verified = view.all(events.Exported), view.all(events.Verified)
    merged = view.last(events.Merged)
    if merged is not None:
        words = f"Merged: rank {merged.rank}, {plural(merged.modules, 'module')}."
        return words + (" Done." if view.state.is_over else ""), False
    words = f"{len(exported)} written"
    if verified:
        words += f", {len(verified)} read back, {off(max(e.error for e in verified))}"
    if not view.state.is_over:
        return f"{view.state}: {words}. 3 shows the job.", False
    if str(view.state) != "finished":
        return f"The job was {view.state}: {words}. 3 shows it.", True
    return f"Done: {words}.{_start(exported)}", False


def _start(exported: list[events.Exported]) -> str:
    """How to serve what was written, where a line says it."""
    served = [Served(e.task, e.path, e.rank, e.base) for e in exported]
    lines = start_lines(exported[0].target, served) if exported else []
    more = f" (and {len(lines) - 1} more alike)" if len(lines) > 1 else ""
    return f" Start it with: {clean(lines[0])}{more}" if lines else ""

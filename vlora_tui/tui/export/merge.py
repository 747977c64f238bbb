"""Export's merge builder: the lines of its form, and the box in which a method is chosen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.widgets import Static

from vlora_engine.errors import VLoRAError
from vlora_engine.merging.registry import MergeMethod, MergeParameter
from vlora_engine.utils.naming import cosine_text
from vlora_engine.utils.ranking import ranked
from vlora_tui.tui.core.likeness import Likeness
from vlora_tui.tui.export.recipes import parse_layers
from vlora_tui.tui.export.settings import (
    DTYPES,
    ENERGY,
    MERGES,
    RANK,
    SCALE,
    Settings,
    next_of,
    weights_of,
)
from vlora_tui.tui.key_names import key, keyed
from vlora_tui.tui.text import clean, tilde
from vlora_tui.tui.widgets.bindings import shown
from vlora_tui.tui.widgets.dialogs import Dialog
from vlora_tui.tui.widgets.folding import hanging
from vlora_tui.tui.widgets.form import Field
from vlora_tui.tui.widgets.table import Cell, Column, Table

MERGE_EDITS = {"rank": RANK, "energy": ENERGY, "scale": SCALE}
NORMALIZE = {None: "method default", True: "yes", False: "no"}
DEFAULT_WEIGHTS = {"1/T": "equal shares that add up to 1", "1": "1 each"}
SPACE = {"delta": "on dW", "factors": "on A and B apart, as vLoRA"}


def merge_lines(settings: Settings, names: Sequence[str]) -> list[Field]:
    """What a merge asks, its method's own parameters first."""
    spec = settings.spec
    fields = [Field("method", "method", settings.method, "list", method_words(spec))]
    fields += [
        _text_line(settings, p, settings.parameters.get(p.name, "")) for p in spec.parameters
    ]
    keys = f"{key('export.lighter')} {key('export.heavier')}"
    about = f"All weights at once. Of one row: {keys} move it, {key('export.weight')} types it."
    fields.append(
        Field("weights", "weights", weights_text(settings, names) or "equal", "text", about)
    )
    fields.append(_layers_line(settings, len(names)))
    if spec.may_normalise:
        about = f"Whether only the weights' ratios matter; by itself {spec.name}: {spec.weighting}."
        value = NORMALIZE[settings.normalize]
        fields.append(Field("normalize", "normalize", value, "choice", about))
    fields.append(_text_line(settings, SCALE, settings.scale))
    if settings.space == "delta":
        fields.append(_text_line(settings, RANK, settings.rank))
        fields.append(_text_line(settings, ENERGY, settings.energy))
    if spec.factors:
        about = "What is merged: the weight changes, or A and B apart, as the first library does."
        fields.append(Field("space", "merged", SPACE[settings.space], "choice", about))
    about = "The dtype of A and B; unchanged: the widest of the adapters'."
    return [
        *fields,
        Field("dtype", "dtype", DTYPES[settings.dtype], "choice", about),
        Field(
            "merged", "output", tilde(settings.merged), "text", f"A folder. ({key('export.place')})"
        ),
    ]


def weights_text(settings: Settings, names: Sequence[str]) -> str:
    """The weights of all ``names``; nothing where all are the method's own."""
    if not any(name in settings.weights for name in names):
        return ""
    return ", ".join(f"{weight:.4g}" for weight in weights_of(settings, names))


def turned_merge(settings: Settings, key: str, by: int) -> Settings:
    """The settings of a merge with the next value of a choice."""
    match key:
        case "method":
            return settings.with_method(next_of(list(MERGES), settings.method, by))
        case "normalize":
            return replace(settings, normalize=next_of((None, True, False), settings.normalize, by))
        case "space":
            changed = replace(settings, space=next_of(list(SPACE), settings.space, by))
            on_factors = changed.space == "factors"  # which keeps the adapters' rank
            return replace(changed, rank="", energy="") if on_factors else changed
    return settings


def method_words(spec: MergeMethod) -> str:
    """What a method does, on what, with the weights, and what to know before."""
    words = f"{spec.summary}. On {spec.acts_on}; weights {spec.weighting}."
    count = f" Takes {spec.adapters} adapters." if spec.adapters else ""
    return f"{words[0].upper()}{words[1:]}{count} {spec.caution}".strip()


def default_words(parameter: MergeParameter) -> str:
    """What an empty line means."""
    if parameter.default is None:
        words = {"seed": "drawn when it is used", "rank": "as needed", "energy": "all of it"}
        return words.get(parameter.name, "from the weights")
    default = parameter.default
    return f"{default:g}" if isinstance(default, float) else str(default)


def _text_line(settings: Settings, parameter: MergeParameter, value: str) -> Field:
    words = f"{parameter.summary}; {parameter.range}; empty is the default."
    label = parameter.name.replace("_", " ")
    wrong = wrong_in(lambda: parameter.parse(value))
    return Field(parameter.name, label, value or default_words(parameter), "text", words, wrong)


def _layers_line(settings: Settings, marked: int) -> Field:
    about = "Other weights for some modules: *.attn.*=0.7,0.3; *.mlp.*=1,0"
    wrong = wrong_in(lambda: parse_layers(settings.layers, marked))
    return Field("layers", "modules", settings.layers or "same for all", "text", about, wrong)


def wrong_in(parse: Callable[[], object]) -> str:
    """What is wrong with what ``parse`` reads; nothing if it will do."""
    try:
        parse()
    except VLoRAError as error:
        expected = f"; expected {error.expected}" if error.expected else ""
        return f"{error.what.rstrip('.')}{expected}."
    return ""


COLUMNS = (
    Column("name", "method", keep=5),
    Column("summary", "what it does", least=16, most=90, keep=4),
)


class MethodBox(Dialog):
    """All merge methods; the result is the name of the one that is taken."""

    DEFAULT_CSS = """
    MethodBox > .box { width: 104; height: 92%; }
    MethodBox Table { height: 1fr; }
    MethodBox #method-said { height: auto; max-height: 40%; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        shown("enter", "take", "Select", "method.take", "Take the method"),
        shown("escape,q", "cancel", "Back", "method.cancel", "Keep the method"),
    ]

    def __init__(self, method: str) -> None:
        super().__init__()
        self._method = method

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = Text("Merge method")
            box.border_subtitle = Text(keyed("<method.take> select, <method.cancel> cancel"))
            yield Table(COLUMNS, _cells, key=str)
            yield Static(id="method-said", markup=False)

    def on_mount(self) -> None:
        super().on_mount()
        names: Sequence[str] = list(MERGES)
        table = self._table
        table.show(names, cursor=names.index(self._method))
        table.focus()
        self.call_after_refresh(self._say)

    @property
    def _table(self) -> Table[str]:
        return self.query_one(Table)

    def on_table_pressed(self) -> None:
        self.action_take()

    def on_table_moved(self) -> None:
        self._say()

    def on_resize(self) -> None:
        self.call_after_refresh(self._say)

    def action_take(self) -> None:
        if self._table.row is not None:
            self.dismiss(self._table.row)

    def _say(self) -> None:
        if self._table.row is None:
            return
        panel = self.query_one("#method-said", Static)
        panel.update(hanging(method_text(self._table.row), panel.size.width))


def method_text(name: str) -> Text:
    """All of a method in lines, under the name that the list has for it."""
    text, spec = Text(), MERGES[name]
    others = [other for other in (spec.name, *spec.aliases) if other != name]
    text.append(name, style="bold")
    text.append(f"   also {', '.join(others)}\n" if others else "\n")
    lines = {
        "does": spec.summary,
        "beware": spec.caution,
        "acts on": spec.acts_on,
        "weights": f"{spec.weighting}; by default {DEFAULT_WEIGHTS[spec.default_weights]}",
        "takes": f"{spec.adapters} adapters" if spec.adapters else "",
        "asks": ", ".join(p.name.replace("_", " ") for p in spec.parameters),
        "from": spec.reference,
    }
    for label, words in lines.items():
        if words:
            text.append(f"{label:<10}", style="dim")
            text.append(f"{words}\n")
    text.rstrip()
    return text


def _cells(name: str) -> list[Cell]:
    spec = MERGES[name]
    return [(name, "warning" if spec.caution else ""), (spec.summary, "")]


def likeness_words(likeness: Likeness | None, names: Sequence[str]) -> str:
    """What spectra show already of adapters that are going to be merged; nothing without any."""
    index_of = {name: at for at, name in enumerate(likeness.names)} if likeness is not None else {}
    at = [index_of[name] for name in map(clean, names) if name in index_of]
    if likeness is None or len(at) < 2 or len(at) < len(names):
        return ""
    names = [likeness.names[i] for i in at]
    cosines, sizes = likeness.cosines[np.ix_(at, at)], likeness.norms[at]
    pairs = itertools.combinations(range(len(at)), 2)
    i, j = ranked(pairs, lambda pair: cosines[pair], largest=False)[0]
    words = f"Least similar: {names[i]} and {names[j]}, cosine {cosine_text(cosines[i, j])}"
    words += "; they pull against each other. " if cosines[i, j] < OPPOSED else ". "
    by_size = ranked(range(len(at)), lambda i: sizes[i])
    largest, least = by_size[0], by_size[-1]
    if sizes[largest] >= OUTVOTES * sizes[least] > 0:
        words += (
            f"{names[largest]} is {sizes[largest] / sizes[least]:.2g}x the size of "
            f"{names[least]}: at equal weights the result is mostly the larger one."
        )
    return words.strip()


OPPOSED = -0.05  # cosines of dW: below it is no longer the noise of adapters that share nothing
OUTVOTES = 3.0

"""Rules on what headers, configs and file names show, beyond what reading them remarks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vlora_engine.doctor.rules import ENGINE, PEFT, Hit, Subject, rule
from vlora_engine.utils.naming import counted

_CODE = (".py", ".pyc", ".so", ".sh", ".ipynb")
USUAL_SCALE = 64.0  # alpha over r, or one over it: beyond, something was mixed up


@rule(
    "code-beside",
    "warning",
    "Program files lie beside the adapter.",
    remedy="an adapter needs none: remove them before it is published or trusted",
    source="https://huggingface.co/docs/hub/security",
    since="2026",
)
def _code_beside(subject: Subject) -> Iterable[Hit]:
    found = sorted(name for name in subject.files if name.endswith(_CODE))
    if found:
        what = f"The folder holds {counted(len(found), 'program file')}: {', '.join(found[:4])}."
        yield Hit(what, file=str(subject.path / found[0]))


@rule(
    "local-paths",
    "note",
    "The config holds paths of the machine of the training.",
    remedy="remove them before the adapter is published",
    source=f"{PEFT}/blob/main/src/peft/config.py",
    since="peft 0.21",
)
def _local_paths(subject: Subject) -> Iterable[Hit]:
    own = {k: v for k, v in subject.config.items() if k != "base_model_name_or_path"}
    found = [text for text in _texts(own) if text.startswith(("/", "~/", "C:\\", "file:"))]
    if found:
        yield Hit(f"The config names the path {found[0][:80]}.", file=subject.at_config)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


@rule(
    "quantized-base",
    "note",
    "The base model that is named is a quantized copy.",
    remedy="served on the full model the adapter meets weights that it was not trained on: "
    "serve it on the copy, or measure",
    source="arXiv:2305.14314",
    since="2026",
)
def _quantized_base(subject: Subject) -> Iterable[Hit]:
    base = subject.config.get("base_model_name_or_path")
    marks = ("bnb-4bit", "bnb-8bit", "-gptq", "-awq", "-int4", "-int8")
    if isinstance(base, str) and any(mark in base.lower() for mark in marks):
        yield Hit(f"It was trained on a quantized copy: {base[:80]}.", file=subject.at_config)


@rule(
    "wide-dtype",
    "note",
    "Factors in fp64 take twice the bytes of fp32 and give nothing.",
    source=f"{ENGINE}.utils.safetensors_file",
)
def _wide_dtype(subject: Subject) -> Iterable[Hit]:
    wide = [name for name, shape in (subject.modules or {}).items() if shape.dtype == "F64"]
    if wide:
        what = f"It has {counted(len(wide), 'module')} in fp64, such as {wide[0]}."
        fix = subject.command("export", "--target", "peft", "--dtype", "fp32", suffix="fp32")
        yield Hit(what, "save it in fp32", fix, file=subject.at_weights, module=wide[0])


@rule(
    "narrow-dtype",
    "warning",
    "Factors in eight bits: PEFT and servers do not compute in them.",
    remedy="save the adapter again in bf16",
    source=f"{ENGINE}.utils.safetensors_file",
)
def _narrow_dtype(subject: Subject) -> Iterable[Hit]:
    narrow = [n for n, (dtype, _) in subject.tensors.items() if dtype.startswith("F8")]
    narrow = [name for name in narrow if "lora_" in name]
    if narrow:
        what = f"It has {counted(len(narrow), 'factor')} in 8-bit floats, such as {narrow[0]}."
        fix = subject.command("export", "--target", "peft", "--dtype", "bf16", suffix="bf16")
        yield Hit(what, fix=fix, file=subject.at_weights)


@rule(
    "mixed-dtypes",
    "note",
    "Factors have more than one dtype.",
    remedy="save them in one dtype; a server casts them to its own",
    source=f"{ENGINE}.formats.layout",
)
def _mixed_dtypes(subject: Subject) -> Iterable[Hit]:
    dtypes = Counter(dtype for name, (dtype, _) in subject.tensors.items() if ".lora_" in name)
    if len(dtypes) > 1:
        counts = ", ".join(f"{number} {dtype}" for dtype, number in sorted(dtypes.items()))
        fix = subject.command("export", "--target", "peft", "--dtype", "fp32", suffix="fp32")
        yield Hit(f"Its factors are of several dtypes: {counts}.", fix=fix, file=subject.at_weights)


@rule(
    "odd-scale",
    "warning",
    "The scale is far from what anybody trains with.",
    remedy="look whether lora_alpha and r belong to these tensors",
    source="arXiv:2106.09685",
    since="v2",
)
def _odd_scale(subject: Subject) -> Iterable[Hit]:
    odd = {
        module: scale
        for module, scale in subject.scales.items()
        if scale and not 1 / USUAL_SCALE <= abs(scale) <= USUAL_SCALE
    }
    if odd:
        module, scale = next(iter(odd.items()))
        what = f"The scale of {counted(len(odd), 'module')} is {scale:.3g}, as of {module}."
        yield Hit(what, file=subject.at_config, module=module)


@rule(
    "redundant-rank",
    "note",
    "A rank above a module's dimensions: B @ A cannot have it.",
    source=f"{ENGINE}.resizing",
)
def _redundant_rank(subject: Subject) -> Iterable[Hit]:
    over = [n for n, s in (subject.modules or {}).items() if s.rank > min(s.d_in, s.d_out)]
    if over and subject.modules:
        shape = subject.modules[over[0]]
        what = (
            f"It has {counted(len(over), 'module')} of a rank that {over[0]} ({shape.d_in} to "
            f"{shape.d_out}) cannot have: {shape.rank}."
        )
        fix = subject.command("resize", "--energy", "1", suffix="smaller")
        yield Hit(
            what, "store it at the rank that it has", fix, file=subject.at_weights, module=over[0]
        )

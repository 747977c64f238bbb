"""The command lines that start a server with exported adapters."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlora_engine.targets.registry import RANK_LIMITS, find_target, smallest_choice
from vlora_engine.utils.file_names import ADAPTER_GGUF
from vlora_engine.utils.naming import slugs

MODELFILE = "Modelfile"
BASE = "BASE_MODEL"  # where nothing names it
BASE_GGUF = "BASE.gguf"


class Served(NamedTuple):
    """One exported adapter, as a server is going to be told of it.

    Args:
        base: The name of its base model, in its config. base_folder: Where that lies, if known.
    """

    task: str
    path: str
    rank: int
    base: str | None = None
    base_folder: str | None = None


def start_lines(target: str, adapters: Sequence[Served]) -> list[str]:
    """The lines that start a server with these adapters; none for PEFT, which is a library.

    Adapters of one base model are served by one process; Ollama makes a model of each. For several
    adapters in one folder vLLM's first line finds each when a request names it.
    """
    if find_target(target).name in ("peft", "portable"):
        return []
    names = slugs(adapter.task for adapter in adapters)
    bases = dict.fromkeys(adapter.base for adapter in adapters)
    lines = []
    for base in bases:
        group = [adapter for adapter in adapters if adapter.base == base]
        lines += _LINES[target](base or BASE, [(names[adapter.task], adapter) for adapter in group])
    return lines


# vllm/plugins/lora_resolvers/filesystem_resolver.py: it looks for an adapter of the requested name
# in this folder, and takes it if its base_model_name_or_path equals the name of the served model.
RESOLVER = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_PLUGINS": "lora_filesystem_resolver"}
RESOLVER_FOLDER = "VLLM_LORA_RESOLVER_CACHE_DIR"


Named = Sequence[tuple[str, Served]]


def _vllm(base: str, named: Named) -> list[str]:
    option = smallest_choice(RANK_LIMITS["vllm"], max(adapter.rank for _, adapter in named))
    modules = [f"{name}={adapter.path}" for name, adapter in named]
    folder = named[0][1].base_folder
    model = [base] if folder is None else [folder, "--served-model-name", base]
    words = ["vllm", "serve", *model, "--enable-lora", "--max-lora-rank", str(option)]
    loaded = shlex.join([*words, "--lora-modules", *modules])
    places = {Path(adapter.path).parent for _, adapter in named}
    if len(named) == 1 or len(places) > 1 or base == BASE:
        return [loaded]
    variables = {**RESOLVER, RESOLVER_FOLDER: str(places.pop())}
    settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    return [f"{settings} {shlex.join(words)}", loaded]


def _sglang(base: str, named: Named) -> list[str]:
    words = ["python", "-m", "sglang.launch_server", "--model-path", base, "--enable-lora"]
    return [
        shlex.join([*words, "--lora-paths", *(f"{name}={adapter.path}" for name, adapter in named)])
    ]


def _tgi(base: str, named: Named) -> list[str]:
    adapters = ",".join(f"{name}={adapter.path}" for name, adapter in named)
    words = ["text-generation-launcher", "--model-id", base, "--lora-adapters", adapters]
    return [shlex.join(words)]


def _lorax(base: str, named: Named) -> list[str]:
    words = ["lorax-launcher", "--model-id", base, "--adapter-source", "local"]
    if len(named) > 1:  # each request names its adapter_id: the path
        return [shlex.join(words)]
    return [shlex.join([*words, "--adapter-id", named[0][1].path])]


def _llamacpp(base: str, named: Named) -> list[str]:
    words = ["llama-server", "-m", BASE_GGUF]
    for _, adapter in named:
        words += ["--lora", str(Path(adapter.path) / ADAPTER_GGUF)]
    # Several would be added up; so each starts at scale 0 and a request raises its own.
    return [shlex.join([*words, *(["--lora-init-without-apply"] if len(named) > 1 else [])])]


def _ollama(base: str, named: Named) -> list[str]:
    return [
        shlex.join(["ollama", "create", name, "-f", str(Path(adapter.path) / MODELFILE)])
        for name, adapter in named
    ]


_LINES = {
    "vllm": _vllm,
    "sglang": _sglang,
    "tgi": _tgi,
    "lorax": _lorax,
    "llamacpp": _llamacpp,
    "ollama": _ollama,
}


def modelfile(base: str | None) -> str:
    """The text of a Modelfile, from which Ollama makes a model of base and adapter."""
    return (
        "# FROM is the base model as Ollama knows it: a name such as llama3.2, a GGUF file or a\n"
        "# folder of safetensors. It has to be the model that the adapter was trained on.\n"
        f"FROM {base if base and base.isprintable() else BASE}\n"
        f"ADAPTER ./{ADAPTER_GGUF}\n"
    )

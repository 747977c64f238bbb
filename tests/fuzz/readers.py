"""Give every reader changed files: it may only succeed, or raise an error of the program's own.

    python -m tests.fuzz.readers --calls 20000 --seed 1
    python -m tests.fuzz.readers --reader coded --calls 1000000

A call writes one sound example into a folder, changes one or two of its files (structure first,
then bytes; checksums are put right, so that what was changed is read), and reads all of it. Any
other exception is a failure, as are more than `SECONDS` of CPU time and memory beyond `MEMORY`;
they are counted by where they arise, each kind is shown once. The same seed makes the same calls.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.mutate import mutation_of
from tests.witnesses import make

SECONDS = 10.0
SETTLED = 100  # calls after which memory is first looked at
MEMORY = 3 << 30  # bytes above what the process has when it starts
TASKS = ("a", "b", "c")
SPARED = "-beef/"  # the job that must be listed, whatever the others are

Files = dict[str, bytes]


class Reader(NamedTuple):
    """One kind of input: how examples are made, how they are read, how checksums are put right."""

    examples: Callable[[Path], None]
    read: Callable[[Path], None]
    mend: Callable[[Files], None] = lambda files: None


class TooSlow(BaseException):
    """A call took more CPU time than it may."""


# ---- making examples


def _run(*words: object) -> tuple[int, str]:
    from vlora_tui.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(word) for word in words])
    return code, said.getvalue()


def _made(*words: object) -> None:
    code, said = _run(*words)
    assert code == 0, said


SMALL = {"h.0.attn.c_attn": (6, 9), "h.1.attn.c_attn": (6, 9), "h.1.mlp": (5, 4)}


def _collection(folder: Path) -> list[Path]:
    paths = []
    for i, name in enumerate(TASKS):
        tensors = make.factors(SMALL, rank=2, seed=i + 1)
        tensors["base_model.model.score.weight"] = make.torch.ones(2, 3)
        settings = make.config(r=2, alpha_pattern={"h.1.mlp": 4}, target_modules=["c_attn", "mlp"])
        paths.append(make.write(folder / name, tensors, settings))
    return paths


def _compressed(*flags: object) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            paths = _collection(Path(place))
            _made("compress", *paths, "-o", folder / "s", *flags)

    return build


def _coded(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        paths = _collection(Path(place))
        near = make.write(Path(place) / "d", _nudged(1), make.config(r=2))
        _made("compress", *paths, near, "-o", folder / "own", "--method", "own", "--max-error", 0.1)
        _made("compress", *paths, near, "-o", folder / "auto", "--max-error", 0.01)


def _beside(folder: Path) -> None:
    """Format 3: a basis beside coded tasks, and a task that is loadings in it."""
    from dataclasses import replace

    from vlora_engine.shared_subspace import SharedSubspace

    with tempfile.TemporaryDirectory() as place:
        _made("compress", *_collection(Path(place)), "-o", folder / "s", "--max-error", 0.1)
    _made("basis", folder / "s", "-k", 2)
    opened = SharedSubspace.load(folder / "s")
    opened.add_task(replace(opened.in_basis().tasks["a"], task_id="inside"))
    opened.save(folder / "s")
    (folder / ".s.lock").unlink(missing_ok=True)  # no subspace


def _nudged(seed: int) -> dict[str, Any]:
    tensors = make.factors(SMALL, rank=2, seed=seed)
    return {key: 1.01 * tensor for key, tensor in tensors.items()}


def _spectra(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        _made("spectra", *_collection(Path(place)), "-o", folder / "spectra")


def _peft(folder: Path) -> None:
    _collection(folder)


def _pickled(folder: Path) -> None:
    make.write(folder / "a", make.factors(SMALL, rank=2), make.config(r=2), pickle=True)
    tensors = make.factors(SMALL, rank=2)
    (folder / "b").mkdir()
    (folder / "b" / "adapter_config.json").write_text(json.dumps(make.config(r=2)))
    make.torch.save(
        tensors, folder / "b" / "adapter_model.bin", _use_new_zipfile_serialization=False
    )


def _mlx(folder: Path) -> None:
    folder = folder / "a"
    folder.mkdir(parents=True)
    name = "model.layers.3.self_attn.q_proj"
    a, b = make.torch.randn(5, 2), make.torch.randn(2, 7)
    make.save_file({f"{name}.lora_a": a, f"{name}.lora_b": b}, folder / "adapters.safetensors")
    config = {"model": "org/base", "num_layers": 2, "lora_parameters": {"rank": 2, "scale": 10.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _kohya(folder: Path) -> None:
    tensors = {}
    for name in ("lora_unet_mid_attn1_to_q", "lora_te_text_model_layers_0_mlp_fc1"):
        tensors[f"{name}.lora_down.weight"] = make.torch.randn(2, 5)
        tensors[f"{name}.lora_up.weight"] = make.torch.randn(7, 2)
        tensors[f"{name}.alpha"] = make.torch.tensor(1.0)
    (folder / "a").mkdir()
    make.save_file(tensors, folder / "a" / "x.safetensors", metadata={"ss_network_dim": "2"})


def _gguf(folder: Path) -> None:
    from vlora_engine.targets.save import save_adapter

    modules = {f"model.layers.{i}.self_attn.{p}_proj": (8, 8) for i in (0, 1) for p in "qv"}
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
        "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as base:
        (Path(base) / "config.json").write_text(json.dumps(config))
        weights = make.weights(modules, rank=2)
        save_adapter(weights, folder / "a", target="llamacpp", base=base)


def _peer(to: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as place:
            modules = {"h.0.attn.c_attn": (6, 9), "h.1.attn.c_attn": (6, 9)}
            paths = [
                make.write(Path(place) / name, make.factors(modules, rank=2, seed=i))
                for i, name in enumerate(TASKS)
            ]
            for path in paths:
                config = make.config(r=2, target_modules=["c_attn"])
                (path / "adapter_config.json").write_text(json.dumps(config))
            _made("convert", *paths, "--to", to, "-o", folder / "s", "--allow-loss")

    return build


RECIPE = """\
[input]
adapters = ["runs/*", { path = "other/a", name = "named" }]
skip_bad = true

[compress]
method = "delta"
max_error = 0.05
layers = { "*.c_attn" = 4 }
dtype = "fp16"
device = "cpu"

[output]
subspace = "out"

[[export]]
tasks = ["a", "b*"]
target = "vllm"
path = "exported"
alpha = 16.0
target_modules = ["q", "v"]

[[merge]]
adapters = ["a", "b"]
method = "ties"
weights = [0.5, 0.5]
density = 0.3
path = "merged"

[[merge]]
adapters = ["a", "b"]
path = "merged2"
[merge.layers]
"*.attn.*" = [0.25, 0.75]
"h.1.*" = { weights = [0.5, 0.5], density = 0.3 }

[[resize]]
tasks = ["a"]
dynamic = ["sv_fro", 0.97]
path = "small"
"""


def _recipe(folder: Path) -> None:
    (folder / "r.toml").write_text(RECIPE)


MERGEKIT = """\
merge_method: ties
base_model: base
dtype: bfloat16
models:
- model: a
  parameters:
    weight: [0.1, 0.9]
    density: 0.5
- model: b
  parameters:
    weight:
    - filter: attn
      value: 0.7
    - value: 0.1
parameters:
  normalize: true
"""


def _mergekit(folder: Path) -> None:
    _collection(folder)
    (folder / "m.yml").write_text(MERGEKIT)


def _job(folder: Path) -> None:
    from vlora_tui.pipeline import events

    for name in ("20260101-000000-abcd", "20260102-000000-beef"):
        job = folder / "jobs" / name
        job.mkdir(parents=True)
        info = {"id": name, "kind": "build", "title": name[-4:], "created": 1.7e9, "force": False,
                "outputs": ["/tmp/out"], "device": "cpu", "host": "h", "torch": "2"}  # fmt: skip
        (job / "job.json").write_text(json.dumps(info))
        (job / "recipe.toml").write_text(RECIPE)
        rows = [{"seq": i, "time": 1.7e9 + i, "type": kind} for i, kind in enumerate(_EVENTS)]
        for row in rows:
            row |= _EVENTS[str(row["type"])]
        assert all(events.decode(json.dumps(row)) for row in rows), rows
        (job / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


_ERROR = {"error": "InputError", "what": "w", "where": None, "expected": None, "found": None,
          "remedy": None}  # fmt: skip
_EVENTS: dict[str, dict[str, Any]] = {}


def _example_of(hint: Any) -> Any:
    """Some value of a field's type."""
    import typing

    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return [_example_of(inside[0])]
    if origin is dict or hint is dict:
        return {"what": "x", "a": 1, "path": "/tmp/x"}
    if inside:
        return _example_of(inside[0])
    return {str: "text", int: 3, float: 0.5, bool: True}.get(hint)


def _fill_events() -> None:
    from vlora_tui.pipeline import events

    for kind in events.EVENT_TYPES:
        row = {
            name: _example_of(hint)
            for name, (hint, _) in events._fields_of(kind).items()
            if _example_of(hint) is not None
        }
        _EVENTS[kind] = row


# ---- reading

_refused: list[str] = []  # what parts of a call were refused, where others go on


@contextlib.contextmanager
def tolerated() -> Iterator[None]:
    """Go on after an error of the program's own, and remember it."""
    from vlora_engine.errors import VLoRAError

    try:
        yield
    except VLoRAError as error:
        _refused.append(error.what)


def _tensors(folder: Path) -> None:
    tensors = {"a": make.torch.ones(2, 3), "b": make.torch.ones(4).half(), "c": make.torch.ones(0)}
    make.save_file(tensors, folder / "x.safetensors", metadata={"format": "pt"})


def _read_tensors(folder: Path) -> None:
    from vlora_engine.utils.safetensors_file import close_file, read_header, read_tensor

    header = read_header(folder / "x.safetensors")
    for name, entry in header.entries.items():
        assert tuple(read_tensor(header, name).shape) == entry.shape
    close_file(header.path)


def _read_adapters(folder: Path) -> None:
    from vlora_engine.catalog.open import open_adapter
    from vlora_engine.catalog.scanner import scan

    for info in scan(folder).adapters:
        info.as_dict()
    for path in sorted(folder.iterdir()):
        with tolerated():
            source = open_adapter(path)
            for module in source.modules:
                a, b = source.read(module)
                assert a.shape[0] == b.shape[1]
            source.read_rest()
            source.digest()


def _diagnosed(folder: Path) -> None:
    from vlora_engine.doctor.examine import diagnose

    _read_adapters(folder)
    diagnose([str(path) for path in sorted(folder.iterdir())])


def _read_subspaces(folder: Path) -> None:
    from vlora_engine.catalog.load import load_space
    from vlora_engine.catalog.scanner import scan
    from vlora_engine.doctor.subspace_check import check_subspace
    from vlora_engine.utils.safetensors_file import close_below

    scan(folder)
    for path in sorted(folder.iterdir()):
        with tolerated():
            check_subspace(path)
        with tolerated():
            space = load_space(path)
            for name in space.tasks:
                with tolerated():
                    _finite(space.reconstruct(name))
        close_below(path)


def _read_in_basis(folder: Path) -> None:
    from vlora_engine.shared_subspace import SharedSubspace

    _read_subspaces(folder)
    with tolerated():
        opened = SharedSubspace.load(folder / "s")
        for name in opened.tasks:
            with tolerated():
                opened.in_basis().tasks[name]
        with tolerated():
            opened.with_basis(k=1)


def _finite(weights: Any) -> None:
    from vlora_engine.subspace.soundness import distinct

    for name in weights.layer_names:
        for factor in (weights.lora_a[name], weights.lora_b[name]):
            numbers = distinct(factor).float()
            assert bool(make.torch.isfinite(numbers).all()), "it is not finite"


def _read_spectra(folder: Path) -> None:
    from vlora_engine.compression_target import CompressionTarget
    from vlora_engine.spectra.choose import choose
    from vlora_engine.spectra.tables import Spectra

    spectra = Spectra.load(folder / "spectra")
    targets = [{"k": 2}, {"max_error": 0.1}, {"budget": 30_000}, {"variance": 0.9}]
    for target in targets:
        with tolerated():
            choose(spectra, CompressionTarget(method="delta", **target))


def _read_recipe(folder: Path) -> None:
    from vlora_tui.recipe.reader import load_recipe

    recipe = load_recipe(folder / "r.toml")
    recipe.to_toml()


def _read_settings(folder: Path) -> None:
    from vlora_tui.utils.config import load_config

    before = os.environ.get("XDG_CONFIG_HOME")
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    try:
        config = load_config()
    finally:
        del os.environ["XDG_CONFIG_HOME"]
        if before is not None:
            os.environ["XDG_CONFIG_HOME"] = before
    _refused.extend(problem.what for problem in config.problems)


def _router(folder: Path) -> None:
    from vlora_engine.nn.router import TaskRouter

    make.torch.manual_seed(1)
    TaskRouter(4, 2, 3, ["a", "b"], 0.5).save(folder / "r")


def _read_router(folder: Path) -> None:
    from vlora_engine.nn.router import TaskRouter

    router = TaskRouter.load(folder / "r")
    weights = router(make.torch.zeros(1, router.input_dim))
    assert weights.shape == (1, router.num_tasks)


def _draft(folder: Path) -> None:
    from vlora_tui.jobs.drafts import save_draft
    from vlora_tui.recipe.reader import load_recipe

    (folder / "r.toml").write_text(RECIPE)
    state = {"folder": "runs", "screen": "choose", "marks": ["a", "b"]}
    save_draft(folder / "drafts" / "1-a.toml", load_recipe(folder / "r.toml"), state)
    (folder / "r.toml").unlink()


def _read_drafts(folder: Path) -> None:
    from vlora_tui.jobs.drafts import Drafts, load_draft

    for path in (folder / "drafts").glob("*.toml"):
        with tolerated():
            load_draft(path)
    for draft in Drafts(folder).offered():
        with tolerated():
            draft.recipe()


def _base_model(folder: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2,
        "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def _read_base_model(folder: Path) -> None:
    from vlora_engine.formats.base_model_config import find_base

    base = find_base(folder, None)
    for count in (base.layers, base.heads, base.kv_heads, base.hidden, base.head_dim):
        assert type(count) is int
        assert count > 0
    assert type(base.model_type) is str
    assert base.class_name is None or type(base.class_name) is str


def _settings(folder: Path) -> None:
    (folder / "vlora-tui").mkdir()
    text = 'theme = "x"\nascii = true\nscan_depth = 4\n[keys]\n"app.help" = "f1,?"\n'
    (folder / "vlora-tui" / "config.toml").write_text(text)


def _read_mergekit(folder: Path) -> None:
    from vlora_tui.recipe.mergekit import read_config

    read_config(str(folder / "m.yml"))


def _read_jobs(folder: Path) -> None:
    for words in (["jobs", "list"], ["jobs", "list", "--json"], ["jobs", "show", "abcd"]):
        code, said = _run(*words, "--state-dir", folder)
        assert "A bug in vlora-tui" not in said, said
        assert "Traceback" not in said, said
        assert code in (0, 2), said
        if words[1] == "list":
            assert "beef" in said, said


# ---- checksums


def _mend_subspaces(files: Files) -> None:
    """Make every index of a subspace vouch for the files as they are now."""
    for name in [n for n in files if n.endswith("subspace.json")]:
        folder = name[: -len("subspace.json")]
        try:
            index = json.loads(files[name])
            _vouch(index, folder, files)
            files[name] = json.dumps(index).encode()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            continue


def _vouch(index: dict[str, Any], folder: str, files: Files) -> None:
    for row in (*index["basis"], *index.get("shared_basis", {"files": []})["files"]):
        raw = files.get(folder + row["file"])
        if raw is not None:
            row["sha256"], row["bytes"] = hashlib.sha256(raw).hexdigest(), len(raw)
    tasks = index["tasks"]
    if isinstance(tasks, list):
        for row in tasks:
            raw = files.get(f"{folder}tasks/{row['file']}")
            if raw is not None:
                row["sha256"], row["bytes"] = hashlib.sha256(raw).hexdigest(), len(raw)
        return
    each = tasks["each"]
    for i, name in enumerate(each["id"]):
        raw = files.get(f"{folder}tasks/{name}.safetensors")
        if raw is not None:
            digest = base64.urlsafe_b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
            each["sha256"][i], each["bytes"][i] = digest, len(raw)


READERS: dict[str, Reader] = {
    "basis": Reader(_compressed("-k", 2), _read_subspaces, _mend_subspaces),
    "flat": Reader(_compressed("--method", "flat", "-k", 2), _read_subspaces, _mend_subspaces),
    "packed": Reader(_compressed("-k", 2, "--quantize", "nf4"), _read_subspaces, _mend_subspaces),
    "coded": Reader(_coded, _read_subspaces, _mend_subspaces),
    "beside": Reader(_beside, _read_in_basis, _mend_subspaces),
    "spectra": Reader(_spectra, _read_spectra),
    "tensors": Reader(_tensors, _read_tensors),
    "peft": Reader(_peft, _diagnosed),
    "pickle": Reader(_pickled, _read_adapters),
    "mlx": Reader(_mlx, _diagnosed),
    "kohya": Reader(_kohya, _read_adapters),
    "gguf": Reader(_gguf, _diagnosed),
    "vlora-dev": Reader(_peer("vlora-dev"), _read_subspaces),
    "lorashare": Reader(_peer("lorashare"), _read_subspaces),
    "recipe": Reader(_recipe, _read_recipe),
    "settings": Reader(_settings, _read_settings),
    "mergekit": Reader(_mergekit, _read_mergekit),
    "router": Reader(_router, _read_router),
    "drafts": Reader(_draft, _read_drafts),
    "base": Reader(_base_model, _read_base_model),
    "jobs": Reader(_job, _read_jobs),
}


# ---- calls


class Fuzz:
    """One reader under attack; `Fuzz.call` makes the call with a given number."""

    def __init__(self, name: str, folder: Path) -> None:
        if not _EVENTS:
            _fill_events()
        self.name, self.reader = name, READERS[name]
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        self.reader.examples(self.folder)
        self.sound = {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        self.reader.read(self.folder)  # they are sound
        self.outcomes: Counter[str] = Counter()
        self.failures: dict[str, str] = {}

    def changed(self, rng: random.Random) -> Files:
        """The example with one file changed, or two."""
        files = dict(self.sound)
        names = [n for n in files if not n.endswith("README.md") and SPARED not in n]
        for name in rng.sample(names, min(len(names), rng.choice((1, 1, 1, 2)))):
            files[name] = mutation_of(name)(files[name], rng)
        self.reader.mend(files)
        return files

    def call(self, seed: int, number: int) -> str:
        """One call: ``read``, ``refused``, or where it failed."""
        from vlora_engine.errors import VLoRAError

        files = self.changed(random.Random(f"{self.name} {seed} {number}"))
        different = [name for name in files if files[name] != self.sound[name]]
        for name in different:
            (self.folder / name).write_bytes(files[name])
        outcome = "read"
        _refused.clear()
        try:
            with limited_time():
                self.reader.read(self.folder)
            outcome = "refused" if _refused else "read"
        except VLoRAError:
            outcome = "refused"
        except (Exception, TooSlow) as error:
            outcome = _signature(error)
            text = "".join(traceback.format_exception(error))[-3000:]
            self.failures.setdefault(outcome, f"{self.name} call {number} {different}\n{text}")
        for name in different:
            (self.folder / name).write_bytes(self.sound[name])
        self.outcomes[outcome] += 1
        return outcome


def _signature(error: BaseException) -> str:
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "vlora" in frame.filename and "/fuzz/" not in frame.filename
    ]
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} at {place}"


@contextlib.contextmanager
def limited_time() -> Iterator[None]:
    """Raise `TooSlow` in what takes more CPU time than it may."""

    def stop(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def limited_memory(more: int = MEMORY) -> Iterator[None]:
    """Let allocations fail beyond ``more`` bytes of address space than there are now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--calls", type=int, default=1000, help="of every reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first call")
    parser.add_argument("--reader", action="append", choices=list(READERS))
    parser.add_argument("--seconds", type=float, help="of CPU time, of every reader at most")
    options = parser.parse_args(arguments)
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        for name in options.reader or READERS:
            fuzz = Fuzz(name, Path(place))
            begun = time.process_time()
            settled = _resident()
            with limited_memory():
                for number in range(options.first, options.first + options.calls):
                    fuzz.call(options.seed, number)
                    if number - options.first == SETTLED:
                        settled = _resident()
                    if options.seconds and time.process_time() - begun > options.seconds:
                        break
            taken = time.process_time() - begun
            counts = {key: fuzz.outcomes.pop(key, 0) for key in ("read", "refused")}
            wrong = sum(fuzz.outcomes.values())
            failed += wrong
            total = sum(counts.values()) + wrong
            held = f"{settled >> 20} to {_resident() >> 20} MB"
            row = f"{name:10} {total:8} calls {counts['read']:8} read {counts['refused']:8} refused"
            print(f"{row} {wrong:5} failed {taken:7.1f} s  memory {held}", flush=True)
            for key, count in fuzz.outcomes.most_common():
                print(f"  {count} x {key}\n{fuzz.failures[key]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""What the golden run runs: command lines on the demo collection and on real adapters.

Every step has a folder of its own, in which its commands run and to which they write. ``@step``
in a command, a file or a copy stands for the folder of another step, which then runs first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

COMMANDS = (
    *("demo", "guide", "inspect", "info", "spectra", "plan", "analyze", "diff", "interference"),
    *("coverage", "report", "module", "validate", "doctor", "eval", "benchmark", "compress"),
    *("compact", "quantize", "convert", "export", "reconstruct", "add", "remove", "merge"),
    *("resize", "pull", "push", "run", "jobs", "config"),
    *(f"jobs {name}" for name in ("list", "show", "start", "follow", "cancel", "resume", "remove")),
)
GUIDES = (
    *("from-lorashare", "from-peft", "from-vlora", "ollama", "peft", "python", "qlora", "tgi"),
    *("training", "vllm"),
)
SERVERS = ("vllm", "sglang", "tgi", "lorax", "llamacpp", "ollama")
REAL_SETS = ("gpt2-medical-sports-legal", "roberta-checkpoints", "smollm2-debian-texts")

DEMO = "@demo/made/adapters"
THREE = " ".join(f"{DEMO}/{name}" for name in ("french", "german", "italian"))
FIVE = f"{THREE} {DEMO}/sentiment-head {DEMO}/poetry-rslora"
Q_PROJ = "model.layers.0.self_attn.q_proj"
LLAMA = json.dumps(
    {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    }
)


@dataclass(frozen=True)
class Step:
    """Command lines that run one after another in a folder of their own.

    Args:
        name: Names the step in a record.
        lines: The commands, without the program's name, as a shell would split them.
        files: Texts that lie in the folder before the first command.
        copies: What is copied there: its name here, and where from.
        spoil: A file in the folder of which the last byte is flipped.
        code: The exit code that the last command is meant to have.
    """

    name: str
    lines: Sequence[str]
    files: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, str] = field(default_factory=dict)
    spoil: str = ""
    code: int = 0


def demo_steps(methods: Mapping[str, Sequence[str]]) -> list[Step]:
    """All steps on the demo collection; ``methods`` are those of merging with their parameters."""
    return [
        *_helps(),
        Step("demo", ["demo made"]),
        *_looks(),
        *_compressions(),
        *_subspaces(),
        *_exports(),
        *_merges(methods),
        *_conversions(),
        *_resizes(),
        *_recipes(),
        *_errors(),
    ]


def real_steps(methods: Mapping[str, Sequence[str]], folder: Path) -> list[Step]:
    """All steps on real adapters; ``@real`` is the folder with a copy of them."""
    found = [name for name in REAL_SETS if (folder / name).is_dir()]
    steps = [
        Step("real-inspect", ["inspect @real --json", "inspect @real"]),
        Step("real-doctor", ["doctor @real --json"], code=3),
    ]
    for name in found:
        steps += _real_set(name, folder, methods)
    if "roberta-checkpoints" in found:  # the quickest set to plan on
        steps.append(Step("roberta-plan", ["plan @real/roberta-checkpoints --json"]))
    zoo = folder / "zoo"
    for adapter in sorted(zoo.iterdir()) if zoo.is_dir() else ():
        place, short = f"@real/zoo/{adapter.name}", f"zoo-{adapter.name.lower()}"
        lines = [f"doctor {place} --json", f"convert {place} --to peft -o peft --json"]
        steps.append(Step(short, [*lines, f"convert {place} --to mlx --allow-loss -o mlx"]))
    if (folder / "sam-ranks").is_dir():
        steps.append(Step("sam-refused", ["compress @real/sam-ranks -k 4 -o out"], code=2))
    return steps


def _helps() -> Iterator[Step]:
    yield Step("help", ["--help", "--version", "config show", "doctor rules", "guide"])
    for command in COMMANDS:
        yield Step(f"help-{command.replace(' ', '-')}", [f"{command} --help"])
    yield Step("guides", [f"guide {name}" for name in GUIDES])


def _looks() -> list[Step]:
    two = f"{DEMO}/french {DEMO}/german"
    return [
        Step("inspect", [f"inspect {DEMO} --json", f"inspect {DEMO}", f"inspect {DEMO} -q"]),
        Step("doctor", [f"doctor {DEMO} --json", f"doctor {DEMO}"], code=3),
        Step("doctor-target", [f"doctor {DEMO} --target vllm --headers"], code=3),
        Step("plan", [f"plan {THREE} --json", f"plan {THREE} --max-error 0.1"]),
        Step("analyze", [f"analyze {DEMO} --skip-bad --json", f"analyze {FIVE} --csv out.csv"]),
        Step("analyze-text", [f"analyze {DEMO} --skip-bad"]),
        Step("analyze-factors", [f"analyze {THREE} --space factors --json"]),
        Step("diff", [f"diff {two} --json", f"diff {two} --csv out.csv"]),
        Step("diff-too-large", [f"diff {two} --fail-above 0.01 -q"], code=3),
        Step("interference", [f"interference {FIVE} --json", f"interference {FIVE}"]),
        Step("module", [f"module {DEMO}/french {Q_PROJ} --json", f"module {two} {Q_PROJ}"]),
        Step("report", [f"report {DEMO} --skip-bad -o report.md"]),
        Step("report-measured", [f"report {THREE} --measure -o report.md --json"]),
        Step("spectra", [f"spectra {FIVE} -o spectra", f"spectra {THREE} -o three --json"]),
    ]


SMALL = ("flat", "nf4", "auto-mean-error", "auto-budget")  # flat takes no mixed ranks


def _compressions() -> list[Step]:
    ways = {
        "flat": "--method flat -k 2",
        "columns": "--method columns -k 8 --json",
        "delta": "--method delta -k 8 --events events.jsonl",
        "sides": "--k-a 6 --k-b 10 --names a --names b --names c --names d --names e",
        "layers": f"-k 8 --layers *.q_proj=4 --layers {Q_PROJ}=12 --dtype fp16",
        "variance": "--method delta --variance 0.9 --adaptive-k --json",
        "max-error": "--method delta --max-error 0.3",
        "mean-error": "--method columns --mean-error 0.3",
        "budget": "--method delta --budget 400kB --json",
        "refine": "--method delta -k 6 --refine 2 --dtype fp32",
        "int8": "--method delta -k 16 --quantize int8",
        "int4": "--method columns -k 16 --quantize int4",
        "nf4": "--method flat -k 2 --quantize nf4",
        "nf4-max-error": "--method delta --max-error 0.3 --quantize nf4 --json",
        "own": "--method own --max-error 0.1 --json",
        "auto": "--events events.jsonl",
        "auto-mean-error": "--method auto --mean-error 0.2 --json",
        "auto-budget": "--budget 200kB",
    }
    steps = [
        Step(f"compress-{name}", [f"compress {THREE if name in SMALL else FIVE} {flags} -o out"])
        for name, flags in ways.items()
    ]
    return [
        *steps,
        Step("compress-all", [f"compress {DEMO} --skip-bad -k 12 -o out --json"]),
        Step("compress-quiet", [f"compress {THREE} -k 4 -q -o out"]),
        Step("compress-dry", [f"compress {FIVE} -k 4 -o out --dry-run --json"]),
        Step("compress-recipe", [f"compress {FIVE} --budget 1MB -o out --print-recipe"]),
        Step(
            "compress-spectra",
            [f"compress {FIVE} --max-error 0.2 --spectra @spectra/spectra -o out"],
        ),
    ]


def _subspaces() -> list[Step]:
    """What is done with a subspace that lies there."""
    steps = [
        Step(f"look-{name}", [f"{do} @compress-{name}/out --json" for do in ("info", "validate")])
        for name in ("flat", "delta", "auto", "int4", "nf4", "own")
    ]
    texts = [f"info @compress-{name}/out" for name in ("auto", "delta", "nf4")]
    steps.append(Step("look-texts", [*texts, "validate @compress-auto/out"]))
    delta, auto = {"sub": "@compress-delta/out"}, {"sub": "@compress-auto/out"}
    spanish = f"{DEMO}/spanish"
    return [
        *steps,
        Step("coverage", [f"coverage @compress-delta/out {spanish} {DEMO}/sql --json"]),
        Step("coverage-low", [f"coverage @compress-flat/out {spanish} --fail-below 0.9"], code=3),
        Step(
            "diff-tasks",
            [
                "diff @compress-delta/out french german",
                "diff @compress-auto/out:french @compress-delta/out:french --json",
            ],
        ),
        Step("report-subspace", ["report @compress-auto/out -o report.md"]),
        Step(
            "spoiled",
            ["validate sub --json", "validate sub"],
            copies=auto,
            spoil="sub/tasks/french.safetensors",
            code=3,
        ),
        Step("quantize-int8", ["quantize @compress-delta/out -o out --json"]),
        Step(
            "quantize-int4",
            ["quantize @compress-columns/out --bits 4 --block-size 32 -o out --loadings"],
        ),
        Step(
            "quantize-nf4",
            [
                "quantize @compress-flat/out --method nf4 --double-quant -o out"
                " --events events.jsonl"
            ],
        ),
        Step("quantize-coded", ["quantize @compress-auto/out -o out"]),
        Step("add", [f"add sub {spanish}", "info sub --json"], copies=delta),
        Step(
            "add-project",
            [
                f"add sub {spanish} --project --json",
                f"add sub {DEMO}/sql --project --name query --dry-run",
            ],
            copies=delta,
        ),
        Step(
            "add-incremental",
            [f"add sub {spanish} --incremental --task-id es", "validate sub"],
            copies=delta,
        ),
        Step("add-packed", [f"add sub {spanish} --project"], copies={"sub": "@compress-int4/out"}),
        Step(
            "add-coded",
            [f"add sub {spanish} --json", "remove sub french", "compact sub --json", "info sub"],
            copies=auto,
        ),
        Step(
            "add-own",
            [f"add sub {spanish}", "compact sub -o out --dry-run"],
            copies={"sub": "@compress-own/out"},
        ),
        Step(
            "remove",
            ["remove sub french --dry-run", "remove sub french g* --json", "info sub"],
            copies=delta,
        ),
    ]


def _exports() -> list[Step]:
    base = {"base/config.json": LLAMA}
    steps = [
        Step(
            f"export-{target}",
            [f"export @compress-auto/out french german --target {target} --base base -o out"],
            files=base,
        )
        for target in SERVERS
    ]
    return [
        *steps,
        Step("export-peft", ["export @compress-delta/out --all -o out --json"]),
        Step(
            "export-portable",
            ["export @compress-delta/out --all --target portable --drop-rest -o out"],
        ),
        Step(
            "export-drop",
            ["export @compress-int8/out --all --target vllm --drop-rest -o out --json"],
        ),
        Step(
            "export-own",
            [
                "reconstruct @compress-own/out poetry-rslora -o out --dtype bf16 --alpha 32"
                " --no-verify"
            ],
        ),
        Step(
            "export-dry",
            [
                "export @compress-delta/out f* -o out --dry-run",
                "export @compress-delta/out f* -o out --print-recipe",
            ],
        ),
        Step("export-refused", ["export @compress-delta/out --all --target vllm -o out"], code=2),
    ]


def _merges(methods: Mapping[str, Sequence[str]]) -> list[Step]:
    steps = []
    for name, parameters in methods.items():
        two = THREE.rpartition(" ")[0] if name == "slerp" else THREE
        seed = "--seed 7" if "seed" in parameters else ""
        lines = [f"merge {two} --method {name} {seed} -o out"]
        steps.append(Step(f"merge-{name.replace('_', '-')}", lines))
    kit = f"""\
merge_method: ties
base_model: synthetic/tiny-llama-demo
models:
  - model: {DEMO}/french
    parameters: {{weight: 0.6, density: 0.7}}
  - model: {DEMO}/german
    parameters: {{weight: 0.4, density: 0.3}}
parameters: {{normalize: true}}
dtype: float32
"""
    return [
        *steps,
        Step("merge-list", ["merge --list-methods", "merge --list-methods --json"]),
        Step(
            "merge-preview",
            [
                f"merge {THREE} --method ties --density 0.3 --preview --json",
                f"merge {THREE} --preview",
            ],
        ),
        Step(
            "merge-weights",
            [
                f"merge {THREE} --method average --weights 0.5,0.3,0.9 --normalize"
                " --scale 1.5 --rank 6 --layers *.q_proj=1,0,0 -o out --json"
            ],
        ),
        Step(
            "merge-energy",
            [
                f"merge {THREE} --method dare --drop-rate 0.2 --seed 1"
                " --energy 0.9 --dtype bf16 -o out --events events.jsonl"
            ],
        ),
        Step(
            "merge-peft",
            [f"merge {THREE} --dialect peft --method {m} --density 0.4 -o {m}" for m in ("ties",)]
            + [f"merge {THREE} --dialect peft --method {m} -o {m}" for m in ("linear", "svd")],
        ),
        Step("merge-factors", [f"merge {THREE} --space factors --method average -o out"]),
        Step(
            "merge-tasks",
            [
                "merge @compress-auto/out:french @compress-delta/out:german --method ties -o out",
                "merge @compress-auto/out:french @compress-own/out:german -o out --print-recipe",
            ],
        ),
        Step(
            "merge-mergekit",
            ["merge merge.yml -o out", "merge merge.yml -o out --print-recipe"],
            files={"merge.yml": kit},
        ),
    ]


def _conversions() -> list[Step]:
    return [
        Step(
            "convert-mlx",
            [
                f"convert {DEMO}/french {DEMO}/poetry-rslora --to mlx -o mlx --json",
                "convert mlx --to peft -o peft",
            ],
        ),
        Step(
            "convert-peft",
            [f"convert @compress-auto/out:french {DEMO}/german --to peft -o out"],
        ),
        Step(
            "convert-loss",
            [
                f"convert {DEMO}/sentiment-head --to mlx -o no",
                f"convert {DEMO}/sentiment-head --to mlx --allow-loss -o out",
            ],
        ),
        *(
            Step(
                f"convert-{peer}",
                [
                    f"convert {THREE} --to {peer} -o adapters --json",
                    f"convert @compress-delta/out --to {peer} --allow-loss -o delta",
                    "convert adapters --to subspace -o back --json",
                    "info adapters --json",
                ],
            )
            for peer in ("vlora-dev", "lorashare")
        ),
        Step("convert-k", [f"convert {THREE} --to vlora-dev -k 1 -o out"]),
    ]


def _resizes() -> list[Step]:
    one = f"{DEMO}/french"
    return [
        Step(
            "resize-rank",
            [f"resize {one} --rank 4 -o down --json", f"resize {one} --rank 32 -o up"],
        ),
        Step("resize-energy", [f"resize {FIVE} --energy 0.95 -o out"]),
        Step(
            "resize-dynamic",
            [
                f"resize {one} --dynamic {rule} -o {rule[:6]}"
                for rule in ("sv_fro 0.97", "sv_ratio 3", "sv_cumulative 0.9")
            ],
        ),
        Step("resize-for", [f"resize {THREE} --target portable -o out --json"]),
        Step("resize-refused", [f"resize {FIVE} --target portable -o out --json"], code=2),
        Step(
            "resize-task",
            [
                "resize @compress-auto/out:french --rank 4 -o out",
                "resize @compress-auto/out:french --rank 4 -o other --print-recipe",
            ],
        ),
    ]


def _recipes() -> list[Step]:
    whole = f"""\
[input]
adapters = ["{DEMO}/s*", {{ path = "{DEMO}/legal", name = "law" }}]
skip_bad = true

[compress]
method = "delta"
k = 8
layers = {{ "*.down_proj" = 4 }}
spectra = "cache"
quantize = "nf4"

[output]
subspace = "out/subspace"

[[export]]
tasks = ["s*"]
path = "out/adapters/{{task}}"

[[merge]]
adapters = ["law", "spanish"]
method = "ties"
density = 0.5
path = "out/merged"

[[resize]]
tasks = ["law"]
rank = 4
path = "out/resized/{{task}}"
"""
    later = """\
[input]
subspace = "@compress-auto/out"

[[export]]
tasks = ["*"]
target = "vllm"
drop_rest = true
path = "out/{task}"

[[merge]]
adapters = ["french", "italian"]
source = "subspace"
method = "knots"
path = "merged"
"""
    short = f"""\
[input]
adapters = ["{DEMO}/french", "{DEMO}/german"]

[compress]
max_error = 0.1

[output]
subspace = "out"
"""
    run, jobs = "run recipe.toml --headless", "jobs --state-dir state"
    return [
        Step("run", [f"{run} --events events.jsonl --json"], files={"recipe.toml": whole}),
        Step("run-text", [run, run], files={"recipe.toml": whole}, code=2),
        Step(
            "run-subspace",
            [f"{run} --dry-run", f"{run} --preview", f"{run} --events events.jsonl"],
            files={"recipe.toml": later},
        ),
        Step("run-flags", [f"run {THREE} --headless --method own --variance 0.99 -o out --json"]),
        Step(
            "run-recipe",
            [f"{run} --print-recipe", f"{run} --dry-run --json"],
            files={"recipe.toml": short},
        ),
        Step(
            "jobs",
            [
                f"{jobs} start recipe.toml",
                f"{jobs} follow last",
                f"{jobs} list",
                f"{jobs} show last",
                f"{jobs} show last --json",
                f"{jobs} resume last",
                f"{jobs} remove last",
                f"{jobs} --json",
            ],
            files={"recipe.toml": short},
        ),
    ]


def _errors() -> list[Step]:
    one, sub = f"{DEMO}/french", "@compress-delta/out"
    wrong = {
        "command": "compres x",
        "flag": f"compress {one} -k 4 --outptu x",
        "path": "compress nowhere -k 4 -o out",
        "no-output": f"compress {THREE} -k 4",
        "k-zero": f"compress {THREE} -k 0 -o out",
        "k-word": f"compress {THREE} -k many -o out",
        "k-and-target": f"compress {THREE} -k 4 --max-error 0.1 -o out",
        "method": f"compress {THREE} -k 4 --method best -o out",
        "auto-k": f"compress {THREE} -k 4 --method auto -o out",
        "budget": f"compress {THREE} --budget 10B -o out",
        "broken": f"compress {DEMO} -k 4 -o out",
        "names": f"compress {THREE} -k 4 --names a -o out",
        "exists": f"compress {THREE} -k 4 -o there",
        "info": f"info {one}",
        "info-path": "info nowhere --json",
        "task": f"export {sub} nobody -o out",
        "target": f"export {sub} french --target ollamma -o out",
        "no-base": f"export {sub} french --target llamacpp -o out",
        "merge-method": f"merge {THREE} --method tise -o out",
        "merge-density": f"merge {THREE} --method ties --density 1.5 -o out",
        "merge-weights": f"merge {THREE} --weights 1,2 -o out",
        "diff-one": f"diff {one}",
        "bits": f"quantize {sub} --bits 3 -o out",
        "resize": f"resize {one} -o out",
        "convert": f"convert {one} --to onnx -o out",
        "remove": f"remove {sub} nobody",
        "add": f"add {sub} {one}",
        "module": f"module {one} no.such.module",
        "recipe": "run recipe.toml --headless",
        "toml": "run broken.toml --headless",
        "job": "jobs --state-dir state show 7",
        "guide": "guide nothing",
        "coverage": f"coverage {sub} nowhere --json",
    }
    recipe = f'[input]\nadapters = ["{one}"]\n\n[compress]\nkk = 4\n\n[output]\nsubspace = "out"\n'
    files = {"there/mine.txt": "precious\n", "recipe.toml": recipe, "broken.toml": "[input\n"}
    return [Step(f"error-{name}", [line], files=files, code=2) for name, line in wrong.items()]


def _real_set(name: str, folder: Path, methods: Mapping[str, Sequence[str]]) -> list[Step]:
    short = name.partition("-")[0]
    place = f"@real/{name}"
    adapters = sorted(path.name for path in (folder / name).iterdir() if path.is_dir())
    two = f"{place}/{adapters[0]} {place}/{adapters[1]}"
    own = f"@{short}-compress"
    return [
        Step(f"{short}-analyze", [f"analyze {place} --json", f"interference {place} --json"]),
        Step(f"{short}-report", [f"report {place} -o report.md"]),
        Step(f"{short}-compress-auto", [f"compress {place} -o out --events events.jsonl"]),
        Step(f"{short}-compress-own", [f"compress {place} --method own --max-error 0.2 -o out"]),
        Step(f"{short}-compress-delta", [f"compress {place} --method delta -k 16 -o out --json"]),
        Step(f"{short}-compress-flat", [f"compress {place} --method flat -k 2 -o out"]),
        Step(
            f"{short}-compress-nf4",
            [f"compress {place} --method columns -k 16 --quantize nf4 -o out"],
        ),
        Step(
            f"{short}-look",
            [f"{c} {own}-{m}/out --json" for c in ("info", "validate") for m in ("auto", "nf4")],
        ),
        Step(
            f"{short}-export",
            [
                f"export {own}-auto/out --all -o peft",
                f"export {own}-delta/out {adapters[0]} --target vllm --drop-rest -o vllm",
            ],
        ),
        Step(
            f"{short}-convert",
            [
                f"convert {own}-flat/out --to {peer} --allow-loss -o {peer}"
                for peer in ("vlora-dev", "lorashare")
            ],
        ),
        Step(
            f"{short}-change",
            [
                f"remove sub {adapters[0]}",
                f"add sub {place}/{adapters[0]} --json",
                "compact sub --json",
            ],
            copies={"sub": f"{own}-auto/out"},
        ),
        Step(f"{short}-resize", [f"resize {two} --dynamic sv_fro 0.95 -o out"]),
        Step(
            f"{short}-diff",
            [f"diff {two} --json", f"diff {own}-auto/out:{adapters[0]} {place}/{adapters[0]}"],
        ),
        Step(
            f"{short}-merge",
            ["run recipe.toml --headless --json"],
            files={"recipe.toml": _all_merges(place, adapters[:2], methods)},
        ),
    ]


def _all_merges(place: str, names: Sequence[str], methods: Mapping[str, Sequence[str]]) -> str:
    paths = ", ".join(f'"{place}/{name}"' for name in names)
    lines = ["[input]", f"adapters = [{paths}]"]
    for method, parameters in methods.items():
        lines += ["[[merge]]", f"adapters = {json.dumps(list(names))}", f'method = "{method}"']
        lines += [f'path = "{method}"', *(["seed = 7"] if "seed" in parameters else [])]
    return "\n".join(lines) + "\n"

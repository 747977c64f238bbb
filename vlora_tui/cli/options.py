"""The options that several commands share, so that one word means one thing everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from vlora_tui.cli.bundles import Bundle

Adapters = Annotated[
    list[str],
    typer.Argument(
        help="Adapter folders, folders of them, patterns, hf://org/name.", metavar="PATHS"
    ),
]
Subspace = Annotated[
    str, typer.Argument(help="A subspace directory, or hf://org/name.", metavar="DIR")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
NoWait = Annotated[
    bool,
    typer.Option("--no-wait", help="While another command is changing it: refuse, do not wait."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave broken adapters out instead of stopping.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
OutputDir = Annotated[str, typer.Option("-o", "--output", help="Where to write.", metavar="DIR")]
EventsFile = Annotated[
    Path | None, typer.Option("--events", help="Append what happens as JSON lines.", metavar="FILE")
]
PrintRecipe = Annotated[
    bool, typer.Option("--print-recipe", help="Print the recipe that this is, and stop.")
]

# ---- how to compress: the same flags in `compress`, `run` and `demo`

Method = Annotated[
    str | None,
    typer.Option(
        "--method", help="auto, own, delta, columns or flat; auto where no k and no basis is named."
    ),
]
K = Annotated[
    str | None,
    typer.Option("-k", "--num-components", help="Directions a side, or auto (see --variance)."),
]
KA = Annotated[int | None, typer.Option("--k-a", help="Directions of the input side alone.")]
KB = Annotated[int | None, typer.Option("--k-b", help="Directions of the output side alone.")]
Variance = Annotated[
    float | None,
    typer.Option("--variance", "--variance-threshold", help="The share of dW's energy to keep."),
]
Adaptive = Annotated[
    bool, typer.Option("--adaptive-k", help="With a variance: every layer its own k.")
]
MaxError = Annotated[
    float | None, typer.Option("--max-error", help="The error that no task may exceed.")
]
MeanError = Annotated[
    float | None, typer.Option("--mean-error", help="The error that tasks may have on average.")
]
Budget = Annotated[
    str | None, typer.Option("--budget", help="Bytes on disk, such as 40MB.", metavar="SIZE")
]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layers", help="k for some layers; may be repeated.", metavar="PATTERN=K"),
]
Names = Annotated[
    list[str] | None, typer.Option("--names", help="Task names, in the adapters' order.")
]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, fp32, fp16 or bf16 on disk.")]
Refine = Annotated[int, typer.Option("--refine", help="Sweeps that refine delta's bases.")]
Quantize = Annotated[
    str | None, typer.Option("--quantize", help="none, int8, int4 or nf4: pack what is stored.")
]
SpectraAt = Annotated[
    str | None, typer.Option("--spectra", help="Spectra to choose on.", metavar="DIR")
]
LayerByLayer = Annotated[
    bool, typer.Option("--layer-by-layer", help="Accepted: the build is always layer by layer.")
]
ChunkSize = Annotated[
    int | None, typer.Option("--chunk-size", help="Accepted: memory is always bounded.")
]

WITHOUT_EFFECT = ("layer_by_layer", "chunk_size")


@dataclass(frozen=True)
class Compressing(Bundle):
    """How to compress."""

    k: K = None
    k_a: KA = None
    k_b: KB = None
    variance: Variance = None
    adaptive: Adaptive = False
    max_error: MaxError = None
    mean_error: MeanError = None
    budget: Budget = None
    method: Method = None
    layers: Layers = None
    names: Names = None
    dtype: Dtype = "auto"
    quantize: Quantize = None
    refine: Refine = 0
    spectra: SpectraAt = None
    device: Device = "auto"
    skip_bad: SkipBad = False
    layer_by_layer: LayerByLayer = False
    chunk_size: ChunkSize = None

    def flags(self) -> dict[str, Any]:
        """What `compress_recipe` takes: all that have an effect."""
        return {name: value for name, value in vars(self).items() if name not in WITHOUT_EFFECT}


@dataclass(frozen=True)
class Writing(Bundle):
    """How a command that executes a recipe goes about it."""

    force: Force = False
    dry_run: DryRun = False
    print_recipe: PrintRecipe = False
    events_file: EventsFile = None

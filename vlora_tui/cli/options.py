"""The options that several commands share, so that one word means one thing everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from vlora_tui.cli.bundles import Bundle
from vlora_tui.cli.declare import argument, option

Adapters = Annotated[
    list[str],
    argument("Adapter folders, folders of them, patterns, hf://org/name.", metavar="PATHS"),
]
Subspace = Annotated[str, argument("A subspace directory, or hf://org/name.", metavar="DIR")]
Force = Annotated[bool, option("--force", "Replace an output that exists.")]
DryRun = Annotated[bool, option("--dry-run", "Say what would be done; write nothing.")]
NoWait = Annotated[
    bool, option("--no-wait", "Refuse instead of waiting while another command changes it.")
]
SkipBad = Annotated[bool, option("--skip-bad", "Skip broken adapters instead of stopping.")]
Device = Annotated[str, option("--device", "auto, cpu, cuda or cuda:N.")]
OutputDir = Annotated[str, option("-o", "--output", "Where to write.", metavar="DIR")]
EventsFile = Annotated[
    Path | None, option("--events", "Append events as JSON lines.", metavar="FILE")
]

# ---- how to compress: the same flags in `compress`, `run` and `demo`

MaxError = Annotated[float | None, option("--max-error", "Maximum error of any task.")]
MeanError = Annotated[float | None, option("--mean-error", "Maximum mean error of the tasks.")]
Budget = Annotated[str | None, option("--budget", "Bytes on disk, such as 40MB.", metavar="SIZE")]
Names = Annotated[list[str] | None, option("--names", "Task names, in the adapters' order.")]
SpectraAt = Annotated[str | None, option("--spectra", "Choose on these spectra.", metavar="DIR")]

WITHOUT_EFFECT = ("layer_by_layer", "chunk_size")


@dataclass(frozen=True)
class Compressing(Bundle):
    """How to compress."""

    k: Annotated[
        str | None,
        option("-k", "--num-components", "Directions per side, or auto (see --variance)."),
    ] = None
    k_a: Annotated[int | None, option("--k-a", "Directions of the input side alone.")] = None
    k_b: Annotated[int | None, option("--k-b", "Directions of the output side alone.")] = None
    variance: Annotated[
        float | None,
        option("--variance", "--variance-threshold", "The share of dW's energy to keep."),
    ] = None
    adaptive: Annotated[bool, option("--adaptive-k", "With a variance: a k for each module.")] = (
        False
    )
    max_error: MaxError = None
    mean_error: MeanError = None
    budget: Budget = None
    method: Annotated[
        str | None,
        option(
            "--method", "auto, own, delta, columns or flat; auto where no k and no basis is named."
        ),
    ] = None
    layers: Annotated[
        list[str] | None,
        option("--layers", "k for some modules, or k_a,k_b; may be repeated.", metavar="PATTERN=K"),
    ] = None
    names: Names = None
    dtype: Annotated[str, option("--dtype", "auto, fp32, fp16 or bf16 on disk.")] = "auto"
    quantize: Annotated[
        str | None, option("--quantize", "none, int8, int4 or nf4: pack what is stored.")
    ] = None
    block_size: Annotated[
        int | None, option("--block-size", "Packed numbers that share a scale; by default 64.")
    ] = None
    double_quant: Annotated[
        bool | None,
        option("--double-quant/--no-double-quant", "Packed: scales of 8 bits, the default, or 16."),
    ] = None
    refine: Annotated[int, option("--refine", "Sweeps that refine delta's bases.")] = 0
    spectra: SpectraAt = None
    device: Device = "auto"
    skip_bad: SkipBad = False
    layer_by_layer: Annotated[
        bool, option("--layer-by-layer", "Accepted: the build is always module by module.")
    ] = False
    chunk_size: Annotated[
        int | None, option("--chunk-size", "Accepted: memory is always bounded.")
    ] = None

    def flags(self) -> dict[str, Any]:
        """What `compress_recipe` takes: all that have an effect."""
        return {name: value for name, value in vars(self).items() if name not in WITHOUT_EFFECT}


@dataclass(frozen=True)
class Writing(Bundle):
    """How a command that executes a recipe goes about it."""

    force: Force = False
    dry_run: DryRun = False
    print_recipe: Annotated[
        bool, option("--print-recipe", "Print the equivalent recipe and exit.")
    ] = False
    events_file: EventsFile = None

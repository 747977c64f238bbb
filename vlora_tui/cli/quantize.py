"""``quantize``: a subspace that is there, packed."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from vlora_engine.packing import BLOCK_SIZE, quantization
from vlora_tui import events
from vlora_tui.cli import options as o
from vlora_tui.cli.compress import show_subspace
from vlora_tui.cli.execute import dry_run as show_plan
from vlora_tui.cli.execute import execute
from vlora_tui.cli.flags import from_tables
from vlora_tui.cli.output import Output, plural
from vlora_tui.recipe import resolve


def quantize(
    subspace: o.Subspace,
    output: o.OutputDir,
    bits: Annotated[int | None, typer.Option("--bits", help="8 or 4; nf4 has 4.")] = None,
    method: Annotated[str, typer.Option("--method", help="symmetric or nf4.")] = "symmetric",
    block_size: Annotated[
        int, typer.Option("--block-size", help="Numbers that share a scale.")
    ] = BLOCK_SIZE,
    loadings: Annotated[
        bool, typer.Option("--loadings", help="Pack the loadings too, as int8.")
    ] = False,
    double_quant: Annotated[
        bool, typer.Option("--double-quant", help="Scales of 8 bits instead of 16.")
    ] = False,
    force: o.Force = False,
    dry_run: o.DryRun = False,
    print_recipe: o.PrintRecipe = False,
    events_file: o.EventsFile = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Pack a subspace: its bases as int8, int4 or NF4 bytes with scales, its loadings as int8.

    Errors are measured again where the adapters still are in their places, else bounded.
    """
    out = Output(json=as_json, quiet=quiet)
    packed = quantization(method, 8 if bits is None else bits, block_size=block_size)
    recipe = from_tables(
        {
            "input": {"subspace": subspace},
            "quantize": {
                "method": method,
                "bits": packed.basis.bits,
                "block_size": block_size,
                "loadings": loadings,
                "double_quant": double_quant,
            },
            "output": {"subspace": output},
        }
    )
    if print_recipe:
        print(resolve(recipe).to_toml(), end="")
        return
    if dry_run:
        show_plan(recipe, out, force=force)
        return
    watcher = execute(recipe, out, force=force, events_file=events_file)
    written = watcher.last(events.SubspaceWritten)
    out.json("quantize", {"path": written.path, **written.figures})
    show_subspace(out, watcher)
    bounded = written.figures["bounded"]
    if bounded:
        count = plural(len(bounded), "task")
        out.note(f"of {count} the adapter is gone or changed: their errors are bounds")
    out.essence(written.path)
    out.note(f"next: vlora-tui info {shlex.quote(output)}")

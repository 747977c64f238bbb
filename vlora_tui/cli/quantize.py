"""``quantize``: a subspace that is there, at 8 or 4 bits a number."""

from __future__ import annotations

import shlex
from typing import Annotated

from vlora_engine.quantization.packing import BLOCK_SIZE, quantization
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import option
from vlora_tui.cli.output import Output
from vlora_tui.pipeline import events
from vlora_tui.utils.formatting import plural


def quantize(
    out: Output,
    subspace: o.Subspace,
    output: o.OutputDir,
    *,
    bits: Annotated[int | None, option("--bits", "8 or 4; nf4 has 4.")] = None,
    method: Annotated[str, option("--method", "symmetric or nf4.")] = "symmetric",
    block_size: Annotated[int, option("--block-size", "Numbers that share a scale.")] = BLOCK_SIZE,
    loadings: Annotated[bool, option("--loadings", "Pack the loadings too, as int8.")] = False,
    double_quant: Annotated[
        bool, option("--double-quant", "Scales of 8 bits instead of 16.")
    ] = False,
    writing: o.Writing,
) -> None:
    """Quantize a subspace to 8 or 4 bits.

    Bases become int8, int4 or NF4 bytes with scales, loadings int8. What methods auto and own
    coded is coded anew to at most the bytes that its adapters' A and B would take so packed, or
    left as it is where it takes no more already.

    Errors are measured again where the adapters still are in their places, else bounded.
    """
    from vlora_tui.cli.compress import show_subspace
    from vlora_tui.cli.execute import carry_out
    from vlora_tui.cli.flags import from_tables

    notes = []
    if method == "nf4" and bits == 8:
        notes = ["--bits 8: no effect; nf4 has 4"]
        out.once(notes[0])
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
    watcher = carry_out(recipe, out, writing)
    if watcher is None:
        return
    written = watcher.last(events.SubspaceWritten)
    notes += [remark.text for remark in watcher.all(events.Remark) if remark.code == "quantize"]
    out.json("quantize", {"path": written.path, **written.figures, "notes": notes})
    show_subspace(out, watcher)
    bounded = written.figures["bounded"]
    if bounded:
        count = plural(len(bounded), "task")
        out.note(f"of {count} the adapter is gone or changed: their errors are bounds")
    out.essence(written.path)
    out.note(f"next: vlora-tui info {shlex.quote(output)}")

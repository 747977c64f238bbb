"""``compress``: adapters into one subspace."""

from __future__ import annotations

import shlex
from typing import Any

from vlora_engine.errors import told
from vlora_tui.cli import options as o
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.pipeline import events
from vlora_tui.utils.formatting import percent, plural, size, times


def compress(
    out: Output,
    adapters: o.Adapters,
    output: o.OutputDir,
    compressing: o.Compressing,
    writing: o.Writing,
) -> None:
    """Compress adapters into one subspace: a shared basis and small loadings for each task.

    Without k and without a target, k is chosen so that no task's error exceeds 5 %.
    """
    from vlora_tui.cli.execute import carry_out
    from vlora_tui.cli.flags import compress_recipe, say_once

    notes = say_once(out, compressing)
    recipe = compress_recipe(adapters, output, **compressing.flags())
    watcher = carry_out(recipe, out, writing)
    if watcher is None:
        return
    out.json("compress", {**compress_data(watcher), "notes": notes})
    show_subspace(out, watcher)
    out.essence(watcher.last(events.SubspaceWritten).path)
    quoted = shlex.quote(output)
    out.note(f"next: vlora-tui info {quoted}, or vlora-tui export {quoted} --all -o DIR")


def compress_data(watcher: Watcher) -> dict[str, Any]:
    """What a run of compress comes to, for JSON."""
    written = watcher.last(events.SubspaceWritten)
    others = watcher.last(events.OtherMethods)
    return {
        "path": written.path,
        **written.figures,
        "left_out": [
            {"name": skipped.name, "reason": skipped.reason, "error": told(skipped.error)}
            for skipped in watcher.all(events.AdapterSkipped)
        ],
        "other_methods": [] if others is None else list(others.methods),
    }


def show_subspace(out: Output, watcher: Watcher) -> None:
    """The same for people: what was used, what it costs, what else it would have cost."""
    from vlora_engine.quantization.packing import parse_quantization
    from vlora_engine.utils.json_reader import JsonFile
    from vlora_tui.pipeline.forecast import how

    written = watcher.last(events.SubspaceWritten)
    figures = written.figures
    tasks = plural(len(figures["tasks"]), "task")
    layers = plural(len(figures.get("layer_errors") or figures["k"]), "module")
    figures_file = JsonFile(written.path, "The figures of a subspace are not sound.")
    packed = parse_quantization(figures_file.value(figures["quantization"], "quantization"))
    stored = f", stored as {packed.words(figures['dtype'])}" if packed is not None else ""
    out.text(f"{how(figures)}: {tasks}, {layers}{stored}")
    out.text(
        f"error of dW  {percent(figures['mean_error'])} on average, "
        f"{percent(figures['max_error'])} at worst ({figures['worst_task']})"
    )
    out.text(
        f"on disk      {size(figures['nbytes'])} of {size(figures['input_bytes'])} "
        f"({times(figures['ratio'])}); codec ratio {times(figures['codec_ratio'])} "
        "(against A and B in 16 bit)"
    )
    others = watcher.last(events.OtherMethods)
    if others is not None:
        out.text(f"same bytes   {'; '.join(other_text(row) for row in others.methods)}")
    elif watcher.last(events.Checked) is not None:  # adapters were read, and can be again
        out.note("compare methods at every size: vlora-tui plan ADAPTERS")
    out.text(f"written to   {written.path}")
    if figures["codec_ratio"] < 1 and not figures.get("coding"):
        out.note(
            "that is more than the adapters in 16 bit: allow more error, or store in fp16 or bf16 "
            "(--dtype)"
        )


def other_text(row: dict[str, Any]) -> str:
    """One method that was not used, in a few words."""
    if row["k"] is None:
        return f"{row['method']} does not fit"
    k = f" (k = {row['k']})" if row["k"] else ""
    return (
        f"{row['method']}{k} {percent(row['mean_error'])} on average, "
        f"{percent(row['max_error'])} at worst"
    )

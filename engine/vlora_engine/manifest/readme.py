"""Write the model card in every subspace directory."""

from __future__ import annotations

from vlora_engine.manifest.manifest import Manifest


def model_card(manifest: Manifest) -> str:
    """A short README.md: what it is, how exact it is, how to open it. The same on every machine."""
    tasks = list(manifest.tasks.values())
    worst = manifest.worst
    lines = ["---", "library_name: vlora-tui", "tags: [lora, peft, vlora-subspace]"]
    if manifest.base_model and "/" not in manifest.base_model.replace("/", "", 1):
        lines.append(f"base_model: {manifest.base_model!r}")
    lines += ["---", "", "# A shared subspace of LoRA adapters", ""]
    lines.append(
        f"{len(tasks)} adapters over {len(manifest.layers)} modules, compressed by method "
        f"`{manifest.method}`, stored in {stored_in(manifest)}."
    )
    if worst:
        lines.append(
            f"Relative error of the weight change dW: mean {manifest.mean_error:.3%}, "
            f"worst {worst.error:.3%}."
        )
    lines += [
        "",
        "    vlora-tui info DIR",
        "    vlora-tui export DIR TASK -o OUT",
        "",
        f"Method: the Share paper, arXiv 2602.06043; format: vlora-subspace {manifest.version}.",
        "",
    ]
    return "\n".join(lines)


def stored_in(manifest: Manifest) -> str:
    """How the numbers are stored, in a few words for a sentence."""
    quantization = manifest.quantization
    if manifest.coding is not None:
        return "as coded bits"
    return manifest.dtype if quantization is None else quantization.words(manifest.dtype)

"""Write the model card in every subspace directory."""

from __future__ import annotations

import hashlib

from vlora_engine._version import __version__
from vlora_engine.manifest.manifest import Manifest
from vlora_engine.utils.naming import percent_text


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
        f"`{manifest.method}`, {stored_how(manifest)}."
    )
    if worst:
        lines.append(
            f"Relative error of the weight change dW: mean {percent_text(manifest.mean_error)}, "
            f"worst {percent_text(worst.error)}."
        )
    lines += [
        "",
        f"Written by vlora-tui {__version__}. What each task was made from stands in "
        "subspace.json: the sha256 of the adapter's content (`digest`) and of the task's file "
        f"(`sha256`). Of all adapters together: sha256 `{made_from(manifest)}`.",
        "",
        "    vlora-tui info DIR",
        "    vlora-tui export DIR TASK -o OUT",
        "",
        f"Method: the Share paper, arXiv 2602.06043; format: vlora-subspace {manifest.version}.",
        "",
    ]
    return "\n".join(lines)


def made_from(manifest: Manifest) -> str:
    """sha256 over the content hashes of the adapters that the tasks were made from, by name."""
    whole = hashlib.sha256()
    for name, task in sorted(manifest.tasks.items()):
        whole.update(f"{name}\0{task.digest}\n".encode())
    return whole.hexdigest()


def stored_how(manifest: Manifest) -> str:
    """How the numbers are stored, in a few words for a sentence: ``stored in F16``."""
    return f"stored {'' if manifest.coding else 'in '}{stored_in(manifest)}"


def stored_in(manifest: Manifest) -> str:
    """What the numbers are stored as, in a table: ``F16``, ``as coded bits``."""
    quantization = manifest.quantization
    if manifest.coding is not None:
        return "as coded bits"
    return manifest.dtype if quantization is None else quantization.words(manifest.dtype)

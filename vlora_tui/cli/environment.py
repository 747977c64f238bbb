"""Describes this machine (versions, devices, terminal, paths) and what of it gets in the way.

`doctor env` prints it. torch is asked for its devices, and nothing else is imported.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from vlora_engine import __version__
from vlora_engine.findings import SEVERITIES, Finding
from vlora_tui.cli.output import Output
from vlora_tui.pipeline.disk_space import free_bytes
from vlora_tui.utils import paths
from vlora_tui.utils.formatting import size

LIBRARIES = ("safetensors", "numpy", "numba", "textual", "peft", "transformers", "gguf", "ray")
LOW_SPACE = 1_000_000_000
ROOT = Path("/")


def show_environment(out: Output, fail_on: str) -> bool:
    """Print what is here and what gets in the way; whether anything is as grave as ``fail_on``."""
    environment, findings = facts(), environment_findings()
    out.json("doctor-env", {"facts": environment, "findings": [f.as_dict() for f in findings]})
    width = max(map(len, environment))
    for name, value in environment.items():
        out.text(f"{name:<{width}}  {value if value not in ('', None) else '-'}")
    if findings:
        out.text()
    for finding in findings:
        out.text(f"{finding.severity:<8} {finding.code}: {finding.what}")
        if finding.remedy:
            out.text(f"         fix: {finding.remedy}")
        out.essence(f"{finding.severity} {finding.code}")
    if fail_on == "never":
        return False
    grave = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    return any(finding.severity in grave for finding in findings)


def facts(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What is here, by name, in the order in which a person would ask."""
    return {
        "vlora-tui": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processors": len(os.sched_getaffinity(0)) if _knows_affinity() else os.cpu_count(),
        "memory": _memory(),
        "torch": _version("torch"),
        "devices": ", ".join(cuda_devices()) or "cpu",
        "libraries": ", ".join(f"{n} {v}" for n in LIBRARIES if (v := _version(n))),
        "terminal": _terminal(environ),
        "state": _path_and_free_space(paths.state_dir()),
        "cache": _path_and_free_space(paths.cache_dir()),
    }


def environment_findings(
    environ: Mapping[str, str] = os.environ, root: Path = ROOT
) -> list[Finding]:
    """What may get in the way, gravest first."""
    from vlora_tui.jobs.environment import environment_notes

    return [
        *_state_findings(paths.state_dir()),
        *_device_findings(root),
        *[
            Finding(note.code, "warning", note.what, note.remedy, place="jobs")
            for note in environment_notes(environ, root)
        ],
        *_terminal_findings(environ),
    ]


def cuda_devices() -> list[str]:
    """The GPUs that torch sees."""
    with suppress(ImportError, RuntimeError, OSError):
        import torch

        if torch.cuda.is_available():
            return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return []


def _state_findings(state: Path) -> list[Finding]:
    free = free_bytes(state)
    if not _can_be_written(state):
        what = "The state directory cannot be written: jobs cannot be kept."
        remedy = "name another with --state-dir DIR (or XDG_STATE_HOME)"
        return [Finding("no-state", "error", what, remedy, place=str(state))]
    if free is not None and free < LOW_SPACE:
        what = f"Only {size(free)} are free where jobs are kept."
        return [Finding("little-room", "warning", what, "free some space there", place=str(state))]
    return []


def _device_findings(root: Path) -> list[Finding]:
    if (root / "dev/nvidia0").exists() and not cuda_devices():
        what = "There is an NVIDIA GPU, but torch does not see it: work runs on the CPU."
        remedy = "install a torch with CUDA (https://pytorch.org/get-started/locally)"
        return [Finding("cuda-unused", "warning", what, remedy, place="torch")]
    return []


def _terminal_findings(environ: Mapping[str, str]) -> list[Finding]:
    found = []
    if environ.get("TERM", "dumb") == "dumb":
        what = "The terminal cannot place text: the interface does not open here."
        remedy = "set TERM (xterm-256color fits most), or use `vlora-tui run --headless`"
        found.append(Finding("dumb-terminal", "note", what, remedy, place="TERM"))
    encoding = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "")
    if encoding != "utf8":
        what = f"The output is {encoding or 'of no known encoding'}, not UTF-8."
        remedy = "set LC_ALL=C.UTF-8, or open the interface with --ascii"
        found.append(Finding("not-utf8", "note", what, remedy, place="locale"))
    inside = environ.get("TMUX") or environ.get("STY")
    if environ.get("SSH_CONNECTION") and not inside:
        what = "This is a remote shell: the interface closes with the connection, jobs go on."
        remedy = "`vlora-tui jobs` finds them again; tmux keeps the interface too"
        found.append(Finding("remote-shell", "note", what, remedy, place="ssh"))
    return found


def _terminal(environ: Mapping[str, str]) -> str:
    columns, lines = shutil.get_terminal_size()
    colours = "true colour" if environ.get("COLORTERM") in ("truecolor", "24bit") else ""
    multiplexer = "tmux" if environ.get("TMUX") else "screen" if environ.get("STY") else ""
    words = [environ.get("TERM", "none"), f"{columns} x {lines}", colours, multiplexer]
    words += ["colors are off"] if environ.get("NO_COLOR") else []
    return ", ".join(word for word in words if word)


def _path_and_free_space(path: Path) -> str:
    free = free_bytes(path)
    return str(path) if free is None else f"{path} ({size(free)} free)"


def _memory() -> str:
    with suppress(OSError, ValueError, IndexError):
        rows = Path("/proc/meminfo").read_text("utf-8").splitlines()
        table = {row.split(":")[0]: int(row.split()[1]) * 1024 for row in rows}
        return f"{size(table['MemAvailable'])} of {size(table['MemTotal'])} free"
    return "unknown"


def _can_be_written(path: Path) -> bool:
    """Whether a directory is there, or can be made, and takes files."""
    there = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _version(library: str) -> str:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(library)
    return ""


def _knows_affinity() -> bool:
    return hasattr(os, "sched_getaffinity")

"""Finds what around a job may end it although its session is its own, and what helps."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
_LOGIND = ("usr/lib/systemd", "usr/local/lib/systemd", "etc/systemd", "run/systemd")


@dataclass(frozen=True)
class EnvironmentNote:
    """One such thing: a code, what it means for jobs, and what helps."""

    code: str
    what: str
    remedy: str


def environment_notes(
    environ: Mapping[str, str] = os.environ, root: Path = ROOT
) -> list[EnvironmentNote]:
    """What may kill jobs here, by control group or with its machine."""
    cgroups = _text(root / "proc/self/cgroup")
    notes = []
    if _kills_user_processes(root) and re.search(r"session-[^/]*\.scope", cgroups):
        notes.append(
            EnvironmentNote(
                "kill-user-processes",
                "systemd ends all processes of a user at logout here (KillUserProcesses=yes), "
                "jobs too.",
                "start it outside the login's scope: `loginctl enable-linger`, then "
                "`systemd-run --user --scope vlora-tui`",
            )
        )
    if environ.get("SLURM_JOB_ID") or "slurm" in cgroups:
        number = environ.get("SLURM_JOB_ID", "")
        notes.append(
            EnvironmentNote(
                "slurm",
                f"This shell belongs to a Slurm allocation{f' ({number})' * bool(number)}: when "
                "that ends, Slurm ends the jobs with it.",
                "ask for enough time, or submit the recipe itself with "
                "`sbatch --wrap 'vlora-tui run --headless recipe.toml'`; "
                "`vlora-tui jobs resume` goes on with a job that was cut off",
            )
        )
    if container := _container(environ, root, cgroups):
        notes.append(
            EnvironmentNote(
                "container",
                f"This is a container ({container}): jobs end with it, and its files may too.",
                "keep the outputs and the state directory (--state-dir) on a volume; "
                "`vlora-tui jobs resume` goes on with a job that was cut off",
            )
        )
    return notes


def _kills_user_processes(root: Path) -> bool:
    """What logind.conf says; later files win, and the default of the distributions is no."""
    files = [root / folder / "logind.conf" for folder in _LOGIND]
    dropins = [f for folder in _LOGIND for f in (root / folder / "logind.conf.d").glob("*.conf")]
    answer = False
    for file in [*files, *sorted(dropins, key=lambda f: f.name)]:
        found = re.findall(r"^\s*KillUserProcesses\s*=\s*(\w+)", _text(file), re.M | re.I)
        if found:
            answer = found[-1].lower() in ("yes", "true", "on", "1")
    return answer


def _container(environ: Mapping[str, str], root: Path, cgroups: str) -> str:
    if environ.get("container"):
        return environ["container"]
    if environ.get("KUBERNETES_SERVICE_HOST") or "kubepods" in cgroups:
        return "kubernetes"
    if (root / ".dockerenv").exists() or "docker" in cgroups:
        return "docker"
    if (root / "run/.containerenv").exists() or "libpod" in cgroups:
        return "podman"
    return "lxc" if "/lxc" in cgroups else ""


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text("utf-8", "replace")
    return ""

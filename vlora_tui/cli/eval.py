"""``eval``: how compression or a merge changes a model's outputs, beside the error of dW."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlora_engine.catalog.read import is_subspace, read_manifest
from vlora_engine.errors import ParameterError
from vlora_engine.evaluation.prompts import LENGTH, MAX_TOKENS
from vlora_engine.utils.device import require_device
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.errors import FOUND
from vlora_tui.cli.hub_inputs import fetch_first
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.utils.formatting import nats, percent, plural, printable

if TYPE_CHECKING:
    from vlora_engine.evaluation.evaluate import Evaluation


def evaluate(
    out: Output,
    places: Annotated[
        list[str],
        argument("A subspace; or adapters, each compared with the bare base.", metavar="PATHS"),
    ],
    base: Annotated[
        str | None, option("--base", "The base model: a folder or a Hub id.", metavar="MODEL")
    ] = None,
    prompts: Annotated[
        list[str] | None,
        option(
            "--prompts",
            "Text: FILE for all, a folder with TASK.txt, or TASK=FILE. Else it is sampled.",
            metavar="PLACE",
        ),
    ] = None,
    task: Annotated[
        list[str] | None, option("--task", "Tasks or patterns; by default all.")
    ] = None,
    originals: Annotated[
        list[str] | None,
        option("--originals", "Where the original adapters are now.", metavar="PATH"),
    ] = None,
    merged: Annotated[
        list[str] | None,
        option(
            "--merged",
            "A merge of the adapters, compared with each; may be repeated.",
            metavar="ADAPTER",
        ),
    ] = None,
    max_tokens: Annotated[int, option("--max-tokens", "Maximum tokens per task.")] = MAX_TOKENS,
    length: Annotated[int, option("--length", "Tokens per sequence.")] = LENGTH,
    seed: Annotated[int, option("--seed", "Seed for sampling and for the shuffled control.")] = 0,
    device: o.Device = "auto",
    dtype: Annotated[
        str, option("--dtype", "Data type of the base model: auto, fp32, fp16 or bf16.")
    ] = "auto",
    fail_above: Annotated[
        float | None, option("--fail-above", "Exit 3 if the KL of any task exceeds this.")
    ] = None,
    skip_bad: Annotated[
        bool, option("--skip-bad", "Leave out tasks whose original is not found.")
    ] = False,
) -> None:
    """Measure on the base model what compression or a merge changed: KL, top-1 agreement, loss.

    The original adapter is the reference, KL is in nats a token. Of a subspace, beside the
    compressed adapter stand the bare base, and another task's adapter: a control that must come out
    worse. Of adapters, beside each stand the bare base, --merged, and another adapter.
    """
    require_device(device)
    _check_figures(fail_above, max_tokens, length)
    places = fetch_first(out, *places)
    if merged or not _is_one_subspace(places):
        from vlora_tui.cli.eval_adapters import Judging, judge_adapters

        _refuse(task=task, originals=originals)
        judging = Judging(base, prompts, max_tokens, length, seed, device, dtype, fail_above)
        judge_adapters(out, places, merged or (), judging, skip_bad=skip_bad)
        return
    subspace, *places = places[0], *fetch_first(out, *(originals or ()))
    from vlora_tui.pipeline.evaluating import Request
    from vlora_tui.pipeline.evaluating import evaluate as measure

    asked = Request(
        subspace, base, tuple(prompts or ()), tuple(task or ()), tuple(places),
        max_tokens, length, seed, device, dtype, skip_bad,
    )  # fmt: skip
    with Watcher(out) as watcher:
        found = measure(asked, warn=out.warn, progress=watcher.on_progress)
    result, errors = found.result, found.errors
    worst = result.scores[0].compressed.kl
    exceeds = fail_above is not None and not worst <= fail_above
    out.json(
        "eval",
        {
            "path": subspace,
            "method": read_manifest(subspace).method,
            "base": found.base,
            "prompts": list(found.prompts) or "sampled",
            "max_tokens": max_tokens,
            "length": length,
            "seed": seed,
            "dtype": dtype,
            **found.as_dict(),
            "left_out": found.left_out,
            "fail_above": fail_above,
            "exceeds": exceeds,
        },
    )
    show_evaluation(out, result, errors)
    out.essence(f"{worst:.6g}")
    if exceeds:
        out.note(f"the KL of {printable(result.scores[0].task)!r} exceeds {fail_above:g}")
        raise typer.Exit(FOUND)


def _is_one_subspace(places: Sequence[str]) -> bool:
    """Whether a single subspace is given; a place where nothing is counts, too."""
    if len(places) > 1:
        return False
    path = Path(places[0])
    return is_subspace(path) or (":" not in places[0] and not path.exists())


def _refuse(**given: object) -> None:
    """Refuse what only a subspace has."""
    for name, value in given.items():
        if value:
            raise ParameterError(
                f"--{name} is about a subspace, and these are adapters.",
                remedy=f"leave --{name} out",
            )


def show_evaluation(out: Output, result: Evaluation, errors: dict[str, float]) -> None:
    """A table of tasks, worst first, then means, the control and what had no place."""
    out.table(
        ("task", "dW error", "KL", "top-1", "loss", "change", "gain kept", "base KL", "shuffled"),
        [
            (
                score.task,
                percent(errors[score.task]),
                nats(score.compressed.kl),
                percent(score.compressed.agreement),
                f"{score.loss:.4f}",
                f"{score.loss_change:+.4f}",
                percent(score.gain_kept),
                nats(score.base.kl),
                nats(None if score.shuffled is None else score.shuffled.kl),
            )
            for score in result.scores
        ],
    )
    out.text()
    for word, figures in (("mean", result.mean), ("worst", result.worst)):
        out.text(
            f"{word:<9}KL {nats(figures['kl'])}, top-1 agreement {percent(figures['agreement'])}, "
            f"loss {figures['loss_change']:+.4f}, gain kept {percent(figures['gain_kept'])}"
        )
    _show_control(out, result)
    if result.unplaced:
        out.text(
            f"no place  {plural(len(result.unplaced), 'tensor')} that this model has no place for, "
            f"left out on both sides: {', '.join(result.unplaced[:4])}"
        )


def _show_control(out: Output, result: Evaluation) -> None:
    control = result.control
    if control is None:
        out.text("control  none: a single task has no other's name to take")
        return
    out.text(
        f"control  KL {nats(control['mean_kl'])} with shuffled task names, "
        f"{nats(control['min_kl'])} at least"
        + (": it fails, as it must" if control["fails"] else "")
    )
    if not control["fails"]:
        names = ", ".join(control["no_worse"][:8])
        out.warn(
            f"the control does not fail: another task's adapter does as well for {names}; "
            "on this text the figures tell little"
        )


def _check_figures(fail_above: float | None, max_tokens: int, length: int) -> None:
    if fail_above is not None and not fail_above >= 0:
        raise ParameterError("--fail-above is a KL in nats, 0 or more.", found=str(fail_above))
    if max_tokens < 1:
        raise ParameterError("--max-tokens is at least 1.", found=str(max_tokens))
    if length < 2:
        raise ParameterError("--length is at least 2.", found=str(length))

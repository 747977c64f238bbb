"""``eval ADAPTERS --merged M``: what adapters do on the base, and what a merge keeps of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from vlora_engine.errors import ParameterError
from vlora_engine.evaluation.prompts import read_prompts
from vlora_tui.cli.compare import find_all
from vlora_tui.cli.errors import FOUND
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.utils.formatting import nats, percent, plural, printable

if TYPE_CHECKING:
    from vlora_engine.adapters.model import AdapterSource
    from vlora_engine.evaluation.adapters import AdaptersEvaluation
    from vlora_engine.evaluation.evaluate import Figures


@dataclass(frozen=True)
class Judging:
    """The flags of ``eval`` that adapters and subspaces share."""

    base: str | None
    prompts: list[str] | None
    max_tokens: int
    length: int
    seed: int
    device: str
    dtype: str
    fail_above: float | None


def judge_adapters(
    out: Output, places: Sequence[str], merged: Sequence[str], judging: Judging, *, skip_bad: bool
) -> None:
    """Measure the bare base and every merge against each adapter; exit 3 above the bound."""
    if judging.fail_above is not None and not merged:
        raise ParameterError(
            "--fail-above is a bound on a merge, and none is given.", remedy="name it: --merged M"
        )
    adapters = find_all(list(places), out, skip_bad=skip_bad).adapters
    merges = find_all(list(merged), out, skip_bad=False).adapters if merged else {}
    model = judging.base or _named_base(adapters)
    names = list(adapters)
    texts = (
        read_prompts(judging.prompts, names, max_tokens=judging.max_tokens)
        if judging.prompts
        else None
    )
    from vlora_engine.evaluation.adapters import evaluate_adapters
    from vlora_engine.nn.peft_model import load_base, require_extra

    require_extra()
    with Watcher(out) as watcher:
        result = evaluate_adapters(
            load_base(model, device=judging.device, dtype=judging.dtype),
            adapters,
            merges,
            prompts=texts,
            max_tokens=judging.max_tokens,
            length=judging.length,
            seed=judging.seed,
            progress=watcher.on_progress,
        )
    worst = max(((*result.worst_kl(name), name) for name in merges), key=lambda w: w[1],
                default=None)  # fmt: skip
    bound = judging.fail_above
    exceeds = bound is not None and worst is not None and not worst[1] <= bound
    out.json(
        "eval-adapters",
        {
            "base": model,
            "prompts": "sampled" if texts is None else judging.prompts,
            "max_tokens": judging.max_tokens,
            "length": judging.length,
            "seed": judging.seed,
            "dtype": judging.dtype,
            **result.as_dict(),
            "fail_above": bound,
            "exceeds": exceeds,
        },
    )
    show_adapters(out, result)
    if worst is not None:
        out.essence(f"{worst[1]:.6g}")
        if exceeds:
            out.note(
                f"the KL of {printable(worst[2])!r} to {printable(worst[0])!r} exceeds {bound:g}"
            )
            raise typer.Exit(FOUND)
    else:
        for score in result.scores:
            out.essence(f"{score.base.kl:.6g}")


def show_adapters(out: Output, result: AdaptersEvaluation) -> None:
    """A table of every adapter and what stands beside it, then a sentence on each merge."""
    rows: list[tuple[str, ...]] = []
    for score in result.scores:
        gain = f"{score.gain:+.4f}"
        rows.append((score.adapter, "itself", "0", percent(1.0), f"{score.loss:.4f}", gain, "-"))
        rows.append(_row(score.adapter, "bare base", score.base, "0", "-"))
        for name, figures in score.merges.items():
            merge_gain = f"{score.base.loss - figures.loss:+.4f}"
            share = percent(score.gain_kept(name))
            rows.append(_row(score.adapter, name, figures, merge_gain, share))
        if score.other is not None:
            other_gain = f"{score.base.loss - score.other.loss:+.4f}"
            rows.append(_row(score.adapter, str(score.stranger), score.other, other_gain, "-"))
    out.table(("adapter", "model", "KL", "top-1", "loss", "gain", "gain kept"), rows)
    out.text()
    for name in result.merges:
        shares = [
            f"{percent(s.gain_kept(name))} of {s.adapter}'s gain"
            if s.gain_kept(name) is not None
            else f"nothing to keep of {s.adapter} (it gains less than 0.01 nats)"
            for s in result.scores
        ]
        worst, kl = result.worst_kl(name)
        out.text(f"{name} keeps {', '.join(shares)}; it is farthest from {worst}: KL {nats(kl)}")
        farther = [s.adapter for s in result.scores if s.merges[name].kl >= s.base.kl]
        if farther:
            out.warn(f"{name} is no nearer to {', '.join(farther)} than the bare base is")
    if result.unplaced:
        out.text(
            f"no place: {plural(len(result.unplaced), 'tensor')} that this model has no place for "
            f"left out everywhere: {', '.join(result.unplaced[:4])}"
        )


def _row(adapter: str, model: str, figures: Figures, gain: str, share: str) -> tuple[str, ...]:
    agreement = percent(figures.agreement)
    return adapter, model, nats(figures.kl), agreement, f"{figures.loss:.4f}", gain, share


def _named_base(adapters: dict[str, AdapterSource]) -> str:
    """The base that all adapters name."""
    named = {
        str(source.config.get("base_model_name_or_path") or "") for source in adapters.values()
    }
    if len(named) != 1 or "" in named:
        raise ParameterError(
            "The adapters do not name one base model.",
            found=", ".join(sorted(named - {""})) or "none",
            remedy="name it with --base",
        )
    return named.pop()

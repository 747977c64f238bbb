"""``resize``: adapters at another rank, at the least cost to dW."""

from __future__ import annotations

from typing import Annotated, Any

from vlora_engine.targets.registry import RANK_LIMITS, smallest_choice
from vlora_tui.cli import options as o
from vlora_tui.cli.declare import argument, option
from vlora_tui.cli.output import Output
from vlora_tui.cli.progress import Watcher
from vlora_tui.pipeline import events
from vlora_tui.utils.formatting import percent, size

MANY = 12  # adapters; more are told in a table


def resize(
    out: Output,
    adapters: Annotated[
        list[str], argument("Adapters, or DIR:TASK of subspaces.", metavar="ADAPTERS")
    ],
    output: o.OutputDir,
    *,
    rank: Annotated[
        int | None, option("--rank", "The rank of every module; with a rule, the largest.")
    ] = None,
    energy: Annotated[
        float | None, option("--energy", "The share of dW's energy to keep: 0.99.")
    ] = None,
    dynamic: Annotated[
        tuple[str, float] | None,
        option(
            "--dynamic",
            "kohya's rules, module by module: sv_fro 0.97, sv_ratio 10, sv_cumulative 0.9.",
            metavar="RULE VALUE",
        ),
    ] = None,
    target: Annotated[
        str | None,
        option(
            "--target",
            "One rank, one scale, no patterns: vllm, tgi, portable... Cuts only what is above "
            "the server's limit.",
        ),
    ] = None,
    server: Annotated[str | None, option("--for", "The same as --target.", hidden=True)] = None,
    max_error: Annotated[
        float | None,
        option(
            "--max-error",
            "The most that dW may change by; 0.01 where the server's limit cuts, else any.",
        ),
    ] = None,
    skip_bad: o.SkipBad = False,
    verify: Annotated[bool, option("--verify/--no-verify", "Read back what was written.")] = True,
    writing: o.Writing,
) -> None:
    """Give adapters another rank: cut where dW loses least, or raised without changing it.

    One adapter goes to the output itself; several, or a folder of them, to a folder each inside.
    """
    from vlora_tui.cli.execute import carry_out
    from vlora_tui.cli.flags import from_tables, given_only, is_several, require_there

    require_there(adapters)
    if server is not None:
        out.note(f"note: --for is now --target: --target {server}")
        target = target or server
    row: dict[str, Any] = {
        "path": output,
        "rank": rank,
        "energy": energy,
        "dynamic": None if dynamic is None else list(dynamic),
        "target": target,
        "max_error": max_error,
        "verify": verify,
    }
    tables: dict[str, Any] = {
        "input": {"adapters": list(dict.fromkeys(adapters)), "skip_bad": skip_bad},
        "resize": [given_only(row)],
    }
    from_tables(tables)  # what is wrong with the rule is said before the adapters are looked at
    if is_several(tables["input"]):
        tables["resize"][0]["path"] = f"{output}/{{task}}"
    recipe = from_tables(tables)
    watcher = carry_out(recipe, out, writing)
    if watcher is None:
        return
    resized = show_resizes(out, watcher)
    out.json("resize", {"resized": resized})
    for item in resized:
        out.essence(item["path"])


def show_resizes(out: Output, watcher: Watcher) -> list[dict[str, Any]]:
    """Every resized adapter, printed for people and returned for JSON."""
    verified = {event.path: event.error for event in watcher.all(events.Verified)}
    rows = []
    for event in watcher.all(events.Resized):
        proof = {"verified": event.path in verified, "verify_error": verified.get(event.path)}
        written = {"task": event.task, "path": event.path, "nbytes": event.nbytes}
        written["skipped"] = event.skipped
        report = event.report
        start = server_option(report["target"], report["ranks"][1])
        rows.append(written | report | proof | {"server_option": start or None})
    for item in rows if len(rows) <= MANY else []:
        before, after = _span(item["former_ranks"]), _span(item["ranks"])
        out.text(
            f"resized {item['task']} from rank {before} to {after}: dW changed by "
            f"{percent(item['error'])}{_worst(item)}"
        )
        read_back = ", read back and the same" if item["verified"] else ""
        if item["server_option"]:
            out.text(f"start {item['target']} with {item['server_option']}")
        how = "skipped, the same is there already:" if item["skipped"] else "written to"
        out.text(f"{how} {item['path']} ({size(item['nbytes'])}{read_back})")
    if len(rows) > MANY:
        out.table(
            ("adapter", "rank", "was", "error of dW", "worst module", "its error", "size"),
            [
                (
                    row["task"],
                    _span(row["ranks"]),
                    _span(row["former_ranks"]),
                    percent(row["error"]),
                    row["worst_module"] or "-",
                    percent(row["worst_error"]),
                    size(row["nbytes"]),
                )
                for row in rows
            ],
        )
    return rows


def server_option(target: str | None, rank: int) -> str:
    """What the server has to be started with for this rank; empty where there is no such option."""
    limit = RANK_LIMITS.get(target or "")
    choice = None if limit is None or not limit.flag else smallest_choice(limit, rank)
    return "" if limit is None or choice is None else f"{limit.flag} {choice}"


def _worst(row: dict[str, Any]) -> str:
    if not row["worst_module"]:
        return ""
    return f", at worst by {percent(row['worst_error'])} in {row['worst_module']}"


def _span(ranks: list[int]) -> str:
    return str(ranks[0]) if ranks[0] == ranks[1] else f"{ranks[0]}-{ranks[1]}"

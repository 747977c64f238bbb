"""A report as Markdown, from its data: the figures are those of the JSON, shortened for reading."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlora_engine.utils.naming import cosine_text, threshold_text
from vlora_engine.utils.ranking import ranked
from vlora_tui.report.comparison import sameness, why
from vlora_tui.utils.formatting import listed, percent, plural, printable, size, times

MATRIX = 12  # adapters whose cosines are printed as a table
PAIRS = 15  # otherwise the pairs most alike
ROWS = 200  # of a table; the JSON has all
_FIGURE = re.compile(r"(at most )?-?\d[\d.]*(e[-+]\d+)?( ?(%|x|B|kB|MB|GB|TB))?|-")


def markdown(title: str, data: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    """The whole report.

    Args:
        plots: Name of a chart to the file that holds it, as the report links it.
    """
    body: list[str] = [f"# {_plain(title)}", ""]
    body += _subspace(data, plots) if data["of"] == "subspace" else _adapters(data)
    if data["analysis"] is not None:
        body += _likeness(data["analysis"], plots)
        body += _clusters(data["analysis"])
        body += _outliers(data["analysis"], plots)
        body += _duplicates(data["analysis"])
        body += _runs(data["analysis"])
    if data.get("variance"):
        body += _variance(data["variance"], plots)
    if data.get("sizes"):
        body += _sizes(data["sizes"], plots)
    body += _findings(data)
    return "\n".join(body).rstrip() + "\n"


def _adapters(data: Mapping[str, Any]) -> list[str]:
    rows = data["adapters"]
    total = sum(row["bytes"] or 0 for row in rows)
    return [
        f"{plural(len(rows), 'adapter')}, {size(total)}.",
        "",
        *_table(
            ("adapter", "base model", "rank", "alpha", "modules", "dtype", "size"),
            [
                (
                    row["name"],
                    row["base_model"] or "-",
                    row["rank"],
                    row["alpha"],
                    row["modules"],
                    row["dtype"],
                    size(row["bytes"] or 0),
                )
                for row in rows
            ],
        ),
    ]


def _subspace(data: Mapping[str, Any], plots: Mapping[str, str]) -> list[str]:
    index = data["subspace"]
    tasks, layers = index["tasks"], data["layers"]
    words = [
        f"A subspace of method `{index['method']}`: {plural(len(tasks), 'task')}, "
        f"{plural(len(layers), 'module')}, "
        f"base model {_plain(index['base_model'] or 'not named')}. "
        f"{size(index['bytes'])} on disk, {times(index['ratio'] if tasks else None)} smaller than "
        f"the adapters (codec ratio {times(index['codec_ratio'] if tasks else None)}). Error of "
        f"dW: {percent(index['mean_error'])} on average, {percent(index['max_error'])} at worst.",
        "",
        "## Tasks",
        "",
        *_image(plots, "errors", "error of dW by task"),
        *_table(
            ("task", "error", "‖dW‖", "rank", "alpha", "modules", "size"),
            [
                (
                    task["id"],
                    ("" if task["measured"] else "at most ") + percent(task["error"]),
                    f"{task['norm']:.4g}",
                    task["rank"],
                    task["alpha"],
                    task["modules"],
                    size(task["bytes"]),
                )
                for task in tasks
            ],
        ),
        "## Modules",
        "",
        "Error of all tasks' dW together, and of the worst task.",
        "",
        *_image(plots, "layers", "error of dW by module"),
        *_table(
            ("module", "k A", "k B", "error", "worst", "task"),
            [
                (
                    row["name"],
                    row["k_a"],
                    row["k_b"],
                    percent(row["error"]),
                    percent(row["worst_error"]),
                    row["worst_task"],
                )
                for row in layers
            ],
        ),
    ]
    return words


def _likeness(analysis: Mapping[str, Any], plots: Mapping[str, str]) -> list[str]:
    names = list(analysis["similarity_matrix"])
    values = [list(row.values()) for row in analysis["similarity_matrix"].values()]
    body = [
        "## Similarity",
        "",
        "Cosine of the weight changes dW = scale · B · A over all modules.",
        "",
        *_image(plots, "similarity", "cosines of dW as a heatmap"),
    ]
    if len(names) <= MATRIX:
        heads = ("", "adapter", *(str(i + 1) for i in range(len(names))))
        rows = [
            (i + 1, name, *(cosine_text(value) for value in row))
            for i, (name, row) in enumerate(zip(names, values, strict=True))
        ]
        return [*body, *_table(heads, rows)]
    pairs = [(values[i][j], names[j], names[i]) for i in range(len(names)) for j in range(i)]
    pairs = ranked(pairs, lambda pair: pair[0])
    body += [f"The most alike of {plural(len(pairs), 'pair')}:", ""]
    return [
        *body,
        *_table(
            ("cosine", "adapter", "and"), [(cosine_text(v), a, b) for v, a, b in pairs[:PAIRS]]
        ),
    ]


def _clusters(analysis: Mapping[str, Any]) -> list[str]:
    groups = [cluster for cluster in analysis["clusters"] if len(cluster) > 1]
    alone = len(analysis["clusters"]) - len(groups)
    body = [
        "## Clusters",
        "",
        f"Every two of a cluster have a cosine of {threshold_text(analysis['threshold'])} or more. "
        f"{plural(len(groups), 'cluster')}, {plural(alone, 'adapter')} like no other, "
        f"{analysis['redundant_count']} redundant.",
        "",
    ]
    body += [f"{i}. {_listed(cluster)}" for i, cluster in enumerate(groups, start=1)]
    return [*body, ""] if groups else body


def _outliers(analysis: Mapping[str, Any], plots: Mapping[str, str]) -> list[str]:
    threshold = analysis["outlier_threshold"]
    body = [
        "## Outliers",
        "",
        "Size and direction of dW against the other adapters, over all modules and per family of "
        f"modules. A score of {threshold:g} or more is shown; 2 would show an outlier in about 5 % "
        "of collections that have none.",
        "",
        *_image(plots, "norms", "sizes of dW by family of modules"),
    ]
    if not analysis["outliers"]:
        return [*body, "None stands apart.", ""]
    rows = [
        (
            row["name"] if first else "",
            f"{reason['score']:.1f}",
            reason["family"] or "all modules",
            why({**reason, "family": None}),
        )
        for row in ranked(analysis["outliers"], lambda row: row["z_score"], lambda row: row["name"])
        for first, reason in zip([True] + [False] * 99, row["reasons"], strict=False)
    ]
    return [*body, *_table(("adapter", "score", "modules", "why"), rows)]


def _duplicates(analysis: Mapping[str, Any]) -> list[str]:
    if not analysis["duplicates"]:
        return ["## Duplicates", "", "None.", ""]
    items = [f"- {_listed(row['names'])}: {sameness(row)}" for row in analysis["duplicates"]]
    return ["## Duplicates", "", *items, ""]


def _runs(analysis: Mapping[str, Any]) -> list[str]:
    if not analysis["runs"]:
        return []
    rows = []
    for row in analysis["runs"]:
        steps = row["steps"]
        named = [
            name if steps is None or steps[i] is None else f"{name} (step {steps[i]})"
            for i, name in enumerate(row["names"])
        ]
        kind = "One run" if row["kind"] == "run" else "Same starting weights"
        rows.append(f"- {kind}: {_listed(named)}: {_plain(row['how'])}")
    return ["## Checkpoints of one run", "", *rows, ""]


def _variance(variance: Mapping[str, Any], plots: Mapping[str, str]) -> list[str]:
    rows = [
        (method, f"{100 * row['share']:g} %", row["median"], row["every"])
        for method, curves in variance["methods"].items()
        for row in curves["k_for"]
    ]
    return [
        "## Explained variance",
        "",
        "The share of ‖dW‖² that k shared directions a side hold, averaged over the adapters.",
        "",
        *_image(plots, "variance", "explained variance against k"),
        *_table(("method", "share", "k of the median module", "k of every module"), rows),
    ]


def _sizes(sizes: Mapping[str, Any], plots: Mapping[str, str]) -> list[str]:
    ratios = sorted(
        {p["ratio"] for c in sizes["curves"] if len(c["points"]) > 1 for p in c["points"]}
    )
    ratios = [ratio for ratio in ratios if ratio in (2, 4, 8, 16, 32, 64)]
    rows = []
    for curve in sizes["curves"]:
        at = {point["ratio"]: point for point in curve["points"]}
        if len(at) > 1:
            cells = [percent(at[r]["mean_error"]) if r in at else "-" for r in ratios]
            rows.append((curve["method"] + ("" if curve["exact"] else " (told)"), *cells))
    return [
        "## Size against error",
        "",
        f"Mean error of dW by codec ratio; the adapters take {size(sizes['input_bytes'])}. Told: "
        "from tables, within a few per cent; the others are exact.",
        "",
        *_image(plots, "sizes", "error of dW against codec ratio"),
        *_table(("method", *(f"{ratio:g}x" for ratio in ratios)), rows),
    ]


def _findings(data: Mapping[str, Any]) -> list[str]:
    analysis = data["analysis"] or {}
    rows = [
        ("error", row["name"], row["what"], row["remedy"]) for row in analysis.get("left_out", [])
    ]
    rows += [
        (row["severity"], row["about"] or row["where"], row["what"], row["remedy"])
        for row in data["findings"]
    ]
    if not rows:
        return ["## Findings", "", "Nothing remarkable.", ""]
    seen = dict.fromkeys(rows)
    return ["## Findings", "", *_table(("", "where", "what", "what to do"), list(seen))]


def _image(plots: Mapping[str, str], name: str, words: str) -> list[str]:
    return [f"![{words}]({plots[name]})", ""] if name in plots else []


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table; figures to the right."""
    body = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    right = [
        bool(body) and all(_FIGURE.fullmatch(row[i]) for row in body) for i in range(len(heads))
    ]
    lines = [
        "| " + " | ".join(heads) + " |",
        "|" + "|".join(" ---: " if flush else " --- " for flush in right) + "|",
    ]
    lines += ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in body[:ROWS]]
    if len(body) > ROWS:
        lines += ["", f"And {len(body) - ROWS} more; `--json` has all."]
    return [*lines, ""]


def _listed(names: Sequence[str]) -> str:
    return listed([_plain(name) for name in names], ROWS)


def _plain(text: object) -> str:
    """``text`` so that Markdown shows it as it is: names come from files."""
    safe = re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", printable(str(text).replace("\n", " ")))
    return re.sub(r"(?<=\w)\\_(?=\w)", "_", safe)  # inside a word it marks nothing

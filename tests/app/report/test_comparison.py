"""``analyze``, ``diff``, ``coverage`` and ``report``: figures, CSV, files, what is refused."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from tests.app.conftest import Cli
from tests.witnesses import make
from vlora_engine.catalog.open import load_adapter, open_adapter
from vlora_engine.compress.measure import compute_spectra
from vlora_engine.formats.peft import PeftAdapter
from vlora_engine.shared_subspace import SharedSubspace
from vlora_engine.subspace.coverage import coverage_total, subspace_coverage
from vlora_engine.utils.naming import cosine_text
from vlora_tui.report import svg
from vlora_tui.report.markdown import markdown


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six alike, a copy and an fp16 twin of one, and one whose c_attn is 40 times as strong."""
    folder = tmp_path_factory.mktemp("mixed") / "runs"
    base = make.factors(seed=1)
    for i in range(6):
        own = make.factors(seed=10 + i)
        make.write(folder / f"a{i}", {k: t + 0.2 * own[k] for k, t in base.items()})
    shutil.copytree(folder / "a2", folder / "copy of a2")
    turned = load_adapter(folder / "a2")
    prefix = "base_model.model."
    twin = {f"{prefix}{m}.lora_A.weight": -2 * a for m, a in turned.lora_a.items()}
    twin |= {f"{prefix}{m}.lora_B.weight": -b / 2 for m, b in turned.lora_b.items()}
    make.write(folder / "half", {key: t.half() for key, t in twin.items()})
    loud = {k: t * (40 if "c_attn.lora_B" in k else 1) for k, t in base.items()}
    make.write(folder / "loud", loud)
    return folder


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


# analyze


def test_analyze_names_duplicates_and_outliers_with_reasons(cli: Cli, mixed: Path) -> None:
    data = cli("analyze", mixed, "--json").data
    (group,) = data["duplicates"]
    assert sorted(group["names"]) == ["a2", "copy of a2", "half"]
    assert group["kind"] == "same change"
    assert 1e-6 < group["difference"] < 1e-3
    (outlier,) = data["outliers"]
    assert outlier["name"] == "loud"
    assert outlier["family"] in ("c_attn", None)
    assert {reason["family"] for reason in outlier["reasons"]} <= {"c_attn", None}
    families = [r for r in outlier["reasons"] if r["family"] == "c_attn"]
    assert families[0]["value"] == pytest.approx(data["family_norms"]["c_attn"]["loud"])
    assert families[0]["value"] > 20 * families[0]["typical"]
    shown = cli("analyze", mixed).out
    assert re.search(r"duplicates: .*half .*the same change in another form", shown)
    assert re.search(r"outlier \(score [\d.]+\): loud: size.*is usual \(\d+x\)", shown)
    high = cli("analyze", mixed, "--outliers", "1000", "--json").data
    assert high["outliers"] == []


def test_checkpoints_of_a_run_are_told(cli: Cli, tmp_path: Path) -> None:
    base, way = make.factors(seed=1), make.factors(seed=2)
    for step in (100, 300, 900):
        tensors = {
            k: t + 1e-4 * step * way[k] if "lora_A" in k else 1e-3 * step * way[k] + 1e-4 * t
            for k, t in base.items()
        }
        make.write(tmp_path / f"checkpoint-{step}", tensors)
    (run,) = cli("analyze", tmp_path, "--json").data["runs"]
    assert run["names"] == ["checkpoint-100", "checkpoint-300", "checkpoint-900"]
    assert (run["steps"], run["ordered_by"]) == ([100, 300, 900], "names")
    assert "checkpoints of one run" in cli("analyze", tmp_path).out


def test_analyze_reads_every_adapter_once(
    cli: Cli, mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[tuple[str, str], int] = {}
    one, many = PeftAdapter.read, PeftAdapter.read_many

    def count(self: Any, module: str) -> None:
        key = (str(self.path), module)
        read[key] = read.get(key, 0) + 1

    def counted(self: Any, module: str) -> Any:
        count(self, module)
        return one(self, module)

    def many_counted(self: Any, modules: Any) -> Any:
        for module in modules:
            count(self, module)
        return many(self, modules)

    monkeypatch.setattr(PeftAdapter, "read", counted)
    monkeypatch.setattr(PeftAdapter, "read_many", many_counted)
    cli("analyze", mixed, "--json")
    again = {Path(path).name for (path, _), times in read.items() if times > 1}
    assert again <= {"a2", "copy of a2", "half"}, "only what may be identical is looked at again"
    assert len(read) == 9 * 4


def test_bad_adapters_stop_it_or_are_left_out(cli: Cli, broken: Path) -> None:
    assert "cut-short" in cli("analyze", broken, code=2).err
    found = cli("analyze", broken, "--skip-bad", "--json")
    assert list(found.data["similarity_matrix"]) == [f"task{i:02d}" for i in range(4)]
    assert [row["name"] for row in found.data["left_out"]] == ["with-nan"]
    shutil.rmtree(broken / "cut-short")
    refused = cli("analyze", broken, code=2).err
    assert "NaN" in refused
    assert "with-nan" in refused


# CSV


def test_the_matrix_goes_through_csv_and_back_unchanged(
    cli: Cli, mixed: Path, tmp_path: Path
) -> None:
    hostile = tmp_path / 'he said "a, b"'
    shutil.copytree(mixed, hostile)
    (hostile / "a0").rename(hostile / 'x,"y')
    data = cli("analyze", hostile, "--json").data
    file = tmp_path / "new" / "m.csv"
    cli("analyze", hostile, "--csv", file, "--json")
    head, *rows = rows_of(file.read_text())
    matrix = {row[0]: dict(zip(head[1:], map(float, row[1:]), strict=True)) for row in rows}
    assert matrix == data["similarity_matrix"]
    assert 'x,"y' in matrix
    out = cli("analyze", hostile, "--csv", "-")
    assert out.out == file.read_text(), "stdout holds CSV and nothing else"
    assert "exists" in cli("analyze", hostile, "--csv", file, code=2).err
    cli("analyze", hostile, "--csv", file, "--force", "--threshold", "0.5")
    assert rows_of(file.read_text())[0] == head


def test_a_diff_as_csv_is_that_of_the_json(cli: Cli, runs: Path, built: Path) -> None:
    places = [runs / "task00", f"{built}:task01"]
    modules = cli("diff", *places, "--json").data["modules"]
    head, *rows = rows_of(cli("diff", *places, "--csv", "-").out)
    assert head[0] == "module"
    table = {row[0]: dict(zip(head[1:], map(float, row[1:]), strict=True)) for row in rows}
    assert table == modules


def test_stdout_holds_json_or_csv_and_not_both(cli: Cli, runs: Path) -> None:
    found = cli("analyze", runs, "--csv", "-", "--json", code=2)
    assert found.out == ""
    assert "JSON or CSV" in found.err


# coverage


def test_coverage_of_new_adapters(cli: Cli, runs: Path, tmp_path: Path) -> None:
    place = tmp_path / "s"
    cli("compress", runs / "task00", runs / "task01", "-o", place, "--method", "delta", "-k", "4")
    data = cli("coverage", place, runs / "task02", runs / "task03", "--json").data
    opened = SharedSubspace.load(place)
    assert [row["name"] for row in data["adapters"]] == ["task02", "task03"]
    for row in data["adapters"]:
        expected = subspace_coverage(opened, open_adapter(runs / row["name"]))
        assert row["modules"] == expected
        assert row["coverage"] == coverage_total(expected)
        kept = whole = 0.0
        weights = load_adapter(runs / row["name"])
        for module in weights.layer_names:
            dense = weights.delta(module)
            U, V = (c[module].double() for c in (opened.components_b, opened.components_a))
            kept += float((U @ dense @ V.T).square().sum())
            whole += float(dense.square().sum())
        assert row["coverage"] == pytest.approx(kept / whole, abs=1e-6)
        assert row["coverage"] < row["coverage_a"] < 1
    lines = rows_of(cli("coverage", place, runs / "task02", "--csv", "-").out)
    assert [line[1] for line in lines[1:]] == list(data["adapters"][0]["modules"])
    assert "task02" in cli("coverage", place, runs / "task02").out
    assert float(cli("coverage", place, runs / "task00", "-q").out) > 0.5
    found = cli("coverage", place, runs, "--fail-below", "0.999999", "--json", code=3)
    assert "task03" in found.data["short"]


def test_coverage_leaves_broken_adapters_out_when_told_to(
    cli: Cli, built: Path, broken: Path
) -> None:
    assert "not finite" in cli("coverage", built, broken / "with-nan", code=2).err
    found = cli("coverage", built, broken, "--skip-bad")
    assert "with-nan is left out" in found.err
    assert "task03" in found.out


def test_a_coded_collection_covers_with_a_basis_of_its_tasks(
    cli: Cli, runs: Path, tmp_path: Path
) -> None:
    cli("compress", runs, "-o", tmp_path / "s")
    told = cli("coverage", tmp_path / "s", runs / "task00", "--fail-below", "0.98")
    assert "made a shared basis" in told.err
    again = cli("coverage", tmp_path / "s", runs / "task00", "--json").data
    cli("basis", tmp_path / "s")
    kept = cli("coverage", tmp_path / "s", runs / "task00", "--json").data
    assert kept["adapters"][0]["coverage"] == pytest.approx(again["adapters"][0]["coverage"])


# report


def test_a_report_says_what_analyze_says(cli: Cli, mixed: Path, tmp_path: Path) -> None:
    place = tmp_path / "out" / "my report.md"
    data = cli("report", mixed, "-o", place, "--json").data
    analysis = cli("analyze", mixed, "--json").data
    assert data["analysis"] == {k: v for k, v in analysis.items() if k not in ("schema", "version")}
    text = place.read_text()
    for row, others in analysis["similarity_matrix"].items():
        cells = " | ".join(map(cosine_text, others.values()))
        assert f"| {row} | {cells} |" in text
    assert f"| loud | {analysis['outliers'][0]['z_score']:.1f} |" in text
    assert "a2, copy of a2, half: the same change" in text
    assert len(data["adapters"]) == 9
    assert "## Explained variance" not in text, "nothing was measured"
    links = [link.replace("%20", " ") for link in re.findall(r"\]\((.*?\.svg)\)", text)]
    assert links
    assert {str(place.parent / link) for link in links} | {str(place)} == set(data["outputs"])
    assert {p.name for p in place.parent.iterdir()} == {*links, place.name}
    for link in links:
        picture = ElementTree.parse(place.parent / link)
        assert picture.getroot().tag.endswith("svg")
        assert "prefers-color-scheme: dark" in (place.parent / link).read_text()


def test_a_report_replaces_only_when_told_to(cli: Cli, mixed: Path, tmp_path: Path) -> None:
    place = tmp_path / "r.md"
    assert str(place) in cli("report", mixed, "-o", place, "--dry-run").out
    assert not list(tmp_path.iterdir())
    (tmp_path / "r-similarity.svg").write_text("mine")
    assert "exists" in cli("report", mixed, "-o", place, code=2).err
    assert [p.name for p in tmp_path.iterdir()] == ["r-similarity.svg"]
    cli("report", mixed, "-o", place, "--force")
    first = place.read_text()
    cli("report", mixed, "-o", place, "--force")
    assert place.read_text() == first
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_what_is_measured_is_in_it(cli: Cli, runs: Path, tmp_path: Path) -> None:
    data = cli("report", runs, "-o", tmp_path / "r.md", "--measure", "--json").data
    from vlora_engine.spectra.tables import Spectra

    spectra = Spectra.load(data["variance"]["spectra"])
    own = data["variance"]["methods"]["delta"]
    shares = [spectra.variance(layer, "delta") for layer in spectra.layer_names]
    at = own["k"].index(3)
    values = sorted(float(s[list(k).index(3)]) for k, s in shares)
    assert own["least"][at] == pytest.approx(values[0])
    assert own["most"][at] == pytest.approx(values[-1])
    assert own["median"][at] == pytest.approx((values[1] + values[2]) / 2)
    plan = cli("plan", runs, "--json").data
    assert data["sizes"]["curves"] == plan["curves"]
    text = (tmp_path / "r.md").read_text()
    assert "## Size against error" in text
    assert (tmp_path / "r-variance.svg").exists()
    again = cli("report", runs, "-o", tmp_path / "again.md", "--json").data
    assert again["variance"] == data["variance"], "the cache is used without asking"


def test_spectra_of_other_adapters_are_refused(
    cli: Cli, mixed: Path, runs: Path, tmp_path: Path
) -> None:
    compute_spectra({p.name: open_adapter(p) for p in sorted(runs.iterdir())}, tmp_path / "spectra")
    words = ["report", "-o", tmp_path / "r.md", "--spectra", tmp_path / "spectra"]
    assert "other adapters" in cli(*words, mixed, code=2).err
    assert not (tmp_path / "r.md").exists()
    cli(*words, runs)
    assert "## Explained variance" in (tmp_path / "r.md").read_text()


@pytest.mark.parametrize("how", [["--method", "delta", "-k", "4"], ["--max-error", "0.1"]])
def test_a_report_on_a_subspace(cli: Cli, runs: Path, tmp_path: Path, how: list[str]) -> None:
    cli("compress", runs, "-o", tmp_path / "s", *how)
    data = cli("report", tmp_path / "s", "-o", tmp_path / "r.md", "--json").data
    errors = SharedSubspace.load(tmp_path / "s").errors()["tasks"]
    assert {task["id"]: task["error"] for task in data["subspace"]["tasks"]} == {
        name: row["error"] for name, row in errors.items()
    }
    for row in data["layers"]:
        own = {task: errors[task]["layers"][row["name"]] for task in errors}
        assert row["worst_error"] == pytest.approx(max(own.values()))
        assert own[row["worst_task"]] == pytest.approx(row["worst_error"])
        assert 0 < row["error"] <= row["worst_error"] + 1e-9
    tasks = [open_adapter(f"{tmp_path / 's'}:task0{i}") for i in range(4)]
    from vlora_engine.analysis.similarity import compute_similarity_matrix

    expected = compute_similarity_matrix(tasks)
    matrix = torch.tensor(
        [list(r.values()) for r in data["analysis"]["similarity_matrix"].values()]
    )
    torch.testing.assert_close(matrix, expected, atol=1e-6, rtol=1e-6)
    assert (tmp_path / "r-layers.svg").exists()
    assert "## Modules" in (tmp_path / "r.md").read_text()


def test_a_report_on_one_adapter_compares_nothing(cli: Cli, runs: Path, tmp_path: Path) -> None:
    data = cli("report", runs / "task00", "-o", tmp_path / "r.md", "--json").data
    assert data["analysis"] is None
    assert "## Similarity" not in (tmp_path / "r.md").read_text()


def test_names_cannot_break_out_of_a_report() -> None:
    name = "a|b](x) <script>*_`\n# h\x1b[31m"
    text = markdown(
        name,
        {
            "of": "adapters",
            "adapters": [
                {
                    **dict.fromkeys(("base_model", "rank", "alpha", "modules", "dtype", "bytes")),
                    "name": name,
                }
            ],
            "analysis": None,
            "findings": [],
        },
        {},
    )
    assert "\x1b" not in text
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert all(line.count(" | ") == 6 for line in text.splitlines() if line.startswith("| a"))
    ElementTree.fromstring(svg.matrix(name, [name, name], [[1.0, -0.5], [-0.5, 1.0]]))


def test_pictures_of_hundreds_stay_small() -> None:
    names = [f"adapter-{i}" for i in range(500)]
    values = [[1.0 if i == j else ((i * j) % 7) / 7 for j in range(500)] for i in range(500)]
    picture = svg.matrix("Cosine of dW", names, values)
    assert len(picture) < 2_000_000
    assert "mean of up to 3 x 3" in picture


def test_charts_hold_for_odd_figures() -> None:
    line = svg.Series("one", [1.0], [0.0])
    flat = svg.Series("flat", [1, 2, 4], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    pictures = [
        svg.lines("t", [line, flat], x="k", y="share"),
        svg.lines("t", [svg.Series("e", [2.0, 4.0], [1e-6, 0.5])], x="k", y="e", log_y=True),
        svg.strips("t", ["all"], [[(0.0, "dead"), (1.0, "")]], y="size"),
        svg.bars("t", ["a"], [0.0]),
        svg.matrix("t", ["a"], [[0.0]]),
    ]
    for picture in pictures:
        ElementTree.fromstring(picture)
        assert "nan" not in picture


def test_the_report_is_json_without_paths_of_its_own(cli: Cli, runs: Path, tmp_path: Path) -> None:
    cli("report", runs, "-o", tmp_path / "r.md")
    assert str(tmp_path) not in (tmp_path / "r.md").read_text()
    assert json.dumps(str(runs)) not in (tmp_path / "r.md").read_text()

"""Shows that a change of the code changed nothing that the command line does.

    python -m tests.golden_run record before.json --repo ../checkout-before
    python -m tests.golden_run record after.json
    python -m tests.golden_run compare before.json after.json

`record` runs the commands of golden_steps.py in new interpreters and writes down what came out:
exit codes, what was printed, and a hash of every file that was written. Times, temporary paths,
process ids and the version are replaced, so two records of one commit are alike. `compare` prints
what differs and exits 1 if anything does. Only the public command line is used, so modules may move
between the two. Both records must come from one machine and one torch: other ones round otherwise.
"""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import hashlib
import json
import os
import platform
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.golden_steps import Step, demo_steps, real_steps

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 900  # seconds of one command
REFERENCE = re.compile(r"@([a-z0-9][a-z0-9._-]*)")

VOLATILE = "seconds|time|created|started|ended|heartbeat|pid|host|memory"
DURATION = r"\d+(?:\.\d+)? ?(?:ms|s|min|h)\b"
REPLACEMENTS: tuple[tuple[str, str], ...] = (
    # Progress is told at most twice a second: how often depends on the machine.
    (r'(?m)^\{"seq": \d+, .*"type": "progress".*\n', ""),
    (r'(?m)^\{"seq": \d+', '{"seq": <seq>'),
    (rf'("(?:{VOLATILE})"\s*:\s*)("(?:[^"\\]|\\.)*"|-?[\d.]+(?:e[+-]?\d+)?)', r"\1<volatile>"),
    (r"\b\d{8}-\d{6}-[0-9a-f]{4}\b", "<job>"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?", "<time>"),
    (r"\b\d\d:\d\d:\d\d\b", "<time>"),
    (rf"(?<![\w.]){DURATION}(?: {DURATION})*", "<duration>"),
    (r"\b1\d{18}\b", "<ns>"),  # when a file was changed
    (r"\bspectra/[0-9a-f]{24}\b", "spectra/<key>"),  # made from paths and times of change
)


class Normaliser:
    """Replaces what differs between two runs of one commit.

    Args:
        places: Text to replace and what with, such as the temporary folder; the longest go first.
        version: The program's version.
    """

    def __init__(self, places: Mapping[str, str], version: str = "") -> None:
        self._places = sorted(places.items(), key=lambda item: -len(item[0]))
        self._rules = [(re.compile(pattern), by) for pattern, by in REPLACEMENTS]
        if version:
            self._rules.append(
                (re.compile(rf"(?<![\w.]){re.escape(version)}(?!\.?\w)"), "<version>")
            )

    def __call__(self, text: str) -> str:
        for place, name in self._places:
            text = text.replace(place, name)
        for pattern, by in self._rules:
            text = pattern.sub(by, text)
        return text


def describe(path: Path, normalise: Normaliser) -> str | None:
    """What a file holds, as text that can be compared; None where only its bytes can be."""
    data = path.read_bytes()
    if path.suffix == ".safetensors" and (listing := tensors(data)) is not None:
        return normalise(listing)
    if b"\0" in data:
        return None
    try:
        return normalise(data.decode("utf-8"))
    except UnicodeDecodeError:
        return None


def tensors(data: bytes) -> str | None:
    """A line for each tensor of a safetensors file, in the order of its header; None if torn."""
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        lines = [f"metadata {json.dumps(header.pop('__metadata__', None))}"]
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            held = hashlib.sha256(data[start + begin : start + end]).hexdigest()[:16]
            lines.append(f"{name} {entry['dtype']} {entry['shape']} at {begin}: {held}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return "\n".join(lines) + "\n"


@dataclass
class Runner:
    """Runs steps below one temporary folder, and keeps what came out.

    Args:
        repo: The checkout whose code runs.
        work: The folder; each step gets one of its own in ``steps``.
        version: The program's version there.
    """

    repo: Path
    work: Path
    version: str = ""
    texts: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        places = {str(self.work): "<work>", str(self.repo): "<repo>", sys.prefix: "<python>"}
        self.normalise = Normaliser(places, self.version)

    def command(self, line: str, cwd: Path, home: Path) -> subprocess.CompletedProcess[str]:
        """Run one command line as a user would; the home directory is an empty one at first."""
        home.mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            [sys.executable, "-m", "vlora_tui", *shlex.split(line)],
            cwd=cwd,
            env=environment(self.repo, home),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    def step(self, step: Step) -> dict[str, Any]:
        """Run a step and return its part of the record."""
        folder = self.work / "steps" / step.name
        folder.mkdir(parents=True)
        self._prepare(step, folder)
        begun, parts, code = time.monotonic(), {}, 0
        for number, line in enumerate(step.lines, start=1):
            prefix = f"{number} " if len(step.lines) > 1 else ""
            done = self.command(_resolved(line), folder, self.work / "homes" / step.name)
            code = done.returncode
            parts[f"{prefix}exit"] = self.keep(str(code))
            parts[f"{prefix}stdout"] = self.keep(self.normalise(done.stdout))
            parts[f"{prefix}stderr"] = self.keep(self.normalise(done.stderr))
        parts.update(self.files(folder))
        return {
            "commands": list(step.lines),
            "as_planned": code == step.code,
            "seconds": round(time.monotonic() - begun, 2),
            "parts": parts,
        }

    def files(self, folder: Path) -> dict[str, str]:
        """The hash of every file below ``folder``, by a name in which nothing is volatile."""
        found = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                name = self.normalise(path.relative_to(folder).as_posix())
                text = describe(path, self.normalise)
                whole = hashlib.sha256(path.read_bytes()).hexdigest() if text is None else None
                found[f"file {name}"] = whole or self.keep(text or "")
        return found

    def keep(self, text: str) -> str:
        """Its hash; the text itself is kept once."""
        key = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        self.texts[key] = text
        return key

    def _prepare(self, step: Step, folder: Path) -> None:
        for name, text in step.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(_resolved(text), "utf-8")
        for name, source in step.copies.items():
            if (folder / _resolved(source)).is_dir():
                shutil.copytree(folder / _resolved(source), folder / name)
        if step.spoil and (path := folder / step.spoil).is_file():
            data = bytearray(path.read_bytes())
            data[-1] ^= 0xFF
            path.write_bytes(data)


def environment(repo: Path, home: Path) -> dict[str, str]:
    """The whole environment of a command: one thread, no network, no terminal, no GPU."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": os.pathsep.join([str(repo), str(repo / "engine")]),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "COLUMNS": "100",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def needs(step: Step) -> set[str]:
    """The steps whose folders a step uses."""
    texts = [*step.lines, *step.files.values(), *step.copies.values()]
    return {name for text in texts for name in REFERENCE.findall(text)}


def _resolved(text: str) -> str:
    return REFERENCE.sub(r"../\1", text)


def run_all(
    steps: Sequence[Step],
    run: Callable[[Step], dict[str, Any]],
    *,
    jobs: int = 1,
    there: Iterable[str] = (),
) -> Iterator[tuple[Step, dict[str, Any]]]:
    """Run steps, each after those that it needs; yield them as they are done."""
    done, left = set(there), list(steps)
    if unknown := {n for step in steps for n in needs(step)} - done - {s.name for s in steps}:
        raise ValueError(f"steps need what no step makes: {', '.join(sorted(unknown))}")
    running: dict[Future[dict[str, Any]], Step] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while left or running:
            ready = [step for step in left if needs(step) <= done][: jobs - len(running)]
            if not ready and not running:
                raise ValueError(f"steps need each other: {', '.join(s.name for s in left)}")
            left = [step for step in left if step not in ready]
            running.update({pool.submit(run, step): step for step in ready})
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                done.add(step.name)
                yield step, future.result()


def record(
    repo: Path,
    adapters: Path | None,
    *,
    jobs: int,
    only: str,
    work: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run everything on the code of ``repo``, in ``work``; return the record."""
    setup = Runner(repo, work)
    told = setup.command("--version", work, work / "homes" / "setup")
    told.check_returncode()
    runner = Runner(repo, work, told.stdout.split()[-1])
    methods = _merge_methods(setup)
    steps = demo_steps(methods)
    (work / "steps").mkdir()
    inputs: dict[str, str] = {}
    if adapters is not None:
        shutil.copytree(adapters, work / "steps" / "real", copy_function=shutil.copyfile)
        inputs = runner.files(work / "steps" / "real")
        steps += real_steps(methods, adapters)
    steps = _chosen(steps, only)
    began, results = time.monotonic(), {}
    for step, result in run_all(steps, runner.step, jobs=jobs, there=["real"]):
        results[step.name] = result
        note = "" if result["as_planned"] else "  (an exit code that was not planned)"
        say(f"{len(results):>4}/{len(steps)}  {result['seconds']:6.1f} s  {step.name}{note}")
    for name in results:  # what later steps did to the folder of an earlier one
        after = runner.files(work / "steps" / name)
        before = {k: v for k, v in results[name]["parts"].items() if k.startswith("file ")}
        if after != before:
            results[name]["parts"]["changed later"] = runner.keep(_listed(before, after))
    if adapters is not None:
        now = runner.files(work / "steps" / "real")
        parts = {**inputs, "changed later": runner.keep(_listed(inputs, now))}
        results["real"] = {"commands": [], "as_planned": True, "seconds": 0, "parts": parts}
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = {part for result in results.values() for part in result["parts"].values()}
    return {
        "repo": str(repo),
        "commit": _commit(repo),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "scope": [only, adapters is not None],
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "steps": {step.name: results[step.name] for step in steps}
        | {name: result for name, result in results.items() if name == "real"},
        "texts": {key: text for key, text in sorted(runner.texts.items()) if key in used},
    }


def _listed(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    names = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    return "".join(f"{name}\n" for name in names)


def _merge_methods(runner: Runner) -> dict[str, list[str]]:
    """The names of the merge methods, and of the parameters of each."""
    done = runner.command("merge --list-methods --json", runner.work, runner.work / "homes/setup")
    done.check_returncode()
    rows = json.loads(done.stdout)["methods"]
    return {row["name"]: [parameter["name"] for parameter in row["parameters"]] for row in rows}


def _chosen(steps: list[Step], only: str) -> list[Step]:
    """The steps whose names match, and those that they need."""
    by_name = {step.name: step for step in steps}
    wanted = [step.name for step in steps if fnmatch.fnmatch(step.name, only)]
    chosen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in by_name and name not in chosen:
            chosen.add(name)
            wanted += needs(by_name[name])
    return [step for step in steps if step.name in chosen]


def _commit(repo: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(repo), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"


@dataclass(frozen=True)
class Difference:
    """One part of a step that is not as it was."""

    step: str
    part: str
    diff: str
    reason: str = ""  # why it may differ; empty where nothing says so


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], expected: Mapping[str, str] | None = None
) -> list[Difference]:
    """What differs between two records, step by step; ``expected``: patterns with their reasons.

    A pattern is matched with the step's name and with ``step: part``.
    """
    found = []
    names = dict.fromkeys([*before["steps"], *after["steps"]])
    if before.get("scope") != after.get("scope"):  # one is a quick one: what both have
        names = {name: None for name in names if name in before["steps"] and name in after["steps"]}
    for name in names:
        old, new = (record["steps"].get(name) for record in (before, after))
        if old is None or new is None:
            text = f"the step is only in the {'second' if old is None else 'first'} record\n"
            rows = [("step", text)]
        else:
            rows = list(_parts(old, new, before["texts"], after["texts"]))
        for part, text in rows:
            reason = _reason(name, part, expected or {})
            found.append(Difference(name, part, text, reason))
    return found


def _parts(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    texts: Mapping[str, str],
    later: Mapping[str, str],
) -> Iterator[tuple[str, str]]:
    if old["commands"] != new["commands"]:
        yield "commands", _diff("\n".join(old["commands"]), "\n".join(new["commands"]))
    for part in dict.fromkeys([*old["parts"], *new["parts"]]):
        a, b = old["parts"].get(part), new["parts"].get(part)
        if a == b:
            continue
        if a is None or b is None:
            yield part, f"only in the {'second' if a is None else 'first'} record\n"
        elif a in texts and b in later:
            yield part, _diff(texts[a], later[b])
        else:
            yield part, f"the bytes differ: {a[:12]}, {b[:12]}\n"


def _diff(old: str, new: str) -> str:
    a, b = (_lines(text) for text in (old, new))
    rows = list(difflib.unified_diff(a, b, n=1, lineterm=""))[2:]
    return "\n".join(rows) + "\n"


def _lines(text: str) -> list[str]:
    """Lines to compare; JSON on one long line is spread first."""
    lines = text.splitlines()
    if len(lines) <= 2 and len(text) > 200:
        try:
            return json.dumps(
                json.loads(text.replace("<volatile>", '"<volatile>"')), indent=1
            ).splitlines()
        except ValueError:
            pass
    return lines


def _reason(step: str, part: str, expected: Mapping[str, str]) -> str:
    for pattern, reason in expected.items():
        if fnmatch.fnmatchcase(step, pattern) or fnmatch.fnmatchcase(f"{step}: {part}", pattern):
            return reason
    return ""


def read_expected(text: str) -> dict[str, str]:
    """Lines ``PATTERN = reason``; ``#`` begins a comment."""
    expected = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        pattern, _, reason = (part.strip() for part in line.partition("="))
        if not pattern or not reason:
            raise ValueError(f"line {number}: expected PATTERN = reason, found {line.strip()!r}")
        expected[pattern] = reason
    return expected


def report(found: Sequence[Difference], *, lines: int = 30) -> str:
    """The differences as text: those without a reason with a short diff."""
    out, seen = [], ""
    for difference in found:
        if difference.reason:
            out.append(f"{difference.step}: {difference.part}: expected: {difference.reason}")
            continue
        if difference.step != seen:
            out.append(f"== {difference.step}")
            seen = difference.step
        out.append(f"-- {difference.part}")
        rows = [row[:240] for row in difference.diff.splitlines()]
        out += [f"   {row}" for row in rows[:lines]]
        if len(rows) > lines:
            out.append(f"   ... {len(rows) - lines} lines more")
    return "\n".join(out)


def _real_adapters(named: str | None) -> Path | None:
    """The folder of real adapters, where the tests look for it too."""
    named = named or os.environ.get("VLORA_TEST_ADAPTERS")
    folder = Path(named) if named else ROOT.parent / "shared" / "adapters"
    if named and not folder.is_dir():
        sys.exit(f"{folder} is not a folder of adapters")
    return folder.resolve() if folder.is_dir() else None


def _record(args: argparse.Namespace) -> int:
    adapters = None if args.quick else _real_adapters(args.adapters)
    if adapters is None and not args.quick:
        print("no real adapters: only the demo collection is used", file=sys.stderr)
    say = (
        (lambda line: None) if args.quiet else lambda line: print(line, file=sys.stderr, flush=True)
    )
    work = Path(tempfile.mkdtemp(prefix="vlora-golden-")).resolve()
    try:
        made = record(
            args.repo.resolve(), adapters, jobs=args.jobs, only=args.only, work=work, say=say
        )
    finally:
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)
    args.out.write_text(json.dumps(made, indent=1) + "\n", "utf-8")
    odd = [name for name, step in made["steps"].items() if not step["as_planned"]]
    print(
        f"{len(made['steps'])} steps of {made['commit']} in {made['seconds']} s "
        f"({made['cpu_seconds']} s of CPU), {args.out}"
    )
    if odd:
        print(f"exit codes that were not planned: {', '.join(odd)}")
    if args.keep:
        print(f"the files lie in {work}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    before, after = (json.loads(path.read_text("utf-8")) for path in (args.before, args.after))
    expected = read_expected(args.expect.read_text("utf-8")) if args.expect else {}
    for key in ("python", "machine"):
        if before[key] != after[key]:
            print(f"note: {key} differs: {before[key]}, {after[key]}")
    if before["scope"] != after["scope"]:
        print("note: the records are of different scope; only the steps of both are compared")
    found = differences(before, after, expected)
    if text := report(found, lines=args.lines):
        print(text)
    reasons = {difference.reason for difference in found}
    for pattern, reason in expected.items():
        if reason not in reasons:
            print(f"note: nothing differs for {pattern!r}; take it out of {args.expect}")
    wrong = [difference for difference in found if not difference.reason]
    steps = len({difference.step for difference in wrong})
    compared = len(before["steps"].keys() & after["steps"].keys())
    print(f"{compared} steps compared; {steps} differ, {len(found) - len(wrong)} parts as expected")
    return 1 if wrong else 0


def main(argv: Sequence[str] | None = None) -> int:
    """``record`` and ``compare``."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(required=True)
    add = actions.add_parser("record", help="run everything and write down what came out")
    add.add_argument("out", type=Path, metavar="OUT.json")
    add.add_argument("--repo", type=Path, default=ROOT, help="a checkout whose code runs instead")
    add.add_argument("--quick", action="store_true", help="the demo collection alone")
    add.add_argument("--adapters", metavar="DIR", help="the real adapters; else as the tests do")
    add.add_argument(
        "--only", default="*", metavar="PATTERN", help="steps to run, with their needs"
    )
    add.add_argument("--keep", action="store_true", help="leave the files that were written")
    add.add_argument("-q", "--quiet", action="store_true", help="no line for each step")
    add.add_argument("-j", "--jobs", type=int, default=1, help="how many steps at once")
    add.set_defaults(do=_record)
    add = actions.add_parser("compare", help="print what differs; exit 1 if anything does")
    add.add_argument("before", type=Path)
    add.add_argument("after", type=Path)
    add.add_argument("--expect", type=Path, help="lines PATTERN = reason: what may differ, and why")
    add.add_argument("--lines", type=int, default=30, help="of each diff")
    add.set_defaults(do=_compare)
    args = parser.parse_args(argv)
    return args.do(args)


if __name__ == "__main__":
    sys.exit(main())

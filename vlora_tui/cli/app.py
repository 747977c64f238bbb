"""The table of commands, loaded one by one, and what stands before a command."""

from __future__ import annotations

import importlib
import io
import logging
import sys
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from vlora_engine import __version__
from vlora_engine.errors import ParameterError
from vlora_engine.utils.sizes import parse_bytes
from vlora_tui.cli import errors
from vlora_tui.cli.argv import prepare
from vlora_tui.cli.bundles import unbundle
from vlora_tui.cli.declare import option
from vlora_tui.cli.output import Output

PROGRAM = "vlora-tui"
OPEN = "open"  # what stands for `vlora-tui PATHS`; no command of its own


class Entry(NamedTuple):
    """Where a command lives: ``vlora_tui.cli.<module>``, its function, and its line in the help."""

    module: str
    function: str
    help: str
    section: str


COMMANDS = {
    "demo": Entry("demo", "demo", "Try it on a demo collection.", "Start"),
    "guide": Entry("guide", "guide", "Guides: Python, servers, training, switching here.", "Start"),
    "inspect": Entry("look", "inspect", "List adapters, which fit together, which do not.", "Look"),
    "info": Entry("look", "info", "Show what a subspace holds, from its headers.", "Look"),
    "spectra": Entry("spectra", "spectra", "Measure what every k would cost.", "Look"),
    "plan": Entry("plan", "plan", "What every method would cost, at every size.", "Look"),
    "analyze": Entry("compare", "analyze", "Similarity, clusters, outliers, duplicates.", "Look"),
    "diff": Entry("compare", "diff", "Compare two adapters or tasks.", "Look"),
    "interference": Entry(
        "interference", "interference", "Which adapters would interfere in a merge.", "Look"
    ),
    "coverage": Entry("coverage", "coverage", "How much of an adapter a subspace holds.", "Look"),
    "report": Entry("report", "report", "Write a report on adapters, with plots.", "Look"),
    "module": Entry("module", "module", "Inspect one module of one or two adapters.", "Look"),
    "validate": Entry("care", "validate", "Check a subspace: checksums, shapes, figures.", "Look"),
    "doctor": Entry("doctor", "doctor", "Find what is wrong with adapters, and the fix.", "Look"),
    "eval": Entry(
        "eval", "evaluate", "Evaluate on the base model what compression or a merge costs.", "Look"
    ),
    "benchmark": Entry("care", "benchmark", "Time the operations of a subspace.", "Look"),
    "compress": Entry("compress", "compress", "Compress adapters into one subspace.", "Work"),
    "compact": Entry("compact", "compact", "Recompress a coded collection from scratch.", "Work"),
    "basis": Entry("basis", "basis", "Build a shared basis for a coded collection.", "Work"),
    "quantize": Entry("quantize", "quantize", "Quantize a subspace to 8 or 4 bits.", "Work"),
    "convert": Entry(
        "convert", "convert", "Convert adapters and subspaces to other formats.", "Work"
    ),
    "export": Entry(
        "export", "export", "Write tasks of a subspace as adapters, for PEFT or a server.", "Work"
    ),
    "reconstruct": Entry("export", "export", "The same as export.", "Work"),
    "add": Entry("tasks", "add", "Add an adapter to a subspace.", "Work"),
    "remove": Entry("tasks", "remove", "Remove a task from a subspace.", "Work"),
    "merge": Entry("merge", "merge", "Merge adapters into one.", "Work"),
    "resize": Entry("resize", "resize", "Change the rank of adapters.", "Work"),
    "pull": Entry("hub", "pull", "Download adapters or a subspace from the Hub.", "Work"),
    "push": Entry("hub", "push", "Publish a subspace or adapters on the Hub.", "Work"),
    "run": Entry("run", "run", "Run a recipe: a file, or flags.", "Work"),
    "config": Entry("config", "config", "Show the settings and where each comes from.", "Settings"),
    "jobs": Entry("jobs", "jobs", "List, follow, cancel, resume and remove jobs.", "Work"),
}


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else load_command(cmd_name, entry)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        from vlora_tui.cli.interface import are_places

        if args[0] not in COMMANDS and not args[0].startswith("-") and are_places(args):
            entry = Entry("interface", "open_folders", "", "")
            return OPEN, load_command(OPEN, entry), args
        names: Any = dict.fromkeys(COMMANDS)
        self.commands = names  # what "did you mean" looks through
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            rows = [(name, e.help) for name, e in COMMANDS.items() if e.section == section]
            with formatter.section(section):
                formatter.write_dl(rows)


class SectionedCommand(TyperCommand):
    """A command whose help puts options below the headings that they name."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            line = parameter.get_help_record(ctx)
            if line is not None:
                is_argument = parameter.param_type_name == "argument"
                heading = getattr(parameter, "rich_help_panel", None)
                usual = "Arguments" if is_argument else "Options"
                sections.setdefault(heading or usual, []).append(line)
        for heading, lines in sections.items():
            with formatter.section(heading):
                formatter.write_dl(lines)


def load_command(name: str, entry: Entry) -> Any:
    """Import the module of a command and build what parses its arguments."""
    function = getattr(importlib.import_module(f"vlora_tui.cli.{entry.module}"), entry.function)
    if isinstance(function, typer.Typer):  # a command with commands of its own
        return get_command(function)
    single = new_typer()
    single.command(name, cls=SectionedCommand)(unbundle(function))
    return get_command(single)


def run_app(argv: list[str]) -> int:
    """Parse and run; every error ends here."""
    words = prepare(argv)
    verbose = sum(word.count("v") if word != "--verbose" else 1 for word in words if word in _LOUD)
    out = Output(as_json="--json" in words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names come from files, of any bytes
    try:
        _set_up_logging(verbose)
        # Not through main(), which answers interrupts and closed pipes before our table can.
        command = get_command(_group())
        with command.make_context(PROGRAM, words) as context:
            code = command.invoke(context)
        if sys.stdout is not None:  # closed by whoever started us
            sys.stdout.flush()
        return code if isinstance(code, int) else errors.OK
    except typer.Exit as done:
        return int(done.exit_code)
    except BaseException as error:
        if isinstance(error, SystemExit | GeneratorExit):
            raise
        return errors.report(error, out, verbose=verbose)


_LOUD = ("-v", "-vv", "--verbose")


def _group() -> typer.Typer:
    app = new_typer(cls=LazyGroup, invoke_without_command=True)
    app.callback()(_root)
    return app


def new_typer(**settings: Any) -> typer.Typer:
    """A typer application with the settings that every command here has."""
    # Rich's markup and tracebacks would cost more than all else that --help does.
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        **settings,
    )


def _root(
    ctx: typer.Context,
    version: Annotated[bool, option("--version", "Print the version.")] = False,
    verbose: Annotated[
        int, option("-v", "--verbose", "Show the engine's log; -vv for more.", count=True)
    ] = 0,
    max_memory: Annotated[
        str | None, option("--max-memory", "Memory to keep to, such as 4GB.", metavar="SIZE")
    ] = None,
    ascii_only: Annotated[bool, option("--ascii", "Draw the interface in ASCII only.")] = False,
    theme: Annotated[
        str | None, option("--theme", "Color theme of the interface: textual-light, ...")
    ] = None,
) -> None:
    """A workbench for collections of LoRA adapters: inspect, compress, merge, export.

    Without a command, or with folders alone, it opens the interface: vlora-tui [PATHS].

    Every error shown is measured on the weight change dW = scale * B @ A that the model sees.
    """
    from vlora_tui.cli.interface import open_interface

    if version:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit
    if max_memory is not None:
        _keep_to(ctx, max_memory)
    ctx.obj = {"ascii_only": ascii_only or None, "theme": theme}
    if ctx.invoked_subcommand is None:
        raise typer.Exit(open_interface(ctx))


def _keep_to(ctx: typer.Context, max_memory: str) -> None:
    from vlora_engine.utils.memory import limited

    try:
        nbytes = parse_bytes(max_memory)
    except ParameterError as error:
        error.where = "--max-memory"
        raise
    ctx.with_resource(limited(nbytes))


def _set_up_logging(verbose: int) -> None:
    logger = logging.getLogger("vlora_engine")
    for handler in list(logger.handlers):
        if getattr(handler, "vlora_tui", False):
            logger.removeHandler(handler)
    if verbose:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        handler.vlora_tui = True  # type: ignore[attr-defined]
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)
    else:
        logger.setLevel(logging.WARNING)

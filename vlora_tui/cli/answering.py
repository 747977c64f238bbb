"""A process that has torch imported and answers an interface's commands, each in a fork of itself.

It computes nothing itself, so that it can be forked at any time: torch's threads are started in
forks alone. A fork has the imports for nothing, may be killed in the middle, and gives all of its
memory back when it has answered. `vlora_tui.tui.core.warm_commands` is the other side.
"""

from __future__ import annotations

import gc
import importlib
import io
import json
import os
import signal
import socket
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout, suppress

NEEDED = (
    "vlora_tui.cli.app",
    "vlora_tui.cli.compare",
    "vlora_tui.cli.coverage",
    "vlora_tui.cli.doctor",
    "vlora_tui.cli.execute",
    "vlora_tui.cli.flags",
    "vlora_tui.cli.interference",
    "vlora_tui.cli.merge",
    "vlora_tui.cli.module",
    "vlora_tui.pipeline.run",
    "vlora_tui.recipe.mergekit",
    "vlora_tui.recipe.reader",
    "vlora_engine.analysis.compare",
    "vlora_engine.analysis.interference_measures",
    "vlora_engine.analysis.module_view",
    "vlora_engine.adapters.check",
    "vlora_engine.catalog.open",
    "vlora_engine.doctor.examine",
    "vlora_engine.merging.merge_adapters",
    "vlora_engine.merging.retention",
    "vlora_engine.shared_subspace",
    "vlora_engine.subspace.coverage",
)
REHEARSED = ["merge", "--list-methods", "--json"]


def serve(interface: socket.socket) -> None:
    """Answer until the interface closes its end, however that ends.

    Every request is one byte and a socket of its own, on which the fork says its process id, is
    told the command, and answers (see `answer`).
    """
    interface.set_inheritable(False)
    prepare()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a fork
    while True:
        byte, descriptors, *_ = socket.recv_fds(interface, 1, 1)
        if not byte:
            return
        if not descriptors:
            continue
        try:
            is_fork = os.fork() == 0
        except OSError:  # no room for another: the interface sees its socket close
            is_fork = False
        if is_fork:
            interface.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a command may wait for its own
            try:
                answer(socket.socket(fileno=descriptors[0]))
            finally:
                os._exit(0)
        os.close(descriptors[0])


def prepare() -> None:
    """Load all that commands load, down to what parsing one of them loads; compute nothing."""
    for module in NEEDED:
        with suppress(ImportError):  # the command that needs it will say so
            importlib.import_module(module)
    with redirect_stdout(_text_file()), redirect_stderr(_text_file()):
        importlib.import_module("vlora_tui.cli.app").run_app(REHEARSED)
    gc.collect()
    gc.freeze()  # what is there stays shared between the forks


def answer(caller: socket.socket) -> None:
    """Run the command that the caller tells, and send what it printed.

    Both messages are a line of JSON: ``{"words", "cwd", "environ", "nice"}``, and
    ``{"code", "stdout", "stderr"}``. The caller's end of the socket closes when it is no longer
    wanted, and this process ends.
    """
    from vlora_tui.cli.app import run_app

    caller.sendall(b"%d\n" % os.getpid())
    line = _read_line(caller)
    if not line:
        return
    request = json.loads(line)
    threading.Thread(target=_end_with, args=(caller,), daemon=True).start()
    with suppress(OSError):
        os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    if request["nice"]:
        os.nice(request["nice"])
    printed, said = _text_file(), _text_file()
    with redirect_stdout(printed), redirect_stderr(said):
        code = run_app(request["words"])
    reply = {"code": code, "stdout": _text_in(printed), "stderr": _text_in(said)}
    caller.sendall(json.dumps(reply).encode() + b"\n")


def _read_line(caller: socket.socket) -> bytes:
    """A line, or nothing where the caller went away."""
    line = b""
    while not line.endswith(b"\n"):
        more = caller.recv(1 << 16)
        if not more:
            return b""
        line += more
    return line


def _end_with(caller: socket.socket) -> None:
    """In a thread: end when the caller is gone."""
    with suppress(OSError):
        caller.recv(1)
    os._exit(1)


def _text_file() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")


def _text_in(file: io.TextIOWrapper) -> str:
    file.flush()
    buffer = file.buffer
    assert isinstance(buffer, io.BytesIO)  # noqa: S101  (as `_text_file` made it)
    return buffer.getvalue().decode("utf-8", "replace")


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _interface:
        serve(_interface)

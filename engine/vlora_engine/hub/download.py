"""One file at a time through huggingface_hub, told as progress and stopped when asked.

huggingface_hub says how far it is through what it takes for a progress bar, some megabytes at a
time, and waits for an answer as long as it likes. So it runs in a thread of its own, while the
caller's thread tells of it and can leave at any moment.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from vlora_engine.adapters.address import hub_cache
from vlora_engine.errors import Cancelled
from vlora_engine.hub.client import endpoint
from vlora_engine.utils.run_context import RunContext

STAGE = "download"  # its units are bytes
POLL_SECONDS = 0.1


class Tally:
    """Bytes that came, of several files one after another."""

    def __init__(self, total: int, where: str, run: RunContext) -> None:
        self.total = total
        self.is_stopped = False
        self._where, self._run = where, run
        self._before, self._of_file, self._name = 0, 0.0, ""
        self._told = -1

    def begin(self, name: str) -> None:
        """The next file."""
        self._before, self._of_file, self._name = self._before + int(self._of_file), 0, name
        self.heed()
        self.tell()

    def add(self, nbytes: float) -> None:
        """Some bytes of it came; called from the thread that gets them.

        Raises:
            Cancelled: Nobody waits for them any more.
        """
        if self.is_stopped:
            raise self._cancelled_error()
        self._of_file += nbytes

    def end(self, nbytes: int) -> None:
        """All of it is here."""
        self._of_file = nbytes
        self.tell()

    def heed(self) -> None:
        """Stop if that is asked.

        Raises:
            Cancelled: It was.
        """
        if self._run.is_cancelled():
            self.is_stopped = True
            raise self._cancelled_error()

    def tell(self) -> None:
        """Say how far it is, if that is news."""
        done = min(self.total, self._before + int(self._of_file))
        if self.total and done != self._told:
            self._told = done
            self._run.report(STAGE, done, self.total, self._name)

    def _cancelled_error(self) -> Cancelled:
        return Cancelled(
            "Stopped while downloading.",
            where=self._where,
            remedy="run the same again: the files that are whole stay",
        )


def download(repo: str, name: str, commit: str, tally: Tally, *, anew: bool) -> None:
    """Have one file in the Hub's cache.

    Args:
        anew: What is in the cache under this name is of no use.

    Raises:
        Cancelled: It was asked for.
        Exception: Whatever huggingface_hub raises.
    """
    from huggingface_hub import hf_hub_download

    options: dict[str, Any] = {}
    if "tqdm_class" in inspect.signature(hf_hub_download).parameters:  # not in all versions
        options["tqdm_class"] = _bar_class(tally)

    def get() -> None:
        hf_hub_download(
            repo,
            name,
            revision=commit,
            cache_dir=hub_cache(),
            endpoint=endpoint(),
            library_name="vlora-tui",
            force_download=anew,
            **options,
        )

    _wait_for(get, tally)


def _wait_for(work: Callable[[], None], tally: Tally) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="download", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
        tally.tell()
        if thread.is_alive():
            tally.heed()
    if failed:
        raise failed[0]


def _bar_class(tally: Tally) -> type[Any]:
    """What huggingface_hub takes for a progress bar: every step of it goes to the tally."""

    class Bar:
        def __init__(
            self, *_: Any, total: float | None = None, initial: float = 0, desc: str = "", **__: Any
        ) -> None:
            self.n, self.total = initial, total
            # Xet shows a second bar, of what came over the network, beside that of what is written.
            self._counts = "downloading bytes" not in desc
            self._count(initial)

        def update(self, n: float = 1) -> None:
            self.n += n
            self._count(n)

        def close(self) -> None:
            pass

        def refresh(self, *_: Any, **__: Any) -> None:
            pass

        set_description = set_postfix_str = set_postfix = refresh

        def _count(self, n: float) -> None:
            if self._counts:
                tally.add(n)

        def __enter__(self) -> Bar:
            return self

        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            trace: TracebackType | None,
        ) -> None:
            pass

    return Bar

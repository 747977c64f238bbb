"""What the terminal sends, with every paste as text alone: no part of one is ever a key."""

from __future__ import annotations

BEGIN, END = "\x1b[200~", "\x1b[201~"  # around what is pasted, where a terminal was asked for them
ESCAPE = "\x1b"


class PastesAsText:
    """Takes escape characters out of pastes.

    Textual's parser takes an escape sequence in a paste that it does not know for keys, together
    with what comes after it: a pasted ``q`` would quit, a pasted ``w`` begin to write.
    """

    def __init__(self) -> None:
        self._is_in_paste = False
        self._before = ""  # the end of what went through: a paste may begin between two reads
        self._held = ""  # in a paste: what may be the beginning of its end

    def __call__(self, text: str) -> str:
        """What of ``text`` goes through, with what was held back before."""
        done: list[str] = []
        text = self._held + text
        self._held = ""
        while text:
            text = self._of_paste(text, done) if self._is_in_paste else self._of_keys(text, done)
        return "".join(done)

    def _of_keys(self, text: str, done: list[str]) -> str:
        known = len(self._before)
        at = (self._before + text).find(BEGIN)
        if at < 0:
            done.append(text)
            self._before = (self._before + text)[1 - len(BEGIN) :]
            return ""
        behind = at + len(BEGIN) - known
        done.append(text[:behind])
        self._before, self._is_in_paste = "", True
        return text[behind:]

    def _of_paste(self, text: str, done: list[str]) -> str:
        pasted, end, behind = text.partition(END)
        if end:
            done += [pasted.replace(ESCAPE, ""), END]
            self._is_in_paste = False
            return behind
        held = next((n for n in range(len(END) - 1, 0, -1) if text.endswith(END[:n])), 0)
        self._held = text[len(text) - held :]
        done.append(text[: len(text) - held].replace(ESCAPE, ""))
        return ""

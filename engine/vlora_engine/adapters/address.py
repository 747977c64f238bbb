"""Addresses of adapters, on a disk or on the Hub, and the paths of huggingface_hub's cache."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from vlora_engine.errors import InputError, ParameterError
from vlora_engine.utils.json_reader import is_whole
from vlora_engine.utils.naming import printable

SCHEME = "hf://"
CACHE_PLACE = "hf-cache:"  # stands for every adapter in huggingface_hub's cache
SEARCH_PLACE = "hf-search:"  # hf-search:ORG/NAME stands for the adapters of a base model
FORM = "hf://org/name[@revision][/subfolder]"

# A path would write the two slashes as one; what is meant is plain all the same.
_ADDRESS = re.compile(r"hf:/{1,2}(?=[^/])")
_REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
_LONG_REVISION = re.compile(r"refs/(?:pr|convert)/[^/]+|[^/]+")
_PAGE = re.compile(
    r"https://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[^/]+/[^/]+)"
    r"(?:/(?:tree|blob)/(?P<revision>[^/]+)(?:/(?P<below>.*))?)?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CACHED = re.compile(
    r"(?P<home>.*/models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40}))"
    r"(?P<below>(?:/.*)?)",
    re.DOTALL,
)


Kind = Literal["local", "hub", "cache", "search"]


@dataclass(frozen=True)
class AdapterRef:
    """The address of an adapter, parsed into its parts; `str` writes it again.

    Nothing here looks at a disk or asks the Hub. A folder may have a colon in its name, so that of
    a local ``DIR:TASK`` the path is all of it until `vlora_engine.catalog.locate.locate` has
    looked.

    Args:
        kind: On a disk, on the Hub, everything in the Hub's cache, or a search there.
        path: Of a local one the path as it was written; of a search the base model.
        repo: ``org/name`` on the Hub.
        revision: A branch, a tag or a commit; None is the main branch.
        subfolder: Where in the repository; empty is its root.
        task: The task, where a subspace is at that place.
    """

    kind: Kind
    path: str = ""
    repo: str = ""
    revision: str | None = None
    subfolder: str = ""
    task: str | None = None

    @classmethod
    def parse(cls, place: str | os.PathLike[str]) -> AdapterRef:
        """Parse a text or a path; a reference is returned as it is.

        Raises:
            ParameterError: It begins as a place on the Hub, and is of another form.
        """
        if isinstance(place, AdapterRef):
            return place
        text = os.fspath(place)
        if is_address(text):
            return _parsed_address(text)
        if text.startswith(CACHE_PLACE):
            return cls("cache", text.removeprefix(CACHE_PLACE))
        if text.startswith(SEARCH_PLACE):
            return cls("search", text.removeprefix(SEARCH_PLACE))
        return cls("local", text)

    @classmethod
    def on_hub(cls, place: str | os.PathLike[str]) -> AdapterRef:
        """Parse an address that has to be ``hf://org/name[@revision][/subfolder][:task]``.

        A revision with slashes in it is written with ``%2F`` for them, but for ``refs/pr/1``.

        Raises:
            ParameterError: It is not of this form.
        """
        ref = cls.parse(place)
        if not ref.is_hub:
            raise _form_error(str(ref))
        return ref

    @classmethod
    def repository(cls, name: str) -> AdapterRef:
        """Parse ``org/name``, or a whole address.

        Raises:
            ParameterError: This is no repository's name.
        """
        return _parsed_address(name if is_address(name) else f"{SCHEME}{name}")

    @classmethod
    def whole_repository(cls, name: str) -> AdapterRef:
        """Parse the name of a repository to push to: ``org/name``, and perhaps its branch.

        Raises:
            ParameterError: This is no repository's name, or names a part of one.
        """
        asked = cls.repository(name)
        if asked.subfolder or asked.task:
            raise ParameterError(
                "What is pushed goes to a whole repository.", where=name, expected="ORG/NAME"
            )
        return asked

    @classmethod
    def of_repo(
        cls, repo: str, revision: str | None = None, subfolder: str = "", task: str | None = None
    ) -> AdapterRef:
        """A place on the Hub from its parts, unchecked."""
        return cls("hub", "", repo, revision, subfolder, task)

    @classmethod
    def at(cls, path: str | os.PathLike[str], task: str | None = None) -> AdapterRef:
        """A place on a disk, and the task of the subspace there that is meant."""
        return cls("local", os.fspath(path), task=task)

    def __str__(self) -> str:
        task = f":{self.task}" if self.task else ""
        if not self.is_hub:
            return f"{_PREFIXES[self.kind]}{self.path}{task}"
        revision = "" if self.revision is None else f"@{_written(self.revision)}"
        below = f"/{self.subfolder}" if self.subfolder else ""
        return f"{SCHEME}{self.repo}{revision}{below}{task}"

    def __fspath__(self) -> str:
        return str(self)

    @property
    def text(self) -> str:
        """The address as it is written, to read it again from."""
        return str(self)

    @property
    def is_hub(self) -> bool:
        """Whether it is one place on the Hub."""
        return self.kind == "hub"

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk."""
        return self.kind == "local"

    @property
    def name(self) -> str:
        """The last part of the path or of the repository's name."""
        if not self.is_hub:
            return Path(self.base).name
        return (self.subfolder or self.repo).rpartition("/")[2]

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never comes to mean another one."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    @property
    def base(self) -> AdapterRef:
        """The address without a task."""
        return self.with_task(None)

    @property
    def expanded(self) -> Path:
        """The path of a local one, a leading ``~`` as the home directory; its task left out."""
        return expanded(self.path)

    def with_task(self, task: str | None) -> AdapterRef:
        """That task of the subspace at the same place."""
        return replace(self, task=task)


_PREFIXES = {"local": "", "cache": CACHE_PLACE, "search": SEARCH_PLACE}


def is_address(text: str | os.PathLike[str]) -> bool:
    """Whether ``text`` means a place on the Hub, well written or not."""
    return _ADDRESS.match(os.fspath(text)) is not None


def is_hub_place(text: str | os.PathLike[str]) -> bool:
    """Whether ``text`` is an address, the cache (``hf-cache:``) or a search (``hf-search:``)."""
    raw = os.fspath(text)
    return is_address(raw) or raw.startswith((CACHE_PLACE, SEARCH_PLACE))


def _parsed_address(raw: str) -> AdapterRef:
    match = _ADDRESS.match(raw)
    if match is None:
        raise _form_error(raw)
    location, colon, task = raw[match.end() :].partition(":")
    repo, at, rest = location.partition("@")
    if at:
        found = _LONG_REVISION.match(rest)
        if found is None:
            raise _form_error(raw)
        revision, below = unquote(found[0]), rest[found.end() :]
    else:
        parts = location.split("/", 2)
        repo, revision, below = "/".join(parts[:2]), "", "".join(parts[2:])
    folders = [part for part in below.split("/") if part]
    sound = _REPO.fullmatch(repo) and "--" not in repo and ".." not in repo
    if not sound or any(part in (".", "..") for part in folders) or (colon and not task):
        raise _form_error(raw)
    if at and not _is_revision(revision):
        raise _form_error(raw)
    return AdapterRef.of_repo(repo, revision or None, "/".join(folders), task or None)


def address_of_page(url: str) -> AdapterRef | None:
    """The address of a page ``https://huggingface.co/org/name[/tree/revision/folder]``; or None."""
    match = _PAGE.fullmatch(url.split("?")[0].rstrip("/"))
    if match is None:
        return None
    revision = f"@{match['revision']}" if match["revision"] else ""
    try:
        return AdapterRef.parse(f"{SCHEME}{match['repo']}{revision}/{match['below'] or ''}")
    except ParameterError:
        return None


def address_of(path: str | os.PathLike[str]) -> AdapterRef | None:
    """The Hub's address of a ``path`` in huggingface_hub's cache; None for any other path."""
    if isinstance(path, AdapterRef) and path.is_hub:
        return path
    match = _CACHED.fullmatch(os.path.abspath(path))
    if match is None:
        return None
    repo = f"{match['org']}/{match['name']}"
    return AdapterRef.of_repo(repo, match["commit"], match["below"].strip("/"))


def is_pinned_form(path: str, address: str) -> bool:
    """Whether ``path`` is ``address`` pinned to a commit."""
    if not is_address(path) or not is_address(address):
        return False
    found, wanted = AdapterRef.parse(path), AdapterRef.parse(address)
    same = (found.repo, found.subfolder, found.task) == (wanted.repo, wanted.subfolder, wanted.task)
    return same and not wanted.is_pinned


def address_text(text: str) -> str:
    """``text`` with a leading path in huggingface_hub's cache replaced by the Hub's address."""
    match = _CACHED.match(text)
    if match is None:
        return text
    repo = f"{match['org']}/{match['name']}"
    return f"{AdapterRef.of_repo(repo, match['commit'])}{text[match.start('below') :]}"


def hub_cache() -> Path:
    """The directory of huggingface_hub's cache: HF_HUB_CACHE, HF_HOME, or the default."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.path.expanduser(os.environ[variable]))
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    return Path(os.path.expanduser(home)) / "hub"


def repo_folder(repo: str) -> Path:
    """The folder of one repository in the cache."""
    return hub_cache() / f"models--{repo.replace('/', '--')}"


def snapshot_folder(repo: str, commit: str) -> Path:
    """The folder of one commit of a repository in the cache."""
    return repo_folder(repo) / "snapshots" / commit


def shelf_name(address: AdapterRef) -> str:
    """A path-like name of an address, ``/commit/org/name/subfolder``, that names are cut from."""
    below = f"/{address.subfolder}" if address.subfolder else ""
    return f"/{(address.revision or 'main')[:8]}/{address.repo}{below}"


def _written(revision: str) -> str:
    return revision if _LONG_REVISION.fullmatch(revision) else quote(revision, safe="")


def _is_revision(text: str) -> bool:
    return bool(re.fullmatch(r"[\w.][\w.+/-]*", text)) and ".." not in text


def _form_error(raw: str) -> ParameterError:
    return ParameterError(
        "This names no place on the Hugging Face Hub.",
        where=raw,
        expected=FORM,
        remedy="write it as it stands on huggingface.co, such as hf://org/name",
    )


def expanded(raw: str) -> Path:
    """``raw`` with a leading ``~`` as the home directory, if that is known."""
    try:
        return Path(raw).expanduser()
    except RuntimeError:
        return Path(raw)


def relative_source(path: str | Path | None, out: Path | None) -> str | None:
    """A source's path relative to the directory that holds the subspace ``out``.

    What came from the Hub is named by its address and commit, which hold on every machine. The
    path is absolute only where it is not known yet where the subspace will lie.

    Raises:
        InputError: The path is no text, and an index of JSON cannot hold it.
    """
    if path is None or not str(path):
        return None
    if out is None:
        return str(Path(path).absolute())
    address = address_of(AdapterRef.parse(path))
    if address is not None:
        return str(address)
    relative = Path(os.path.relpath(Path(path).absolute(), out.absolute().parent)).as_posix()
    if not is_whole(relative):
        raise InputError(
            "A path has bytes that are no text; the index of a subspace cannot hold it.",
            where=printable(str(path)),
            remedy="rename the adapter's folder, or reach it through a link with a plain name",
        )
    return relative


def absolute_source(source: str | None, home: Path) -> str | None:
    """The inverse of `relative_source`, for the subspace in the directory ``home``."""
    if source is None or is_address(source):
        return source
    return os.path.normpath(home.absolute().parent / source)

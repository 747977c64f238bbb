"""Access to huggingface_hub: imported when it is used, its errors turned into this package's.

Its settings are the user's: HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE. A token
is read by huggingface_hub itself and goes to the Hub alone; `without_secrets` keeps it out of
messages.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vlora_engine import errors
from vlora_engine._version import __version__
from vlora_engine.adapters.address import AdapterRef, hub_cache
from vlora_engine.errors import VLoRAError
from vlora_engine.utils.safetensors_file import write_error

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Where = AdapterRef | str
Judge = Callable[[Where, Any], VLoRAError | None]

SECONDS = 15.0  # to wait for an answer about a repository
_TRANSPORT = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def endpoint() -> str:
    """The URL of the Hub: HF_ENDPOINT, or huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def api() -> HfApi:
    """The Hub's client, loaded when it is first asked for."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), library_name="vlora-tui", library_version=__version__)


@contextmanager
def hub_errors(where: Where) -> Iterator[None]:
    """Turn what huggingface_hub raises in this block into errors of this package.

    Raises:
        NotFoundError: No such repository, revision or file.
        HubAccessError: Gated, private, or more than the token may do.
        HubOfflineError: The Hub cannot be reached, or is switched off here.
        HubError: Any other answer that is none.
        StorageError: The cache cannot be written.
    """
    try:
        yield
    except VLoRAError:
        raise
    except Exception as error:
        translated = _translated(error, where)
        if translated is None:
            raise
        raise translated from None


@contextmanager
def silence() -> Iterator[None]:
    """Switch huggingface_hub's progress bars off for this block; progress is reported instead."""
    from huggingface_hub import utils

    were_off = utils.are_progress_bars_disabled()
    if not were_off:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            utils.enable_progress_bars()


def without_secrets(text: str) -> str:
    """``text`` without anything that could be a token or a password."""
    for secret in (os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN")):
        if secret and len(secret) > 3:
            text = text.replace(secret, "***")
    text = re.sub(r"(https?://)[^/\s@]+@", r"\1", text)
    return _TOKEN.sub("hf_***", text)


def _translated(error: Exception, where: Where) -> VLoRAError | None:
    """This package's error for one of huggingface_hub, by the first row of the table that fits."""
    for kind, judge in _table():
        if isinstance(error, kind):
            return judge(where, error)
    if _is_transport(error) or isinstance(error, ConnectionError | TimeoutError):
        return _unreachable_error(where, error)
    return _broken_off_error(where, error) if _is_theirs(error) else None


def _table() -> list[tuple[type[Exception], Judge]]:
    """What huggingface_hub raises, each kind before those that it is one of."""
    from huggingface_hub import errors as theirs

    return [
        (theirs.OfflineModeIsEnabled, _switched_off_error),
        (theirs.GatedRepoError, _gated_error),
        (theirs.RepositoryNotFoundError, _no_repository_error),
        (theirs.RevisionNotFoundError, _no_revision_error),
        (theirs.HFValidationError, _name_error),
        (theirs.LocalEntryNotFoundError, _nowhere_error),
        (theirs.EntryNotFoundError, _no_file_error),
        (theirs.HfHubHTTPError, _http_error),
        (theirs.FileMetadataError, _not_the_hub_error),
        (ValueError, _of_cause),
    ]


def _is_theirs(error: Exception) -> bool:
    """Whether it was raised by a download library, or by the operating system below it."""
    is_library = type(error).__module__.split(".")[0] in ("huggingface_hub", "hf_xet")
    return is_library or isinstance(error, OSError | RuntimeError)


def _is_transport(error: BaseException) -> bool:
    return any(kind.__module__.split(".")[0] in _TRANSPORT for kind in type(error).__mro__)


def host() -> str:
    """The Hub's host, without what an address may carry beside it."""
    return urlsplit(endpoint()).hostname or "the Hub"


def _of_cause(where: Where, error: Exception) -> VLoRAError | None:
    cause = error.__cause__
    return _translated(cause, where) if isinstance(cause, Exception) else None


def _nowhere_error(where: Where, error: Exception) -> VLoRAError:
    """A file is not in the cache, and the Hub was not to be had, for a reason of its own."""
    return _of_cause(where, error) or _unreachable_error(where, error)


def _unreachable_error(where: Where, error: Exception) -> VLoRAError:
    return errors.HubOfflineError(
        "The Hub cannot be reached.",
        where=str(where),
        found=f"{type(error).__name__} from {host()}",
        remedy="check the network, HF_ENDPOINT and the proxy; "
        "vlora-tui inspect --hf-cache lists what is here already",
    )


def _switched_off_error(where: Where, error: Exception) -> VLoRAError:
    return errors.HubOfflineError(
        "The Hub is switched off here (HF_HUB_OFFLINE).",
        where=str(where),
        remedy="unset HF_HUB_OFFLINE, or work with what is in the cache: "
        "vlora-tui inspect --hf-cache",
    )


def _no_revision_error(where: Where, error: Exception) -> VLoRAError:
    revision = where.revision if isinstance(where, AdapterRef) else None
    return errors.NotFoundError(
        f"The repository has no revision {revision or 'main'!r}.",
        where=str(where),
        expected="a branch, a tag or a whole commit hash",
        remedy="look at its branches and commits on the Hub; without @ it is the main branch",
    )


def _name_error(where: Where, error: Exception) -> VLoRAError:
    found = without_secrets(_first_line(error))
    return errors.ParameterError("The Hub takes no such name.", where=str(where), found=found)


def _no_file_error(where: Where, error: Exception) -> VLoRAError:
    return errors.NotFoundError(
        "The repository has no such file.",
        where=str(where),
        remedy="the repository may have changed just now: try again",
    )


def _not_the_hub_error(where: Where, error: Exception) -> VLoRAError:
    return errors.HubError(
        "What answers is not the Hub.",
        where=str(where),
        found=f"an answer of {host()} without commit or checksum",
        remedy="check HF_ENDPOINT, and the proxy on the way",
    )


def _broken_off_error(where: Where, error: Exception) -> VLoRAError:
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return write_error(hub_cache(), error)
    return errors.HubError(
        "The transfer did not come to its end.",
        where=str(where),
        found=without_secrets(_first_line(error)),
        remedy="run the same again: the files that are whole stay",
    )


def _gated_error(where: Where, error: Exception) -> errors.HubAccessError:
    repo = where.repo if isinstance(where, AdapterRef) else ""
    return errors.HubAccessError(
        "The repository is gated: its owner decides who may read it.",
        where=str(where),
        remedy=f"ask for access on {endpoint_page(repo)}, then {_LOG_IN}",
    )


def endpoint_page(repo: str) -> str:
    """The page of a repository, for a browser."""
    parts = urlsplit(endpoint())
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}/{repo}"


def _no_repository_error(where: Where, error: Exception) -> errors.NotFoundError:
    return errors.NotFoundError(
        "There is no such repository on the Hub, or it is private.",
        where=str(where),
        remedy=f"check the spelling; if it is private, {_LOG_IN}",
    )


def _http_error(where: Where, error: Any) -> VLoRAError:
    status = getattr(error.response, "status_code", None)
    message = without_secrets(error.server_message or "") or None
    if status == 401:
        return errors.HubAccessError(
            "The Hub does not accept the token.", where=str(where), found=message, remedy=_LOG_IN
        )
    if status == 403:
        return errors.HubAccessError(
            "The token does not allow this.",
            where=str(where),
            found=message,
            remedy="use a token with the permission that it takes (write, to push): "
            + _LOG_IN.replace("log in", "log in again"),
        )
    if status == 429:
        return errors.HubError(
            "The Hub answers no more for a while: too many requests.",
            where=str(where),
            remedy="wait some minutes; with a token the limit is higher",
        )
    if status is not None and status >= 500:
        return errors.HubError(
            f"The Hub has a fault of its own (HTTP {status}).",
            where=str(where),
            remedy="try again later; status.huggingface.co says more",
        )
    return errors.HubError(f"The Hub refused (HTTP {status}).", where=str(where), found=message)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

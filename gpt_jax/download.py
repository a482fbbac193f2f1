"""Downloads over HTTP: retried, bounded, and never left half done.

`fetch` returns what a URL serves; `download` stores it, and resumes where an earlier attempt or
process stopped. Neither knows what it downloads: callers word the errors for their users.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gpt_jax.storage import write_atomically

T = TypeVar("T")
HEADERS = {"User-Agent": "gpt_jax"}


class FailedDownload(Exception):
    """A download that failed; its text is the reason, in a few words."""


class RefusedDownload(FailedDownload):
    """The server does not serve this (status 404, say): another attempt is no use."""


class TooLarge(FailedDownload):
    """More bytes than `DownloadLimits.max_bytes`."""


@dataclasses.dataclass(frozen=True)
class DownloadLimits:
    """How long to try, and for how much.

    Attributes:
      tries: number of attempts, at most.
      pause_seconds: before the second attempt; doubled before each next one.
      timeout_seconds: to connect; between two packets.
      block_bytes: read at once: what a broken connection loses.
      total_seconds: for all attempts together; None is no limit.
      max_bytes: more than these are refused; None is no limit.
    """

    tries: int
    pause_seconds: float
    timeout_seconds: tuple[float, float]
    block_bytes: int
    total_seconds: float | None = None
    max_bytes: int | None = None


def fetch(
    url: str, limits: DownloadLimits, progress: Callable[[int, int | None], None] | None = None
) -> bytes:
    """Returns all that a URL serves; calls `progress` with (bytes so far, total bytes or None).

    Raises:
      FailedDownload: the reason.
    """
    return _retry(functools.partial(_fetch_once, url, limits, progress), limits)


def download(url: str, path: Path, limits: DownloadLimits) -> None:
    """Stores what a URL serves at `path`, whole; resumes an unfinished download.

    The length is checked against the one that the server names.

    Raises:
      FailedDownload: the reason. What was received stays beside `path`, to be resumed.
      OSError: it can't be written.
    """
    unfinished = unfinished_path(path)
    _retry(functools.partial(_download_rest, url, unfinished, limits), limits)
    unfinished.replace(path)


def unfinished_path(path: Path) -> Path:
    """Returns where `download` keeps an unfinished file."""
    return path.with_name(path.name + ".part")


def download_error_reason(error: Exception) -> str:
    """Returns why a download failed in a few words; the messages of requests take several lines."""
    import requests

    if isinstance(error, requests.Timeout):
        return "timed out"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not accepted"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy does not connect"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return " ".join(str(error).split())


def _retry(attempt: Callable[[float | None], T], limits: DownloadLimits) -> T:
    """Returns `attempt(deadline)`; failures that may pass are tried again.

    Those are no connection, a file that breaks off, and the statuses 429 and 5xx.
    """
    import requests

    deadline = None
    if limits.total_seconds is not None:
        deadline = time.monotonic() + limits.total_seconds
    for number in range(limits.tries):
        try:
            return attempt(deadline)
        except (requests.RequestException, EOFError) as error:
            response = getattr(error, "response", None)
            status = None if response is None else response.status_code
            is_refused = status is not None and status < 500 and status != 429
            pause = limits.pause_seconds * 2**number
            is_late = deadline is not None and time.monotonic() + pause > deadline
            if is_refused or is_late or number == limits.tries - 1:
                kind = RefusedDownload if is_refused else FailedDownload
                raise kind(download_error_reason(error)) from error
            time.sleep(pause)
    raise AssertionError("the loop returns or raises")


def _receive(
    response: Any,
    write: Callable[[bytes], object],
    limits: DownloadLimits,
    deadline: float | None,
    progress: Callable[[int, int | None], None] | None = None,
    total: int | None = None,
) -> None:
    size = 0
    for block in response.iter_content(limits.block_bytes):
        size += len(block)
        if limits.max_bytes is not None and size > limits.max_bytes:
            raise TooLarge(f"more than {limits.max_bytes:,} bytes")
        if deadline is not None and time.monotonic() > deadline:
            raise FailedDownload(f"only {size:,} bytes in {limits.total_seconds} s")
        write(block)
        if progress:
            progress(size, total)


def _fetch_once(
    url: str,
    limits: DownloadLimits,
    progress: Callable[[int, int | None], None] | None,
    deadline: float | None,
) -> bytes:
    import requests

    blocks: list[bytes] = []
    with requests.get(
        url, stream=True, timeout=limits.timeout_seconds, headers=HEADERS
    ) as response:
        response.raise_for_status()
        total = int(response.headers.get("Content-Length", 0)) or None
        _receive(response, blocks.append, limits, deadline, progress, total)
    return b"".join(blocks)


def _download_rest(
    url: str, unfinished: Path, limits: DownloadLimits, deadline: float | None
) -> None:
    import requests

    have = unfinished.stat().st_size if unfinished.exists() else 0
    headers = {**HEADERS, "Accept-Encoding": "identity"}
    tag = unfinished.with_name(unfinished.name + ".tag")  # resume only the same file
    if have and tag.exists() and (version := tag.read_text("utf-8")):
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    with requests.get(
        url, stream=True, timeout=limits.timeout_seconds, headers=headers
    ) as response:
        is_resumed, total = _check_answer(response, unfinished, have, limits)
        write_atomically(tag, _version(response.headers))
        with unfinished.open("ab" if is_resumed else "wb") as file:
            _receive(response, file.write, limits, deadline)
            file.flush()
            os.fsync(file.fileno())
    if (size := unfinished.stat().st_size) != total:
        if size > total:
            unfinished.unlink()
        raise EOFError(f"{size:,} of {total:,} bytes")
    tag.unlink(missing_ok=True)


def _check_answer(
    response: Any, unfinished: Path, have: int, limits: DownloadLimits
) -> tuple[bool, int]:
    """Returns whether a server resumes after `have` bytes, and the length of the whole file."""
    if response.status_code == 416:  # the stored bytes are not the beginning of what is served
        unfinished.unlink(missing_ok=True)
        raise EOFError("the file has changed on the server")
    response.raise_for_status()
    is_resumed = response.status_code == 206
    begins = f"bytes {have}-"
    if is_resumed and not response.headers.get("Content-Range", "").startswith(begins):
        unfinished.unlink(missing_ok=True)
        raise EOFError("the server sent another range than asked for")
    length = response.headers.get("Content-Length", "")
    if not length.isdigit():
        raise EOFError("the server names no length")
    total = int(length) + (have if is_resumed else 0)
    if limits.max_bytes is not None and total > limits.max_bytes:
        raise TooLarge(f"{total:,} bytes, more than the {limits.max_bytes:,} expected")
    return is_resumed, total


def _version(headers: Any) -> str:
    """Returns what identifies the served file for If-Range: a strong ETag, else its date."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")

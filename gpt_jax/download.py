"""Downloads over HTTP: retried, bounded, and never left half done.

`fetch` returns what a URL serves; `download` stores it, and resumes where an earlier attempt or
process stopped. Neither knows what it downloads: callers word the errors for their users.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, TypeVar

from gpt_jax.storage import write_atomically

T = TypeVar("T")
HEADERS = {"User-Agent": "gpt_jax"}
MAX_BLOCKS = 16  # received and not yet written


class FailedDownload(Exception):
    """A download that failed; its text is the reason, in a few words."""


class RefusedDownload(FailedDownload):
    """The server does not serve this (status 404, say): another attempt is no use."""


class TooLarge(FailedDownload):
    """More bytes than `DownloadLimits.max_bytes`."""


@dataclasses.dataclass(frozen=True)
class DownloadLimits:
    """How long to try, and for how much. A server's word on either is not taken.

    Attributes:
      tries: number of attempts, at most.
      pause_seconds: before the second attempt; doubled before each next one.
      timeout_seconds: to connect; between two packets.
      block_bytes: read at once: what a broken connection loses.
      total_seconds: for all attempts together; None is no limit.
      max_bytes: more than these are refused; None is no limit.
      least_rate: (bytes, seconds): an attempt ends where fewer arrive in so long, also while
        nothing but headers do; None is no limit.
    """

    tries: int
    pause_seconds: float
    timeout_seconds: tuple[float, float]
    block_bytes: int
    total_seconds: float | None = None
    max_bytes: int | None = None
    least_rate: tuple[int, float] | None = None


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

    Those are no connection, a file that breaks off, and the statuses 408, 425, 429 and most 5xx.
    """
    import requests

    deadline = None
    if limits.total_seconds is not None:
        deadline = time.monotonic() + limits.total_seconds
    for number in range(limits.tries):
        try:
            return attempt(deadline)
        except (requests.RequestException, EOFError, ValueError) as error:
            is_refused = _is_final(error)
            pause = limits.pause_seconds * 2**number
            is_late = deadline is not None and time.monotonic() + pause > deadline
            if is_refused or is_late or number == limits.tries - 1:
                kind = RefusedDownload if is_refused else FailedDownload
                raise kind(download_error_reason(error)) from error
            time.sleep(pause)
    raise AssertionError("the loop returns or raises")


def _is_final(error: Exception) -> bool:
    """Returns whether another attempt would end alike."""
    from requests import exceptions

    response = getattr(error, "response", None)
    if isinstance(error, exceptions.HTTPError) and response is not None:
        status = response.status_code
        return status in (501, 505) or (status < 500 and status not in (408, 425, 429))
    if isinstance(error, exceptions.SSLError):
        return "CERTIFICATE_VERIFY_FAILED" in str(error)
    # An address, a proxy or a header that is none is a ValueError too.
    return isinstance(error, exceptions.TooManyRedirects | ValueError)


def _answer(
    url: str, headers: dict[str, str], limits: DownloadLimits, deadline: float | None
) -> Generator[Any]:
    """Yields the answer to a request, then its body in blocks, as they are on the wire.

    Another thread waits for the server, so that each wait ends in time: for an address, headers and
    redirects too, which a server may send a byte at a time. Nothing is decoded: a packed answer
    would be larger than what was counted.

    Raises:
      FailedDownload: it takes longer than `deadline`.
      requests.RequestException: it failed, or is slower than `limits.least_rate`.
    """
    blocks: queue.Queue[Any] = queue.Queue(MAX_BLOCKS)
    stop = threading.Event()
    arguments = (url, {**HEADERS, "Accept-Encoding": "identity", **headers}, limits, blocks, stop)
    threading.Thread(target=_read_answer, args=arguments, daemon=True).start()
    size = received = 0
    window = time.monotonic()
    try:
        while True:
            item = _next(blocks, limits, deadline, window, size)
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            if isinstance(item, bytes):
                size, received = size + len(item), received + len(item)
                if deadline is not None and time.monotonic() > deadline:
                    raise FailedDownload(f"only {size:,} bytes in {limits.total_seconds} s")
            yield item
            if limits.least_rate and received >= limits.least_rate[0]:
                received, window = 0, time.monotonic()
            elif limits.least_rate and time.monotonic() > window + limits.least_rate[1]:
                raise _too_slow(limits.least_rate)
    finally:
        stop.set()


def _next(
    blocks: queue.Queue[Any],
    limits: DownloadLimits,
    deadline: float | None,
    window: float,
    size: int,
) -> Any:
    """Returns the next thing that the reading thread has, or raises where that takes too long."""
    ends = [deadline] if deadline is not None else []
    if limits.least_rate:
        ends.append(window + limits.least_rate[1])
    try:
        return blocks.get(timeout=max(1.0, min(ends) - time.monotonic()) if ends else None)
    except queue.Empty:
        pass
    if deadline is not None and time.monotonic() >= deadline:
        raise FailedDownload(f"only {size:,} bytes in {limits.total_seconds} s")
    raise _too_slow(limits.least_rate or (0, 0))


def _too_slow(least_rate: tuple[int, float]) -> Exception:
    """Returns the error of an attempt that is slower; another one may be faster."""
    import requests

    return requests.Timeout(f"fewer than {least_rate[0]:,} bytes in {least_rate[1]} s")


def _read_answer(
    url: str,
    headers: dict[str, str],
    limits: DownloadLimits,
    blocks: queue.Queue[Any],
    stop: threading.Event,
) -> None:
    """Puts the answer, the blocks of its body, and None or an error into a queue."""
    import requests
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    def put(item: Any) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return blocks.put(item, timeout=1)
        raise EOFError("nobody waits for it any more")

    try:
        with requests.get(
            url, stream=True, timeout=limits.timeout_seconds, headers=headers
        ) as response:
            put(response)
            for block in response.raw.stream(limits.block_bytes, decode_content=False):
                put(block)
        put(None)
    except ReadTimeoutError as error:
        _put_last(put, requests.Timeout(str(error)))
    except HTTPError:
        _put_last(put, EOFError("the answer breaks off"))
    except Exception as error:  # of any kind; the waiting thread raises it
        _put_last(put, error)


def _put_last(put: Callable[[Any], None], error: Exception) -> None:
    with contextlib.suppress(EOFError):
        put(error)


def _receive(
    body: Iterable[bytes],
    write: Callable[[bytes], object],
    most: int | None,
    progress: Callable[[int, int | None], None] | None = None,
    total: int | None = None,
) -> None:
    """Writes a body of at most `most` bytes; raises TooLarge before it writes more."""
    size = 0
    for block in body:
        size += len(block)
        if most is not None and size > most:
            raise TooLarge(f"more than {most:,} bytes")
        write(block)
        if progress:
            progress(size, total)


def _fetch_once(
    url: str,
    limits: DownloadLimits,
    progress: Callable[[int, int | None], None] | None,
    deadline: float | None,
) -> bytes:
    blocks: list[bytes] = []
    with contextlib.closing(_answer(url, {}, limits, deadline)) as answer:
        response = next(answer)
        response.raise_for_status()
        if packed := _packing(response.headers):
            raise RefusedDownload(f"the server packs its answer ({packed})")
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() and len(length) < 19 else 0
        _receive(answer, blocks.append, limits.max_bytes, progress, total or None)
    whole = b"".join(blocks)
    if len(whole) < total:
        raise EOFError(f"{len(whole):,} of {total:,} bytes")
    return whole


def _packing(headers: Any) -> str:
    packing = headers.get("Content-Encoding", "").strip().lower()
    return "" if packing == "identity" else packing[:40]


def _download_rest(
    url: str, unfinished: Path, limits: DownloadLimits, deadline: float | None
) -> None:
    have = unfinished.stat().st_size if unfinished.exists() else 0
    headers: dict[str, str] = {}
    tag = unfinished.with_name(unfinished.name + ".tag")  # resume only the same file
    if have and tag.exists() and (version := tag.read_text("utf-8")):
        headers = {"Range": f"bytes={have}-", "If-Range": version}
    with contextlib.closing(_answer(url, headers, limits, deadline)) as answer:
        response = next(answer)
        is_resumed, total = _check_answer(response, unfinished, have, limits)
        write_atomically(tag, _version(response.headers))
        with unfinished.open("ab" if is_resumed else "wb") as file:
            _receive(answer, file.write, total - (have if is_resumed else 0))
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
    if not length.isdigit() or len(length) > 18:
        raise RefusedDownload("the server names no length")
    total = int(length) + (have if is_resumed else 0)
    if limits.max_bytes is not None and total > limits.max_bytes:
        raise TooLarge(f"{total:,} bytes, more than the {limits.max_bytes:,} expected")
    return is_resumed, total


def _version(headers: Any) -> str:
    """Returns what identifies the served file for If-Range: a strong ETag, else its date."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")

"""Common Crawl's WET files: the plain text of web pages, as consecutive records.

The format is WARC 1.0 (https://iipc.github.io/warc-specifications/): each record has a version
line, headers, an empty line, as many bytes as its Content-Length says, and two line ends; each is a
separate gzip member. A file that is truncated anywhere but between two records raises `BadInput`;
a truncation there is noticed by the length that a download is checked against.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from data.config import PrepareConfig
from data.sources.documents import (
    BLOCK_BYTES,
    STREAM_BYTES,
    BadInput,
    Document,
    Plan,
    Unit,
    too_large,
)
from gpt_jax.download import (
    DownloadLimits,
    FailedDownload,
    RefusedDownload,
    TooLarge,
    download,
    unfinished_path,
)
from gpt_jax.errors import TrainingError, UserError

MAX_LISTING_BYTES = 1 << 26
MAX_WET_BYTES = 1 << 31  # packed; Common Crawl's have about 100 MB
MAX_HEADER_BYTES = 1 << 16
TRIES = 6
PAUSE_SECONDS = 1.0  # before the second attempt; doubled before each next one
TIMEOUT_SECONDS = (10, 60)  # to connect; between two packets
DOWNLOAD_BYTES = 1 << 16  # written at once: what a lost connection costs
LEAST_RATE = (1 << 19, 120)  # bytes, in seconds: what is slower is as good as broken
CRAWL = re.compile(r"CC-MAIN-\d{4}(?:-\d{2}){1,3}")
LISTED = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.warc\.wet\.gz")


def is_crawl(name: str) -> bool:
    """Says whether an input is the id of a crawl, such as CC-MAIN-2024-33, and not a path."""
    return CRAWL.fullmatch(name) is not None


def plan(config: PrepareConfig, work: Path) -> Plan:
    """Returns a unit for each file of a crawl's listing, wet.paths.gz.

    Raises:
      UserError, TrainingError: the listing is not available, or is not one.
    """
    base = config.base_url.rstrip("/") + "/"
    url = f"{base}crawl-data/{config.input}/wet.paths.gz"
    saved = work / f"{config.input}.paths.gz"
    if not saved.exists():
        download_file(url, saved, MAX_LISTING_BYTES)
    try:
        with gzip.open(saved) as file:
            raw = file.read(MAX_LISTING_BYTES + 1)
    except (EOFError, OSError, zlib.error) as error:
        saved.unlink()
        raise UserError(f"{url} is no listing: {error}; try again") from error
    if len(raw) > MAX_LISTING_BYTES:
        saved.unlink()
        raise UserError(f"{url} is no listing: it has more than {MAX_LISTING_BYTES:,} bytes")
    lines = raw.decode("utf-8", "replace").split()
    for line in lines:
        if not LISTED.fullmatch(line) or ".." in line:
            saved.unlink()
            raise UserError(f"{url} lists {line!r:.80}, which is no path of a WET file")
    listed = len(lines)
    if config.limit_files:
        lines = lines[: config.limit_files]
    if not lines:
        raise UserError(f"{url} lists no files")
    units = [
        {"kind": "wet", "name": line.rpartition("/")[2], "path": "", "size": 0, "url": base + line}
        for line in lines
    ]
    return Plan(units, [], facts={"files": len(units), "listed_files": listed, "url": url})


def read(unit: Unit, config: PrepareConfig, work: Path) -> Iterator[Document | BadInput]:
    """Yields the documents of a WET file, downloaded first if its unit has a URL.

    The download is kept, as it may be read again (see `discard`), unless it is damaged.

    Raises:
      BadInput: the file is truncated, or is not a WET file.
      UserError, TrainingError: it can't be downloaded.
    """
    path = unit["path"]
    if unit.get("url"):
        path = download_path(unit, work)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            download_file(unit["url"], path)
    try:
        with gzip.open(path) as stream:
            file = io.BufferedReader(stream, STREAM_BYTES)
            yield from records(file, unit["name"], config.max_document_mb << 20)
    except (EOFError, OSError, zlib.error) as error:
        discard(unit, work)
        raise BadInput(f"{unit['name']} can't be read to its end: {error}") from error
    except BadInput:
        discard(unit, work)
        raise


def download_file(url: str, path: Path, max_bytes: int = MAX_WET_BYTES) -> None:
    """Stores what a URL serves at `path`, whole; resumes an unfinished download.

    Raises:
      UserError: the server refuses, or sends more than `max_bytes`.
      TrainingError: it is not available now, or can't be written.
    """
    limits = DownloadLimits(
        TRIES,
        PAUSE_SECONDS,
        TIMEOUT_SECONDS,
        DOWNLOAD_BYTES,
        max_bytes=max_bytes,
        least_rate=LEAST_RATE,
    )
    try:
        download(url, path, limits)
    except TooLarge as error:
        raise UserError(f"{url} has {error}") from error
    except RefusedDownload as error:
        raise UserError(
            f"{url}: {error}; check the crawl's id at https://commoncrawl.org/get-started, and "
            "--base-url"
        ) from error
    except FailedDownload as error:
        raise TrainingError(
            f"{url} could not be downloaded ({error}, {TRIES} times); run the same command again "
            "to resume"
        ) from error
    except OSError as error:
        raise TrainingError(
            f"{unfinished_path(path)} can't be written: {error.strerror}"
        ) from error


def records(file: IO[bytes], name: str, limit: int) -> Iterator[Document | BadInput]:
    """Yields the documents of WET records, one for each of type `conversion`.

    Raises:
      BadInput: something is not a record, or is half of one.
    """
    number = 0
    while line := file.readline(MAX_HEADER_BYTES):
        if line in (b"\r\n", b"\n"):
            continue
        where = f"{name}, record {number}"
        if not line.startswith(b"WARC/1."):
            raise BadInput(f"{where}, does not begin with WARC/1")
        headers = _headers(file, where)
        length = headers.get("content-length", "")
        if not re.fullmatch(r"\d{1,18}", length):
            raise BadInput(f"{where}, has no Content-Length")
        size, kept = int(length), headers.get("warc-type") == "conversion"
        if kept and size <= limit:
            block = file.read(size)
            n = len(block)
        else:
            block, n = b"", _skip(file, size)
        if n < size or file.read(4) != b"\r\n\r\n":
            raise BadInput(f"{where}, is not as long as its Content-Length of {size:,} says")
        number += 1
        if not kept:
            continue
        if size > limit:
            yield too_large(where, limit)
            continue
        try:
            text = block.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            yield BadInput(f"{where}, is not UTF-8 at {error.start}")
            continue
        yield Document(text, headers.get("warc-identified-content-language"))
    if not number:
        raise BadInput(f"{name} has no records")


def _headers(file: IO[bytes], where: str) -> dict[str, str]:
    headers, size = {}, 0
    while (line := file.readline(MAX_HEADER_BYTES)) not in (b"\r\n", b"\n"):
        size += len(line)
        if not line.endswith(b"\n") or size > MAX_HEADER_BYTES:
            raise BadInput(f"{where}, breaks off in its headers")
        name, _, value = line.decode("utf-8", "replace").partition(":")
        headers[name.strip().lower()] = value.strip()
    return headers


def _skip(file: IO[bytes], size: int) -> int:
    left = size
    while left and (block := file.read(min(left, BLOCK_BYTES))):
        left -= len(block)
    return size - left


# --- downloads ------------------------------------------------------------------------------------


def download_path(unit: Unit, work: Path) -> Path:
    """Returns where the download of a unit with an address is."""
    return work / "downloads" / unit["name"]


def discard(unit: Unit, work: Path) -> None:
    """Removes the download of a unit, once the unit is encoded."""
    if unit.get("url"):
        download_path(unit, work).unlink(missing_ok=True)

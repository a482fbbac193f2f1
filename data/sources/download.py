"""Resumable downloads with retries."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from gpt_jax.errors import TrainingError, UserError, in_short
from gpt_jax.storage import write_atomically

TRIES = 6
PAUSE_SECONDS = 1.0  # before the second try; twice as long before each next one
TIMEOUT_SECONDS = (10, 60)  # to connect; between two packets
DOWNLOAD_BYTES = 1 << 16  # written at once: what a broken connection loses


def download(url: str, path: Path, limit: int | None = None) -> None:
    """Puts what a URL serves at `path`, whole; goes on where an earlier try or process stopped.

    The length is checked against the one that the server names. Failures that may pass (no
    connection, half a file, status 429 and 5xx) are tried again, `TRIES` times in all.

    Raises:
      UserError: the server refuses, or sends more than `limit` bytes.
      TrainingError: it can't be had now.
    """
    import requests

    part = path.with_name(path.name + ".part")
    for attempt in range(TRIES):
        try:
            _download_rest(requests, url, part, limit)
        except (requests.RequestException, EOFError) as error:
            response = getattr(error, "response", None)
            status = None if response is None else response.status_code
            if status is not None and status < 500 and status != 429:
                raise UserError(
                    f"{url}: {in_short(error)}; check the crawl's id at "
                    "https://commoncrawl.org/get-started, and --base-url"
                ) from error
            if attempt == TRIES - 1:
                raise TrainingError(
                    f"{url} could not be downloaded ({in_short(error)}, {TRIES} times); the same "
                    "command again goes on from here"
                ) from error
            time.sleep(PAUSE_SECONDS * 2**attempt)
        except OSError as error:
            raise TrainingError(f"{part} can't be written: {error.strerror}") from error
        else:
            part.replace(path)
            return


def _download_rest(requests: Any, url: str, part: Path, limit: int | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "gpt_jax", "Accept-Encoding": "identity"}
    tag = part.with_name(part.name + ".tag")  # half a file goes on only as the same file
    if have and tag.exists() and (name := tag.read_text("utf-8")):
        headers |= {"Range": f"bytes={have}-", "If-Range": name}
    with requests.get(url, stream=True, timeout=TIMEOUT_SECONDS, headers=headers) as response:
        if response.status_code == 416:  # what is there is not the beginning of what is served
            part.unlink(missing_ok=True)
            raise EOFError("the file has changed on the server")
        response.raise_for_status()
        begins = f"bytes {have}-"
        resumed = response.status_code == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(begins):
            part.unlink(missing_ok=True)
            raise EOFError("the server sent another part than asked for")
        length = response.headers.get("Content-Length", "")
        if not length.isdigit():
            raise EOFError("the server names no length")
        total = int(length) + (have if resumed else 0)
        if limit is not None and total > limit:
            raise UserError(f"{url} has {total:,} bytes, more than the {limit:,} expected")
        name = response.headers.get("ETag", "")
        if not name or name.startswith("W/"):
            name = response.headers.get("Last-Modified", "")
        write_atomically(tag, name)
        with part.open("ab" if resumed else "wb") as file:
            for block in response.iter_content(DOWNLOAD_BYTES):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    if (size := part.stat().st_size) != total:
        if size > total:
            part.unlink()
        raise EOFError(f"{size:,} of {total:,} bytes")
    tag.unlink(missing_ok=True)

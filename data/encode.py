"""Encoded units: filtered and tokenized by any process on any machine that sees the folders.

An encoded unit is one file, written atomically:

    ids         of the documents that are kept, in order, as the shards will have them
    documents   a DOCUMENT for each of them
    counts      JSON: numbers of documents read, dropped and damaged
    FOOTER      the three lengths in bytes, and the CRC-32 of everything before it

It is not flushed to disk, which would take longer than encoding. After a power cut the CRC tells
whether the file is complete; if not, the unit is encoded again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from data.config import PrepareConfig
from data.filters import digest, is_validation, reject
from data.records import PLAN_FILE, UnitCounts, read_plan, read_unit_counts
from data.sources.common_crawl import discard
from data.sources.documents import BadInput, Unit
from data.sources.readers import read_unit
from gpt_jax.config.fields import from_nested_dict
from gpt_jax.errors import UserError
from gpt_jax.storage import check_tree, open_new
from gpt_jax.tokenizer import END_OF_TEXT, BpeTokenizer, Tokenizer, load_tokenizer

ENCODED_FOLDER = "parts"
NAMED_DAMAGE = 100  # messages in the manifest, at most; the counts include all
BUFFER_BYTES = 1 << 20
COUNT_TOKENS = 1 << 16  # between two calls of `count`, which waits for a lock of all processes
DOCUMENT = np.dtype([("digest", "<u8"), ("tokens", "<u4"), ("val", "?")])
PACKED = struct.Struct("<QI?")  # a DOCUMENT: a unit may have millions
FOOTER = struct.Struct("<4Q")


def encoded_path(work: Path, number: int) -> Path:
    """Returns the path of an encoded unit."""
    return work / ENCODED_FOLDER / f"{number:06d}"


def open_work(work: str) -> tuple[PrepareConfig, list[Unit], Tokenizer]:
    """Returns what a process needs to encode any unit: settings, units, tokenizer."""
    plan = os.stat(os.path.join(work, PLAN_FILE))
    return _open_work(work, (plan.st_ino, plan.st_size, plan.st_mtime_ns))


@functools.lru_cache(maxsize=1)
def _open_work(
    work: str, plan: tuple[int, int, int]
) -> tuple[PrepareConfig, list[Unit], Tokenizer]:
    """Reads a work folder; cached until its plan changes."""
    check_tree(Path(work))
    found = read_plan(Path(work))
    config = from_nested_dict({**found.settings, "out": str(Path(work).parent)}, PrepareConfig)
    return config, found.plan.units, load_tokenizer(Path(work))


def encode_unit(work: str, number: int, count: Callable[[int], None] | None = None) -> None:
    """Reads, filters and encodes a unit into its file, unless that exists.

    The result is a function of the plan in the work folder, so any process that sees the folder and
    the source may do it.

    Args:
      work: the folder `.prepare` of a corpus.
      number: of the unit.
      count: called regularly, and at the end, with the tokens encoded since the last call.

    Raises:
      UserError: the unit is damaged, and `on_damage` is "stop".
      TrainingError: it could not be downloaded.
    """
    path = encoded_path(Path(work), number)
    if path.exists():
        return
    config, units, tokenizer = open_work(work)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        try:
            _write(config, units[number], tokenizer, Path(work), temporary, count)
        except BadInput as error:
            if config.on_damage == "stop":
                raise to_user_error(error) from error
            with open_new(temporary) as file:  # drops what was read before the damage
                counts = json.dumps({"damaged_units": 1, "damaged": [str(error)]}).encode()
                file.write(counts + FOOTER.pack(0, 0, len(counts), zlib.crc32(counts)))
        temporary.replace(path)
        discard(units[number], Path(work))
    finally:
        temporary.unlink(missing_ok=True)


def to_user_error(error: BadInput) -> UserError:
    """Returns the error for damage when `on_damage` is "stop"."""
    return UserError(f"{error}; repair or remove it, or use --on-damage skip")


def _write(
    config: PrepareConfig,
    unit: Unit,
    tokenizer: Tokenizer,
    work: Path,
    path: Path,
    count: Callable[[int], None] | None,
) -> None:
    limits, dropped, read = config.limits(), Counter(), 0
    dtype = token_dtype(tokenizer)
    documents, damaged, n_damaged = bytearray(), [], 0
    separator, n_bytes, crc, uncounted = b"", 0, 0, 0
    with open_new(path, BUFFER_BYTES) as file:
        for document in read_unit(config, unit, work):
            read += 1
            if isinstance(document, BadInput):
                if config.on_damage == "stop":
                    raise document
                n_damaged += 1
                if len(damaged) < NAMED_DAMAGE:
                    damaged.append(str(document))
                continue
            if not document.split and (reason := reject(document.text, document.language, limits)):
                dropped[reason] += 1
                continue
            ids = tokenizer.encode(document.text)  # before the digest: a str caches its UTF-8
            if document.split:
                key, val, end = 0, document.split == "val", b""
            else:
                key = digest(document.text)
                val = is_validation(key, config.val_fraction)
                end = separator = separator or _separator(tokenizer)
            raw = ids.astype(dtype).tobytes() + end
            file.write(raw)
            n_bytes, crc = n_bytes + len(raw), zlib.crc32(raw, crc)
            documents += PACKED.pack(key, len(raw) // dtype.itemsize, val)
            uncounted += len(raw) // dtype.itemsize
            if count and uncounted >= COUNT_TOKENS:
                count(uncounted)
                uncounted = 0
        if count:
            count(uncounted)
        counts = {
            "read": read,
            "dropped": dict(dropped),
            "damaged_records": n_damaged,
            "damaged": damaged,
        }
        tail = json.dumps(counts).encode()
        crc = zlib.crc32(tail, zlib.crc32(documents, crc))
        file.write(documents)
        file.write(tail + FOOTER.pack(n_bytes, len(documents), len(tail), crc))


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """Returns the dtype of stored ids, as in the shards."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")


def _separator(tokenizer: Tokenizer) -> bytes:
    """Returns what ends a document: the end-of-text token, or a line feed for characters."""
    if isinstance(tokenizer, BpeTokenizer):
        ids = [tokenizer.special_tokens[END_OF_TEXT]]
    else:
        ids = tokenizer.encode("\n")
    return np.asarray(ids).astype(token_dtype(tokenizer)).tobytes()


@dataclasses.dataclass(frozen=True)
class EncodedUnit:
    """A complete encoded unit.

    Attributes:
      path: its file, which begins with the ids.
      documents: a DOCUMENT for each document, in order.
      counts: numbers of documents read, dropped and damaged.
    """

    path: Path
    documents: np.ndarray
    counts: UnitCounts


def load_encoded(path: Path) -> EncodedUnit | None:
    """Returns an encoded unit, or None if the file is incomplete or damaged."""
    with contextlib.suppress(OSError, ValueError, struct.error), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - FOOTER.size
        file.seek(max(size, 0))
        n_ids, n_documents, n_counts, expected = FOOTER.unpack(file.read())
        if n_ids + n_documents + n_counts != size:
            return None
        file.seek(0)
        crc, left = 0, n_ids
        while left and (raw := file.read(min(left, BUFFER_BYTES))):
            crc, left = zlib.crc32(raw, crc), left - len(raw)
        tail = file.read(n_documents + n_counts)
        if zlib.crc32(tail, crc) == expected:
            documents: np.ndarray = np.frombuffer(tail, DOCUMENT, n_documents // DOCUMENT.itemsize)
            n_tokens = int(np.sum(documents["tokens"], dtype=np.int64))
            if n_ids in (2 * n_tokens, 4 * n_tokens) and documents.nbytes == n_documents:
                return EncodedUnit(path, documents, read_unit_counts(tail[n_documents:]))
    return None


# --- worker processes -----------------------------------------------------------------------------

_tokens_so_far: Any = None  # of all processes, shared between them


def start_process(counter: Any) -> None:
    """Initialises a worker process: it counts its tokens, and exits when its parent does."""
    global _tokens_so_far
    _tokens_so_far = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the parent
    end_with(multiprocessing.parent_process())


@functools.cache  # once for each parent
def end_with(parent: Any) -> None:
    """Ends this process when its parent does; without one, as in a program of its own, never.

    Args:
      parent: as `parent_process` returns it, of multiprocessing or of a package like it.
    """
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)  # a killed parent can't stop its children

    threading.Thread(target=watch, daemon=True).start()


def encode_and_count(work: str, number: int) -> None:
    """Encodes a unit in a worker process."""

    def count(n_tokens: int) -> None:
        with _tokens_so_far.get_lock():
            _tokens_so_far.value += n_tokens

    encode_unit(work, number, count)

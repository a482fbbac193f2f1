"""JSON lines, plain, .gz or .zst: one document per line."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterator
from typing import IO, Any

import orjson

from data.config import PrepareConfig
from data.sources.documents import (
    BLOCK_BYTES,
    EXTRAS,
    STREAM_BYTES,
    BadInput,
    Document,
    Unit,
    file_unit,
    import_optional,
    to_document,
    too_large,
)
from gpt_jax.errors import UserError


def plan(path: str, size: int, unit_bytes: int) -> list[Unit]:
    """Divides a plain file into ranges, the lines that begin in [start, end); others stay whole."""
    if not size:
        raise BadInput(f"{path} is empty")
    if path.endswith((".gz", ".zst")):
        return [file_unit("lines", path, size)]
    ends = ((at, min(at + unit_bytes, size)) for at in range(0, size, unit_bytes))
    return [file_unit("lines", path, end - start, start, end) for start, end in ends]


def open_stream(path: str) -> Any:
    """Opens a file, .gz and .zst decompressed; a truncated one raises EOFError at its end.

    Raises:
      UserError: .zst needs a package that is not installed.
    """
    if path.endswith(".gz"):
        return gzip.open(path)
    if path.endswith(".zst"):
        zstd = _zstd()
        if zstd is None:
            raise UserError(f"reading {os.path.basename(path)} needs backports.zstd: {EXTRAS}")
        return zstd.open(path)
    return open(path, "rb", buffering=0)


def _zstd() -> Any:
    """Returns a module that notices a truncated file, which `zstandard` does not, or None."""
    return import_optional("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def read(unit: Unit, config: PrepareConfig) -> Iterator[Document | BadInput]:
    limit, field = config.max_document_mb << 20, config.text_field
    at, end, name = unit["start"], unit["end"], os.path.basename(unit["path"])
    try:
        with open_stream(unit["path"]) as raw_file:
            file = io.BufferedReader(raw_file, STREAM_BYTES)
            if at:  # a line already begun belongs to the range before
                file.seek(at - 1)
                at += _skip_line(file) - 1
            while not end or at < end:
                line = file.readline(limit + 1)
                if not line:
                    return
                where = f"{name}, the line at byte {at:,}"
                at += len(line)
                if len(line) > limit:
                    at += 0 if line.endswith(b"\n") else _skip_line(file)
                    yield too_large(where, limit)
                elif line.strip():
                    yield _document(line, field, where)
    except Exception as error:  # a ZstdError can't be named if its package is not installed
        if not isinstance(error, zlib.error) and type(error).__name__ != "ZstdError":
            raise
        raise BadInput(f"{unit['name']} can't be read to its end: {error}") from error


def _skip_line(file: IO[bytes]) -> int:
    skipped = 0
    while part := file.readline(BLOCK_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _document(line: bytes, field: str, where: str) -> Document | BadInput:
    try:
        record = orjson.loads(line)
        text = record.get(field) if isinstance(record, dict) else None
        if isinstance(text, str):
            return Document(text)  # without half of a surrogate pair: orjson takes none
    except ValueError:
        try:  # it also accepts NaN, and its message says what is wrong
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            return BadInput(f"{where}, is not JSON: {error}")
    text = record.get(field) if isinstance(record, dict) else None
    return to_document(text, field, where)

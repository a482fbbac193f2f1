"""JSON: one document per line, or per value of an array; plain, .gz, .bz2, .xz or .zst."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import re
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
from data.sources.xz import XzFile
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.file_kinds import kind_of

PACKINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
DECODING = (zlib.error, lzma.LZMAError)
MARKS = re.compile(rb'\\.|["\[\]{},]', re.DOTALL)
VALUES = re.compile(rb'"(?>[^"\\]+|\\.)*+"|[,:\[{]', re.DOTALL)  # what is in quotes is one
LIMIT_PER_VALUE = 16  # bytes: a value takes up to 64 in memory, so those of a record 4 limits


def plan(path: str, size: int, unit_bytes: int) -> list[Unit]:
    """Divides a plain file into ranges, the lines that begin in [start, end); others stay whole."""
    if not size:
        raise BadInput(f"{path} is empty")
    with open_stream(path) as raw_file, io.BufferedReader(raw_file, STREAM_BYTES) as file:
        is_packed = not isinstance(raw_file, io.FileIO)
        if is_packed or _layout(file, path) != "lines":
            return [file_unit("lines", path, size)]
    ends = ((at, min(at + unit_bytes, size)) for at in range(0, size, unit_bytes))
    return [file_unit("lines", path, end - start, start, end) for start, end in ends]


def open_stream(path: str) -> Any:
    """Opens a file, decompressed by its suffix, or by its first bytes where that says nothing.

    A truncated one raises EOFError at its end.

    Raises:
      UserError: zstd needs a package that is not installed.
    """
    suffix = os.path.splitext(path)[1].lower()
    packing = PACKINGS.get(suffix) or _packing(path)
    if packing == "zstd":
        zstd = _zstd()
        if zstd is None:
            raise UserError(f"reading {os.path.basename(path)} needs backports.zstd: {EXTRAS}")
        return zstd.open(path)
    if packing:
        return {"gzip": gzip.open, "bzip2": bz2.open, "xz": XzFile}[packing](path)
    return open(path, "rb", buffering=0)


def _packing(path: str) -> str:
    with open(path, "rb") as file:
        return kind_of(path, file.read(8)).packing


def _layout(file: io.BufferedReader, path: str) -> str:
    """Returns how documents follow one another: "lines", "array", or "values" of several lines."""
    if re.search(r"\.(jsonl|ndjson)(\.|$)", os.path.basename(path).lower()):
        return "lines"
    head = file.peek(STREAM_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"["):
        return "array"
    line, end, _ = head.partition(b"\n")
    is_whole = not end or line.rstrip().endswith(b"}")
    return "lines" if is_whole or not line.startswith(b"{") else "values"


def _zstd() -> Any:
    """Returns a module that notices a truncated file, which `zstandard` does not, or None."""
    return import_optional("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def read(unit: Unit, config: PrepareConfig) -> Iterator[Document | BadInput]:
    limit, field = config.max_document_mb << 20, config.text_field
    try:
        with open_stream(unit["path"]) as raw_file:
            file = io.BufferedReader(raw_file, STREAM_BYTES)
            layout = "lines" if unit["end"] else _layout(file, unit["path"])
            if layout == "lines":
                found = _lines(file, limit, unit)
            else:
                found = values(file, limit, layout == "array", os.path.basename(unit["path"]))
            for where, raw in found:
                yield (
                    too_large(where, limit) if raw is None else _document(raw, field, where, limit)
                )
    except Exception as error:  # a ZstdError can't be named if its package is not installed
        if not isinstance(error, DECODING) and type(error).__name__ != "ZstdError":
            raise
        raise BadInput(f"{unit['name']} can't be read to its end: {error}") from error


def _lines(file: IO[bytes], limit: int, unit: Unit) -> Iterator[tuple[str, bytes | None]]:
    """Yields where a line is, and the line; None for one of more than `limit` bytes."""
    at, end, name = unit["start"], unit["end"], os.path.basename(unit["path"])
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
            yield where, None
        elif line.strip():
            yield where, line


def values(
    file: IO[bytes], limit: int, is_array: bool, name: str
) -> Iterator[tuple[str, bytes | None]]:
    """Yields where a value is, and its bytes; None for one of more than `limit` bytes.

    Args:
      file: JSON: an array, whose values are meant, or values one after the other.
      limit: bytes of a value that are held at once.
      is_array: which of the two.
      name: of the file, for messages.

    Raises:
      BadInput: brackets or quotes have no end, or something follows the array.
    """
    depth, in_string, is_over = 0, False, False
    at, first, value = 0, 0, bytearray()
    while block := _whole_escapes(file):
        taken = 0
        for mark in MARKS.finditer(block):
            sign = mark[0]
            if in_string or sign == b'"':
                in_string ^= sign == b'"'
                continue
            depth += (sign in b"[{") - (sign in b"]}")
            begins = is_array and depth == 1 and sign == b"["
            ends = depth == 1 and sign == b"," if is_array else depth == 0 and sign in b"]}"
            is_over = is_array and depth <= 0
            if not (begins or ends or is_over):
                continue
            if not begins:
                value += block[taken : mark.start() + (not is_array)][: limit + 1 - len(value)]
                if value.strip():
                    yield f"{name}, the value at byte {first:,}", _within(value, limit)
            value.clear()
            taken, first = mark.end(), at + mark.end()
            if is_over:
                break
        value += block[taken:][: limit + 1 - len(value)]
        if is_over:
            break
        at += len(block)
    if depth or in_string:
        raise BadInput(f"{name} breaks off within the value at byte {first:,}")
    while is_over and not value.strip() and (more := file.read(BLOCK_BYTES)):
        value = bytearray(more)
    if value.strip():
        raise BadInput(f"{name} has something at byte {first:,} that is no value of it")


def _within(value: bytearray, limit: int) -> bytes | None:
    return bytes(value) if len(value) <= limit else None


def _whole_escapes(file: IO[bytes]) -> bytes:
    """Returns the next block of a file, which does not end after the backslash of an escape."""
    block = file.read(STREAM_BYTES)
    while (len(block) - len(block.rstrip(b"\\"))) % 2 and (more := file.read(1)):
        block += more
    return block


def _skip_line(file: IO[bytes]) -> int:
    skipped = 0
    while part := file.readline(BLOCK_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _document(line: bytes, field: str, where: str, limit: int) -> Document | BadInput:
    if _has_too_many_values(line, limit // LIMIT_PER_VALUE):
        return BadInput(f"{where}, has more values than --max-document-mb {limit >> 20} allows")
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
    if not isinstance(record, dict):
        return to_document(None, field, where)
    return to_document(record.get(field), field, where, list(record))


def _has_too_many_values(line: bytes, most: int) -> bool:
    """Returns whether JSON has more than `most` values, each of which takes far more memory."""
    if len(line) <= most or sum(map(line.count, (b",", b":", b"[", b"{"))) <= most:
        return False
    outside = (mark[0] for mark in VALUES.finditer(line) if mark[0][:1] != b'"')
    return next(itertools.islice(outside, most, None), None) is not None

"""Texts of several documents each, with a line that is just <|endoftext|> between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO

from data.sources.documents import BLOCK_BYTES, BadInput, Document, Unit, file_unit, too_large
from data.sources.text import file_kind
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.file_kinds import way_out
from gpt_jax.tokenizer import END_OF_TEXT

BORDERS = tuple(END_OF_TEXT.encode() + end for end in (b"\n", b"\r\n", b""))  # b"": the last line


def plan(path: str, size: int, unit_bytes: int) -> list[Unit]:
    """Divides a file into ranges: the documents that begin in [start, end).

    Raises:
      BadInput: it is empty.
      UserError: it is no text, but packed or a table.
    """
    if not size:
        raise BadInput(f"{path} is empty")
    if any(kind := file_kind(path)):
        raise UserError(f"--input {path} {way_out(path, kind)}")
    ends = ((at, min(at + unit_bytes, size)) for at in range(0, size, unit_bytes))
    return [file_unit("bordered", path, end - start, start, end) for start, end in ends]


def read(unit: Unit, limit: int) -> Iterator[Document | BadInput]:
    """Yields the documents that begin in a unit, each without the line end before its border.

    What has no more than white space is no document. A larger one than `limit` bytes is bad.
    """
    name, end = os.path.basename(unit["path"]), unit["end"]
    with open(unit["path"], "rb") as file:
        at = _first_document(file, unit["start"], end)
        while at is not None and at < end:
            where = f"{name}, the document at byte {at:,}"
            raw, at = _next_document(file, limit)
            if raw is None:
                yield too_large(where, limit)
            elif raw.strip():
                yield _document(raw, where)


def _first_document(file: IO[bytes], start: int, end: int) -> int | None:
    """Returns where the first document in [start, end) begins, and seeks to it; None for none."""
    if not start:
        return 0
    at = max(0, start - max(map(len, BORDERS)) - 1)  # a border may end at `start`
    file.seek(at)
    begins_line = not at
    while at < end and (line := file.readline(BLOCK_BYTES)):
        at += len(line)
        if begins_line and line in BORDERS and at >= start:
            return at
        begins_line = line.endswith(b"\n")
    return None


def _next_document(file: IO[bytes], limit: int) -> tuple[bytes | None, int | None]:
    """Returns a document, and where the next one begins.

    Returns:
      (its bytes, None for more than `limit`; the place after its border, None without one).
    """
    held, is_large, begins_line = bytearray(), False, True
    while line := file.readline(limit + 1):
        if begins_line and line in BORDERS:
            return None if is_large else bytes(held), file.tell()
        begins_line = line.endswith(b"\n")
        is_large = is_large or len(held) + len(line) > limit
        held += b"" if is_large else line
    return None if is_large else bytes(held), None


def _document(raw: bytes, where: str) -> Document | BadInput:
    if b"\0" in raw:
        return BadInput(f"{where}, looks binary (a zero byte at {raw.index(0)})")
    line_end = next((end for end in (b"\r\n", b"\n") if raw.endswith(end)), b"")
    try:
        return Document(raw.removesuffix(line_end).decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        return BadInput(f"{where}, is not UTF-8 (byte {byte:#04x} at {error.start})")

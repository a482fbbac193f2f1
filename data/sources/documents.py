"""What the sources share: units, documents, bad input, and the size of a unit.

A unit is a dict, ready for JSON: a piece of a text, some small files, a range of lines, some row
groups, or a whole file. Where the format allows, it has about a megabyte; a large source is divided
into about `MAX_UNITS` units, so that the plan stays small.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Sequence
from typing import Any

UNIT_BYTES = 1 << 20  # at least; small, so that processes finish at about the same time
MAX_UNITS = 50_000  # about; every process holds the plan
BLOCK_BYTES = 4 << 20
STREAM_BYTES = 1 << 17
EXTRAS = "pip install -r requirements-data.txt"

Unit = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Document:
    """One document: its text, the language tags of its source, the split where it is given."""

    text: str
    language: str | None = None
    split: str | None = None


class BadInput(Exception):
    """A record or a file that can't be read; the message names it."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What there is to read.

    Attributes:
      units: in the order of the corpus; each has a "name" for messages and a "size" in bytes as
        stored, 0 if unknown.
      files: (path, bytes, modification time in ns) of each file, to notice changes.
      by_position: the corpus is a single text, split by position.
      characters: of a single text, sorted, for a tokenizer of characters.
      damaged: messages about files that were left out.
      facts: what the manifest records of the source.
    """

    units: list[Unit]
    files: list[tuple[str, int, int]]
    by_position: bool = False
    characters: str = ""
    damaged: tuple[str, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def unit_bytes_of(stored_bytes: int) -> int:
    """Returns the size of units, a function of the size of the source."""
    return max(UNIT_BYTES, stored_bytes // MAX_UNITS)


def file_unit(kind: str, path: str, size: int, start: int = 0, end: int = 0) -> Unit:
    name = os.path.basename(path) + (f" from {start:,}" if start else "")
    return {"kind": kind, "name": name, "path": path, "size": size, "start": start, "end": end}


def too_large(name: str, limit: int) -> BadInput:
    """Returns the error for a document of more than `limit` bytes."""
    return BadInput(f"{name} is a document of more than --max-document-mb {limit >> 20}")


def to_document(
    text: Any, field: str, where: str, fields: Sequence[str] = ()
) -> Document | BadInput:
    """Returns the document in a field of a record that has `fields`, or what is wrong with it."""
    if not isinstance(text, str):
        has = "" if field in fields else f"; it has {shown(fields)}" if fields else ""
        return BadInput(f"{where}, has no text in its field {field!r} (see --text-field){has}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return BadInput(f"{where}, has half of a surrogate pair at {error.start}")
    return Document(text)


def shown(fields: Sequence[str], most: int = 20) -> str:
    """Returns the names of fields for a message."""
    more = f" and {len(fields) - most} more" if len(fields) > most else ""
    return ", ".join(f"{name!r:.60}" for name in fields[:most]) + more


def one_line(error: BaseException) -> str:
    """Returns an error's message, which may be long, for use within one line."""
    return f"{' '.join(str(error).split()):.300}"


def import_optional(name: str) -> Any:
    """Returns a module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None

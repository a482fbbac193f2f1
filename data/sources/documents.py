"""What the sources have in common: units, documents, damage, and how large a unit is to be.

A unit is a dict, ready for JSON: a piece of a text, some small files, a range of lines, some row
groups, else a whole file. Where the format allows it is of about a megabyte, and of a larger source
of about one of `MAX_UNITS` equal parts, so that the plan stays small.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from typing import Any

UNIT_BYTES = 1 << 20  # at least; small, so that processes end at about the same time
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
      units: in the order of the corpus; each has a "name" for people and a "size" in bytes, if only
        of what is stored, or 0.
      files: (path, bytes, time of change in ns) of each file, to notice that one has changed.
      by_position: the corpus is a single text, cut into the splits by position.
      characters: of a single text, in order, where its tokenizer is to be of characters.
      damaged: files that were left out.
      facts: what the manifest is to say of the source.
    """

    units: list[Unit]
    files: list[tuple[str, int, int]]
    by_position: bool = False
    characters: str = ""
    damaged: tuple[str, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def unit_bytes_of(stored_bytes: int) -> int:
    """Returns how large units are to be, a function of what the source has in all."""
    return max(UNIT_BYTES, stored_bytes // MAX_UNITS)


def file_unit(kind: str, path: str, size: int, start: int = 0, end: int = 0) -> Unit:
    name = os.path.basename(path) + (f" from {start:,}" if start else "")
    return {"kind": kind, "name": name, "path": path, "size": size, "start": start, "end": end}


def too_large(name: str, limit: int) -> BadInput:
    """Returns what a document of more than `limit` bytes is."""
    return BadInput(f"{name} is a document of more than --max-document-mb {limit >> 20}")


def to_document(text: Any, field: str, where: str) -> Document | BadInput:
    """Returns the document that a record has in its field, or what is wrong with it."""
    if not isinstance(text, str):
        return BadInput(f"{where}, has no text in its field {field!r} (see --text-field)")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return BadInput(f"{where}, has half of a surrogate pair at {error.start}")
    return Document(text)


def one_line(error: BaseException) -> str:
    """Returns the words of an error, which may be many, as a part of one line."""
    return f"{' '.join(str(error).split()):.300}"


def import_optional(name: str) -> Any:
    """Returns a module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None

"""What a file that is given as a text really is: packed, records, or another program's document.

Told by its first bytes, and by its name where they don't say. Training and `data/` ask here before
they take a file for prose, and name the command that reads it instead. Nothing here reads a whole
file: `text_corpus.py` does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
from pathlib import Path
from typing import IO, NamedTuple

HEAD_BYTES = 1 << 16

# How files begin: (their first bytes, their kind).
PACKED = {"gzip": "gunzip -k", "bzip2": "bunzip2 -k", "xz": "unxz -k", "zstd": "unzstd"}
BEGINNINGS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh91AY&SY", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PAR1\x15", "parquet"),  # and the header of a page
    (b"PK\x03\x04", "a ZIP archive (.zip, .docx, .epub, .npz)"),
    (b"%PDF-", "a PDF"),
    (b"ARROW1\0\0", "an Arrow file"),
    (b"\xff\xff\xff\xff", "an Arrow stream"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x04\x22\x4d\x18", "packed with LZ4"),
    (b"{\\rtf", "an RTF document"),
    (b"\xd0\xcf\x11\xe0", "an old Word or Excel document"),
    (b"WARC/1.", "wet"),
)
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")
SOURCES = {"jsonl": "jsonl", "json": "jsonl", "parquet": "parquet", "wet": "wet"}
TABLE = (
    "python -c 'import csv, json, sys; [print(json.dumps(r)) for r in csv.DictReader(sys.stdin)]'"
)
NAMES = {
    "jsonl": "JSON lines",
    "json": "JSON",
    "csv": "a table (CSV)",
    "parquet": "Parquet",
    "wet": "a WARC file",
}
# What an object or an array of JSON begins with: a key and its value; values.
_STRING = rb'"(?>[^"\\]+|\\.)*+"'
_OBJECT = rb"\{\s*" + _STRING + rb'\s*:\s*(?:["\[{\d\-]|true|false|null)'
_NUMBERS = rb"(?:-?\d[\d.eE+-]*\s*,\s*){8}"
OBJECT = re.compile(rb"\s*" + _OBJECT, re.DOTALL)
ARRAY = re.compile(
    rb"\s*\[\s*(?:" + _OBJECT + rb"|(?:\[\s*)?(?:" + _STRING + rb"\s*[,\]]|" + _NUMBERS + rb"))",
    re.DOTALL,
)


class NotAFile(Exception):
    """A folder, a device or a pipe, where a file is wanted; its text says which."""


class FileKind(NamedTuple):
    """What a file is.

    Attributes:
      packing: "gzip", "bzip2", "xz", "zstd" or "".
      content: "jsonl", "json", "csv", "parquet", "wet", a noun for what no source reads, or "" for
        what may be prose.
    """

    packing: str = ""
    content: str = ""


def kind_of(name: str, head: bytes) -> FileKind:
    """Returns what a file is.

    Args:
      name: of the file; a suffix counts where its bytes do not say otherwise.
      head: its first `HEAD_BYTES`, or all where it has fewer.
    """
    levels = re.sub(rb"\ABZh[1-9]", b"BZh9", head[:16])
    found = next((kind for start, kind in BEGINNINGS if levels.startswith(start)), "")
    packing = found if found in PACKED else ""
    stem, suffix = os.path.splitext(name.lower())
    if suffix in PACKED_SUFFIXES:
        suffix = os.path.splitext(stem)[1]
    if packing:
        return FileKind(packing, SUFFIXES.get(suffix, "wet" if suffix == ".wet" else ""))
    if head[257:262] == b"ustar":
        found = "a tar archive"
    return FileKind("", found or SUFFIXES.get(suffix, "") or _json_kind(head))


def _json_kind(head: bytes) -> str:
    """Returns "jsonl" or "json" where bytes begin like records, else ''."""
    text = head.removeprefix(b"\xef\xbb\xbf")
    lines = [line for line in text.split(b"\n") if line.strip()]
    is_cut = len(head) >= HEAD_BYTES
    whole = lines[: len(lines) - is_cut]
    if whole and _is_object(whole[0]):
        return "jsonl" if all(line.lstrip()[:1] == b"{" for line in lines[1:2]) else ""
    looks_so = OBJECT.match(text) or ARRAY.match(text)
    return "json" if looks_so and (is_cut or _is_json(text)) else ""


def _is_object(line: bytes) -> bool:
    return bool(OBJECT.match(line)) and _is_json(line)


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a file for reading; a link is followed, and nothing that is no file is waited for.

    Raises:
      NotAFile: it is something else.
      OSError, ValueError: it can't be opened, or has no possible name.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise NotAFile("a folder" if stat.S_ISDIR(mode) else "a device or a pipe, not a file")


def is_utf8(path: str) -> bool:
    """Returns whether a path can be written down, in a JSON file or on a terminal."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def way_out(path: str, kind: FileKind) -> str:
    """Returns what a file is that is no text, and the command that reads it or makes it a text."""
    source, quoted = SOURCES.get(kind.content), shlex.quote(path)
    what = NAMES.get(kind.content, kind.content or "something")
    packed = f"packed with {kind.packing}"
    if source:
        what = f"{what} {packed}" if kind.packing else what
        return f"is {what}, not a text; make a corpus of it: {prepare_command(path, source)}"
    if kind.packing:
        return f"is {packed}; unpack it first: {PACKED[kind.packing]} {quoted}"
    if kind.content == "csv":
        lines = shlex.quote(os.path.splitext(path)[0] + ".jsonl")
        return f"is {what}, not a text; make JSON lines of it: {TABLE} < {quoted} > {lines}"
    return f"is {what}, not a text; make a text of it, in UTF-8"


def prepare_command(pattern: str, source: str = "text") -> str:
    """Returns the command that prepares files, quoted for the shell."""
    named = "" if source == "text" else f"--source {source} "
    return f"python main.py prepare {named}--input {shlex.quote(pattern)} --out FOLDER"


def command_for_folder(folder: str | os.PathLike[str]) -> str:
    """Returns the command that prepares the files of a folder, by the suffix that most have."""
    counts: dict[tuple[str, str], int] = {}
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))[:10_000]
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix in PACKED_SUFFIXES:
            suffix = os.path.splitext(stem)[1] + suffix
        plain = suffix.removesuffix(os.path.splitext(suffix)[1]) or suffix
        source = SOURCES.get(SUFFIXES.get(plain.lower(), ""), "text")
        if os.path.isfile(os.path.join(folder, name)):
            counts[suffix, source] = counts.get((suffix, source), 0) + 1
    suffix, source = max(counts, key=lambda k: (counts[k], k[0] != ""), default=(".txt", "text"))
    return prepare_command(str(Path(folder) / f"*{suffix}"), source)

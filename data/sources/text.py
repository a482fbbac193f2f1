"""Text files: a single one, cut into pieces by position, or many, one document each."""

from __future__ import annotations

import bisect
import codecs
import os
import re
from collections.abc import Iterator
from typing import IO, Any

from data.sources import documents
from data.sources.documents import (
    BLOCK_BYTES,
    BadInput,
    Document,
    Unit,
    file_unit,
    too_large,
    unit_bytes_of,
)
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.file_kinds import (
    HEAD_BYTES,
    SOURCES,
    FileKind,
    kind_of,
    prepare_command,
    way_out,
)

SEARCH_BYTES = 1 << 18
KINDS_LOOKED_AT = 100  # of the files of a pattern, before they are planned

# Where a text may be cut so that the pieces have the tokens of the whole: where the patterns of
# GPT-2, cl100k_base, o200k_base and `tokenizer.PATTERN` end a match in any context. That is before
# a single space between words, and after a single line feed between words.
CUT = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])|(?<=[^\W\d_]\n)(?=[^\W\d_])")


def plan_text(
    path: str, val_fraction: float, with_characters: bool = False
) -> tuple[list[Unit], str]:
    """Splits a text by position, as `dataset.split_text` does, and each split into pieces.

    The first int((1 - val_fraction) * characters) are for training. The pieces together have the
    tokens of the whole split wherever a `CUT` is found within `SEARCH_BYTES`.

    Returns:
      (units, the different characters of the text in order if asked for, else "").

    Raises:
      UserError: the file is empty, or not prose in UTF-8.
    """
    if any(kind := file_kind(path)):
        raise UserError(f"--input {path} {way_out(path, kind)}")
    ends = [(0, 0)]  # of each block: characters and bytes up to there
    characters: set[str] = set()
    for text in _text_blocks(path):
        if with_characters:
            characters.update(text)
        ends.append((ends[-1][0] + len(text), ends[-1][1] + len(text.encode("utf-8"))))
    total, size = ends[-1]
    if not total:
        raise UserError(f"{path} is empty; give a text file")
    cut = int((1 - val_fraction) * total)
    before, at = ends[bisect.bisect_right(ends, (cut, size)) - 1]
    with open(path, "rb") as file:
        file.seek(at)
        text = file.read(BLOCK_BYTES + 8).decode("utf-8", "ignore")
    boundary = at + len(text[: cut - before].encode("utf-8"))
    units = []
    with open(path, "rb") as file:
        for split, first, end in (("train", 0, boundary), ("val", boundary, size)):
            start = first
            while start < end:
                stop = _cut_at(file, start, end, unit_bytes_of(size))
                units.append(file_unit("piece", path, stop - start, start, stop) | {"split": split})
                start = stop
    return units, "".join(sorted(characters))


def _text_blocks(path: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0
    with open(path, "rb") as file:
        while raw := file.read(BLOCK_BYTES):
            if at == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(f"{path} looks like UTF-16, not UTF-8; convert it with iconv")
            if b"\0" in raw:
                raise UserError(
                    f"{path} looks binary (a zero byte at {at + raw.index(0)}); give a text"
                )
            yield _decoded(decoder, raw, path, False)
            at += len(raw)
    yield _decoded(decoder, b"", path, True)


def _decoded(decoder: Any, raw: bytes, path: str, final: bool) -> str:
    try:
        return decoder.decode(raw, final)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path} is not UTF-8 (byte {byte:#04x}: {error.reason}); convert it, for example "
            "with: iconv -f latin1 -t utf-8"
        ) from None


def _cut_at(file: IO[bytes], start: int, end: int, n_bytes: int) -> int:
    """Returns where the piece from `start` on ends: at a `CUT`, after about `n_bytes`."""
    if end - start <= n_bytes + SEARCH_BYTES:
        return end
    at = start + n_bytes
    file.seek(at)
    raw = file.read(min(SEARCH_BYTES, end - at))
    starts = (i for i, byte in enumerate(raw[:4]) if byte & 0xC0 != 0x80)  # of characters
    skipped = next(starts, 0)  # there is none in a file that has changed
    text = raw[skipped:].decode("utf-8", "ignore")
    found = CUT.search(text)
    return at + skipped + (len(text[: found.start()].encode("utf-8")) if found else 0)


def read_piece(unit: Unit) -> Iterator[Document]:
    start, end = unit["start"], unit["end"]
    with open(unit["path"], "rb") as file:
        while start < end:
            stop = _cut_at(file, start, end, documents.UNIT_BYTES)
            file.seek(start)
            raw = file.read(stop - start)
            if len(raw) < stop - start:
                raise BadInput(f"{unit['name']} has become shorter while it was read")
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(
                    f"{unit['name']} has changed while it was read: {error.reason}"
                ) from error
            yield Document(text, split=unit["split"])
            start = stop


# --- small files ---------------------------------------------------------------------------------


def check_are_prose(pattern: str, paths: list[str]) -> None:
    """Raises UserError where all files that a pattern stands for are records.

    A few among texts are documents, as in a repository; `read_files` refuses what can't be one.
    """
    kinds = set(map(file_kind, paths[:KINDS_LOOKED_AT]))
    sources = {SOURCES.get(kind.content, kind.content) for kind in kinds}
    if len(sources) > 1 or not all(map(any, kinds)):
        return
    (source,) = sources
    if source in SOURCES.values():
        raise UserError(
            f"--input {pattern}: {paths[0]} and the others are no texts; read their records: "
            f"{prepare_command(pattern, source)}"
        )
    raise UserError(f"--input {paths[0]} {way_out(paths[0], file_kind(paths[0]))}")


def file_kind(path: str) -> FileKind:
    with open(path, "rb") as file:
        return kind_of(os.path.basename(path), file.read(HEAD_BYTES))


def plan_small(path: str, size: int, unit_bytes: int) -> list[Unit]:
    return [{"kind": "files", "name": os.path.basename(path), "size": size, "paths": [path]}]


def grouped(units: list[Unit], unit_bytes: int) -> list[Unit]:
    """Joins units of one file each into units of several files."""
    grouped: list[Unit] = []
    for unit in units:
        if grouped and grouped[-1]["size"] + unit["size"] <= unit_bytes:
            grouped[-1]["size"] += unit["size"]
            grouped[-1]["paths"] += unit["paths"]
        else:
            grouped.append(unit)
    return grouped


def read_files(unit: Unit, limit: int) -> Iterator[Document | BadInput]:
    for path in unit["paths"]:
        try:
            with open(path, "rb") as file:
                raw = file.read(limit + 1)
            kind = kind_of(os.path.basename(path), raw[:HEAD_BYTES])
            if len(raw) > limit:
                yield too_large(path, limit)
            elif any(kind) and kind.content not in ("json", "csv"):  # which may be documents
                yield BadInput(f"{path} {way_out(path, kind)}")
            elif b"\0" in raw:
                yield BadInput(f"{path} looks binary (a zero byte at {raw.index(0)})")
            else:
                yield Document(raw.decode("utf-8"))
        except OSError as error:
            yield BadInput(f"{path} can't be read: {error.strerror}")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            yield BadInput(f"{path} is not UTF-8 (byte {byte:#04x} at {error.start})")

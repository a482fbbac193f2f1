"""A text file, read whole: within the machine's memory, and only if it can be prose."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gpt_jax.devices import available_memory
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.file_kinds import (
    HEAD_BYTES,
    NotAFile,
    command_for_folder,
    kind_of,
    open_regular,
    prepare_command,
    way_out,
)

NAMES = "oz, shakespeare and python-manual"  # that a corpus may have instead of a path
BLOCK_BYTES = 4 << 20  # read at once
MEMORY_PER_BYTE = 3  # at least, of a text that is read, decoded and encoded


class CorpusError(UserError):
    """A corpus that is not available or can't be used."""


def read_text(path: Path) -> str:
    """Returns a UTF-8 file's text as it is: line ends and a byte order mark stay.

    Raises:
      CorpusError: it is missing, no file, unreadable, empty, not prose, too large or not UTF-8.
    """
    try:
        raw = _read_bytes(path)
    except (NotAFile, IsADirectoryError) as error:
        if os.path.isdir(path):
            raise CorpusError(
                f"corpus {path} is a folder; give the path of a text file, or make a corpus of its "
                f"files: {command_for_folder(path)}"
            ) from None
        raise CorpusError(f"corpus {path} is {error}; write its text to a file first") from None
    except (FileNotFoundError, ValueError):  # ValueError: no path at all, such as "a\0b"
        is_folder = len(path.parts) > 1 and not path.suffix
        hint = "; data/README.md says how a large one is prepared" if is_folder else ""
        raise CorpusError(
            f"corpus {str(path)!r} is neither a file nor a name; the names are {NAMES}{hint}"
        ) from None
    except OSError as error:
        raise CorpusError(f"corpus {path} can't be read: {error.strerror}") from error
    if not raw:
        raise CorpusError(f"corpus {path} is empty; give a text file")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"corpus {path} is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); "
            "convert it, for example with: iconv -f latin1 -t utf-8"
        ) from None


def _read_bytes(path: Path) -> bytearray:
    """Returns the bytes of a file that may be prose; the first that can't be ends the reading."""
    most = (available_memory() or sys.maxsize) // MEMORY_PER_BYTE
    raw = bytearray()
    with open_regular(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            _check_is_prose(path, file.read(HEAD_BYTES), 0)
            raise _too_large(path, size)
        while block := file.read(BLOCK_BYTES):
            _check_is_prose(path, block, len(raw))
            raw += block
            if len(raw) > most:  # it grows, or has no size
                raise _too_large(path, len(raw))
    return raw


def _too_large(path: Path, size: int) -> CorpusError:
    return CorpusError(
        f"corpus {path} has {size:,} bytes, too many for this machine's memory at once; make a "
        f"corpus on disk of it: {prepare_command(str(path))}"
    )


def _check_is_prose(path: Path, block: bytes, at: int) -> None:
    """Raises CorpusError where a block of a file, from byte `at` on, can't be a text's."""
    if at == 0:
        if block[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise CorpusError(
                f"corpus {path} looks like UTF-16, not UTF-8; convert it, for example with: "
                "iconv -f utf-16 -t utf-8"
            )
        kind = kind_of(path.name, block[:HEAD_BYTES])
        if any(kind):
            raise CorpusError(f"corpus {path} {way_out(str(path), kind)}")
    if b"\0" in block:
        raise CorpusError(
            f"corpus {path} looks binary (a zero byte at {at + block.index(0)}); give a text"
        )

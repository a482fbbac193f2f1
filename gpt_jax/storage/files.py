"""Files of this machine: written whole or not at all, and small ones read within a bound.

A kill at any moment leaves the old content of a file or the new: a temporary file is renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.storage.plain_files import open_lock, open_new, read_bounded

MAX_JSON_BYTES = 1 << 26


def to_local(name: str | os.PathLike[str], wanted: str = "must be on this machine") -> Path:
    """Returns the path of a file or folder of this machine.

    Raises:
      UserError: it is somewhere else.
    """
    if re.match(r"\w{2,}:/", os.fspath(name)):  # not Windows' C:/
        raise UserError(f"{os.fspath(name)}: {wanted}")
    return Path(os.path.expanduser(name))  # unlike Path's own expanduser, takes any name


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file of this machine whole or not at all; text as UTF-8 with its line ends.

    A killed process leaves a hidden file, see `remove_unfinished`.

    Raises:
      OSError: it can't be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open_new(temporary) as file:
            file.write(to_bytes(content))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def to_bytes(content: str | bytes) -> bytes:
    return content.encode("utf-8") if isinstance(content, str) else content


def remove_unfinished(path: Path) -> None:
    """Removes the temporary files of killed writers of `path`; none may be writing it now."""
    for left in path.parent.glob(f".{path.name}.*"):
        if left.suffix[1:].isdigit():
            left.unlink(missing_ok=True)


def entries(folder: Path) -> list[Path]:
    """Returns what is in a folder; nothing where there is none: a bucket has no empty ones."""
    try:
        return sorted(path for path in folder.iterdir() if path != folder)
    except FileNotFoundError:
        return []


def files_below(folder: Path) -> Iterator[Path]:
    """Yields the files in a folder and in the folders in it, in order; for a bucket.

    On a disk see `plain_files.walk`, which follows no link.
    """
    for path in entries(folder):
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from files_below(path)


def read_small(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Returns the bytes of a small file; see `plain_files.read_bounded`, which follows a link."""
    return read_bounded(path, max_bytes)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Returns the values of a small JSON file, in UTF-8.

    Raises:
      OSError: it can't be read.
      ValueError: it is larger than `max_bytes`, not JSON, nested too deeply, or not an object.
    """
    return parse_json(read_small(path, max_bytes))


def parse_json(raw: bytes | str) -> dict[str, Any]:
    """Returns the values of a JSON object, in UTF-8; raises ValueError where it is none."""
    try:
        values = json.loads(raw if isinstance(raw, str) else raw.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values


@contextlib.contextmanager
def lock(folder: Path, doing: str = "trained") -> Generator[None]:
    """Keeps a second process from training the run of a folder, or from doing else in it.

    The file `.lock` in it is made where it is missing, and never emptied.

    Raises:
      UserError: another process does, the folder is not writable, or `.lock` is no plain file.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        file = open_lock(folder / ".lock")
    except OSError as error:
        raise UserError(f"run_dir {folder} is not writable: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being {doing} by another process") from None
        except OSError:
            pass  # a file system without locks
        yield

"""Files written so that a kill at any moment leaves the old content or the new, never a part.

On a disk that takes a temporary file and a rename; in a bucket (`gs://`) an object appears whole.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, cast

from gpt_jax.errors import UserError

BUCKET = "gs://"


def to_folder(name: str | os.PathLike[str]) -> Path:
    """Returns the path of a folder; for gs://... etils' path of a bucket, which has Path's methods.

    Raises:
      UserError: it is in a bucket that can't be had, or in storage of another kind.
    """
    text = os.path.expanduser(name)
    if not is_remote(text):
        return to_local(text, "only gs://BUCKET/FOLDER and folders of this machine are known")
    if text.removeprefix(BUCKET).strip("/").count("/") == 0:
        raise UserError(f"{text} is a bucket; name a folder in it, such as {BUCKET}my-bucket/run")
    folder = _bucket_path(text.rstrip("/"))
    _reach(folder, text)
    return folder


@functools.cache
def _reach(folder: Path, text: str) -> None:
    """Raises UserError where a bucket can't be had; asks once."""
    try:
        folder.exists()
    except Exception as error:  # no credentials, no network, no rights: a kind each
        detail = " ".join(str(error).split())
        raise UserError(
            f"{text} can't be had ({type(error).__name__}: {detail:.200}); see that the bucket is "
            "there, and log in: gcloud auth application-default login"
        ) from error


def to_local(name: str | os.PathLike[str], wanted: str = "must be on this machine") -> Path:
    """Returns the path of a file or folder of this machine.

    Raises:
      UserError: it is somewhere else.
    """
    if re.match(r"\w{2,}:/", os.fspath(name)):  # not Windows' C:/
        raise UserError(f"{os.fspath(name)}: {wanted}")
    return Path(os.path.expanduser(name))  # unlike Path's own expanduser, takes any name


@functools.cache
def _bucket_path(text: str) -> Path:
    try:
        import fsspec.config
        import gcsfs as _  # noqa: F401
    except ImportError as error:
        raise UserError(f"{text} needs another package: pip install gcsfs") from error
    from etils import epath

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it logs, it raises too
    # Others write there too: orbax past fsspec, and other hosts.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return cast(Path, epath.Path(text))


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Says whether a path is in a bucket."""
    return os.fspath(path).startswith(BUCKET)


def to_absolute(path: Path) -> Path:
    """Returns the absolute path; one in a bucket is."""
    return path if is_remote(path) else path.absolute()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all; text as UTF-8 with its line ends as they are.

    A killed process leaves a hidden file, see `remove_unfinished`.

    Raises:
      OSError: it can't be written.
    """
    raw = content.encode("utf-8") if isinstance(content, str) else content
    if is_remote(path):
        with remote_errors(path):
            path.write_bytes(raw)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def remote_errors(path: Path) -> Generator[None]:
    """Makes an OSError of what goes wrong with a bucket, of whatever kind."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        detail = " ".join(str(error).split())
        raise OSError(f"{type(error).__name__}: {detail:.200}") from error


def remove_unfinished(path: Path) -> None:
    """Removes what killed processes left of writing `path`; no other may be writing it now."""
    for left in path.parent.glob(f".{path.name}.*"):
        if left.suffix[1:].isdigit():
            left.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder with all in it, if it is there.

    Raises:
      OSError: it can't be removed.
    """
    if is_remote(folder):
        cast(Any, folder).rmtree(missing_ok=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)


def entries(folder: Path) -> list[Path]:
    """Returns what is in a folder; nothing where there is none: a bucket has no empty ones."""
    try:
        return sorted(path for path in folder.iterdir() if path != folder)
    except FileNotFoundError:
        return []


def files_below(folder: Path) -> Iterator[Path]:
    """Yields the files in a folder and in the folders in it, in order."""
    for path in entries(folder):
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from files_below(path)


@contextlib.contextmanager
def lock(run_dir: Path, doing: str = "trained") -> Generator[None]:
    """Keeps a second process from training the same run, or from doing else in a folder."""
    try:
        import fcntl
    except ImportError:  # Windows
        fcntl = None
    if fcntl is None or is_remote(run_dir):  # a bucket has no locks
        yield
        return
    try:
        file = (run_dir / ".lock").open("w")
    except OSError as error:
        raise UserError(f"run_dir {run_dir} is not writable: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run_dir} is being {doing} by another process") from None
        except OSError:
            pass  # a file system without locks
        yield

"""Folders with two means, a disk and a bucket (`gs://`): no other module asks which one it is.

In a bucket an object appears whole, and nothing can be appended, renamed or locked. Paths there are
etils', as orbax's are.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from gpt_jax.errors import UserError
from gpt_jax.storage import plain_files
from gpt_jax.storage.files import (
    MAX_JSON_BYTES,
    entries,
    files_below,
    lock,
    parse_json,
    to_bytes,
    to_local,
    write_atomically,
)
from gpt_jax.storage.logs import DiskLog, Log, LogFiles, UploadedFiles

BUCKET = "gs://"
MAX_LOG_BYTES = 1 << 30


def to_folder(name: str | os.PathLike[str]) -> Path:
    """Returns the path of a folder; for gs://... etils' path of a bucket, which has Path's methods.

    Raises:
      UserError: its bucket is not available, or it is in storage of another kind.
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
    """Raises UserError where a bucket is not available; asks once."""
    try:
        folder.exists()
    except Exception as error:  # no credentials, no network, no rights: a kind each
        detail = " ".join(str(error).split())
        raise UserError(
            f"{text} is not available ({type(error).__name__}: {detail:.200}); check that the "
            "bucket exists, and log in: gcloud auth application-default login"
        ) from error


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


class Folder:
    """A folder on a disk; `BucketFolder` has the same methods. What goes wrong is an OSError.

    Nothing in it is reached through a symbolic link: a `LinkError` names one that is in the way.

    Attributes:
      path: as it was named; in a bucket etils' path, which has the methods of Path.
    """

    def __init__(self, path: Path):
        self.path = path

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    __str__ = __fspath__

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Makes an OSError of what goes wrong in the use of `path`."""
        return contextlib.nullcontext()

    def absolute(self) -> Path:
        """Returns the path, whatever the current folder."""
        return self.path.absolute()

    def real_path(self) -> str:
        """Returns one text for the folder, by whatever name or link it was reached."""
        return os.path.realpath(self.path)

    def local_path(self, what: str) -> Path:
        """Returns the path on this machine; a UserError says that `what` must be copied to it."""
        return self.path

    def kind(self) -> str:
        """Returns "folder", "file", or "" where there is nothing of that name."""
        if os.path.isdir(self.path):
            return "folder"
        return "file" if os.path.lexists(self.path) else ""

    def has(self, name: str) -> bool:
        """Says whether a file is in the folder."""
        return os.path.isfile(self.path / name)  # Path.is_file raises on too long a name

    def inside(self, name: str) -> Path:
        """Returns the path of a name in it, checked just now; see `plain_files.inside`."""
        return plain_files.inside(self.path, name)

    def entries(self, name: str = "") -> list[Path]:
        """Returns what is in the folder, or in one in it; nothing where there is none."""
        return entries(self.inside(name))

    def files(self, name: str = "") -> Iterator[Path]:
        """Yields the files below the folder, or one in it; see `plain_files.walk`."""
        return plain_files.walk(self.inside(name))

    def check(self, name: str) -> None:
        """Raises LinkError where a folder in it has anything but files and folders."""
        plain_files.check_tree(self.inside(name))

    def open(self, path: Path) -> BinaryIO:
        """Opens one of `files` for reading."""
        return plain_files.open_regular(path, follow=False)

    def make_folder(self, name: str) -> None:
        """Makes a folder in it, unless it is there."""
        self.inside(name).mkdir(exist_ok=True)

    def create(self, files: Mapping[str, str]) -> None:
        """Makes a folder that is empty or missing; whole only once it has the last of `files`."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        plain_files.remove_leftovers(self.path, files)
        try:
            temporary.mkdir(parents=True)
            for name, content in files.items():
                write_atomically(temporary / name, content)
            if os.path.isdir(self.path):
                self.path.rmdir()  # refuses one with files
            temporary.rename(self.path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def obstacles(self, files: Collection[str]) -> list[str]:
        """Returns the names in the folder that keep `create(files)` from making it."""
        return [path.name for path in self.entries()] if self.kind() else []

    def read(self, name: str, max_bytes: int = MAX_JSON_BYTES, *, follow: bool = False) -> bytes:
        """Returns a small file's bytes; a link is followed where the caller says so.

        Raises:
          ValueError: it is larger.
        """
        path = self.path / name if follow else self.inside(name)
        return plain_files.read_bounded(path, max_bytes, follow=follow)

    def read_text(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> str:
        """Returns a small file's text; raises ValueError where it is not UTF-8, or larger."""
        return self.read(name, max_bytes).decode("utf-8")

    def read_lines(self, name: str, max_bytes: int) -> Iterator[bytes]:
        """Yields a file's lines, each with its end and of at most `max_bytes`; else it is cut."""
        with plain_files.open_regular(self.inside(name), follow=False) as file:
            while line := file.readline(max_bytes):
                yield line

    def read_json(self, name: str, *, follow: bool = False) -> dict[str, Any]:
        """Returns a small file's values; raises as the function does."""
        return parse_json(self.read(name, follow=follow))

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file whole or not at all; text as UTF-8."""
        write_atomically(self.inside(name), content)

    def remove(self, name: str) -> None:
        """Removes a file or a folder in it with all in that; of a link, the link itself."""
        parent, _, last = name.rpartition("/")
        plain_files.remove(self.inside(parent) / last)

    def remove_unfinished(self, name: str) -> None:
        """Removes what killed writers left of files in a folder in it; `name` is a pattern.

        Nobody may be writing there now.
        """
        parent, _, last = name.rpartition("/")
        unfinished = re.compile(rf"\.{last}\.\d+")
        for path in self.entries(parent):
            if unfinished.fullmatch(path.name) and not os.path.isdir(path):
                plain_files.remove(path)

    def append_log(self, name: str, content: str) -> Log:
        """Opens a text for appending, which begins as `content`."""
        return DiskLog(functools.partial(self.write, name), content, self.inside(name))

    def append_files(self, name: str) -> LogFiles:
        """Opens a folder in it in which another library appends to files of its choice."""
        return LogFiles(self.inside(name))

    def lock(self, doing: str = "trained") -> contextlib.AbstractContextManager[None]:
        """Keeps other processes out, where the storage can; raises UserError where one is in."""
        return lock(self.path, doing)

    @contextlib.contextmanager
    def watch(self, name: str) -> Generator[Callable[[], bool]]:
        """Yields a function: whether the folder is there, the same one, and has a file `name`."""
        if os.name == "nt":  # where an open folder can't be removed
            yield lambda: self.has(name)
            return
        opened = os.open(self.path, os.O_RDONLY)  # so that no other folder gets its number

        def is_same() -> bool:
            try:
                return os.path.samestat(os.fstat(opened), os.stat(self.path)) and self.has(name)
            except OSError:
                return False

        try:
            yield is_same
        finally:
            os.close(opened)


class BucketFolder(Folder):
    """A folder in a bucket: an object appears whole; nothing is appended, renamed or locked."""

    @contextlib.contextmanager
    def errors(self) -> Generator[None]:
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            detail = " ".join(str(error).split())
            raise OSError(f"{type(error).__name__}: {detail:.200}") from error

    def absolute(self) -> Path:
        return self.path

    def real_path(self) -> str:
        return os.fspath(self.path)

    def local_path(self, what: str) -> Path:
        raise UserError(f"{self} is {what}; copy it to this machine")

    def kind(self) -> str:
        return "folder" if self.entries() else ""  # a bucket has no empty ones

    def has(self, name: str) -> bool:
        with self.errors():
            return (self.path / name).is_file()

    def inside(self, name: str) -> Path:
        return self.path / name  # a bucket has no links

    def entries(self, name: str = "") -> list[Path]:
        with self.errors():
            return entries(self.path / name)

    def files(self, name: str = "") -> Iterator[Path]:
        return files_below(self.path / name)

    def check(self, name: str) -> None:
        """Does nothing: there are no links."""

    def open(self, path: Path) -> BinaryIO:
        return path.open("rb")

    def make_folder(self, name: str) -> None:
        """Does nothing: a bucket's folders come with what is in them."""

    def create(self, files: Mapping[str, str]) -> None:
        for name, content in files.items():
            self.write(name, content)

    def obstacles(self, files: Collection[str]) -> list[str]:
        *others, _ = files  # what a kill left of `create`
        return [path.name for path in self.entries() if path.name not in others]

    def read(self, name: str, max_bytes: int = MAX_JSON_BYTES, *, follow: bool = False) -> bytes:
        with self.errors(), (self.path / name).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size <= max_bytes:
                file.seek(0)
                return file.read(size)
        raise ValueError(f"it has more than {max_bytes:,} bytes")

    def read_lines(self, name: str, max_bytes: int) -> Iterator[bytes]:
        return iter(self.read(name, MAX_LOG_BYTES).splitlines(keepends=True))

    def write(self, name: str, content: str | bytes) -> None:
        with self.errors():
            (self.path / name).write_bytes(to_bytes(content))

    def remove(self, name: str) -> None:
        with self.errors():
            path = cast(Any, self.path / name)
            if path.is_file():
                path.unlink(missing_ok=True)
            else:
                path.rmtree(missing_ok=True)

    def remove_unfinished(self, name: str) -> None:
        """Does nothing: an object appears whole."""

    def append_log(self, name: str, content: str) -> Log:
        return Log(functools.partial(self.write, name), content)

    def append_files(self, name: str) -> LogFiles:
        return UploadedFiles(lambda file, content: self.write(f"{name}/{file}", content))

    def lock(self, doing: str = "trained") -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def watch(self, name: str) -> Generator[Callable[[], bool]]:
        yield lambda: self.has(name)


def open_folder(name: str | os.PathLike[str]) -> Folder:
    """Returns the folder of a name; one that is open is returned as it is.

    Raises:
      UserError: see `to_folder`.
    """
    if isinstance(name, Folder):
        return name
    path = to_folder(name)
    return BucketFolder(path) if is_remote(path) else Folder(path)

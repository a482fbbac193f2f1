"""Folders with two means, a disk and a bucket (`gs://`): no other module asks which one it is.

In a bucket an object appears whole, and nothing can be appended, renamed or locked. Paths there are
etils', as orbax's are.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Generator, Mapping
from pathlib import Path
from typing import Any, cast

from gpt_jax.errors import UserError
from gpt_jax.storage.files import (
    entries,
    lock,
    parse_json,
    read_small,
    to_bytes,
    to_local,
    write_atomically,
)

BUCKET = "gs://"


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

    def entries(self, name: str = "") -> list[Path]:
        """Returns what is in the folder, or in one in it; nothing where there is none."""
        with self.errors():
            return entries(self.path / name)

    def create(self, files: Mapping[str, str]) -> None:
        """Makes a folder that is empty or missing; whole only once it has the last of `files`."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
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

    def read_text(self, name: str) -> str:
        """Returns a file's text, of any size; raises ValueError where it is not UTF-8."""
        with self.errors():
            raw = (self.path / name).read_bytes()
        return raw.decode("utf-8")

    def read_json(self, name: str) -> dict[str, Any]:
        """Returns a small file's values; raises as the function does."""
        with self.errors():
            raw = read_small(self.path / name)
        return parse_json(raw)

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file whole or not at all; text as UTF-8."""
        write_atomically(self.path / name, content)

    def remove(self, name: str) -> None:
        """Removes a folder in it with all in that, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path / name)

    def append_log(self, name: str, content: str) -> Log:
        """Opens a text for appending, which begins as `content`."""
        return DiskLog(self, name, content)

    def append_files(self, name: str) -> LogFiles:
        """Opens a folder in it in which another library appends to files of its choice."""
        return LogFiles(self.path / name)

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

    def local_path(self, what: str) -> Path:
        raise UserError(f"{self} is {what}; copy it to this machine")

    def kind(self) -> str:
        return "folder" if self.entries() else ""  # a bucket has no empty ones

    def has(self, name: str) -> bool:
        with self.errors():
            return (self.path / name).is_file()

    def create(self, files: Mapping[str, str]) -> None:
        for name, content in files.items():
            self.write(name, content)

    def obstacles(self, files: Collection[str]) -> list[str]:
        *others, _ = files  # what a kill left of `create`
        return [path.name for path in self.entries() if path.name not in others]

    def write(self, name: str, content: str | bytes) -> None:
        with self.errors():
            (self.path / name).write_bytes(to_bytes(content))

    def remove(self, name: str) -> None:
        with self.errors():
            cast(Any, self.path / name).rmtree(missing_ok=True)

    def append_log(self, name: str, content: str) -> Log:
        return Log(self, name, content)

    def append_files(self, name: str) -> LogFiles:
        return UploadedFiles(self, name)

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


class Log:
    """A text that grows: kept in memory, and written anew by each `sync`."""

    def __init__(self, folder: Folder, name: str, content: str):
        self._folder, self._name, self._texts = folder, name, [content]
        folder.write(name, content)

    def write(self, text: str) -> None:
        """Appends; the text lasts from the next `sync` on."""
        self._texts.append(text)

    def sync(self) -> None:
        self._folder.write(self._name, "".join(self._texts))

    def close(self) -> None:
        """Leaves what is not synced."""


class DiskLog(Log):
    """A text that grows in its file; what is written is in the operating system's hands."""

    def __init__(self, folder: Folder, name: str, content: str):
        super().__init__(folder, name, content)
        self._file = (folder.path / name).open("a", encoding="utf-8")

    def write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class LogFiles:
    """Files that another library appends to, in the folder `path` of this machine."""

    def __init__(self, path: Path):
        self.path = path

    def sync(self) -> None:
        """Puts them where they belong."""

    def close(self) -> None:
        """Leaves what is not synced."""


class UploadedFiles(LogFiles):
    """Files that are appended to in a temporary folder and copied to a bucket by each `sync`."""

    def __init__(self, folder: Folder, name: str):
        self._folder, self._name = folder, name
        self._temporary = tempfile.TemporaryDirectory(prefix="gpt_jax_events_")
        super().__init__(Path(self._temporary.name))

    def sync(self) -> None:
        for path in self.path.iterdir():
            self._folder.write(f"{self._name}/{path.name}", path.read_bytes())

    def close(self) -> None:
        self._temporary.cleanup()

"""Texts and files that grow while a run is trained, on a disk and in a bucket."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from gpt_jax.storage.files import to_bytes
from gpt_jax.storage.plain_files import open_in_place


class Log:
    """A text that grows: kept in memory, and written anew by each `sync`."""

    def __init__(self, write: Callable[[str], None], content: str):
        """Takes what writes the whole text, which begins as `content`."""
        self._write_all, self._texts = write, [content]
        write(content)

    def write(self, text: str) -> None:
        """Appends; the text lasts from the next `sync` on."""
        self._texts.append(text)

    def sync(self) -> None:
        self._write_all("".join(self._texts))

    def close(self) -> None:
        """Leaves what is not synced."""


class DiskLog(Log):
    """A text that grows in its file; what is written is in the operating system's hands."""

    def __init__(self, write: Callable[[str], None], content: str, path: Path):
        super().__init__(write, content)
        self._file = open_in_place(path, append=True)

    def write(self, text: str) -> None:
        self._file.write(to_bytes(text))
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

    def __init__(self, write: Callable[[str, bytes], None]):
        """Takes what writes a file of the bucket's folder."""
        self._write = write
        self._temporary = tempfile.TemporaryDirectory(prefix="gpt_jax_events_")
        super().__init__(Path(self._temporary.name))

    def sync(self) -> None:
        for path in self.path.iterdir():
            self._write(path.name, path.read_bytes())

    def close(self) -> None:
        self._temporary.cleanup()

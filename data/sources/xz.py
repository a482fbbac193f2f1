"""The .xz files of others, unpacked in bounded memory: a file says itself how much it wants."""

from __future__ import annotations

import io
import lzma
from typing import Any

MAX_BYTES = 1 << 28  # `xz -9` wants 65 MB; a file may ask for 1.5 GB, or 4 GB
READ_BYTES = 1 << 16


class XzFile(io.RawIOBase):
    """The unpacked bytes of one stream or several, as `xz --decompress` gives them.

    Reading raises LZMAError where the file is damaged or wants more than `MAX_BYTES`, and EOFError
    where it is truncated.
    """

    def __init__(self, path: str):
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._stream = _decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while len(view):
            if self._stream.eof and not self._begin_next():
                return 0
            raw = b""
            if self._stream.needs_input:
                raw = self._file.read(READ_BYTES)
                if not raw:
                    raise EOFError("it ends before its end marker")
            found = self._stream.decompress(raw, len(view))
            if found:
                view[: len(found)] = found
                return len(found)
        return 0

    def _begin_next(self) -> bool:
        """Begins the next stream, after zeros; returns whether there is one."""
        rest = self._stream.unused_data.lstrip(b"\0")
        while not rest:
            raw = self._file.read(READ_BYTES)
            if not raw:
                return False
            rest = raw.lstrip(b"\0")
        self._stream = _decompressor()
        self._file.seek(-len(rest), io.SEEK_CUR)
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _decompressor() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=MAX_BYTES)

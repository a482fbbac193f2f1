""".xz files: streams one after another as `xz` reads them, and no more memory than allowed."""

import io
import lzma
import tracemalloc
import zlib

import pytest

from data.config import PrepareConfig
from data.sources import json_lines
from data.sources.documents import BadInput, file_unit
from data.sources.xz import XzFile


def with_dictionary(raw, log2):
    """Returns packed bytes whose header asks for another dictionary; packing takes none of it."""
    made = bytearray(lzma.compress(raw, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}]))
    header = 12  # of the stream; then the block's: its size, flags, filter, length of properties
    size = 4 * (made[header] + 1)
    assert made[header + 2 : header + 4] == b"\x21\x01"
    made[header + 4] = 2 * (log2 - 12)
    check = zlib.crc32(bytes(made[header : header + size - 4]))
    made[header + size - 4 : header + size] = check.to_bytes(4, "little")
    return bytes(made)


@pytest.mark.parametrize("form", [lzma.FORMAT_XZ, lzma.FORMAT_ALONE])
def test_streams_with_zeros_between_are_read_as_one(tmp_path, form):
    raw = bytes(range(256)) * 900
    packed, wanted = lzma.compress(raw, format=form), raw
    if form == lzma.FORMAT_XZ:
        wanted += b"b" * 70_000
        packed += bytes(8) + lzma.compress(b"b" * 70_000) + bytes(4)
    path = tmp_path / "a.xz"
    path.write_bytes(packed)
    with XzFile(str(path)) as file:
        assert io.BufferedReader(file, 1000).read() == wanted
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(EOFError), XzFile(str(path)) as file:
        file.read()


def test_a_dictionary_that_takes_memory_is_refused_before_it_does(tmp_path):
    path = tmp_path / "a.jsonl.xz"
    config = PrepareConfig(source="jsonl", input="-", out="-")
    unit = file_unit("lines", str(path), 100)
    line = b'{"text": "a"}\n'
    for log2, is_sound in [(20, True), (27, True), (29, False), (30, False)]:
        for before in (b"", lzma.compress(line)):
            path.write_bytes(before + with_dictionary(line, log2))
            tracemalloc.start()
            try:
                if is_sound:
                    assert {d.text for d in json_lines.read(unit, config)} == {"a"}
                else:
                    with pytest.raises(BadInput, match=r"to its end: Memory usage limit exceeded"):
                        list(json_lines.read(unit, config))
                assert tracemalloc.get_traced_memory()[1] < 1 << 28
            finally:
                tracemalloc.stop()

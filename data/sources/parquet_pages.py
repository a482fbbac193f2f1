"""The sizes of a Parquet column's pages once unpacked, read from their headers alone.

A page of some hundred bytes may unpack to two gigabytes, and one entry of a dictionary may stand
for each of a million rows. The file's metadata can't be believed on this, but the header of each
page can: readers allocate what it says, and refuse a page that has another size.

The headers are Thrift structs in the compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md), PageHeader of
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

from typing import IO, Any, NamedTuple

HEADER_BYTES = 1 << 12  # read at first; statistics may make one longer
MAX_HEADER_BYTES = 1 << 24  # as Arrow's
DICTIONARY_PAGE = 2
PAGE_TYPE, UNPACKED_SIZE, PACKED_SIZE = 1, 2, 3  # fields of PageHeader


class PageSizes(NamedTuple):
    """Bytes of the largest page of a column chunk, and of its dictionary (0 without one)."""

    largest: int
    dictionary: int


def page_sizes(file: IO[bytes], chunk: Any) -> PageSizes:
    """Returns the sizes of a column chunk's pages.

    Args:
      file: the whole Parquet file.
      chunk: pyarrow's ColumnChunkMetaData.

    Raises:
      ValueError: the headers can't be read.
    """
    at = chunk.data_page_offset
    if chunk.dictionary_page_offset:
        at = min(at, chunk.dictionary_page_offset)
    end = at + chunk.total_compressed_size
    largest = dictionary = 0
    while at < end:
        fields, length = _header(file, at)
        unpacked, packed = fields.get(UNPACKED_SIZE, -1), fields.get(PACKED_SIZE, -1)
        if min(unpacked, packed) < 0:
            raise ValueError(f"the page at byte {at:,} has no size")
        largest = max(largest, unpacked)
        if fields.get(PAGE_TYPE) == DICTIONARY_PAGE:
            dictionary = max(dictionary, unpacked)
        at += length + packed
    return PageSizes(largest, dictionary)


def _header(file: IO[bytes], at: int) -> tuple[dict[int, int], int]:
    """Returns the whole numbers of a page's header by field, and the header's length in bytes."""
    size = HEADER_BYTES
    while True:
        file.seek(at)
        raw = file.read(size)
        try:
            return _struct(raw, 0, 0)
        except IndexError:
            if len(raw) < size or size >= MAX_HEADER_BYTES:
                raise ValueError(f"the page at byte {at:,} has no header") from None
            size = MAX_HEADER_BYTES


def _struct(raw: bytes, at: int, depth: int) -> tuple[dict[int, int], int]:
    """Returns a struct's whole numbers by field, and where it ends; the rest is passed over."""
    if depth > 8:
        raise ValueError("a page's header is nested too deeply")
    fields: dict[int, int] = {}
    number = 0
    while byte := raw[at]:
        at, kind = at + 1, byte & 15
        if byte >> 4:
            number += byte >> 4
        else:
            number, at = _number(raw, at)
        if kind in (4, 5, 6):  # i16, i32, i64
            fields[number], at = _number(raw, at)
        else:
            at = _skip(raw, at, kind, depth)
    return fields, at + 1


def _skip(raw: bytes, at: int, kind: int, depth: int) -> int:
    """Returns where a value ends that is no whole number."""
    if kind in (1, 2):  # true, false
        return at
    if kind == 3:  # a byte
        return at + 1
    if kind == 7:  # a double
        return at + 8
    if kind == 8:  # bytes
        length, at = _varint(raw, at)
        return at + length
    if kind == 12:
        return _struct(raw, at, depth + 1)[1]
    raise ValueError(f"a page's header has a field of kind {kind}")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a page's header has a number without an end")


def _number(raw: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(raw, at)
    return value >> 1 ^ -(value & 1), at  # zigzag

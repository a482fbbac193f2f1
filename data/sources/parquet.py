"""Parquet files: one document per row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.config import PrepareConfig
from data.sources.documents import (
    EXTRAS,
    BadInput,
    Document,
    Unit,
    file_unit,
    import_optional,
    one_line,
    to_document,
    too_large,
)
from data.sources.parquet_pages import page_sizes
from gpt_jax.errors import UserError

BATCH_ROWS = 256
BATCH_BYTES = 64 << 20  # that the rows of a batch may have once decoded; of one row, any number
MOST_PAGES = 4  # a page may be this many times a document, or a batch
PLAIN = {"PLAIN", "RLE", "BIT_PACKED", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BINARY_PACKED"}


def _open(path: str) -> Any:
    pyarrow, parquet = import_optional("pyarrow"), import_optional("pyarrow.parquet")
    if parquet is None:
        raise UserError(f"--source parquet needs pyarrow: {EXTRAS}")
    try:  # a page at a time, not a column of a row group at a time
        return parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        )
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(f"{path} is no whole Parquet file: {one_line(error)}") from error


def plan(path: str, size: int, unit_bytes: int) -> list[Unit]:
    """Divides a file into ranges of row groups."""
    with _open(path) as file:
        metadata = file.metadata
        sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    units, start, total = [], 0, sum(sizes) or 1
    for i in range(len(sizes)):
        inside = sum(sizes[start : i + 1])
        if inside >= 2 * unit_bytes or i == len(sizes) - 1:
            units.append(file_unit("parquet", path, size * inside // total, start, i + 1))
            start = i + 1
    return units


def read_file(unit: Unit, config: PrepareConfig) -> Iterator[Document | BadInput]:
    """Yields the documents of a whole file; see `readers.read_unit`."""
    with _open(unit["path"]) as file:
        n_groups = file.metadata.num_row_groups
    return read({**unit, "start": 0, "end": n_groups}, config)


def read(unit: Unit, config: PrepareConfig) -> Iterator[Document | BadInput]:
    field, limit = config.text_field, config.max_document_mb << 20
    failures = (import_optional("pyarrow").ArrowException, OSError, UnicodeDecodeError)
    with _open(unit["path"]) as file:
        _check_has_column(file, field, unit["path"])
        row = 0
        try:
            for group in range(unit["start"], unit["end"]):
                n_rows = _rows_at_once(unit["path"], file.metadata.row_group(group), field, limit)
                if not n_rows:
                    yield BadInput(
                        f"{unit['name']}, row group {group}, has a page that is too large once "
                        "unpacked (see --max-document-mb)"
                    )
                    row += file.metadata.row_group(group).num_rows
                    continue
                for batch in file.iter_batches(
                    batch_size=n_rows, row_groups=[group], columns=[field], use_threads=False
                ):
                    # `columns` are paths: "a.b" is also the part b of a column a
                    for value in batch.column(batch.schema.get_field_index(field)):
                        yield _document(value, f"{unit['name']}, row {row:,} from there", config)
                        row += 1
        except failures as error:
            raise BadInput(f"{unit['name']} can't be read to its end: {one_line(error)}") from error


def _check_has_column(file: Any, field: str, path: str) -> None:
    names = file.schema_arrow.names
    if field not in names:
        raise UserError(
            f"{path} has no column {field!r}; its columns are {', '.join(names)} (see --text-field)"
        )
    if names.count(field) > 1:
        raise UserError(f"{path} has {names.count(field)} columns called {field!r}; rename one")


def _rows_at_once(path: str, group: Any, field: str, limit: int) -> int:
    """Returns how many rows of a row group are decoded at once; 0 if a page of it is too large.

    A row of a dictionary has at most the dictionary's size. One that is stored as a difference from
    the row before it may be as long as a page, whatever it takes there.
    """
    chunks = [group.column(i) for i in range(group.num_columns)]
    chunks = [
        c for c in chunks if c.path_in_schema == field or c.path_in_schema.startswith(f"{field}.")
    ]
    n_rows = BATCH_ROWS
    with open(path, "rb") as file:
        for chunk in chunks:
            try:
                sizes = page_sizes(file, chunk)
            except ValueError:  # what is wrong with it, pyarrow says better
                return 1
            if sizes.largest > max(limit, BATCH_BYTES) * MOST_PAGES:
                return 0
            if not PLAIN.issuperset(chunk.encodings):
                largest = sizes.dictionary or BATCH_BYTES
                n_rows = min(n_rows, max(1, BATCH_BYTES // largest))
            if "DELTA_BYTE_ARRAY" in chunk.encodings:
                n_rows = 1
    return n_rows


def _document(value: Any, where: str, config: PrepareConfig) -> Document | BadInput:
    limit = config.max_document_mb << 20
    buffer = value.as_buffer() if hasattr(value, "as_buffer") else None
    if buffer is not None and buffer.size > limit:
        return too_large(where, limit)
    return to_document(value.as_py(), config.text_field, where)

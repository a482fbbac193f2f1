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
from gpt_jax.errors import UserError


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


def read(unit: Unit, config: PrepareConfig) -> Iterator[Document | BadInput]:
    field, limit = config.text_field, config.max_document_mb << 20
    failures = (import_optional("pyarrow").ArrowException, OSError, UnicodeDecodeError)
    with _open(unit["path"]) as file:
        if field not in file.schema_arrow.names:
            raise UserError(
                f"{unit['path']} has no column {field!r}; its columns are "
                f"{', '.join(file.schema_arrow.names)} (see --text-field)"
            )
        row = 0
        try:
            for batch in file.iter_batches(
                batch_size=256,
                row_groups=list(range(unit["start"], unit["end"])),
                columns=[field],
                use_threads=False,
            ):
                for value in batch.column(0):
                    where = f"{unit['name']}, row {row:,} from there"
                    row += 1
                    buffer = value.as_buffer() if hasattr(value, "as_buffer") else None
                    if buffer is not None and buffer.size > limit:
                        yield too_large(where, limit)
                    else:
                        yield to_document(value.as_py(), field, where)
        except failures as error:
            raise BadInput(f"{unit['name']} can't be read to its end: {one_line(error)}") from error

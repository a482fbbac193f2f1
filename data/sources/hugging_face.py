"""Data sets of the Hugging Face hub, streamed, or in a folder: one document per record."""

from __future__ import annotations

import importlib
import os
import zlib
from collections.abc import Iterator
from typing import Any

from data.config import PrepareConfig
from data.sources import parquet
from data.sources.documents import (
    EXTRAS,
    BadInput,
    Document,
    Plan,
    Unit,
    import_optional,
    one_line,
    to_document,
    too_large,
)
from data.sources.local_files import local_files
from gpt_jax.errors import TrainingError, UserError

# The packages whose errors are the network's: those under `datasets`, in all its versions.
NETWORK = {
    "aiohttp", "http", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests",
    "urllib3",
}  # fmt: skip


def _dataset(name: str, config: PrepareConfig, revision: str | None) -> Any:
    datasets = import_optional("datasets")
    if datasets is None:
        raise UserError(f"--source hf needs the package datasets: {EXTRAS}")
    try:
        return datasets.load_dataset(
            name,
            name=config.hf_config,
            split=config.hf_split,
            revision=revision,
            streaming=True,
        )
    except Exception as error:  # the hub, the network and the formats raise many kinds
        raise _unopened(name, error) from error


def _unopened(name: str, error: Exception) -> UserError | TrainingError:
    """Returns the error for a data set that can't be opened."""
    what = f"{type(error).__name__}: {one_line(error)}"
    if not os.path.isdir(name) and _network_error(error) and not _refused(error):
        return TrainingError(
            f"data set {name} is not available: {what}; run the same command again to resume"
        )
    return UserError(
        f"data set {name} can't be opened: {what}; check --input, --hf-config, --hf-split and "
        "--hf-revision (data sets made by a script need --hf-revision refs/convert/parquet)"
    )


def _network_error(error: BaseException) -> BaseException | None:
    """Returns the first of an error's causes that comes from the connection, server or disk.

    None means that the data is at fault: formats raise ValueErrors, and OSErrors without a number.
    """
    at: BaseException | None = error
    for _ in range(20):  # causes may be a ring
        if at is None:
            break
        package = {kind.__module__.partition(".")[0] for kind in type(at).__mro__} & NETWORK
        if package and (isinstance(at, OSError) or not isinstance(at, ValueError)):
            return at
        if isinstance(at, OSError) and (
            at.errno is not None or isinstance(at, ConnectionError | TimeoutError)
        ):
            return at
        at = at.__cause__ or at.__context__
    return None


def _refused(error: BaseException) -> bool:
    """Returns whether a server refused in a way that another attempt won't change."""
    status = getattr(getattr(_network_error(error), "response", None), "status_code", None)
    return status is not None and status < 500 and status not in (408, 429)


def plan(config: PrepareConfig) -> Plan:
    """Returns a unit for each file of a data set; the commit is pinned, if there is one."""
    name = os.path.expanduser(config.input)
    name = os.path.abspath(name) if os.path.isdir(name) else name
    data_set = _dataset(name, config, config.hf_revision)
    field = config.text_field
    if data_set.column_names and field not in data_set.column_names:
        raise UserError(
            f"data set {config.input} has no column {field!r}; its columns are "
            f"{', '.join(data_set.column_names)} (see --text-field)"
        )
    revision = config.hf_revision
    if not os.path.isdir(name):
        hub = importlib.import_module("huggingface_hub")  # comes with datasets
        try:
            revision = hub.HfApi().dataset_info(name, revision=revision).sha
        except Exception as error:  # the hub and the network raise many kinds
            raise _unopened(name, error) from error
    n = data_set.num_shards
    units = [
        {
            "kind": "hf",
            "name": f"{config.input}, file {i + 1} of {n}",
            "path": name,
            "size": 0,
            "index": i,
            "count": n,
            "revision": revision,
        }
        for i in range(n)
    ]
    files, facts = local_files(config) if os.path.isdir(name) else ([], {"files": n})
    return Plan(units, files, facts={**facts, "revision": revision})


def _local_parquet(unit: Unit, config: PrepareConfig) -> Unit | None:
    """Returns the unit of a Parquet file in a folder, which `parquet.py` reads in bounded memory.

    The package decodes a whole row group at once, whatever that takes. None for other files.
    """
    if not os.path.isdir(unit["path"]):
        return None
    datasets = import_optional("datasets")
    try:
        builder = datasets.load_dataset_builder(unit["path"], name=config.hf_config)
        files = list((builder.config.data_files or {}).get(config.hf_split, ()))
    except Exception as error:  # the formats raise many kinds
        raise _unopened(unit["path"], error) from error
    if builder.name != "parquet" or len(files) != unit["count"]:
        return None
    path = str(files[unit["index"]])
    return {**unit, "path": path} if os.path.isfile(path) else None


def read(unit: Unit, config: PrepareConfig) -> Iterator[Document | BadInput]:
    if local := _local_parquet(unit, config):
        yield from parquet.read_file(local, config)
        return
    data_set = _dataset(unit["path"], config, unit["revision"])
    limit, field = config.max_document_mb << 20, config.text_field
    shard = data_set.shard(num_shards=unit["count"], index=unit["index"])
    row = 0
    try:
        for record in shard.select_columns([field]):
            where = f"{unit['name']}, row {row:,}"
            row += 1
            text = record.get(field)
            if isinstance(text, str) and 4 * len(text) > limit and len(text.encode()) > limit:
                yield too_large(where, limit)
            else:
                yield to_document(text, field, where)
    except Exception as error:  # the packages' kinds can't be named here; others are raised on
        if not os.path.isdir(unit["path"]) and _network_error(error):
            raise _unopened(unit["path"], error) from error  # not the data's fault
        if not isinstance(error, EOFError | OSError | ValueError | zlib.error):
            raise
        raise BadInput(f"{unit['name']} can't be read to its end: {one_line(error)}") from error

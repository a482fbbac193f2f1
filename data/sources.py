"""Where documents come from: plans that part a source into units, and readers of one unit each.

A unit is a dict, ready for JSON: a piece of a text, some small files, a range of lines, some row
groups, else a whole file. Where the format allows it is of about a megabyte, and of a larger source
of about one of `MAX_UNITS` equal parts, so that the plan stays small. Units stand in the order of
the corpus and are read independently of one another, in any process, without holding a unit in
memory.

A reader yields `Document`s, and a `Damage` for a record that is none; for a file that breaks off or
is of another kind it raises `Damage`. No reader takes a short file for a whole one.
"""

from __future__ import annotations

import bisect
import codecs
import dataclasses
import glob
import gzip
import importlib
import io
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson

from data.settings import PrepareConfig
from gpt_jax.errors import TrainingError, UserError

UNIT_BYTES = 1 << 20  # at least; small, so that processes end at about the same time
MAX_UNITS = 50_000  # about; every process holds the plan
BLOCK_BYTES = 4 << 20
STREAM_BYTES = 1 << 17
SEARCH_BYTES = 1 << 18
EXTRAS = "pip install -r requirements-data.txt"
# The packages whose errors are the network's: those under `datasets`, in all its versions.
NETWORK = {
    "aiohttp", "http", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub", "requests",
    "urllib3",
}  # fmt: skip

Unit = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Document:
    """One document: its text, the language tags of its source, the split where it is given."""

    text: str
    language: str | None = None
    split: str | None = None


class Damage(Exception):
    """A record or a file that can't be read; the message names it."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What there is to read.

    Attributes:
      units: in the order of the corpus; each has a "name" for people and a "size" in bytes, if only
        of what is stored, or 0.
      files: (path, bytes, time of change in ns) of each file, to notice that one has changed.
      by_position: the corpus is a single text, cut into the splits by position.
      characters: of a single text, in order, where its tokenizer is to be of characters.
      damaged: files that were left out.
      facts: what the manifest is to say of the source.
    """

    units: list[Unit]
    files: list[tuple[str, int, int]]
    by_position: bool = False
    characters: str = ""
    damaged: tuple[str, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def make_plan(config: PrepareConfig, work: Path) -> Plan:
    """Returns the plan of a source; `work` keeps what had to be downloaded for it.

    Raises:
      UserError: there is nothing to read, or it is of another kind; which, and a way out.
      TrainingError: it can't be had now.
    """
    if config.source == "hf":
        return _plan_hf(config)
    if config.source == "wet":
        from data import common_crawl

        if common_crawl.is_crawl(config.input):
            return common_crawl.plan(config, work)
    files, facts = local_files(config)
    if config.source == "text" and len(files) == 1:
        path, with_characters = files[0][0], config.tokenizer == "char"
        units, characters = plan_text(path, config.val_fraction, with_characters)
        return Plan(units, files, True, characters, facts=facts)
    plan_file = {
        "text": lambda path, size, unit_bytes: _plan_small(path, size),
        "jsonl": _plan_lines,
        "parquet": _plan_parquet,
        "wet": lambda path, size, unit_bytes: _plan_whole(path, size),
    }[config.source]
    unit_bytes = _unit_bytes(facts["stored_bytes"])
    units, damaged = [], []
    for path, size, _ in files:
        try:
            units.extend(plan_file(path, size, unit_bytes))
        except Damage as error:
            if config.on_damage == "stop":
                raise UserError(f"{error}; repair or remove it, or use --on-damage skip") from error
            damaged.append(str(error))
    if config.source == "text":
        units = _grouped(units, unit_bytes)
    if not units:
        raise UserError(f"--input {config.input}: every file is empty or damaged")
    return Plan(units, files, damaged=tuple(damaged), facts=facts)


def place(config: PrepareConfig) -> str | None:
    """Returns where a source is on this machine; None of a name on the hub, or of a crawl."""
    path = os.path.abspath(os.path.expanduser(config.input))
    if config.source == "hf":
        return path if os.path.isdir(path) else None
    if config.source == "wet":
        from data import common_crawl

        return None if common_crawl.is_crawl(config.input) else path
    return path


def local_files(config: PrepareConfig) -> tuple[list[tuple[str, int, int]], dict[str, Any]]:
    """Returns the files of a source that has a `place`, and what a manifest says of them.

    Returns:
      (path, bytes, time of change in ns) of each, in order; {"input": the place, "files": how many,
      "stored_bytes": in all}.

    Raises:
      UserError: there are none, or one can't be read.
    """
    where = place(config)
    assert where is not None
    if config.source == "hf":
        paths = _files_below(where, os.path.abspath(os.path.expanduser(config.out)))
    else:
        paths = list_files(config.input)
    if config.source == "wet" and config.limit_files:
        paths = paths[: config.limit_files]
    stats = [(path, os.stat(path)) for path in paths]
    files = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    size = sum(size for _, size, _ in files)
    return files, {"input": where, "files": len(files), "stored_bytes": size}


def _files_below(folder: str, out: str) -> list[str]:
    """Returns the files below a folder that are not hidden, by name, without those below `out`."""
    paths: list[str] = []
    for where, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if name[0] != "." and os.path.join(where, name) != out
        ]
        paths += [os.path.join(where, name) for name in names if name[0] != "."]
    return sorted(path for path in paths if os.path.isfile(path))


def read_unit(config: PrepareConfig, unit: Unit, work: Path) -> Iterator[Document | Damage]:
    """Yields the documents of a unit, and a `Damage` in the place of each record that is none.

    Raises:
      Damage: the file can't be read to its end.
      UserError, TrainingError: it can't be had from where it is.
    """
    kind = unit["kind"]
    try:
        if kind == "piece":
            yield from _read_piece(unit)
        elif kind == "files":
            yield from _read_files(unit, config.max_document_mb << 20)
        elif kind == "lines":
            yield from _read_lines(unit, config)
        elif kind == "parquet":
            yield from _read_parquet(unit, config)
        elif kind == "hf":
            yield from _read_hf(unit, config)
        else:
            from data import common_crawl

            yield from common_crawl.read(unit, config, work)
    except (EOFError, OSError) as error:  # gzip's and zstd's own, and the disk's
        why = getattr(error, "strerror", None) or str(error) or "it breaks off"
        raise Damage(f"{unit['name']} can't be read to its end: {why}") from error


def download_path(unit: Unit, work: Path) -> Path:
    """Returns where the download of a unit with an address is."""
    return work / "downloads" / unit["name"]


def discard(unit: Unit, work: Path) -> None:
    """Removes what was downloaded for a unit; for when its part is in place."""
    if unit.get("url"):
        download_path(unit, work).unlink(missing_ok=True)


def list_files(pattern: str) -> list[str]:
    """Returns the absolute paths of the files that a path or pattern stands for, by name.

    Raises:
      UserError: there are none, or the path is a folder.
    """
    expanded = os.path.expanduser(pattern)
    if os.path.isdir(expanded):
        raise UserError(f"--input {pattern} is a folder; give a pattern such as '{pattern}/*'")
    if os.path.lexists(expanded):
        paths = [expanded]
    else:
        paths = sorted(p for p in glob.glob(expanded, recursive=True) if os.path.isfile(p))
    if not paths:
        raise UserError(f"--input {pattern} matches no file; give a path, or a pattern in quotes")
    for path in paths:
        if not os.access(path, os.R_OK) or not os.path.isfile(path):
            raise UserError(f"--input {path} can't be read; check the file and its permissions")
    return [os.path.abspath(path) for path in paths]


# --- one text -------------------------------------------------------------------------------------

# Where a text may be cut so that the pieces have the tokens of the whole: where the patterns of
# GPT-2, cl100k_base, o200k_base and `tokenizer.PATTERN` end a match whatever surrounds the place.
# That is between words apart by one space, and behind a single line feed between words.
CUT = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])|(?<=[^\W\d_]\n)(?=[^\W\d_])")


def plan_text(
    path: str, val_fraction: float, with_characters: bool = False
) -> tuple[list[Unit], str]:
    """Parts a text by position, as `gpt_jax.data.split_text` does, and each side into pieces.

    The first int((1 - val_fraction) * characters) are for training. Pieces, and what they are read
    in, have the tokens of the whole side wherever there is a place to `CUT` within `SEARCH_BYTES`.

    Returns:
      (units, the different characters of the text in order if asked for, else "").

    Raises:
      UserError: the file is empty or not UTF-8 text.
    """
    ends = [(0, 0)]  # of each block: characters and bytes up to there
    characters: set[str] = set()
    for text in _text_blocks(path):
        if with_characters:
            characters.update(text)
        ends.append((ends[-1][0] + len(text), ends[-1][1] + len(text.encode("utf-8"))))
    total, size = ends[-1]
    if not total:
        raise UserError(f"{path} is empty; give a text file")
    cut = int((1 - val_fraction) * total)
    before, at = ends[bisect.bisect_right(ends, (cut, size)) - 1]
    with open(path, "rb") as file:
        file.seek(at)
        text = file.read(BLOCK_BYTES + 8).decode("utf-8", "ignore")
    boundary = at + len(text[: cut - before].encode("utf-8"))
    units = []
    with open(path, "rb") as file:
        for split, first, end in (("train", 0, boundary), ("val", boundary, size)):
            start = first
            while start < end:
                stop = _cut_at(file, start, end, _unit_bytes(size))
                units.append(_unit("piece", path, stop - start, start, stop) | {"split": split})
                start = stop
    return units, "".join(sorted(characters))


def _text_blocks(path: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    at = 0
    with open(path, "rb") as file:
        while raw := file.read(BLOCK_BYTES):
            if at == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(f"{path} looks like UTF-16, not UTF-8; convert it with iconv")
            if b"\0" in raw:
                raise UserError(
                    f"{path} looks binary (a zero byte at {at + raw.index(0)}); give a text"
                )
            yield _decoded(decoder, raw, path, False)
            at += len(raw)
    yield _decoded(decoder, b"", path, True)


def _decoded(decoder: Any, raw: bytes, path: str, final: bool) -> str:
    try:
        return decoder.decode(raw, final)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(
            f"{path} is not UTF-8 (byte {byte:#04x}: {error.reason}); convert it, for example "
            "with: iconv -f latin1 -t utf-8"
        ) from None


def _cut_at(file: IO[bytes], start: int, end: int, n_bytes: int) -> int:
    """Returns where the piece from `start` ends: a place to cut, about `n_bytes` on."""
    if end - start <= n_bytes + SEARCH_BYTES:
        return end
    at = start + n_bytes
    file.seek(at)
    raw = file.read(min(SEARCH_BYTES, end - at))
    starts = (i for i, byte in enumerate(raw[:4]) if byte & 0xC0 != 0x80)  # of characters
    skipped = next(starts, 0)  # there is none in a file that has changed
    text = raw[skipped:].decode("utf-8", "ignore")
    found = CUT.search(text)
    return at + skipped + (len(text[: found.start()].encode("utf-8")) if found else 0)


def _read_piece(unit: Unit) -> Iterator[Document]:
    start, end = unit["start"], unit["end"]
    with open(unit["path"], "rb") as file:
        while start < end:
            stop = _cut_at(file, start, end, UNIT_BYTES)
            file.seek(start)
            raw = file.read(stop - start)
            if len(raw) < stop - start:
                raise Damage(f"{unit['name']} has become shorter while it was read")
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise Damage(
                    f"{unit['name']} has changed while it was read: {error.reason}"
                ) from error
            yield Document(text, split=unit["split"])
            start = stop


# --- files ----------------------------------------------------------------------------------------


def _unit_bytes(stored_bytes: int) -> int:
    """Returns how large units are to be, a function of what the source has in all."""
    return max(UNIT_BYTES, stored_bytes // MAX_UNITS)


def _unit(kind: str, path: str, size: int, start: int = 0, end: int = 0) -> Unit:
    name = os.path.basename(path) + (f" from {start:,}" if start else "")
    return {"kind": kind, "name": name, "path": path, "size": size, "start": start, "end": end}


def _plan_small(path: str, size: int) -> list[Unit]:
    return [{"kind": "files", "name": os.path.basename(path), "size": size, "paths": [path]}]


def _grouped(units: list[Unit], unit_bytes: int) -> list[Unit]:
    """Joins units of a file each to units of several files."""
    grouped: list[Unit] = []
    for unit in units:
        if grouped and grouped[-1]["size"] + unit["size"] <= unit_bytes:
            grouped[-1]["size"] += unit["size"]
            grouped[-1]["paths"] += unit["paths"]
        else:
            grouped.append(unit)
    return grouped


def _plan_whole(path: str, size: int) -> list[Unit]:
    return [_unit("wet", path, size)]


def _read_files(unit: Unit, limit: int) -> Iterator[Document | Damage]:
    for path in unit["paths"]:
        try:
            with open(path, "rb") as file:
                raw = file.read(limit + 1)
            if len(raw) > limit:
                yield _too_large(path, limit)
            elif b"\0" in raw:
                yield Damage(f"{path} looks binary (a zero byte at {raw.index(0)})")
            else:
                yield Document(raw.decode("utf-8"))
        except OSError as error:
            yield Damage(f"{path} can't be read: {error.strerror}")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            yield Damage(f"{path} is not UTF-8 (byte {byte:#04x} at {error.start})")


def _too_large(name: str, limit: int) -> Damage:
    return Damage(f"{name} is a document of more than --max-document-mb {limit >> 20}")


# --- JSON lines -----------------------------------------------------------------------------------


def _plan_lines(path: str, size: int, unit_bytes: int) -> list[Unit]:
    """Parts a plain file into ranges: the lines that begin in [start, end); others stay whole."""
    if not size:
        raise Damage(f"{path} is empty")
    if path.endswith((".gz", ".zst")):
        return [_unit("lines", path, size)]
    ends = ((at, min(at + unit_bytes, size)) for at in range(0, size, unit_bytes))
    return [_unit("lines", path, end - start, start, end) for start, end in ends]


def open_stream(path: str) -> Any:
    """Opens a file, .gz and .zst decompressed; one that breaks off raises EOFError at its end.

    Raises:
      UserError: .zst needs a package that is not installed.
    """
    if path.endswith(".gz"):
        return gzip.open(path)
    if path.endswith(".zst"):
        zstd = _zstd()
        if zstd is None:
            raise UserError(f"reading {os.path.basename(path)} needs backports.zstd: {EXTRAS}")
        return zstd.open(path)
    return open(path, "rb", buffering=0)


def _zstd() -> Any:
    """Returns the module that notices where a file breaks off, or None; `zstandard` does not."""
    return _optional("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")


def _optional(name: str) -> Any:
    """Returns a module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def _read_lines(unit: Unit, config: PrepareConfig) -> Iterator[Document | Damage]:
    limit, field = config.max_document_mb << 20, config.text_field
    at, end, name = unit["start"], unit["end"], os.path.basename(unit["path"])
    try:
        with open_stream(unit["path"]) as raw_file:
            file = io.BufferedReader(raw_file, STREAM_BYTES)
            if at:  # the line that is under way belongs to the range before
                file.seek(at - 1)
                at += _skip_line(file) - 1
            while not end or at < end:
                line = file.readline(limit + 1)
                if not line:
                    return
                where = f"{name}, the line at byte {at:,}"
                at += len(line)
                if len(line) > limit:
                    at += 0 if line.endswith(b"\n") else _skip_line(file)
                    yield _too_large(where, limit)
                elif line.strip():
                    yield _document(line, field, where)
    except Exception as error:  # a ZstdError can't be named where the package is not there
        if not isinstance(error, zlib.error) and type(error).__name__ != "ZstdError":
            raise
        raise Damage(f"{unit['name']} can't be read to its end: {error}") from error


def _skip_line(file: IO[bytes]) -> int:
    skipped = 0
    while part := file.readline(BLOCK_BYTES):
        skipped += len(part)
        if part.endswith(b"\n"):
            break
    return skipped


def _document(line: bytes, field: str, where: str) -> Document | Damage:
    try:
        record = orjson.loads(line)
        text = record.get(field) if isinstance(record, dict) else None
        if isinstance(text, str):
            return Document(text)  # without half of a surrogate pair: orjson takes none
    except ValueError:
        try:  # it also takes NaN, and has the words for what is wrong
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            return Damage(f"{where}, is not JSON: {error}")
    text = record.get(field) if isinstance(record, dict) else None
    return _checked(text, field, where)


def _checked(text: Any, field: str, where: str) -> Document | Damage:
    if not isinstance(text, str):
        return Damage(f"{where}, has no text in its field {field!r} (see --text-field)")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return Damage(f"{where}, has half of a surrogate pair at {error.start}")
    return Document(text)


def _in_line(error: BaseException) -> str:
    """Returns the words of an error, which may be many, as a part of one line."""
    return f"{' '.join(str(error).split()):.300}"


# --- Parquet --------------------------------------------------------------------------------------


def _open_parquet(path: str) -> Any:
    pyarrow, parquet = _optional("pyarrow"), _optional("pyarrow.parquet")
    if parquet is None:
        raise UserError(f"--source parquet needs pyarrow: {EXTRAS}")
    try:  # a page at a time, not a column of a row group at a time
        return parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        )
    except (pyarrow.ArrowException, OSError) as error:
        raise Damage(f"{path} is no whole Parquet file: {_in_line(error)}") from error


def _plan_parquet(path: str, size: int, unit_bytes: int) -> list[Unit]:
    """Parts a file into ranges of row groups."""
    with _open_parquet(path) as file:
        metadata = file.metadata
        sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    units, start, total = [], 0, sum(sizes) or 1
    for i in range(len(sizes)):
        inside = sum(sizes[start : i + 1])
        if inside >= 2 * unit_bytes or i == len(sizes) - 1:
            units.append(_unit("parquet", path, size * inside // total, start, i + 1))
            start = i + 1
    return units


def _read_parquet(unit: Unit, config: PrepareConfig) -> Iterator[Document | Damage]:
    field, limit = config.text_field, config.max_document_mb << 20
    failures = (_optional("pyarrow").ArrowException, OSError, UnicodeDecodeError)
    with _open_parquet(unit["path"]) as file:
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
                        yield _too_large(where, limit)
                    else:
                        yield _checked(value.as_py(), field, where)
        except failures as error:
            raise Damage(f"{unit['name']} can't be read to its end: {_in_line(error)}") from error


# --- Hugging Face ---------------------------------------------------------------------------------


def _dataset(name: str, config: PrepareConfig, revision: str | None) -> Any:
    datasets = _optional("datasets")
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
    except Exception as error:  # whatever the hub, the network and the formats come up with
        raise _unopened(name, error) from error


def _unopened(name: str, error: Exception) -> UserError | TrainingError:
    """Returns what it is that a data set can't be opened."""
    what = f"{type(error).__name__}: {_in_line(error)}"
    if not os.path.isdir(name) and _network_error(error) and not _refused(error):
        return TrainingError(
            f"data set {name} can't be had now ({what}); the same command again goes on from here"
        )
    return UserError(
        f"data set {name} can't be opened: {what}; check --input, --hf-config, --hf-split and "
        "--hf-revision (data sets made by a script need --hf-revision refs/convert/parquet)"
    )


def _network_error(error: BaseException) -> BaseException | None:
    """Returns the first of an error's causes that tells of the connection, the server or the disk.

    None says that it is the data's: formats raise ValueErrors, and OSErrors without a number.
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
    """Says whether a server's answer is one that trying again won't change."""
    status = getattr(getattr(_network_error(error), "response", None), "status_code", None)
    return status is not None and status < 500 and status not in (408, 429)


def _plan_hf(config: PrepareConfig) -> Plan:
    """A unit for each file behind a data set; the commit is pinned, where there is one."""
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
        except Exception as error:  # whatever the hub and the network come up with
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


def _read_hf(unit: Unit, config: PrepareConfig) -> Iterator[Document | Damage]:
    data_set = _dataset(unit["path"], config, unit["revision"])
    limit, field = config.max_document_mb << 20, config.text_field
    part = data_set.shard(num_shards=unit["count"], index=unit["index"])
    row = 0
    try:
        for record in part.select_columns([field]):
            where = f"{unit['name']}, row {row:,}"
            row += 1
            text = record.get(field)
            if isinstance(text, str) and 4 * len(text) > limit and len(text.encode()) > limit:
                yield _too_large(where, limit)
            else:
                yield _checked(text, field, where)
    except Exception as error:  # the packages' kinds can't be named here; others are raised on
        if not os.path.isdir(unit["path"]) and _network_error(error):
            raise _unopened(unit["path"], error) from error  # no fault of the data's
        if not isinstance(error, EOFError | OSError | ValueError | zlib.error):
            raise
        raise Damage(f"{unit['name']} can't be read to its end: {_in_line(error)}") from error

"""The JSON files of an unfinished preparation, as typed records: others may have packed them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.shards.manifest import MANIFEST_FILE, SHARD_NAME, SPLITS, Manifest
from gpt_jax.input_pipeline.shards.writer import WriterState
from gpt_jax.storage import parse_json, read_json, read_record

PLAN_FILE = "plan.json"
JOURNAL_FILE = "journal.json"
MAX_PLAN_BYTES = 1 << 30  # a plan names every file of its source


@dataclasses.dataclass(frozen=True)
class UnitRecord:
    """What every unit has; `sources/readers.py` knows the rest."""

    name: str
    size: int
    kind: str
    path: str | None = None
    url: str | None = None
    start: int = 0
    end: int = 0


@dataclasses.dataclass(frozen=True)
class PlanRecord:
    """A plan; see `sources.documents.Plan`."""

    units: list[dict[str, Any]]
    files: list[list[Any]]
    by_position: bool
    damaged: list[str]
    facts: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class PlanFile:
    """plan.json: the settings that a preparation was begun with, and its plan."""

    settings: dict[str, Any]
    plan: PlanRecord


@dataclasses.dataclass(frozen=True)
class Journal:
    """journal.json: how far the shards are; see `merge.py`."""

    units: int
    writer: WriterState
    documents: dict[str, int] = dataclasses.field(default_factory=dict)
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    damaged: list[str] = dataclasses.field(default_factory=list)
    seen: int = 0


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a manifest counts, of documents, records and files."""

    read: int
    kept: int
    dropped: dict[str, int]
    damaged_records: int
    damaged_files: int


@dataclasses.dataclass(frozen=True)
class LocalSource:
    """What a plan or a manifest says of the files that a corpus was made of."""

    input: str | None = None
    files: int | None = None
    stored_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class UnitCounts:
    """What an encoded unit counts: of documents, and of what was left out."""

    read: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    damaged_records: int = 0
    damaged_units: int = 0
    damaged: list[str] = dataclasses.field(default_factory=list)


def read_unit_counts(raw: bytes) -> UnitCounts:
    """Returns the counts of an encoded unit; raises ValueError where they are damaged."""
    found = read_record(parse_json(raw), UnitCounts)
    numbers = found.read, found.damaged_records, found.damaged_units, *found.dropped.values()
    if min(numbers) < 0:
        raise ValueError("it counts what can't be")
    return found


def read_plan(work: Path) -> PlanFile:
    """Returns the plan in a folder `.prepare`; raises UserError where it is damaged."""
    try:
        found = read_record(read_json(work / PLAN_FILE, MAX_PLAN_BYTES), PlanFile)
        for number, unit in enumerate(found.plan.units):
            record = read_record(unit, UnitRecord, f"unit {number}")
            if min(record.size, record.start, record.end) < 0:
                raise ValueError(f"unit {number} has a size below 0")
        for entry in found.plan.files:
            if [type(part) for part in entry] != [str, int, int]:
                raise ValueError(f"a file is {entry!r:.40}, not a name with two numbers")
    except (OSError, ValueError) as error:
        raise _damaged(work / PLAN_FILE, error) from error
    return found


def read_journal(work: Path, n_units: int) -> Journal | None:
    """Returns the journal in a folder `.prepare`, None before there is one.

    Raises:
      UserError: it is damaged, or does not fit a plan of `n_units`.
    """
    path = work / JOURNAL_FILE
    try:
        found = read_record(read_json(path, MAX_PLAN_BYTES), Journal)
        _check_journal(found, n_units)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    return found


def _check_journal(journal: Journal, n_units: int) -> None:
    counts = [*journal.documents.values(), *journal.counts.values(), *journal.dropped.values()]
    if not 0 <= journal.units <= n_units or min([journal.seen, *counts]) < 0:
        raise ValueError("it counts what can't be")
    for split in SPLITS:
        shards, opened = journal.writer.shards.get(split), journal.writer.open.get(split)
        if shards is None or opened is None or len(opened) != 2 or min(opened) < 0:
            raise ValueError(f"it has no shards of {split}")
        for shard in shards:
            if not SHARD_NAME.fullmatch(shard.name) or min(shard.tokens, shard.bytes) < 0:
                raise ValueError(f"{shard.name!r:.40} is no shard")


def read_source(facts: dict[str, Any], path: Path) -> LocalSource:
    """Returns what a plan's or a manifest's facts say of local files.

    Args:
      facts: of the source.
      path: of the file that they are in.

    Raises:
      UserError: they are damaged.
    """
    try:
        return read_record(facts, LocalSource, "source")
    except ValueError as error:
        raise _damaged(path, error) from error


def read_counts(manifest: Manifest, folder: str) -> Counts:
    """Returns the counts in a corpus's manifest; raises UserError where they are damaged."""
    try:
        return read_record(manifest.counts, Counts, "counts")
    except ValueError as error:
        raise _damaged(Path(folder, MANIFEST_FILE), error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    folder = path.parent if path.name == MANIFEST_FILE else path.parent.parent
    return UserError(f"{path} is damaged: {error}; delete {folder} and prepare again")

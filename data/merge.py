"""Encoded units into shards: appended in order by one process, without duplicates."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.config import PrepareConfig
from data.encode import NAMED_DAMAGE, encode_unit, encoded_path, load_encoded
from data.filters import Seen
from data.records import JOURNAL_FILE, Journal
from data.sources.documents import Plan
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.shards.manifest import SPLITS, Manifest
from gpt_jax.input_pipeline.shards.memmap import CHUNK_TOKENS
from gpt_jax.input_pipeline.shards.writer import ShardWriter
from gpt_jax.storage import open_in_place, write_atomically
from gpt_jax.tokenizer import Tokenizer

SEEN_FILE = "seen.bin"
BLOCK_DOCUMENTS = 1 << 16  # appended at once
SAVE_PAUSE = 10  # pause between two writes of the journal, in multiples of how long one took


class ShardMerger:
    """Appends encoded units to the shards, in order, and keeps the journal."""

    def __init__(
        self,
        config: PrepareConfig,
        plan: Plan,
        tokenizer: Tokenizer,
        work: Path,
        journal: Journal | None,
    ):
        """Resumes from the journal, if there is one; `work` is the folder `.prepare`."""
        self._config, self._plan, self._work = config, plan, work
        state = None if journal is None else journal.writer
        self._writer = ShardWriter(work.parent, tokenizer, config.shard_tokens, state)
        self._before = sum(self._writer.n_tokens.values())
        self._n_units = 0 if journal is None else journal.units
        self._documents = Counter({} if journal is None else journal.documents)
        self._counts = Counter({} if journal is None else journal.counts)
        self._dropped = Counter({} if journal is None else journal.dropped)
        self._damaged: list[str] = [] if journal is None else list(journal.damaged)
        self._appended: list[Path] = []  # since the journal was written
        self._next_save = 0.0
        self._seen: Seen | None = None
        if config.filter("deduplicate"):
            self._seen = Seen(config.dedup_documents)
            self._seen_file = open_in_place(work / SEEN_FILE, append=True)
            self._seen_file.truncate(0 if journal is None else 8 * journal.seen)
            self._seen_file.seek(0)
            while raw := self._seen_file.read(1 << 20):
                for value in np.frombuffer(raw, "<u8").tolist():
                    self._seen.add(value)

    @property
    def n_tokens(self) -> int:
        """Tokens appended by this object, duplicates aside."""
        return sum(self._writer.n_tokens.values()) - self._before

    def append(self, number: int) -> None:
        """Appends an encoded unit; regularly writes the journal and removes the appended files."""
        path = encoded_path(self._work, number)
        while (unit := load_encoded(path)) is None:  # incomplete: a power cut lost some of it
            path.unlink()
            encode_unit(str(self._work), number)
        counts = unit.counts
        with path.open("rb") as file:
            for start in range(0, len(unit.documents), BLOCK_DOCUMENTS):
                self._append(file, unit.documents[start : start + BLOCK_DOCUMENTS])
        self._dropped.update(counts.dropped)
        for name in ("read", "damaged_records", "damaged_units"):
            self._counts[name] += getattr(counts, name)
        self._damaged = (self._damaged + counts.damaged)[:NAMED_DAMAGE]
        self._n_units = number + 1
        self._appended.append(path)
        start = time.monotonic()
        if start >= self._next_save:
            self._save()
            self._next_save = time.monotonic() + SAVE_PAUSE * (time.monotonic() - start)

    def _append(self, file: IO[bytes], documents: np.ndarray) -> None:
        """Appends consecutive documents of an encoded unit, from the file's current position."""
        keep = self._new(documents)
        self._copy(file, documents, keep)
        for split in SPLITS:
            side = documents["val"] == (split == "val")
            self._documents[split] += int((keep & side).sum())
        if n := int((~keep).sum()):
            self._dropped["duplicate"] += n

    def _new(self, documents: np.ndarray) -> np.ndarray:
        if self._seen is None:
            return np.ones(len(documents), bool)
        add = self._seen.add
        keep = np.fromiter((add(d) for d in documents["digest"].tolist()), bool, len(documents))
        self._seen_file.write(documents["digest"][keep].tobytes())
        return keep

    def _copy(self, file: IO[bytes], documents: np.ndarray, keep: np.ndarray) -> None:
        """Appends the documents that are kept, in runs of neighbours of one split."""
        dtype = self._writer.dtype
        ends = np.cumsum(documents["tokens"].astype(np.int64))
        kinds = np.where(keep, documents["val"].astype(int), -1)
        edges = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
        for first, last in itertools.pairwise(edges):
            left = int(ends[last - 1]) - (int(ends[first - 1]) if first else 0)
            if kinds[first] < 0:
                file.seek(left * dtype.itemsize, os.SEEK_CUR)
                continue
            while left:
                ids = np.fromfile(file, dtype, min(left, CHUNK_TOKENS))
                self._writer.append(SPLITS[kinds[first]], ids)
                left -= len(ids)

    def _save(self) -> None:
        state: dict[str, Any] = {
            "units": self._n_units,
            "documents": self._documents,
            "counts": self._counts,
            "dropped": self._dropped,
            "damaged": self._damaged,
        }
        if self._seen is not None:
            self._seen_file.flush()
            os.fsync(self._seen_file.fileno())
            state["seen"] = self._seen_file.tell() // 8
        state["writer"] = dataclasses.asdict(self._writer.save_state())
        write_atomically(self._work / JOURNAL_FILE, json.dumps(state))
        for path in self._appended:
            path.unlink()
        self._appended.clear()

    def finish(self) -> Manifest:
        """Writes the manifest, removes the work folder, and returns the manifest."""
        config, plan = self._config, self._plan
        for split in SPLITS:
            if not self._writer.n_tokens[split]:
                dropped = sum(self._dropped.values())
                if not self._counts["read"]:
                    raise UserError(
                        f"--input {config.input} has no document, so there is nothing to prepare; "
                        f"give another, and another --out (or delete {self._work.parent})"
                    )
                raise UserError(
                    f"no document of {self._counts['read']:,} is for {split} ({dropped:,} were "
                    "dropped by filters); use another --val-fraction, more documents or milder "
                    f"filters, and another --out (or delete {self._work.parent})"
                )
        if plan.by_position:  # units are pieces of one text, and each split has some
            self._counts["read"] = 1
            self._documents = Counter(dict.fromkeys(SPLITS, 1))
        counts: dict[str, Any] = {
            "read": self._counts["read"],
            "kept": self._counts["read"] if plan.by_position else sum(self._documents.values()),
            "dropped": dict(sorted(self._dropped.items())),
            "damaged_records": self._counts["damaged_records"],
            "damaged_files": len(plan.damaged) + self._counts["damaged_units"],
        }
        if self._seen is not None:
            counts["not_remembered"] = self._seen.forgotten
        manifest = self._writer.finish(
            config.tokenizer,
            {split: self._documents[split] for split in SPLITS},
            source={"kind": config.source, "by_position": plan.by_position, **plan.facts},
            settings=config.record(),
            counts=counts,
            damaged=[*plan.damaged, *self._damaged][:NAMED_DAMAGE],
        )
        shutil.rmtree(self._work, ignore_errors=True)
        return manifest

    def close(self) -> None:
        self._writer.close()
        if self._seen is not None:
            self._seen_file.close()

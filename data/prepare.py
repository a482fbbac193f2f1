"""`python main.py prepare`: from a source of text to a prepared corpus (see `gpt_jax.shards`).

    plan       sources.py parts the source into units, in order, about a megabyte each where it can,
               and more where there would be too many
    tokenizer  learned, or found, once
    parts      each unit is read, filtered and encoded to a part of its own, by many processes
    shards     one process appends the parts in order, drops duplicates, and cuts to size

Everything unfinished is in the folder `.prepare` of the corpus, and everything there is a function
of the settings and the source: parts appear whole or not at all, by whatever process or machine,
and a journal says, again and again, how far the shards are. So a preparation that
was killed goes on from its journal, and its shards are the same bytes as an uninterrupted one's.

Memory hardly grows with the corpus: see README.md for what does.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import glob
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO, Any

import numpy as np

from data import sources
from data.filters import Seen, digest, is_validation, reject
from data.parts import (
    NAMED_DAMAGE,
    PARTS,
    PLAN_FILE,
    load_part,
    part_path,
    prepare_and_count,
    prepare_part,
    start_process,
    stop,
)
from data.settings import PrepareConfig
from data.sources import Damage, Document, Plan, Unit, make_plan, read_unit
from gpt_jax.console import Display
from gpt_jax.devices import usable_cores
from gpt_jax.errors import ConfigError, TrainingError, UserError
from gpt_jax.files import remove_unfinished, to_local, write_atomically
from gpt_jax.manifest import MANIFEST_FILE, SPLITS, read_manifest
from gpt_jax.process import lock
from gpt_jax.shard_writer import ShardWriter
from gpt_jax.shards import CHUNK_TOKENS, WORK_FOLDER, is_prepared, open_prepared
from gpt_jax.tokenizer import FILE as TOKENIZER_FILE
from gpt_jax.tokenizer import (
    BpeTokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
)

JOURNAL_FILE = "journal.json"
SEEN_FILE = "seen.bin"
BLOCK_DOCUMENTS = 1 << 16  # appended at once
SAVE_PAUSE = 10  # times what the journal took until it is written again: disks may be slow


def prepare(config: PrepareConfig, display: Display | None = None) -> dict[str, Any]:
    """Makes the prepared corpus `config.out`, or goes on making it, and returns its manifest.

    With `config.engine` "plan" it stops when the plan and the tokenizer are there, and returns {}.

    Raises:
      UserError: a setting, the source or the folder is not as it must be; which, and a way out.
      TrainingError: it can't go on now; what is there stays, and the same call goes on.
    """
    display = display or Display()
    out = to_local(config.out)
    if manifest := _finished(out, config):
        display.note(f"{out} is prepared already, with these settings")
        _clean(out)
        return manifest
    work = out / WORK_FOLDER
    _check_folder(out, work)
    is_new = not os.path.isdir(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {work}: {error.strerror}; choose another --out") from error
    try:
        with lock(work, "prepared"):
            try:
                return _prepare(config, out, work, display)
            except Exception as error:  # whatever it is, it is raised on
                mistake = is_new and isinstance(error, UserError)
                if not (work / PLAN_FILE).exists() and (mistake or _is_bare(work)):
                    _clean(out)  # nothing was begun: a mistake leaves no folder behind
                    with contextlib.suppress(OSError):
                        out.rmdir()
                raise
            finally:
                display.stop()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise TrainingError(
            f"{out} can't be written{where}: {error.strerror or error}; the same command again "
            "goes on from here"
        ) from error


def _prepare(config: PrepareConfig, out: Path, work: Path, display: Display) -> dict[str, Any]:
    plan = _load_plan(config, work)
    is_begun = plan is not None
    if plan is None:
        if config.tokenizer in ("char", "bpe"):
            display.line("reading the source for its tokenizer")
        plan = _make_plan(config, work)
    journal = _load_journal(work)
    first = journal["units"] if journal else 0
    with _Processes(config, len(plan.units) - first) as processes:  # they start meanwhile
        tokenizer = load_tokenizer(work) if is_begun else _begin(config, plan, work)
        return _assemble(config, out, work, display, plan, tokenizer, journal, processes)


def _assemble(
    config: PrepareConfig,
    out: Path,
    work: Path,
    display: Display,
    plan: Plan,
    tokenizer: Tokenizer,
    journal: dict[str, Any] | None,
    processes: _Processes,
) -> dict[str, Any]:
    """Has the parts made, and appends them to the shards."""
    if config.engine == "local":  # with the others, more machines may be at work
        _remove_unfinished(out, work)
    how = "cut by position" if plan.by_position else "documents, parted by their hash"
    display.facts(
        {
            "source": f"{config.source} {config.input}, {how}",
            "tokenizer": f"{config.tokenizer}, {tokenizer.vocab_size:,} tokens",
            "folder": str(out) + (f", goes on at unit {journal['units']}" if journal else ""),
            "units": f"{len(plan.units):,}",
        }
    )
    (work / PARTS).mkdir(exist_ok=True)
    if config.engine == "plan":
        display.line(
            f"{work} has the plan: make the parts on any machine (data/README.md), then give this "
            "command with another --engine"
        )
        return {}
    state = journal["writer"] if journal else None
    writer = ShardWriter(out, tokenizer, config.shard_tokens, state)
    assembly = _Assembly(config, work, writer, journal)
    try:
        before = sum(writer.n_tokens.values())
        assembled = lambda: sum(writer.n_tokens.values()) - before
        parts = _parts(config, plan, work, assembly.n_units, assembled, display, processes)
        for number in parts:
            assembly.append(number)
        return assembly.finish(plan)
    finally:
        assembly.close()


# --- what is there already ------------------------------------------------------------------------


def _finished(out: Path, config: PrepareConfig) -> dict[str, Any] | None:
    if not os.path.isfile(out / MANIFEST_FILE):  # Path's own raises where it can't look
        return None
    open_prepared(out)
    manifest = read_manifest(out)
    settings = manifest.get("settings")
    if different := _differences(settings if isinstance(settings, dict) else {}, config.record()):
        raise UserError(
            f"{out} holds a corpus prepared with other settings: {different}; choose another --out"
        )
    if different := _source_difference(manifest.get("source"), config):
        raise UserError(
            f"{out} holds a corpus of another source: {different}; choose another --out"
        )
    return manifest


def _source_difference(there: Any, config: PrepareConfig) -> str:
    """Returns how a source differs from what a manifest says of it, or ''; gone it may be."""
    if not isinstance(there, dict) or sources.place(config) is None:
        return ""
    try:
        _, here = sources.local_files(config)
    except (OSError, UserError):
        return ""
    sizes = ("files", "stored_bytes")
    before, now = ([facts.get(name) for name in sizes] for facts in (there, here))
    if None not in before and before != now:
        return (
            f"--input {config.input} was {before[0]} files of {before[1]} bytes and is {now[0]} of "
            f"{now[1]}"
        )
    old = there.get("input")
    if not isinstance(old, str) or old == here["input"]:
        return ""
    if os.path.lexists(old) or glob.glob(old, recursive=True):  # else it was moved
        return f"--input was {old} and is {here['input']}"
    return ""


def _differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    return "; ".join(
        f"{name} is {there.get(name)!r} there and {here[name]!r} here"
        for name in here
        if there.get(name) != here[name]
    )


def _check_folder(out: Path, work: Path) -> None:
    if os.path.lexists(out) and not os.path.isdir(out):
        raise UserError(f"--out {out} is a file; choose another folder")
    if os.path.isdir(work):
        return
    try:
        names = sorted(os.listdir(out)) if os.path.isdir(out) else []
    except OSError as error:
        raise UserError(f"--out {out} can't be read: {error.strerror}") from error
    if is_prepared(out):
        raise UserError(f"--out {out} holds another program's corpus; choose another folder")
    if names:
        raise UserError(f"--out {out} holds other files ({names[0]}); choose another folder")


def _is_bare(work: Path) -> bool:
    """Says whether a work folder keeps nothing that took time, such as downloads."""
    return set(os.listdir(work)) <= {".lock"}


def _remove_unfinished(out: Path, work: Path) -> None:
    """Removes what killed processes left half written."""
    remove_unfinished(out / TOKENIZER_FILE)
    remove_unfinished(out / MANIFEST_FILE)
    for path in (work / PARTS).glob(".*"):
        path.unlink(missing_ok=True)


def _clean(out: Path) -> None:
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)


def _load_plan(config: PrepareConfig, work: Path) -> Plan | None:
    """Returns the plan that was begun, if the settings and the files are still the same."""
    path = work / PLAN_FILE
    if not path.exists():
        return None
    values = _read_json(path)
    settings = values["settings"]
    if different := _differences(settings, config.record()):
        raise UserError(
            f"{work.parent} was begun with other settings: {different}; use those, choose another "
            "--out, or delete it"
        )
    there, here = values["plan"]["facts"].get("input"), sources.place(config)
    if there and here and there != here:
        raise UserError(
            f"{work.parent} was begun with --input {there}, and this is {here}; use that, choose "
            "another --out, or delete it"
        )
    for name, size, changed in values["plan"]["files"]:
        try:
            now = os.stat(name)
        except OSError as error:
            raise UserError(
                f"{name} is gone since the preparation began: {error.strerror}"
            ) from None
        if (now.st_size, now.st_mtime_ns) != (size, changed):
            raise UserError(
                f"{name} has changed since the preparation began; delete {work.parent} and begin "
                "again"
            )
    saved: dict[str, Any] = values["plan"]
    return Plan(
        saved["units"],
        saved["files"],
        saved["by_position"],
        damaged=tuple(saved["damaged"]),
        facts=saved["facts"],
    )


def _make_plan(config: PrepareConfig, work: Path) -> Plan:
    """Returns the plan of a source that suits the settings."""
    plan = make_plan(config, work)
    if plan.by_position and any(
        getattr(config, name) is not None
        for name in ("min_characters", "max_characters", "min_letters", "max_repetition")
    ) | bool(config.deduplicate):
        raise ConfigError(
            f"filters are for many documents, and --input {config.input} is a single text, which "
            "is cut by position; leave them out"
        )
    return plan


def _begin(config: PrepareConfig, plan: Plan, work: Path) -> Tokenizer:
    """Makes the tokenizer, and keeps it and the plan."""
    tokenizer = _make_tokenizer(config, plan, work)
    write_atomically(work / TOKENIZER_FILE, tokenizer.to_json())
    settings, saved = config.record(), dataclasses.asdict(plan) | {"characters": ""}
    write_atomically(work / PLAN_FILE, json.dumps({"settings": settings, "plan": saved}))
    return tokenizer


def _load_journal(work: Path) -> dict[str, Any] | None:
    path = work / JOURNAL_FILE
    return _read_json(path) if path.exists() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged: {error}; delete {path.parent.parent} and prepare again"
        ) from error


# --- the tokenizer --------------------------------------------------------------------------------


def _make_tokenizer(config: PrepareConfig, plan: Plan, work: Path) -> Tokenizer:
    if config.tokenizer == "char":
        characters = plan.characters or _characters(config, plan, work)
        return CharTokenizer(characters)
    if config.tokenizer == "bpe":
        assert config.vocab_size is not None  # PrepareConfig sees to it
        return BpeTokenizer.train(_sample(config, plan, work), config.vocab_size)
    return BpeTokenizer.published(config.tokenizer)


def _characters(config: PrepareConfig, plan: Plan, work: Path) -> str:
    """Returns the characters of all documents that are kept, and the line feed between them."""
    found = {"\n"}
    limits = config.limits()
    for unit in plan.units:
        for document in _sound(config, unit, work):
            if not reject(document.text, document.language, limits):
                found.update(document.text)
    return "".join(sorted(found))


def _sample(config: PrepareConfig, plan: Plan, work: Path) -> str:
    """Returns the text that byte pairs are learned from: of the training side, at most `sample_mb`.

    Each unit gives from its beginning, as much as there is room for if all give the same, and at
    least UNIT_BYTES; units that are too many for that are chosen at equal distances. A single text
    that is not larger than the sample is taken whole.
    """
    limits, budget = config.limits(), config.sample_mb << 20
    units = [unit for unit in plan.units if unit.get("split") != "val"]
    n = min(len(units), max(1, budget // sources.UNIT_BYTES))
    whole = plan.by_position and sum(unit["size"] for unit in units) <= budget
    texts: list[str] = []
    left = budget
    for i in range(n):
        quota = left if whole else left // (n - i)
        for document in _sound(config, units[i * len(units) // n], work):
            if not document.split:
                if reject(document.text, document.language, limits):
                    continue
                if is_validation(digest(document.text), config.val_fraction):
                    continue
            text = document.text.encode("utf-8")[:quota].decode("utf-8", "ignore")
            size = len(text.encode("utf-8"))
            texts.append(text if document.split else text + "\n")
            quota, left = quota - size, left - size
            if quota < 4:  # bytes of a character
                break
    if not texts:
        raise UserError(
            f"--input {config.input} has no document for training to learn byte pairs from; use a "
            "smaller --val-fraction or more documents"
        )
    return "".join(texts)


def _sound(config: PrepareConfig, unit: Unit, work: Path) -> Iterator[Document]:
    """Yields the sound documents of a unit; damage is dealt with when it is prepared."""
    try:
        for document in read_unit(config, unit, work):
            if isinstance(document, Document):
                yield document
    except Damage as error:
        if config.on_damage == "stop":
            raise stop(error) from error


# --- many processes -------------------------------------------------------------------------------


class _Processes:
    """The processes that make parts; as a context, they end with it, whatever happens.

    Attributes:
      n: how many; with 1 there is none but the caller's.
      n_tokens: that they have encoded.
    """

    def __init__(self, config: PrepareConfig, n_units: int):
        """Lets them start, which takes them a moment, for so many units."""
        self.n = min(config.workers or usable_cores(), max(n_units, 1))
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None
        self._running: dict[int, concurrent.futures.Future[None]] = {}
        if self.n == 1 or config.engine != "local":
            return
        context = multiprocessing.get_context("spawn")
        self._counter = context.Value("q", 0)
        self._pool = concurrent.futures.ProcessPoolExecutor(
            self.n, context, initializer=start_process, initargs=(self._counter,)
        )
        with _tell_of_kills():
            for _ in range(self.n):
                self._pool.submit(int)

    def __enter__(self) -> _Processes:
        return self

    def make(self, work: Path, number: int, until: int, wait: Callable[[int], None]) -> None:
        """Makes a part, and begins with those after it, before `until`: two for each process.

        So unfinished work takes little room on the disk.

        Args:
          work: the folder `.prepare` of the corpus.
          number: of the part.
          until: the number after the last part's.
          wait: is called with `n_tokens` now and then.

        Raises:
          TrainingError: a process was killed.
        """
        if self._pool is None:
            prepare_part(str(work), number)
            return
        with _tell_of_kills():
            for ahead in range(number, min(number + 2 * self.n + 1, until)):
                if ahead not in self._running:
                    self._running[ahead] = self._pool.submit(prepare_and_count, str(work), ahead)
            while not self._running[number].done():
                concurrent.futures.wait([self._running[number]], timeout=0.25)
                wait(self.n_tokens)
            self._running.pop(number).result()

    @property
    def n_tokens(self) -> int:
        return self._counter.value if self._pool else 0

    def __exit__(self, *_: object) -> None:
        if self._pool is None:
            return
        for process in list(getattr(self._pool, "_processes", None) or {}):
            with contextlib.suppress(ProcessLookupError):
                if self._running:  # something went wrong: don't wait for what nobody wants
                    os.kill(process, signal.SIGTERM)
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _tell_of_kills() -> Generator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise TrainingError(
            "a process was killed, perhaps for its memory (fewer --workers need less); the same "
            "command again goes on from here"
        ) from error


def _parts(
    config: PrepareConfig,
    plan: Plan,
    work: Path,
    first: int,
    assembled: Callable[[], int],
    display: Display,
    processes: _Processes,
) -> Iterator[int]:
    """Sees to it that the parts from `first` on come to be, and yields each one's number, in order.

    `assembled` returns the tokens in the shards, for the display where no process counts them.
    """
    n_units = len(plan.units)
    progress = _Progress(plan, first, display)
    if config.engine == "datatrove" and first < n_units:
        from data.engines import run_datatrove

        run_datatrove(work, first, n_units, processes.n)
    for number in range(first, n_units):
        processes.make(work, number, n_units, progress.show)
        yield number
        progress.part(number)
        progress.show(processes.n_tokens or assembled())


class _Progress:
    """What is done of the plan, in bytes of the source where its units say so, else in units."""

    def __init__(self, plan: Plan, first: int, display: Display):
        self._sizes = [unit["size"] or 1 for unit in plan.units]
        self._done = sum(self._sizes[:first])
        self._start = time.monotonic()
        self._display = display
        display.start_work(self._done, sum(self._sizes))

    def part(self, number: int) -> None:
        self._done += self._sizes[number]

    def show(self, n_tokens: int) -> None:
        """Shows where things stand, `n_tokens` after the start."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        self._display.work(self._done, f"{n_tokens / seconds:,.0f} tokens/s")


# --- shards ---------------------------------------------------------------------------------------


class _Assembly:
    """Appends parts to the shards, in order, and keeps the journal."""

    def __init__(
        self,
        config: PrepareConfig,
        work: Path,
        writer: ShardWriter,
        journal: dict[str, Any] | None,
    ):
        self._config, self._work, self._writer = config, work, writer
        journal = journal or {}
        self.n_units: int = journal.get("units", 0)
        self._documents = Counter(journal.get("documents", {}))
        self._counts = Counter(journal.get("counts", {}))
        self._dropped = Counter(journal.get("dropped", {}))
        self._damaged: list[str] = journal.get("damaged", [])
        self._appended: list[Path] = []  # since the journal was written
        self._next_save = 0.0
        self._seen: Seen | None = None
        if config.filter("deduplicate"):
            self._seen = Seen(config.dedup_documents)
            self._seen_file = (work / SEEN_FILE).open("a+b")
            self._seen_file.truncate(8 * journal.get("seen", 0))
            self._seen_file.seek(0)
            while raw := self._seen_file.read(1 << 20):
                for value in np.frombuffer(raw, "<u8").tolist():
                    self._seen.add(value)

    def append(self, number: int) -> None:
        """Appends a part; now and then writes the journal, and removes what was appended."""
        path = part_path(self._work, number)
        while (part := load_part(path)) is None:  # the power was cut while it was on its way
            path.unlink()
            prepare_part(str(self._work), number)
        counts = part.counts
        with path.open("rb") as file:
            for start in range(0, len(part.documents), BLOCK_DOCUMENTS):
                self._append(file, part.documents[start : start + BLOCK_DOCUMENTS])
        self._dropped.update(counts.get("dropped", {}))
        for name in ("read", "damaged_records", "damaged_units"):
            self._counts[name] += counts.get(name, 0)
        self._damaged = (self._damaged + counts["damaged"])[:NAMED_DAMAGE]
        self.n_units = number + 1
        self._appended.append(path)
        start = time.monotonic()
        if start >= self._next_save:
            self._save()
            self._next_save = time.monotonic() + SAVE_PAUSE * (time.monotonic() - start)

    def _append(self, file: IO[bytes], documents: np.ndarray) -> None:
        """Appends documents that follow one another in a part, from where its file stands."""
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
            "units": self.n_units,
            "documents": self._documents,
            "counts": self._counts,
            "dropped": self._dropped,
            "damaged": self._damaged,
        }
        if self._seen is not None:
            self._seen_file.flush()
            os.fsync(self._seen_file.fileno())
            state["seen"] = self._seen_file.tell() // 8
        state["writer"] = self._writer.save_state()
        write_atomically(self._work / JOURNAL_FILE, json.dumps(state))
        for path in self._appended:
            path.unlink()
        self._appended.clear()

    def finish(self, plan: Plan) -> dict[str, Any]:
        """Writes the manifest, removes what was for going on, and returns the manifest."""
        config = self._config
        for split in SPLITS:
            if not self._writer.n_tokens[split]:
                dropped = sum(self._dropped.values())
                raise UserError(
                    f"no document of {self._counts['read']:,} is for {split} ({dropped:,} were "
                    "dropped by filters); use another --val-fraction, more documents or milder "
                    f"filters, and another --out (or delete {self._work.parent})"
                )
        if plan.by_position:  # units are pieces of one text, which both splits have a part of
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
        _clean(self._work.parent)
        return manifest

    def close(self) -> None:
        self._writer.close()
        if self._seen is not None:
            self._seen_file.close()

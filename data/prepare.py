"""`python main.py prepare`: from a source of text to token shards (gpt_jax/input_pipeline/shards/).

    plan       sources/readers.py divides the source into units, in order: about a megabyte each
               where the format allows, and larger where there would be too many
    tokenizer  vocabulary.py trains it, or loads a published one, once
    encode     encode.py reads, filters and encodes each unit into a separate file, in the
               processes of workers.py
    merge      merge.py appends the encoded units in order, drops duplicates, and cuts shards to
               size, in one process

Unfinished work is in the folder `.prepare` of the corpus, and everything there is a function of the
settings and the source. Encoded units are written atomically by any process or machine, and a
journal records regularly how far the shards are. So a killed preparation resumes from its journal,
and its shards are the same bytes as those of an uninterrupted one.

Memory hardly grows with the corpus; README.md says with what it does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import shutil
import time
from pathlib import Path

from data.config import PrepareConfig
from data.encode import ENCODED_FOLDER
from data.merge import ShardMerger
from data.records import PLAN_FILE, read_journal, read_plan, read_source
from data.sources.documents import Plan
from data.sources.local_files import local_files, local_path
from data.sources.readers import make_plan
from data.vocabulary import make_tokenizer
from data.workers import WorkerPool
from gpt_jax.console import Display, WorkProgress
from gpt_jax.errors import ConfigError, TrainingError, UserError, differences
from gpt_jax.input_pipeline.file_kinds import is_utf8
from gpt_jax.input_pipeline.shards.manifest import MANIFEST_FILE, Manifest
from gpt_jax.input_pipeline.shards.memmap import WORK_FOLDER
from gpt_jax.input_pipeline.shards.reader import has_shards, open_shards
from gpt_jax.storage import (
    check_tree,
    inside,
    lock,
    remove_unfinished,
    to_local,
    write_atomically,
)
from gpt_jax.tokenizer import TOKENIZER_FILE as TOKENIZER_FILE
from gpt_jax.tokenizer import Tokenizer, load_tokenizer


def prepare(config: PrepareConfig, display: Display | None = None) -> Manifest | None:
    """Prepares the corpus `config.out`, or resumes preparing it, and returns its manifest.

    With `config.engine` "plan" it only makes the plan and the tokenizer, and returns None.

    Raises:
      UserError: a setting, the source or the folder is wrong; which, and a way out.
      TrainingError: it can't continue now; the work so far stays, and the same call resumes it.
    """
    display = display or Display()
    for name in ("input", "out"):
        if not is_utf8(value := os.path.abspath(getattr(config, name))):
            raise UserError(f"--{name} {value!r}: this path is not UTF-8; choose another")
    out = to_local(config.out)
    if manifest := _finished(out, config):
        display.note(f"{out} is prepared already, with these settings")
        _clean(out)
        return manifest
    work = inside(out, WORK_FOLDER)
    _check_folder(out, work)
    is_new = not os.path.isdir(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        check_tree(work)  # somebody else may have packed it: nothing is changed behind a link
    except OSError as error:
        raise UserError(f"cannot make {work}: {error.strerror}; choose another --out") from error
    try:
        with lock(work, "prepared"):
            try:
                return _prepare(config, out, work, display)
            except Exception as error:  # of any kind; it is raised again
                mistake = is_new and isinstance(error, UserError)
                if not (work / PLAN_FILE).exists() and (mistake or _is_bare(work)):
                    _clean(out)  # nothing was begun: a usage error leaves no folder behind
                    with contextlib.suppress(OSError):
                        out.rmdir()
                raise
            finally:
                display.stop()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise TrainingError(
            f"{out} can't be written{where}: {error.strerror or error}; run the same command "
            "again to resume"
        ) from error


def _prepare(config: PrepareConfig, out: Path, work: Path, display: Display) -> Manifest | None:
    plan = _load_plan(config, work)
    is_begun = plan is not None
    if plan is None:
        if config.tokenizer in ("char", "bpe"):
            display.line("reading the source for its tokenizer")
        plan = _make_plan(config, work)
    journal = read_journal(work, len(plan.units))
    first = journal.units if journal else 0
    units = range(first, len(plan.units))
    with WorkerPool(config, work, units) as workers:  # they start meanwhile
        tokenizer = load_tokenizer(work) if is_begun else _begin(config, plan, work, display)
        if config.engine == "local":  # with the others, more machines may be running
            _remove_unfinished(out, work)
        how = "split by position" if plan.by_position else "documents, split by hash"
        display.facts(
            {
                "source": f"{config.source} {config.input}, {how}",
                "tokenizer": f"{config.tokenizer}, {tokenizer.vocab_size:,} tokens",
                "folder": str(out) + (f", resumes at unit {first}" if journal else ""),
                "units": f"{len(plan.units):,}",
            }
        )
        inside(work, ENCODED_FOLDER).mkdir(exist_ok=True)
        if config.engine == "plan":
            display.line(
                f"{work} has the plan: encode its units on any machine (data/README.md), then run "
                "this command with another --engine"
            )
            return None
        merger = ShardMerger(config, plan, tokenizer, work, journal)
        with contextlib.closing(merger):
            return _encode_and_merge(workers, merger, _Progress(plan, first, display))


def _encode_and_merge(workers: WorkerPool, merger: ShardMerger, progress: _Progress) -> Manifest:
    for number in workers.encode(progress.show):
        merger.append(number)
        progress.advance(number)
        progress.show(workers.n_tokens or merger.n_tokens)
    return merger.finish()


class _Progress:
    """Progress through the plan, in bytes of the source where units give them, else in units."""

    def __init__(self, plan: Plan, first: int, display: Display):
        self._sizes = [unit["size"] or 1 for unit in plan.units]
        self._done = sum(self._sizes[:first])
        self._start = time.monotonic()
        self._bar = WorkProgress(display, self._done, sum(self._sizes))

    def advance(self, number: int) -> None:
        self._done += self._sizes[number]

    def show(self, n_tokens: int) -> None:
        """Shows the progress after `n_tokens` tokens."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        self._bar.update(self._done, f"{n_tokens / seconds:,.0f} tokens/s")


# --- finished and unfinished preparations ---------------------------------------------------------


def _finished(out: Path, config: PrepareConfig) -> Manifest | None:
    if not os.path.isfile(out / MANIFEST_FILE):  # Path's own raises where it can't look
        return None
    manifest = open_shards(out).manifest
    assert manifest is not None  # the folder has one
    if lines := differences(manifest.settings, config.record(), repr):
        raise UserError(
            f"{out} holds a corpus prepared with other settings: {'; '.join(lines)}; choose "
            "another --out"
        )
    if different := _source_difference(out, manifest, config):
        raise UserError(
            f"{out} holds a corpus of another source: {different}; choose another --out"
        )
    return manifest


def _source_difference(out: Path, manifest: Manifest, config: PrepareConfig) -> str:
    """Returns how a source differs from a manifest's, or ''; it may be missing now."""
    there = read_source(manifest.source, out / MANIFEST_FILE)
    if local_path(config) is None:
        return ""
    try:
        here = read_source(local_files(config)[1], out)
    except (OSError, UserError):
        return ""
    before, now = ((facts.files, facts.stored_bytes) for facts in (there, here))
    if None not in before and before != now:
        return (
            f"--input {config.input} was {before[0]} files of {before[1]} bytes and is {now[0]} of "
            f"{now[1]}"
        )
    old = there.input
    if old is None or old == here.input:
        return ""
    if os.path.lexists(old) or glob.glob(old, recursive=True):  # else it was moved
        return f"--input was {old} and is {here.input}"
    return ""


def _check_folder(out: Path, work: Path) -> None:
    if os.path.lexists(out) and not os.path.isdir(out):
        raise UserError(f"--out {out} is a file; choose another folder")
    if os.path.isdir(work):
        return
    try:
        names = sorted(os.listdir(out)) if os.path.isdir(out) else []
    except OSError as error:
        raise UserError(f"--out {out} can't be read: {error.strerror}") from error
    if has_shards(out):
        raise UserError(f"--out {out} holds another program's corpus; choose another folder")
    if names:
        raise UserError(f"--out {out} holds other files ({names[0]}); choose another folder")


def _is_bare(work: Path) -> bool:
    """Returns whether a work folder has nothing worth keeping, such as downloads."""
    return set(os.listdir(work)) <= {".lock"}


def _remove_unfinished(out: Path, work: Path) -> None:
    """Removes files that killed processes left unfinished."""
    remove_unfinished(out / TOKENIZER_FILE)
    remove_unfinished(out / MANIFEST_FILE)
    for path in inside(work, ENCODED_FOLDER).glob(".*"):
        path.unlink(missing_ok=True)


def _clean(out: Path) -> None:
    shutil.rmtree(out / WORK_FOLDER, ignore_errors=True)


def _load_plan(config: PrepareConfig, work: Path) -> Plan | None:
    """Returns the stored plan, after checking that settings and files are unchanged."""
    path = work / PLAN_FILE
    if not path.exists():
        return None
    found = read_plan(work)
    if lines := differences(found.settings, config.record(), repr):
        raise UserError(
            f"{work.parent} was begun with other settings: {'; '.join(lines)}; use those, choose "
            "another --out, or delete it"
        )
    saved = found.plan
    there, here = read_source(saved.facts, path).input, local_path(config)
    if there and here and there != here:
        raise UserError(
            f"{work.parent} was begun with --input {there}, and this is {here}; use that, choose "
            "another --out, or delete it"
        )
    for name, size, changed in saved.files:
        try:
            now = os.stat(name)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"{name} is gone since the preparation began: {why}") from None
        if (now.st_size, now.st_mtime_ns) != (size, changed):
            raise UserError(
                f"{name} has changed since the preparation began; delete {work.parent} and start "
                "again"
            )
    return Plan(
        saved.units,
        [(name, size, changed) for name, size, changed in saved.files],
        saved.by_position,
        damaged=tuple(saved.damaged),
        facts=saved.facts,
    )


def _make_plan(config: PrepareConfig, work: Path) -> Plan:
    """Returns the plan of a source, after checking that the settings suit it."""
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


def _begin(config: PrepareConfig, plan: Plan, work: Path, display: Display) -> Tokenizer:
    """Makes the tokenizer, and stores it and the plan."""
    tokenizer = make_tokenizer(config, plan, work, display)
    display.stop()
    write_atomically(work / TOKENIZER_FILE, tokenizer.to_json())
    settings, saved = config.record(), dataclasses.asdict(plan) | {"characters": ""}
    write_atomically(work / PLAN_FILE, json.dumps({"settings": settings, "plan": saved}))
    return tokenizer

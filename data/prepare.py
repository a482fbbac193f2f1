"""`python main.py prepare`: from a source of text to token shards (gpt_jax/input_pipeline/shards/).

    plan       sources.py parts the source into units, in order, about a megabyte each where it can,
               and more where there would be too many
    tokenizer  vocabulary.py learns it, or finds it, once
    parts      parts.py reads, filters and encodes each unit to a part of its own, in the many
               processes of processes.py
    shards     assembly.py appends the parts in order, drops duplicates, and cuts to size, in one

Everything unfinished is in the folder `.prepare` of the corpus, and everything there is a function
of the settings and the source: parts appear whole or not at all, by whatever process or machine,
and a journal says, again and again, how far the shards are. So a preparation that was killed goes
on from its journal, and its shards are the same bytes as an uninterrupted one's.

Memory hardly grows with the corpus: see README.md for what does.
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
from typing import Any

from data.config import PrepareConfig
from data.encode import MAX_PLAN_BYTES, PARTS, PLAN_FILE
from data.merge import JOURNAL_FILE, ShardMerger
from data.sources.documents import Plan
from data.sources.local_files import local_files, local_path
from data.sources.readers import make_plan
from data.vocabulary import make_tokenizer
from data.workers import WorkerPool
from gpt_jax.console import Display, WorkProgress
from gpt_jax.errors import ConfigError, TrainingError, UserError
from gpt_jax.input_pipeline.shards.manifest import MANIFEST_FILE, read_manifest
from gpt_jax.input_pipeline.shards.memmap import WORK_FOLDER
from gpt_jax.input_pipeline.shards.reader import has_shards, open_shards
from gpt_jax.storage import lock, read_json, remove_unfinished, to_local, write_atomically
from gpt_jax.tokenizer import TOKENIZER_FILE as TOKENIZER_FILE
from gpt_jax.tokenizer import Tokenizer, load_tokenizer


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
    units = range(first, len(plan.units))
    with WorkerPool(config, work, units) as processes:  # they start meanwhile
        tokenizer = load_tokenizer(work) if is_begun else _begin(config, plan, work)
        if config.engine == "local":  # with the others, more machines may be at work
            _remove_unfinished(out, work)
        how = "cut by position" if plan.by_position else "documents, parted by their hash"
        display.facts(
            {
                "source": f"{config.source} {config.input}, {how}",
                "tokenizer": f"{config.tokenizer}, {tokenizer.vocab_size:,} tokens",
                "folder": str(out) + (f", goes on at unit {first}" if journal else ""),
                "units": f"{len(plan.units):,}",
            }
        )
        (work / PARTS).mkdir(exist_ok=True)
        if config.engine == "plan":
            display.line(
                f"{work} has the plan: make the parts on any machine (data/README.md), then give "
                "this command with another --engine"
            )
            return {}
        assembly = ShardMerger(config, plan, tokenizer, work, journal)
        with contextlib.closing(assembly):
            return _assemble(assembly, processes, _Progress(plan, first, display))


def _assemble(assembly: ShardMerger, processes: WorkerPool, progress: _Progress) -> dict[str, Any]:
    """Has the parts made, and appends them to the shards."""
    for number in processes.parts(progress.show):
        assembly.append(number)
        progress.part(number)
        progress.show(processes.n_tokens or assembly.n_tokens)
    return assembly.finish()


class _Progress:
    """What is done of the plan, in bytes of the source where its units say so, else in units."""

    def __init__(self, plan: Plan, first: int, display: Display):
        self._sizes = [unit["size"] or 1 for unit in plan.units]
        self._done = sum(self._sizes[:first])
        self._start = time.monotonic()
        self._bar = WorkProgress(display, self._done, sum(self._sizes))

    def part(self, number: int) -> None:
        self._done += self._sizes[number]

    def show(self, n_tokens: int) -> None:
        """Shows where things stand, `n_tokens` after the start."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        self._bar.update(self._done, f"{n_tokens / seconds:,.0f} tokens/s")


# --- what is there already ------------------------------------------------------------------------


def _finished(out: Path, config: PrepareConfig) -> dict[str, Any] | None:
    if not os.path.isfile(out / MANIFEST_FILE):  # Path's own raises where it can't look
        return None
    open_shards(out)
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
    if not isinstance(there, dict) or local_path(config) is None:
        return ""
    try:
        _, here = local_files(config)
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
    if has_shards(out):
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
    there, here = values["plan"]["facts"].get("input"), local_path(config)
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
    tokenizer = make_tokenizer(config, plan, work)
    write_atomically(work / TOKENIZER_FILE, tokenizer.to_json())
    settings, saved = config.record(), dataclasses.asdict(plan) | {"characters": ""}
    write_atomically(work / PLAN_FILE, json.dumps({"settings": settings, "plan": saved}))
    return tokenizer


def _load_journal(work: Path) -> dict[str, Any] | None:
    path = work / JOURNAL_FILE
    return _read_json(path) if path.exists() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, MAX_PLAN_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged: {error}; delete {path.parent.parent} and prepare again"
        ) from error

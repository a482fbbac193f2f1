"""Corpora on disk as token ids: the format of a prepared corpus, and its reader.

A prepared corpus is a folder:

    manifest.json     written last: what the shards are, and how they were made
    tokenizer.json    see tokenizer.py
    train-00000.bin   token ids, little-endian uint16 (uint32 for a vocabulary beyond 65,536), no
    val-00000.bin     header; shards of one split follow one another like the pages of a book

The folders of nanoGPT (https://github.com/karpathy/nanoGPT: train.bin and val.bin, uint16) and of
llm.c and modded-nanogpt (https://github.com/karpathy/llm.c, dev/data/data_common.py: a header of
256 int32, then uint16 or uint32) are read as they are.

Opening a corpus maps its shards into memory and reads next to nothing of them: sizes are checked
against the manifest or the header, and ids against the vocabulary in the first and last
`CHECKED_TOKENS` of each shard. `verify` reads everything. Nothing here knows batches or devices;
`manifest.py`
has the manifest's form, and `shard_writer.py` writes the shards of `data/prepare.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.manifest import (
    MANIFEST_FILE,
    SPLITS,
    ShardError,
    content_sha256,
    entries_of,
    read_manifest,
    read_small,
)
from gpt_jax.tokenizer import FILE as TOKENIZER_FILE
from gpt_jax.tokenizer import BpeTokenizer, Tokenizer, from_json

WORK_FOLDER = ".prepare"  # there while a preparation is unfinished
CHECKED_TOKENS = 1 << 16
CHUNK_TOKENS = 1 << 22  # held in memory at once by what reads or writes a whole shard

FOREIGN_NAME = re.compile(r"(?:.*_)?(train|val)(?:_\d+)?\.bin")
HEADER_BYTES = 256 * 4
# {(magic, version): bytes of a token}, of llm.c's headers for GPT-2 and Llama 3.
HEADERS = {(20240520, 1): 2, (20240801, 7): 4}
CHARACTERS_FILE = "meta.pkl"  # of nanoGPT: the characters that ids stand for


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared corpus, open for reading.

    Attributes:
      folder: where it is.
      kind: "gpt_jax", "nanoGPT" or "llm.c".
      tokenizer: of its ids; None where the folder doesn't say and GPT-2's can't be meant.
      vocab_size: V; ids are in [0, V). None where the folder doesn't say and there is no tokenizer.
      dtype: of the ids on disk, little-endian uint16 or uint32.
      shards: for "train" and "val", the ids (N,) of each shard in order, mapped, not read; N is at
        most `MAX_SHARD_TOKENS` but for other programs' files, which may be of any length.
      n_bytes: {split: bytes of UTF-8 that its ids stand for}, None where unknown.
      n_documents: {split: documents that end in it}, None where unknown.
      record: what a run keeps of its corpus; its "sha256" identifies the content: of a manifest,
        the sums of shards and tokenizer; of other programs' folders, which have no sums, the sizes
        and the first and last `CHECKED_TOKENS` ids of each file.
      notes: what differs from what one would expect, a sentence each.
      manifest: as read; empty for other programs' folders.
    """

    folder: Path
    kind: str
    tokenizer: Tokenizer | None
    vocab_size: int | None
    dtype: np.dtype
    shards: dict[str, tuple[np.ndarray, ...]]
    n_bytes: dict[str, int | None]
    n_documents: dict[str, int | None]
    record: dict[str, Any]
    notes: tuple[str, ...]
    manifest: dict[str, Any]

    @property
    def n_tokens(self) -> dict[str, int]:
        """{split: tokens in all its shards}."""
        return {split: sum(map(len, shards)) for split, shards in self.shards.items()}


def is_prepared(path: str | os.PathLike[str]) -> bool:
    """Says whether `path` is a folder that `open_prepared` is for, sound and whole or not."""
    folder = os.fspath(path)
    if os.path.isfile(os.path.join(folder, MANIFEST_FILE)):
        return True
    return os.path.isdir(os.path.join(folder, WORK_FOLDER)) or bool(_foreign_files(folder))


def open_prepared(path: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> Prepared:
    """Opens a prepared corpus.

    Args:
      path: its folder.
      tokenizer: of a folder of nanoGPT or llm.c, whose ids are otherwise taken for GPT-2's. Where
        nanoGPT left its meta.pkl they are characters: it is refused without a tokenizer, for that
        file, a program in disguise, is never read. A folder with a manifest has its own.

    Raises:
      ShardError: a file is missing, short, damaged or of another kind; which one, and a way out.
    """
    folder = Path(path)
    if os.path.isfile(folder / MANIFEST_FILE):
        return _open_own(folder)
    if os.path.isdir(folder / WORK_FOLDER):
        raise ShardError(
            f"the preparation of {folder} is not finished; the same `python main.py prepare` "
            "command again goes on with it"
        )
    files = _foreign_files(folder)
    if not files:
        raise ShardError(
            f"{folder} is no prepared corpus: it has no {MANIFEST_FILE} and no train.bin; make one "
            "with: python main.py prepare"
        )
    return _open_foreign(folder, files, tokenizer)


def verify(
    prepared: Prepared, progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Reads every token: sums against the manifest, ids against the vocabulary.

    Args:
      prepared: the corpus; other programs' folders have no sums, so only their ids are checked.
      progress: called with (tokens so far, tokens in all).

    Returns:
      {split: tokens}, all of them sound.

    Raises:
      ShardError: names every shard that is damaged, and how.
    """
    done, total = 0, sum(prepared.n_tokens.values())
    entries = {split: entries_of(prepared.manifest, split) for split in SPLITS}
    sizes = None if prepared.tokenizer is None else prepared.tokenizer.token_bytes
    damaged = []
    for split, shards in prepared.shards.items():
        for number, ids in enumerate(shards):
            digest, n_bytes, highest = hashlib.sha256(), 0, 0
            for start in range(0, len(ids), CHUNK_TOKENS):
                chunk = np.array(ids[start : start + CHUNK_TOKENS])
                digest.update(chunk.tobytes())
                highest = max(highest, int(chunk.max()))
                if sizes is not None and highest < len(sizes):
                    n_bytes += int(sizes[chunk].sum(dtype=np.int64))
                done += len(chunk)
                if progress:
                    progress(done, total)
            name = _name_of(ids)
            if prepared.vocab_size is not None and highest >= prepared.vocab_size:
                damaged.append(f"{name} has id {highest}, and the vocabulary {prepared.vocab_size}")
            elif prepared.manifest:
                entry = entries[split][number]
                if digest.hexdigest() != entry["sha256"]:
                    damaged.append(f"{name} has another sha256 than the manifest")
                elif n_bytes != entry["bytes"]:
                    damaged.append(f"{name} stands for {n_bytes:,} bytes, not {entry['bytes']:,}")
    if damaged:
        raise ShardError(f"{prepared.folder} is damaged: {'; '.join(damaged)}; prepare it again")
    return prepared.n_tokens


# --- reading --------------------------------------------------------------------------------------


def _open_own(folder: Path) -> Prepared:
    path = folder / MANIFEST_FILE
    manifest = read_manifest(folder)
    raw = read_small(folder / TOKENIZER_FILE)
    if hashlib.sha256(raw).hexdigest() != manifest["tokenizer"]["sha256"]:
        raise ShardError(
            f"{folder / TOKENIZER_FILE} is not the tokenizer that {path} was made with; restore it "
            "or prepare the corpus again"
        )
    try:
        tokenizer = from_json(raw.decode("utf-8"))
    except (ValueError, UserError) as error:
        raise ShardError(f"cannot read the tokenizer {folder / TOKENIZER_FILE}: {error}") from error
    vocab_size = manifest["vocab_size"]
    if tokenizer.vocab_size != vocab_size:
        raise ShardError(
            f"{path} is damaged: its vocab_size is {vocab_size}, its tokenizer's "
            f"{tokenizer.vocab_size}; prepare it again"
        )
    dtype = np.dtype(manifest["dtype"]).newbyteorder("<")
    _allow_files(len(manifest["shards"]))
    shards = {
        split: tuple(
            _map(folder / entry["name"], dtype, entry["tokens"], 0, f"{MANIFEST_FILE} says")
            for entry in entries_of(manifest, split)
        )
        for split in SPLITS
    }
    _check_ids(shards, vocab_size)
    totals = manifest["totals"]
    return Prepared(
        folder=folder,
        kind="gpt_jax",
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        dtype=dtype,
        shards=shards,
        n_bytes={split: totals[split]["bytes"] for split in SPLITS},
        n_documents={split: totals[split]["documents"] for split in SPLITS},
        record=_record(folder, "gpt_jax", shards, vocab_size, content_sha256(manifest)),
        notes=(),
        manifest=manifest,
    )


def _foreign_files(folder: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Returns {split: names} of the files that nanoGPT, llm.c or modded-nanogpt write, or {}."""
    try:
        names = sorted(os.listdir(folder))
    except (OSError, ValueError):
        return {}
    files = {}
    for name in names:
        if match := FOREIGN_NAME.fullmatch(name):
            files.setdefault(match[1], []).append(name)
    return files


def _open_foreign(
    folder: Path, files: dict[str, list[str]], tokenizer: Tokenizer | None
) -> Prepared:
    for split in SPLITS:
        if split not in files:
            raise ShardError(
                f"{folder} has no {split} tokens (a file such as {split}.bin); add them"
            )
    found = {split: [_inspect(folder / name) for name in files[split]] for split in SPLITS}
    kinds = {(kind, width) for shards in found.values() for _, kind, width, _ in shards}
    if len(kinds) > 1:
        shown = ", ".join(sorted(f"{kind} with {8 * width} bits" for kind, width in kinds))
        raise ShardError(f"{folder} mixes token files of different kinds ({shown}); part them")
    kind, width = kinds.pop()
    if kind == "nanoGPT" and tokenizer is None and os.path.lexists(folder / CHARACTERS_FILE):
        raise ShardError(
            f"the ids of {folder} are not GPT-2's: its {CHARACTERS_FILE}, never read, says "
            "what they are; make a corpus of its text with: python main.py prepare --tokenizer char"
        )
    dtype = np.dtype(f"<u{width}")
    _allow_files(sum(map(len, found.values())))
    shards = {
        split: tuple(
            _map(path, dtype, n_tokens, HEADER_BYTES if kind == "llm.c" else 0, "its size says")
            for path, _, _, n_tokens in found[split]
        )
        for split in SPLITS
    }
    notes: tuple[str, ...] = ()
    if tokenizer is None and width == 2:
        tokenizer = BpeTokenizer.published("gpt2")
        notes = (f"{folder} does not name its tokenizer: its ids are taken for GPT-2's",)
    elif tokenizer is None:
        notes = (f"{folder} does not name its tokenizer: there is no text and no bits per byte",)
    vocab_size = None if tokenizer is None else tokenizer.vocab_size
    if vocab_size is not None:
        _check_ids(shards, vocab_size)
    digest = hashlib.sha256()
    for split in SPLITS:
        for ids in shards[split]:
            digest.update(f"{split} {len(ids)} {width}\n".encode())
            for part in _ends(ids):
                digest.update(part.tobytes())
    return Prepared(
        folder=folder,
        kind=kind,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        dtype=dtype,
        shards=shards,
        n_bytes=dict.fromkeys(SPLITS),
        n_documents=dict.fromkeys(SPLITS),
        record=_record(folder, kind, shards, vocab_size, digest.hexdigest()),
        notes=notes,
        manifest={},
    )


def _inspect(path: Path) -> tuple[Path, str, int, int]:
    """Returns (path, kind, bytes of a token, tokens) of another program's file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error
    magic, version, n_tokens = (int(x) for x in np.frombuffer(raw[:12].ljust(12, b"\0"), "<i4"))
    if magic in {known for known, _ in HEADERS}:
        width = HEADERS.get((magic, version))
        if width is None:
            raise ShardError(f"{path} has version {version} of its header, which is unknown")
        if n_tokens < 1 or size != HEADER_BYTES + n_tokens * width:
            raise ShardError(
                f"{path} is damaged: its header says {n_tokens:,} tokens of {width} bytes, and "
                f"{max(size - HEADER_BYTES, 0):,} bytes follow it; fetch or make the file again"
            )
        return path, "llm.c", width, n_tokens
    if path.name not in ("train.bin", "val.bin"):
        raise ShardError(
            f"{path} does not begin with the header of llm.c (magic 20240520); if it is raw "
            "uint16, as nanoGPT's files are, name it train.bin or val.bin"
        )
    if size % 2 or not size:
        raise ShardError(f"{path} has {size:,} bytes, which are no uint16 tokens; make it again")
    return path, "nanoGPT", 2, size // 2


def _map(path: Path, dtype: np.dtype, n_tokens: int, offset: int, says: str) -> np.ndarray:
    """Maps a file of exactly so many tokens behind `offset` bytes."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _unreadable(path, error) from error
    if size != offset + n_tokens * dtype.itemsize:
        raise ShardError(
            f"shard {path} has {size:,} bytes, and {says} {n_tokens:,} tokens of {dtype.itemsize} "
            "bytes; restore it or prepare the corpus again"
        )
    try:
        return np.memmap(path, dtype, "r", offset, (n_tokens,))
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ShardError:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ShardError(
            f"shard {path} can't be opened: {error.strerror}, and each shard of a corpus is one; "
            "allow more with: ulimit -n 65536, or prepare it with a larger --shard-tokens"
        )
    return ShardError(f"shard {path} can't be read: {error.strerror}; restore it")


def _allow_files(n: int) -> None:
    """Raises the limit on open files by `n`, as many as shards take, as far as it may be raised."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    more = soft + n if hard == resource.RLIM_INFINITY else min(soft + n, hard)
    with contextlib.suppress(OSError, ValueError):  # macOS has another limit below the hard one
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))


def _ends(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.array(ids[:CHECKED_TOKENS]), np.array(ids[-CHECKED_TOKENS:])


def _check_ids(shards: Mapping[str, tuple[np.ndarray, ...]], vocab_size: int) -> None:
    for part in shards.values():
        for ids in part:
            highest = max(int(end.max()) for end in _ends(ids))
            if highest >= vocab_size:
                raise ShardError(
                    f"shard {_name_of(ids)} has id {highest}, and the tokenizer's vocabulary is "
                    f"{vocab_size}: it was made with another tokenizer, or is damaged"
                )


def _name_of(ids: np.ndarray) -> str:
    return Path(str(getattr(ids, "filename", "?"))).name


def _record(folder, kind, shards, vocab_size, sha256) -> dict[str, Any]:
    return {
        "name": str(folder.absolute()),
        "requested": str(folder.absolute()),
        "source": f"{folder} ({kind})",
        "sha256": sha256,
        "tokens": {split: sum(map(len, shards[split])) for split in SPLITS},
        "vocabulary": vocab_size,
    }

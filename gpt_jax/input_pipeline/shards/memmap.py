"""Memory-mapped token arrays, and the checks on opening them."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.input_pipeline.shards.manifest import SPLITS, Manifest, ShardError
from gpt_jax.tokenizer import Tokenizer

WORK_FOLDER = ".prepare"  # exists while a preparation is unfinished
CHECKED_TOKENS = 1 << 16
MASK = np.dtype("u1")  # of loss masks on disk
CHUNK_TOKENS = 1 << 22  # held in memory at once by what reads or writes a whole shard


@dataclasses.dataclass(frozen=True)
class TokenShards:
    """A prepared corpus, open for reading.

    Attributes:
      folder: where it is.
      kind: "gpt_jax", "nanoGPT", "llm.c" or "build-nanogpt".
      tokenizer: of its ids; None if the folder doesn't name it and it can't be GPT-2's.
      vocab_size: V; ids are in [0, V). None if the folder names neither it nor a tokenizer.
      dtype: of the ids on disk, little-endian uint16 or uint32.
      shards: for "train" and "val", the ids (N,) of each shard in order, memory-mapped; N is at
        most `MAX_SHARD_TOKENS`, except in other programs' files, which may have any length.
      masks: {split: the loss mask of each shard, uint8 (N,)}; empty where every token counts.
      n_bytes: {split: bytes of UTF-8 that its ids stand for}, None if unknown.
      n_documents: {split: documents that end in it}, None if unknown.
      record: what a run records of its corpus; its "sha256" identifies the content: with a
        manifest, the sums of shards and tokenizer; in other programs' folders, which have no sums,
        the sizes and the first and last `CHECKED_TOKENS` ids of each file.
      notes: what differs from what one would expect, a sentence each.
      manifest: as read; None for other programs' folders.
    """

    folder: Path
    kind: str
    tokenizer: Tokenizer | None
    vocab_size: int | None
    dtype: np.dtype
    shards: dict[str, tuple[np.ndarray, ...]]
    masks: dict[str, tuple[np.ndarray, ...]]
    n_bytes: dict[str, int | None]
    n_documents: dict[str, int | None]
    record: dict[str, Any]
    notes: tuple[str, ...]
    manifest: Manifest | None

    @property
    def n_tokens(self) -> dict[str, int]:
        """{split: tokens in all its shards}."""
        return {split: sum(map(len, shards)) for split, shards in self.shards.items()}


def _open_memmap(path: Path, dtype: np.dtype, n_tokens: int, offset: int, says: str) -> np.ndarray:
    """Maps a file of exactly `n_tokens` tokens after `offset` bytes."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise _read_error(path, error) from error
    if size != offset + n_tokens * dtype.itemsize:
        raise ShardError(
            f"shard {path} has {size:,} bytes, and {says} {n_tokens:,} tokens of {dtype.itemsize} "
            "bytes; restore it or prepare the corpus again"
        )
    try:
        return np.memmap(path, dtype, "r", offset, (n_tokens,))
    except OSError as error:
        raise _read_error(path, error) from error


def _read_error(path: Path, error: OSError) -> ShardError:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ShardError(
            f"shard {path} can't be opened: {error.strerror}, and each shard of a corpus is one; "
            "allow more with: ulimit -n 65536, or prepare it with a larger --shard-tokens"
        )
    return ShardError(f"shard {path} can't be read: {error.strerror}; restore it")


def _raise_open_file_limit(n: int) -> None:
    """Raises the limit on open files by `n`, one per shard, as far as allowed."""
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


def _first_and_last_ids(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.array(ids[:CHECKED_TOKENS]), np.array(ids[-CHECKED_TOKENS:])


def _check_ids(shards: Mapping[str, tuple[np.ndarray, ...]], vocab_size: int) -> None:
    for of_split in shards.values():
        for ids in of_split:
            highest = max(int(end.max()) for end in _first_and_last_ids(ids))
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

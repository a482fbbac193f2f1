"""Writes the shards of a prepared corpus; `reader.py` describes the format and reads it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.input_pipeline.shards.manifest import (
    FORMAT,
    MANIFEST_FILE,
    MAX_SHARD_TOKENS,
    SHARD_NAME,
    SPLITS,
    Manifest,
    MaskEntry,
    ShardEntry,
    ShardError,
    mask_name,
)
from gpt_jax.input_pipeline.shards.memmap import CHUNK_TOKENS, MASK
from gpt_jax.storage import open_in_place, open_new, read_record, write_atomically
from gpt_jax.tokenizer import TOKENIZER_FILE as TOKENIZER_FILE
from gpt_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class WriterState:
    """How far a writer is.

    Attributes:
      shards: {split: its finished shards}.
      open: {split: [tokens, bytes of text] of the shard after them}; zeros where there is none.
    """

    shards: dict[str, list[ShardEntry]]
    open: dict[str, list[int]]


class ShardWriter:
    """Writes the shards of a prepared corpus: the appended ids, in order, cut to size.

    Until `finish` has written the manifest, the folder is not a prepared corpus. `save_state`
    flushes everything to disk and returns the state; a writer made from that state drops what was
    written later and resumes, and the shards are the same bytes as without the interruption.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        shard_tokens: int,
        state: WriterState | None = None,
        masked: Collection[str] = (),
    ):
        """Takes a folder that exists; without a state it starts anew.

        Args:
          folder: where to write.
          tokenizer: of the ids that will come.
          shard_tokens: tokens in every shard but a split's last, at most `MAX_SHARD_TOKENS`.
          state: what `save_state` returned.
          masked: splits whose ids come with a loss mask; such a writer can't resume.

        Raises:
          ShardError: a shard in the state is missing or shorter than recorded.
        """
        if not 1 <= shard_tokens <= MAX_SHARD_TOKENS:
            raise ShardError(
                f"shard_tokens={shard_tokens} must be between 1 and {MAX_SHARD_TOKENS:,}"
            )
        self._folder = folder
        self._tokenizer = tokenizer
        self._shard_tokens = shard_tokens
        self._sizes = tokenizer.token_bytes
        self._masked = masked
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
        self._open: dict[str, _OpenShard] = {}
        self._done: dict[str, list[ShardEntry]] = {split: [] for split in SPLITS}
        kept = set()
        if state:
            for split in SPLITS:
                self._done[split] = list(state.shards[split])
                kept |= {entry.name for entry in self._done[split]}
                n_tokens, n_bytes = state.open[split]
                if n_tokens:
                    shard = _OpenShard(self._next_path(split), n_tokens * self.dtype.itemsize)
                    shard.tokens, shard.bytes = n_tokens, n_bytes
                    self._open[split] = shard
                    kept.add(shard.path.name)
        for path in folder.iterdir():
            if SHARD_NAME.fullmatch(path.name) and path.name not in kept:
                path.unlink()

    @property
    def n_tokens(self) -> dict[str, int]:
        """{split: tokens so far}."""
        return {
            split: sum(entry.tokens for entry in self._done[split])
            + (self._open[split].tokens if split in self._open else 0)
            for split in SPLITS
        }

    def append(self, split: str, ids: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Adds ids (N,) in [0, V) to a split, with a mask (N,), bool, where the split has one.

        Raises:
          ShardError: an id is beyond the vocabulary.
        """
        assert (mask is not None) == (split in self._masked)
        for start in range(0, len(ids), CHUNK_TOKENS):
            chunk = ids[start : start + CHUNK_TOKENS]
            counts = None if mask is None else mask[start : start + CHUNK_TOKENS]
            while len(chunk):
                if split not in self._open:
                    self._open[split] = _OpenShard(self._next_path(split), 0, split in self._masked)
                shard = self._open[split]
                room = self._shard_tokens - shard.tokens
                shard.write(chunk[:room].astype(self.dtype), self._sizes)
                if counts is not None and shard.mask is not None:
                    shard.mask.write(counts[:room])
                    counts = counts[room:]
                chunk = chunk[room:]
                if shard.tokens == self._shard_tokens:
                    self._close(split)

    def save_state(self) -> WriterState:
        """Flushes everything to disk and returns the state; `dataclasses.asdict` is its JSON."""
        for shard in self._open.values():
            shard.sync()
        sizes = {split: [shard.tokens, shard.bytes] for split, shard in self._open.items()}
        return WriterState(
            {split: list(self._done[split]) for split in SPLITS},
            {split: sizes.get(split, [0, 0]) for split in SPLITS},
        )

    def finish(self, tokenizer_name: str, n_documents: Mapping[str, int], **facts: Any) -> Manifest:
        """Closes the shards, writes tokenizer and manifest, and returns the manifest.

        Args:
          tokenizer_name: "char", "bpe", "gpt2", ...
          n_documents: {split: documents}.
          **facts: further entries of the manifest: the source, the settings, the counts.

        Raises:
          ShardError: a split has no tokens.
        """
        for split in list(self._open):
            self._close(split)
        for split in SPLITS:
            if not self._done[split]:
                raise ShardError(f"no tokens for {split}")
        content = self._tokenizer.to_json()
        write_atomically(self._folder / TOKENIZER_FILE, content)
        manifest = {
            "format": FORMAT,
            "dtype": "uint16" if self.dtype.itemsize == 2 else "uint32",
            "vocab_size": self._tokenizer.vocab_size,
            "tokenizer": {
                "name": tokenizer_name,
                "sha256": hashlib.sha256(content.encode("utf-8")).hexdigest(),
            },
            "totals": {
                split: {
                    "tokens": sum(entry.tokens for entry in self._done[split]),
                    "bytes": sum(entry.bytes for entry in self._done[split]),
                    "documents": n_documents[split],
                }
                for split in SPLITS
            },
            **facts,
            "shards": [entry.values() for split in SPLITS for entry in self._done[split]],
        }
        write_atomically(self._folder / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
        return read_record(manifest, Manifest)

    def close(self) -> None:
        """Closes the files as they are, without a manifest."""
        for shard in self._open.values():
            shard.close()

    def _next_path(self, split: str) -> Path:
        return self._folder / f"{split}-{len(self._done[split]):05d}.bin"

    def _close(self, split: str) -> None:
        shard = self._open[split]
        shard.sync()
        shard.close()
        del self._open[split]
        entry = ShardEntry(shard.path.name, shard.tokens, shard.bytes, shard.digest.hexdigest())
        if shard.mask:
            mask = MaskEntry(shard.mask.counted, shard.mask.digest.hexdigest())
            entry = dataclasses.replace(entry, mask=mask)
        self._done[split].append(entry)


class _OpenShard:
    """A shard that is being written, from its first `size` bytes on."""

    def __init__(self, path: Path, size: int, masked: bool = False):
        self.mask = _OpenMask(path.with_name(mask_name(path.name))) if masked else None
        self.path, self.tokens, self.bytes = path, 0, 0
        self.digest = hashlib.sha256()
        try:
            self.file = open_in_place(path) if size else open_new(path)
        except OSError as error:
            raise ShardError(f"shard {path} can't be opened: {error.strerror}") from error
        left = size
        while left and (chunk := self.file.read(min(left, 1 << 22))):
            self.digest.update(chunk)
            left -= len(chunk)
        if left:
            self.file.close()
            raise ShardError(
                f"{path} is {left:,} bytes shorter than the preparation had written; delete "
                f"{path.parent} and prepare it again"
            )
        self.file.truncate(size)
        self.file.seek(size)

    def write(self, ids: np.ndarray, sizes: np.ndarray) -> None:
        try:
            self.bytes += int(sizes[ids].sum(dtype=np.int64))
        except IndexError:
            raise ShardError(
                f"id {ids.max()} for {self.path} is beyond the tokenizer's {len(sizes)} tokens; "
                f"delete {self.path.parent} and prepare it again"
            ) from None
        raw = ids.tobytes()
        self.file.write(raw)
        self.digest.update(raw)
        self.tokens += len(ids)

    def sync(self) -> None:
        for file in (self.file, *([self.mask.file] if self.mask else [])):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        self.file.close()
        if self.mask:
            self.mask.file.close()


class _OpenMask:
    """The loss mask of a shard that is being written."""

    def __init__(self, path: Path):
        self.file, self.digest, self.counted = open_new(path), hashlib.sha256(), 0

    def write(self, mask: np.ndarray) -> None:
        raw = mask.astype(MASK).tobytes()
        self.file.write(raw)
        self.digest.update(raw)
        self.counted += int(np.count_nonzero(mask))

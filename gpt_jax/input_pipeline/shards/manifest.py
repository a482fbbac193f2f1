"""The manifest of a prepared corpus, a typed record, checked before anything in it is believed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.storage import NewerFormatError, parse_json, read_small, read_versioned

FORMAT = 1
MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "val")
MAX_SHARD_TOKENS = 2**31 - 1  # an offset in a shard is an int32

SHARD_NAME = re.compile(r"(train|val)-\d{5,9}\.bin")


class ShardError(UserError):
    """A prepared corpus that can't be used."""


@dataclasses.dataclass(frozen=True)
class MaskEntry:
    """The loss mask of a shard: how many of its tokens count as targets, and its file's sum."""

    counted: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """A shard.

    Attributes:
      name: of its file.
      tokens: in it.
      bytes: of the text that they stand for.
      sha256: of its file.
      mask: None where every token counts as a target.
    """

    name: str
    tokens: int
    bytes: int
    sha256: str
    mask: MaskEntry | None = None

    @property
    def mask_name(self) -> str:
        """The name of the mask's file, if there is one."""
        return mask_name(self.name)

    def values(self) -> dict[str, Any]:
        """Returns what a manifest has of it, for JSON."""
        values = dataclasses.asdict(self)
        if self.mask is None:
            del values["mask"]
        return values


def mask_name(shard: str) -> str:
    """Returns the name of the file with the loss mask of a shard."""
    return f"{shard.removesuffix('.bin')}.mask"


@dataclasses.dataclass(frozen=True)
class Totals:
    """The sums of a split's shards, and the documents that end in it."""

    tokens: int
    bytes: int
    documents: int


@dataclasses.dataclass(frozen=True)
class TokenizerEntry:
    """The sum of tokenizer.json."""

    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a manifest says; only `read_manifest` makes one, so it is valid.

    Attributes:
      dtype: of the ids on disk, "uint16" or "uint32".
      vocab_size: V; ids are in [0, V).
      tokenizer: of the ids.
      totals: of "train" and "val".
      shards: of both splits, each split's in order.
      source: what the corpus was made of, as whoever made it saw fit.
      settings: those of the preparation.
      counts: of documents and of what was left out.
      damaged: messages about what was left out.
    """

    format: int
    dtype: str
    vocab_size: int
    tokenizer: TokenizerEntry
    totals: dict[str, Totals]
    shards: list[ShardEntry]
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    counts: dict[str, Any] = dataclasses.field(default_factory=dict)
    damaged: list[str] = dataclasses.field(default_factory=list)

    def entries(self, split: str) -> list[ShardEntry]:
        """Returns a split's shards, in order."""
        return [shard for shard in self.shards if shard.name.startswith(f"{split}-")]

    @property
    def content_sha256(self) -> str:
        """One sha256 of the tokens and tokenizer, whatever their source."""
        content = {
            "dtype": self.dtype,
            "vocab_size": self.vocab_size,
            "shards": [shard.values() for shard in self.shards],
            "tokenizer": self.tokenizer.sha256,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Returns a folder's manifest, validated: types, names, sizes and sums of sizes.

    Raises:
      ShardError: it is damaged, or a newer program wrote it.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = read_versioned(parse_json(read_raw(path)), Manifest, FORMAT)
        if wrong := _problem(manifest):
            raise ValueError(wrong)
    except NewerFormatError as error:
        raise ShardError(f"{path} {error}") from error
    except ValueError as error:
        raise ShardError(f"{path} is damaged: {error}; prepare the corpus again") from error
    return manifest


def _problem(manifest: Manifest) -> str:
    """Returns what is wrong with a manifest, or ''."""
    if manifest.dtype not in ("uint16", "uint32"):
        return f"its dtype {manifest.dtype!r:.40} is neither uint16 nor uint32"
    most = 2 ** (8 * np.dtype(manifest.dtype).itemsize)
    if not 1 <= manifest.vocab_size <= min(most, 2**31):
        return f"its vocab_size {manifest.vocab_size} does not fit {manifest.dtype}"
    if not _is_sum(manifest.tokenizer.sha256):
        return "it has no sha256 of the tokenizer"
    for shard in manifest.shards:
        if wrong := _problem_of(shard):
            return wrong
    if len({shard.name for shard in manifest.shards}) < len(manifest.shards):
        return "a shard is named twice"
    for split in SPLITS:
        total, entries = manifest.totals.get(split), manifest.entries(split)
        if total is None or total.documents < 0:
            return f"it has no totals of {split}"
        if not entries:
            return f"it has no shard of {split}"
        if len({entry.mask is None for entry in entries}) > 1:
            return f"some shards of {split} have a mask, and others none"
        for name in ("tokens", "bytes"):
            if getattr(total, name) != sum(getattr(entry, name) for entry in entries):
                return f"the {name} of {split} are not the sum of its shards'"
    return ""


def _problem_of(shard: ShardEntry) -> str:
    """Returns what is wrong with the entry of a shard, or ''."""
    if not SHARD_NAME.fullmatch(shard.name):
        return f"{shard.name!r:.60} is no shard's name"
    if not 1 <= shard.tokens <= MAX_SHARD_TOKENS:
        return f"{shard.name} has {shard.tokens} tokens"
    if shard.bytes < 0 or not _is_sum(shard.sha256):
        return f"{shard.name} lacks its bytes or its sha256"
    mask = shard.mask
    if mask and not (0 <= mask.counted <= shard.tokens and _is_sum(mask.sha256)):
        return f"the mask of {shard.name} counts what can't be, or lacks its sha256"
    return ""


def _is_sum(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def read_raw(path: Path) -> bytes:
    """Returns the bytes of a small file; raises ShardError where it is missing or not small."""
    try:
        return read_small(path)
    except OSError as error:
        raise ShardError(f"{path} can't be read: {error.strerror}; restore the file") from error
    except ValueError as error:
        raise ShardError(f"{path} is damaged: {error}; prepare the corpus again") from error

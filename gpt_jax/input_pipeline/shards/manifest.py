"""The manifest of a prepared corpus: its form, checked before anything in it is believed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.storage import parse_json, read_small

FORMAT = 1
MANIFEST_FILE = "manifest.json"
SPLITS = ("train", "val")
MAX_SHARD_TOKENS = 2**31 - 1  # an offset in a shard is an int32

SHARD_NAME = re.compile(r"(train|val)-\d{5,9}\.bin")


class ShardError(UserError):
    """A prepared corpus that can't be used."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns a folder's manifest, validated: types, names, sizes and sums of sizes.

    Raises:
      ShardError: it is damaged, or a newer program wrote it.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = parse_json(read_raw(path))
    except ValueError as error:
        raise ShardError(f"{path} is damaged: {error}; prepare the corpus again") from error
    written = manifest.get("format")
    if type(written) is int and written > FORMAT:
        raise ShardError(
            f"{path} has format {written}, from a newer gpt_jax; this one reads up to {FORMAT}"
        )
    if wrong := _problem(manifest):
        raise ShardError(f"{path} is damaged: {wrong}; prepare the corpus again")
    return manifest


def content_sha256(manifest: Mapping[str, Any]) -> str:
    """Returns one sha256 of the tokens and tokenizer in a manifest, whatever their source."""
    content = {name: manifest[name] for name in ("dtype", "vocab_size", "shards")}
    content["tokenizer"] = manifest["tokenizer"]["sha256"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _problem(manifest: Any) -> str:
    """Returns what is wrong with the form of a manifest, or ''."""
    if repr(manifest.get("format")) != repr(FORMAT):
        return "it has no format number"
    if manifest.get("dtype") not in ("uint16", "uint32"):
        return f"its dtype {manifest.get('dtype')!r:.40} is neither uint16 nor uint32"
    vocab_size = manifest.get("vocab_size")
    most = 2 ** (8 * np.dtype(manifest["dtype"]).itemsize)
    if not _is_count(vocab_size) or not 1 <= vocab_size <= min(most, 2**31):
        return f"its vocab_size {vocab_size!r:.40} does not fit {manifest['dtype']}"
    tokenizer = manifest.get("tokenizer")
    if not isinstance(tokenizer, dict) or not _is_sum(tokenizer.get("sha256")):
        return "it has no sha256 of the tokenizer"
    shards, totals = manifest.get("shards"), manifest.get("totals")
    if not isinstance(shards, list) or not isinstance(totals, dict):
        return "it has no shards or no totals"
    for shard in shards:
        if not isinstance(shard, dict):
            return "a shard is no entry"
        name = shard.get("name")
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            return f"{name!r:.60} is no shard's name"
        if not _is_count(shard.get("tokens")) or not 1 <= shard["tokens"] <= MAX_SHARD_TOKENS:
            return f"{name} has {shard.get('tokens')!r:.40} tokens"
        if not _is_count(shard.get("bytes")) or not _is_sum(shard.get("sha256")):
            return f"{name} lacks its bytes or its sha256"
    if len({shard["name"] for shard in shards}) < len(shards):
        return "a shard is named twice"
    for split in SPLITS:
        total, entries = totals.get(split), entries_of(manifest, split)
        if not isinstance(total, dict) or not _is_count(total.get("documents")):
            return f"it has no totals of {split}"
        if not entries:
            return f"it has no shard of {split}"
        for name in ("tokens", "bytes"):
            if total.get(name) != sum(entry[name] for entry in entries):
                return f"the {name} of {split} are not the sum of its shards'"
    return ""


def entries_of(manifest: Mapping[str, Any], split: str) -> list[dict[str, Any]]:
    """Returns the entries of a split's shards in a manifest, in order."""
    return [s for s in manifest.get("shards", []) if s["name"].startswith(f"{split}-")]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_sum(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def read_raw(path: Path) -> bytes:
    """Returns the bytes of a small file; raises ShardError where it is missing or not small."""
    try:
        return read_small(path)
    except OSError as error:
        raise ShardError(f"{path} can't be read: {error.strerror}; restore the file") from error
    except ValueError as error:
        raise ShardError(f"{path} is damaged: {error}; prepare the corpus again") from error

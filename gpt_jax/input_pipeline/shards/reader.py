"""Token shards: the format of a prepared corpus, and its reader.

A prepared corpus is a folder:

    manifest.json     written last: what the shards are, and how they were made
    tokenizer.json    see tokenizer.py
    train-00000.bin   token ids, little-endian uint16 (uint32 for a vocabulary beyond 65,536), no
    val-00000.bin     header; the shards of a split are consecutive
    train-00000.mask  where not every token counts as a target: a byte for each, 1 where it does

The folders of nanoGPT (https://github.com/karpathy/nanoGPT: train.bin and val.bin, uint16; other
widths are noticed, see `id_widths.py`), of llm.c and modded-nanogpt
(https://github.com/karpathy/llm.c, dev/data/data_common.py: a header of 256 int32, then uint16 or
uint32) and of build-nanogpt (https://github.com/karpathy/build-nanogpt: .npy) are read as they are.

Opening a corpus maps its shards into memory and reads very little of them: sizes are checked
against the manifest or the header, and the first and last `CHECKED_TOKENS` ids of each shard
against the vocabulary. `verify_shards` reads everything. Nothing here knows batches or
devices; `manifest.py` has the manifest's form, and `writer.py` writes what `data/` prepares.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.shards.external_formats import _foreign_files, _open_foreign
from gpt_jax.input_pipeline.shards.manifest import (
    MANIFEST_FILE,
    SPLITS,
    ShardError,
    read_manifest,
    read_raw,
)
from gpt_jax.input_pipeline.shards.memmap import (
    CHUNK_TOKENS,
    MASK,
    WORK_FOLDER,
    TokenShards,
    _check_ids,
    _name_of,
    _open_memmap,
    _raise_open_file_limit,
    _record,
)
from gpt_jax.tokenizer import TOKENIZER_FILE as TOKENIZER_FILE
from gpt_jax.tokenizer import Tokenizer, from_json


def has_shards(path: str | os.PathLike[str]) -> bool:
    """Returns whether `path` is a folder for `open_shards`, though it may be damaged."""
    folder = os.fspath(path)
    if os.path.isfile(os.path.join(folder, MANIFEST_FILE)):
        return True
    return os.path.isdir(os.path.join(folder, WORK_FOLDER)) or bool(_foreign_files(folder))


def open_shards(path: str | os.PathLike[str], tokenizer: Tokenizer | None = None) -> TokenShards:
    """Opens a prepared corpus.

    Args:
      path: its folder.
      tokenizer: of a folder of nanoGPT or llm.c, whose ids are otherwise assumed to be GPT-2's.
        With nanoGPT's meta.pkl they are characters: such a folder is refused without a tokenizer,
        as that file, which can run code, is never read. A folder with a manifest has a tokenizer.

    Raises:
      ShardError: a file is missing, short, damaged or of another kind; which one, and a way out.
    """
    folder = Path(path)
    if os.path.isfile(folder / MANIFEST_FILE):
        return _open_own(folder)
    if os.path.isdir(folder / WORK_FOLDER):
        raise ShardError(
            f"the preparation of {folder} is not finished; run the same `python main.py prepare` "
            "command again to resume it"
        )
    files = _foreign_files(folder)
    if not files:
        raise ShardError(
            f"{folder} is not a prepared corpus: it has no {MANIFEST_FILE} and no train.bin; make "
            "one with: python main.py prepare"
        )
    return _open_foreign(folder, files, tokenizer)


def verify_shards(
    prepared: TokenShards, progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Reads every token: checks sums against the manifest, ids against the vocabulary.

    Args:
      prepared: the corpus; other programs' folders have no sums, so only their ids are checked.
      progress: called with (tokens so far, total tokens).

    Returns:
      {split: tokens}, if all are valid.

    Raises:
      ShardError: names every shard that is damaged, and how.
    """
    done, total = 0, sum(prepared.n_tokens.values())
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
            elif prepared.manifest is not None:
                entry = prepared.manifest.entries(split)[number]
                if digest.hexdigest() != entry.sha256:
                    damaged.append(f"{name} has another sha256 than the manifest")
                elif n_bytes != entry.bytes:
                    damaged.append(f"{name} stands for {n_bytes:,} bytes, not {entry.bytes:,}")
    damaged += [wrong for split in SPLITS for wrong in _damaged_masks(prepared, split)]
    if damaged:
        raise ShardError(f"{prepared.folder} is damaged: {'; '.join(damaged)}; prepare it again")
    return prepared.n_tokens


def _damaged_masks(prepared: TokenShards, split: str) -> list[str]:
    """Returns what is wrong with the loss masks of a split."""
    entries = prepared.manifest.entries(split) if prepared.manifest else []
    damaged = []
    for mask, entry in zip(prepared.masks[split], entries, strict=False):
        assert entry.mask is not None
        if hashlib.sha256(mask.data).hexdigest() != entry.mask.sha256:
            damaged.append(f"{entry.mask_name} has another sha256 than the manifest")
        elif mask.max() > 1 or np.count_nonzero(mask) != entry.mask.counted:
            damaged.append(f"{entry.mask_name} does not count {entry.mask.counted:,} tokens")
    return damaged


def _open_own(folder: Path) -> TokenShards:
    path = folder / MANIFEST_FILE
    manifest = read_manifest(folder)
    raw = read_raw(folder / TOKENIZER_FILE)
    if hashlib.sha256(raw).hexdigest() != manifest.tokenizer.sha256:
        raise ShardError(
            f"{folder / TOKENIZER_FILE} is not the tokenizer that {path} was made with; restore it "
            "or prepare the corpus again"
        )
    try:
        tokenizer = from_json(raw.decode("utf-8"))
    except (ValueError, UserError) as error:
        raise ShardError(f"cannot read the tokenizer {folder / TOKENIZER_FILE}: {error}") from error
    vocab_size = manifest.vocab_size
    if tokenizer.vocab_size != vocab_size:
        raise ShardError(
            f"{path} is damaged: its vocab_size is {vocab_size}, its tokenizer's "
            f"{tokenizer.vocab_size}; prepare it again"
        )
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    _raise_open_file_limit(2 * len(manifest.shards))
    shards = {
        split: tuple(
            _open_memmap(folder / entry.name, dtype, entry.tokens, 0, f"{MANIFEST_FILE} says")
            for entry in manifest.entries(split)
        )
        for split in SPLITS
    }
    masks = {
        split: tuple(
            _open_memmap(folder / entry.mask_name, MASK, entry.tokens, 0, f"{MANIFEST_FILE} says")
            for entry in manifest.entries(split)
            if entry.mask
        )
        for split in SPLITS
    }
    _check_ids(shards, vocab_size)
    totals = manifest.totals
    return TokenShards(
        folder=folder,
        kind="gpt_jax",
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        dtype=dtype,
        shards=shards,
        masks=masks,
        n_bytes={split: totals[split].bytes for split in SPLITS},
        n_documents={split: totals[split].documents for split in SPLITS},
        record=_record(folder, "gpt_jax", shards, vocab_size, manifest.content_sha256),
        notes=(),
        manifest=manifest,
    )

"""Token files written by nanoGPT, llm.c and modded-nanogpt, read as they are."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np

from gpt_jax.input_pipeline.shards.manifest import SPLITS, ShardError
from gpt_jax.input_pipeline.shards.memmap import (
    TokenShards,
    _check_ids,
    _first_and_last_ids,
    _open_memmap,
    _raise_open_file_limit,
    _read_error,
    _record,
)
from gpt_jax.tokenizer import BpeTokenizer, Tokenizer

FOREIGN_NAME = re.compile(r"(?:.*_)?(train|val)(?:_\d+)?\.bin")
HEADER_BYTES = 256 * 4
# {(magic, version): bytes per token}, of llm.c's headers for GPT-2 and Llama 3.
HEADERS = {(20240520, 1): 2, (20240801, 7): 4}
CHARACTERS_FILE = "meta.pkl"  # of nanoGPT: the characters that ids stand for


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
) -> TokenShards:
    for split in SPLITS:
        if split not in files:
            raise ShardError(
                f"{folder} has no {split} tokens (a file such as {split}.bin); add them"
            )
    found = {split: [_inspect(folder / name) for name in files[split]] for split in SPLITS}
    kinds = {(kind, width) for shards in found.values() for _, kind, width, _ in shards}
    if len(kinds) > 1:
        shown = ", ".join(sorted(f"{kind} with {8 * width} bits" for kind, width in kinds))
        raise ShardError(f"{folder} mixes token files of different kinds ({shown}); separate them")
    kind, width = kinds.pop()
    if kind == "nanoGPT" and tokenizer is None and os.path.lexists(folder / CHARACTERS_FILE):
        raise ShardError(
            f"the ids of {folder} are not GPT-2's: its {CHARACTERS_FILE}, never read, says "
            "what they are; make a corpus of its text with: python main.py prepare --tokenizer char"
        )
    dtype = np.dtype(f"<u{width}")
    _raise_open_file_limit(sum(map(len, found.values())))
    shards = {
        split: tuple(
            _open_memmap(
                path, dtype, n_tokens, HEADER_BYTES if kind == "llm.c" else 0, "its size says"
            )
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
            for end in _first_and_last_ids(ids):
                digest.update(end.tobytes())
    return TokenShards(
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
    """Returns (path, kind, bytes per token, tokens) of another program's file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
    except OSError as error:
        raise _read_error(path, error) from error
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

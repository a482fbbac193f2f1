"""Token files written by nanoGPT, llm.c, modded-nanogpt and build-nanogpt, read as they are."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from gpt_jax.input_pipeline.shards.id_widths import find_width
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

FOREIGN_NAME = re.compile(r"(?:.*_)?(train|val)(?:_\d+)?\.(?:bin|npy)")
HEADER_BYTES = 256 * 4
# {(magic, version): bytes per token}, of llm.c's headers for GPT-2 and Llama 3.
HEADERS = {(20240520, 1): 2, (20240801, 7): 4}
MAGICS = {magic.to_bytes(4, "little") for magic, _ in HEADERS}
GPT2_TOKENS = 50257
CHARACTERS_FILE = "meta.pkl"  # of nanoGPT: the characters that ids stand for
SAMPLE_BYTES = 1 << 17  # of the beginning, the middle and the end of a file without a header
MAX_NPY_HEADER = 1 << 12
NPY_TYPES = ("<u2", "<u4", "<i4", "<u8", "<i8")


class TokenFile(NamedTuple):
    """A file of another program: ids of `width` bytes each, after `offset` bytes."""

    path: Path
    kind: str
    width: int
    n_tokens: int
    offset: int = 0


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
    kinds = {(file.kind, file.width) for those in found.values() for file in those}
    if len(kinds) > 1:
        shown = ", ".join(sorted(f"{kind} with {8 * width} bits" for kind, width in kinds))
        raise ShardError(f"{folder} mixes token files of different kinds ({shown}); separate them")
    kind, width = kinds.pop()
    if kind == "nanoGPT" and tokenizer is None and os.path.lexists(folder / CHARACTERS_FILE):
        raise ShardError(
            f"the ids of {folder} are not GPT-2's: its {CHARACTERS_FILE}, never read, says "
            "what they are; make a corpus of its text with: python main.py prepare --tokenizer char"
        )
    _raise_open_file_limit(sum(map(len, found.values())))
    shards = {split: tuple(map(_open_file, found[split])) for split in SPLITS}
    notes: tuple[str, ...] = ()
    if tokenizer is None and (width == 2 or (kind != "llm.c" and _are_below(shards, GPT2_TOKENS))):
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
        dtype=next(iter(shards.values()))[0].dtype,
        shards=shards,
        masks=dict.fromkeys(SPLITS, ()),
        n_bytes=dict.fromkeys(SPLITS),
        n_documents=dict.fromkeys(SPLITS),
        record=_record(folder, kind, shards, vocab_size, digest.hexdigest()),
        notes=notes,
        manifest=None,
    )


def _open_file(file: TokenFile) -> np.ndarray:
    """Maps a file's ids; those of 64 bits are seen through their lower halves."""
    dtype = np.dtype(f"<u{min(file.width, 4)}")
    halves = file.width // dtype.itemsize
    ids = _open_memmap(file.path, dtype, file.n_tokens * halves, file.offset, "its size says")
    if halves == 2 and any(end.any() for end in _first_and_last_ids(ids[1::2])):
        raise ShardError(
            f"{file.path} has ids that are negative or beyond 32 bits; make the file again"
        )
    return ids[::halves]


def _are_below(shards: dict[str, tuple[np.ndarray, ...]], n: int) -> bool:
    ends = (_first_and_last_ids(ids) for those in shards.values() for ids in those)
    return all(int(end.max()) < n for both in ends for end in both)


def _inspect(path: Path) -> TokenFile:
    """Returns what another program's file is.

    Raises:
      ShardError: it can't be read, or is no file of tokens.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ShardError(f"{path} is no file; remove it, or put the tokens there")
        size = status.st_size
        with path.open("rb") as file:
            raw = file.read(HEADER_BYTES)
            if path.suffix == ".npy":
                return _inspect_npy(path, file, size)
            samples = [raw] if raw[:4] in MAGICS else _samples(file, size)
    except OSError as error:
        raise _read_error(path, error) from error
    if raw[:4] in MAGICS:
        return _inspect_llm_c(path, raw, size)
    if path.name not in ("train.bin", "val.bin"):
        raise ShardError(
            f"{path} does not begin with the header of llm.c (magic 20240520); if it is raw "
            "uint16, as nanoGPT's files are, name it train.bin or val.bin"
        )
    try:
        width = find_width(samples, size)
    except ValueError as error:
        raise ShardError(
            f"{path} does not hold nanoGPT's ids of 16 bits: its bytes look like {error}; write "
            f"the ids again with: np.array(ids, np.uint16).tofile({path.name!r})"
        ) from error
    if size % width or not size:
        raise ShardError(f"{path} has {size:,} bytes, which are no uint16 tokens; make it again")
    return TokenFile(path, "nanoGPT", width, size // width)


def _samples(file: IO[bytes], size: int) -> list[bytes]:
    """Returns the beginning, the middle and the end of a file, each from a multiple of 8 on."""
    if size <= 3 * SAMPLE_BYTES:
        file.seek(0)
        return [file.read(size)]
    samples = []
    for at in (0, size // 2, size - SAMPLE_BYTES):
        file.seek(at // 8 * 8)
        samples.append(file.read(SAMPLE_BYTES))
    return samples


def _inspect_llm_c(path: Path, raw: bytes, size: int) -> TokenFile:
    magic, version, n_tokens = (int(x) for x in np.frombuffer(raw[:12].ljust(12, b"\0"), "<i4"))
    width = HEADERS.get((magic, version))
    if width is None:
        raise ShardError(f"{path} has version {version} of its header, which is unknown")
    if n_tokens < 1 or size != HEADER_BYTES + n_tokens * width:
        raise ShardError(
            f"{path} is damaged: its header says {n_tokens:,} tokens of {width} bytes, and "
            f"{max(size - HEADER_BYTES, 0):,} bytes follow it; fetch or make the file again"
        )
    return TokenFile(path, "llm.c", width, n_tokens, HEADER_BYTES)


def _inspect_npy(path: Path, file: IO[bytes], size: int) -> TokenFile:
    """Returns what NumPy's own header says (numpy.lib.format); arrays of objects are refused."""
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(file, max_header_size=MAX_NPY_HEADER)
    except (ValueError, KeyError, SyntaxError, TypeError, EOFError) as error:
        raise ShardError(
            f"{path} is no array that NumPy saved: {' '.join(str(error).split()):.200}; make it "
            "again with np.save"
        ) from error
    if len(shape) != 1 or not shape[0] or dtype.str not in NPY_TYPES:
        raise ShardError(
            f"{path} is an array of {dtype} with shape {shape}, not of ids in a row; make it again "
            "with: np.save(file, np.array(ids, np.uint16))"
        )
    n_tokens, offset = shape[0], file.tell()
    if size != offset + n_tokens * dtype.itemsize:
        raise ShardError(
            f"{path} is damaged: its header says {n_tokens:,} tokens of {dtype.itemsize} bytes, "
            f"and {size - offset:,} bytes follow it; fetch or make the file again"
        )
    return TokenFile(path, "build-nanogpt", dtype.itemsize, n_tokens, offset)

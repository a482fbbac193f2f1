"""Sequences of integers, written as a prepared corpus: `gpt_jax.write_sequences`.

Nothing here knows batches or devices; `shards/reader.py` reads what is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.config.fields import plain
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.input_pipeline.file_kinds import is_utf8
from gpt_jax.input_pipeline.shards.writer import ShardWriter
from gpt_jax.integer_tokenizer import IntegerTokenizer
from gpt_jax.storage import to_local

SHARD_TOKENS = 100_000_000


def write_sequences(
    folder: str | os.PathLike[str],
    train: Any,
    val: Any,
    *,
    vocab_size: int | None = None,
    names: Sequence[str] | None = None,
    train_mask: Any = None,
    val_mask: Any = None,
    shard_tokens: int = SHARD_TOKENS,
) -> Path:
    """Writes sequences of integers as a corpus that `data.corpus` names.

    The sequences of a split are joined in order. A mask says which tokens count as targets: those
    alone are in losses, gradients and evaluations. All tokens are inputs.

    Args:
      folder: a new one, or an empty one.
      train: ids in [0, V): an array (N,), or (sequences, length), or an iterable of arrays (N,),
        which is read once and need not fit in memory.
      val: likewise.
      vocab_size: V; None is the number of names.
      names: a word for each id, as prompts and samples show it; None shows the ids.
      train_mask: as `train`, bool or 0 and 1, 1 where the token counts; None counts all.
      val_mask: likewise.
      shard_tokens: tokens in a file, at most.

    Returns:
      The folder, absolute.

    Raises:
      UserError: an argument is wrong, or the folder is not empty or can't be written; nothing is
        left there.
    """
    tokenizer = _tokenizer(vocab_size, names)
    path = Path(os.path.abspath(to_local(folder)))
    if not is_utf8(str(path)) or "\0" in str(path):
        raise UserError(f"{str(path)!r}: this path is not UTF-8; choose another")
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} is in use; choose a new folder")
        path.mkdir(parents=True, exist_ok=True)
        try:
            _write(
                path,
                tokenizer,
                shard_tokens,
                {"train": (train, train_mask), "val": (val, val_mask)},
            )
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)  # it was empty
            raise
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from error
    return path


def _tokenizer(vocab_size: int | None, names: Sequence[str] | None) -> IntegerTokenizer:
    size, words = plain(vocab_size), () if names is None else tuple(names)
    if size is None:
        size = len(words)
    if type(size) is not int or not size:
        raise ConfigError(
            f"vocab_size={vocab_size!r:.60} must be a whole number, or names be given"
        )
    if not all(isinstance(name, str) for name in words):
        raise ConfigError("names must be texts")
    try:
        return IntegerTokenizer(size, words)
    except ValueError as error:
        raise ConfigError(f"write_sequences: {error}") from error


def _write(
    path: Path, tokenizer: IntegerTokenizer, shard_tokens: int, splits: dict[str, tuple[Any, Any]]
) -> None:
    masked = [split for split, (_, mask) in splits.items() if mask is not None]
    writer = ShardWriter(path, tokenizer, shard_tokens, masked=masked)
    n_sequences = {}
    try:
        for split, (sequences, masks) in splits.items():
            n_sequences[split] = n_targets = 0
            for ids, mask in _pairs(split, sequences, masks):
                _check_ids(split, ids, tokenizer.vocab_size)
                n_targets += len(ids) if mask is None else int(np.count_nonzero(mask))
                writer.append(split, ids, mask)
                n_sequences[split] += 1
            if not n_targets:
                raise ConfigError(f"{split} has no token that counts as a target")
        writer.finish("integers", n_sequences, source={"kind": "sequences"})
    finally:
        writer.close()


def _pairs(
    split: str, sequences: Any, masks: Any
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields each sequence of a split with its mask, checked."""
    if masks is None:
        for ids in _each(split, sequences):
            yield ids, None
        return
    both = iter(_each(f"{split}_mask", masks))
    for ids in _each(split, sequences):
        mask = next(both, None)
        if mask is None or len(mask) != len(ids) or not np.isin(mask, (0, 1)).all():
            raise ConfigError(f"{split}_mask must have a 0 or 1 for each token of {split}")
        yield ids, mask.astype(bool)
    if next(both, None) is not None:
        raise ConfigError(f"{split}_mask has more sequences than {split}")


def _each(what: str, sequences: Any) -> Iterator[np.ndarray]:
    """Yields the sequences, integers or booleans (N,), of an array or an iterable of arrays."""
    if not isinstance(sequences, Iterable) or isinstance(sequences, str | bytes | dict):
        raise ConfigError(f"{what} must be an array of integers, or arrays of them")
    if not isinstance(sequences, np.ndarray) and not isinstance(sequences, Iterator):
        first = next(iter(sequences), None)
        if first is None or np.ndim(first) == 0:  # a list of integers
            sequences = np.asarray(sequences)
    if isinstance(sequences, np.ndarray) and sequences.ndim == 1 and sequences.dtype != object:
        sequences = [sequences]
    for each in sequences:
        array = np.asarray(each)
        if array.shape == (0,):  # of any dtype
            continue
        if array.ndim != 1 or (array.dtype.kind not in "iu" and not _is_mask(what, array)):
            shown = f"{array.dtype} with shape {array.shape}"
            raise ConfigError(f"{what} must be arrays of integers in a row, and one is {shown}")
        yield array


def _is_mask(what: str, array: np.ndarray) -> bool:
    return what.endswith("_mask") and array.dtype == bool


def _check_ids(split: str, ids: np.ndarray, vocab_size: int) -> None:
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ConfigError(f"{split} has the id {wrong}, and ids are from 0 to {vocab_size - 1:,}")

"""Data: from a text to token ids, and from a key to the batch of a step.

The sampler is a pure function of its key: same key, same batch, on any number of devices, wherever
the tokens lie. There is no iterator and so no iterator state to save.

A corpus is a few arrays, its shards: one in memory for a text, files on disk for a prepared corpus.
This module is about one array; `pieces.py` draws from several by the same functions.
Read `step.py` next for how a batch becomes a loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.errors import ConfigError, UserError


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of a corpus.

    Attributes:
      shards: ids in order, int (N,) each, in memory or mapped from files. No sequence goes from one
        into the next.
      n_bytes: UTF-8 bytes that the tokens stand for; None where nobody has counted.
    """

    shards: tuple[np.ndarray, ...]
    n_bytes: int | None

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.shards))

    @property
    def bytes_per_token(self) -> float:
        assert self.n_bytes is not None
        return self.n_bytes / self.n_tokens

    @property
    def parts(self) -> tuple[tuple[Fraction, Split], ...]:
        """(share of the rows, split) of each corpus: here, all of one."""
        return ((Fraction(1), self),)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The same part of several corpora.

    Attributes:
      parts: (share of the rows, split) of each corpus; the shares sum to 1.
    """

    parts: tuple[tuple[Fraction, Split], ...]

    @property
    def n_tokens(self) -> int:
        return sum(split.n_tokens for _, split in self.parts)

    @property
    def bytes_per_token(self) -> float:
        """Of the tokens that are drawn: the corpora's, by their shares."""
        return float(sum(share * Fraction(split.bytes_per_token) for share, split in self.parts))


def split_text(text: str, train_fraction: float) -> dict[str, str]:
    """Cuts a text by characters: the first `train_fraction` is "train", the rest is "val".

    The cut is made before encoding, so that every tokenizer has the same validation text.
    """
    cut = int(train_fraction * len(text))
    return {"train": text[:cut], "val": text[cut:]}


def make_splits(
    tokens: dict[str, np.ndarray], token_bytes: np.ndarray, block_size: int
) -> dict[str, Split]:
    """Returns the splits of a corpus whose parts are encoded.

    Args:
      tokens: {name: int32 (N,)}, of each part.
      token_bytes: int32 (V,), UTF-8 bytes a token.
      block_size: T; each split must hold one sequence of T tokens and the token after it.

    Raises:
      UserError: a split is too short.
    """
    total = sum(map(len, tokens.values()))
    for name, part in tokens.items():
        if len(part) < block_size + 1:
            raise UserError(
                f"the corpus is too short: {len(part):,} of its {total:,} tokens are "
                f"for {name}, and model.block_size={block_size} needs {block_size + 1}; use a "
                "longer text, a smaller block_size or another data.train_fraction"
            )
    return {name: Split((part,), int(token_bytes[part].sum())) for name, part in tokens.items()}


def count_bytes(shards: Sequence[np.ndarray], token_bytes: np.ndarray) -> int:
    """Returns the UTF-8 bytes that shards of ids stand for, reading a part of one at a time.

    Args:
      shards: int (N,) each.
      token_bytes: int32 (V,), UTF-8 bytes a token.

    Raises:
      UserError: an id is beyond the vocabulary.
    """
    total = 0
    for shard in shards:
        for at in range(0, len(shard), 2**22):
            part = shard[at : at + 2**22]
            if int(part.max()) >= len(token_bytes):
                raise UserError(
                    f"id {part.max()} of the corpus is beyond the tokenizer's {len(token_bytes)} "
                    "tokens: it was made with another tokenizer, or is damaged; prepare it again"
                )
            total += int(token_bytes[part].sum(dtype=np.int64))
    return total


def sample_starts(key: jax.Array, n_tokens: int, block_size: int, batch_size: int) -> jax.Array:
    """Draws where the sequences of a batch start, each valid place with equal probability.

    Args:
      key: a PRNG key; the result is a function of it and of the sizes alone.
      n_tokens: N, tokens to draw from, at least block_size + 1.
      block_size: T.
      batch_size: B.

    Returns:
      int32 (B,), in [0, N - T): the T + 1 tokens from a start are all inside.
    """
    return jax.random.randint(key, (batch_size,), 0, n_tokens - block_size)


def gather_batch(tokens, starts_B, block_size: int):
    """Cuts the sequences of a batch out of tokens (N,): on the device, or on the host.

    Returns:
      (B, T + 1), of the same kind as tokens, jax or NumPy: T inputs, and the same one further on
      as targets. Starts in parts, (parts, B / parts), give a batch in parts.
    """
    xp = np if isinstance(tokens, np.ndarray) else jnp
    return tokens[starts_B[..., None] + xp.arange(block_size + 1)]


def count_windows(n_tokens: int, block_size: int, stride: int) -> int:
    """Returns W, how many windows `make_windows` lays."""
    return 1 + max(0, -(-(n_tokens - 1 - block_size) // stride))


def make_windows(
    n_tokens: int, block_size: int, stride: int | None = None, windows: range | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lays windows over N tokens so that every token but the first is predicted exactly once.

    Args:
      n_tokens: N, at least 2.
      block_size: T, inputs in a window.
      stride: from one window's start to the next, in [1, T]; None is T. Smaller gives the tokens
        of all windows but the first at least T - stride tokens of context before them.
      windows: which of them to return; None is all, W of them.

    Returns:
      starts (W,) and, for each window, the range [first, last) of its T predictions that count:
      int64 (W,) each. Prediction i of a window is of token start + i + 1.

    Raises:
      ConfigError: the stride is not in [1, T].
    """
    stride = block_size if stride is None else stride
    if not 1 <= stride <= block_size:
        raise ConfigError(f"stride={stride} must be between 1 and block_size={block_size}")
    if windows is None:
        windows = range(count_windows(n_tokens, block_size, stride))
    starts = np.arange(windows.start, windows.stop, dtype=np.int64) * stride
    lasts = np.minimum(starts + block_size, n_tokens - 1) - starts
    firsts = np.where(starts == 0, 0, block_size - stride)
    return starts, firsts, lasts

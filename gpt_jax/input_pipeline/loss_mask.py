"""Loss masks: which tokens of a corpus count as targets.

A mask has a byte for each token on disk. On the way to the model the two are one array of signed
integers, so a batch stays one array: id i is i where it counts as a target, and -1 - i (~i in two's
complement) where it is input alone. A corpus without a mask has plain ids, and nothing here runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedTokens:
    """Token ids and their mask, marked as they are read: `np.asarray` of it or of a slice.

    Attributes:
      ids: int (N,), in memory or mapped from a file.
      mask: uint8 (N,), 1 where the token counts as a target.
      vocab_size: V; ids are in [0, V).
    """

    ids: np.ndarray
    mask: np.ndarray
    vocab_size: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, where: slice) -> MaskedTokens:
        return dataclasses.replace(self, ids=self.ids[where], mask=self.mask[where])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        marked = self.ids.astype(np.int32 if dtype is None else dtype)
        return np.invert(marked, out=marked, where=self.mask == 0)  # no copy beside it

    @property
    def dtype(self) -> np.dtype:
        """The narrowest dtype of marked ids, as they are kept on devices."""
        return np.dtype(np.int16 if self.vocab_size <= 2**15 else np.int32)

    @property
    def nbytes(self) -> int:
        return len(self) * self.dtype.itemsize


Tokens = np.ndarray | MaskedTokens


def with_mask(
    shards: Sequence[np.ndarray], masks: Sequence[np.ndarray], vocab_size: int
) -> tuple[Tokens, ...]:
    """Returns shards with their masks; the shards alone where there are none."""
    if not masks:
        return tuple(shards)
    pairs = zip(shards, masks, strict=True)
    return tuple(MaskedTokens(ids, mask, vocab_size) for ids, mask in pairs)


def plain_ids(tokens: Tokens) -> np.ndarray:
    """Returns the ids alone, of a shard or a part of one."""
    return tokens.ids if isinstance(tokens, MaskedTokens) else tokens


def count_targets(tokens: Tokens) -> int:
    """Returns how many tokens of a shard but the first, which nothing predicts, count."""
    if isinstance(tokens, MaskedTokens):
        return int(np.count_nonzero(tokens.mask[1:]))
    return len(tokens) - 1


def unmark(batch: Any) -> tuple[Any, Any]:
    """Returns the ids of a batch of marked ones, int32, and where they count as targets, bool.

    The batch is int32, jax's or NumPy's.
    """
    return batch ^ (batch >> 31), batch >= 0

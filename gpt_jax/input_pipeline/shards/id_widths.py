"""How wide the ids of a file without a header are, told from its bytes.

nanoGPT's `train.bin` is what NumPy's `tofile` writes: no header, no sum, whatever dtype the script
had. Its size alone does not tell 1,000 ids of 4 bytes from 2,000 of 2. Ids of another width leave
traces that ids of 16 bits never have: zeros in every second place, say. Pure functions of samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_HIGH_WORD = 1 << 6  # of a 32-bit id: no vocabulary has 2^22 tokens
MAX_HIGH_WORD_OF_FEW = 1 << 2  # where words are few, and small ones may be chance: 2^18 tokens
LEAST_WORDS = 16  # fewer are taken as they come
MANY_WORDS = 1024  # from which a shape of all of them can't be chance


def find_width(samples: Sequence[bytes], size: int) -> int:
    """Returns the bytes of an id, 2, 4 or 8, in a little-endian file without a header.

    Args:
      samples: parts of the file, each from a multiple of 8 bytes on.
      size: of the file, in bytes.

    Raises:
      ValueError: the bytes are not such ids; what they look like.
    """
    raw = b"".join(part[: len(part) // 8 * 8] for part in samples)
    words = np.frombuffer(raw, "<u2")
    if len(words) < LEAST_WORDS or not words.any():
        return 2
    low_W4 = words.reshape(-1, 4)
    even, odd = low_W4[:, 0::2], low_W4[:, 1::2]
    most = MAX_HIGH_WORD if len(words) >= MANY_WORDS else MAX_HIGH_WORD_OF_FEW
    if not odd.any() or (odd.max() < most and even.max() >= 1 << 12):
        if size % 8 == 0 and not low_W4[:, 2:].any():
            return 8
        if size % 4 == 0:
            return 4
        raise ValueError(f"32-bit ids, and its {size:,} bytes are no whole number of them")
    if problem := _other_kind(words, low_W4):
        raise ValueError(problem)
    return 2


def _other_kind(words: np.ndarray, low_W4: np.ndarray) -> str:
    """Returns what words are where they are no ids of 16 bits, or ''."""
    even, odd = low_W4[:, 0::2], low_W4[:, 1::2]
    if _are_whole(words.view("<f4")) or _are_whole(words.view("<f8")):
        return "floating point numbers"
    if not low_W4[:, :3].any():
        return "big-endian ids of 64 bits"
    if not even.any():
        return "big-endian ids of 32 bits"
    if np.isin(odd, (0, 0xFFFF)).mean() > 0.9 and (even == 0).mean() < 0.5:
        return "ids of 32 bits of which some are negative or far too large"
    low, high = words & 0xFF, words >> 8
    if not low.any():
        return "big-endian ids of 16 bits"
    if len(words) >= MANY_WORDS and low.max() < 196 and low.max() <= 2 * high.max():
        return "ids of 8 bits, or a text"
    return ""


def _are_whole(numbers: np.ndarray) -> bool:
    """Returns whether floats are ids: whole, not negative, and not all of them tiny."""
    with np.errstate(invalid="ignore"):
        is_id = (numbers >= 0) & (numbers < 2**31) & (numbers == np.floor(numbers))
    return bool(is_id.all() and numbers.any())

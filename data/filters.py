"""Which documents to keep: pure functions of a text, and a bounded set of digests.

The measures are simple forms of those in section A1.1 of Rae et al. 2021
(https://arxiv.org/abs/2112.11446).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on a document; None is no limit."""

    min_characters: int | None = None
    max_characters: int | None = None
    min_letters: float | None = None
    max_repetition: float | None = None
    language: str | None = None


def reject(text: str, language: str | None, limits: Limits) -> str | None:
    """Returns the first limit that a document breaks, or None.

    Args:
      text: of the document.
      language: its tags as its source gives them, such as "eng" or "eng,deu"; the first counts.
      limits: to check.

    Returns:
      "empty", "min_characters", "max_characters", "language", "min_letters", "max_repetition".
    """
    if not text:
        return "empty"
    if limits.min_characters is not None and len(text) < limits.min_characters:
        return "min_characters"
    if limits.max_characters is not None and len(text) > limits.max_characters:
        return "max_characters"
    first = language.partition(",")[0].strip() if language else None
    if limits.language is not None and first != limits.language:
        return "language"
    if limits.min_letters and letters(text) < limits.min_letters:
        return "min_letters"
    if limits.max_repetition is not None and repetition(text) > limits.max_repetition:
        return "max_repetition"
    return None


def letters(text: str) -> float:
    """Returns the share of letters among the characters that are not white space; 0 if empty."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    is_letter, is_space = _kinds()
    n = len(points) - int(is_space[points].sum())
    return int(is_letter[points].sum()) / n if n else 0.0


def repetition(text: str) -> float:
    """Returns the share of characters in lines that repeat an earlier line; 0 if empty."""
    seen: set[str] = set()
    total = repeated = 0
    for line in text.split("\n"):
        total += len(line)
        if line in seen:
            repeated += len(line)
        seen.add(line)
    return repeated / total if total else 0.0


def digest(text: str) -> int:
    """Returns a 64-bit digest of a text: BLAKE2b of its UTF-8, little-endian."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def is_validation(digest: int, val_fraction: float) -> bool:
    """Returns whether a document is for validation: a function of its text alone.

    So a document stays in its split as its corpus grows, and copies of one text are in one split.
    """
    return digest < val_fraction * 2.0**64


class Seen:
    """A set of the digests of documents so far, in bounded memory.

    A hash table with open addressing, 16 bytes for each of `capacity` digests. Once it is full, new
    digests are not remembered, and `forgotten` counts them. Two different texts have one digest
    with probability n**2 / 2**65 among n texts: 3 in 10,000 for 100 million.
    """

    def __init__(self, capacity: int):
        bits = max(4, (2 * capacity - 1).bit_length())
        self._table = np.zeros(1 << bits, np.uint64)
        self._mask = (1 << bits) - 1
        self._capacity = capacity
        self._n = 0
        self.forgotten = 0

    def add(self, digest: int) -> bool:
        """Returns whether a digest is new, and remembers it."""
        value = digest or 1  # 0 marks an empty slot
        slot = value & self._mask
        table = self._table
        while stored := int(table[slot]):
            if stored == value:
                return False
            slot = (slot + 1) & self._mask
        if self._n < self._capacity:
            table[slot] = value
            self._n += 1
        else:
            self.forgotten += 1
        return True


@functools.cache
def _kinds() -> tuple[np.ndarray, np.ndarray]:
    """Returns, for every code point, whether it is a letter and whether it is white space."""
    characters = [chr(point) for point in range(0x110000)]
    is_letter = np.fromiter((c.isalpha() for c in characters), bool, len(characters))
    is_space = np.fromiter((c.isspace() for c in characters), bool, len(characters))
    return is_letter, is_space

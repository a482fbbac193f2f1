"""Tokenizers: text to token ids and back.

A tokenizer knows its vocabulary and nothing of models, corpora or devices. It is saved with every
run, and whatever reads the run takes it from there.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from gpt_jax.errors import UserError

FILE = "tokenizer.json"


class CharTokenizer:
    """One token a character; the vocabulary is the characters of a text, in code point order.

    Attributes:
      vocabulary: the characters; a token's id is its character's index.
    """

    def __init__(self, vocabulary: str):
        """Takes the characters in order.

        Raises:
          ValueError: the vocabulary is empty or its characters are not strictly ascending.
        """
        points = _code_points(vocabulary)
        if not len(points) or (points[1:] <= points[:-1]).any():
            raise ValueError(
                "a vocabulary is at least one character, in ascending order, once each"
            )
        self.vocabulary = vocabulary
        self._points = points

    @classmethod
    def train(cls, text: str) -> CharTokenizer:
        """Returns the tokenizer of the characters that occur in `text`."""
        return cls("".join(map(chr, np.unique(_code_points(text)))))

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 (V,): how many bytes of UTF-8 each token stands for."""
        sizes = [len(c.encode("utf-8", "surrogatepass")) for c in self.vocabulary]
        return np.array(sizes, np.int32)

    @property
    def start_token(self) -> int:
        """The id that an empty prompt starts from: a line break, or token 0 where there is none."""
        return max(self.vocabulary.find("\n"), 0)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`, int32 (len(text),).

        Raises:
          UserError: the text has characters that the vocabulary lacks; the message lists them.
        """
        points = _code_points(text)
        ids = np.searchsorted(self._points, points).astype(np.int32)
        known = self._points[np.minimum(ids, len(self._points) - 1)] == points
        if not known.all():
            raise UserError(f"the vocabulary lacks {_listed(text, known)}; it has {_shown(self)}")
        return ids

    def decode(self, ids) -> str:
        """Returns the text of ids, a sequence of integers in [0, vocab_size)."""
        ids = np.asarray(ids, np.int64)
        if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            raise ValueError(f"token ids must be in [0, {self.vocab_size})")
        return "".join([self.vocabulary[i] for i in ids])

    def to_json(self) -> str:
        """Returns what `from_json` reads; characters outside ASCII are escaped."""
        return json.dumps({"kind": "char", "vocabulary": self.vocabulary}, indent=1) + "\n"


def from_json(text: str) -> CharTokenizer:
    """Returns the tokenizer that `to_json` wrote.

    Raises:
      ValueError: the text is not such a tokenizer.
    """
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict) or values.get("kind") != "char":
        raise ValueError('not a tokenizer of kind "char"')
    if not isinstance(values.get("vocabulary"), str):
        raise ValueError("its vocabulary is not a text")
    return CharTokenizer(values["vocabulary"])


def load_tokenizer(run_dir: Path) -> CharTokenizer:
    """Returns a run's tokenizer.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = run_dir / FILE
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the tokenizer {path}: {error}") from error


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _listed(text: str, known: np.ndarray, limit: int = 10) -> str:
    missing = sorted({c for c, ok in zip(text, known, strict=True) if not ok})
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in missing[:limit])
    more = f" and {len(missing) - limit} more" if len(missing) > limit else ""
    return f"{shown}{more}"


def _shown(tokenizer: CharTokenizer, limit: int = 100) -> str:
    characters = "".join(c for c in tokenizer.vocabulary if c.isprintable())
    return characters[:limit] + ("..." if len(characters) > limit else "")

"""The vocabulary of a corpus of integers: the text of a sequence is its ids, or names for them.

For what is no text: moves of a game, bases, notes, terms of a sum. `tokenizer.py` has those of
texts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.storage import read_record

MAX_VOCAB = 2**24  # tokens; a model's embedding has a row for each


class IntegerTokenizer:
    """One token per integer; a text has a word for each: the integer, or the name that it has.

    Tokens stand for no bytes of text, so there are no bits per byte.

    Attributes:
      vocab_size: V; ids are in [0, V).
      names: of the ids, in order; empty where the words are the ids.
    """

    def __init__(self, vocab_size: int, names: Sequence[str] = ()):
        """Takes the size, and a name for each id or none.

        Raises:
          ValueError: the size is out of range, or the names are not V different words.
        """
        if not 1 <= vocab_size <= MAX_VOCAB:
            raise ValueError(f"vocab_size={vocab_size} must be in [1, {MAX_VOCAB:,}]")
        if names and len(names) != vocab_size:
            raise ValueError(f"{len(names):,} names are not one for each of {vocab_size:,} ids")
        for name in names:
            if name.split() != [name] or not name.isprintable():
                raise ValueError(f"the name {name!r:.60} must be a word: characters, and no space")
        self.vocab_size = vocab_size
        self.names = tuple(names)
        self._id_of = {name: i for i, name in enumerate(names)}
        if len(self._id_of) < len(names):
            raise ValueError("names must be different")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> IntegerTokenizer:
        """Returns the tokenizer that `to_json` wrote; raises ValueError where it is none."""
        file = read_record(values, IntegersFile)
        return cls(file.vocab_size, file.names)

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 (V,): zeros, as no token stands for text."""
        return np.zeros(self.vocab_size, np.int32)

    @property
    def start_token(self) -> int:
        """The id that an empty prompt starts from."""
        return 0

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of the words of `text`, int32 (N,).

        Raises:
          UserError: a word is no name, or no id below the vocabulary's size.
        """
        return np.array([self._id(word) for word in text.split()], np.int32)

    def _id(self, word: str) -> int:
        if self.names:
            found = self._id_of.get(word)
        else:
            found = int(word) if word.isascii() and word.isdecimal() and len(word) < 12 else None
        if found is None or found >= self.vocab_size:
            raise UserError(
                f"{word!r:.60} is not in the vocabulary: {self._shown()}, with spaces between"
            )
        return found

    def _shown(self, limit: int = 20) -> str:
        if not self.names:
            return f"the whole numbers from 0 to {self.vocab_size - 1:,}"
        more = f" and {self.vocab_size - limit:,} more" if self.vocab_size > limit else ""
        return " ".join(f"{name:.20}" for name in self.names[:limit]) + more

    def _words(self, ids: Any) -> list[str]:
        ids = np.asarray(ids, np.int64)
        if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            raise ValueError(f"token ids must be in [0, {self.vocab_size})")
        return [self.names[i] if self.names else str(i) for i in ids.tolist()]

    def decode(self, ids: Any) -> str:
        """Returns the text of ids, a sequence of integers in [0, vocab_size)."""
        return " ".join(self._words(ids))

    def make_decoder(self) -> Callable[..., str]:
        """Returns decode(ids, last=False) for ids that arrive a few at a time after a prompt."""
        return lambda ids, last=False: "".join(f" {word}" for word in self._words(ids))

    def to_json(self) -> str:
        """Returns what `tokenizer.from_json` reads; characters outside ASCII are escaped."""
        values: dict[str, Any] = {"kind": "integers", "vocab_size": self.vocab_size}
        if self.names:
            values["names"] = list(self.names)
        return json.dumps(values, indent=1) + "\n"


@dataclasses.dataclass(frozen=True)
class IntegersFile:
    """tokenizer.json of integers."""

    vocab_size: int
    names: list[str] = dataclasses.field(default_factory=list)

"""Datasets: the token arrays of a corpus that batches are sampled from.

A `Corpus` (a text, or token shards on disk) yields two datasets, "train" and "val". A dataset has a
component for each corpus of a mixture; a single corpus is a mixture of one.

Nothing here samples: `sampler.py` is next on the way to the model. Nothing here touches a device.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gpt_jax.byte_pairs import Listener
from gpt_jax.config import Config, DataConfig
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.loss_mask import MaskedTokens, Tokens
from gpt_jax.input_pipeline.shards.memmap import TokenShards
from gpt_jax.tokenizer import Tokenizer


class Component(NamedTuple):
    """The tokens of one corpus of a mixture.

    Attributes:
      weight: share of the sequences that are sampled from it.
      shards: ids in order, int (N,) each, in memory or mapped from files; marked where only some
        count as targets, see `loss_mask.py`. No sequence spans two.
      n_bytes: UTF-8 bytes that the tokens stand for; None where unknown.
    """

    weight: Fraction
    shards: tuple[Tokens, ...]
    n_bytes: int | None

    @property
    def is_masked(self) -> bool:
        """Whether only some of its tokens count as targets."""
        return any(isinstance(shard, MaskedTokens) for shard in self.shards)

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.shards))

    @property
    def bytes_per_token(self) -> float:
        assert self.n_bytes is not None
        return self.n_bytes / self.n_tokens


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The training or the validation tokens of a corpus.

    Attributes:
      components: one for each corpus of a mixture; the weights sum to 1.
    """

    components: tuple[Component, ...]

    @classmethod
    def from_shards(cls, shards: Sequence[np.ndarray], n_bytes: int | None) -> Dataset:
        """Returns the dataset of a single corpus; see `Component`."""
        return cls((Component(Fraction(1), tuple(shards), n_bytes),))

    @property
    def is_masked(self) -> bool:
        """Whether its batches are marked, see `loss_mask.py`."""
        return any(component.is_masked for component in self.components)

    @property
    def n_tokens(self) -> int:
        return sum(component.n_tokens for component in self.components)

    @property
    def bytes_per_token(self) -> float:
        """Of the tokens as they are sampled: the mean of the components', by their weights."""
        return float(sum(c.weight * Fraction(c.bytes_per_token) for c in self.components))


@dataclasses.dataclass(frozen=True)
class Corpus(abc.ABC):
    """What the setting `data.corpus` names, found and read.

    Attributes:
      name: a name or absolute paths, as config.json records it.
      source: where it was read from, for messages.
      notes: what differs from what one would expect, a sentence each.
      requested: the name asked for where another corpus had to serve; empty means `name`.
      kind: "text" or "tokens".
    """

    name: str
    source: str
    notes: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    requested: str = dataclasses.field(default="", kw_only=True)
    kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of its ids; None for a text."""

    @property
    def folders(self) -> tuple[TokenShards, ...]:
        """Its folders of token shards; none of a text."""
        return ()

    @property
    @abc.abstractmethod
    def size(self) -> str:
        """How large it is, for messages."""

    @property
    @abc.abstractmethod
    def sha256(self) -> str:
        """Identifies the content."""

    @abc.abstractmethod
    def record(self) -> dict[str, Any]:
        """Returns what a run's config.json keeps of the corpus."""

    @abc.abstractmethod
    def choose_tokenizer(self, data: DataConfig, listener: Listener | None = None) -> Tokenizer:
        """Returns the tokenizer for a new run: its own, or one made by the settings.

        Args:
          data: the settings.
          listener: is told how far the learning of byte pairs is.

        Raises:
          ConfigError: the settings ask for another than its own.
        """

    @abc.abstractmethod
    def make_datasets(self, tokenizer: Tokenizer, config: Config) -> dict[str, Dataset]:
        """Returns the datasets "train" and "val".

        Args:
          tokenizer: of the run.
          config: its block_size T; each component must hold T + 1 tokens in one shard.

        Raises:
          UserError: a corpus is too short, or has characters or ids that the tokenizer lacks.
        """


def split_text(text: str, train_fraction: float) -> dict[str, str]:
    """Cuts a text by characters: the first `train_fraction` is "train", the rest is "val".

    The cut is made before encoding, so that every tokenizer has the same validation text.
    """
    cut = int(train_fraction * len(text))
    return {"train": text[:cut], "val": text[cut:]}


def datasets_of_arrays(
    tokens: dict[str, np.ndarray], token_bytes: np.ndarray, block_size: int
) -> dict[str, Dataset]:
    """Returns the datasets of a text whose splits are encoded.

    Args:
      tokens: {split: int32 (N,)}.
      token_bytes: int32 (V,), UTF-8 bytes per token.
      block_size: T; each split must hold one sequence of T tokens and the token after it.

    Raises:
      UserError: a split is too short.
    """
    total = sum(map(len, tokens.values()))
    for split, ids in tokens.items():
        if len(ids) < block_size + 1:
            raise UserError(
                f"the corpus is too short: {len(ids):,} of its {total:,} tokens are "
                f"for {split}, and model.block_size={block_size} needs {block_size + 1}; use a "
                "longer text, a smaller block_size or another data.train_fraction"
            )
    return {
        split: Dataset.from_shards((ids,), int(token_bytes[ids].sum()))
        for split, ids in tokens.items()
    }


def count_bytes(shards: Sequence[np.ndarray], token_bytes: np.ndarray) -> int:
    """Returns the UTF-8 bytes that shards of ids stand for, reading some of one at a time.

    Args:
      shards: int (N,) each.
      token_bytes: int32 (V,), UTF-8 bytes per token.

    Raises:
      UserError: an id is beyond the vocabulary.
    """
    total = 0
    for shard in shards:
        for at in range(0, len(shard), 2**22):
            ids = shard[at : at + 2**22]
            if int(ids.max()) >= len(token_bytes):
                raise UserError(
                    f"id {ids.max()} of the corpus is beyond the tokenizer's {len(token_bytes)} "
                    "tokens: it was made with another tokenizer, or is damaged; prepare it again"
                )
            total += int(token_bytes[ids].sum(dtype=np.int64))
    return total

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

import numpy as np

from gpt_jax.config import Config, DataConfig
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.input_pipeline.corpus import TokenCorpus
from gpt_jax.input_pipeline.text_corpus import TextCorpus
from gpt_jax.tokenizer import Tokenizer, make_tokenizer


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


def make_datasets(
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


def tokenize_corpus(
    corpus: TextCorpus | TokenCorpus, tokenizer: Tokenizer, config: Config
) -> dict[str, Split] | dict[str, Mixture]:
    """Returns the tokens of a corpus, "train" and "val".

    Raises:
      UserError: a part is too short for one sequence, or has characters without a token.
    """
    block_size = config.model.block_size
    if isinstance(corpus, TextCorpus):
        texts = split_text(corpus.text, config.data.train_fraction)
        tokens = {name: tokenizer.encode(text) for name, text in texts.items()}
        return make_datasets(tokens, tokenizer.token_bytes, block_size)
    parts: dict[str, list[tuple[Fraction, Split]]] = {"train": [], "val": []}
    for share, prepared in corpus.parts:
        for name in parts:
            shards, n_bytes = prepared.shards[name], prepared.n_bytes[name]
            longest = max(map(len, shards))
            if longest < block_size + 1:
                raise UserError(
                    f"the corpus {prepared.folder} is too short: its longest shard for {name} has "
                    f"{longest:,} tokens, and model.block_size={block_size} needs "
                    f"{block_size + 1}; use a smaller block_size or another corpus"
                )
            if n_bytes is None and name == "val":
                n_bytes = count_bytes(shards, tokenizer.token_bytes)
            parts[name].append((share, Split(shards, n_bytes)))
    if len(corpus.parts) == 1:
        return {name: part[0][1] for name, part in parts.items()}
    return {name: Mixture(tuple(part)) for name, part in parts.items()}


def choose_tokenizer(data: DataConfig, corpus: TextCorpus | TokenCorpus) -> Tokenizer:
    """Returns the tokenizer that the settings ask for, or that a prepared corpus has.

    Raises:
      ConfigError: they ask for another than that.
    """
    if isinstance(corpus, TextCorpus):
        return make_tokenizer(data, split_text(corpus.text, data.train_fraction))
    if data.tokenizer != DataConfig().tokenizer:
        raise ConfigError(
            f"data.tokenizer={data.tokenizer} is for a text, and {corpus.source} is prepared with "
            "a tokenizer of its own; leave data.tokenizer out"
        )
    return corpus.tokenizer

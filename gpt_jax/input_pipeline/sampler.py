"""Where the rows of batches lie in corpora of many arrays: the sampler beyond one piece.

jax's integers have 32 bits, so a place is a pair (piece, start): a piece is a view of a shard of at
most 2^30 starts. With one piece, as with any text, all that happens is `data.sample_starts` and
`data.gather_batch`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.input_pipeline.permutation import divmod_product, permute

SEGMENT_STARTS = 2**30  # at most, in a piece: offsets in it, and a row's length more, are int32

# The pieces and the starts of rows, int32 (..., B) each: row b is the T + 1 tokens from start b on.
SampleIndices = tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]


def address_segments(shards: Sequence[np.ndarray], block_size: int) -> list[np.ndarray]:
    """Cuts shards, int (N,) each, into views that a 32-bit integer can address.

    Neighbours overlap by T tokens, so that every start in a shard, and every sequence of
    `data.order=epochs`, is in exactly one piece. Shards without T + 1 tokens have neither.
    """
    most = SEGMENT_STARTS // block_size * block_size
    return [
        shard[at : at + most + block_size]
        for shard in shards
        for at in range(0, len(shard) - block_size, most)
    ]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Where the rows of batches start, as a pure function of a key, in 32-bit integers.

    The wide arithmetic (sums over all pieces, shares of them) is done here, on the host, in
    Python's integers, once; what is traced sees fixed-point numbers and counts below 2^31.

    Attributes:
      lengths: tokens in each piece, T + 1 to 2^30 + T.
      shares: of the rows that come from each piece, at random order; they sum to 1.
      block_size: T.
      batch_size: B.
      order: "random" or "epochs", see `DataConfig`.
    """

    lengths: tuple[int, ...]
    shares: tuple[Fraction, ...]
    block_size: int
    batch_size: int
    order: str = "random"

    def random_indices(self, key: jax.Array) -> SampleIndices:
        """Draws a batch: each piece by its share, each start in it with equal probability.

        A piece is drawn by comparing 32 random bits with the running sum of shares in fixed point,
        rounded down, so a share is met to within 2^-32.
        """
        if len(self.lengths) == 1:
            starts_B = sample_offsets(key, self.lengths[0], self.block_size, self.batch_size)
            return jnp.zeros_like(starts_B), starts_B
        piece_key, start_key = jax.random.split(key)
        sums = list(itertools.accumulate(self.shares))[:-1]
        thresholds = np.array([int(total * 2**32) for total in sums], np.uint32)
        bits_B = jax.random.bits(piece_key, (self.batch_size,), jnp.uint32)
        pieces_B = _count_at_most(thresholds, bits_B)
        n_starts = jnp.asarray([length - self.block_size for length in self.lengths], jnp.int32)
        return pieces_B, jax.random.randint(start_key, bits_B.shape, 0, n_starts[pieces_B])

    def step_indices(self, key: jax.Array, step: jax.Array) -> SampleIndices:
        """Returns the places of a training step.

        Args:
          key: one for the whole run.
          step: int32 scalar, steps before this one.
        """
        if self.order == "random":
            return self.random_indices(jax.random.fold_in(key, step))
        return self._epoch_indices(key, step)

    @property
    def n_sequences(self) -> int:
        """Sequences in an epoch: of T tokens, and the one after them, from each T-th start on."""
        return sum((length - 1) // self.block_size for length in self.lengths)

    def _epoch_indices(self, key: jax.Array, step: jax.Array) -> SampleIndices:
        """Sequence step * B + b of an endless list of shuffled epochs is row b's."""
        n = self.n_sequences
        epoch, position = divmod_product(step, self.batch_size, n)
        position = position + jnp.arange(self.batch_size, dtype=jnp.uint32)
        epochs_B, positions_B = epoch + position // n, position % n
        keys_B = jax.vmap(lambda epoch: jax.random.fold_in(key, epoch))(epochs_B)
        sequences_B = jax.vmap(lambda key, i: permute(key, i, n))(keys_B, positions_B)
        counts = [(length - 1) // self.block_size for length in self.lengths]
        ends = np.cumsum(counts)
        pieces_B = _count_at_most(ends[:-1].astype(np.uint32), sequences_B)
        firsts = jnp.asarray(ends - counts, jnp.uint32)
        starts_B = (sequences_B - firsts[pieces_B]) * self.block_size
        return pieces_B, starts_B.astype(jnp.int32)


def single_array_sampler(n_tokens: int, block_size: int, batch_size: int) -> Sampler:
    """Returns the sampler of random batches from tokens (N,), as of a text."""
    return Sampler((n_tokens,), (Fraction(1),), block_size, batch_size)


def make_sampler(
    dataset: Dataset, block_size: int, batch_size: int, order: str = "random"
) -> tuple[Sampler, list[np.ndarray]]:
    """Returns the sampler of a dataset, and the pieces that its places are in.

    Raises:
      UserError: a corpus has no sequence of T + 1 tokens, or an epoch has 2^31 sequences or more.
    """
    pieces: list[np.ndarray] = []
    shares: list[Fraction] = []
    for component in dataset.components:
        cut = address_segments(component.shards, block_size)
        starts = [len(piece) - block_size for piece in cut]
        if not cut:
            raise UserError(
                f"no shard of a corpus has the {block_size + 1} tokens that "
                f"model.block_size={block_size} needs; use a smaller one"
            )
        pieces += cut
        shares += [component.weight * Fraction(n, sum(starts)) for n in starts]
    lengths = tuple(map(len, pieces))
    sampler = Sampler(lengths, tuple(shares), block_size, batch_size, order)
    if order == "epochs" and sampler.n_sequences >= 2**31:
        raise UserError(
            f"an epoch of {sampler.n_sequences:,} sequences is too long for data.order=epochs, "
            "which counts to 2^31; use a larger model.block_size or data.order=random"
        )
    return sampler, pieces


def _count_at_most(ascending: np.ndarray, x_B: jax.Array) -> jax.Array:
    """Returns how many of `ascending` are not above each x: int32 (B,)."""
    return (ascending <= x_B[:, None]).sum(axis=1, dtype=jnp.int32)


def train_indices(sampler: Sampler, key: jax.Array, steps_S: jax.Array) -> SampleIndices:
    """Returns the places of training steps, (S, B)."""
    return jax.vmap(lambda step: sampler.step_indices(key, step))(steps_S)


def eval_indices(
    samplers: Sequence[Sampler], key: jax.Array, n_batches: int
) -> list[SampleIndices]:
    """Returns the places of `n_batches` random batches of each split, (n_batches, B)."""
    return [
        jax.vmap(sampler.random_indices)(jax.random.split(split_key, n_batches))
        for sampler, split_key in zip(samplers, jax.random.split(key, len(samplers)), strict=True)
    ]


def sample_offsets(key: jax.Array, n_tokens: int, block_size: int, batch_size: int) -> jax.Array:
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

"""The sampler: from a PRNG key and a step to sample indices, (segment, offset) per sequence.

jax's integers have 32 bits, and a shard may have more tokens, so a sample index is a pair: a
segment is a view of a shard with at most 2^30 offsets. A text is one segment, and its offsets are
those of `sample_offsets`.

Pure: the same key gives the same indices on any number of devices, wherever the tokens are kept.
There is no iterator, and so no iterator state to save. `gather.py` is next on the way to the model.
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
from gpt_jax.input_pipeline.loss_mask import Tokens
from gpt_jax.input_pipeline.permutation import divmod_product, permute

SEGMENT_STARTS = 2**30  # offsets per segment, at most: an offset + T + 1 is still an int32

# Segments and offsets, int32 (..., B) each: sequence b is the T + 1 tokens from offset b on.
SampleIndices = tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]


def address_segments(shards: Sequence[Tokens], block_size: int) -> list[Tokens]:
    """Cuts shards, int (N,) each, into segments: views that a 32-bit integer can address.

    Neighbours overlap by T tokens, so that every offset in a shard, and every sequence of
    `data.order=epochs`, is in exactly one segment. Shards without T + 1 tokens have neither.
    """
    most = SEGMENT_STARTS // block_size * block_size
    return [
        shard[at : at + most + block_size]
        for shard in shards
        for at in range(0, len(shard) - block_size, most)
    ]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The sample indices of batches, as a pure function of a key, in 32-bit integers.

    Wide arithmetic (sums over all segments, their weights) is done on the host, once, with Python's
    integers; traced code sees fixed-point numbers and counts below 2^31.

    Attributes:
      lengths: tokens in each segment, T + 1 to 2^30 + T.
      weights: share of the sequences sampled from each segment in random order; they sum to 1.
      block_size: T.
      batch_size: B.
      order: "random" or "epochs", see `DataConfig`.
      is_masked: the tokens are marked, see `loss_mask.py`.
    """

    lengths: tuple[int, ...]
    weights: tuple[Fraction, ...]
    block_size: int
    batch_size: int
    order: str = "random"
    is_masked: bool = False

    def random_indices(self, key: jax.Array) -> SampleIndices:
        """Samples a batch: a segment by its weight, each offset in it with equal probability.

        A segment is chosen by comparing 32 random bits with the running sum of weights in fixed
        point, rounded down, so a weight is met to within 2^-32.
        """
        if len(self.lengths) == 1:
            offsets_B = sample_offsets(key, self.lengths[0], self.block_size, self.batch_size)
            return jnp.zeros_like(offsets_B), offsets_B
        segment_key, offset_key = jax.random.split(key)
        sums = list(itertools.accumulate(self.weights))[:-1]
        thresholds = np.array([int(total * 2**32) for total in sums], np.uint32)
        bits_B = jax.random.bits(segment_key, (self.batch_size,), jnp.uint32)
        segments_B = _count_at_most(thresholds, bits_B)
        n_offsets = jnp.asarray([length - self.block_size for length in self.lengths], jnp.int32)
        return segments_B, jax.random.randint(offset_key, bits_B.shape, 0, n_offsets[segments_B])

    def step_indices(self, key: jax.Array, step: jax.Array) -> SampleIndices:
        """Returns the sample indices of a training step.

        Args:
          key: one for the whole run.
          step: int32 scalar, steps before this one.
        """
        if self.order == "random":
            return self.random_indices(jax.random.fold_in(key, step))
        return self._epoch_indices(key, step)

    @property
    def n_sequences(self) -> int:
        """Sequences per epoch: T tokens and the one after them, at every T-th offset."""
        return sum((length - 1) // self.block_size for length in self.lengths)

    def _epoch_indices(self, key: jax.Array, step: jax.Array) -> SampleIndices:
        """Sequence b of a step is number step * B + b in an endless list of shuffled epochs."""
        n = self.n_sequences
        epoch, position = divmod_product(step, self.batch_size, n)
        position = position + jnp.arange(self.batch_size, dtype=jnp.uint32)
        epochs_B, positions_B = epoch + position // n, position % n
        keys_B = jax.vmap(lambda epoch: jax.random.fold_in(key, epoch))(epochs_B)
        return self._address(jax.vmap(lambda key, i: permute(key, i, n))(keys_B, positions_B))

    def evaluation_indices(self, key: jax.Array) -> SampleIndices:
        """Samples a batch to evaluate, at random offsets as `random_indices`.

        With a loss mask and `data.order=epochs` it samples among the sequences of an epoch: what
        counts may depend on where a sequence begins, so others would be no measure of training.
        """
        if not self.is_masked or self.order == "random":
            return self.random_indices(key)
        draws_B = jax.random.randint(key, (self.batch_size,), 0, self.n_sequences)
        return self._address(draws_B.astype(jnp.uint32))

    def _address(self, sequences_B: jax.Array) -> SampleIndices:
        """Returns where the sequences of an epoch lie, by number: uint32 (B,)."""
        counts = [(length - 1) // self.block_size for length in self.lengths]
        ends = np.cumsum(counts)
        segments_B = _count_at_most(ends[:-1].astype(np.uint32), sequences_B)
        firsts = jnp.asarray(ends - counts, jnp.uint32)
        offsets_B = (sequences_B - firsts[segments_B]) * self.block_size
        return segments_B, offsets_B.astype(jnp.int32)


def single_array_sampler(n_tokens: int, block_size: int, batch_size: int) -> Sampler:
    """Returns the sampler of random batches from one array of tokens, (N,), such as a text's."""
    return Sampler((n_tokens,), (Fraction(1),), block_size, batch_size)


def make_sampler(
    dataset: Dataset, block_size: int, batch_size: int, order: str = "random"
) -> tuple[Sampler, list[Tokens]]:
    """Returns the sampler of a dataset, and the segments that its indices refer to.

    Raises:
      UserError: a corpus has no sequence of T + 1 tokens, or an epoch has 2^31 sequences or more.
    """
    segments: list[Tokens] = []
    weights: list[Fraction] = []
    for component in dataset.components:
        cut = address_segments(component.shards, block_size)
        n_offsets = [len(segment) - block_size for segment in cut]
        if not cut:
            raise UserError(
                f"no shard of a corpus has the {block_size + 1} tokens that "
                f"model.block_size={block_size} needs; use a smaller one"
            )
        segments += cut
        weights += [component.weight * Fraction(n, sum(n_offsets)) for n in n_offsets]
    lengths = tuple(map(len, segments))
    sampler = Sampler(lengths, tuple(weights), block_size, batch_size, order, dataset.is_masked)
    if order == "epochs" and sampler.n_sequences >= 2**31:
        raise UserError(
            f"an epoch of {sampler.n_sequences:,} sequences is too long for data.order=epochs, "
            "which counts to 2^31; use a larger model.block_size or data.order=random"
        )
    return sampler, segments


def _count_at_most(ascending: np.ndarray, x_B: jax.Array) -> jax.Array:
    """Returns how many of `ascending` are not above each x: int32 (B,)."""
    return (ascending <= x_B[:, None]).sum(axis=1, dtype=jnp.int32)


def train_indices(sampler: Sampler, key: jax.Array, steps_S: jax.Array) -> SampleIndices:
    """Returns the sample indices of training steps, (S, B) each."""
    return jax.vmap(lambda step: sampler.step_indices(key, step))(steps_S)


def eval_indices(
    samplers: Sequence[Sampler], key: jax.Array, n_batches: int
) -> list[SampleIndices]:
    """Returns the sample indices of `n_batches` batches to evaluate per dataset, (n_batches, B)."""
    return [
        jax.vmap(sampler.evaluation_indices)(jax.random.split(sampler_key, n_batches))
        for sampler, sampler_key in zip(samplers, jax.random.split(key, len(samplers)), strict=True)
    ]


def sample_offsets(key: jax.Array, n_tokens: int, block_size: int, batch_size: int) -> jax.Array:
    """Samples the offsets of a batch's sequences, each valid one with equal probability.

    Args:
      key: a PRNG key; the result is a function of it and of the sizes alone.
      n_tokens: N, tokens to sample from, at least block_size + 1.
      block_size: T.
      batch_size: B.

    Returns:
      int32 (B,), in [0, N - T): the T + 1 tokens from an offset on are all inside.
    """
    return jax.random.randint(key, (batch_size,), 0, n_tokens - block_size)

"""From sample indices and token arrays to batches (B, T + 1), on the device or on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.input_pipeline.loss_mask import Tokens
from gpt_jax.input_pipeline.sampler import SampleIndices, Sampler
from gpt_jax.parallel.sharding import to_global_array

BLOCK_ROWS = 256  # 16.8 million tokens are copied to a device at once
ROW_TOKENS = 2**16  # per row of the two-axis array that holds several segments on a device


def gather_batch(tokens, offsets_B, block_size: int):
    """Gathers the sequences of a batch from tokens (N,): on the device, or on the host.

    Returns:
      (B, T + 1), of the same kind as tokens, jax or NumPy: T inputs, and the same shifted by one
      as targets. Offsets of micro-batches, (M, B / M), give (M, B / M, T + 1).
    """
    xp = np if isinstance(tokens, np.ndarray) else jnp
    return tokens[offsets_B[..., None] + xp.arange(block_size + 1)]


def put_tokens_on_devices(
    segments: Sequence[Tokens],
    sharding: jax.sharding.Sharding,
    check: Callable[[Tokens], None] = lambda ids: None,
) -> jax.Array:
    """Puts segments on devices in the form that `gather_on_device` takes.

    Args:
      segments: ids, int (N,) each, marked or not.
      sharding: of the result.
      check: called with all ids, a block at a time.

    Returns:
      (N,) for one segment, else (R, ROW_TOKENS); see `segment_rows`.
    """
    if len(segments) == 1:
        check(segments[0])
        return to_global_array(np.asarray(segments[0], segments[0].dtype), sharding)

    write = jax.jit(
        lambda tokens, block, row: jax.lax.dynamic_update_slice(tokens, block, (row, 0)),
        donate_argnums=0,
        out_shardings=sharding,
    )
    rows = segment_rows([len(segment) for segment in segments])
    tokens = jnp.zeros(
        (int(rows[-1]), ROW_TOKENS), np.result_type(*(s.dtype for s in segments)), device=sharding
    )
    for segment, row in zip(segments, rows[:-1].tolist(), strict=True):
        for at in range(0, len(segment), BLOCK_ROWS * ROW_TOKENS):
            ids = segment[at : at + BLOCK_ROWS * ROW_TOKENS]
            check(ids)
            block = np.zeros((-(-len(ids) // ROW_TOKENS), ROW_TOKENS), tokens.dtype)
            block.reshape(-1)[: len(ids)] = np.asarray(ids)
            first = np.int32(row + at // ROW_TOKENS)
            tokens = write(tokens, to_global_array(block, sharding), first)
    return tokens


def segment_rows(lengths: Sequence[int]) -> np.ndarray:
    """Returns the first row of each segment in an array of rows, and the number of rows.

    Each segment begins a new row of ROW_TOKENS; its last row may be partly empty.

    Returns:
      int64 (segments + 1,).
    """
    return np.concatenate([[0], np.cumsum([-(-length // ROW_TOKENS) for length in lengths])])


def gather_on_device(tokens: jax.Array, indices: SampleIndices, sampler: Sampler) -> jax.Array:
    """Gathers sequences from tokens on the device: int32 (..., T + 1).

    tokens is one segment (N,), or several in rows (R, ROW_TOKENS) as `segment_rows` says.
    """
    segments, offsets = indices
    offsets_B = offsets.reshape(-1)
    if tokens.ndim == 1:
        batch = gather_batch(tokens, offsets_B, sampler.block_size)
    else:
        positions_BT = offsets_B[:, None] + jnp.arange(sampler.block_size + 1)
        firsts = jnp.asarray(segment_rows(sampler.lengths)[:-1], jnp.int32)
        rows_BT = firsts[segments.reshape(-1)][:, None] + positions_BT // ROW_TOKENS
        batch = tokens[rows_BT, positions_BT % ROW_TOKENS]
    return batch.reshape(*offsets.shape, -1).astype(jnp.int32)


def gather_on_host(
    segments: Sequence[Tokens], indices: SampleIndices, block_size: int
) -> np.ndarray:
    """Gathers sequences from segments on the host: int32 (..., T + 1), as `gather_on_device`."""
    shape = indices[0].shape
    numbers, offsets = (np.asarray(array).reshape(-1).tolist() for array in indices)
    batch = np.empty((len(offsets), block_size + 1), np.int32)
    for row, number, offset in zip(batch, numbers, offsets, strict=True):
        row[:] = segments[number][offset : offset + block_size + 1]
    return batch.reshape(*shape, block_size + 1)

"""From sample indices and token arrays to batches (B, T + 1), on the device or on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax.input_pipeline.sampler import SampleIndices, Sampler
from gpt_jax.parallel.sharding import to_global_array

BLOCK_ROWS = 256  # 16.8 million tokens on their way to a device at once
ROW_TOKENS = 2**16  # of the two-axis array that several pieces are laid out in on a device


def gather_batch(tokens, starts_B, block_size: int):
    """Cuts the sequences of a batch out of tokens (N,): on the device, or on the host.

    Returns:
      (B, T + 1), of the same kind as tokens, jax or NumPy: T inputs, and the same one further on
      as targets. Starts in parts, (parts, B / parts), give a batch in parts.
    """
    xp = np if isinstance(tokens, np.ndarray) else jnp
    return tokens[starts_B[..., None] + xp.arange(block_size + 1)]


def put_tokens_on_devices(
    pieces: Sequence[np.ndarray],
    sharding: jax.sharding.Sharding,
    check: Callable[[np.ndarray], None] = lambda ids: None,
) -> jax.Array:
    """Puts pieces on devices as `data.gather_places` takes them: (N,), or (R, ROW_TOKENS).

    Args:
      pieces: ids, int (N,) each.
      sharding: how they lie.
      check: is called with all ids, some at a time.
    """
    if len(pieces) == 1:
        check(pieces[0])
        return to_global_array(pieces[0], sharding)

    write = jax.jit(
        lambda tokens, block, row: jax.lax.dynamic_update_slice(tokens, block, (row, 0)),
        donate_argnums=0,
        out_shardings=sharding,
    )
    rows = segment_rows([len(piece) for piece in pieces])
    tokens = jnp.zeros((int(rows[-1]), ROW_TOKENS), np.result_type(*pieces), device=sharding)
    for piece, row in zip(pieces, rows[:-1].tolist(), strict=True):
        for at in range(0, len(piece), BLOCK_ROWS * ROW_TOKENS):
            part = piece[at : at + BLOCK_ROWS * ROW_TOKENS]
            check(part)
            block = np.zeros((-(-len(part) // ROW_TOKENS), ROW_TOKENS), tokens.dtype)
            block.reshape(-1)[: len(part)] = part
            first = np.int32(row + at // ROW_TOKENS)
            tokens = write(tokens, to_global_array(block, sharding), first)
    return tokens


def segment_rows(lengths: Sequence[int]) -> np.ndarray:
    """Returns the row that each piece begins in where pieces are laid out in rows, and their sum.

    Returns:
      int64 (pieces + 1,); a piece fills rows of ROW_TOKENS, its last one in part.
    """
    return np.concatenate([[0], np.cumsum([-(-length // ROW_TOKENS) for length in lengths])])


def gather_on_device(tokens: jax.Array, places: SampleIndices, sampler: Sampler) -> jax.Array:
    """Cuts sequences out of tokens on the device: int32 (..., T + 1).

    tokens are one piece (N,), or several in rows (R, ROW_TOKENS) as `segment_rows` says.
    """
    pieces, starts = places
    starts_P = starts.reshape(-1)
    if tokens.ndim == 1:
        batch = gather_batch(tokens, starts_P, sampler.block_size)
    else:
        offsets = starts_P[:, None] + jnp.arange(sampler.block_size + 1)
        firsts = jnp.asarray(segment_rows(sampler.lengths)[:-1], jnp.int32)
        rows = firsts[pieces.reshape(-1)][:, None] + offsets // ROW_TOKENS
        batch = tokens[rows, offsets % ROW_TOKENS]
    return batch.reshape(*starts.shape, -1).astype(jnp.int32)


def gather_on_host(
    pieces: Sequence[np.ndarray], places: SampleIndices, block_size: int
) -> np.ndarray:
    """Cuts sequences out of pieces on the host: int32 (..., T + 1), equal to `gather_on_device`."""
    shape = places[0].shape
    which, starts = (np.asarray(part).reshape(-1).tolist() for part in places)
    batch = np.empty((len(starts), block_size + 1), np.int32)
    for row, piece, start in zip(batch, which, starts, strict=True):
        row[:] = pieces[piece][start : start + block_size + 1]
    return batch.reshape(*shape, block_size + 1)

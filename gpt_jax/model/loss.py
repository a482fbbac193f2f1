"""Cross-entropy per token, over all logits at once or in chunks of tokens."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gpt_jax.config import ModelConfig, TrainConfig
from gpt_jax.model.gpt import Params, forward, logits_from_hidden
from gpt_jax.parallel.sharding import axis_size, constrain


def token_losses(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each target, -log softmax(logits)[target], in nats: (B, T)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)


def chunked_losses(
    x_BTD: jax.Array, head: Any, targets_BT: jax.Array, loss_chunk: int
) -> jax.Array:
    """Returns `token_losses` of final hidden states, without all logits in memory at once.

    Each chunk has `loss_chunk` tokens: the same few positions of every sequence, at least one, so
    that the devices which split the batch all have work. Where P devices split each sequence, a
    chunk takes positions from each device's part. The backward pass recomputes the logits.

    Args:
      x_BTD: as `model.GPT` returns them with return_hidden=True.
      head: likewise.
      targets_BT: integers.
      loss_chunk: tokens.
    """
    B, T, _ = x_BTD.shape
    P = axis_size("time")
    own = T // P
    t = min(max(1, loss_chunk // (B * P)), own)
    n = -(-own // t)

    def split(x):
        """(B, T, ...) to (n, B, P t, ...): the next t positions of each of the P parts of T."""
        x = x.reshape(B, P, own, *x.shape[2:])
        x = jnp.pad(x, [(0, 0), (0, 0), (0, n * t - own), *[(0, 0)] * (x.ndim - 3)])
        x = jnp.moveaxis(x.reshape(B, P, n, t, *x.shape[3:]), 2, 0)
        return x.reshape(n, B, P * t, *x.shape[4:])

    @functools.partial(jax.checkpoint, prevent_cse=False)  # in a loop there is nothing to merge
    def chunk_losses(chunk):
        x_BtD, targets_Bt = chunk
        return token_losses(logits_from_hidden(x_BtD, head), targets_Bt)

    losses = jax.lax.map(chunk_losses, (split(x_BTD), split(targets_BT)))
    losses_BPnt = jnp.moveaxis(losses.reshape(n, B, P, t), 0, 2)
    return losses_BPnt.reshape(B, P, n * t)[..., :own].reshape(B, T)


def batch_losses(
    model: ModelConfig,
    params: Params,
    batch: jax.Array,
    dropout_key: jax.Array | None = None,
    loss_chunk: int | None = None,
) -> jax.Array:
    """Returns the loss of predicting each next token of a batch (B, T + 1): nats, float32 (B, T).

    Without a key there is no dropout. For loss_chunk see `chunked_losses`; None computes all logits
    at once.
    """
    inputs_BT, targets_BT = (constrain(x, "batch", "time") for x in (batch[:, :-1], batch[:, 1:]))
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    kwargs = {"deterministic": dropout_key is None, "rngs": rngs}
    if loss_chunk is None:
        return token_losses(forward(model, params, inputs_BT, **kwargs), targets_BT)
    x_BTD, head = forward(model, params, inputs_BT, return_hidden=True, **kwargs)
    return chunked_losses(x_BTD, head, targets_BT, loss_chunk)


def loss_fn(
    model: ModelConfig,
    params: Params,
    batch: jax.Array,
    dropout_key: jax.Array | None = None,
    train: TrainConfig = TrainConfig(),  # noqa: B008, frozen
) -> jax.Array:
    """Returns the loss that training minimises: the mean of `batch_losses`, in nats per token."""
    return batch_losses(model, params, batch, dropout_key, train.loss_chunk).mean()

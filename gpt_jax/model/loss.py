"""Cross-entropy per token, over all logits at once or in chunks of tokens."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gpt_jax.config import ModelConfig, TrainConfig
from gpt_jax.model.gpt import Head, Params, forward, logits_from_hidden, pad_head
from gpt_jax.model.tuning import choose_tuning
from gpt_jax.parallel.backend import target_backend
from gpt_jax.parallel.sharding import axis_size, constrain


def token_losses(
    logits_BTV: jax.Array, targets_BT: jax.Array, *, one_pass: bool = False
) -> jax.Array:
    """Returns the cross-entropy of each target, -log softmax(logits)[target], in nats: (B, T).

    With one_pass, softmax and its gradient take the fewest passes over the logits.
    """
    if one_pass:
        return _one_pass_losses(logits_BTV, targets_BT)
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)


@jax.custom_vjp
def _one_pass_losses(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """`token_losses` whose gradient, softmax - one-hot, is one pass over the logits.

    Derived from the logarithm of the sum of exponentials it is three, and a scatter.
    """
    return _one_pass_forward(logits_BTV, targets_BT)[0]


def _one_pass_forward(logits_BTV, targets_BT):
    log_sum_BT = _log_sum_exp(logits_BTV)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return log_sum_BT - target_BT, (logits_BTV, targets_BT, log_sum_BT)


def _one_pass_backward(saved, gradient_BT):
    logits_BTV, targets_BT, log_sum_BT = saved
    id_BTV = jax.lax.broadcasted_iota(targets_BT.dtype, logits_BTV.shape, logits_BTV.ndim - 1)
    softmax_BTV = jnp.exp(logits_BTV - log_sum_BT[..., None])
    one_hot_BTV = id_BTV == targets_BT[..., None]
    return (softmax_BTV - one_hot_BTV) * gradient_BT[..., None], None


_one_pass_losses.defvjp(_one_pass_forward, _one_pass_backward)


def _log_sum_exp(x_BTV: jax.Array) -> jax.Array:
    """jax.nn.logsumexp over the last axis, with one pass over it: it has no gradient of its own.

    The maximum and the sum are found together (Milakov and Gimelshein 2018,
    https://arxiv.org/abs/1805.02867, section 3).
    """

    def combine(a, b):
        (max_a, sum_a), (max_b, sum_b) = a, b
        top = jnp.maximum(max_a, max_b)
        return top, sum_a * jnp.exp(max_a - top) + sum_b * jnp.exp(max_b - top)

    lowest = jnp.finfo(x_BTV.dtype).min, jnp.zeros((), x_BTV.dtype)
    axis = x_BTV.ndim - 1
    top_BT, sum_BT = jax.lax.reduce((x_BTV, jnp.ones_like(x_BTV)), lowest, combine, (axis,))
    return top_BT + jnp.log(sum_BT)


def losses_from_hidden(x_BTD: jax.Array, head: Head, targets_BT: jax.Array) -> jax.Array:
    """Returns `token_losses` of final hidden states; x_BTD and head as `model.GPT` returns them."""
    one_pass = choose_tuning(target_backend(), x_BTD.shape[-1]).one_pass_loss
    logits_BTV = logits_from_hidden(x_BTD, pad_head(head))
    return token_losses(logits_BTV, targets_BT, one_pass=one_pass)


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
    head = pad_head(head)  # once, not for each chunk
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
        return losses_from_hidden(chunk[0], head, chunk[1])

    losses = jax.lax.map(chunk_losses, (split(x_BTD), split(targets_BT)))
    losses_BPnt = jnp.moveaxis(losses.reshape(n, B, P, t), 0, 2)
    return losses_BPnt.reshape(B, P, n * t)[..., :own].reshape(B, T)


def batch_losses(
    model: ModelConfig,
    params: Params,
    batch: jax.Array,
    dropout_key: jax.Array | None = None,
    loss_chunk: int | None = None,
    first_row: jax.Array | None = None,
) -> jax.Array:
    """Returns the loss of predicting each next token of a batch (B, T + 1): nats, float32 (B, T).

    Without a key there is no dropout. For loss_chunk see `chunked_losses`; None computes all logits
    at once. For first_row see `GPT.__call__`.
    """
    inputs_BT, targets_BT = (constrain(x, "batch", "time") for x in (batch[:, :-1], batch[:, 1:]))
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    x_BTD, head = forward(
        model,
        params,
        inputs_BT,
        return_hidden=True,
        deterministic=dropout_key is None,
        first_row=first_row,
        rngs=rngs,
    )
    with jax.named_scope("loss"):  # a name in profiles and plans
        if loss_chunk is None:
            return losses_from_hidden(x_BTD, head, targets_BT)
        return chunked_losses(x_BTD, head, targets_BT, loss_chunk)


def loss_fn(
    model: ModelConfig,
    params: Params,
    batch: jax.Array,
    dropout_key: jax.Array | None = None,
    train: TrainConfig = TrainConfig(),  # noqa: B008, frozen
    first_row: jax.Array | None = None,
    counts: jax.Array | None = None,
) -> jax.Array:
    """Returns the loss that training minimises: the mean of `batch_losses`, in nats per token.

    Where only some tokens count as targets, `counts`, bool (B, T + 1), the others' losses are 0 in
    that mean. So means over parts of a batch still average to that of the batch.
    """
    losses_BT = batch_losses(model, params, batch, dropout_key, train.loss_chunk, first_row)
    if counts is not None:
        losses_BT = jnp.where(counts[:, 1:], losses_BT, 0.0)
    return losses_BT.mean()

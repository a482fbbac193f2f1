"""The training step: pure functions from a state, a batch and a key to the next state.

No clock, no printing, no files, no mesh: every side effect is in `loop.py`, which calls
`make_train_chunk`'s function. `data.py` draws the batches, `model.py` computes the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gpt_jax.config import ModelConfig, OptimConfig, TrainConfig
from gpt_jax.data import gather_batch, sample_starts
from gpt_jax.model import GPT, Params, forward
from gpt_jax.optim import make_learning_rate, make_optimizer


class TrainState(flax.struct.PyTreeNode):
    """All that training carries from one step to the next, and all that a checkpoint holds.

    Attributes:
      step: int32 scalar, optimizer steps done.
      params: float32 tree of the model's parameters.
      opt_state: the state of the optax chain.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState


class Keys(flax.struct.PyTreeNode):
    """One PRNG key for each purpose, all from one seed; a step's key is `fold_in(key, step)`.

    So randomness is a function of (seed, purpose, step), and resuming needs the step alone.
    """

    init: jax.Array
    data: jax.Array
    dropout: jax.Array
    eval: jax.Array
    sample: jax.Array


def make_keys(seed: int) -> Keys:
    """Returns the keys of a seed in [0, 2**32)."""
    init, data, dropout, evaluate, sample = jax.random.split(jax.random.key(seed), 5)
    return Keys(init=init, data=data, dropout=dropout, eval=evaluate, sample=sample)


def init_state(
    model: ModelConfig, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """Returns the state before the first step."""
    params = GPT(model).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params)
    )


def token_losses(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Returns the cross-entropy of each target, -log softmax(logits)[target], in nats: (B, T)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_BTV, targets_BT)


def loss_fn(
    model: ModelConfig, params: Params, batch: jax.Array, dropout_key: jax.Array | None = None
):
    """Returns the mean loss of a batch (B, T + 1), in nats a token; no dropout without a key."""
    inputs_BT, targets_BT = batch[:, :-1], batch[:, 1:]
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    logits_BTV = forward(model, params, inputs_BT, deterministic=dropout_key is None, rngs=rngs)
    return token_losses(logits_BTV, targets_BT).mean()


def make_train_step(model: ModelConfig, optimizer: optax.GradientTransformation) -> Callable:
    """Returns train_step(state, batch, key) -> (state, metrics), one optimizer step.

    batch is (B, T + 1) token ids, key is the step's dropout key. A batch in parts, (parts, B /
    parts, T + 1), is computed part by part; see `accumulate`. The metrics are float32 scalars:
    `loss`, in nats a token, before the step and with dropout; `grad_norm`, the global L2 norm,
    before clipping.
    """

    def train_step(state: TrainState, batch: jax.Array, key: jax.Array):
        def loss_and_grads(batch: jax.Array, key: jax.Array):
            return jax.value_and_grad(lambda params: loss_fn(model, params, batch, key))(
                state.params
            )

        if batch.ndim == 2:
            loss, grads = loss_and_grads(batch, key)
        else:
            loss, grads = accumulate(loss_and_grads, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def accumulate(function: Callable, parts: jax.Array, key: jax.Array):
    """Returns the mean of function(part, part's key) over the leading axis, summed in float32.

    Parts of equal size, so a mean of means is the mean over the whole batch. Part i has the key
    `fold_in(key, i)`: its dropout masks are its own, and other than they were in a whole batch.
    """

    def body(total: Any, part: tuple[jax.Array, jax.Array]):
        i, batch = part
        value = function(batch, jax.random.fold_in(key, i))
        return jax.tree.map(lambda t, v: t + v.astype(jnp.float32), total, value), None

    n = len(parts)
    shapes = jax.eval_shape(function, parts[0], key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    total, _ = jax.lax.scan(body, zeros, (jnp.arange(n), parts))
    return jax.tree.map(lambda t: t / n, total)


def make_train_chunk(
    model: ModelConfig,
    optim: OptimConfig,
    train: TrainConfig,
    place_batch: Callable[[jax.Array], jax.Array] = lambda batch: batch,
) -> Callable:
    """Returns train_chunk(state, tokens, keys, *, steps) -> (state, metrics): many steps, one call.

    tokens is int (N,); each step draws its batch from it by the step's own key. `place_batch` says
    how a batch is laid out over devices. The metrics are those of `train_step`, each (steps,), and
    `learning_rate` where that is not constant.
    """
    train_step = make_train_step(model, make_optimizer(optim))
    learning_rate = make_learning_rate(optim)

    def train_chunk(state: TrainState, tokens: jax.Array, keys: Keys, *, steps: int):
        def body(state: TrainState, _):
            data_key = jax.random.fold_in(keys.data, state.step)
            starts_B = sample_starts(data_key, len(tokens), model.block_size, train.batch_size)
            if train.batch_at_once < train.batch_size:
                starts_B = starts_B.reshape(-1, train.batch_at_once)  # in parts
            batch = place_batch(gather_batch(tokens, starts_B, model.block_size))
            after, metrics = train_step(state, batch, jax.random.fold_in(keys.dropout, state.step))
            if callable(learning_rate):
                metrics["learning_rate"] = learning_rate(state.step)
            return after, metrics

        return jax.lax.scan(body, state, length=steps)

    return train_chunk


def make_eval_step(
    model: ModelConfig,
    train: TrainConfig,
    place_batch: Callable[[jax.Array], jax.Array] = lambda batch: batch,
) -> Callable:
    """Returns eval_step(params, splits, key) -> mean losses, one for each split.

    splits is a sequence of token arrays; each loss is the mean over `eval_batches` random batches,
    float32, in nats a token, without dropout.
    """

    def eval_step(params: Params, splits: Sequence[jax.Array], key: jax.Array):
        def draw(key, tokens):
            starts_B = sample_starts(key, len(tokens), model.block_size, train.batch_size)
            return gather_batch(tokens, starts_B, model.block_size)

        batches = jnp.concatenate(
            [
                jax.vmap(draw, (0, None))(jax.random.split(split_key, train.eval_batches), tokens)
                for split_key, tokens in zip(
                    jax.random.split(key, len(splits)), splits, strict=True
                )
            ]
        )

        if train.batch_at_once < train.batch_size:  # a mean over equal parts is the same
            batches = batches.reshape(-1, train.batch_at_once, model.block_size + 1)

        def body(_, batch):
            return None, loss_fn(model, params, place_batch(batch))

        losses = jax.lax.scan(body, None, batches)[1]
        return losses.reshape(len(splits), -1).mean(axis=1)

    return eval_step


def make_window_losses(
    model: ModelConfig, place_batch: Callable[[jax.Array], jax.Array] = lambda batch: batch
) -> Callable:
    """Returns window_losses(params, tokens, starts, firsts, lasts) -> summed losses, (W, B).

    For the exact evaluation: the windows of `data.make_windows`, in W batches of B. A window's sum,
    in nats, is over its predictions in [first, last); windows beyond the text have first = last.
    """

    def window_losses(params, tokens, starts_WB, firsts_WB, lasts_WB):
        def body(_, window):
            starts_B, firsts_B, lasts_B = window
            batch = place_batch(gather_batch(tokens, starts_B, model.block_size))
            logits_BTV = forward(model, params, batch[:, :-1])
            losses_BT = token_losses(logits_BTV, batch[:, 1:])
            index_T = jnp.arange(model.block_size)
            counts_BT = (index_T >= firsts_B[:, None]) & (index_T < lasts_B[:, None])
            return None, jnp.where(counts_BT, losses_BT, 0.0).sum(axis=1)

        return jax.lax.scan(body, None, (starts_WB, firsts_WB, lasts_WB))[1]

    return window_losses

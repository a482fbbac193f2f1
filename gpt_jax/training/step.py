"""The train step: pure functions from a state, a batch and a key to the next state.

No clock, no printing, no files, no mesh: every side effect is in `trainer.py`, which runs the
function of `make_train_chunk`. `input_pipeline/` makes the batches, `model/` computes the loss,
`optimizer.py` the update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gpt_jax.config import ModelConfig, OptimConfig, TrainConfig
from gpt_jax.input_pipeline.gather import gather_on_device
from gpt_jax.input_pipeline.loss_mask import unmark
from gpt_jax.input_pipeline.sampler import (
    Sampler,
    eval_indices,
    single_array_sampler,
    train_indices,
)
from gpt_jax.model import Params
from gpt_jax.model.loss import batch_losses, loss_fn
from gpt_jax.prng import Keys
from gpt_jax.training.hyperparameters import Hyperparameters, hyperparameters
from gpt_jax.training.optimizer import make_learning_rate, make_optimizer
from gpt_jax.training.state import TrainState

MapOverData = Callable[[Callable], Callable] | None


def make_train_step(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    train: TrainConfig = TrainConfig(),  # noqa: B008, frozen
    map_over_data: MapOverData = None,
    is_masked: bool = False,
) -> Callable:
    """Returns train_step(state, batch, key) -> (state, metrics), one optimizer step.

    batch is (B, T + 1) token ids, marked with `is_masked` (see `input_pipeline/loss_mask.py`), key
    is the step's dropout key. Over a batch in micro-batches,
    (n, B / n, T + 1), gradients are accumulated; see `accumulate_gradients`. The metrics are
    float32 scalars: `loss`, in nats per token, before the update and with dropout; `grad_norm`, the
    global L2 norm before clipping.
    """

    def train_step(state: TrainState, batch: jax.Array, key: jax.Array):
        loss, grads = loss_and_grads(
            model, state.params, batch, key, train, map_over_data, is_masked
        )
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def loss_and_grads(
    model: ModelConfig,
    params: Params,
    batch: jax.Array,
    key: jax.Array,
    train: TrainConfig,
    map_over_data: MapOverData = None,
    is_masked: bool = False,
) -> tuple[jax.Array, Params]:
    """Returns the loss of a train step, in nats per token, and its gradient, both float32.

    With a mask the loss is the sum over the targets of the whole batch that count, divided by their
    number; it and the gradient are 0 where none does. batch, key and is_masked are those of
    `make_train_step`. For map_over_data see `sharding.make_map_over_data`; None leaves it to XLA
    where gradients are summed over devices.
    """

    def with_gradient(params: Params, batch: jax.Array, key: jax.Array, first_row=None):
        ids, counts = unmark(batch) if is_masked else (batch, None)
        loss = lambda params: loss_fn(model, params, ids, key, train, first_row, counts)
        return jax.value_and_grad(loss)(params)

    def accumulated(params: Params, batches: jax.Array, key: jax.Array, first_row=None):
        def of_micro_batch(batch: jax.Array, i: jax.Array):
            key_i, row = micro_batch_dropout(train, key, i)
            if first_row is not None:
                row = first_row if row is None else row + first_row
            return with_gradient(params, batch, key_i, row)

        return accumulate_gradients(of_micro_batch, batches)

    if batch.ndim == 2:
        means = with_gradient(params, batch, key)
    else:
        means = (map_over_data(accumulated) if map_over_data else accumulated)(params, batch, key)
    if not is_masked:
        return means
    # Means over all targets, where those that do not count have 0: from one to the other.
    counts = unmark(batch)[1][..., 1:]
    n = counts.sum().astype(jnp.float32)
    scale = jnp.where(n > 0, counts.size / jnp.maximum(n, 1), 0.0)
    return jax.tree.map(lambda mean: mean * scale, means)


def micro_batch_dropout(
    train: TrainConfig, key: jax.Array, i: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the dropout key of a step's micro-batch i, and its `first_row` in the whole batch.

    So its masks are rows of the whole batch's, and `micro_batch` changes rounding only. In runs
    begun before that was so, each micro-batch has masks of its own.
    """
    if train.dropout_masks == "micro_batch":
        return jax.random.fold_in(key, i), None
    return key, i * train.micro_batch_size


def accumulate_gradients(function: Callable, micro_batches: jax.Array):
    """Gradient accumulation: returns the mean of function(micro-batch, i), summed in float32.

    Micro-batches have equal sizes, so the mean of their means is the mean over the whole batch.
    """

    def body(total: Any, numbered: tuple[jax.Array, jax.Array]):
        i, batch = numbered
        value = function(batch, i)
        with jax.named_scope("gradient_accumulation"):
            return jax.tree.map(lambda t, v: t + v.astype(jnp.float32), total, value), None

    n = len(micro_batches)
    shapes = jax.eval_shape(function, micro_batches[0], jnp.arange(n)[0])
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), shapes)
    total, _ = jax.lax.scan(body, zeros, (jnp.arange(n), micro_batches))
    return jax.tree.map(lambda t: t / n, total)


def make_train_chunk(
    model: ModelConfig,
    optim: OptimConfig,
    train: TrainConfig,
    place_batch: Callable[[jax.Array], jax.Array] = lambda batch: batch,
    sampler: Sampler | None = None,
    map_over_data: MapOverData = None,
) -> Callable:
    """Returns train_chunk(state, tokens, keys, recent_losses, hyper, *, steps) -> (state, metrics).

    One call takes many steps. tokens is int (N,), or (R, ROW_TOKENS) with a `sampler` of several
    segments; each step samples its batch from it by the step's number and key. Where the host
    prefetches, tokens is the batches themselves, (steps, B, T + 1). `place_batch` constrains a
    batch to its sharding; for `map_over_data` see `loss_and_grads`. The metrics are those of
    `train_step`, each (steps,), and `learning_rate` where that is not constant. With
    `train.on_divergence` "skip", the update of a step whose loss is not below its limit or whose
    gradient is not finite is skipped; the step still counts.

    Where `train.spike` is set, step by step, whatever the chunk: the limit is that multiple of the
    mean of `recent_losses`, float32 (spike_window,), the losses of the last sound steps, NaN where
    there are fewer (None: there are none). `loss_limit` is among the metrics, and so are the
    `recent_losses` after the last step.

    `hyper` is the numbers of `hyperparameters(optim, train)`, float32 scalars; with None they are
    constants of the program.
    """

    def train_chunk(
        state: TrainState,
        tokens: jax.Array,
        keys: Keys,
        recent_losses: jax.Array | None = None,
        hyper: Hyperparameters | None = None,
        *,
        steps: int,
    ):
        hyper = hyperparameters(optim, train) if hyper is None else hyper
        optimizer = make_optimizer(optim, hyper)
        is_masked = sampler is not None and sampler.is_masked
        train_step = make_train_step(model, optimizer, train, map_over_data, is_masked)
        learning_rate = make_learning_rate(optim, hyper)
        batches = tokens
        if tokens.ndim < 3:
            draws = sampler or single_array_sampler(len(tokens), model.block_size, train.batch_size)
            indices = train_indices(draws, keys.data, state.step + jnp.arange(steps))
            batches = gather_on_device(tokens, indices, draws)
        if train.micro_batch_size < train.batch_size:  # gradient accumulation
            batches = batches.reshape(steps, -1, train.micro_batch_size, model.block_size + 1)

        def body(carry: tuple[TrainState, jax.Array | None], batch: jax.Array):
            state, recent = carry
            dropout_key = jax.random.fold_in(keys.dropout, state.step)
            after, metrics = train_step(state, place_batch(batch), dropout_key)
            if callable(learning_rate):
                metrics["learning_rate"] = learning_rate(state.step)
            if recent is not None:
                metrics["loss_limit"] = _loss_limit(recent, hyper["spike"])
            sound = (metrics["loss"] < metrics.get("loss_limit", jnp.inf)) & jnp.isfinite(
                metrics["grad_norm"]
            )
            if recent is not None:
                newer = jnp.roll(recent, -1).at[-1].set(metrics["loss"])
                recent = jnp.where(sound, newer, recent)
            if train.on_divergence == "skip":
                after = jax.tree.map(functools.partial(_skip_update, sound), after, state)
            return (after, recent), metrics

        recent = recent_losses if train.spike is not None else None
        if train.spike is not None and recent is None:
            recent = jnp.full(train.spike_window, jnp.nan)
        (state, recent), metrics = jax.lax.scan(body, (state, recent), batches)
        return state, metrics if recent is None else metrics | {"recent_losses": recent}

    return train_chunk


def _loss_limit(recent: jax.Array, spike: float | jax.Array) -> jax.Array:
    """Returns the loss from which on a step is a spike, float32: infinite without a loss so far."""
    known = jnp.isfinite(recent)
    mean = jnp.where(known, recent, 0.0).sum() / jnp.maximum(known.sum(), 1)
    return jnp.where(known.any(), mean * jnp.asarray(spike, jnp.float32), jnp.inf)


def _skip_update(sound: jax.Array, after: jax.Array, before: jax.Array) -> jax.Array:
    """Returns a leaf of the next state: unchanged if the step is not sound, counters excepted."""
    is_count = jnp.issubdtype(after.dtype, jnp.integer)
    return after if is_count else jnp.where(sound, after, before)


def make_eval_step(
    model: ModelConfig,
    train: TrainConfig,
    place_batch: Callable[[jax.Array], jax.Array] = lambda batch: batch,
    samplers: Sequence[Sampler] | None = None,
) -> Callable:
    """Returns eval_step(params, splits, key) -> mean losses, one per split.

    splits is a sequence of token arrays as `train_chunk` takes them, prefetched ones being
    (eval_batches, B, T + 1); each loss is the mean over `eval_batches` random batches, float32, in
    nats per token, without dropout. Where a sampler's tokens are marked, it is the mean over their
    targets that count, and 0 if there are none.
    """
    is_masked = any(sampler.is_masked for sampler in samplers or ())

    def eval_step(params: Params, splits: Sequence[jax.Array], key: jax.Array):
        gathered = splits
        if splits[0].ndim < 3:
            draws = samplers or [
                single_array_sampler(len(tokens), model.block_size, train.batch_size)
                for tokens in splits
            ]
            indices = eval_indices(draws, key, train.eval_batches)
            gathered = [gather_on_device(*x) for x in zip(splits, indices, draws, strict=True)]
        batches = jnp.concatenate(gathered)
        if train.micro_batch_size < train.batch_size:  # of equal size: the same mean
            batches = batches.reshape(-1, train.micro_batch_size, model.block_size + 1)

        def body(_, batch):
            losses_BT = batch_losses(model, params, place_batch(batch), None, train.loss_chunk)
            return None, losses_BT.mean(axis=1)  # one collective, after the last batch

        def masked_body(_, batch):
            ids, counts = unmark(place_batch(batch))
            losses_BT = batch_losses(model, params, ids, None, train.loss_chunk)
            counts_BT = counts[:, 1:]
            sums_B = jnp.where(counts_BT, losses_BT, 0.0).sum(axis=1)
            return None, (sums_B, counts_BT.sum(axis=1))

        if is_masked:
            sums, counted = jax.lax.scan(masked_body, None, batches)[1]
            n = counted.reshape(len(splits), -1).sum(axis=1).astype(jnp.float32)
            return sums.reshape(len(splits), -1).sum(axis=1) / jnp.maximum(n, 1)
        losses = jax.lax.scan(body, None, batches)[1]
        return losses.reshape(len(splits), -1).mean(axis=1)

    return eval_step

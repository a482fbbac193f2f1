"""The loss mask: losses, gradients and evaluations are means over the targets that count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.config import ModelConfig, OptimConfig, TrainConfig
from gpt_jax.errors import UserError
from gpt_jax.inference.evaluation import evaluate_split
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.input_pipeline.gather import gather_on_host
from gpt_jax.input_pipeline.loss_mask import MaskedTokens, unmark
from gpt_jax.input_pipeline.sampler import eval_indices, make_sampler, train_indices
from gpt_jax.model import GPT
from gpt_jax.model.loss import batch_losses
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.sharding import make_map_over_data
from gpt_jax.prng import make_keys
from gpt_jax.training.optimizer import make_optimizer
from gpt_jax.training.state import init_state
from gpt_jax.training.step import loss_and_grads, make_eval_step, make_train_chunk

MODEL = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, dropout=0.0, vocab_size=11)
B = 16
RNG = np.random.default_rng(0)
IDS = RNG.integers(0, MODEL.vocab_size, (B, 9)).astype(np.int32)
COUNTS = RNG.random((B, 9)) < np.linspace(0, 0.6, B)[:, None]  # micro-batches count unequally
MARKED = np.where(COUNTS, IDS, ~IDS)
ROUNDING = 16 * 2.0**-24  # of sums of 128 float32 terms below 1, in another order


@functools.cache
def new_params():
    return jax.jit(GPT(MODEL).init)(jax.random.key(0), IDS[:, :8])["params"]


@functools.cache
def compute(micro_batch=None, devices=1):
    train = TrainConfig(batch_size=B, micro_batch=micro_batch)
    mapped = make_map_over_data(make_mesh(devices, jax.devices()[:devices]))
    shape = (B, 9) if micro_batch is None else (-1, micro_batch, 9)
    step = jax.jit(
        lambda params, batch: loss_and_grads(
            MODEL, params, batch.reshape(shape), jax.random.key(1), train, mapped, True
        )
    )
    return functools.partial(step, new_params())


def by_hand(counts):
    """The sum of the losses of targets that count, divided by their number; and its gradient."""

    def loss(params):
        losses_BT = batch_losses(MODEL, params, IDS)
        return (losses_BT * counts[:, 1:]).sum() / counts[:, 1:].sum()

    return jax.jit(jax.value_and_grad(loss))(new_params())


def assert_close(found, expected):
    compare = functools.partial(np.testing.assert_allclose, rtol=0, atol=ROUNDING)
    jax.tree.map(compare, found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("micro_batch", "devices"), [(None, 1), (4, 1), (4, 4)])
def test_loss_and_gradient_are_means_over_what_counts(micro_batch, devices):
    assert_close(compute(micro_batch, devices)(MARKED), by_hand(COUNTS))


def test_a_batch_in_which_nothing_counts_changes_nothing():
    loss, grads = compute()(~IDS)
    assert loss == 0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_a_mask_that_counts_everything_gives_the_mean_over_everything():
    assert_close(compute()(IDS), by_hand(np.ones_like(COUNTS)))


def make_dataset(counts_all=False):
    mask = np.ones(400, np.uint8) if counts_all else (np.arange(400) % 3 == 0).astype(np.uint8)
    ids = np.random.default_rng(3).integers(0, MODEL.vocab_size, 400).astype(np.uint16)
    return Dataset.from_shards([MaskedTokens(ids, mask, MODEL.vocab_size)], 0)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_the_evaluation_of_batches_is_a_mean_over_what_counts(micro_batch):
    train = TrainConfig(batch_size=4, eval_batches=3, micro_batch=micro_batch)
    datasets = [make_dataset(), Dataset.from_shards([IDS.reshape(-1)], 0)]  # one without a mask
    made = [make_sampler(dataset, 8, 4) for dataset in datasets]
    samplers, key = [sampler for sampler, _ in made], jax.random.key(5)
    splits = [jnp.asarray(np.asarray(segment, segment.dtype)) for _, (segment,) in made]
    evaluate = jax.jit(make_eval_step(MODEL, train, samplers=samplers))
    found = evaluate(new_params(), splits, key)
    for split, (loss, (_, offsets)) in enumerate(
        zip(found, eval_indices(samplers, key, 3), strict=True)
    ):
        (shard,) = datasets[split].components[0].shards
        batch = np.stack([np.asarray(shard[at : at + 9]) for at in offsets.reshape(-1).tolist()])
        ids = np.where(batch < 0, ~batch, batch)
        losses = np.float64(batch_losses(MODEL, new_params(), ids))
        assert loss == pytest.approx(losses[batch[:, 1:] >= 0].mean(), abs=ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize(("stride", "most"), [(None, None), (3, None), (None, 50)])
def test_the_exact_evaluation_is_of_what_counts(stride, most):
    dataset, token_bytes = make_dataset(), np.arange(11, dtype=np.int32)
    found = evaluate_split(
        MODEL, new_params(), dataset, token_bytes, stride=stride, max_tokens=most
    )
    (shard,) = dataset.components[0].shards
    params, jit_losses = new_params(), jax.jit(batch_losses, static_argnums=0)
    end, step, losses = (most or 399) + 1, stride or 8, {}
    for start in range(0, end, step):
        window = np.asarray(shard.ids[start : start + 9], np.int32)
        padded = np.pad(window, (0, 9 - len(window)))
        each = np.float64(jit_losses(MODEL, params, padded[None]))[0]
        for i, target in enumerate(range(start + 1, min(start + 9, end))):
            losses.setdefault(target, each[i])
    counted = [target for target in losses if shard.mask[target]]
    mean = np.mean([losses[target] for target in counted])
    assert found.nats_per_token == pytest.approx(mean, abs=ROUNDING)
    assert found.tokens == len(counted) == (133 if most is None else 16)
    assert found.n_bytes == token_bytes[shard.ids[counted]].sum()
    assert (found.n_predictable, found.is_whole) == (133, most is None)


def test_a_split_in_which_nothing_counts_has_no_loss():
    (shard,) = make_dataset().components[0].shards
    with pytest.raises(UserError, match="no token to predict: its loss mask counts none"):
        evaluate_split(
            MODEL, new_params(), Dataset.from_shards([shard[1:3]], 0), np.zeros(11, np.int32)
        )


@pytest.mark.slow
def test_a_chunk_takes_marked_tokens_from_the_device_and_batches_from_the_host_alike():
    """And a batch without a target leaves the parameters as they were, without weight decay."""
    optim = OptimConfig(warmup_steps=0, schedule_steps=4)
    train = TrainConfig(batch_size=4, steps=4)
    sampler, (segment,) = make_sampler(make_dataset(), 8, 4)
    chunk = jax.jit(make_train_chunk(MODEL, optim, train, sampler=sampler), static_argnames="steps")
    keys = make_keys(0)
    state = init_state(MODEL, make_optimizer(optim), keys.init)
    tokens = jnp.asarray(np.asarray(segment, segment.dtype))
    on_device, metrics = chunk(state, tokens, keys, steps=2)
    batches = gather_on_host([segment], train_indices(sampler, keys.data, jnp.arange(2)), 8)
    on_host, other = chunk(state, jnp.asarray(batches), keys, steps=2)
    jax.tree.map(np.testing.assert_array_equal, (metrics, on_device), (other, on_host))
    _, nothing = chunk(state, jnp.asarray(~unmark(batches)[0]), keys, steps=2)
    assert nothing["loss"].tolist() == nothing["grad_norm"].tolist() == [0, 0]

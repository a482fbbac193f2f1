"""The step: hand-computed losses, learning, and independence of chunks and devices."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import TINY as TWO_LAYERS

from gpt_jax.config import OptimConfig, TrainConfig
from gpt_jax.inference.evaluation import choose_batch, evaluate_split
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.input_pipeline.gather import gather_batch
from gpt_jax.input_pipeline.sampler import sample_offsets
from gpt_jax.model import forward
from gpt_jax.model.loss import loss_fn, token_losses
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.sharding import make_constrain_batch, replicated, state_shardings
from gpt_jax.prng import make_keys
from gpt_jax.run.metrics import bits_per_byte
from gpt_jax.training.optimizer import make_learning_rate, make_optimizer
from gpt_jax.training.state import init_state, state_shapes
from gpt_jax.training.step import (
    accumulate_gradients,
    loss_and_grads,
    make_eval_step,
    make_train_chunk,
    make_train_step,
)

TINY = dataclasses.replace(TWO_LAYERS, n_layer=1)
OPTIM = OptimConfig(learning_rate=1e-2)
TRAIN = TrainConfig(batch_size=8, eval_batches=3)
KEYS = make_keys(0)
EPS = np.finfo(np.float32).eps
TOKENS = jnp.asarray(np.arange(500) ** 2 % 11, jnp.int32)


@jax.jit
def new_state():
    return init_state(TINY, make_optimizer(OPTIM), KEYS.init)


logits_of = jax.jit(forward, static_argnums=0)
loss_of = jax.jit(loss_fn, static_argnums=0)
train_step = jax.jit(make_train_step(TINY, make_optimizer(OPTIM)))
train_chunk = jax.jit(make_train_chunk(TINY, OPTIM, TRAIN), static_argnames="steps")


def leaves_equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))


def largest_difference(a, b):
    differences = jax.tree.map(lambda x, y: np.abs(np.asarray(x) - y).max(initial=0), a, b)
    return max(float(x) for x in jax.tree.leaves(differences))


def largest(tree):
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def new_params(scale=1):
    """The first parameters on the host; scaled up, so that logits are far from uniform."""
    return jax.tree.map(lambda x: np.float32(scale) * np.asarray(x), new_state().params)


def test_loss_by_hand():
    logits = jnp.log(jnp.array([[[1.0, 2.0, 1.0], [6.0, 1.0, 1.0]]]))
    losses = token_losses(logits, jnp.array([[1, 2]]))
    np.testing.assert_allclose(losses, [[math.log(2), math.log(8)]], rtol=1e-6)


@pytest.mark.slow
def test_each_position_is_asked_for_the_token_that_follows_it():
    """The loss is the mean of -log p[next token], here summed by hand in float64."""
    batch, params = TOKENS[:18].reshape(2, 9), new_state().params
    log_p = np.asarray(jax.nn.log_softmax(logits_of(TINY, params, batch[:, :8])), np.float64)
    by_hand = -np.mean([log_p[b, t, batch[b, t + 1]] for b in range(2) for t in range(8)])
    # float32 sums of 16 terms of about 2.4
    np.testing.assert_allclose(loss_of(TINY, params, batch), by_hand, rtol=16 * 6e-8 * 2)


@pytest.mark.slow
def test_uniform_logits_cost_the_log_of_the_vocabulary():
    zeros = new_params(0)
    loss = loss_of(TINY, zeros, jnp.zeros((2, 9), jnp.int32))
    np.testing.assert_allclose(loss, math.log(11), rtol=1e-6)


def test_bits_per_byte_by_hand():
    assert bits_per_byte(math.log(2), 1) == 1
    assert bits_per_byte(3 * math.log(4), 2) == pytest.approx(3)  # 6 bits over 2 bytes


@pytest.mark.slow
def test_one_step_equals_adamw_by_hand():
    """At the first step the moments' corrections cancel: p - lr * (g / (|g| + eps) + wd * p)."""
    batch = TOKENS[:72].reshape(8, 9)
    state = new_state()
    grads = jax.jit(jax.grad(lambda p: loss_fn(TINY, p, batch, KEYS.dropout)))(state.params)
    after, metrics = train_step(state, batch, KEYS.dropout)
    lr, decay = OPTIM.learning_rate, OPTIM.weight_decay

    def expected(p, g):
        return p - lr * (g / (np.abs(g) + 1e-8) + decay * p)

    hand = jax.tree.map(expected, *jax.device_get((state.params, grads)))
    # Where |g| is near eps the quotient is sensitive to g's own rounding; elsewhere it is +-1.
    assert largest_difference(hand, after.params) < lr * 2e-3
    assert int(after.step) == 1
    np.testing.assert_allclose(
        metrics["grad_norm"], optax.tree.norm(jax.device_get(grads)), rtol=1e-5
    )


@pytest.mark.slow
def test_training_learns_a_sequence():
    state, losses = new_state(), []
    for _ in range(25):
        state, metrics = train_chunk(state, TOKENS, KEYS, steps=6)
        assert metrics["loss"].shape == (6,)
        losses += metrics["loss"].tolist()
    assert abs(losses[0] - math.log(11)) < 0.1
    assert np.mean(losses[-10:]) < 1.0  # squares modulo 11 repeat every 11 tokens


@pytest.mark.slow
def test_chunks_of_any_length_take_the_same_steps():
    whole, _ = train_chunk(new_state(), TOKENS, KEYS, steps=6)
    parts = new_state()
    for _ in range(2):
        parts, _ = train_chunk(parts, TOKENS, KEYS, steps=3)
    assert int(parts.step) == int(whole.step) == 6
    # The same operations in two programs, so up to the rounding of 6 steps.
    assert largest_difference(parts.params, whole.params) < 6 * 1e-5


@pytest.mark.slow
def test_a_chunk_is_its_steps_each_with_batch_and_masks_of_its_own():
    """Steps taken one by one, with the keys that ARCHITECTURE.md promises."""
    _, metrics = train_chunk(new_state(), TOKENS, KEYS, steps=6)
    state, losses = new_state(), []
    for step in range(6):
        data, dropout = (jax.random.fold_in(key, step) for key in (KEYS.data, KEYS.dropout))
        batch = gather_batch(TOKENS, sample_offsets(data, len(TOKENS), 8, 8), 8)
        state, one = train_step(state, batch, dropout)
        losses.append(float(one["loss"]))
    # Rounding only: a mask or batch of another step would move a loss by some 1e-2.
    np.testing.assert_allclose(metrics["loss"], losses, atol=2e-4)


@pytest.mark.slow
def test_a_step_above_the_limit_changes_counts_alone():
    """Beside steps taken one by one, of which those above the limit are left out by hand."""
    train = dataclasses.replace(TRAIN, on_divergence="skip", spike=1.5, spike_window=2)
    chunk = jax.jit(make_train_chunk(TINY, OPTIM, train), static_argnames="steps")
    nothing, metrics = chunk(new_state(), TOKENS, KEYS, jnp.zeros(2), steps=6)
    jax.tree.map(np.testing.assert_array_equal, nothing.params, new_state().params)
    assert int(nothing.step) == 6
    assert metrics["loss_limit"].tolist() == [0.0] * 6
    assert metrics["recent_losses"].tolist() == [0.0, 0.0]  # a skipped loss does not count
    first = float(metrics["loss"][0])  # is left out; the mean is of one loss, then of two
    recent = [first * (1 - 1e-4) / 1.5]
    start = jnp.array([jnp.nan, *recent], jnp.float32)
    state, sound, limits = new_state(), [], []
    for step in range(6):
        limits.append(limit := 1.5 * float(np.mean(recent)))
        data, dropout = (jax.random.fold_in(key, step) for key in (KEYS.data, KEYS.dropout))
        batch = gather_batch(TOKENS, sample_offsets(data, len(TOKENS), 8, 8), 8)
        after, one = train_step(state, batch, dropout)
        sound.append(float(one["loss"]) < limit)
        recent = [*recent, float(one["loss"])][-2:] if sound[-1] else recent
        counts = [x for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.integer)]
        assert {int(x) for x in counts} == {step + 1}
        kept = lambda a, b: a if jnp.issubdtype(a.dtype, jnp.integer) else b
        state = after if sound[-1] else jax.tree.map(kept, after, state)
    assert 0 < sum(sound) < 6
    found, metrics = chunk(new_state(), TOKENS, KEYS, start, steps=6)
    np.testing.assert_allclose(metrics["loss_limit"], limits, rtol=1e-4)
    np.testing.assert_allclose(metrics["recent_losses"], recent, rtol=1e-4)
    assert (np.asarray(metrics["loss"] < metrics["loss_limit"]) == sound).all()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def run_on(n_devices: int, steps: int, model=TINY, train=TRAIN):
    mesh = make_mesh(train.micro_batch_size, jax.devices()[:n_devices])
    assert mesh.size == n_devices
    state = jax.device_put(new_state(), replicated(mesh))
    chunk = jax.jit(
        make_train_chunk(model, OPTIM, train, make_constrain_batch(mesh)),
        static_argnames="steps",
        out_shardings=(state_shardings(state, mesh), None),
    )
    tokens, keys = jax.device_put((TOKENS, KEYS), replicated(mesh))
    state, metrics = chunk(state, tokens, keys, steps=steps)
    return jax.device_get(state), np.asarray(metrics["loss"])


# --- a batch in parts -----------------------------------------------------------------------------

STILL = dataclasses.replace(TINY, dropout=0.0)
BATCH = TOKENS[:72].reshape(8, 9)


def in_parts(size):
    return dataclasses.replace(TRAIN, micro_batch=size)


@pytest.mark.slow
def test_gradients_of_parts_are_those_of_the_whole_batch():
    """Means of n = 64 terms in another order: n * eps * the largest term, of loss or gradient."""
    params = new_state().params

    def gradient(batch, i):
        return jax.value_and_grad(loss_fn, 1)(STILL, params, batch)

    @jax.jit
    def all_ways(batch):
        rows = batch[:, None]
        whole = gradient(batch, None)
        parts = [accumulate_gradients(gradient, batch.reshape(-1, n, 9)) for n in (1, 4)]
        return whole, jax.lax.map(lambda row: gradient(row, None), rows), parts

    whole, each, (by_one, by_four) = all_ways(BATCH)
    for a, terms, *found in zip(*map(jax.tree.leaves, (whole, each, by_one, by_four)), strict=True):
        bound = 64 * np.finfo(np.float32).eps * max(1e-3, float(np.abs(terms).max()))
        for b in found:
            np.testing.assert_allclose(a, b, rtol=0, atol=bound)
            assert b.dtype == jnp.float32


MASKED = dataclasses.replace(TINY, embedding_dropout=0.1)
MASK_KEY = jax.random.fold_in(KEYS.dropout, 3)


@functools.partial(jax.jit, static_argnums=2)
def masked_gradient(params, batch, train):
    return loss_and_grads(MASKED, params, batch, MASK_KEY, train)


@functools.partial(jax.jit, static_argnums=2)
def masked_loss(params, batch, train):
    return loss_and_grads(MASKED, params, batch, MASK_KEY, train)[0]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_the_masks_of_micro_batches_are_rows_of_the_whole_batchs(size):
    """The gradient of accumulation is the whole batch's, up to sums of 64 terms in another order.

    In runs begun before, micro-batch i has the key fold_in(key, i), so that equal rows in two
    micro-batches get two losses.
    """
    params = new_params(5)
    parts = BATCH.reshape(-1, size, 9)
    loss, whole = masked_gradient(params, BATCH, TRAIN)
    found = masked_gradient(params, parts, in_parts(size))
    np.testing.assert_allclose(found[0], loss, rtol=64 * EPS)
    assert largest_difference(found[1], whole) < 64 * EPS * 10 * max(1.0, largest(whole))

    of_old = dataclasses.replace(in_parts(size), dropout_masks="micro_batch")
    old = masked_loss(params, parts, of_old)
    keys = [jax.random.fold_in(MASK_KEY, i) for i in range(8 // size)]
    each = [loss_of(MASKED, params, *x) for x in zip(parts, keys, strict=True)]
    np.testing.assert_allclose(old, np.mean(each), rtol=64 * EPS)
    assert abs(float(old - loss)) > 1e-3


@pytest.mark.slow
def test_a_step_in_parts_is_the_step_of_its_whole_batch():
    """On two devices as on one; the optimizer's batch stays batch_size."""
    bound = 64 * np.finfo(np.float32).eps * 2.4  # n eps of 64 terms of about 2.4 each
    _, whole = run_on(1, steps=5, model=STILL)
    _, parts = run_on(2, steps=5, model=STILL, train=in_parts(2))
    np.testing.assert_allclose(parts[0], whole[0], atol=bound)
    np.testing.assert_allclose(parts, whole, atol=20 * bound)  # 5 steps of AdamW amplify it


@pytest.mark.slow
def test_a_part_that_is_the_whole_batch_changes_nothing():
    def program(train):
        chunk = jax.jit(make_train_chunk(TINY, OPTIM, train), static_argnames="steps")
        return chunk.lower(new_state(), TOKENS, KEYS, steps=2).as_text()

    assert program(in_parts(8)) == program(TRAIN) != program(in_parts(4))


def test_each_part_is_split_over_the_devices():
    mesh = make_mesh(4, jax.devices())
    parts = jax.device_put(jnp.zeros((3, 8, 9), jnp.int32), replicated(mesh))
    placed = jax.jit(make_constrain_batch(mesh))(parts)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(3, 2, 9)}


@pytest.mark.slow
def test_an_evaluation_in_parts_is_the_same():
    """Means of 3 * 64 losses of about 2.4 in another order."""
    params = new_state().params
    seen = []

    def place(batch):
        seen.append(batch.shape)
        return batch

    whole, parts = (
        jax.jit(make_eval_step(TINY, train, place))(params, [TOKENS, TOKENS[:100]], KEYS.eval)
        for train in (TRAIN, in_parts(2))
    )
    assert set(seen) == {(8, 9), (2, 9)}
    np.testing.assert_allclose(parts, whole, rtol=3 * 64 * np.finfo(np.float32).eps)


@pytest.mark.slow
def test_the_learning_rate_of_each_step_is_among_its_numbers():
    optim = OptimConfig(learning_rate=1e-2, schedule="cosine", warmup_steps=2, schedule_steps=9)
    chunk = jax.jit(make_train_chunk(TINY, optim, TRAIN), static_argnames="steps")
    init = jax.jit(lambda: init_state(TINY, make_optimizer(optim), KEYS.init))
    state, metrics = chunk(init(), TOKENS, KEYS, steps=3)
    _, more = chunk(state, TOKENS, KEYS, steps=3)
    rates = [float(make_learning_rate(optim)(t)) for t in range(6)]
    found = np.concatenate([metrics["learning_rate"], more["learning_rate"]])
    np.testing.assert_allclose(found, rates, rtol=8 * np.finfo(np.float32).eps)


def test_the_batch_is_split_over_the_devices():
    mesh = make_mesh(8, jax.devices())
    place = jax.jit(make_constrain_batch(mesh))
    placed = place(jax.device_put(jnp.zeros((8, 9), jnp.int32), replicated(mesh)))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(1, 9)}


def test_keys_are_functions_of_seed_and_purpose():
    a, b, c = make_keys(0), make_keys(0), make_keys(1)
    data = [jax.random.key_data(k).tolist() for k in jax.tree.leaves((a, c))]
    assert len({tuple(d) for d in data}) == 10
    assert leaves_equal(jax.tree.map(jax.random.key_data, a), jax.tree.map(jax.random.key_data, b))


@pytest.mark.slow
def test_eval_step_is_the_mean_over_its_batches():
    eval_step = jax.jit(make_eval_step(TINY, TRAIN))
    params = new_state().params
    constant = jnp.full((300,), 4, jnp.int32)  # every batch is the same here
    losses = eval_step(params, [TOKENS, constant], KEYS.eval)
    assert losses.shape == (2,)
    expected = loss_of(TINY, params, constant[:9][None])
    np.testing.assert_allclose(losses[1], expected, rtol=1e-5)
    np.testing.assert_array_equal(losses, eval_step(params, [TOKENS, constant], KEYS.eval))


@pytest.mark.slow
@pytest.mark.parametrize("stride", [None, 8, 3, 1])
def test_exact_evaluation_equals_one_window_at_a_time(stride):
    params = new_params(5)
    tokens = np.asarray(TOKENS[:83])
    token_bytes = np.arange(1, 12, dtype=np.int32)
    split = Dataset.from_shards((tokens,), int(token_bytes[tokens].sum()))
    found = evaluate_split(TINY, params, split, token_bytes, stride=stride)

    def log_softmax(inputs):  # what is put behind the inputs does not reach them
        logits = np.float64(logits_of(TINY, params, np.pad(inputs, (0, 8 - len(inputs)))[None])[0])
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    step, total, predicted = stride or 8, 0.0, 1
    for start in range(0, 82, step):
        inputs = tokens[start : start + 8]
        log_p = log_softmax(inputs)
        for i in range(len(inputs)):
            target = start + i + 1
            if predicted <= target < len(tokens):
                total -= log_p[i, tokens[target]]
                predicted = target + 1
    assert predicted == 83
    assert found.tokens == 82
    assert found.n_bytes == token_bytes[tokens[1:]].sum()
    assert found.nats_per_token == pytest.approx(total / 82, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(total / 82), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(total / math.log(2) / found.n_bytes, rel=1e-5)


def test_a_parameter_without_a_rule_is_an_error_with_path_and_shape():
    mesh = make_mesh(8)
    with pytest.raises(ValueError, match=r"no sharding rule names .*new/kernel of shape \(3, 4\)"):
        state_shardings({"params": {"new": {"kernel": jnp.zeros((3, 4))}}}, mesh)


def test_a_mesh_takes_the_devices_that_divide_the_batch():
    assert make_mesh(8).shape == {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert make_mesh(6).size == 6
    assert make_mesh(7).size == 7
    assert make_mesh(11).size == 1


# --- the loss in chunks ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"tied": True, "head_bias": False}],
    ids=["a head and its bias", "tied, no bias"],
)
def test_the_loss_in_chunks_is_the_loss_and_so_are_its_gradients(options):
    """Chunks of one position and of three, which do not divide eight."""
    model = dataclasses.replace(TINY, n_layer=1, **options)
    shapes, random = state_shapes(model, OPTIM).params, np.random.default_rng(0)

    def draw(path, x):  # as first parameters times 3
        mean = 3.0 if path[-1].key == "scale" else 0.0
        return random.normal(mean, 0.06, x.shape).astype(np.float32)

    params = jax.tree.map_with_path(draw, shapes)
    batch = TOKENS[:36].reshape(4, 9)

    @functools.partial(jax.jit, static_argnums=1)
    def value_and_grad(params, loss_chunk):
        return jax.value_and_grad(
            lambda p: loss_fn(model, p, batch, KEYS.dropout, TrainConfig(loss_chunk=loss_chunk))
        )(params)

    loss, grads = value_and_grad(params, None)
    for loss_chunk in (1, 12):
        other, other_grads = value_and_grad(params, loss_chunk)
        # Sums of 32 tokens in another order.
        np.testing.assert_allclose(other, loss, rtol=32 * EPS)
        assert largest_difference(other_grads, grads) < 20 * 32 * EPS * largest(grads)


@pytest.mark.slow
def test_evaluations_take_the_loss_in_chunks():
    params = new_params(5)
    chunked = dataclasses.replace(TRAIN, loss_chunk=16)
    whole, parts = (
        jax.jit(make_eval_step(TINY, train))(params, [TOKENS, TOKENS[:99]], KEYS.eval)
        for train in (TRAIN, chunked)
    )
    np.testing.assert_allclose(parts, whole, rtol=64 * EPS)
    split, token_bytes = Dataset.from_shards((np.asarray(TOKENS[:83]),), 83), np.ones(11, np.int32)
    whole, parts = (
        evaluate_split(TINY, params, split, token_bytes, train=train).nats_per_token
        for train in (TRAIN, dataclasses.replace(TRAIN, loss_chunk=600))
    )
    assert parts == pytest.approx(whole, rel=82 * float(EPS))


@pytest.mark.parametrize(
    ("block_size", "train", "batch_size", "loss_chunk"),
    [
        (64, {"batch_size": 32}, 64, None),  # nano's, with or without its settings
        (64, None, 64, None),
        (64, {"batch_size": 32, "micro_batch": 4}, 4, None),
        (1024, None, 8, 4096),
        (1024, {"batch_size": 512, "micro_batch": 64, "loss_chunk": 8192}, 8, 8192),
        (1024, {"batch_size": 512, "micro_batch": 1}, 1, None),
        (1024, {"batch_size": 1}, 4, None),
        (8192, {"batch_size": 1}, 1, 4096),
    ],
)
def test_the_exact_evaluation_computes_no_more_at_once_than_training(
    block_size, train, batch_size, loss_chunk
):
    settings = None if train is None else TrainConfig(**train)
    assert choose_batch(block_size, settings) == (batch_size, loss_chunk)


@pytest.mark.parametrize(
    ("vocab_size", "block_size", "train", "loss_chunk"),
    [
        (8192, 8, TrainConfig(batch_size=8), None),  # 4096 tokens have 2^25 logits
        (50257, 8, TrainConfig(batch_size=8), 667),
        (50257, 256, TrainConfig(batch_size=4), 1024),  # as many as in training
        (50257, 1024, TrainConfig(batch_size=32), 4096),
        (50257, 1024, TrainConfig(batch_size=1), 1024),
        (50257, 1024, TrainConfig(batch_size=32, micro_batch=1), None),
        (50257, 64, TrainConfig(batch_size=8, loss_chunk=99), 99),
        (50257, 64, None, None),
    ],
)
def test_the_exact_evaluation_has_no_more_logits_at_once_than_training(
    vocab_size, block_size, train, loss_chunk
):
    assert choose_batch(block_size, train, vocab_size)[1] == loss_chunk


@pytest.mark.slow
def test_the_exact_evaluation_in_small_batches_is_the_same():
    params = new_params(5)
    split, token_bytes = Dataset.from_shards((np.asarray(TOKENS[:83]),), 83), np.ones(11, np.int32)
    whole = evaluate_split(TINY, params, split, token_bytes, train=TRAIN)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "gpt_jax.inference.evaluation.make_mesh",
            lambda n, **more: seen.append(n) or make_mesh(n, **more),
        )
        parts = evaluate_split(TINY, params, split, token_bytes, train=in_parts(2))
    assert seen == [2]
    # Sums of 8 float32 terms a window in another order; the windows' are added in float64.
    assert parts.nats_per_token == pytest.approx(whole.nats_per_token, rel=8 * float(EPS))
    assert (parts.tokens, parts.n_bytes) == (whole.tokens, whole.n_bytes)


@pytest.mark.slow
def test_the_loss_in_chunks_never_has_all_logits_in_memory():
    """GPT-2's vocabulary: the logits of 2 x 256 tokens are 103 MB, of 16 tokens 3.2 MB."""
    model = dataclasses.replace(TINY, n_layer=1, block_size=256, vocab_size=50257, tied=True)
    params = state_shapes(model, OPTIM).params
    batch = jax.ShapeDtypeStruct((2, 257), jnp.int32)
    logits = 2 * 256 * 50257 * 4

    def temporary_bytes(loss_chunk, differentiate):
        loss = lambda p, batch: loss_fn(model, p, batch, None, TrainConfig(loss_chunk=loss_chunk))
        program = jax.jit(jax.grad(loss) if differentiate else loss).lower(params, batch).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(None, True) > logits
    # Logits and softmax of a chunk, the head's gradient twice (float32, 50257 x 16), a block.
    assert temporary_bytes(16, True) < logits / 4
    assert temporary_bytes(16, False) < logits / 4


@pytest.mark.slow
def test_chunks_of_the_loss_are_shared_by_all_devices():
    """A chunk spans the batch, so that no device waits for another's sequences."""
    mesh = make_mesh(8)
    place = make_constrain_batch(mesh)
    model = dataclasses.replace(TINY, dropout=0.0)
    params = jax.device_put(new_state().params, replicated(mesh))
    batch = jax.device_put(TOKENS[:72].reshape(8, 9), replicated(mesh))
    grad = jax.jit(
        jax.grad(lambda p, batch: loss_fn(model, p, place(batch), None, TrainConfig(loss_chunk=16)))
    )
    text = grad.lower(params, batch).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text

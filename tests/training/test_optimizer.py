"""The optimizer by hand, in NumPy and float64: schedules, decay, clipping, Muon."""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from conftest import TINY

from gpt_jax.config import OptimConfig
from gpt_jax.config.fields import iter_fields
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.sharding import state_shardings
from gpt_jax.prng import make_keys
from gpt_jax.training.optimizer import (
    DECAY_SHAPES,
    OPTIMIZERS,
    decay_mask,
    make_learning_rate,
    make_optimizer,
    muon_labels,
)
from gpt_jax.training.state import init_state

EPS = float(np.finfo(np.float32).eps)
# With every parameter there can be.
WHOLE = dataclasses.replace(TINY, qkv_bias=True, qk_norm=True, activation="swiglu", n_kv_head=1)
TIED = dataclasses.replace(TINY, tied=True, bias=False)


def test_every_choice_has_its_entry_and_an_unknown_one_is_an_error(monkeypatch):
    """Not the last branch of an if: a choice without an entry would train with another's."""
    choices = {name: typing.get_args(hint) for name, hint, _ in iter_fields(OptimConfig)}
    assert set(choices["optimizer"]) == set(OPTIMIZERS)
    assert set(choices["schedule"]) == {"constant", *DECAY_SHAPES}
    monkeypatch.delitem(OPTIMIZERS, "muon")
    with pytest.raises(KeyError, match="muon"):
        make_optimizer(OptimConfig(optimizer="muon"))
    monkeypatch.delitem(DECAY_SHAPES, "wsd")
    with pytest.raises(KeyError, match="wsd"):
        make_learning_rate(OptimConfig(schedule="wsd", schedule_steps=9, decay_steps=3))(0)


def names(tree) -> dict:
    return {
        "/".join(k.key for k in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def make_parameters(model):
    return init_state(model, optax.identity(), make_keys(0).init).params


@functools.cache
def parameters(model):
    return jax.jit(lambda: make_parameters(model))()


def shapes(model):
    return jax.eval_shape(lambda: make_parameters(model))


# --- schedules ------------------------------------------------------------------------------------

COSINE = OptimConfig(
    learning_rate=2e-3, schedule="cosine", warmup_steps=4, schedule_steps=24, floor=0.1
)
WSD = OptimConfig(
    learning_rate=2e-3,
    schedule="wsd",
    warmup_steps=2,
    schedule_steps=20,
    decay_steps=5,
    floor=0.2,
)
SHARES = [
    (COSINE, 0, 1 / 5),
    (COSINE, 3, 4 / 5),
    (COSINE, 4, 1.0),
    (COSINE, 9, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the way: cos(pi / 4)
    (COSINE, 14, 0.55),
    (COSINE, 19, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2),
    (COSINE, 24, 0.1),
    (COSINE, 1000, 0.1),
    (WSD, 0, 1 / 3),
    (WSD, 1, 2 / 3),
    (WSD, 2, 1.0),
    (WSD, 15, 1.0),
    (WSD, 16, 0.84),
    (WSD, 17, 0.68),
    (WSD, 20, 0.2),
    (WSD, 1000, 0.2),
    (OptimConfig(learning_rate=2e-3, warmup_steps=1), 0, 1 / 2),
    (OptimConfig(learning_rate=2e-3, warmup_steps=1), 1, 1.0),
    (OptimConfig(learning_rate=2e-3, warmup_steps=1), 9999, 1.0),
    (dataclasses.replace(COSINE, warmup_steps=0), 0, 1.0),
    (dataclasses.replace(COSINE, floor=0.0), 24, 0.0),
    (dataclasses.replace(COSINE, floor=1.0), 20, 1.0),
]


@pytest.mark.parametrize(("config", "step", "share"), SHARES)
def test_schedules_by_hand(config, step, share):
    """A handful of float32 operations on numbers up to 2, each rounded by half an eps."""
    rate = make_learning_rate(config)(step)
    np.testing.assert_allclose(rate, 2e-3 * share, rtol=0, atol=2e-3 * 8 * EPS)


def test_a_constant_rate_is_a_number_and_a_step_may_be_traced():
    assert make_learning_rate(OptimConfig(learning_rate=3e-4)) == 3e-4
    rates = jax.jit(jax.vmap(make_learning_rate(COSINE)))(jnp.arange(30))
    by_hand = [make_learning_rate(COSINE)(t) for t in range(30)]
    np.testing.assert_allclose(rates, by_hand, rtol=8 * EPS)
    assert (np.diff(rates[:5]) > 0).all()
    assert (np.diff(rates[4:25]) < 0).all()


def test_a_schedule_without_a_length_is_an_error():
    with pytest.raises(ValueError, match="has no length; see fix_schedule"):
        make_optimizer(OptimConfig(schedule="cosine"))


# --- which parameters -----------------------------------------------------------------------------

MATRICES = {
    "tokens/embedding",
    "positions",
    "blocks/attn/qkv/kernel",
    "blocks/attn/proj/kernel",
    "blocks/mlp/gate/kernel",
    "blocks/mlp/up/kernel",
    "blocks/mlp/down/kernel",
    "head/kernel",
}


def test_kernels_and_embeddings_decay_and_nothing_else():
    mask = names(decay_mask(shapes(WHOLE)))
    assert {name for name, decays in mask.items() if decays} == MATRICES
    others = {name.rpartition("/")[2] for name, decays in mask.items() if not decays}
    assert others == {"bias", "scale"}


def test_muon_is_for_the_kernels_of_blocks():
    labels = names(muon_labels(shapes(WHOLE)))
    kernels = {name for name in MATRICES if name.startswith("blocks")}
    assert {name for name, label in labels.items() if label == "muon"} == kernels
    assert set(labels.values()) == {"muon", "adam"}


# --- AdamW ----------------------------------------------------------------------------------------


def make_gradients(params, steps: int):
    """Gradients of norms from far below to far above 1."""
    rng = np.random.default_rng(0)

    def draw(scale):
        return jax.tree.map(lambda x: (scale * rng.normal(size=x.shape)).astype("f"), params)

    return [draw(10.0 ** (t - 4)) for t in range(steps)]


def by_hand(config: OptimConfig, params, gradients):
    """AdamW in NumPy, float64 (Loshchilov and Hutter 2019, algorithm 2); the largest direction."""
    p = {name: np.asarray(x, np.float64) for name, x in names(params).items()}
    m, v = ({name: np.zeros_like(x) for name, x in p.items()} for _ in range(2))
    rate, largest = make_learning_rate(config), 0.0
    for t, gradient in enumerate(gradients):
        g = {name: np.asarray(x, np.float64) for name, x in names(gradient).items()}
        norm = math.sqrt(sum((x**2).sum() for x in g.values()))
        if config.clip is not None and norm > config.clip:
            g = {name: x * config.clip / norm for name, x in g.items()}
        lr = float(rate(t)) if callable(rate) else rate
        for name in p:
            m[name] = config.beta1 * m[name] + (1 - config.beta1) * g[name]
            v[name] = config.beta2 * v[name] + (1 - config.beta2) * g[name] ** 2
            m_hat = m[name] / (1 - config.beta1 ** (t + 1))
            v_hat = v[name] / (1 - config.beta2 ** (t + 1))
            decays = config.decay == "all" or name in MATRICES
            decay = config.weight_decay * decays
            direction = m_hat / (np.sqrt(v_hat) + 1e-8)
            largest = max(largest, np.abs(direction).max())
            p[name] = p[name] - lr * (direction + decay * p[name])
    return p, largest


def take_steps(config: OptimConfig, params, gradients):
    optimizer = make_optimizer(config)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        OptimConfig(learning_rate=1e-2, weight_decay=0.5),
        OptimConfig(learning_rate=1e-2, weight_decay=0.5, decay="matrices"),
        OptimConfig(learning_rate=1e-2, clip=1.0, beta1=0.8, beta2=0.99),
        dataclasses.replace(COSINE, clip=0.5, weight_decay=0.5, decay="matrices"),
    ],
)
def test_steps_equal_adamw_by_hand(config):
    """A direction takes some 20 roundings; 1 - beta2**t in float32 has a relative error of at most
    eps / (1 - beta2), of which the root takes half. Parameters of at most 1.1 are rounded too."""
    params, steps = parameters(TINY), 7
    gradients = make_gradients(params, steps)
    found = names(take_steps(config, params, gradients))
    expected, largest = by_hand(config, params, gradients)
    bound = steps * config.learning_rate * largest * EPS * (20 + 0.5 / (1 - config.beta2))
    for name, x in expected.items():
        bound_too = bound + steps * 1.1 * EPS
        np.testing.assert_allclose(found[name], x, rtol=0, atol=bound_too, err_msg=name)


@pytest.mark.slow
def test_the_default_is_optax_adamw_to_the_bit():
    config = OptimConfig()
    params = parameters(TINY)
    theirs = optax.adamw(config.learning_rate, config.beta1, config.beta2, weight_decay=0.01)
    ours = make_optimizer(config)
    gradient = make_gradients(params, 1)[0]
    a, b = (jax.jit(o.update)(gradient, o.init(params), params) for o in (theirs, ours))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- Muon -----------------------------------------------------------------------------------------

MUON = OptimConfig(optimizer="muon", learning_rate=1e-2, weight_decay=0.0)


@functools.cache
def first_update(config, model):
    """Each operation is compiled by itself, so that equal ones round alike in both optimizers."""
    params = parameters(model)
    gradient = make_gradients(params, 1)[0]
    optimizer = make_optimizer(config)
    return optimizer.update(gradient, optimizer.init(params), params)[0]


@pytest.mark.slow
def test_muon_treats_each_layers_kernel_as_if_it_were_alone():
    """By optax's Muon for a single matrix, whose factor 0.2 sqrt(max(in, out)) is the paper's.

    Five Newton-Schulz steps enlarge an error by at most 3.4445 each, and each has sums of at most
    64 products: 64 * 3.4445**5 * eps / 2, of entries of at most 0.2 sqrt(64).
    """
    params = parameters(WHOLE)
    gradient = make_gradients(params, 1)[0]
    found = names(first_update(MUON, WHOLE))
    alone = optax.contrib.muon(1e-2, consistent_rms=0.2)
    update = jax.jit(lambda p, g: alone.update(g, alone.init(p), p)[0])
    kernels = [name for name, label in names(muon_labels(params)).items() if label == "muon"]
    assert len(kernels) == 5
    for name in kernels:
        for layer in range(WHOLE.n_layer):
            p, g = ({"w": names(tree)[name][layer]} for tree in (params, gradient))
            expected = update(p, g)["w"]
            bound = 1e-2 * 0.2 * 8 * 64 * 3.4445**5 * EPS / 2
            np.testing.assert_allclose(found[name][layer], expected, atol=bound, rtol=0)


def test_muons_updates_are_nearly_orthogonal_and_as_large_as_adamws():
    """The quintic maps singular values above some 0.1 of the largest to [0.68, 1.13] (Jordan)."""
    found = names(first_update(MUON, TINY))
    for layer in found["blocks/mlp/up/kernel"]:  # 16 x 64: a random one is well conditioned
        values = np.linalg.svd(layer / -1e-2 / (0.2 * 8), compute_uv=False)
        assert values.min() > 0.65
        assert values.max() < 1.2
        rms = float(jnp.sqrt(jnp.mean(layer**2))) / 1e-2
        assert 0.65 * 0.2 < rms < 1.2 * 0.2


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_under_muon_all_else_is_adamws(decay):
    config = dataclasses.replace(MUON, weight_decay=0.3, decay=decay)
    params = parameters(TINY)
    found = names(first_update(config, TINY))
    adamw = names(first_update(dataclasses.replace(config, optimizer="adamw"), TINY))
    plain = names(first_update(MUON, TINY))
    for name, label in names(muon_labels(params)).items():
        if label == "adam":
            np.testing.assert_array_equal(found[name], adamw[name], err_msg=name)
        else:  # decay is added to its direction as to any other
            expected = plain[name] - 1e-2 * 0.3 * names(params)[name]
            np.testing.assert_allclose(found[name], expected, atol=2 * EPS, rtol=0)


@pytest.mark.parametrize("model", [WHOLE, TIED])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_leaf_of_the_optimizers_state_has_a_rule(model, optimizer):
    config = dataclasses.replace(COSINE, optimizer=optimizer, clip=1.0, decay="matrices")
    state = jax.eval_shape(lambda: init_state(model, make_optimizer(config), make_keys(0).init))
    shardings = state_shardings(state, make_mesh(8))
    assert jax.tree.structure(shardings) == jax.tree.structure(state)

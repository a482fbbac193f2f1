"""The layers one by one: values by hand, and the statistics of dropout's bits."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpt_jax.config import Config, TrainConfig
from gpt_jax.config.activations import ACTIVATIONS, Activation
from gpt_jax.errors import ConfigError
from gpt_jax.model import GPT, forward, tuning
from gpt_jax.model.layers import (
    MLP,
    Dropout,
    affine,
    apply_rope,
    dropout_mask,
    layer_norm,
    make_norm,
    mlp_width,
)
from gpt_jax.model.tuning import CPU
from gpt_jax.training.memory import estimate_memory


@pytest.mark.parametrize(("width", "features"), [(3, 8), (8, 3), (5, 5)])
def test_of_a_kernels_gradient_the_narrower_factor_is_transposed(width, features):
    """A product over tokens transposes its first factor; all are those that jax derives."""
    random = np.random.default_rng(width)
    shapes = (2, 6, width), (width, features), (2, 6, features)
    x, kernel, g = (jnp.asarray(random.normal(size=s), jnp.float32) for s in shapes)

    def gradients(product):
        return lambda x, kernel: jax.vjp(product, x, kernel)[1](g)

    ours = gradients(lambda x, kernel: affine(x, kernel, None))
    expected = gradients(lambda x, kernel: jnp.matmul(x, kernel, precision="highest"))(x, kernel)
    for found, known in zip(ours(x, kernel), expected, strict=True):
        bound = 12 * np.finfo(np.float32).eps * 12 * 3.5**2  # sums of 12 products at most
        np.testing.assert_allclose(found, known, rtol=0, atol=bound)
    text = str(jax.make_jaxpr(ours)(x, kernel))
    (made,) = re.findall(r":f32\[(\d+),(\d+)\] = dot_general", text)
    assert tuple(map(int, made)) == (min(width, features), max(width, features))


@pytest.mark.parametrize(
    ("name", "values"),
    [  # at -2, -0.5, 0, 0.5, 2
        ("relu", [0, 0, 0, 0.5, 2]),
        ("relu2", [0, 0, 0, 0.25, 4]),
        ("gelu", [-0.045402, -0.154286, 0, 0.345714, 1.954598]),
        ("gelu_exact", [-0.045500, -0.154269, 0, 0.345731, 1.954500]),
        ("swiglu", [-0.238406, -0.188770, 0, 0.311230, 1.761594]),
    ],
)
def test_activations_by_hand(name, values):
    x = jnp.array([-2, -0.5, 0, 0.5, 2])
    np.testing.assert_allclose(ACTIVATIONS[name].function(jax, x), values, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True])
def test_a_new_activation_is_one_entry(monkeypatch, gated):
    """The setting, the model and the estimate of memory of a deep model take it from the table."""
    entry = Activation(lambda jax, x: jax.nn.softplus(x), gated=gated)
    name = f"softplus, gated={gated}"  # shapes of states are cached by their settings
    monkeypatch.setitem(ACTIVATIONS, name, entry)
    config = dataclasses.replace(TINY, activation=name, dropout=0.0, n_layer=CPU.unroll + 1)
    relu = dataclasses.replace(config, activation="swiglu" if gated else "relu")
    params = GPT(relu).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    tokens_BT = jnp.arange(8)[None]
    logits_BTV = forward(config, params, tokens_BT)
    assert np.isfinite(logits_BTV).all()
    assert np.abs(logits_BTV - forward(relu, params, tokens_BT)).max() > 1e-6
    ours, known = (
        estimate_memory(Config(model=m, train=TrainConfig(eval_batches=1)), (1, 1, 1, 1), "cpu")
        for m in (config, relu)
    )
    assert ours.state == known.state
    assert 0 < ours.activations <= known.activations
    with pytest.raises(ConfigError, match=r"activation='sofplus' must be one of relu, gelu, "):
        dataclasses.replace(TINY, activation="sofplus")


def test_norms_by_hand():
    x = jnp.array([[1.0, 3.0, 5.0, 7.0]])  # mean 4, variance 5, mean square 21
    layer, rms = (make_norm(dataclasses.replace(TINY, norm=n), "n") for n in ("layer", "rms"))
    scale, bias = jnp.array([1.0, 2.0, 1.0, 1.0]), jnp.array([0.0, 0.0, 0.0, 9.0])
    found = layer.apply({"params": {"scale": scale, "bias": bias}}, x)
    root = 5.00001**0.5
    np.testing.assert_allclose(found, [[-3 / root, -2 / root, 1 / root, 3 / root + 9]], rtol=1e-6)
    root = 21.00001**0.5
    found = rms.apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(found, [[1 / root, 6 / root, 5 / root, 7 / root]], rtol=1e-6)


def test_rotation_by_hand():
    """Pairs are (entry 0, entry 2), one radian a position, and (1, 3), a hundredth of one."""
    x = jnp.array([[1.0, 1.0, 0.0, 0.0]] * 2)
    expected = [np.cos(3), np.cos(0.03), np.sin(3), np.sin(0.03)]
    np.testing.assert_allclose(apply_rope(x, jnp.array([0, 3])), [x[0], expected], atol=1e-6)


def test_rotated_products_depend_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 8))

    def product(at_q, at_k):
        return float((apply_rope(q, jnp.array([at_q])) * apply_rope(k, jnp.array([at_k]))).sum())

    near = product(5, 2)
    # A float32 angle of up to 103 radians is off by 103 * 6e-8; the product sums 8 terms of about 1
    assert product(103, 100) == pytest.approx(near, abs=8 * 103 * 6e-8)
    assert product(5, 3) != pytest.approx(near, abs=1e-2)


@pytest.mark.parametrize("n_embd", [1, 8, 16, 100, 128, 768, 4096])
def test_swiglu_has_about_as_many_parameters_as_four_times_the_width(n_embd):
    config = dataclasses.replace(TINY, n_head=1, n_embd=n_embd, activation="swiglu")
    F = mlp_width(config)
    assert F % 8 == 0
    assert F == 8 or abs(F - 8 / 3 * n_embd) <= 4
    assert mlp_width(dataclasses.replace(config, activation="relu")) == 4 * n_embd
    if n_embd >= 100:
        assert abs(3 * F / (8 * n_embd) - 1) < 0.02
    params = jax.eval_shape(
        lambda: MLP(config).init(jax.random.key(0), jnp.zeros((1, 1, n_embd)), deterministic=True)
    )["params"]
    assert params["gate"]["kernel"].shape == params["up"]["kernel"].shape == (n_embd, F)
    assert params["down"]["kernel"].shape == (F, n_embd)


# The statistics of dropout's bits. Each bound is five standard errors of the quantity tested: with
# these fixed words a sound generator fails none of them; by chance one in 1.7 million would.


def words(seed: int):
    return jax.random.bits(jax.random.key(seed), (2,), jnp.uint32)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.2, 0.5, 0.9])
def test_dropout_keeps_the_share_it_should(rate):
    n = 1_000_000
    kept = np.asarray(dropout_mask((n,), words(0), rate))
    assert abs(kept.mean() - (1 - rate)) <= 5 * (rate * (1 - rate) / n) ** 0.5
    rows = np.asarray(dropout_mask((1000, 1000), words(1), rate)).mean(axis=0)
    assert abs(rows - (1 - rate)).max() <= 6 * (rate * (1 - rate) / 1000) ** 0.5


def correlation(a, b):
    return np.corrcoef(a.astype(float).ravel(), b.astype(float).ravel())[0, 1]


@pytest.mark.parametrize("lag", [1, 2, 3, 16, 64, 128, 4096])
def test_dropout_of_neighbours_is_independent(lag):
    kept = np.asarray(dropout_mask((1_000_000,), words(2), 0.2))
    assert abs(correlation(kept[lag:], kept[:-lag])) < 5 / (len(kept) - lag) ** 0.5


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_masks_of_different_keys_are_independent(seed, step, other):
    n, key = 200_000, jax.random.key(seed)
    assume(step != other)
    a, b = (
        np.asarray(dropout_mask((n,), jax.random.bits(jax.random.fold_in(key, i), (2,)), 0.5))
        for i in (step, other)
    )
    assert abs(correlation(a, b)) < 5 / n**0.5


def test_masks_of_successive_steps_are_independent():
    """Also where one is shifted against the other, as attention weights of two steps might be."""
    n = 200_000
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(5))
    masks = [
        np.asarray(dropout_mask((n,), jax.random.bits(k, (2,), jnp.uint32), 0.2)) for k in keys
    ]
    for i, a in enumerate(masks):
        for b in masks[i + 1 :]:
            for shift in (0, 1, 2, 64, 128):
                limit = 5 / (n - shift) ** 0.5
                assert abs(correlation(a[shift:], b[: n - shift])) < limit


@pytest.mark.parametrize("shift", [1, 64, 4096])
def test_masks_of_neighbouring_words_are_not_shifts_of_one_another(shift):
    """Were an entry's index only added to a word, these two would be one mask, moved."""
    n = 200_000
    a = np.asarray(dropout_mask((n,), jnp.array([shift + 7, 3], jnp.uint32), 0.2))
    b = np.asarray(dropout_mask((n,), jnp.array([7, 11], jnp.uint32), 0.2))
    assert abs(correlation(a[: n - shift], b[shift:])) < 5 / (n - shift) ** 0.5


def test_dropout_scales_what_it_keeps():
    x = jnp.full((1000,), 3.0)
    y = Dropout(0.25, False).apply({}, x, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y)) == {0.0, 4.0}


# --- LayerNorm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (100, 0.1), (-1000, 1), (3, 1e-3), (0, 1e4)])
def test_layer_norm_and_its_gradient_are_exact_whatever_the_mean(
    monkeypatch, mean, spread, with_bias, one_pass
):
    """Beside float64: as far as the D sums, and x itself, which has eps |mean| for a digit, allow.

    The distances from the mean have an error of some eps |mean|, that is eps |mean| / spread of the
    result's unit, and so has each step of the gradient. In one pass the variance has D roundings.
    """
    monkeypatch.setattr(tuning, "CPU", dataclasses.replace(CPU, one_pass_norm=one_pass))
    D, eps = 64, float(np.finfo(np.float32).eps)
    random = np.random.default_rng(abs(mean))
    x = (mean + spread * random.normal(size=(2, 5, D))).astype(np.float32)
    scale, bias, weights = (random.normal(size=s).astype(np.float32) for s in (D, D, x.shape))
    bias = bias if with_bias else None

    def loss(norm, x, scale, bias):
        return (norm(x, scale, bias) * weights).sum()

    def plain(x, scale, bias):
        d = x - x.mean(axis=-1, keepdims=True)
        y = d / jnp.sqrt(jnp.square(d).mean(axis=-1, keepdims=True) + 1e-5) * scale
        return y if bias is None else y + bias

    ours = functools.partial(layer_norm, jnp.dtype("float32"), 1e-5)
    found = ours(x, scale, bias), *jax.grad(functools.partial(loss, ours), (0, 1))(x, scale, bias)
    if with_bias:
        found += (jax.grad(functools.partial(loss, ours), 2)(x, scale, bias),)
    with jax.enable_x64(True):
        wide = [None if a is None else jnp.asarray(a, jnp.float64) for a in (x, scale, bias)]
        expected = plain(*wide), *jax.grad(functools.partial(loss, plain), (0, 1))(*wide)
        if with_bias:
            expected += (jax.grad(functools.partial(loss, plain), 2)(*wide),)
        expected = [np.asarray(a) for a in expected]
    digit = eps * (8 + 4 * abs(mean) / spread + one_pass * D)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=4 * digit * np.abs(b).max())
        assert a.dtype == jnp.float32


def test_layer_norm_of_bfloat16_is_that_of_float32_rounded_once():
    random = np.random.default_rng(1)
    x = jnp.asarray(random.normal(size=(3, 32)) + 2, jnp.bfloat16)
    scale, bias = (jnp.asarray(random.normal(size=32), jnp.float32) for _ in range(2))
    of_wide = layer_norm(jnp.dtype("float32"), 1e-5, x.astype(jnp.float32), scale, bias)
    rounded = layer_norm(jnp.dtype("bfloat16"), 1e-5, x, scale, bias)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded, of_wide.astype(jnp.bfloat16))


def test_one_pass_is_exact_where_the_first_entry_is_far_from_all_others(monkeypatch):
    monkeypatch.setattr(tuning, "CPU", dataclasses.replace(CPU, one_pass_norm=True))
    x = np.random.default_rng(2).normal(size=(9, 768)).astype(np.float32)
    x[:, 0] += 1e4
    found = layer_norm(jnp.dtype("float32"), 1e-5, x, jnp.ones(768), None)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    # The distances from the mean, 13, have an error of eps times the first entry's.
    allowed = np.finfo(np.float32).eps * (768 * np.abs(expected) + 1e4 / wide.std(1, keepdims=True))
    assert (np.abs(found - expected) <= allowed).all()

"""Reproducible programs on a GPU: the embedding's gradient without a sum by index."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from gpt_jax.devices import asks_for_determinism, request_determinism
from gpt_jax.model import GPT, forward, layers
from gpt_jax.model.layers import look_up
from gpt_jax.parallel.backend import compiling_for, must_be_deterministic

FLAG = "--xla_gpu_deterministic_ops"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("block", [4, 11, 4096])
def test_products_sum_the_gradients_of_each_id(monkeypatch, dtype, block):
    """Of small whole numbers, whose sums are exact in any order."""
    monkeypatch.setattr(layers, "IDS_AT_ONCE", block)
    rng = np.random.default_rng(0)
    embedding = jnp.asarray(rng.normal(size=(11, 6)), jnp.float32)
    ids = jnp.asarray(rng.integers(0, 11, (3, 8)), jnp.int32)
    weights = jnp.asarray(rng.integers(-9, 9, (3, 8, 6)), jnp.float32)
    summed = lambda rows: (rows * weights).sum()
    value, found = jax.value_and_grad(lambda x: summed(look_up(dtype, x, ids)))(embedding)
    expected_value, expected = jax.value_and_grad(lambda x: summed(x[ids]))(embedding)
    assert value == expected_value
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ("", False),
        (FLAG, True),
        (f"{FLAG}=true --xla_other", True),
        (f"--xla_other {FLAG}=1", True),
        (f"{FLAG}=false", False),
        (f"{FLAG}=true {FLAG}=false", False),
    ],
)
def test_what_xla_is_asked_for_is_read_from_its_flags(monkeypatch, flags, asked):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert asks_for_determinism() == asked
    with compiling_for("cpu"):  # which is, and sorts nothing for it
        assert not must_be_deterministic()
    with compiling_for("cuda 9.0"):
        assert must_be_deterministic() == asked
    request_determinism()
    assert asks_for_determinism() == (asked or FLAG not in flags)


@pytest.mark.slow
def test_a_model_compiled_so_has_the_same_gradient(monkeypatch):
    """To the rounding of sums of 24 numbers, whose terms are up to 8 times their sum here."""
    model = dataclasses.replace(TINY, dropout=0.0)
    ids = jax.random.randint(jax.random.key(0), (3, 8), 0, model.vocab_size)
    params = jax.jit(GPT(model).init)(jax.random.key(1), ids)["params"]
    gradient = lambda: jax.grad(lambda p: jnp.square(forward(model, p, ids)).sum())
    expected = jax.jit(gradient())(params)
    assert "scatter-add" in str(jax.make_jaxpr(gradient())(params))
    monkeypatch.setenv("XLA_FLAGS", f"{FLAG}=true")
    with compiling_for("cuda 9.0"):
        assert "scatter-add" not in str(jax.make_jaxpr(gradient())(params))
        found = jax.jit(gradient())(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=24 * 2**-23 * abs(b).max()),
        found, expected,
    )  # fmt: skip

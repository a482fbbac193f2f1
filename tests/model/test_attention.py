"""Attention: the choice of how it is computed, and that every way computes the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from gpt_jax.config import MeshConfig, ModelConfig
from gpt_jax.config.known_settings import KNOWN, unknown_settings
from gpt_jax.errors import ConfigError
from gpt_jax.model import GPT, attention, forward
from gpt_jax.model.attention import attend, choose_attention
from gpt_jax.parallel.backend import compiling_for, target_backend
from gpt_jax.parallel.mesh import make_mesh

EPS = np.finfo(np.float32).eps
FITS = ModelConfig(n_head=2, n_embd=128, dropout=0.0, dtype="bfloat16")


@pytest.mark.parametrize(
    ("options", "backend", "expected"),
    [
        ({}, "cuda 8.0", ("fused", "")),
        ({}, "cuda 9.0", ("fused", "")),
        ({"n_embd": 256}, "cuda 12.0", ("fused", "")),  # a head size of 128
        ({}, "cuda 7.5", ("plain", "fused needs compute capability 8.0, and this GPU has 7.5")),
        ({}, "cpu", ("plain", "fused is for NVIDIA GPUs and TPUs, and this is cpu")),
        ({"block_size": 256}, "tpu", ("fused", "")),
        (
            {"block_size": 192},
            "tpu",
            ("plain", "fused needs a block_size of 128, 256, ..., and this is 192"),
        ),
        (
            {"block_size": 256, "dropout": 0.2},
            "tpu",
            ("plain", "attention dropout 0.2; fused has none"),
        ),
        ({}, "rocm", ("plain", "fused is for NVIDIA GPUs and TPUs, and this is rocm")),
        ({"dropout": 0.2}, "cuda 9.0", ("plain", "attention dropout 0.2; fused has none")),
        ({"dtype": "float32"}, "cuda 9.0", ("plain", "fused needs bfloat16, and this is float32")),
        (
            {"n_embd": 24},
            "cuda 9.0",
            ("plain", "fused needs a head size of 8, 16, ... 128, and this is 12"),
        ),
        (
            {"n_embd": 272},
            "cuda 9.0",
            ("plain", "fused needs a head size of 8, 16, ... 128, and this is 136"),
        ),
        ({"attention": "plain"}, "cuda 9.0", ("plain", "asked for")),
        ({"attention": "blockwise"}, "cuda 9.0", ("blockwise", "asked for")),
        ({"attention": "fused"}, "cuda 9.0", ("fused", "")),
        (
            {"attention": "fused", "block_size": 2048},
            "cpu",
            ("blockwise", "fused is for NVIDIA GPUs and TPUs, and this is cpu"),
        ),
        ({"block_size": 2048}, "cuda 9.0", ("fused", "")),
        (
            {"block_size": 2048, "dtype": "float32"},
            "cuda 9.0",
            ("blockwise", "fused needs bfloat16, and this is float32"),
        ),
        (
            {"block_size": 2048, "dropout": 0.1},
            "cuda 9.0",
            ("plain", "attention dropout 0.1; fused has none"),
        ),
    ],
)
def test_the_choice_and_its_reason(options, backend, expected):
    assert choose_attention(dataclasses.replace(FITS, **options), backend) == expected


@pytest.mark.parametrize("asked", ["auto", "fused", "blockwise", "plain"])
def test_kernels_are_not_taken_for_a_setting_that_they_may_not_know(monkeypatch, asked):
    """As if qk_norm and rotary positions were new."""
    monkeypatch.delitem(KNOWN, "qk_norm")
    monkeypatch.setitem(KNOWN, "positions", ("learned",))
    config = dataclasses.replace(FITS, attention=asked, block_size=2048)
    expected = {"auto": "fused"}.get(asked, asked)
    assert choose_attention(config, "cuda 9.0")[0] == expected
    for options, name in (
        ({"qk_norm": True}, "model.qk_norm=True"),
        ({"positions": "rotary"}, "model.positions=rotary"),
    ):
        new = dataclasses.replace(config, **options)
        reason = f"only plain attention is known to compute {name}"
        reason = "asked for" if asked == "plain" else reason
        for backend in ("cuda 9.0", "tpu", "cpu"):
            assert choose_attention(new, backend) == ("plain", reason)


def test_an_attention_without_an_implementation_is_an_error():
    x = jnp.zeros((1, 1, 2, 8))
    with pytest.raises(ValueError, match=r"model\.attention='ring' has no implementation"):
        attend("ring", x, x, x, 0, lambda w: w)


def test_every_setting_of_the_model_is_known_today():
    """To be known is the exception for a new one: whoever adds it checks what asks first."""
    assert set(KNOWN) == {field.name for field in dataclasses.fields(ModelConfig)}
    assert unknown_settings(ModelConfig()) == []


@pytest.mark.parametrize("way", ["fused", "blockwise"])
def test_dropout_of_weights_is_refused_where_there_is_none(way):
    with pytest.raises(ConfigError, match=rf"model.attention={way} has no dropout .*dropout=0.2"):
        ModelConfig(attention=way, dropout=0.2)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is an accelerator")
def test_the_backend_is_named():
    assert target_backend() == "cpu"


def test_another_backend_can_be_planned_for():
    here = target_backend()
    with compiling_for("tpu"):
        assert target_backend() == "tpu"
        assert attention.needs_mesh(dataclasses.replace(FITS, block_size=256))
    assert target_backend() == here
    assert not attention.needs_mesh(dataclasses.replace(FITS, block_size=256))


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="there are fewer than 8 devices")
def test_the_tpus_kernel_equals_plain_and_so_do_its_gradients(monkeypatch):
    """Interpreted, in blocks smaller than the sequence, with shared heads; alone and on a mesh.

    Scores are sums of K products, weights and gradients of T: each of the two ways rounds them
    within T eps of the largest sum of magnitudes, which for gradients is bounded by their own
    largest entry times T.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention

    interpreted = functools.partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha", interpreted)
    monkeypatch.setattr(attention, "SPLASH_BLOCKS", (128,))
    rng = np.random.default_rng(0)
    T, K = 256, 16
    q, k, v = (
        jnp.asarray(rng.normal(size=(4, heads, T, K)) * K**-0.25, jnp.float32)
        for heads in (4, 2, 2)
    )

    def values_and_gradients(way):
        y, pull = jax.vjp(way, q, k, v)
        return y, *pull(jnp.asarray(rng_out, jnp.float32))

    rng_out = rng.normal(size=(4, 4, T, K))
    plain = values_and_gradients(lambda q, k, v: attend("plain", q, k, v, 0, lambda w: w))
    with compiling_for("tpu"):
        fused = values_and_gradients(lambda q, k, v: attend("fused", q, k, v, 0, lambda w: w))
        spread = []
        for sizes in ({"fsdp": 2, "tensor": 2}, {"tensor": 2, "sequence": 2}, {"sequence": 4}):
            with jax.set_mesh(make_mesh(4, sizes=MeshConfig(data=2, **sizes))):
                way = jax.jit(lambda q, k, v: attend("fused", q, k, v, 0, lambda w: w))
                spread.append(way(q, k, v))
    for ours, theirs in zip(fused, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=T * EPS * np.abs(theirs).max())
    for y in spread:
        assert {shard.data.size for shard in y.addressable_shards} == {y.size // 8}
        np.testing.assert_array_equal(y, fused[0])
    short = q[:, :, :100], k[:, :, :100], v[:, :, :100]  # no block fits: plain
    with compiling_for("tpu"):
        np.testing.assert_array_equal(
            attend("fused", *short, 0, lambda w: w), attend("plain", *short, 0, lambda w: w)
        )


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "T"), [(4, 1), (2, 21), (1, 16)])
def test_blockwise_equals_plain_and_so_do_its_gradients(monkeypatch, heads, T):
    """Blocks of 8 positions; 21 is no multiple of it."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 8)
    keys = jax.random.split(jax.random.key(0), 4)
    q = jax.random.normal(keys[0], (2, 4, T, 6))
    k, v = (jax.random.normal(key, (2, heads, T, 6)) for key in keys[1:3])
    weights = jax.random.normal(keys[3], q.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_grads(name, q, k, v):
        def value(q, k, v):
            y = attend(name, q, k, v, 0, lambda w: w)
            return (y * weights).sum(), y

        (_, y), grads = jax.value_and_grad(value, (0, 1, 2), has_aux=True)(q, k, v)
        return y, *grads

    for one, other in zip(
        value_and_grads("plain", q, k, v), value_and_grads("blockwise", q, k, v), strict=True
    ):
        # Sums of at most T queries of 4 heads, in another order, after some 10 roundings each.
        np.testing.assert_allclose(one, other, atol=10 * 4 * T * EPS * float(jnp.abs(one).max()))


@pytest.mark.slow
def test_a_model_with_every_option_computes_the_same_blockwise(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 3)
    options = {"positions": "rotary", "n_kv_head": 1, "qk_norm": True, "attention_scale": 0.3}
    options["inverse_layer_scale"] = True
    plain = dataclasses.replace(TINY, dropout=0.0, attention="plain", **options)
    blockwise = dataclasses.replace(plain, attention="blockwise")
    tokens_BT = jnp.arange(16).reshape(2, 8) % 11
    params = jax.jit(lambda: GPT(plain).init(jax.random.key(0), tokens_BT)["params"])()
    params = jax.tree.map(lambda x: 5 * x, params)
    ways = [
        jax.jit(forward, static_argnums=0).lower(c, params, tokens_BT) for c in (plain, blockwise)
    ]
    assert ["while" in way.as_text() for way in ways] == [False, True]
    expected, found = (way.compile()(params, tokens_BT) for way in ways)
    np.testing.assert_allclose(found, expected, atol=20 * 64 * EPS * float(abs(expected).max()))


def test_blockwise_needs_memory_that_grows_with_the_context_not_its_square():
    def temporary_bytes(name: str, T: int) -> int:
        shape = jax.ShapeDtypeStruct((1, 1, T, 8), jnp.float32)
        grad = jax.grad(lambda q, k, v: attend(name, q, k, v, 0, lambda w: w).sum(), (0, 1, 2))
        return (
            jax.jit(grad).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes
        )

    once, twice = (temporary_bytes("blockwise", T) for T in (2048, 4096))
    assert twice < 2.2 * once
    assert temporary_bytes("plain", 2048) > 2048**2 * 4
    assert (
        once < 4 * 4 * attention.QUERY_BLOCK * 2048
    )  # scores, weights and their gradients of a block


def test_fused_calls_cudnn_with_what_plain_attends_to(monkeypatch):
    """Where there is no GPU: the same call, computed by XLA in place of cuDNN."""
    real, asked = jax.nn.dot_product_attention, []

    def stand_in(*args, implementation, **kwargs):
        asked.append(implementation)
        return real(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    keys = jax.random.split(jax.random.key(0), 3)
    q = jax.random.normal(keys[0], (2, 4, 8, 8))
    k, v = (jax.random.normal(key, (2, 2, 8, 8)) for key in keys[1:])
    for length, calls in ((8, ["cudnn"]), (7, []), (1, [])):  # its gradient takes even lengths only
        asked.clear()
        short = [x[..., :length, :] for x in (q, k, v)]
        plain, fused = (
            jax.jit(lambda q, k, v, name=name: attend(name, q, k, v, 0, lambda w: w))(*short)
            for name in ("plain", "fused")
        )
        # Weighted means of 8 values of at most 4; scores of 8 terms of at most 16, after exp.
        np.testing.assert_allclose(fused, plain, atol=8 * 16 * EPS * 4)
        assert asked == calls

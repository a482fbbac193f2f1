"""The activations of a prompt are those that make the model's logits."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

import gpt_jax
from gpt_jax.config import Config
from gpt_jax.errors import UserError
from gpt_jax.model import GPT
from gpt_jax.model.layers import MLP, make_norm
from gpt_jax.run.load import Run
from gpt_jax.tokenizer import CharTokenizer

PROMPT = "bcafgab"
OPTIONS = {
    "nano": {},
    "modern": {
        "n_head": 4,
        "n_kv_head": 2,
        "positions": "rotary",
        "qk_norm": True,
        "norm": "rms",
        "activation": "swiglu",
        "tied": True,
        "inverse_layer_scale": True,
        "attention": "blockwise",
        "attention_dropout": 0.0,
        "remat": "full",
    },
}


def make_run(**options) -> Run:
    """A run in memory whose parameters are not alike."""
    model = dataclasses.replace(TINY, n_layer=3, embedding_dropout=0.1, **options)
    shapes = jax.eval_shape(GPT(model).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: random.normal(0.1, 0.5, x.shape).astype(np.float32), shapes["params"]
    )
    return Run(
        Path("run"), Config(model=model), {}, CharTokenizer("abcdefghijk"), GPT(model), params,
        0, [], {},
    )  # fmt: skip


@pytest.fixture(scope="module", params=OPTIONS)
def run(request):
    return make_run(**OPTIONS[request.param])


@pytest.fixture(scope="module")
def found(run):
    return gpt_jax.activations(run, PROMPT)


def test_shapes_and_dtypes_are_as_they_say(run, found):
    c, T = run.config.model, len(PROMPT)
    assert found.ids.tolist() == run.tokenizer.encode(PROMPT).tolist()
    assert found.residual.shape == (c.n_layer + 1, T, c.n_embd)
    assert found.attention.shape == (c.n_layer, c.n_head, T, T)
    assert found.logits.shape == (T, c.vocab_size)
    for array in (found.residual, found.attention, found.logits):
        assert type(array) is np.ndarray
        assert array.dtype == np.float32


def test_attention_weights_are_causal_and_sum_to_one(found):
    np.testing.assert_allclose(found.attention.sum(-1), 1, atol=1e-5)
    assert (found.attention >= 0).all()
    assert not np.triu(found.attention, 1).any()
    assert np.unique(found.attention[0].round(4), axis=0).shape[0] == found.attention.shape[1]


def test_weights_times_values_are_what_each_block_adds(run, found):
    """With the projection and the MLP, from the parameters: each block's step of the stream."""
    c, T = run.config.model, len(PROMPT)
    K, G = c.head_size, c.n_head // c.kv_heads
    for i in range(c.n_layer):
        p = jax.tree.map(lambda x, i=i: x[i], run.params["blocks"])

        def dense(x, q):
            return x @ q["kernel"] + q.get("bias", 0)

        x = found.residual[i]
        h = make_norm(c, "n").apply({"params": p["norm_1"]}, x)
        v = dense(h, p["attn"]["qkv"])[:, -c.kv_heads * K :].reshape(T, c.kv_heads, K)
        y = jnp.einsum("hts,shk->thk", found.attention[i], jnp.repeat(v, G, axis=1))
        x = x + dense(y.reshape(T, -1), p["attn"]["proj"])
        h = make_norm(c, "n").apply({"params": p["norm_2"]}, x)
        x += MLP(c).apply({"params": p["mlp"]}, h[None], deterministic=True)[0]
        np.testing.assert_allclose(found.residual[i + 1], x, rtol=1e-3, atol=1e-3)


def test_the_streams_ends_are_the_embeddings_and_the_logits(run, found):
    c, params = run.config.model, run.params
    logits = run.model.apply({"params": params}, found.ids[None])[0]
    np.testing.assert_allclose(found.logits, logits, rtol=1e-3, atol=1e-3)
    h = make_norm(c, "n").apply({"params": params["norm_f"]}, found.residual[-1])
    head = params["tokens"]["embedding"].T if c.tied else params["head"]["kernel"]
    bias = params["head_bias"] if c.tied else params["head"]["bias"]
    np.testing.assert_allclose(h @ head + bias, logits, rtol=1e-3, atol=1e-3)
    start = params["tokens"]["embedding"][found.ids]
    if c.positions == "learned":
        start = start + params["positions"][: len(PROMPT)]
    np.testing.assert_allclose(found.residual[0], start, rtol=1e-6)


def test_a_prompt_fits_the_context(run):
    with pytest.raises(UserError, match=r"has 9 tokens, and model\.block_size=8; use"):
        gpt_jax.activations(run, "abcabcabc")
    assert gpt_jax.activations(run, "").ids.tolist() == [0]

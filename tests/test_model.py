"""The model: its size, its causality, its dropout, the equality of its ways to the same logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpt_jax.config import ModelConfig
from gpt_jax.config_files import list_configs, load_config
from gpt_jax.model import GPT, dropout_mask, forward, init_cache

EPS = np.finfo(np.float32).eps


def init(config: ModelConfig, scale: float = 1.0):
    """Parameters of a tiny model; scaled up, so that its logits are far from uniform."""
    params = GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return jax.tree.map(lambda x: x * scale, params)


PARAMS = init(TINY, scale=5.0)
TOKENS_BT = jax.random.randint(jax.random.key(1), (3, TINY.block_size), 0, TINY.vocab_size)


def count(config: ModelConfig) -> int:
    shapes = jax.eval_shape(lambda: init(config))
    return sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", list_configs())
def test_every_config_has_the_parameter_count_it_states(name):
    model = dataclasses.replace(load_config(name).model, vocab_size=73)
    assert {"nano": 620_873, "nano_original": 620_873}[name] == count(model)


def test_initial_weights_have_the_originals_distribution():
    params = init(dataclasses.replace(load_config("nano").model, vocab_size=73))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if "bias" in name:
            assert (leaf == 0).all(), name
        elif "scale" in name:
            assert (leaf == 1).all(), name
        else:  # five standard errors of a mean and of a standard deviation
            assert abs(leaf.mean()) < 5 * 0.02 / leaf.size**0.5, name
            assert abs(leaf.std() / 0.02 - 1) < 5 / (2 * leaf.size) ** 0.5, name


def test_query_key_value_have_no_bias_and_the_rest_does():
    blocks = PARAMS["blocks"]
    assert set(blocks["attn"]["qkv"]) == {"kernel"}
    for layer in (blocks["attn"]["proj"], blocks["mlp"]["up"], blocks["mlp"]["down"]):
        assert set(layer) == {"kernel", "bias"}
    assert set(PARAMS["head"]) == {"kernel", "bias"}


def test_logits_equal_a_plain_numpy_transformer():
    """The same arithmetic, written again in float64 from the description of the model."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), PARAMS)
    c, tokens = TINY, np.asarray(TOKENS_BT)
    H, K = c.n_head, c.n_embd // c.n_head

    def norm(x, q):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-5) * q["scale"] + q["bias"]

    for b in range(len(tokens)):
        x = p["tokens"]["embedding"][tokens[b]] + p["positions"][: tokens.shape[1]]
        for i in range(c.n_layer):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
            qkv = norm(x, layer["norm_1"]) @ layer["attn"]["qkv"]["kernel"]
            q, k, v = (part.reshape(-1, H, K) for part in np.split(qkv, 3, axis=-1))
            y = np.zeros((len(x), H, K))
            for h in range(H):
                for t in range(len(x)):
                    scores = k[: t + 1, h] @ q[t, h] / np.sqrt(K)
                    weights = np.exp(scores - scores.max())
                    y[t, h] = weights @ v[: t + 1, h] / weights.sum()
            proj = layer["attn"]["proj"]
            x = x + y.reshape(len(x), -1) @ proj["kernel"] + proj["bias"]
            up, down = layer["mlp"]["up"], layer["mlp"]["down"]
            hidden = np.maximum(norm(x, layer["norm_2"]) @ up["kernel"] + up["bias"], 0)
            x = x + hidden @ down["kernel"] + down["bias"]
        logits = norm(x, p["norm_f"]) @ p["head"]["kernel"] + p["head"]["bias"]
        ours = forward(TINY, PARAMS, TOKENS_BT)[b]
        # float32 rounding through some 20 operations, each of sums of at most 64 terms
        np.testing.assert_allclose(ours, logits, atol=20 * 64 * EPS * np.abs(logits).max())


def test_no_position_depends_on_a_later_one():
    def logits(embedding):
        params = {**PARAMS, "tokens": {"embedding": embedding}}
        tokens = jnp.arange(TINY.block_size)[None]  # each position has an embedding of its own
        return forward(TINY, params, tokens)[0]

    jacobian_TVED = jax.jit(jax.jacrev(logits))(PARAMS["tokens"]["embedding"])
    reached_TE = jnp.abs(jacobian_TVED).sum(axis=(1, 3))[:, : TINY.block_size] > 0
    np.testing.assert_array_equal(reached_TE, np.tri(TINY.block_size, dtype=bool))


def test_cached_decoding_equals_the_full_forward_at_every_position():
    full_BTV = forward(TINY, PARAMS, TOKENS_BT)
    cache = init_cache(TINY, len(TOKENS_BT))
    for t in range(TINY.block_size):
        step_B1V, cache = forward(TINY, PARAMS, TOKENS_BT[:, t : t + 1], cache=cache)
        assert int(cache.length) == t + 1
        np.testing.assert_allclose(step_B1V[:, 0], full_BTV[:, t], atol=2e-5)


@pytest.mark.parametrize("first", [1, 3, 7])
def test_a_cache_may_be_filled_several_tokens_at_a_time(first):
    cache = init_cache(TINY, len(TOKENS_BT))
    one, cache = forward(TINY, PARAMS, TOKENS_BT[:, :first], cache=cache)
    two, cache = forward(TINY, PARAMS, TOKENS_BT[:, first:], cache=cache)
    full = forward(TINY, PARAMS, TOKENS_BT)
    np.testing.assert_allclose(jnp.concatenate([one, two], axis=1), full, atol=2e-5)


def test_last_only_equals_the_last_position_of_the_full_forward():
    full = forward(TINY, PARAMS, TOKENS_BT)
    last = forward(TINY, PARAMS, TOKENS_BT, last_only=True)
    assert last.shape == (3, 1, TINY.vocab_size)
    np.testing.assert_allclose(last[:, 0], full[:, -1], atol=2e-5)


def test_deterministic_by_default_and_dropout_needs_a_key():
    np.testing.assert_array_equal(
        forward(TINY, PARAMS, TOKENS_BT), GPT(TINY).apply({"params": PARAMS}, TOKENS_BT)
    )
    with pytest.raises(Exception, match="dropout"):
        forward(TINY, PARAMS, TOKENS_BT, deterministic=False)


def test_dropout_changes_with_its_key_alone():
    def apply(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return forward(TINY, PARAMS, TOKENS_BT, deterministic=False, rngs=rngs)

    np.testing.assert_array_equal(apply(0), apply(0))
    assert (apply(0) != apply(1)).any()
    assert (apply(0) != forward(TINY, PARAMS, TOKENS_BT)).any()


def test_attention_scale_is_what_it_says():
    standard = forward(TINY, PARAMS, TOKENS_BT)
    head_size = TINY.n_embd // TINY.n_head
    explicit = dataclasses.replace(TINY, attention_scale=head_size**-0.5)
    np.testing.assert_array_equal(forward(explicit, PARAMS, TOKENS_BT), standard)
    other = dataclasses.replace(TINY, attention_scale=TINY.n_embd**-0.5)
    assert np.abs(forward(other, PARAMS, TOKENS_BT) - standard).max() > 1e-3


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="9 tokens do not fit block_size=8"):
        forward(TINY, PARAMS, jnp.zeros((1, 9), jnp.int32))
    with pytest.raises(ValueError, match="vocab_size is 0"):
        forward(dataclasses.replace(TINY, vocab_size=0), PARAMS, TOKENS_BT)


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
    from gpt_jax.model import Dropout

    x = jnp.full((1000,), 3.0)
    y = Dropout(0.25).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y)) == {0.0, 4.0}

"""Sampling: the filters by hand, the distribution drawn, and the equality of cached and full."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.inference import decoding
from gpt_jax.inference.decoding import (
    Filters,
    decode,
    filter_logits,
    generate_tokens,
    prefill,
    sample_token,
)
from gpt_jax.model import GPT, forward, init_cache


@functools.cache
def init(config):
    """Parameters scaled up, so that logits are far from uniform."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.jit(
        lambda key: jax.tree.map(lambda x: x * 5, GPT(config).init(key, tokens)["params"])
    )(jax.random.key(0))


PARAMS = init(TINY)
PROBABILITIES = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = jnp.log(jnp.array(PROBABILITIES, jnp.float32))[None]
GREEDY = Filters(temperature=0.0)


jit_filter_logits = jax.jit(filter_logits)


def allowed(filters: Filters, logits=LOGITS) -> list[int]:
    return np.flatnonzero(np.isfinite(jit_filter_logits(logits, filters)[0])).tolist()


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(temperature=1.0), [0, 1, 2, 3, 4]),
        (Filters(temperature=1.0, top_k=1), [1]),
        (Filters(temperature=1.0, top_k=3), [1, 3, 4]),
        (Filters(temperature=1.0, top_k=5), [0, 1, 2, 3, 4]),
        (Filters(temperature=1.0, top_p=0.39), [1]),
        (Filters(temperature=1.0, top_p=0.41), [1, 3]),
        (Filters(temperature=1.0, top_p=0.69), [1, 3]),
        (Filters(temperature=1.0, top_p=0.71), [1, 3, 4]),
        (Filters(temperature=1.0, top_p=1e-9), [1]),
        (Filters(temperature=1.0, top_p=1.0), [0, 1, 2, 3, 4]),
        # 0.4 / 0.7 = 0.57 of what top_k leaves
        (Filters(temperature=1.0, top_k=2, top_p=0.56), [1]),
        (Filters(temperature=1.0, top_k=2, top_p=0.58), [1, 3]),
        # at half the temperature the probabilities are squared: 0.16 of 0.285 is 0.56
        (Filters(temperature=0.5, top_p=0.55), [1]),
        (Filters(temperature=0.5, top_p=0.57), [1, 3]),
    ],
)
def test_filters_by_hand(filters, expected):
    assert allowed(filters) == expected


def test_among_equals_the_smaller_id_goes_first():
    assert allowed(Filters(temperature=1.0, top_k=2), jnp.zeros((1, 4))) == [0, 1]
    assert allowed(Filters(temperature=1.0, top_p=0.5), jnp.zeros((1, 4))) == [0, 1]


@pytest.mark.slow
@given(
    st.sampled_from([1, 3, 12]).flatmap(  # each length is a program of its own
        lambda n: st.lists(st.floats(-20, 20, width=32), min_size=n, max_size=n)
    ),
    st.integers(1, 12),
    st.floats(0.01, 1.0),
)
@settings(deadline=None, derandomize=True, max_examples=60)
def test_something_is_always_left_and_it_is_the_likeliest(logits, k, p):
    logits = np.array([logits], np.float32)
    kept = allowed(Filters(temperature=1.0, top_k=k, top_p=p), logits)
    assert 1 <= len(kept) <= k
    assert int(logits.argmax()) in kept


@pytest.mark.parametrize(
    "filters",
    [
        Filters(temperature=1.0),
        Filters(temperature=0.7),
        Filters(temperature=2.0),
        Filters(temperature=1.0, top_k=3),
        Filters(temperature=0.8, top_p=0.8),
        Filters(temperature=1.5, top_k=4, top_p=0.9),
    ],
)
def test_tokens_are_drawn_with_the_right_frequencies(filters):
    """Chi-squared against the distribution written down independently; 4 degrees at most.

    P(chi-squared of 4 degrees > 25.7) is 4e-5; the key is fixed, so it passes or fails for good.
    """
    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    tokens = np.asarray(sample_token(keys, jnp.repeat(LOGITS, n, axis=0), filters))
    p = PROBABILITIES ** (1 / float(filters.temperature))
    p /= p.sum()
    order = np.argsort(-p)
    if filters.top_k:
        p[order[int(filters.top_k) :]] = 0
        p /= p.sum()
    if filters.top_p:
        before = np.concatenate([[0], np.cumsum(p[order])[:-1]])
        p[order[before >= float(filters.top_p)]] = 0
        p /= p.sum()
    counts = np.bincount(tokens, minlength=5)
    assert (counts[p == 0] == 0).all()
    expected = n * p[p > 0]
    assert ((counts[p > 0] - expected) ** 2 / expected).sum() < 25.7


compiled = jax.jit(forward, static_argnums=0)


def next_logits(context, config=TINY):
    """The full forward's logits after `context`; what is later does not reach earlier positions."""
    context = np.atleast_2d(np.asarray(context, np.int32))
    padded_BS = np.zeros((len(context), config.block_size), np.int32)
    padded_BS[:, : context.shape[1]] = context
    logits_BV = np.asarray(compiled(config, init(config), padded_BS))[:, context.shape[1] - 1]
    return logits_BV if len(logits_BV) > 1 else logits_BV[0]


def generate(prompt, n, filters=GREEDY, key=None, **kwargs):
    key = jax.random.key(0) if key is None else key
    parts = generate_tokens(
        TINY, PARAMS, np.array(prompt), key, filters, max_new_tokens=n, **kwargs
    )
    return np.concatenate(list(parts), axis=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "prompt", [[3], [1, 2, 3], list(range(7)), list(range(8)), list(range(11))]
)
def test_greedy_decoding_equals_the_full_forward_across_the_border(prompt):
    """Token by token, inside block_size = 8 and past it, from prompts on either side."""
    text = list(prompt)
    margins = []
    for _ in range(40):
        logits = np.asarray(next_logits(text[-TINY.block_size :]))
        second, first = np.sort(logits)[-2:]
        margins.append(first - second)
        text.append(int(logits.argmax()))
    # Equal tokens mean equal logits only where no choice hangs on rounding.
    assert min(margins) > 1e-4
    assert generate(prompt, 40)[0].tolist() == text[len(prompt) :]


@pytest.mark.slow
def test_only_the_filled_positions_of_the_cache_are_read(monkeypatch):
    """The same tokens, however many positions a program reads; each program is compiled once."""
    expected = generate([3], 12, num_samples=2, filters=Filters(temperature=1.0))
    monkeypatch.setattr(decoding, "SMALLEST_CACHE", 2)
    monkeypatch.setattr(decoding, "STREAM_TOKENS", 1)
    asked = []
    real = decoding.decode
    monkeypatch.setattr(
        decoding, "decode", lambda *args, **kw: asked.append(kw["filled"]) or real(*args, **kw)
    )
    found = generate([3], 12, num_samples=2, filters=Filters(temperature=1.0))
    np.testing.assert_array_equal(found, expected)
    assert asked == [2] + [4] * 2 + [8] * 4 + [None] * 5  # at last the context is full


@pytest.mark.parametrize(
    ("length", "block_size", "expected"),
    [(1, 64, 64), (33, 1024, 256), (256, 1024, 256), (257, 1024, 512), (1056, 1024, 1024),
     (513, 600, 600), (1025, 8192, 2048)],
)  # fmt: skip
def test_positions_of_the_cache_double(length, block_size, expected):
    assert decoding.filled_positions(length, block_size) == expected


@pytest.mark.slow
def test_logits_stay_equal_to_the_full_forwards_across_the_border():
    padded = np.zeros(TINY.block_size, np.int32)
    padded[:3] = text = [1, 2, 3]
    state = prefill(TINY, PARAMS, padded, np.int32(3), jax.random.key(5), batch_size=1)
    for _ in range(12):
        expected = next_logits(text[-TINY.block_size :])
        np.testing.assert_allclose(state.logits_BV[0], expected, atol=2e-5)
        mode = "cached" if len(text) < TINY.block_size else "recompute"
        state, token = decode(TINY, PARAMS, state, Filters(temperature=1.0), steps=1, mode=mode)
        text = [*text, int(token[0, 0])]


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 33, 39, 40])
def test_a_prompt_read_in_parts_equals_the_full_forward(length):
    """Parts of 16 tokens, of a block_size that they don't divide: the last part overlaps."""
    config = dataclasses.replace(TINY, block_size=40)
    assert decoding.PREFILL_TOKENS == 16
    params = init(config)
    window = np.arange(40, dtype=np.int32) ** 2 % 11
    state = prefill(config, params, window, np.int32(length), jax.random.key(5), batch_size=3)
    full, cache = compiled(config, params, window[None], cache=init_cache(config, 1))
    for row in range(3):
        np.testing.assert_allclose(state.logits_BV[row], full[0, length - 1], atol=2e-5)
    for ours, whole in zip(state.cache.k_NSK, cache.k_NSK, strict=True):
        expected = np.tile(whole[:, :length], (3, 1, 1))
        np.testing.assert_allclose(ours[:, :length], expected, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "gelu", "qkv_bias": True, "head_bias": False, "tied": True},
        {"norm": "rms", "positions": "rotary", "qk_norm": True, "n_kv_head": 1, "bias": False},
    ],
    ids=["gpt2", "modern"],
)
def test_other_models_decode_as_their_full_forward_does_across_the_border(options):
    config = dataclasses.replace(TINY, **options)
    params = init(config)
    padded = np.zeros(config.block_size, np.int32)
    padded[:3] = [1, 2, 3]
    texts = np.array([[1, 2, 3]] * 2)
    state = prefill(config, params, padded, np.int32(3), jax.random.key(5), batch_size=2)
    for _ in range(10):
        expected_BV = next_logits(texts[:, -config.block_size :], config)
        np.testing.assert_allclose(state.logits_BV, expected_BV, atol=2e-5)
        mode = "cached" if texts.shape[1] < config.block_size else "recompute"
        state, tokens_B1 = decode(
            config, params, state, Filters(temperature=1.0), steps=1, mode=mode
        )
        texts = np.concatenate([texts, tokens_B1], axis=1)
    assert (texts[0] != texts[1]).any()


@pytest.mark.slow
def test_one_compiled_program_serves_any_prompt_length():
    compiled_decode = decoding.jit_decode("cpu")
    prefill._clear_cache()
    compiled_decode._clear_cache()
    for prompt in ([1], [1, 2, 3], list(range(8)), list(range(10)) * 3):
        generate(prompt, 5, Filters(temperature=0.9, top_k=4))
        generate(prompt, 40, Filters(temperature=0.2, top_k=2))
    assert prefill._cache_size() == 1
    assert compiled_decode._cache_size() == 2  # inside the context, and past it


@pytest.mark.slow
def test_a_stream_depends_on_its_number_and_the_key_alone():
    warm = Filters(temperature=1.0)
    many = generate([1, 2], 50, warm, num_samples=4)
    assert many.shape == (4, 50)
    np.testing.assert_array_equal(generate([1, 2], 50, warm, num_samples=2), many[:2])
    assert len({tuple(row) for row in many}) == 4
    np.testing.assert_array_equal(generate([1, 2], 33, warm), many[:1, :33])
    other = generate([1, 2], 50, warm, key=jax.random.key(1))
    assert (other != many[:1]).any()


@pytest.mark.slow
def test_refill_is_exact_inside_the_context_and_sees_less_past_it():
    prompt = [1, 2, 3]
    room = TINY.block_size - len(prompt) + 1  # the last of these is drawn from a full context
    exact, refilled = generate(prompt, 60), generate(prompt, 60, window="refill")
    np.testing.assert_array_equal(exact[:, :room], refilled[:, :room])

    text, context = list(prompt), list(prompt)  # what refill should do, written out
    for _ in range(60):
        text.append(int(next_logits(context).argmax()))
        if len(context) == TINY.block_size:
            context = context[-(TINY.block_size // 2 - 1) :]
        context.append(text[-1])
    assert refilled[0].tolist() == text[len(prompt) :]


@pytest.mark.slow
def test_a_block_of_one_token_works():
    config = dataclasses.replace(TINY, block_size=1)
    params = init(config)
    for window in ("exact", "refill"):
        parts = generate_tokens(
            config,
            params,
            np.array([3]),
            jax.random.key(0),
            GREEDY,
            max_new_tokens=5,
            window=window,
        )
        assert np.concatenate(list(parts), axis=1).shape == (1, 5)

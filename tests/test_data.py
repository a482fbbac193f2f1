"""The sampler and the windows: every offset valid, every start reachable, every token once."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.data import gather_batch, make_splits, make_windows, sample_starts, split_text
from gpt_jax.errors import UserError

checked = settings(deadline=None, derandomize=True, max_examples=60)


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 300), st.integers(1, 64))
@checked
def test_every_start_is_valid_and_a_key_gives_one_batch(seed, block_size, extra, batch_size):
    n_tokens = block_size + extra
    key = jax.random.key(seed)
    starts = np.asarray(sample_starts(key, n_tokens, block_size, batch_size))
    assert starts.shape == (batch_size,)
    assert starts.dtype == np.int32
    assert starts.min() >= 0
    assert (starts + block_size + 1).max() <= n_tokens
    np.testing.assert_array_equal(starts, sample_starts(key, n_tokens, block_size, batch_size))


@given(st.integers(1, 8), st.integers(1, 12))
@checked
def test_every_start_is_reachable_and_equally_likely(block_size, extra):
    draws = 4000
    starts = sample_starts(jax.random.key(0), block_size + extra, block_size, draws)
    counts = np.bincount(np.asarray(starts), minlength=extra)
    assert len(counts) == extra
    p = 1 / extra
    assert abs(counts - draws * p).max() <= 5 * (draws * p * (1 - p)) ** 0.5


def test_a_batch_is_the_same_from_the_device_and_from_the_host():
    tokens = np.arange(100, dtype=np.int32)
    starts = sample_starts(jax.random.key(3), len(tokens), 8, 16)
    on_device = gather_batch(jax.numpy.asarray(tokens), starts, 8)
    on_host = gather_batch(tokens, np.asarray(starts), 8)
    assert isinstance(on_host, np.ndarray)
    np.testing.assert_array_equal(on_device, on_host)
    np.testing.assert_array_equal(on_host, np.asarray(starts)[:, None] + np.arange(9))


def test_different_keys_give_different_batches():
    a, b = (sample_starts(jax.random.key(s), 10_000, 8, 16) for s in (0, 1))
    assert (a != b).any()


@given(st.integers(2, 200), st.integers(1, 20), st.data())
@checked
def test_windows_predict_every_token_but_the_first_once(n_tokens, block_size, data):
    stride = data.draw(st.integers(1, block_size))
    starts, firsts, lasts = make_windows(n_tokens, block_size, stride)
    predicted = [
        start + i + 1
        for start, first, last in zip(starts, firsts, lasts, strict=True)
        for i in range(first, last)
    ]
    assert predicted == list(range(1, n_tokens))
    assert (firsts >= 0).all()
    assert (lasts <= block_size).all()
    assert (firsts[1:] >= block_size - stride).all()  # so much context at least


@pytest.mark.parametrize("stride", [0, -1, 9])
def test_a_stride_outside_the_window_is_refused(stride):
    with pytest.raises(UserError, match=f"stride={stride} must be between 1 and block_size=8"):
        make_windows(100, 8, stride)


@given(st.text(), st.floats(0, 1, exclude_min=True, exclude_max=True))
@checked
def test_a_text_is_cut_by_characters(text, fraction):
    texts = split_text(text, fraction)
    assert list(texts) == ["train", "val"]
    assert texts["train"] + texts["val"] == text
    assert len(texts["train"]) == int(fraction * len(text))


def test_splits_know_their_bytes():
    tokens = {"train": np.array([0, 1, 1, 0, 2]), "val": np.array([2, 2, 2, 0, 0])}
    splits = make_splits(tokens, np.array([1, 2, 3], np.int32), block_size=4)
    np.testing.assert_array_equal(splits["train"].tokens, tokens["train"])
    np.testing.assert_array_equal(splits["val"].tokens, tokens["val"])
    assert (splits["train"].n_bytes, splits["val"].n_bytes) == (9, 11)
    assert splits["val"].bytes_per_token == 11 / 5


@pytest.mark.parametrize(("cut", "side"), [(45, "val"), (5, "train")])
def test_a_split_too_short_for_one_sequence_is_refused(cut, side):
    tokens = {"train": np.zeros(cut, np.int32), "val": np.zeros(50 - cut, np.int32)}
    with pytest.raises(UserError, match=rf"too short: 5 of its 50 tokens are for {side}.*needs 9"):
        make_splits(tokens, np.ones(1, np.int32), block_size=8)

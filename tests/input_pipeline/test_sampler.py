"""The sampler and the windows: every offset valid, every start reachable, every token once."""

import os
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.inference.windows import count_windows, make_windows
from gpt_jax.input_pipeline import sampler as module
from gpt_jax.input_pipeline.dataset import (
    Component,
    Dataset,
    count_bytes,
    datasets_of_arrays,
    split_text,
)
from gpt_jax.input_pipeline.gather import (
    ROW_TOKENS,
    gather_batch,
    gather_on_device,
    gather_on_host,
    put_tokens_on_devices,
)
from gpt_jax.input_pipeline.permutation import divmod_product, permute
from gpt_jax.input_pipeline.sampler import (
    address_segments,
    make_sampler,
    sample_offsets,
    train_indices,
)

checked = settings(deadline=None, derandomize=True, max_examples=60)


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 300), st.integers(1, 64))
@checked
def test_every_start_is_valid_and_a_key_gives_one_batch(seed, block_size, extra, batch_size):
    n_tokens = block_size + extra
    key = jax.random.key(seed)
    starts = np.asarray(sample_offsets(key, n_tokens, block_size, batch_size))
    assert starts.shape == (batch_size,)
    assert starts.dtype == np.int32
    assert starts.min() >= 0
    assert (starts + block_size + 1).max() <= n_tokens
    np.testing.assert_array_equal(starts, sample_offsets(key, n_tokens, block_size, batch_size))


@given(st.integers(1, 8), st.integers(1, 12))
@checked
def test_every_start_is_reachable_and_equally_likely(block_size, extra):
    draws = 4000
    starts = sample_offsets(jax.random.key(0), block_size + extra, block_size, draws)
    counts = np.bincount(np.asarray(starts), minlength=extra)
    assert len(counts) == extra
    p = 1 / extra
    assert abs(counts - draws * p).max() <= 5 * (draws * p * (1 - p)) ** 0.5


def test_a_batch_is_the_same_from_the_device_and_from_the_host():
    tokens = np.arange(100, dtype=np.int32)
    starts = sample_offsets(jax.random.key(3), len(tokens), 8, 16)
    on_device = gather_batch(jax.numpy.asarray(tokens), starts, 8)
    on_host = gather_batch(tokens, np.asarray(starts), 8)
    assert isinstance(on_host, np.ndarray)
    np.testing.assert_array_equal(on_device, on_host)
    np.testing.assert_array_equal(on_host, np.asarray(starts)[:, None] + np.arange(9))


def test_different_keys_give_different_batches():
    a, b = (sample_offsets(jax.random.key(s), 10_000, 8, 16) for s in (0, 1))
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


@pytest.mark.slow
@given(st.text(), st.floats(0, 1, exclude_min=True, exclude_max=True))
@checked
def test_a_text_is_cut_by_characters(text, fraction):
    texts = split_text(text, fraction)
    assert list(texts) == ["train", "val"]
    assert texts["train"] + texts["val"] == text
    assert len(texts["train"]) == int(fraction * len(text))


def test_splits_know_their_bytes():
    tokens = {"train": np.array([0, 1, 1, 0, 2]), "val": np.array([2, 2, 2, 0, 0])}
    splits = datasets_of_arrays(tokens, np.array([1, 2, 3], np.int32), block_size=4)
    np.testing.assert_array_equal(splits["train"].components[0].shards[0], tokens["train"])
    np.testing.assert_array_equal(splits["val"].components[0].shards[0], tokens["val"])
    assert (splits["train"].components[0].n_bytes, splits["val"].components[0].n_bytes) == (9, 11)
    assert splits["val"].bytes_per_token == 11 / 5


@pytest.mark.parametrize(("cut", "side"), [(45, "val"), (5, "train")])
def test_a_split_too_short_for_one_sequence_is_refused(cut, side):
    tokens = {"train": np.zeros(cut, np.int32), "val": np.zeros(50 - cut, np.int32)}
    with pytest.raises(UserError, match=rf"too short: 5 of its 50 tokens are for {side}.*needs 9"):
        datasets_of_arrays(tokens, np.ones(1, np.int32), block_size=8)


# --- several segments -----------------------------------------------------------------------------


@given(st.lists(st.integers(0, 60), min_size=1, max_size=4), st.integers(1, 7), st.integers(7, 20))
@checked
def test_segments_have_every_offset_and_every_sequence_of_each_shard_once(sizes, block_size, most):
    shards = [1000 * i + np.arange(n) for i, n in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SEGMENT_STARTS", most)
        segments = address_segments(shards, block_size)
    offsets = [int(t) for segment in segments for t in segment[: len(segment) - block_size]]
    assert offsets == [int(t) for shard in shards for t in shard[: max(0, len(shard) - block_size)]]
    assert all(len(segment) - block_size <= most for segment in segments)
    firsts = [
        int(t) for p in segments for t in p[: len(p) - 1 : block_size][: (len(p) - 1) // block_size]
    ]
    by_hand = [
        1000 * i + t for i, n in enumerate(sizes) for t in range(0, n - block_size, block_size)
    ]
    assert firsts == by_hand


def test_one_segment_is_sampled_as_a_text_is():
    """Bit for bit: nano's batches are those of `sample_offsets` and the step's key."""
    sampler, segments = make_sampler(Dataset.from_shards((np.arange(500),), 500), 8, 32)
    assert len(segments) == 1
    key = jax.random.key(7)
    numbers, offsets = sampler.step_indices(key, np.int32(3))
    assert not numbers.any()
    np.testing.assert_array_equal(offsets, sample_offsets(jax.random.fold_in(key, 3), 500, 8, 32))


def test_every_offset_of_every_shard_is_equally_likely():
    sizes, draws = (9, 30, 8, 21), 40_000  # 1, 22, 0 and 13 offsets of sequences of 8
    sampler, _ = make_sampler(Dataset.from_shards(tuple(map(np.arange, sizes)), 68), 8, draws)
    numbers, offsets = map(np.asarray, jax.jit(sampler.random_indices)(jax.random.key(0)))
    counts = np.bincount(100 * numbers + offsets, minlength=300)
    assert (counts[:1].size, counts[100:122].size, counts[200:213].size) == (1, 22, 13)
    found = np.concatenate([counts[:1], counts[100:122], counts[200:213]])
    assert found.sum() == draws
    p = 1 / 36
    assert abs(found - draws * p).max() <= 5 * (draws * p * (1 - p)) ** 0.5


def test_rows_come_from_the_corpora_of_a_mixture_by_their_weights():
    """Whatever the corpora's sizes; each count is binomial, so within 5 standard deviations."""
    draws, weight = 20_000, Fraction("0.7")
    small = Component(weight, (np.arange(20),), 20)
    large = Component(1 - weight, (np.arange(300), np.arange(500)), 800)
    sampler, _ = make_sampler(Dataset((small, large)), 8, draws)
    numbers = np.asarray(jax.jit(sampler.random_indices)(jax.random.key(1))[0])
    for number, p in enumerate((0.7, 0.3 * 292 / 784, 0.3 * 492 / 784)):
        assert abs((numbers == number).sum() - draws * p) <= 5 * (draws * p * (1 - p)) ** 0.5


def test_a_mixtures_bytes_are_those_of_the_tokens_drawn():
    first = Component(Fraction(1, 4), (np.arange(10),), 20)
    second = Component(Fraction(3, 4), (np.arange(6),), 24)
    assert Dataset((first, second)).bytes_per_token == 0.25 * 2 + 0.75 * 4
    assert Dataset((first, second)).n_tokens == 16


@pytest.mark.parametrize("order", ["random", "epochs"])
def test_a_file_of_nine_billion_tokens_is_sampled_to_its_end(tmp_path, order):
    """OpenWebText in one sparse file: 18 GB long, a few bytes on disk."""
    n, block_size, draws = 9_035_582_198, 1024, 4096
    path = tmp_path / "train.bin"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 2 * n)
    tokens = np.memmap(path, "<u2", "r+")
    sampler, segments = make_sampler(Dataset.from_shards((tokens,), None), block_size, draws, order)
    assert sum(len(segment) - block_size for segment in segments) == n - block_size
    assert sampler.n_sequences == (n - 1) // block_size
    numbers, offsets = map(
        np.asarray, jax.jit(sampler.step_indices)(jax.random.key(0), np.int32(5))
    )
    assert numbers.dtype == offsets.dtype == np.int32
    stride = 2**30 // block_size * block_size
    positions = numbers.astype(np.int64) * stride + offsets
    assert positions.max() + block_size < n
    # The share of draws in the last tenth is a tenth, within 5 standard deviations; so the last
    # thousandth is there too, but for a probability of (1 - 0.001)^4096 = 1.7%.
    p = 0.1
    late = (positions > 0.9 * (n - block_size)).sum()
    assert abs(late - draws * p) <= 5 * (draws * p * (1 - p)) ** 0.5
    assert positions.max() > 0.999 * n
    row = int(positions.argmax())
    tokens[positions[row] : positions[row] + block_size + 1] = 1 + np.arange(block_size + 1)
    batch = gather_on_host(segments, (numbers[[row]], offsets[[row]]), block_size)
    np.testing.assert_array_equal(batch, [1 + np.arange(block_size + 1)])


def test_batches_from_several_segments_are_the_same_from_the_devices_and_from_the_host():
    sizes = (70_000, 66_000, ROW_TOKENS)
    shards = [(np.arange(n) * (7 + i) % 50_000).astype(np.uint16) for i, n in enumerate(sizes)]
    sampler, segments = make_sampler(Dataset.from_shards(tuple(shards), None), 8, 64)
    tokens = put_tokens_on_devices(segments, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    assert tokens.shape == (2 + 2 + 1, ROW_TOKENS)
    assert tokens.dtype == np.uint16
    steps = np.arange(5, dtype=np.int32)
    indices = jax.jit(lambda key: train_indices(sampler, key, steps))(jax.random.key(0))
    numbers, offsets = map(np.asarray, indices)
    assert set(numbers.reshape(-1).tolist()) == {0, 1, 2}
    assert (offsets // ROW_TOKENS).any()  # also beyond a row's end
    on_host = gather_on_host(segments, indices, 8)
    np.testing.assert_array_equal(on_host, gather_on_device(tokens, indices, sampler))
    by_hand = shards[numbers[2, 3]][offsets[2, 3] : offsets[2, 3] + 9]
    np.testing.assert_array_equal(on_host[2, 3], by_hand)


# --- epochs ---------------------------------------------------------------------------------------


@given(st.integers(0, 2**31 - 1), st.integers(1, 2**16), st.integers(1, 2**31 - 1))
@checked
def test_a_product_of_64_bits_is_divided_exactly(a, b, n):
    quotient, remainder = divmod_product(np.uint32(a), b, n)
    assert (int(quotient) - (a * b) // n) % 2**32 == 0
    assert int(remainder) == a * b % n


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 64, 65, 1000])
def test_a_shuffle_is_a_permutation(n):
    shuffle = jax.jit(jax.vmap(lambda key, i: permute(key, i, n), (None, 0)))
    index = np.arange(n, dtype=np.uint32)
    shuffles = np.array([shuffle(jax.random.key(s), index) for s in range(20)])
    np.testing.assert_array_equal(np.sort(shuffles), np.tile(index, (20, 1)))
    if n >= 64:
        assert len({tuple(s) for s in shuffles}) == 20
        # The order is uniform: each shuffle's rank correlation with the order has mean 0 and
        # standard deviation 1 / sqrt(n - 1), so the mean of 20 is within 5 / sqrt(20 (n - 1)).
        correlations = [np.corrcoef(index, s)[0, 1] for s in shuffles]
        assert abs(np.mean(correlations)) < 5 / (20 * (n - 1)) ** 0.5


def test_a_shuffle_of_the_most_sequences():
    n = 2**31 - 1
    index = n - 1 - np.arange(1000, dtype=np.uint32)
    shuffled = jax.jit(jax.vmap(lambda i: permute(jax.random.key(0), i, n)))(index)
    assert int(shuffled.max()) < n
    assert len(set(np.asarray(shuffled).tolist())) == 1000


@pytest.mark.parametrize(("sizes", "batch_size"), [((50,), 4), ((41, 8, 30, 9), 5), ((20,), 7)])
def test_every_epoch_has_every_sequence_once_reshuffled_each_time(sizes, batch_size):
    shards = tuple(1000 * i + np.arange(n) for i, n in enumerate(sizes))
    sampler, segments = make_sampler(Dataset.from_shards(shards, None), 8, batch_size, "epochs")
    every = sorted(1000 * i + t for i, n in enumerate(sizes) for t in range(0, n - 8, 8))
    n, epochs = len(every), 6
    assert sampler.n_sequences == n
    steps = np.arange(-(-n * epochs // batch_size), dtype=np.int32)
    indices = jax.jit(lambda key: train_indices(sampler, key, steps))(jax.random.key(0))
    firsts = (
        gather_on_host(segments, indices, 8)[..., 0].reshape(-1)[: n * epochs].reshape(epochs, n)
    )
    np.testing.assert_array_equal(np.sort(firsts), [every] * epochs)
    assert len({tuple(order) for order in firsts}) > 1
    if n >= 6:  # 6 orders of 6! or more: two equal ones have a probability of 2% at most
        assert len({tuple(order) for order in firsts}) == epochs


def test_epochs_are_counted_beyond_32_bits():
    """Step 2^30 of batches of 1000: the sequences that Python's integers give."""
    step, batch_size, n = 2**30, 1000, 777
    sampler, _ = make_sampler(
        Dataset.from_shards((np.zeros(8 * n + 1),), None), 8, batch_size, "epochs"
    )
    key = jax.random.key(0)
    numbers, offsets = jax.jit(sampler.step_indices)(key, np.int32(step))
    assert not numbers.any()
    shuffle = jax.jit(lambda epoch, i: permute(jax.random.fold_in(key, epoch), i, n))
    for row in (0, 1, 500, 999):
        epoch, position = divmod(step * batch_size + row, n)
        assert int(offsets[row]) == 8 * int(shuffle(np.uint32(epoch), np.uint32(position)))


def test_an_epoch_too_long_to_count_is_refused():
    tokens = np.broadcast_to(np.uint16(0), (2**31 + 1,))  # takes two bytes
    with pytest.raises(UserError, match=r"epoch of 2,147,483,648 sequences .*data.order=random"):
        make_sampler(Dataset.from_shards((tokens,), None), 1, 4, "epochs")
    assert (
        make_sampler(Dataset.from_shards((tokens,), None), 2, 4, "epochs")[0].n_sequences == 2**30
    )


# --- evaluation -----------------------------------------------------------------------------------


@given(st.integers(2, 200), st.integers(1, 20), st.data())
@checked
def test_some_windows_are_those_of_all(n_tokens, block_size, draw):
    stride = draw.draw(st.integers(1, block_size))
    n_windows = count_windows(n_tokens, block_size, stride)
    cut = draw.draw(st.integers(0, n_windows))
    parts = [
        make_windows(n_tokens, block_size, stride, windows)
        for windows in (range(cut), range(cut, n_windows))
    ]
    whole = make_windows(n_tokens, block_size, stride)
    for i in range(3):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), whole[i])


def test_bytes_are_counted_and_ids_beyond_the_vocabulary_found():
    shards = (np.array([0, 1, 2], np.uint16), np.array([2, 2], np.uint16))
    assert count_bytes(shards, np.array([1, 2, 30], np.int32)) == 93
    with pytest.raises(UserError, match=r"id 2 .* beyond the tokenizer's 2 tokens"):
        count_bytes(shards, np.array([1, 2], np.int32))

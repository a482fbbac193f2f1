"""Sequences of integers as a corpus, with a loss mask or without."""

import os

import jax
import numpy as np
import pytest

import gpt_jax
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.corpus import load_corpus
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.input_pipeline.gather import gather_on_host
from gpt_jax.input_pipeline.loss_mask import MaskedTokens, count_targets, unmark, with_mask
from gpt_jax.input_pipeline.sampler import eval_indices, make_sampler
from gpt_jax.input_pipeline.shards.background import SumCheck
from gpt_jax.input_pipeline.shards.manifest import ShardError
from gpt_jax.input_pipeline.shards.reader import open_shards, verify_shards

IDS = np.random.default_rng(0).integers(0, 9, 600)
MASK = np.random.default_rng(1).random(600) < 0.3


def write(tmp_path, train=IDS, val=IDS[:90], name="corpus", **values):
    folder = gpt_jax.write_sequences(tmp_path / name, train, val, **{"vocab_size": 9, **values})
    verify_shards(open_shards(folder))
    return folder


def joined(opened, split="train"):
    return np.concatenate(opened.shards[split]).tolist()


def test_what_is_written_is_read_without_a_mask(tmp_path):
    opened = open_shards(write(tmp_path, shard_tokens=256))
    assert (joined(opened), opened.masks) == (IDS.tolist(), {"train": (), "val": ()})
    assert (opened.tokenizer.names, opened.vocab_size) == ((), 9)
    assert opened.n_documents == {"train": 1, "val": 1}
    assert not list((tmp_path / "corpus").glob("*.mask"))


def test_what_is_written_is_read_with_a_mask(tmp_path):
    opened = open_shards(write(tmp_path, train_mask=MASK, shard_tokens=256))
    assert [len(mask) for mask in opened.masks["train"]] == [256, 256, 88]
    assert np.concatenate(opened.masks["train"]).tolist() == MASK.astype(int).tolist()
    assert opened.masks["val"] == ()
    counted = [entry.mask.counted for entry in opened.manifest.entries("train")]
    assert sum(counted) == MASK.sum()
    assert os.path.getsize(tmp_path / "corpus" / "train-00000.mask") == 256


@pytest.mark.parametrize(
    "form",
    [
        lambda x: x.reshape(60, 10), lambda x: list(x.reshape(60, 10)), lambda x: x.tolist(),
        lambda x: [x[:7].tolist(), x[7:].astype(np.uint8), []],
        lambda x: (part for part in np.split(x, [1, 500])), lambda x: x.astype(np.int8),
    ],
)  # fmt: skip
def test_sequences_come_in_any_form(tmp_path, form):
    folder = write(tmp_path, form(IDS), train_mask=form(MASK.astype(int)))
    opened = open_shards(folder)
    assert joined(opened) == IDS.tolist()
    assert np.concatenate(opened.masks["train"]).tolist() == MASK.astype(int).tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": IDS + 1}, "train has the id 9, and ids are from 0 to 8"),
        ({"val": [-1, 2]}, "val has the id -1, and"),
        ({"train": IDS / 2}, "train must be arrays of integers in a row, and one is float64"),
        ({"train": "123"}, "train must be an array of integers"),
        ({"train": 7}, "train must be an array of integers"),
        ({"train": IDS.reshape(2, 3, 100)}, "train must be arrays of integers in a row, and one"),
        ({"train": []}, "train has no token that counts as a target"),
        ({"val": [[], []]}, "val has no token that counts as a target"),
        ({"train_mask": MASK[1:]}, "train_mask must have a 0 or 1 for each token of train"),
        ({"train_mask": [MASK, MASK]}, "train_mask has more sequences than train"),
        ({"train_mask": MASK * 2}, "train_mask must have a 0 or 1 for each"),
        ({"train_mask": MASK * 0.5}, "train_mask must be arrays of integers"),
        ({"val_mask": np.zeros(90, int)}, "val has no token that counts as a target"),
        ({"vocab_size": None}, "vocab_size=None must be a whole number, or names be given"),
        ({"vocab_size": 2.5}, "vocab_size=2.5 must be a whole number"),
        ({"vocab_size": 2**30}, "must be in"),
        ({"names": ["a"]}, "1 names are not one for each of 9 ids"),
        ({"names": range(9)}, "names must be texts"),
        ({"names": [*"abcdefgh", "i j"]}, "the name 'i j' must be a word"),
        ({"shard_tokens": 0}, "shard_tokens=0 must be between"),
        ({"name": "a\0b"}, "this path is not UTF-8"),
        ({"name": "x" * 300}, "can't be written: File name too long"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, values, message):
    with pytest.raises(UserError, match=message) as caught:
        write(tmp_path, **values)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_stays_as_it_is(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine").write_text("x")
    with pytest.raises(UserError, match="is in use; choose a new folder"):
        write(tmp_path)
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["mine"]


def test_an_empty_folder_is_taken_and_numpys_numbers_are_numbers(tmp_path):
    (tmp_path / "corpus").mkdir()
    assert open_shards(write(tmp_path, vocab_size=np.int64(9))).vocab_size == 9


def test_the_mask_is_part_of_what_identifies_a_corpus(tmp_path):
    masks = [None, MASK, np.roll(MASK, 1)]
    folders = [write(tmp_path, name=str(i), train_mask=mask) for i, mask in enumerate(masks)]
    assert len({load_corpus(str(folder)).sha256 for folder in folders}) == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "train-00000.mask can't be read: No such file"),
        (lambda p: os.truncate(p, 599), "train-00000.mask has 599 bytes, and manifest.json says"),
        (lambda p: p.write_bytes(b"\2" * 600), "train-00000.mask has another sha256"),
    ],
)
def test_a_damaged_mask_is_named(tmp_path, damage, message):
    folder = write(tmp_path, train_mask=MASK)
    damage(folder / "train-00000.mask")
    with pytest.raises(ShardError, match=message):
        verify_shards(open_shards(folder))


def test_a_changed_mask_is_found_while_training(tmp_path):
    folder = write(tmp_path, train_mask=MASK)
    path = folder / "train-00000.mask"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    check = SumCheck([open_shards(folder)])
    with pytest.raises(ShardError, match=r"train-00000.mask has another sha256"):
        check.finish(60)


@pytest.mark.parametrize("vocab_size", [9, 2**15, 2**15 + 1, 2**24])
def test_marked_ids_are_the_ids_and_the_mask(vocab_size):
    ids = np.array([0, 1, vocab_size - 1, vocab_size - 1], np.uint32)
    (tokens,) = with_mask([ids], [np.array([1, 0, 1, 0], np.uint8)], vocab_size)
    marked = np.asarray(tokens[0:4])
    assert marked.tolist() == [0, -2, vocab_size - 1, -vocab_size]
    assert tokens.dtype == (np.int16 if vocab_size <= 2**15 else np.int32)
    np.testing.assert_array_equal(np.asarray(tokens, tokens.dtype), marked)  # nothing is cut off
    back, counts = unmark(marked)
    assert (back.tolist(), counts.tolist()) == (ids.tolist(), [True, False, True, False])
    assert (len(tokens), count_targets(tokens), count_targets(ids)) == (4, 1, 3)
    assert tokens.nbytes == 4 * tokens.dtype.itemsize


@pytest.mark.parametrize("order", ["random", "epochs"])
@pytest.mark.parametrize("is_masked", [True, False])
def test_evaluations_begin_where_masked_sequences_of_an_epoch_do(order, is_masked):
    ids = IDS.astype(np.uint16)
    shard = MaskedTokens(ids, MASK.astype(np.uint8), 9) if is_masked else ids
    sampler, segments = make_sampler(Dataset.from_shards([shard[:33], shard], 0), 8, 4, order)
    numbers, offsets = eval_indices([sampler], jax.random.key(0), 100)[0]
    found = set(zip(np.ravel(numbers).tolist(), np.ravel(offsets).tolist(), strict=True))
    every = {(i, at) for i, x in enumerate(segments) for at in range(0, len(x) - 8, 8)}
    if is_masked and order == "epochs":
        assert found <= every
        assert len(found) > len(every) / 2  # 400 draws of 78 sequences
        assert {i for i, _ in found} == {0, 1}
    else:
        assert any(at % 8 for _, at in found)


def test_a_batch_has_the_mask_of_its_tokens():
    tokens = MaskedTokens(IDS.astype(np.uint16), MASK.astype(np.uint8), 9)
    dataset = Dataset.from_shards([tokens[:300], tokens[300:]], 0)
    sampler, segments = make_sampler(dataset, 8, 4)
    assert sampler.is_masked
    assert not make_sampler(Dataset.from_shards([IDS], 0), 8, 4)[0].is_masked
    indices = np.array([0, 1, 1]), np.array([5, 0, 291])
    ids, counts = unmark(gather_on_host(segments, indices, 8))
    for row, at in enumerate((5, 300, 591)):
        assert ids[row].tolist() == IDS[at : at + 9].tolist()
        assert counts[row].tolist() == MASK[at : at + 9].tolist()

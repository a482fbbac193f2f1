"""A shard that was changed in its middle is found while training begins."""

import numpy as np
import pytest

from gpt_jax.input_pipeline.shards import memmap
from gpt_jax.input_pipeline.shards.background import SumCheck
from gpt_jax.input_pipeline.shards.manifest import ShardError
from gpt_jax.input_pipeline.shards.reader import open_shards
from gpt_jax.input_pipeline.shards.writer import ShardWriter
from gpt_jax.tokenizer import CharTokenizer

N = 3 * memmap.CHECKED_TOKENS


@pytest.fixture
def folder(tmp_path):
    writer = ShardWriter(tmp_path, CharTokenizer("abcd"), N)
    writer.append("train", np.arange(2 * N) % 4)
    writer.append("val", np.arange(90) % 4)
    writer.finish("char", {"train": 1, "val": 1})
    return tmp_path


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_sound_shards(folder):
    check = SumCheck([open_shards(folder)])
    assert check.finish(60)
    check.raise_if_damaged()


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00001.bin", "val-00000.bin"])
def test_a_changed_middle_is_named(folder, name):
    flip(folder / name)
    check = SumCheck([open_shards(folder)])  # which reads the ends alone
    with pytest.raises(ShardError, match=f"{name} has another sha256 than the manifest"):
        check.finish(60)
    with pytest.raises(ShardError, match="restore it or prepare the corpus again"):
        check.raise_if_damaged()


def test_nothing_to_compare():
    check = SumCheck([])
    assert check.finish(0)
    check.stop()


def test_it_stops_when_it_is_told(folder):
    flip(folder / "val-00000.bin")
    check = SumCheck([open_shards(folder)] * 1000)
    check.stop()
    check._thread.join(60)
    assert not check._thread.is_alive()

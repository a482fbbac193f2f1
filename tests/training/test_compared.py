"""What the hosts of a run compare: every field of what they have read."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from gpt_jax.config import Config, override
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.input_pipeline.text_corpus import TextCorpus
from gpt_jax.tokenizer import BpeTokenizer, CharTokenizer
from gpt_jax.training.branch_start import BranchStart
from gpt_jax.training.compared import compared_on_hosts, digest
from gpt_jax.training.run_setup import RunSetup

IDS = np.arange(20) % 4


def setup(**changes):
    values = {
        "config": Config(),
        "corpus": TextCorpus("a", "a", "abcd"),
        "tokenizer": CharTokenizer("abcd"),
        "splits": {split: Dataset.from_shards([IDS], 20) for split in ("train", "val")},
        "resumes": False,
        "params": {"head": {"kernel": np.ones((2, 3), np.float32)}},
        "origin": {"source": "x", "path": "/a/x", "step": 3, "sha256": "e"},
        "changed": {},
    }
    return RunSetup(**values | changes)


DIFFERENT = {
    "config": [override(Config(), {"seed": 1})],
    "corpus": [TextCorpus("a", "a", "abce")],
    "tokenizer": [CharTokenizer("abce"), BpeTokenizer([bytes([i]) for i in range(256)], ".", {})],
    "splits": [
        {"train": Dataset.from_shards([IDS], 20), "val": Dataset.from_shards([IDS[:-1]], 20)},
        {split: Dataset.from_shards([IDS + 1], 20) for split in ("train", "val")},
        {split: Dataset.from_shards([IDS], 21) for split in ("train", "val")},
    ],
    "resumes": [True],
    "params": [
        None,
        {"head": {"kernel": np.full((2, 3), 1.5, np.float32)}},
        {"head": {"kernel": np.ones((3, 2), np.float32)}},
        {"head": {"bias": np.ones((2, 3), np.float32)}},
    ],
    "origin": [None, {"source": "x", "path": "/a/x", "step": 4, "sha256": "e"}],
    "changed": [{"train.log_interval": {"from": 1, "to": 2}}],
}


def test_every_field_of_what_a_host_read_is_compared():
    names = {field.name for field in dataclasses.fields(RunSetup)}
    assert DIFFERENT.keys() == names - {"branch"}  # which has fields of its own, see below
    ours = compared_on_hosts(setup())
    assert ours == compared_on_hosts(setup())
    for name, values in DIFFERENT.items():
        for value in values:
            theirs = compared_on_hosts(setup(**{name: value}))
            assert theirs != ours, (name, value)
            changed = {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
            assert len(changed) <= 2, changed


def test_where_a_host_has_its_files_is_its_own_affair():
    other = {"source": "y", "path": "/b/x", "step": 3, "sha256": "e"}
    corpus = TextCorpus("a", "elsewhere", "abcd", notes=("a note",))
    assert compared_on_hosts(setup(origin=other, corpus=corpus)) == compared_on_hosts(setup())


def test_versions_and_options_are_compared():
    ours = compared_on_hosts(setup())
    assert {"gpt_jax", "jax", "jaxlib", "flax", "optax", "device", "prng"} <= ours.keys()
    assert {"matmul_precision", "xla_flags", "jax_threefry_partitionable", "seed"} <= ours.keys()


def test_a_digest_is_of_values_and_their_types():
    values = [
        None,
        0,
        0.0,
        False,
        "",
        "0",
        [],
        [0],
        [[0]],
        {"a": 0},
        {"b": 0},
        Fraction(0),
        np.zeros(1),
    ]
    values += [np.zeros(1, np.float32), np.zeros((1, 1)), np.arange(2), np.arange(2)[::-1]]
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    with pytest.raises(TypeError, match="PosixPath can't be compared"):
        digest([Path("/")])


def test_both_ends_of_a_mapped_file_are_in_its_digest(tmp_path):
    ids = np.arange(20_000, dtype="<u2")
    found = set()
    for at in (None, 0, -1):
        changed = ids.copy()
        if at is not None:
            changed[at] += 7
        changed.tofile(tmp_path / "ids")
        found.add(digest(np.memmap(tmp_path / "ids", "<u2", "r")))
    assert len(found) == 3


def test_what_a_branch_starts_from_is_compared_too():
    start = BranchStart(Config(), setup().splits, 4, 3, [{"step": 0}], {}, [])
    ours = compared_on_hosts(setup(branch=start))
    other_seed = override(Config(), {"seed": 1})
    for change in ({"step": 5}, {"from_step": 4}, {"config": other_seed}, {"splits": {}}):
        theirs = compared_on_hosts(setup(branch=dataclasses.replace(start, **change)))
        assert theirs != ours, change

"""Runs under another environment than before: draws stay, changes are said, or refused."""

import json

import jax
import numpy as np
import pytest

import gpt_jax
from gpt_jax import numerics
from gpt_jax.config import override
from gpt_jax.devices import describe_machine
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.shards import memmap
from gpt_jax.input_pipeline.shards.manifest import ShardError
from gpt_jax.input_pipeline.shards.writer import ShardWriter
from gpt_jax.run.metrics import TIMING_FIELDS
from gpt_jax.tokenizer import CharTokenizer

HOSTILE = {
    "jax_default_prng_impl": "rbg",
    "jax_threefry_partitionable": False,
    "jax_enable_x64": True,
    "jax_random_seed_offset": 5,
    "jax_high_dynamic_range_gumbel": True,
    "jax_numpy_rank_promotion": "raise",
}


@pytest.fixture
def hostile():
    """jax's options as an environment may set them, for all threads."""
    before = {name: getattr(jax.config, name) for name in HOSTILE}
    for name, value in HOSTILE.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, getattr(value, "value", value))


def rows_of(run):
    return [{k: v for k, v in row.items() if k not in TIMING_FIELDS} for row in run.rows]


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A finished run under jax's defaults: (its config, the run, a text of it)."""
    folder = tmp_path_factory.mktemp("sound")
    (folder / "book.txt").write_text("the wizard said to dorothy and toto\n" * 40)
    values = {
        "run_dir": str(folder / "run"), "data.corpus": str(folder / "book.txt"),
        "model.n_layer": 1, "model.n_head": 2, "model.n_embd": 16, "model.block_size": 8,
        "model.dropout": 0.2, "train.batch_size": 8, "train.steps": 4, "train.log_interval": 2,
        "train.eval_interval": 2, "train.eval_batches": 2, "train.checkpoint_interval": 2,
        "sample.max_new_tokens": 12, "sample.prompt": "the",
    }  # fmt: skip
    config = override(gpt_jax.Config(), values)
    run = gpt_jax.train(config, quiet=True)
    return config, run, gpt_jax.generate(run, "the")


@pytest.mark.slow
@pytest.mark.parametrize("resident", ["device", "host"])
def test_the_environment_changes_no_draw_of_training_evaluation_or_sampling(
    sound, hostile, tmp_path, resident
):
    config, run, text = sound
    values = {"run_dir": str(tmp_path / "run"), "data.resident": resident}
    other = gpt_jax.train(override(config, values), quiet=True)
    assert rows_of(other) == rows_of(run)
    jax.tree.map(np.testing.assert_array_equal, other.params, run.params)
    assert {str(x.dtype) for x in jax.tree.leaves(other.params)} == {"float32"}
    assert gpt_jax.generate(other, "the") == text
    evaluations = [gpt_jax.evaluate(r, max_tokens=40).record() for r in (run, other)]
    assert evaluations[0] == evaluations[1]
    assert jax.numpy.arange(1.0).dtype == "float64"  # the process keeps its own


def copy_of(sound, tmp_path, edit):
    import shutil

    config, run, _ = sound
    folder = shutil.copytree(run.run_dir, tmp_path / "run")
    values = json.loads((folder / "config.json").read_text())
    edit(values)
    (folder / "config.json").write_text(json.dumps(values))
    return override(config, {"run_dir": str(folder), "train.steps": 6})


@pytest.mark.slow
def test_a_resumed_run_says_what_changes_rounding(sound, tmp_path, capsys):
    def edit(values):
        assert values["numerics"]["mesh"] == "8x1x1x1"
        values["numerics"] |= {"jaxlib": "0.1", "mesh": "4x1x1x1"}

    run = gpt_jax.train(copy_of(sound, tmp_path, edit))
    said = {"jaxlib": jax.lib.__version__, "mesh": "8x1x1x1"}
    assert [row.get("numerics") for row in run.rows] == [None, None, None, said]
    assert "earlier steps may be rounded otherwise: jaxlib was 0.1" in capsys.readouterr().out
    again = gpt_jax.train(override(run.config, {"train.steps": 8}), quiet=True)
    assert [row.get("numerics") for row in again.rows][3:] == [said, None]


@pytest.mark.slow
def test_a_run_without_the_record_counts_as_made_under_the_defaults(sound, tmp_path):
    def edit(values):
        del values["numerics"]

    config = copy_of(sound, tmp_path, edit)
    with (
        jax.default_matmul_precision("highest"),
        pytest.raises(UserError, match=r"matmul_precision is None there and 'highest' here"),
    ):
        gpt_jax.train(config, quiet=True)
    run = gpt_jax.train(config, quiet=True)
    assert run.step == 6
    # It was made by the first release that recorded, which rounded in another way.
    assert [row["numerics"] for row in run.rows if "numerics" in row] == [
        {"rounding": numerics.REVISION}
    ]


@pytest.mark.slow
def test_a_new_run_records_its_numerics(sound):
    config = json.loads((sound[1].run_dir / "config.json").read_text())
    recorded = config["numerics"]
    assert config["machine"] == describe_machine()
    assert recorded["prng"] == "threefry2x32"
    assert recorded.keys() >= {*numerics.KEPT, *numerics.PACKAGES, "device", "mesh", "rounding"}


@pytest.mark.slow
def test_a_shard_changed_in_its_middle_ends_training(sound, tmp_path):
    tokens = 3 * memmap.CHECKED_TOKENS
    (tmp_path / "corpus").mkdir()
    writer = ShardWriter(tmp_path / "corpus", CharTokenizer("abcd"), tokens)
    writer.append("train", np.arange(tokens) % 4)
    writer.append("val", np.arange(900) % 4)
    writer.finish("char", {"train": 1, "val": 1})
    path = tmp_path / "corpus" / "train-00000.bin"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    values = {"run_dir": str(tmp_path / "run"), "data.corpus": str(tmp_path / "corpus")}
    values |= {"model.dropout": 0.0, "train.eval_batches": 1, "mesh.data": 1}  # compiles faster
    with pytest.raises(ShardError, match=r"train-00000.bin has another sha256 than the manifest"):
        gpt_jax.train(override(sound[0], values), quiet=True)
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["checkpoints", "config.json", "metrics.jsonl", ".lock"])
def test_a_link_in_a_run_is_refused_by_name(sound, tmp_path, name):
    config = copy_of(sound, tmp_path, lambda values: None)
    path = tmp_path / "run" / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=rf"{name} is a symbolic link.*put what it points to in"):
        gpt_jax.train(config, quiet=True)
    assert path.is_symlink()

"""What an earlier release wrote is read, and trained on; what a later one wrote is refused.

`fixtures/run_2026_11` is a run of 4 steps by commit 9f892d1, the first with a finished nano, as it
lay on the disk, without pictures and event files.
"""

import json
import shutil

import pytest
from conftest import ROOT

import gpt_jax
from gpt_jax.config import override
from gpt_jax.errors import UserError
from gpt_jax.run import checkpoints
from gpt_jax.run.folder import FORMAT, read_config
from gpt_jax.run.metrics import read_rows

FIXTURE = ROOT / "tests" / "fixtures" / "run_2026_11"


@pytest.fixture
def old(tmp_path):
    """A copy of the fixture: (the run's folder, its text)."""
    folder = shutil.copytree(FIXTURE, tmp_path / "old")
    return folder / "run", folder / "book.txt"


@pytest.mark.slow
def test_an_old_run_has_the_losses_that_it_had(old):
    run = gpt_jax.load_run(old[0])
    assert (run.step, checkpoints.steps(run.run_dir)) == (4, [4])
    was = json.loads((old[0] / "summary.json").read_text())["val"]
    now = gpt_jax.evaluate(run, corpus_name=str(old[1])).record()
    assert now["tokens_predicted"] == was["tokens_predicted"] == 639
    # Sums of 639 float32 losses in another order: 639 eps at most, relatively.
    assert now["nats_per_token"] == pytest.approx(was["nats_per_token"], rel=639 * 2**-23)


@pytest.mark.slow
def test_an_old_run_writes_the_text_that_it_wrote(old):
    run = gpt_jax.load_run(old[0])
    heading, _, text = (old[0] / "samples.txt").read_text().partition("\n")
    assert run.config.sample.prompt in heading
    written = gpt_jax.generate(run, run.config.sample.prompt)
    assert run.config.sample.prompt + written == text[: len(text) - 2] or written == text[:-2]


@pytest.mark.slow
def test_an_old_run_is_trained_on(old):
    before = read_rows(old[0])
    config, _ = read_config(old[0])
    values = {"data.corpus": str(old[1]), "train.steps": 8}
    run = gpt_jax.train(override(config, values), quiet=True)
    assert run.step == 8
    assert run.rows[: len(before)] == before
    assert run.rows[-1]["val_loss"] < before[0]["val_loss"]


@pytest.mark.parametrize(("micro_batch", "masks"), [(2, "micro_batch"), (None, "batch")])
def test_a_run_begun_before_keeps_the_masks_of_its_micro_batches(old, micro_batch, masks):
    """Of whole batches they are what they were, so that their size may change later."""
    path = old[0] / "config.json"
    values = json.loads(path.read_text())
    assert "dropout_masks" not in values["train"]
    values["train"]["micro_batch"] = micro_batch
    path.write_text(json.dumps(values))
    assert read_config(old[0])[0].train.dropout_masks == masks
    values["train"]["dropout_masks"] = "batch"  # what a run of today records
    path.write_text(json.dumps(values))
    assert read_config(old[0])[0].train.dropout_masks == "batch"


def test_a_newer_format_is_refused(old):
    path = old[0] / "config.json"
    values = json.loads(path.read_text())
    assert values["format"] == FORMAT == 1
    path.write_text(json.dumps(values | {"format": 2}))
    with pytest.raises(UserError, match="has format 2, from a newer gpt_jax; this one reads up to"):
        gpt_jax.load_run(old[0])

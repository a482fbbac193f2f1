"""How members run: chosen by measuring, kept, and the same runs however they are computed."""

import contextlib
import json

import numpy as np
import pytest

import gpt_jax
from gpt_jax.config import override
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.experiments import together
from gpt_jax.experiments.members import ONE_AFTER_ANOTHER, SIDE_BY_SIDE, STACKED, read_sweep
from gpt_jax.experiments.sweep_progress import SweepProgress
from gpt_jax.experiments.together import arrange, choose
from gpt_jax.run import checkpoints
from gpt_jax.training import trainer
from gpt_jax.training.run_setup import RunSetup


@pytest.fixture
def tiny_config(tiny_config):
    """Its members may have a device each."""
    return override(tiny_config, {"mesh.data": -1})


@pytest.fixture
def setup(tiny_config):
    config = override(tiny_config, {"model.vocab_size": 14})
    return RunSetup(config, corpus=None, tokenizer=None, splits={}, resumes=False)


def test_members_are_spread_over_the_devices_in_even_groups(setup):
    assert arrange(ONE_AFTER_ANOTHER, setup, 9) is None
    assert arrange(STACKED, setup, 1) is None
    assert arrange(SIDE_BY_SIDE, setup, 9) == (8, 1)
    assert arrange(SIDE_BY_SIDE, setup, 3) == (3, 1)
    assert arrange(STACKED, setup, 9) == (8, 2)
    assert arrange(STACKED, setup, 5) == (5, 1)  # as where most were done before a kill
    assert arrange(STACKED, setup, 64) == (8, 8)
    assert arrange(STACKED, setup, 65) == (8, 5)  # two groups, not 64 and 1


def test_groups_are_sized_to_memory(setup, monkeypatch):
    need = together.estimate_memory(setup.config, (1, 1, 1, 1), "cpu").total
    monkeypatch.setattr(together, "memory_limit", lambda device: 8 * 2 * need * 3 + 1)
    assert arrange(STACKED, setup, 64) == (8, 3)
    monkeypatch.setattr(together, "memory_limit", lambda device: need)
    for way in (SIDE_BY_SIDE, STACKED):
        with pytest.raises(ConfigError, match="don't fit into the memory"):
            arrange(way, setup, 64)


def test_members_that_need_several_devices_each_run_one_after_another(setup):
    config = override(setup.config, {"mesh.fsdp": 2})
    split = RunSetup(config, corpus=None, tokenizer=None, splits={}, resumes=False)
    with pytest.raises(ConfigError, match="whole members on a device"):
        arrange(STACKED, split, 9)


def times(monkeypatch, one, side, stacked):
    """Steps take so many seconds each way; an error is raised. Returns the ways measured."""
    measured = []

    def step_seconds(setup, arrangement=None):
        way = ONE_AFTER_ANOTHER if arrangement is None else SIDE_BY_SIDE
        way = STACKED if arrangement is not None and arrangement[1] > 1 else way
        measured.append(way)
        seconds = {ONE_AFTER_ANOTHER: one, SIDE_BY_SIDE: side, STACKED: stacked}[way]
        if isinstance(seconds, Exception):
            raise seconds
        return seconds

    monkeypatch.setattr(together, "step_seconds", step_seconds)
    return measured


@pytest.mark.parametrize(
    ("seconds", "way"),
    [
        ((0.1, 0.12, 0.2), ONE_AFTER_ANOTHER),
        ((0.1, 0.05, 0.2), SIDE_BY_SIDE),
        ((0.1, 0.05, 0.01), STACKED),
        ((0.1, 0.095, 0.095), ONE_AFTER_ANOTHER),  # which is exact: not for a twentieth
        ((0.1, 0.05, UserError("too large")), SIDE_BY_SIDE),
    ],
)
def test_the_fastest_way_is_taken(setup, monkeypatch, seconds, way):
    measured = times(monkeypatch, *seconds)
    found = choose(setup, 16, 100_000)
    assert found.way == way
    assert "100 ms one-after-another" in found.why
    assert set(measured) == {ONE_AFTER_ANOTHER, SIDE_BY_SIDE, STACKED}


def test_a_short_sweep_measures_the_usual_way_alone(setup, monkeypatch):
    measured = times(monkeypatch, 0.1, 0.01, 0.01)
    found = choose(setup, 16, 100)
    assert (found.way, measured) == (ONE_AFTER_ANOTHER, [ONE_AFTER_ANOTHER])
    assert "about 10 s are too short" in found.why
    assert choose(setup, 1, 10**9).way == ONE_AFTER_ANOTHER
    assert len(measured) == 1


def test_stacking_is_not_tried_where_it_is_one_member_a_device(setup, monkeypatch):
    measured = times(monkeypatch, 0.1, 0.05, 0.01)
    assert choose(setup, 8, 10**6).way == SIDE_BY_SIDE
    assert STACKED not in measured


def test_on_an_accelerator_stacking_is_usual(setup, monkeypatch):
    class Accelerator:
        platform = "gpu"

    monkeypatch.setattr(together.jax, "local_devices", lambda: [Accelerator()])
    monkeypatch.setattr(together, "memory_limit", lambda device: None)
    measured = times(monkeypatch, 1.0, 1.0, 0.01)
    assert choose(setup, 16, 100).way == STACKED
    assert arrange(STACKED, setup, 200) == (1, 100)
    with pytest.raises(ConfigError, match="several devices"):
        arrange(SIDE_BY_SIDE, setup, 16)
    assert measured == [STACKED]


def test_another_word_than_a_way_is_refused(tiny_config, tmp_path):
    with pytest.raises(ConfigError, match="did you mean stacked"):
        gpt_jax.sweep(tiny_config, out=tmp_path / "sweep", together="stack")
    assert not (tmp_path / "sweep").exists()


def test_progress_counts_every_member_that_runs(capsys):
    from gpt_jax.console import Display
    from gpt_jax.experiments.members import Member

    members = [Member(f"m{i}", {"optim.beta1": 0.1 * i}, 0) for i in range(4)]
    progress = SweepProgress(Display(), members, [100] * 4)
    progress.was_done(0, 2.5)
    progress.row(1, {"step": 20, "loss": 3.0})
    progress.row(2, {"step": 40})
    assert progress._done == 160
    progress.ended(2, None)
    progress.ended(1, 2.0)
    head, *rows = progress.rows()
    assert head == ("run", "step", "loss", "")
    assert [row[2:] for row in rows] == [
        ("2.0000", "best so far"), ("2.5000", "done"), ("diverged", "done")
    ]  # fmt: skip
    shown = capsys.readouterr().out
    assert "2/4  diverged  beta1=0.2, seed 0; best 2.5000 (beta1=0.0, seed 0)" in shown
    assert "3/4  2.0000  beta1=0.1, seed 0; best 2.0000" in shown


# --- whole sweeps ---------------------------------------------------------------------------------

VARY = {"optim.learning_rate": [1e-3, 1e30, 2e-3]}


@contextlib.contextmanager
def killed_at_second_row_of(step, monkeypatch):
    """A sweep inside ends as if it were killed when a second member writes the row of `step`."""
    rows, write = [], trainer.MetricsWriter.write

    def failing(self, row):
        write(self, row)
        rows.append(row["step"])
        if rows.count(step) == 2:
            raise KeyboardInterrupt("stopped by the test")

    with monkeypatch.context() as patch:
        patch.setattr(trainer.MetricsWriter, "write", failing)
        with pytest.raises(KeyboardInterrupt, match="by the test"):
            yield


@pytest.mark.slow
def test_a_stacked_sweep_is_killed_continues_and_one_member_diverges_alone(
    tiny_config, tmp_path, monkeypatch, finished_run
):
    """Killed while one member has saved step 8 and the others have not."""
    from gpt_jax.experiments import sweep_pictures

    monkeypatch.setattr(sweep_pictures, "draw", lambda sweep: [])
    monkeypatch.setattr(together, "MOST_STACKED", {"cpu": 2})
    one_device = {"mesh.data": 1}
    config = override(tiny_config, {**one_device, "optim.optimizer": "adamw"})
    monkeypatch.setattr(together.jax, "local_devices", lambda: together.jax.devices()[:1])
    out = tmp_path / "sweep"
    ways = {"out": out, "quiet": True}
    with killed_at_second_row_of(8, monkeypatch):
        gpt_jax.sweep(config, VARY, seeds=2, together="stacked", **ways)
    found = read_sweep(out)
    assert found.together.way == "stacked"
    assert sorted(checkpoints.steps(out / m.run_dir) for m in found.members[:2]) == [[4], [8]]
    result = gpt_jax.sweep(config, VARY, seeds=2, **ways)
    states = [m.state for m in result.members]
    assert states == ["finished", "finished", "diverged", "diverged", "finished", "finished"]
    assert read_sweep(out).together.why == "as asked for"
    for i in (0, 5):
        member = result.members[i].member
        alone = finished_run(
            config, **{**member.values, "seed": member.seed, "run_dir": str(tmp_path / f"a{i}")}
        )
        run = gpt_jax.load_run(out / member.run_dir)
        assert [row["step"] for row in run.rows] == [row["step"] for row in alone.rows]
        losses = [[row.get("loss", 0) for row in r.rows] for r in (run, alone)]
        np.testing.assert_allclose(*losses, atol=1e-4)
        assert result.members[i].loss == pytest.approx(
            alone.summary["val"]["nats_per_token"], abs=1e-4
        )
        recorded = json.loads((out / member.run_dir / "config.json").read_text())
        assert recorded["numerics"]["mesh"] == "1x1x1x1, 2 stacked"
        assert gpt_jax.evaluate(run).record() == run.summary["val"]


@pytest.mark.slow
def test_shapes_run_group_by_group(tiny_config, tmp_path, monkeypatch):
    from gpt_jax.experiments import sweep_pictures

    monkeypatch.setattr(sweep_pictures, "draw", lambda sweep: [])
    vary = {"model.qk_norm": [False, True]}
    found = gpt_jax.sweep(
        tiny_config, vary, seeds=2, out=tmp_path / "s", together="side-by-side", quiet=True
    )
    assert [m.state for m in found.members] == ["finished"] * 4
    assert len({m.loss for m in found.members}) == 4

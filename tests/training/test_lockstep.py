"""Runs that are computed together: who is served when, what failure does, what each computes."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
from conftest import TINY

from gpt_jax.config import Config, MeshConfig, OptimConfig, TrainConfig, override
from gpt_jax.errors import ConfigError
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.lockstep import EVALUATE, TRAIN, Lockstep, _Abandoned
from gpt_jax.training.stack import Stack

# --- who is served when, without jax --------------------------------------------------------------


class Counting:
    """Stands in for a stack: says what it was asked to compute."""

    def __init__(self):
        self.computed = []

    def train_chunk(self, steps):
        self.computed.append(("train", steps))
        return {"loss": np.arange(12.0).reshape(4, 3)}

    def evaluate(self, step):
        self.computed.append(("evaluate", step))
        return np.arange(8.0).reshape(4, 2)


def together(*runs):
    """Runs functions of (lockstep, slot) in threads; returns the stack and the errors of each."""
    stack = Counting()
    lockstep, errors = Lockstep(stack, len(runs)), {}

    def in_turn(slot, run):
        with lockstep.turn:
            try:
                run(lockstep, slot)
            except Exception as error:
                errors[slot] = error
                if not isinstance(error, _Abandoned):
                    lockstep.fail(error)
            lockstep.leave(slot)

    threads = [threading.Thread(target=in_turn, args=item, daemon=True) for item in enumerate(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive(), "a run waits for ever"
    return stack, errors


def trains(first, last, got=None):
    """Returns a run that evaluates and takes 3 steps from `first` to `last`."""

    def run(lockstep, slot):
        for step in range(first, last, 3):
            losses = np.asarray(lockstep.ask(slot, (step, EVALUATE, 0)))
            assert losses.tolist() == [2.0 * slot, 2.0 * slot + 1]
            metrics = lockstep.ask(slot, (step, TRAIN, 3), lambda: None)
            if got is not None:
                got.append((slot, step, np.asarray(metrics["loss"], np.float64).tolist()))

    return run


def test_runs_at_one_step_are_computed_at_once_and_each_gets_its_own_row():
    got = []
    stack, errors = together(*[trains(0, 6, got)] * 4)
    assert not errors
    assert stack.computed == [("evaluate", 0), ("train", 3), ("evaluate", 3), ("train", 3)]
    assert sorted(got)[:2] == [(0, 0, [0.0, 1.0, 2.0]), (0, 3, [0.0, 1.0, 2.0])]
    assert (3, 3, [9.0, 10.0, 11.0]) in got


def test_a_run_that_is_ahead_waits_for_the_others_and_is_placed_then():
    placed = []

    def ahead(lockstep, slot):
        lockstep.ask(slot, (3, TRAIN, 3), lambda: placed.append(len(lockstep._stack.computed)))

    stack, errors = together(trains(0, 6), ahead)
    assert not errors
    assert stack.computed == [("evaluate", 0), ("train", 3), ("evaluate", 3), ("train", 3)]
    assert placed == [3]  # after the other's first steps, which would have changed its state


def test_a_run_that_ends_leaves_the_others_alone():
    stack, errors = together(trains(0, 3), trains(0, 12), trains(0, 0))
    assert not errors
    assert stack.computed.count(("train", 3)) == 4


def test_a_run_that_fails_ends_the_others():
    def fails(lockstep, slot):
        lockstep.ask(slot, (0, EVALUATE, 0))
        raise OSError("the disk is full")

    stack, errors = together(trains(0, 30), fails, trains(0, 30))
    assert stack.computed == [("evaluate", 0)]
    assert isinstance(errors[1], OSError)
    assert {type(errors[0]), type(errors[2])} == {_Abandoned}


def test_a_state_in_the_stack_is_never_trained_past_its_run():
    def jumps(lockstep, slot):
        lockstep.ask(slot, (0, TRAIN, 3), lambda: None)
        lockstep.ask(slot, (6, TRAIN, 3), lambda: None)

    _, errors = together(trains(0, 9), jumps)
    assert any("would be lost" in str(error) for error in errors.values())


# --- what a stack computes ------------------------------------------------------------------------

TOKENS = (np.random.default_rng(0).integers(0, 2, 4_000).cumsum() % 11).astype(np.int32)
STEPS = 10
KINDS = {
    "dropout, skip, spikes": (
        OptimConfig(schedule="cosine", warmup_steps=2),
        {"on_divergence": "skip", "spike": 1.0001, "spike_window": 3},
    ),
    "muon, clipped, accumulated": (OptimConfig(optimizer="muon", clip=0.5), {"micro_batch": 8}),
}
# Members a device each, and two under vmap on each, where the last slot has no run. They are one
# code (`stack.py`): one kind meets both.
ARRANGEMENTS = {"dropout, skip, spikes": [(2, 2)], "muon, clipped, accumulated": [(3, 1), (2, 2)]}
RATES, SEEDS = (1e-3, 3e-3, 1e-5), (0, 1, 2)  # the last hardly learns: its losses go up, too


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a stack needs of a `RunSetup`."""

    config: Config
    splits: dict


def setups(kind, **values):
    optim, train = KINDS[kind]
    train = TrainConfig(batch_size=16, steps=STEPS, eval_batches=2, **train)
    config = Config(model=TINY, optim=optim, train=train, mesh=MeshConfig(data=1))
    split = Dataset.from_shards((TOKENS,), len(TOKENS))
    own = [
        {"optim.learning_rate": rate, "seed": seed} for rate, seed in zip(RATES, SEEDS, strict=True)
    ]
    return [
        Setup(override(config, {**each, **values}), {"train": split, "val": split}) for each in own
    ]


def alone(setup, noise=None):
    """10 steps of one run on one device: losses, parameters; moved in the last place by `noise`."""
    programs = CompiledSteps(setup.config, setup.splits)
    keys = programs.keys()
    state = programs.init_state(keys)
    if noise is not None:
        random = np.random.default_rng(noise)
        eps = np.finfo(np.float32).eps
        move = lambda x: x * (1 + eps * random.uniform(-1, 1, x.shape)).astype(np.float32)
        state = state.replace(params=jax.tree.map(move, state.params))
    losses = np.asarray(programs.evaluate(state, keys, 0), np.float64)
    state, metrics = programs.train_chunk(state, keys, 0, STEPS)
    programs.close()
    values = {name: np.asarray(x, np.float64) for name, x in metrics.items()}
    return values, losses, jax.device_get(state)


def distance(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x, np.float64) - y).max()) for x, y in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_run_of_a_stack_is_the_run_alone_within_what_rounding_does(kind):
    """After 10 steps, on a device each or under vmap, with other seeds and learning rates.

    How far rounding leads in 10 steps is measured: runs alone from parameters that differ by a unit
    in the last place. A program rounds in every product of every step, not in the first parameters
    alone: ten times the largest distance is allowed, as for layouts in test_sharding.py.
    """
    runs = setups(kind)
    expected = [alone(setup) for setup in runs]
    noisy = [alone(runs[0], noise) for noise in range(3)]
    reach = 10 * max(distance(expected[0][2].params, found[2].params) for found in noisy)
    loss_reach = 10 * max(np.abs(expected[0][0]["loss"] - n[0]["loss"]).max() for n in noisy)
    loss_reach = max(loss_reach, 1e-5)
    apart = distance(expected[0][2].params, expected[1][2].params)
    assert reach < 0.02 * apart, "rounding alone would hide another seed"
    for arrangement in ARRANGEMENTS[kind]:
        stack = Stack(runs[0], arrangement)
        stack.assign([setup.config for setup in runs])
        for slot, setup in enumerate(runs):
            programs = CompiledSteps(setup.config, setup.splits, stack.loader)
            stack.put(slot, programs.init_state(programs.keys()), None)
        evaluated = np.asarray(stack.evaluate(0), np.float64)
        metrics = stack.train_chunk(STEPS)
        for slot, (values, losses, state) in enumerate(expected):
            np.testing.assert_allclose(evaluated[slot], losses, atol=1e-5)
            assert np.abs(np.asarray(metrics["loss"])[slot] - values["loss"]).max() <= loss_reach
            assert distance(stack.take(slot).params, state.params) <= reach
            assert int(stack.take(slot).step) == STEPS
        stack.close()
    if "skip" in kind:
        skipped = [(values["loss"] >= values["loss_limit"]).any() for values, _, _ in expected]
        assert any(skipped), "nothing was skipped"


def test_a_corpus_on_the_host_is_refused():
    setup = setups("muon, clipped, accumulated", **{"data.resident": "host"})[0]
    with pytest.raises(ConfigError, match="not kept on the devices"):
        Stack(setup, (2, 1))

"""What changes no program's shape is an argument of it: values share compiled programs."""

import dataclasses
import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY

import gpt_jax
from gpt_jax.config import Config, OptimConfig, TrainConfig, override
from gpt_jax.config.fields import iter_fields
from gpt_jax.devices import compiler_options
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.prng import make_keys
from gpt_jax.training import compiled_steps
from gpt_jax.training.compiled_steps import abstract_inputs, jit_train_chunk, recent_losses_spec
from gpt_jax.training.hyperparameters import hyperparameters, optim_structure
from gpt_jax.training.optimizer import make_optimizer
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_chunk

SCHEDULED = OptimConfig(
    optimizer="muon", schedule="wsd", schedule_steps=9, decay_steps=3, warmup_steps=2, clip=0.5
)
OTHER_NUMBERS = {
    "learning_rate": 1e-2, "weight_decay": 0.3, "beta1": 0.8, "beta2": 0.9, "muon_beta": 0.7,
    "clip": 2.0, "floor": 0.5, "warmup_steps": 4, "schedule_steps": 12, "decay_steps": 5,
}  # fmt: skip
STRUCTURES = {"optimizer": "adamw", "decay": "matrices", "schedule": "cosine"}


def test_each_setting_of_the_optimizer_is_a_number_or_a_choice_of_program():
    names = {name for name, _, _ in iter_fields(OptimConfig)}
    assert names == OTHER_NUMBERS.keys() | STRUCTURES.keys()
    for name, value in OTHER_NUMBERS.items():
        changed = dataclasses.replace(SCHEDULED, **{name: value})
        assert optim_structure(changed) == optim_structure(SCHEDULED), name
        assert hyperparameters(changed) != hyperparameters(SCHEDULED), name
    for name, value in STRUCTURES.items():
        fields = {name: value} | ({"decay_steps": None} if name == "schedule" else {})
        changed = dataclasses.replace(SCHEDULED, **fields)
        assert optim_structure(changed) != optim_structure(SCHEDULED), name
    for changed in ({"clip": None}, {"clip": 1.0}, {"schedule": "constant", "decay_steps": None}):
        other = optim_structure(dataclasses.replace(SCHEDULED, **changed))
        assert other != optim_structure(SCHEDULED)
    assert optim_structure(OptimConfig()) != optim_structure(OptimConfig(warmup_steps=3))


def test_complements_are_rounded_once():
    numbers = hyperparameters(OptimConfig(beta2=0.999))
    once = np.float32(numbers["beta2_complement"])
    assert once == np.float32(1 - 0.999) != np.float32(1) - np.float32(0.999)


def lowered(config: Config) -> str:
    compiled_steps.jit_functions.cache_clear()
    mesh = make_mesh(config.train.batch_size, jax.devices()[:1])
    inputs = abstract_inputs(config, mesh)
    data = inputs.gathered(1), inputs.keys, recent_losses_spec(config.train, mesh), inputs.hyper
    return jit_train_chunk(config, mesh).lower(inputs.state, *data, steps=1).as_text()


@pytest.mark.usefixtures("changed_programs")
def test_programs_of_other_numbers_and_seeds_have_one_text():
    """So the compilation cache on the disk, whose key is made of it, serves them all."""
    config = Config(model=TINY, optim=SCHEDULED, train=TrainConfig(batch_size=2, spike=2.0))
    numbers = {f"optim.{name}": value for name, value in OTHER_NUMBERS.items()}
    seeds = {"seed": 3, "init_seed": 4, "data_seed": 5, "dropout_seed": 6}
    other = override(config, {**numbers, **seeds, "train.spike": 3.0})
    assert lowered(config) == lowered(other)
    assert lowered(config) != lowered(override(config, {"optim.clip": None}))


def compare_bits() -> None:
    """Takes ten steps with numbers as constants of the program and as its arguments."""
    model = dataclasses.replace(TINY, n_layer=1, dropout=0.0)  # compiles faster
    train = TrainConfig(batch_size=2, spike=1.01, on_divergence="skip")
    tokens, keys = jnp.arange(99, dtype=jnp.int32) % 11, make_keys(1)
    options = compiler_options("cpu", library_products=True)
    jit = functools.partial(jax.jit, static_argnames="steps", compiler_options=options)
    for optim in (SCHEDULED, OptimConfig(weight_decay=0.1, clip=1.0, warmup_steps=6)):
        optim = dataclasses.replace(optim, learning_rate=3e-3, beta1=0.87, beta2=0.95)
        state = jax.jit(lambda o=optim: init_state(model, make_optimizer(o), keys.init))()
        hyper = {k: np.float32(v) for k, v in hyperparameters(optim, train).items()}
        constants = make_train_chunk(model, optim, train)
        shared = dataclasses.replace(train, spike=2.0)
        arguments = make_train_chunk(model, optim_structure(optim), shared)
        expected = jit(constants)(state, tokens, keys, steps=10)
        found = jit(arguments)(state, tokens, keys, None, hyper, steps=10)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
def test_numbers_as_arguments_give_the_bits_of_constants():
    """As a user's process compiles; without optimisation, as tests do, roundings differ."""
    folders = [str(Path(__file__).parent), str(ROOT / "tests"), str(ROOT)]
    code = (
        f"import os, sys; sys.path[:0] = {folders!r}; import test_hyperparameters as test; "
        "os.environ['XLA_FLAGS'] = ''; test.compare_bits(); print('equal')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("equal\n"), done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.usefixtures("changed_programs")  # so that there is something to read
def test_a_run_with_another_learning_rate_compiles_nothing(tiny_config, tmp_path):
    """Whatever jax has to compile, or to read from the disk's cache, has this event."""
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    first = {"optim.learning_rate": 1e-3, "run_dir": str(tmp_path / "a")}
    second = {"optim.learning_rate": 2e-3, "run_dir": str(tmp_path / "b")}
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        a = gpt_jax.train(override(tiny_config, first), quiet=True)
        n_first = len(compiled)
        b = gpt_jax.train(override(tiny_config, {**second, "seed": 5}), quiet=True)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert n_first > 0
    assert len(compiled) == n_first
    assert a.rows[-1]["loss"] != b.rows[-1]["loss"]


def test_a_purposes_seed_changes_its_key_alone():
    same, other = make_keys(3), make_keys(4)
    for name in ("init", "data", "dropout"):
        found = make_keys(3, **{f"{name}_seed": 4})
        for purpose in ("init", "data", "dropout", "eval", "sample"):
            expected = getattr(other if purpose == name else same, purpose)
            assert jnp.array_equal(
                jax.random.key_data(getattr(found, purpose)), jax.random.key_data(expected)
            )
    assert Config(seed=7).seeds == (7, 7, 7, 7)
    assert Config(seed=7, data_seed=0).seeds == (7, 7, 0, 7)

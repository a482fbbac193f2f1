"""train.micro_batch=auto: the largest that fits, recorded, and chosen again where it must be."""

import dataclasses
import math

import pytest

import gpt_jax
from gpt_jax.config import Config, MeshConfig, TrainConfig, override
from gpt_jax.config.fields import iter_fields, parse
from gpt_jax.errors import ConfigError
from gpt_jax.parallel.mesh import micro_batches
from gpt_jax.run.metrics import TIMING_FIELDS
from gpt_jax.training import micro_batch
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.memory import MemoryEstimate
from gpt_jax.training.micro_batch import SHARE, choose_micro_batch
from gpt_jax.training.run_setup import prepare_run

SIZES = [16, 8, 4, 2, 1]


def choose(limit, bytes_of, state=0, sizes=SIZES):
    """Returns the choice, and the sizes whose steps were compiled."""
    compiled = []

    def compile_step(n):
        compiled.append(n)
        return bytes_of(n)

    estimate = lambda n: MemoryEstimate(state=state, activations=n)
    return choose_micro_batch(sizes, limit, estimate, compile_step), compiled


def test_the_largest_whose_compiled_step_fits_is_chosen():
    assert choose(100, lambda n: 20 * n) == (4, [16, 4])  # by the first, 8 needs 160
    assert choose(320, lambda n: 20 * n) == (16, [16])
    assert choose(100, lambda n: 60 + 5 * n, state=60) == (8, [16, 8])
    assert choose(None, lambda n: math.inf) == (16, [])


def test_what_is_too_large_by_the_estimate_is_not_compiled():
    assert choose(7, lambda n: n) == (4, [4])
    assert choose(0.5, lambda n: n) == (1, [])  # which is refused then, see check_memory


def test_steps_that_grow_otherwise_than_expected_are_compiled_until_one_fits():
    assert choose(100, lambda n: 101 + n if n > 1 else 50) == (1, [16, 8, 4, 2, 1])
    assert choose(100, lambda n: 1000, sizes=[16, 8, 4]) == (4, [16, 4])


def test_a_compiler_that_gives_up_does_not_say_how_much_is_too_much():
    assert choose(100, lambda n: math.inf if n > 4 else 90) == (4, [16, 8, 4])


@pytest.mark.parametrize(
    ("mesh", "n_devices", "sizes"),
    [
        ({}, 1, [12, 6, 4, 3, 2, 1]),
        ({}, 4, [12, 4]),  # of 6, 3 and 2 a device would have none
        ({}, 5, [12, 4]),
        ({"data": 1, "fsdp": 3}, 4, [12, 6, 3]),
        ({"data": 1, "tensor": 2}, 2, [12, 6, 4, 3, 2, 1]),
    ],
)
def test_the_sizes_to_choose_from_use_the_devices(mesh, n_devices, sizes):
    config = Config(train=TrainConfig(batch_size=12), mesh=MeshConfig(**mesh))
    assert micro_batches(config, n_devices) == sizes


def test_a_mesh_that_cannot_be_is_named():
    config = Config(train=TrainConfig(batch_size=12), mesh=MeshConfig(fsdp=8))
    with pytest.raises(ConfigError, match="8 devices"):
        micro_batches(config, 8)


def test_auto_is_a_word_beside_numbers():
    hint = next(hint for name, hint, _ in iter_fields(Config) if name == "train.micro_batch")
    assert [parse(text, hint, "x") for text in ("auto", "AUTO", "8", "none")] == [
        "auto", "auto", 8, None,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="x takes a whole number, not 'automatic'"):
        parse("automatic", hint, "x")
    with pytest.raises(ConfigError, match=r"train\.micro_batch='autos' must be a whole number"):
        TrainConfig(micro_batch="autos")
    assert TrainConfig(batch_size=24, micro_batch="auto").micro_batch_size == 24


@pytest.mark.slow
def test_a_run_records_what_was_chosen_and_chooses_again_only_where_that_no_longer_fits(
    tiny_config, tmp_path, monkeypatch
):
    values = {"train.batch_size": 256, "mesh.data": 1, "train.steps": 4, "model.block_size": 16}
    config = override(tiny_config, {**values, "train.micro_batch": "auto", "model.dtype": "auto"})
    setup = prepare_run(config)
    assert setup.micro_batch_is_auto

    def need(n):
        programs = CompiledSteps(override(setup.config, {"train.micro_batch": n}), setup.splits)
        try:
            return programs.chunk_bytes()
        finally:
            programs.close()

    needs = {n: need(n) for n in (256, 128, 64)}
    assert needs[256] > needs[128] > needs[64]

    def train_with(limit, **more):
        monkeypatch.setattr(micro_batch, "memory_limit", lambda device: limit)
        return gpt_jax.train(override(config, more), quiet=True)

    run = train_with(math.ceil(needs[128] / SHARE))
    assert (run.config.train.micro_batch, run.config.model.dtype) == (128, "float32")
    asked = {"run_dir": str(tmp_path / "asked"), "train.micro_batch": 128, "model.dtype": "float32"}
    other = gpt_jax.train(override(config, asked), quiet=True)
    without_times = lambda rows: [
        {k: v for k, v in row.items() if k not in TIMING_FIELDS} for row in rows
    ]
    assert without_times(run.rows) == without_times(other.rows)
    longer = train_with(10**12, **{"train.steps": 8})
    assert longer.config.train.micro_batch == 128
    longest = train_with(math.ceil(needs[64] / SHARE), **{"train.steps": 12})
    assert longest.config.train.micro_batch == 64
    assert (
        dataclasses.replace(
            longest.config,
            train=dataclasses.replace(longest.config.train, micro_batch=128, steps=8),
        )
        == longer.config
    )

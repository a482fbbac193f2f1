"""Plans: what a step takes, without taking it. For TPU slices see `tests/tpu`."""

import dataclasses
import functools
import importlib.util
import json
import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import main
from gpt_jax.analysis import plan
from gpt_jax.analysis.chips import CHIPS, Chip
from gpt_jax.config import Config, ModelConfig, TrainConfig, override
from gpt_jax.config.known_settings import KNOWN
from gpt_jax.devices import GIB
from gpt_jax.model.loss import loss_fn
from gpt_jax.training.state import state_shapes

SMALL = Config(
    model=ModelConfig(n_layer=2, n_head=4, n_embd=64, block_size=64, dropout=0.0, vocab_size=300),
    train=TrainConfig(batch_size=16),
)

EMPTY = plan.Plan(
    devices="", mesh={}, n_params=0, tokens=0, flops=0, attention="", memory=0, arguments=0,
    limit=None,
)  # fmt: skip


@functools.cache
def small_plan() -> plan.Plan:
    return plan.make_plan(SMALL, sampling=True)


def test_a_plan_says_all_that_it_has_to_say(monkeypatch):
    """Of the dtype that auto stands for, that it is slow there, and of the micro-batch."""
    monkeypatch.setattr(plan, "_make_plan", lambda *args: EMPTY)
    monkeypatch.setattr(plan, "_choose_micro_batch", lambda *args: (4, EMPTY))
    monkeypatch.setattr(plan, "resolve_dtype", lambda config, backend: (config, ("auto is so",)))
    monkeypatch.setattr(plan, "slow_dtype", lambda dtype, backend: "slow here")
    assert plan.make_plan(SMALL).notes == ("auto is so", "slow here")
    auto = override(SMALL, {"train.micro_batch": "auto"})
    assert plan.make_plan(auto).notes == (
        "auto is so", "slow here", "train.micro_batch=auto is 4 of 16"
    )  # fmt: skip


def product_flops(jaxpr) -> int:
    """Operations of all matrix products that a jaxpr computes."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        turns = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            total += turns * product_flops(inner)
    return total


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": True, "head_bias": False},
        {"positions": "rotary", "norm": "rms", "bias": False, "head_bias": False},
        {"activation": "swiglu"},
    ],
)
def test_flops_are_those_of_the_models_products(options):
    """All products of a step, in its jaxpr; vectors are in 6 N too, though they are only added."""
    model = dataclasses.replace(SMALL.model, **options)
    params = state_shapes(model, SMALL.optim).params
    batch = jax.ShapeDtypeStruct((3, model.block_size + 1), jnp.int32)
    step = jax.make_jaxpr(jax.value_and_grad(lambda p, b: loss_fn(model, p, b)))(params, batch)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    n_params = sum(x.size for _, x in leaves)
    vectors = sum(x.size for path, x in leaves if path[-1].key in ("bias", "scale", "head_bias"))
    tokens = 3 * model.block_size
    flops = plan.model_flops(model, n_params, tokens)
    assert flops == product_flops(step.jaxpr) + 6 * tokens * vectors


@pytest.mark.slow
def test_the_operations_of_a_setting_that_the_count_may_not_know_are_not_counted(monkeypatch):
    monkeypatch.delitem(KNOWN, "qk_norm")
    model = dataclasses.replace(SMALL.model, qk_norm=True)
    found = plan.make_plan(dataclasses.replace(SMALL, model=model))
    assert found.flops is None
    assert "unknown floating point operations" in str(found)
    chip = Chip("toy", GIB, flops=1e12, bandwidth=1e9, network=1e8)
    found = dataclasses.replace(found, chip=chip)
    assert list(found.seconds) == ["memory", "network"]
    assert "computing" not in str(found)
    assert found.record()["flops"] is None


@pytest.mark.slow
def test_a_plan_for_this_machine():
    found = small_plan()
    assert found.mesh == {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert found.tokens == 16 * 64
    assert found.fits
    assert found.memory > found.arguments > 8 * 3 * 4 * found.n_params  # Adam's state, 8 devices
    assert found.sampling > 4 * found.n_params
    assert found.seconds == {}  # no data sheet of this CPU
    # Gradients are added up over all devices once, if in several calls, and losses are.
    (reduced,) = found.collectives
    assert (reduced.kind, reduced.group) == ("all-reduce", 8)
    each = 4 * found.n_params * 2 * 7 / 8
    assert each <= reduced.bytes_sent <= 1.01 * each
    assert "fits" in str(found)
    assert "all-reduce" in str(found)
    json.dumps(found.record())


@pytest.mark.slow
def test_parameters_that_are_split_are_gathered():
    found = plan.make_plan(override(SMALL, {"mesh.data": 1, "mesh.fsdp": 8}))
    kinds = {c.kind for c in found.collectives}
    assert "all-gather" in kinds
    assert found.arguments < small_plan().arguments / 4


@pytest.mark.slow
def test_what_does_not_fit_gets_a_way_that_does(monkeypatch):
    config = override(SMALL, {"model.n_layer": 8, "train.batch_size": 64})
    needs = plan.make_plan(config).memory
    monkeypatch.setattr(plan, "memory_limit", lambda device: 0.6 * needs)
    found = plan.make_plan(config)
    assert not found.fits
    assert "does NOT fit" in str(found)
    options, found = plan.find_fitting_config(config)
    assert found.fits
    assert found.memory <= 0.6 * needs
    assert options.startswith("--mesh.data 1 --mesh.fsdp 8")
    monkeypatch.setattr(plan, "make_plan", lambda *args: dataclasses.replace(found, limit=1.0))
    assert plan.find_fitting_config(config) is None


def test_a_compiler_that_gives_up_says_how_much_it_needed(monkeypatch):
    class Lowered:
        def lower(self, *args, **kwargs):
            return self

        def compile(self, options):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
                "space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
            )

    monkeypatch.setattr(plan, "jit_train_chunk", lambda *args: Lowered())
    found = plan.make_plan(SMALL)
    assert found.memory == 20.5 * GIB
    assert not found.fits
    assert "at least 20.50 GiB" in str(found)


@pytest.mark.slow
def test_the_least_time_is_that_of_the_slowest_part():
    chip = Chip("toy", GIB, flops=1e12, bandwidth=1e9, network=1e8)
    found = dataclasses.replace(small_plan(), chip=chip, traffic=5e8)
    assert found.seconds["computing"] == found.flops / 8 / 1e12
    assert found.seconds["memory"] == 0.5
    assert found.seconds["network"] == found.collectives[0].bytes_sent / 1e8
    assert f"bound by memory, at most {found.tokens / 0.5:,.0f} tokens/s" in str(found)


def test_data_sheets_are_plausible():
    for chip in CHIPS.values():
        assert 10 * GIB < chip.memory < 200 * GIB
        assert 5e12 < chip.flops < 1e16  # the least: float32 on a T4
        assert chip.network < chip.bandwidth < 1e13
        assert re.fullmatch(r"\S.*: https://\S+", chip.source), chip.name
    assert len({chip.name for chip in CHIPS.values()}) == len(CHIPS)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    path = tmp_path / "small.py"
    path.write_text(
        "from gpt_jax.config import Config, ModelConfig\n"
        "def get_config():\n"
        "    return Config(model=ModelConfig(n_layer=1, n_embd=16, n_head=2, block_size=8))\n"
    )
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 200)
    command = ["plan", "--config", str(path), "--data.corpus", str(text)]
    assert main.main(command) == 0
    shown = capsys.readouterr().out
    assert "parameters" in shown
    assert main.main([*command, "--json", "--sampling"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["fits"]
    assert record["sampling"] > 0


def test_a_topology_without_libtpu_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert main.main(["plan", "--config", "base", "--topology", "v5e:4x4"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: topology=v5e:4x4 needs libtpu: pip install")
    assert error.count("\n") == 1


def test_amounts_for_people():
    amounts = [0, 999, 1000, 2_483_492, 154_389_504, 19_475_815_800]
    shown = ["0 bytes", "999 bytes", "1 kB", "2.48 MB", "154 MB", "19.5 GB"]
    assert [plan._amount(n) for n in amounts] == shown
    assert plan._amount(np.float64(1234.0)) == "1.23 kB"


@pytest.mark.slow
def test_sampling_takes_a_share_of_the_parameters_on_each_device():
    config = override(SMALL, {"model.n_embd": 256, "model.n_layer": 3})
    one = plan.make_plan(override(config, {"mesh.data": 1}), sampling=True)
    split = plan.make_plan(override(config, {"mesh.data": 1, "mesh.fsdp": 8}), sampling=True)
    assert one.sampling > 4 * one.n_params
    # A program on a CPU gathers what it multiplies, a layer at a time.
    assert split.sampling < one.sampling / 2

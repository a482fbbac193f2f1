"""One device, many devices: the same training, and nothing large on every one of them."""

import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from conftest import TINY
from jax.sharding import PartitionSpec

from gpt_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gpt_jax.errors import ConfigError
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.model import attention
from gpt_jax.parallel.mesh import AXES, make_mesh, resolve_axis_sizes
from gpt_jax.parallel.sharding import (
    ACTIVATION_RULES,
    PARAMETER_RULES,
    activation_spec,
    batch_sharding,
)
from gpt_jax.prng import Keys
from gpt_jax.training import compiled_steps, trainer
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.state import TrainState
from gpt_jax.training.trainer import train

STEPS_UP = np.random.default_rng(0).integers(0, 2, 4_000)
TOKENS = (STEPS_UP.cumsum() % 11).astype(np.int32)  # each is the last or the next: to be learned
MODEL = dataclasses.replace(TINY, n_layer=2, n_head=4, n_embd=32, block_size=24)
STEPS, CHUNK = 20, 10
LAYOUTS = {
    "8 data": MeshConfig(),
    "8 fsdp": MeshConfig(data=1, fsdp=8),
    "2 x 2 x 2": MeshConfig(data=2, fsdp=2, tensor=2),
    "2 data, 4 sequence": MeshConfig(data=2, sequence=4),
    "2 fsdp, 2 tensor, 2 sequence": MeshConfig(data=1, fsdp=2, tensor=2, sequence=2),
}
ONE = MeshConfig(data=1)
KINDS = {
    "adamw": (MODEL, OptimConfig(), TrainConfig(batch_size=16)),
    "muon, clipped, in parts": (
        MODEL,
        OptimConfig(optimizer="muon", clip=0.5),
        TrainConfig(batch_size=32, micro_batch=16),
    ),
    # On one device 3 chunks of 10 of 24 positions, on 4 that share time 3 of 2 of 6.
    "rotary, blockwise, losses in chunks": (
        dataclasses.replace(
            MODEL, positions="rotary", attention="blockwise", dropout=0.0, embedding_dropout=0.2
        ),
        OptimConfig(),
        TrainConfig(batch_size=16, loss_chunk=160),
    ),
}
# Each kind meets each axis, and each layout some kind.
MEETS = {
    "adamw": ["8 data", "8 fsdp", "2 x 2 x 2", "2 data, 4 sequence"],
    "muon, clipped, in parts": ["2 x 2 x 2", "2 fsdp, 2 tensor, 2 sequence"],
    "rotary, blockwise, losses in chunks": ["2 x 2 x 2", "2 data, 4 sequence"],
}


@pytest.fixture(autouse=True, scope="module")
def several_blocks():
    """Blockwise attention in 3 blocks of 8 queries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "QUERY_BLOCK", 8)
        compiled_steps.jit_functions.cache_clear()
        yield
    compiled_steps.jit_functions.cache_clear()


@functools.cache
def programs_of(kind: str, mesh: MeshConfig) -> CompiledSteps:
    model, optim, train = KINDS[kind]
    train = dataclasses.replace(train, steps=STEPS)
    split = Dataset.from_shards((TOKENS,), len(TOKENS))
    config = Config(model=model, optim=optim, train=train, mesh=mesh)
    return CompiledSteps(config, {"train": split, "val": split})


def run(kind: str, mesh: MeshConfig, noise: int | None = None):
    """20 steps with dropout: the losses, and the parameters at the end.

    With `noise`, the first parameters are moved by at most a unit in their last place.
    """
    programs = programs_of(kind, mesh)
    state = first_state(kind)
    if noise is not None:
        random = np.random.default_rng(noise)
        eps = np.finfo(np.float32).eps

        def move(x):
            return (x * (1 + eps * random.uniform(-1, 1, x.shape))).astype(np.float32)

        state = state.replace(params=jax.tree.map(move, state.params))
    losses, state = take_steps(programs, place(state, programs), programs.keys())
    return losses, jax.device_get(state.params)


@functools.cache
def first_state(kind: str) -> TrainState:
    """The state before the first step, made by one device; on the host."""
    programs = programs_of(kind, ONE)
    return jax.device_get(programs.init_state(programs.keys()))


def place(state: TrainState, programs: CompiledSteps) -> TrainState:
    """A state of the host on the devices of `programs`, in memory that they may take."""
    return jax.tree.map(
        lambda x, like: jax.device_put(np.array(x), like.sharding), state, programs.abstract_state
    )


def take_steps(programs: CompiledSteps, state: TrainState, keys: Keys):
    """Returns the losses of 20 steps and the state after them; one program takes 10."""
    losses = []
    for step in range(0, STEPS, CHUNK):
        state, metrics = programs.train_chunk(state, keys, step, CHUNK)
        losses.append(np.asarray(metrics["loss"], np.float64))
    return np.concatenate(losses), state


@functools.cache
def one_device(kind: str):
    """What one device gives, and how far rounding alone may lead away from it.

    Rounding grows from step to step, so its reach is measured: three runs on one device from
    parameters that differ in the last place. Layouts add up in another order in every product of
    every step, not in the first parameters alone: ten times the largest distance is allowed. (A
    batch or a dropout mask that differed would move a loss by some 1e-2: see the test below.)
    """
    losses, params = run(kind, ONE)
    loss_reach, param_reach = np.full(STEPS, 1e-6), 0.0
    for noise in range(3):
        other_losses, other_params = run(kind, ONE, noise)
        loss_reach = np.maximum(loss_reach, np.abs(other_losses - losses))
        param_reach = max(param_reach, distance(params, other_params))
    return losses, params, 10 * np.maximum.accumulate(loss_reach), 10 * param_reach


def distance(a, b) -> float:
    """The largest difference of two parameters."""
    return max(
        float(np.abs(np.asarray(x) - y).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "layout"),
    [(kind, name) for kind, names in MEETS.items() for name in names],
)
def test_every_layout_trains_the_same(kind, layout):
    losses, params, loss_reach, param_reach = one_device(kind)
    assert loss_reach[-1] < 5e-3, "rounding alone would hide a wrong mask"
    found_losses, found_params = run(kind, LAYOUTS[layout])
    assert (np.abs(found_losses - losses) <= loss_reach).all()
    assert distance(params, found_params) <= param_reach
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_another_batch_or_mask_would_be_seen():
    losses, _, loss_reach, _ = one_device("adamw")
    programs = programs_of("adamw", ONE)
    keys = programs.keys()
    first = first_state("adamw")
    for other in ({"data": keys.eval}, {"dropout": keys.eval}):
        found, _ = take_steps(programs, place(first, programs), keys.replace(**other))
        assert (np.abs(found - losses) > 3 * loss_reach).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_what_the_optimizer_keeps_are_split(kind):
    """Whatever is larger than a width's worth of numbers lies in quarters on 2 x 2 devices.

    They make the state of one device: each draws its own part of the same numbers.
    """
    programs = programs_of(kind, LAYOUTS["2 x 2 x 2"])
    state = programs.init_state(programs.keys())
    assert distance(state.params, first_state(kind).params) < 1e-7
    state, _ = programs.train_chunk(state, programs.keys(), 0, CHUNK)
    large = 0
    for leaf in jax.tree.leaves(state):
        if leaf.size > 4 * MODEL.n_embd * MODEL.n_layer:
            parts = {shard.data.size for shard in leaf.addressable_shards}
            assert parts == {leaf.size // 4}, leaf.shape
            large += 1
    assert large >= 3 * 5  # the kernels of a model, and two moments of each


def collectives(program) -> list[tuple[str, int]]:
    """(kind, numbers in the largest result) of each collective of a compiled program."""
    found = []
    line_of = re.compile(
        r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
    )
    for match in line_of.finditer(program.as_text()):
        shapes = re.findall(r"\[([\d,]*)\]", match[1])
        sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes]
        found.append((match[2], max(sizes)))
    return found


def test_every_rule_names_axes_of_the_mesh():
    for axes in ACTIVATION_RULES.values():
        assert set(axes) <= set(AXES)
    for _, spec in PARAMETER_RULES:
        for axes in spec:
            assert {axes} - {None} <= set(AXES) or set(axes) <= set(AXES)


def test_batches_and_activations_share_one_table(monkeypatch):
    """What constrains a batch and what constrains activations read ACTIVATION_RULES."""
    mesh = make_mesh(8, sizes=LAYOUTS["2 x 2 x 2"])
    assert batch_sharding(mesh, axis=1).spec == PartitionSpec(None, ("data", "fsdp"))
    assert activation_spec("batch", "heads") == PartitionSpec(
        ("data", "fsdp"), ("tensor", "sequence")
    )
    monkeypatch.setitem(ACTIVATION_RULES, "batch", ("data",))
    assert batch_sharding(mesh).spec == PartitionSpec(("data",))
    assert activation_spec("batch") == PartitionSpec(("data",))


@pytest.mark.slow
def test_what_devices_tell_one_another():
    """Over fsdp a layer's parameters, over tensor its results for the device's own sequences, over
    sequence what attention reads and gives."""
    found = {}
    for layout in ("1", *MEETS["adamw"]):
        mesh = LAYOUTS.get(layout, ONE)
        found[layout] = collectives(programs_of("adamw", mesh).chunk_program(CHUNK).result())
    kernel = 4 * MODEL.n_embd**2  # of the MLP, the largest
    states = 16 // 4 * MODEL.block_size * MODEL.n_embd
    assert found["1"] == []
    assert {kind for kind, _ in found["8 data"]} == {"all-reduce"}  # of gradients
    gathered = [size for kind, size in found["8 fsdp"] if kind == "all-gather"]
    assert max(gathered) == max(size for _, size in found["8 fsdp"]) == kernel
    gathered = [size for kind, size in found["2 x 2 x 2"] if kind == "all-gather"]
    summed = [size for kind, size in found["2 x 2 x 2"] if kind == "all-reduce"]
    assert max(gathered) <= max(kernel // 2, states)
    # Attention's and the MLP's results forward, and the gradients of what they read backward.
    assert summed.count(states) == 4 * MODEL.n_layer
    assert max(size for _, size in found["2 x 2 x 2"]) <= max(kernel // 2, states)
    # Over sequence, of q, k, v and attention's result a part for each device, and of gradients.
    moved = [size for kind, size in found["2 data, 4 sequence"] if kind == "all-to-all"]
    part = 16 // 2 * MODEL.block_size * MODEL.n_embd // 4 // 4
    assert moved == 8 * MODEL.n_layer * [part]
    gathered = [size for kind, size in found["2 data, 4 sequence"] if kind == "all-gather"]
    assert max(gathered) <= MODEL.block_size * MODEL.n_embd  # the table of positions


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint_on_another_mesh(tmp_path, monkeypatch):
    """The same batches and masks: what differs is rounding, some 1e-6 after so few steps."""
    # What comes after the last step is in test_loading.py.
    monkeypatch.setattr(trainer, "finalize", lambda run, *args: run)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")

    def go_on(name: str, steps: int, mesh: MeshConfig):
        train_config = TrainConfig(
            batch_size=16, steps=steps, eval_interval=10, eval_batches=2, checkpoint_interval=10
        )
        config = Config(
            run_dir=str(tmp_path / name), model=dataclasses.replace(MODEL, n_layer=1, vocab_size=0),
            data=DataConfig(corpus=str(text)), train=train_config, mesh=mesh,
        )  # fmt: skip
        return {row["step"]: row for row in train(config, quiet=True).rows}

    expected = go_on("whole", 20, ONE)
    go_on("parts", 10, LAYOUTS["8 fsdp"])
    found = go_on("parts", 20, LAYOUTS["2 fsdp, 2 tensor, 2 sequence"])
    assert found.keys() == expected.keys()
    for step, row in expected.items():
        for name in ("loss", "val_loss"):
            if name in row:
                assert found[step][name] == pytest.approx(row[name], abs=1e-4)


def test_a_mesh_of_its_settings():
    assert make_mesh(8).shape == {"data": 8, "fsdp": 1, "tensor": 1, "sequence": 1}
    assert resolve_axis_sizes(MeshConfig(), 12, 8) == (6, 1, 1, 1)
    assert resolve_axis_sizes(MeshConfig(fsdp=2), 12, 8) == (3, 2, 1, 1)
    assert resolve_axis_sizes(MeshConfig(data=2, fsdp=-1), 12, 8) == (2, 3, 1, 1)
    assert resolve_axis_sizes(MeshConfig(data=1, tensor=-1), 12, 8, 6) == (1, 1, 6, 1)
    assert resolve_axis_sizes(MeshConfig(data=1, tensor=-1, sequence=2), 12, 8, 6) == (1, 1, 3, 2)
    assert resolve_axis_sizes(MeshConfig(data=1, sequence=-1), 12, 8, 12, 64) == (1, 1, 1, 4)
    assert resolve_axis_sizes(MeshConfig(data=1, tensor=3, sequence=-1), 12, 8, 12, 64) == (
        1,
        1,
        3,
        2,
    )
    assert resolve_axis_sizes(MeshConfig(data=1), 7, 8) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("sizes", "batch", "message"),
    [
        ({"data": 4, "fsdp": 4}, 16, "ask for 16 devices, and there are 8"),
        ({"data": 2, "fsdp": 2}, 6, r"4 devices .* can't share 6 sequences .* divisible by 4"),
        ({"data": -1, "fsdp": -1}, 8, "mesh.data and mesh.fsdp are both -1"),
        ({"fsdp": 0}, 8, "mesh.fsdp=0 must be a whole number of at least 1, or -1"),
    ],
)
def test_a_mesh_that_can_t_be_is_refused(sizes, batch, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(batch, sizes=MeshConfig(**sizes))


def test_heads_that_the_tensor_axis_does_not_divide_are_refused_with_advice():
    model = ModelConfig(n_head=25, n_embd=1600)
    with pytest.raises(
        ConfigError,
        match=r"mesh\.tensor=2 must divide model\.n_head=25; try mesh\.tensor=1 or 5 or 25, or",
    ):
        Config(model=model, mesh=MeshConfig(tensor=2))


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        (
            ModelConfig(block_size=36),
            {"sequence": 8},
            "mesh.sequence=8 must divide model.block_size=36; try mesh.sequence=4",
        ),
        (
            ModelConfig(n_head=12, n_embd=48),
            {"sequence": 8},
            "mesh.sequence=8 must divide model.n_head=12, as attention shares heads; "
            "try mesh.sequence=4",
        ),
        (
            ModelConfig(n_head=12, n_embd=48, n_kv_head=6),
            {"tensor": 2, "sequence": 2},
            "mesh.tensor=2 x mesh.sequence=2 must divide model.n_kv_head=6, as attention shares "
            "heads; try mesh.sequence=1",
        ),
        (
            ModelConfig(n_head=3, n_embd=48),
            {"data": 1, "tensor": -1, "sequence": 2},
            "mesh.sequence=2 must divide model.n_head=3",
        ),
    ],
)
def test_sequences_that_devices_can_t_share_are_refused_with_advice(model, sizes, message):
    with pytest.raises(ConfigError, match=message):
        Config(model=model, mesh=MeshConfig(**sizes))


def test_a_width_that_devices_can_t_share_is_refused():
    model = dataclasses.replace(MODEL, n_embd=36)
    config = Config(model=model, train=TrainConfig(batch_size=16), mesh=LAYOUTS["8 fsdp"])
    split = Dataset.from_shards((TOKENS,), len(TOKENS))
    with pytest.raises(ConfigError, match=r"mesh\.fsdp=8.*8 devices can't share .* shape"):
        CompiledSteps(config, {"train": split, "val": split})

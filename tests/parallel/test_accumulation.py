"""Gradient accumulation on several devices: summed over them once a step, and the same."""

import functools

import jax
import numpy as np
import pytest

from gpt_jax.analysis import plan
from gpt_jax.analysis.hlo import HloProgram
from gpt_jax.config import (
    Config,
    MeshConfig,
    ModelConfig,
    TrainConfig,
    fix_schedule,
    load_config,
    override,
)
from gpt_jax.model import GPT
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.sharding import make_map_over_data, mesh_context, state_shardings
from gpt_jax.training.memory import fits_whole_params
from gpt_jax.training.step import loss_and_grads

MODEL = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, dropout=0.2, vocab_size=11)
B = 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("masks", "sizes"),
    [
        ("batch", MeshConfig()), ("micro_batch", MeshConfig()), ("batch", MeshConfig(fsdp=4)),
        ("micro_batch", MeshConfig(fsdp=2)), ("batch", MeshConfig(fsdp=2)),
    ],
)  # fmt: skip
def test_devices_sum_their_micro_batches_first_and_the_means_are_the_same(masks, sizes):
    """With dropout: each row has the mask that it has on one device.

    Sums of 4 x 4 in another order: 8 roundings of values below 1, and as many within.
    """
    train = TrainConfig(batch_size=B, micro_batch=4, dropout_masks=masks)
    ids = np.random.default_rng(0).integers(0, MODEL.vocab_size, (B // 4, 4, 9), np.int32)
    key = jax.random.key(3)
    params = jax.jit(GPT(MODEL).init)(jax.random.key(0), ids[0, :, :8])["params"]
    mesh = make_mesh(4, jax.devices()[:4], sizes)
    split = make_map_over_data(mesh, whole_params=True)
    compute = functools.partial(loss_and_grads, MODEL, train=train)
    whole = jax.jit(lambda *args: compute(*args))(params, ids, key)
    with mesh_context(mesh):
        shards = jax.device_put(params, state_shardings(params, mesh))
        mapped = jax.jit(lambda *args: compute(*args, map_over_data=split))
        program = mapped.lower(shards, ids, key).compile()
    parts = program(shards, ids, key)
    placed = jax.tree.map(
        lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), parts[1], shards
    )
    assert all(jax.tree.leaves(placed))
    # No collective is repeated for each of the four micro-batches.
    found = HloProgram(program.as_text()).collectives()
    assert sum(c.times for c in found) <= 2 * len(jax.tree.leaves(params)) + 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=16 * 2.0**-24), whole, parts
    )


@pytest.mark.slow
def test_gradients_are_all_reduced_once_a_step_however_many_micro_batches():
    config = Config(model=MODEL, train=TrainConfig(batch_size=B, micro_batch=4))
    planned = plan.make_plan(override(config, {"mesh.data": 4}))
    reduced = [c for c in planned.collectives if c.kind == "all-reduce"]
    assert sum(c.times for c in reduced) <= 2  # the gradients, and perhaps the loss
    sent = sum(c.bytes_sent for c in reduced)
    # A ring sends 2 x 3/4 of the float32 gradients and the loss.
    assert sent == pytest.approx(1.5 * 4 * (planned.n_params + 1), rel=0.01)


@pytest.mark.parametrize(
    "sizes",
    [
        MeshConfig(data=1), MeshConfig(data=2, fsdp=2), MeshConfig(data=2, tensor=2),
        MeshConfig(data=2, sequence=2),
    ],
)  # fmt: skip
def test_where_other_axes_split_it_is_left_to_xla(sizes):
    mesh = make_mesh(4, jax.devices()[:4], sizes, 2, 8)
    assert make_map_over_data(mesh) is None
    alone = sizes.tensor == sizes.sequence == 1 and mesh.size > 1
    assert (make_map_over_data(mesh, whole_params=True) is not None) == alone


GB = 10**9


@pytest.mark.parametrize(
    ("name", "mesh", "backend", "limit", "expected"),
    [
        ("base", (1, 8, 1, 1), "cuda 9.0", 60 * GB, True),
        ("base", (2, 4, 1, 1), "tpu", 16 * GB, True),
        ("xl", (1, 8, 1, 1), "cuda 9.0", 60 * GB, True),
        ("xl", (1, 8, 1, 1), "tpu", 16 * GB, False),  # 18.7 GB of copies
        ("base", (1, 8, 1, 1), "cuda 9.0", 2 * GB, False),
        ("base", (1, 8, 1, 1), "cuda 9.0", None, False),
        ("base", (1, 8, 1, 1), "cpu", 600 * GB, False),
        ("base", (8, 1, 1, 1), "cuda 9.0", 60 * GB, False),
        ("base", (1, 4, 2, 1), "cuda 9.0", 60 * GB, False),
        ("base", (1, 4, 1, 2), "cuda 9.0", 60 * GB, False),
    ],
)
def test_whole_parameters_are_gathered_where_the_memory_holds_them(
    name, mesh, backend, limit, expected
):
    config = override(fix_schedule(load_config(name)), {"train.micro_batch": 16})
    assert fits_whole_params(config, mesh, backend, limit) == expected
    whole = override(config, {"train.micro_batch": None, "train.batch_size": 16})
    assert not fits_whole_params(whole, mesh, backend, limit)  # there is nothing to save

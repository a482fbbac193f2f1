"""Gradient accumulation on several devices: summed over them once a step, and the same."""

import functools

import jax
import numpy as np
import pytest

from gpt_jax.analysis import plan
from gpt_jax.config import Config, MeshConfig, ModelConfig, TrainConfig, override
from gpt_jax.model import GPT
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.sharding import make_map_over_data
from gpt_jax.training.step import loss_and_grads

MODEL = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=8, dropout=0.2, vocab_size=11)
B = 16


@pytest.mark.slow
@pytest.mark.parametrize("masks", ["batch", "micro_batch"])
def test_devices_sum_their_micro_batches_first_and_the_means_are_the_same(masks):
    """With dropout: each row has the mask that it has on one device.

    Sums of 4 x 4 in another order: 8 roundings of values below 1, and as many within.
    """
    train = TrainConfig(batch_size=B, micro_batch=4, dropout_masks=masks)
    ids = np.random.default_rng(0).integers(0, MODEL.vocab_size, (B // 4, 4, 9), np.int32)
    key = jax.random.key(3)
    params = jax.jit(GPT(MODEL).init)(jax.random.key(0), ids[0, :, :8])["params"]
    split = make_map_over_data(make_mesh(4, jax.devices()[:4]))
    compute = functools.partial(loss_and_grads, MODEL, train=train)
    whole = jax.jit(lambda *args: compute(*args))(params, ids, key)
    parts = jax.jit(lambda *args: compute(*args, map_over_data=split))(params, ids, key)
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
    assert make_map_over_data(make_mesh(4, jax.devices()[:4], sizes, 2, 8)) is None

"""XLA changes from one sharding to another by steps, not by a copy of all of it on each device.

Where it finds no way it gathers everything everywhere, and says so while it compiles: "involuntary
full rematerialization".
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from jax._src import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt_jax.config import Config, MeshConfig, TrainConfig
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.sharding import mesh_context
from gpt_jax.training.compiled_steps import abstract_inputs, jit_train_chunk, recent_losses_spec

WARNING = "involuntary full rematerialization"
MODEL = dataclasses.replace(TINY, n_head=4, n_embd=32, block_size=24)
TIED = dataclasses.replace(MODEL, tied=True, head_bias=False)
KINDS = {
    "a head of its own": Config(model=MODEL, train=TrainConfig(batch_size=16)),
    "tied, in micro-batches, the loss in chunks": Config(
        model=TIED, train=TrainConfig(batch_size=16, micro_batch=8, loss_chunk=48)
    ),
}
MESHES = {
    "4 fsdp x 2 tensor": MeshConfig(data=1, fsdp=4, tensor=2),
    "2 x 2 x 2": MeshConfig(data=2, fsdp=2, tensor=2),
}


def lower_step(config: Config, mesh_config: MeshConfig) -> jax.stages.Lowered:
    config = dataclasses.replace(config, mesh=mesh_config)
    model, train = config.model, config.train
    mesh = make_mesh(
        train.micro_batch_size, jax.devices(), config.mesh, model.kv_heads, model.block_size
    )
    layout = abstract_inputs(config, mesh)
    with mesh_context(mesh):
        return jit_train_chunk(config, mesh).lower(
            layout.state, layout.gathered(1), layout.keys, recent_losses_spec(train, mesh),
            layout.hyper, steps=1,
        )  # fmt: skip


def what_xla_says(lowered: jax.stages.Lowered, capfd) -> str:
    """Standard error, in small letters, while a program is compiled."""
    capfd.readouterr()
    lowered.compile()
    return capfd.readouterr().err.lower()


@pytest.fixture(autouse=True)
def compiled_anew(monkeypatch):
    """A program from the compilation cache would say nothing."""
    monkeypatch.setattr(compilation_cache, "is_cache_used", lambda backend: False)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("kind", KINDS)
def test_no_array_of_a_step_is_gathered_whole_for_want_of_a_way(kind, mesh, capfd):
    assert WARNING not in what_xla_says(lower_step(KINDS[kind], mesh), capfd)


@pytest.mark.parametrize(
    ("axes", "seen"), [(("fsdp", "tensor"), True), (("tensor", "fsdp"), False)]
)
def test_a_gather_without_a_way_is_seen(axes, seen, capfd):
    """Of tokens from an embedding whose width has this order, to the batch over fsdp."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("fsdp", "tensor"))
    sharded = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
    embedding_VD = jax.ShapeDtypeStruct((94, 32), jnp.float32, sharding=sharded(None, axes))
    ids_BT = jax.ShapeDtypeStruct((16, 24), jnp.int32, sharding=sharded("fsdp"))

    @jax.jit
    def look_up(embedding_VD, ids_BT):
        x_BTD = jnp.take(embedding_VD, ids_BT, axis=0)
        return 2 * jax.lax.with_sharding_constraint(x_BTD, sharded("fsdp"))

    assert (WARNING in what_xla_says(look_up.lower(embedding_VD, ids_BT), capfd)) == (
        axes[0] == "fsdp"
    )

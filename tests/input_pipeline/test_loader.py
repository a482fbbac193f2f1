"""Feeds: the same batches from the devices and from the host, two chunks in memory, no silence."""

import dataclasses
import functools
import threading

import jax
import numpy as np
import pytest
from conftest import TINY as TWO_LAYERS

from gpt_jax.config import Config, DataConfig, MeshConfig, TrainConfig
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline import loader as module
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.input_pipeline.loader import BatchLoader, fits
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.training.compiled_steps import CompiledSteps

TINY = dataclasses.replace(TWO_LAYERS, n_layer=1)
TOKENS = np.arange(700, dtype=np.uint16) ** 2 % 11
TRAIN = TrainConfig(
    batch_size=8, steps=12, log_interval=2, eval_interval=4, eval_batches=3, checkpoint_interval=4
)
SPLITS = {
    "train": Dataset.from_shards((TOKENS[:300], TOKENS[300:390], TOKENS[390:600]), None),
    "val": Dataset.from_shards((TOKENS[600:],), 100),
}


def config(**data):
    return Config(model=TINY, train=TRAIN, data=DataConfig(**data), mesh=MeshConfig(data=2))


@functools.cache
def first_state():
    """The state before the first step, on the host."""
    programs = CompiledSteps(config(), SPLITS)
    return jax.device_get(programs.init_state(programs.keys()))


def run(resident, order):
    """Twelve steps and their evaluations, which know no order, in the calls of `trainer.py`."""
    programs = CompiledSteps(config(resident=resident, order=order), SPLITS)
    place = lambda x, like: jax.device_put(np.array(x), like.sharding)
    state = jax.tree.map(place, first_state(), programs.abstract_state)
    keys, losses = programs.keys(), []
    for step in range(0, 12, 2):
        state, metrics = programs.train_chunk(state, keys, step, 2)
        losses += metrics["loss"].tolist()
        if order == "random":
            losses += programs.evaluate(state, keys, step + 2).tolist()
    programs.close()
    return losses, jax.device_get(state.params)


@pytest.mark.slow
@pytest.mark.usefixtures("own_compiler_options")
@pytest.mark.parametrize("order", ["random", "epochs"])
def test_losses_are_the_same_bit_for_bit_wherever_the_tokens_lie(order):
    (device, device_params), (host, host_params) = run("device", order), run("host", order)
    assert device == host
    assert len(set(device)) == len(device)
    jax.tree.map(np.testing.assert_array_equal, device_params, host_params)


def host_loader(**data):
    return BatchLoader(config(resident="host", **data), SPLITS, make_mesh(8))


def test_batches_are_a_function_of_the_step_alone():
    """However one came to it: with what was prepared, without, or with what was for other steps."""
    first = host_loader()
    first.prefetch(0, 2)
    ahead = [np.asarray(first.train_batches(step, 2)) for step in (0, 2, 4)]
    other = host_loader()
    other.prefetch(8, 2)
    np.testing.assert_array_equal(ahead[2], other.train_batches(4, 2))
    assert ahead[0].shape == (2, 8, 9)
    assert ahead[0].dtype == np.int32
    assert other.train_batches(4, 2).sharding.is_equivalent_to(
        jax.sharding.NamedSharding(make_mesh(8), jax.sharding.PartitionSpec(None, "data")), 3
    )
    first.close()
    other.close()


def test_no_chunk_is_gathered_before_the_one_two_before_it_is_computed(monkeypatch):
    """So at most two are in memory: one that is computed, one that waits."""
    computed, gathered = threading.Event(), threading.Event()
    loader = host_loader()
    loader.train_batches(0, 2)  # the sampler is compiled
    monkeypatch.setattr(module.jax, "block_until_ready", lambda x: x and computed.wait(60))
    gather = module.gather_on_host
    monkeypatch.setattr(module, "gather_on_host", lambda *a: gathered.set() or gather(*a))
    loader.prefetch(2, 2, after="a chunk")
    assert not gathered.wait(0.2)
    computed.set()
    assert loader.train_batches(2, 2).shape == (2, 8, 9)
    assert gathered.is_set()
    loader.close()


@pytest.mark.slow
def test_programs_prepare_the_next_chunk_after_the_one_before(monkeypatch):
    programs = CompiledSteps(config(resident="host"), SPLITS)
    keys, asked = programs.keys(), []
    prefetch = programs.loader.prefetch
    monkeypatch.setattr(
        programs.loader,
        "prefetch",
        lambda step, steps, after=None: asked.append((step, after)) or prefetch(step, steps, after),
    )
    state, of_chunks = programs.init_state(keys), []
    for step in range(0, 12, 2):
        state, metrics = programs.train_chunk(state, keys, step, 2)
        of_chunks.append(metrics)
    programs.close()
    assert [step for step, _ in asked] == [0, 2, 4, 6, 8, 10]  # none beyond the last step
    assert [after for _, after in asked] == [None, None, *of_chunks[:4]]


@pytest.mark.parametrize("resident", ["device", "host"])
def test_an_id_beyond_the_vocabulary_is_one_line(resident):
    damaged = TOKENS.copy()
    damaged[::10] = 11
    splits = {**SPLITS, "train": Dataset.from_shards((damaged[:300], damaged[300:600]), None)}
    small = config(resident=resident)
    with pytest.raises(UserError, match=r"has id 11, and its tokenizer 11 tokens: .* prepare it"):
        BatchLoader(small, splits, make_mesh(8)).train_batches(0, 2)


def test_an_error_in_the_thread_comes_to_who_waits(monkeypatch):
    loader = host_loader()

    def fail(*args):
        raise MemoryError("no room for a batch")

    monkeypatch.setattr(module, "gather_on_host", fail)
    loader.prefetch(0, 2)
    with pytest.raises(MemoryError, match="no room"):
        loader.train_batches(0, 2)
    loader.close()


@dataclasses.dataclass
class Device:
    platform: str
    stats: dict | None

    def memory_stats(self):
        return self.stats


def mesh_of(device, n):
    devices = np.array([device] * n)
    return type("Mesh", (), {"devices": devices, "local_devices": devices, "size": n})


@pytest.mark.parametrize(
    ("device", "n", "most"),
    [
        (Device("gpu", {"bytes_limit": 4000}), 4, 1000),  # a quarter of each
        (Device("cpu", {"bytes_limit": 4000}), 4, 2**28),  # 1 GiB of all together
        (Device("tpu", None), 1, 2**30),
    ],
)
def test_tokens_lie_on_the_devices_where_they_take_a_documented_share(device, n, most):
    assert fits(most, mesh_of(device, n))
    assert not fits(most + 1, mesh_of(device, n))


def test_a_feed_says_what_it_holds():
    assert host_loader().describe() == (
        "gathered by the host, at most 2 chunks of 0.0 MiB at a time, from 0.0 MiB of tokens"
    )
    on_device = BatchLoader(config(), SPLITS, make_mesh(8))
    assert on_device.is_resident
    assert on_device.describe() == "cut from tokens on each device, 0.0 MiB"

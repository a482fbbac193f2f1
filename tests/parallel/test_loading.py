"""A run whose parameters are split over devices is evaluated, sampled and exported in shares."""

import jax
import numpy as np
import pytest
from device_bytes import most_on_a_device, watch

import gpt_jax
import main
from gpt_jax.config import Config, MeshConfig, ModelConfig, override
from gpt_jax.errors import ConfigError
from gpt_jax.parallel.mesh import params_mesh, params_mesh_over_hosts
from gpt_jax.training.init_from import load_source

FSDP = {"mesh.data": 1, "mesh.fsdp": 8}
WIDE = {
    "model.n_embd": 64, "model.n_head": 4, "model.n_layer": 2, "train.steps": 4,
    "model.head_bias": False, "model.qkv_bias": True,  # as GPT-2's format can hold
}  # fmt: skip


@pytest.fixture
def split_run(tiny_config, finished_run):
    """A run that was trained on 8 devices, each with a share of the parameters."""
    return finished_run(tiny_config, **WIDE, **FSDP)


@pytest.fixture
def watched(monkeypatch):
    """A list, to which each batch of an evaluation and each prefill adds `most_on_a_device()`."""
    seen = []
    watch(monkeypatch.setattr, lambda name, n_bytes: seen.append(n_bytes))
    return seen


@pytest.mark.slow
def test_no_device_holds_more_than_its_share(tiny_config, finished_run, watched):
    before = most_on_a_device()
    finished = finished_run(tiny_config, **WIDE, **FSDP)
    during = list(watched)
    watched.clear()
    run_dir, n_params = finished.run_dir, sum(x.size for x in jax.tree.leaves(finished.params))
    del finished
    for sizes, devices in (
        (None, 8),
        (MeshConfig(fsdp=4, tensor=2), 8),
        (MeshConfig(fsdp=2), 2),
        (MeshConfig(), 1),
    ):
        run = gpt_jax.load_run(run_dir, mesh=sizes)
        used = {d for x in jax.tree.leaves(run.params) for d in x.devices()}
        assert len(used) == devices
        share = 4 * n_params / devices
        # Norms, biases and, over 2 x 4 devices, what only one axis splits are whole on each.
        assert most_on_a_device() - before < 1.5 * share
        assert gpt_jax.evaluate(run).nats_per_token == pytest.approx(
            run.summary["val"]["nats_per_token"], rel=1e-6
        )
        texts = gpt_jax.generate(run, "the ", max_new_tokens=12)
        if sizes is None:
            expected = texts
            watched += during
        if devices == 8:
            # The parameters, the same in the order of decoding, and a cache of 8 positions.
            assert max(watched) - before < 3.2 * share
        assert texts == expected
        watched.clear()
        del run, used


def test_the_mesh_to_load_on_has_the_axes_of_training():
    def shape(requested, n, kv_heads=4):
        return tuple(params_mesh(requested, kv_heads, jax.devices()[:n]).shape.values())

    assert shape(MeshConfig(), 8) == (1, 1, 1, 1)
    assert shape(MeshConfig(data=2, fsdp=4), 8) == (1, 4, 1, 1)
    assert shape(MeshConfig(data=1, fsdp=-1, tensor=2), 8) == (1, 4, 2, 1)
    assert shape(MeshConfig(data=1, fsdp=4, tensor=2), 4) == (1, 2, 2, 1)
    assert shape(MeshConfig(data=1, fsdp=16), 6) == (1, 4, 1, 1)
    assert shape(MeshConfig(data=1, fsdp=8, tensor=2), 1) == (1, 1, 1, 1)
    assert shape(MeshConfig(data=1, fsdp=2, sequence=4), 8) == (1, 2, 1, 1)


def test_an_axis_that_takes_what_there_is_splits_the_parameters_evenly():
    def shape(requested, n, **sizes):
        return tuple(params_mesh(requested, devices=jax.devices()[:n], **sizes).shape.values())

    assert shape(MeshConfig(data=1, fsdp=-1), 6, n_embd=16) == (1, 4, 1, 1)
    assert shape(MeshConfig(data=1, fsdp=-1, tensor=2), 6, n_embd=16) == (1, 2, 2, 1)
    assert shape(MeshConfig(data=1, fsdp=-1), 5, n_embd=7) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("axes", "hosts", "shape"),
    [
        ({"data": 1, "fsdp": 8}, 2, (1, 8, 1, 1)),
        ({"data": 1, "fsdp": -1}, 2, (1, 8, 1, 1)),
        ({"data": 1, "fsdp": 4, "tensor": 2}, 2, (1, 4, 2, 1)),
        ({"data": 1, "fsdp": 4, "sequence": 2}, 4, (2, 4, 1, 1)),
        ({"data": 2, "fsdp": 4}, 2, None),  # each host has four devices
        ({"data": 2, "fsdp": 4}, 4, (2, 4, 1, 1)),
        ({"data": 8}, 4, None),
        ({"data": 1, "fsdp": 8}, 1, None),
    ],
)
def test_hosts_load_together_what_training_splits_over_them(monkeypatch, axes, hosts, shape):
    own = jax.devices()[: 8 // hosts]
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    monkeypatch.setattr(jax, "local_devices", lambda: own)
    config = Config(model=ModelConfig(n_head=4, n_embd=16), mesh=MeshConfig(**axes))
    mesh = params_mesh_over_hosts(config)
    assert (None if mesh is None else tuple(mesh.shape.values())) == shape


@pytest.mark.slow
def test_the_commands_load_on_the_mesh_that_they_name(split_run, capsys):
    run_dir = str(split_run.run_dir)
    texts = set()
    for options in ([], ["--mesh.fsdp", "2"], ["--mesh.fsdp=4", "--mesh.tensor=2"]):
        argv = ["sample", "--run-dir", run_dir, "--seed", "1", "--max-new-tokens", "12", *options]
        assert main.main(argv) == 0
        assert main.main(["eval", "--run-dir", run_dir, *options]) == 0
        texts.add(capsys.readouterr().out)
    assert len(texts) == 1
    for sizes, message in (
        ({"fsdp": 3}, "mesh.fsdp=3"),
        ({"fsdp": 16}, "ask for 16 devices"),
        ({"tensor": 3}, "mesh.tensor=3"),
    ):
        with pytest.raises(ConfigError, match=message):
            gpt_jax.load_run(run_dir, mesh=MeshConfig(**sizes))


@pytest.mark.slow
def test_a_split_run_is_exported_whole(split_run, tmp_path):
    source = load_source(override(split_run.config, {"init_from": str(split_run.run_dir)}))
    assert {d for x in jax.tree.leaves(source.params) for d in x.devices()} == {jax.devices()[0]}
    gpt_jax.run.load.export(split_run, tmp_path / "gpt2")
    _, params = gpt_jax.hf.load(tmp_path / "gpt2")
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(split_run.params))

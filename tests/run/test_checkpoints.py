"""Checkpoints: whole or absent, verified, and the newest sound one wins."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from gpt_jax.errors import UserError
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.sharding import replicated
from gpt_jax.run import checkpoints
from gpt_jax.run.checkpoints import CheckpointError, CheckpointWriter, best_step, restore, steps
from gpt_jax.storage import Folder
from gpt_jax.training.state import TrainState


def state(value: float):
    return {"kernel": jnp.full((300, 10), value), "step": jnp.int32(value)}


def target(sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state(0)
    )


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    writer = CheckpointWriter(folder, keep_newest=2)
    for step in (1, 2, 3):
        writer.save(step, state(step), {"seed": 0})
    writer.close()
    return folder


@pytest.fixture
def saved(saved_once, tmp_path):
    """A run folder with checkpoints of steps 2 and 3."""
    return shutil.copytree(saved_once, tmp_path, dirs_exist_ok=True)


def test_the_newest_are_kept_and_the_last_one_loads(saved):
    assert steps(saved) == [2, 3]
    step, loaded, messages = restore(saved, target())
    assert (step, messages) == (3, [])
    np.testing.assert_array_equal(loaded["kernel"], state(3)["kernel"])
    assert not [p for p in (saved / "checkpoints").iterdir() if "tmp" in p.name]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keep_newest", "keep_interval", "keep_best", "left"),
    [
        (1, None, False, [8]),
        (20, None, False, [1, 2, 3, 4, 5, 6, 7, 8]),
        (1, 3, False, [3, 6, 8]),
        (1, None, True, [2, 8]),
        (2, 5, True, [2, 5, 7, 8]),
    ],
)
def test_which_checkpoints_stay(tmp_path, keep_newest, keep_interval, keep_best, left):
    writer = CheckpointWriter(tmp_path, keep_newest, keep_interval, keep_best)
    losses = [3.0, 2.0, 2.5, None, 2.0, 2.25, None, 4.0]  # the lowest twice: the first counts
    for step, loss in enumerate(losses, 1):
        writer.save(step, state(step), {}, loss)
    writer.close()
    assert steps(tmp_path) == left
    folders = [p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()]
    assert sorted(map(int, folders)) == left
    assert best_step(tmp_path) == (2 if 2 in left else min(left, key=lambda s: losses[s - 1] or 9))
    for step in left:
        found, loaded, _ = restore(tmp_path, target(), [step])
        assert (found, float(loaded["kernel"][0, 0])) == (step, float(state(step)["kernel"][0, 0]))


def test_manifests_without_a_validation_loss_have_no_best(saved):
    assert best_step(saved) is None
    path = saved / "checkpoints" / "00000002.json"
    path.write_text(path.read_text().replace('"val_loss": null', '"val_loss": 1.5'))
    assert best_step(saved) == 2
    assert best_step(saved, {2: 1.5, 9: 1.0}) == 2
    with pytest.raises(UserError, match=r"2.json is damaged: its val_loss is 1.5, and 1.25 in the"):
        best_step(saved, {2: 1.25})
    path.write_text(path.read_text().replace("1.5", "NaN"))
    assert best_step(saved) is None
    assert "val_loss is nan" in checkpoints.problem(checkpoints.path_of(saved, 2))
    path.write_text("{")
    assert best_step(saved) is None


def test_nothing_saved_is_step_0(tmp_path):
    assert restore(tmp_path, target()) == (0, None, [])


def test_a_checkpoint_loads_onto_other_devices(saved):
    mesh = make_mesh(4)
    _, loaded, _ = restore(saved, target(replicated(mesh)))
    assert loaded["kernel"].sharding.mesh == mesh


def files(path):
    return sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.slow
def test_every_damage_to_every_file_is_found_and_the_one_before_is_used(saved, tmp_path):
    newest = saved / "checkpoints" / "00000003"
    names = files(newest)
    assert len(names) >= 5
    backup = tmp_path / "backup"
    shutil.copytree(newest, backup)
    tried = 0
    for name in names:
        for harm in (truncate, flip, lambda p: p.write_bytes(b""), lambda p: p.unlink()):
            before = (newest / name).read_bytes()
            if not before and harm in (truncate, flip):
                continue  # an empty file can't be cut or flipped
            harm(newest / name)
            if (newest / name).exists() and (newest / name).read_bytes() == before:
                continue  # emptying an empty file changes nothing
            step, loaded, messages = restore(saved, target())
            assert step == 2, (name, harm)
            assert float(loaded["kernel"][0, 0]) == 2
            assert len(messages) == 1
            assert name.as_posix() in messages[0]
            tried += 1
            shutil.rmtree(newest)
            shutil.copytree(backup, newest)
    assert tried >= 4 * (len(names) - 2)
    assert restore(saved, target())[0] == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1}', "[" * 100_000, "\x00"])
def test_a_damaged_manifest_is_named(saved, content):
    (saved / "checkpoints" / "00000003.json").write_text(content)
    step, _, messages = restore(saved, target())
    assert step == 2
    assert "its manifest" in messages[0]


def test_a_manifest_of_a_newer_format_is_not_read(saved):
    path = saved / "checkpoints" / "00000003.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    assert "has format 99, from a newer gpt_jax" in restore(saved, target())[2][0]


def test_no_sound_checkpoint_is_an_error_that_names_each(saved):
    for name in ("00000002", "00000003"):
        flip(next(p for p in (saved / "checkpoints" / name).rglob("_METADATA")))
    with pytest.raises(
        CheckpointError, match=r"00000003 is damaged.*00000002 is damaged.*no valid"
    ):
        restore(saved, target())


def test_an_unexpected_file_is_damage(saved):
    (saved / "checkpoints" / "00000003" / "extra").write_text("x")
    assert "extra does not belong to it" in restore(saved, target())[2][0]


def test_a_folder_without_manifest_is_what_a_kill_left_and_is_cleared(saved):
    (saved / "checkpoints" / "00000003.json").unlink()
    (saved / "checkpoints" / "00000004.orbax-checkpoint-tmp").mkdir()
    assert restore(saved, target())[0] == 2
    CheckpointWriter(saved, keep_newest=2).close()
    assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == [
        "00000002",
        "00000002.json",
    ]


def test_a_damaged_checkpoint_is_replaced_by_saving_its_step_again(saved):
    flip(next((saved / "checkpoints" / "00000003").rglob("_METADATA")))
    writer = CheckpointWriter(saved, keep_newest=2)
    writer.save(3, state(33), {})
    writer.close()
    step, loaded, messages = restore(saved, target())
    assert (step, messages) == (3, [])
    assert float(loaded["kernel"][0, 0]) == 33


def test_a_state_of_another_shape_is_refused(saved):
    wrong = {**target(), "kernel": jax.ShapeDtypeStruct((7, 10), jnp.float32)}
    with pytest.raises(CheckpointError, match="00000003 does not fit its config"):
        restore(saved, wrong)


def bytes_read():
    """How many bytes of files tensorstore, under orbax, has read in this process."""
    metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/")
    return next(m["values"][0]["value"] for m in metrics if m["name"].endswith("/bytes_read"))


def train_state(seed: int):
    """Parameters with two moments, of random numbers: nothing of it can be compressed."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params, mu, nu = ({"kernel": jax.random.normal(key, (256, 1024))} for key in keys)
    return {"step": jnp.int32(seed), "params": params, "opt_state": {"mu": mu, "nu": nu}}


def on_one_device(tree):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with a checkpoint of `train_state(1)`, to be read only."""
    folder = tmp_path_factory.mktemp("trained")
    writer = CheckpointWriter(folder, keep_newest=1)
    writer.save(1, train_state(1), {})
    writer.close()
    return folder


def test_only_the_parameters_are_read_for_a_model(trained, monkeypatch):
    made, copy = [], checkpoints._copy_out_of_shared_memory
    record = lambda array: made.append(array.nbytes) or copy(array)  # every array that was loaded
    monkeypatch.setattr(checkpoints, "_copy_out_of_shared_memory", record)
    whole, size = on_one_device(train_state(1)), 256 * 1024 * 4
    before = bytes_read()
    loaded = checkpoints.load(trained, 1, whole)
    all_bytes, before = bytes_read() - before, bytes_read()
    assert sorted(made) == [4, size, size, size]
    made.clear()
    params = checkpoints.load_params(trained, 1, whole["params"])
    np.testing.assert_array_equal(params["kernel"], train_state(1)["params"]["kernel"])
    np.testing.assert_array_equal(params["kernel"], loaded["params"]["kernel"])
    assert made == [size]
    assert bytes_read() - before < 0.4 * all_bytes
    assert all_bytes > 2.7 * size  # of that kind were these


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [
        {"kernel": jax.ShapeDtypeStruct((256, 7), jnp.float32)},
        {"kernel": jax.ShapeDtypeStruct((256, 1024), jnp.float32)} | {"bias": jnp.zeros(7)},
        {"weight": jax.ShapeDtypeStruct((256, 1024), jnp.float32)},
        {},
    ],
)
def test_parameters_of_another_model_are_refused(trained, target):
    with pytest.raises(CheckpointError, match="00000001 does not fit its config: "):
        checkpoints.load_params(trained, 1, on_one_device(target))


def test_a_checkpoint_without_parameters_is_refused(saved):
    with pytest.raises(CheckpointError, match="00000003 does not fit its config: 'params'"):
        checkpoints.load_params(saved, 3, target())


def test_a_state_is_copied_array_by_array(tmp_path, monkeypatch):
    """What is read lies beside its copy for one array at a time, of four here."""
    writer = CheckpointWriter(tmp_path, keep_newest=1)
    one = {f"kernel {i}": jnp.full((512, 512), i, jnp.float32) for i in range(4)}
    writer.save(1, one, {})
    writer.close()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), one)
    del one
    before = sum(x.nbytes for x in jax.live_arrays())
    alive, copy = [], checkpoints._copy_out_of_shared_memory

    def counted(array):
        made = copy(array)
        alive.append(sum(x.nbytes for x in jax.live_arrays()) - before)
        return made

    monkeypatch.setattr(checkpoints, "_copy_out_of_shared_memory", counted)
    _, loaded, _ = restore(tmp_path, target)
    assert max(alive) == 5 * 2**20
    assert [float(x[0, 0]) for x in loaded.values()] == [0, 1, 2, 3]


def test_without_memory_for_a_state_that_is_what_is_said(saved, monkeypatch):
    def fail(*args):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr("orbax.checkpoint.v1.load", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Out of memory"):
        restore(saved, target())


def test_saving_is_safe_against_donation(tmp_path):
    """The arrays may be overwritten as soon as save returns, while the files are still written."""
    writer = CheckpointWriter(tmp_path, keep_newest=1)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    now = {"kernel": jnp.zeros((3000, 100)), "step": jnp.int32(0)}
    writer.save(5, now, {})
    for _ in range(50):
        now = step(now)
    jax.block_until_ready(now)
    writer.close()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), now)
    _, loaded, _ = restore(tmp_path, wanted)
    assert float(jnp.abs(loaded["kernel"]).max()) == 0


def test_a_failed_save_is_reported_and_keeps_what_was_there(saved, monkeypatch):
    writer = CheckpointWriter(saved, keep_newest=2)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "write", full)
    writer.save(4, state(4), {})
    with pytest.raises(CheckpointError, match=r"No space left on device.*the last valid one is 3"):
        writer.wait()
    writer.close()
    assert restore(saved, target())[0] == 3


def test_a_users_own_folder_among_the_checkpoints_stays(saved):
    (saved / "checkpoints" / "best").mkdir()
    (saved / "checkpoints" / "best" / "notes.txt").write_text("precious")
    CheckpointWriter(saved, keep_newest=2).close()
    assert (saved / "checkpoints" / "best" / "notes.txt").read_text() == "precious"


@pytest.mark.slow
def test_a_checkpoint_just_saved_is_never_the_one_that_goes(saved):
    flip(next((saved / "checkpoints" / "00000003").rglob("_METADATA")))
    (saved / "checkpoints" / "00000002.json").unlink()
    writer = CheckpointWriter(saved, keep_newest=1)
    writer.save(2, state(22), {})
    writer.close()
    step, loaded, _ = restore(saved, target())
    assert (step, float(loaded["kernel"][0, 0])) == (2, 22)


def rename(folder, *moves):
    """Moves checkpoints with their manifests: (from, to), one after the other."""
    for old, new in moves:
        for suffix in ("", ".json"):
            (folder / f"{old}{suffix}").rename(folder / f"{new}{suffix}")


def test_checkpoints_that_changed_names_are_noticed(saved):
    folder = saved / "checkpoints"
    rename(folder, ("00000003", "t"), ("00000002", "00000003"), ("t", "00000002"))
    with pytest.raises(CheckpointError, match="00000003 is damaged: its manifest is that of s"):
        restore(saved, target())
    rename(folder, ("00000002", "t"), ("00000003", "00000002"), ("t", "00000003"))
    assert restore(saved, target())[0] == 3
    rename(folder, ("00000003", "00000009"))
    step, _, (message,) = restore(saved, target())
    assert step == 2
    assert "00000009 is damaged: its manifest is that of step 3" in message


def give_id(folder, run_id):
    record = {
        "format": 1,
        "corpus": {"name": "a", "sha256": "b"},
        "seed": 1,
        "model": {"n_embd": 8},
        "data": {"train_fraction": 0.8},
        "train": {"batch_size": 4, "steps": 8},
        "optim": {"learning_rate": 1e-3, "floor": 0.1},
    }
    (folder / "config.json").write_text(json.dumps(record | ({"id": run_id} if run_id else {})))


@pytest.mark.parametrize(("theirs", "ours"), [("a", "b"), ("a", None), (None, "b")])
def test_a_checkpoint_of_another_run_is_noticed(tmp_path, theirs, ours):
    for name, run_id in (("theirs", theirs), ("ours", ours)):
        (tmp_path / name).mkdir()
        give_id(tmp_path / name, run_id)
    writer = CheckpointWriter(tmp_path / "theirs", keep_newest=2)
    writer.save(2, state(2), {})
    writer.close()
    assert restore(tmp_path / "theirs", target())[0] == 2
    shutil.copytree(tmp_path / "theirs" / "checkpoints", tmp_path / "ours" / "checkpoints")
    with pytest.raises(CheckpointError, match="its manifest is that of another run"):
        restore(tmp_path / "ours", target())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"seed": 2}, "seed is 2 there and 1 here"),
        ({"model": {"n_embd": 8, "n_head": 2}}, ""),  # what this release does not know
        ({"model": {"n_embd": 16}}, "model.n_embd is 16 there"),
        ({"train": {"steps": 9}}, ""),
        ({"optim": {"floor": 0.0}}, ""),
        ({"data": {"train_fraction": 0.5}}, "data.train_fraction is 0.5 there and 0.8 here"),
        ({"train": {"batch_size": 2}}, "train.batch_size is 2 there and 4 here"),
        ({"optim": {"learning_rate": 2e-3}}, "optim.learning_rate is 0.002 there"),
        ({"model": {"n_embd": 8, "attention": "xla"}}, ""),
    ],
)
def test_the_settings_in_a_checkpoint_are_compared(tmp_path, settings, line):
    give_id(tmp_path, None)
    writer = CheckpointWriter(tmp_path, keep_newest=2)
    writer.save(2, state(2), settings)
    writer.close()
    if line:
        with pytest.raises(CheckpointError, match=f"it is that of another run: {line}"):
            restore(tmp_path, target())
    else:
        assert restore(tmp_path, target())[0] == 2


def test_a_setting_of_the_model_that_is_left_out_is_compared(tmp_path):
    give_id(tmp_path, "x")
    writer = CheckpointWriter(tmp_path, keep_newest=2)
    writer.save(2, state(2), {"model": {"n_embd": 8, "tied": True, "glow": 1}})
    writer.close()
    with pytest.raises(CheckpointError, match=r"model\.tied is True there and left out here"):
        restore(tmp_path, target())


def test_the_parameters_of_another_step_are_refused(tmp_path):
    """As where somebody made the manifest fit."""
    writer = CheckpointWriter(tmp_path, keep_newest=1)
    writer.save(4, train_state(1), {})
    writer.close()
    with pytest.raises(CheckpointError, match="its state is that of step 1"):
        checkpoints.load_params(tmp_path, 4, on_one_device(train_state(1))["params"])


def test_the_state_of_another_step_is_refused(tmp_path):
    made = TrainState(**train_state(3))
    writer = CheckpointWriter(tmp_path, keep_newest=2)
    for step in (3, 4):
        writer.save(step, made, {})
    writer.close()
    loaded = checkpoints.load(tmp_path, 3, on_one_device(made))
    assert int(loaded.step) == 3
    with pytest.raises(CheckpointError, match="its state is that of step 3"):
        checkpoints.load(tmp_path, 4, on_one_device(made))


@pytest.mark.parametrize("where", ["top", "deep"])
@pytest.mark.parametrize("target_of", [".", "..", "/", "nothing"])
def test_a_link_in_a_checkpoint_is_damage_and_not_followed(saved, where, target_of):
    folder = saved / "checkpoints" / "00000003"
    if where == "deep":
        folder = next(path for path in folder.iterdir() if path.is_dir())
    (folder / "link").symlink_to(target_of)
    step, _, (message,) = restore(saved, target())
    assert step == 2
    assert "link is a symbolic link" in message
    with pytest.raises(UserError, match="link is a symbolic link"):
        checkpoints.load(saved, 3, target())


@pytest.mark.parametrize("name", ["00000003", "00000003.json"])
def test_a_linked_checkpoint_or_manifest_is_damage(saved, tmp_path, name):
    path = saved / "checkpoints" / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    step, _, (message,) = restore(saved, target())
    assert step == 2
    assert "is a symbolic link" in message
    writer = CheckpointWriter(saved, keep_newest=2)
    writer.save(3, state(3), {})  # in the place of the link
    writer.close()
    assert restore(saved, target())[0] == 3
    assert (tmp_path / "elsewhere").exists()


def test_linked_checkpoints_are_refused_and_nothing_is_removed_there(tmp_path):
    (tmp_path / "victim" / "00000007").mkdir(parents=True)
    (tmp_path / "victim" / "2024").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "victim")
    for act in (
        lambda: CheckpointWriter(tmp_path / "run", keep_newest=1),
        lambda: steps(tmp_path / "run"),
        lambda: restore(tmp_path / "run", target()),
    ):
        with pytest.raises(UserError, match=r"run/checkpoints is a symbolic link.*in its place"):
            act()
    assert sorted(p.name for p in (tmp_path / "victim").iterdir()) == ["00000007", "2024"]


@pytest.mark.parametrize("name", ["2024", "\u00b2", "\u0664" * 8, "1" * 40, "-0000001", "0000001"])
def test_a_name_that_no_checkpoint_has_is_nobodys(saved, name):
    (saved / "checkpoints" / name).mkdir()
    (saved / "checkpoints" / f"{name}.json").write_text("{}")
    CheckpointWriter(saved, keep_newest=2).close()
    assert steps(saved) == [2, 3]
    assert (saved / "checkpoints" / name).is_dir()


def test_an_unfinished_manifest_of_a_killed_process_is_cleared(saved):
    (saved / "checkpoints" / ".00000003.json.123").write_text("{")
    CheckpointWriter(saved, keep_newest=2).close()
    assert not (saved / "checkpoints" / ".00000003.json.123").exists()

"""Starting from weights that are there: GPT-2 folders, runs, names on Hugging Face's hub."""

import dataclasses
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from conftest import ROOT, stopped_at

import gpt_jax
import main
from gpt_jax import devices, hf
from gpt_jax.config import ModelConfig, override
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.hf.tokenizer import save_tokenizer
from gpt_jax.input_pipeline.shards.writer import ShardWriter
from gpt_jax.run.metrics import read_rows
from gpt_jax.tokenizer import GPT2_PATTERN, BpeTokenizer
from gpt_jax.training import trainer
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.init_from import start_from
from gpt_jax.training.run_setup import prepare_run

GPT2 = ModelConfig(
    n_layer=1, n_head=4, n_embd=16, block_size=12, dropout=0.1, embedding_dropout=0.1,
    activation="gelu", qkv_bias=True, head_bias=False, tied=True, residual_init_scale=True,
    vocab_size=257,
)  # fmt: skip
BYTES = BpeTokenizer([bytes([b]) for b in range(256)], GPT2_PATTERN, {"<|endoftext|>": 256})


@pytest.fixture
def tiny_config(tiny_config):
    return override(tiny_config, {"optim.learning_rate": 1e-2})


@pytest.fixture(scope="module")
def saved_gpt2(tmp_path_factory):
    """A GPT-2 folder of random weights, far from uniform, whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("hf") / "gpt2"
    init = gpt_jax.GPT(GPT2).init
    params = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.7, x.shape).astype(np.float32), params)
    hf.save(folder, GPT2, params, end_token=256)
    save_tokenizer(folder, BYTES, 12)
    return folder


@pytest.fixture
def gpt2(saved_gpt2, tmp_path):
    return shutil.copytree(saved_gpt2, tmp_path / "gpt2")


def train(config, source, **values):
    config = dataclasses.replace(config, init_from=str(source))
    return gpt_jax.train(start_from(config, values), quiet=True)


def digest(params):
    return hashlib.sha256(b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(params)))


@pytest.mark.slow
def test_fine_tuning_goes_on_from_the_imported_models_loss(tiny_config, gpt2, book):
    """The first row is the folder's loss, far above a new model's, and training lowers it."""
    run = train(tiny_config, gpt2)
    imported = gpt_jax.load_run(gpt2)
    exact = gpt_jax.evaluate(imported, corpus_name=str(book)).nats_per_token
    rows = read_rows(run.run_dir)
    # A token's loss has a standard deviation below 3 nats: the mean of 2 x 8 x 12 one of 0.22.
    assert rows[0]["val_loss"] == pytest.approx(exact, abs=0.66)
    assert exact > np.log(257) + 1  # a new model's loss is near log 257
    assert rows[-1]["val_loss"] < rows[0]["val_loss"] - 1
    assert run.config.model == dataclasses.replace(GPT2, vocab_size=257)
    assert run.tokenizer.to_json() == BYTES.to_json()
    assert (run.config.data.tokenizer, run.config.data.vocab_size) == ("bpe", 257)
    origin = json.loads((run.run_dir / "config.json").read_text())["origin"]
    assert origin == {
        "source": str(gpt2), "path": str(gpt2), "step": 0, "block_size": 12,
        "sha256": digest(imported.params).hexdigest(),
    }  # fmt: skip


@pytest.mark.slow
def test_the_state_begins_with_the_folders_parameters_where_the_table_says(tiny_config, gpt2):
    config = dataclasses.replace(tiny_config, init_from=str(gpt2))
    start = prepare_run(start_from(config, {"model.block_size": 8}))
    programs = CompiledSteps(start.config, start.splits)
    state = programs.state_from_params(start.params)
    fresh = programs.init_state(programs.keys())
    _, params = hf.load(gpt2)
    params["positions"] = params["positions"][:8]
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)
    assert int(state.step) == 0
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), programs.abstract_state
    )
    programs.close()


@pytest.mark.slow
def test_a_run_starts_from_a_run(command, tiny_config, finished_run):
    first = finished_run(tiny_config, **{"optim.learning_rate": 3e-4})
    config = dataclasses.replace(tiny_config, run_dir="other", init_from="run")
    start = prepare_run(start_from(config, {"model.block_size": 6}))
    expected = {**first.params, "positions": first.params["positions"][:6]}
    jax.tree.map(np.testing.assert_array_equal, start.params, expected)
    assert start.config.model == dataclasses.replace(first.config.model, block_size=6)
    assert start.tokenizer.vocabulary == first.tokenizer.vocabulary
    assert start.config.data.tokenizer == "char"
    assert start.origin["step"] == 12
    assert start.origin["sha256"] == digest(first.params).hexdigest()
    line = command("export --run-dir run --out out", status=2)
    assert line.startswith("error: model.head_bias=True is not supported in a GPT-2 folder")
    assert not os.path.exists("out")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.n_layer": 3}, "model.n_layer is 1 there and 3 here"),
        ({"model.n_head": 3}, "model.n_head is 4 there and 3 here"),
        ({"model.activation": "relu"}, "model.activation is gelu there and relu here"),
        ({"model.block_size": 16}, "model.block_size is 12 there and 16 here"),
        ({"data.tokenizer": "char"}, "data.tokenizer=char can't be chosen: init_from="),
        ({"data.vocab_size": 300}, "data.vocab_size=300 can't be chosen: init_from="),
        ({"model.dropout": 1.0}, "model.dropout=1.0 must be a number in [0, 1)"),
    ],
)
def test_what_contradicts_the_folder_is_named(tiny_config, gpt2, values, message):
    with pytest.raises(ConfigError) as caught:
        train(tiny_config, gpt2, **values)
    assert message in str(caught.value)
    assert not os.path.exists(tiny_config.run_dir)


def test_settings_that_never_met_the_folders_are_named_too(tiny_config, gpt2):
    config = dataclasses.replace(tiny_config, init_from=str(gpt2))
    with pytest.raises(ConfigError, match=r"n_head is 4 there and 2 here; model.activation is"):
        gpt_jax.train(config, quiet=True)
    assert not os.path.exists(tiny_config.run_dir)


def test_a_gpt2_folder_is_no_place_for_a_run(tiny_config, gpt2):
    config = override(tiny_config, {"run_dir": str(gpt2)})
    with pytest.raises(
        UserError, match=r"is a GPT-2 folder; fine-tune it .* --init-from .*gpt2 --run"
    ):
        gpt_jax.train(config, quiet=True)
    assert not (gpt2 / "checkpoints").exists()


def test_a_gpt2_folder_has_no_corpus_of_its_own(gpt2):
    with pytest.raises(UserError, match=r"which has no corpus; name one with --data\.corpus"):
        gpt_jax.evaluate(gpt_jax.load_run(gpt2))


# --- prepared corpora -----------------------------------------------------------------------------


@pytest.fixture
def gpt2_of_its_own_tokens(tmp_path, gpt2_files, monkeypatch, no_vocabularies):
    """A GPT-2 folder of random weights that has vocab.json and merges.txt, as the published one."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
    config = dataclasses.replace(GPT2, n_embd=4, block_size=8, vocab_size=50257)
    shapes = jax.eval_shape(gpt_jax.GPT(config).init, jax.random.key(0), np.zeros((1, 1), np.int32))
    folder = tmp_path / "published"
    hf.save(folder, config, jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes["params"]))
    for file in gpt2_files.iterdir():
        is_vocabulary = file.read_bytes()[:1] == b"{"
        shutil.copy(file, folder / ("vocab.json" if is_vocabulary else "merges.txt"))
    return folder


@pytest.mark.slow
def test_gpt2s_weights_go_on_with_a_corpus_prepared_with_gpt2s_tokens(
    tiny_config, tmp_path, gpt2_of_its_own_tokens
):
    """tiktoken spells GPT-2's pattern in another way, and cuts every text alike."""
    published = BpeTokenizer.published("gpt2")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    writer = ShardWriter(corpus, published, 100)
    for split in ("train", "val"):
        writer.append(split, np.arange(60) * 7)
    writer.finish("gpt2", {"train": 1, "val": 1})
    config = override(tiny_config, {"data.corpus": str(corpus)})
    config = dataclasses.replace(config, init_from=str(gpt2_of_its_own_tokens))
    start = prepare_run(start_from(config, {}))
    assert start.tokenizer.pattern != published.pattern
    assert start.corpus.tokenizer.to_json() == published.to_json()


def test_ids_of_a_folder_that_names_no_tokenizer_are_the_sources(tiny_config, tmp_path, gpt2):
    """llm.c's and nanoGPT's folders say nothing of it; else GPT-2's are meant."""
    folder = tmp_path / "nanogpt"
    folder.mkdir()
    for split in ("train", "val"):
        (folder / f"{split}.bin").write_bytes(np.arange(60, dtype="<u2").tobytes())
    config = override(tiny_config, {"data.corpus": str(folder)})
    start = prepare_run(start_from(dataclasses.replace(config, init_from=str(gpt2)), {}))
    assert start.corpus.tokenizer is start.tokenizer
    assert start.tokenizer.to_json() == BYTES.to_json()


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys, gpt2, tmp_path):
    """Runs a command beside the folder gpt2; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "request_cpu_devices", lambda *args, **kwargs: None)

    def run(words: str, status: int = 0) -> str:
        capsys.readouterr()
        assert main.main(words.split()) == status
        out, err = capsys.readouterr()
        return err if status else out

    return run


TINY = (
    "--train.batch-size 8 --train.steps 2 --train.eval-interval 2 --train.eval-batches 1 "
    "--train.checkpoint-interval 2 --sample.max-new-tokens 3"
)


@pytest.mark.slow
def test_import_train_export_and_back(command, book, tmp_path):
    text = command("sample --run-dir gpt2 --prompt Toto --max-new-tokens 9 --temperature 0")
    assert text == command(
        "sample --init-from gpt2 --prompt Toto --max-new-tokens 9 --temperature 0"
    )
    assert text.startswith("Toto")
    figures = json.loads(command(f"eval --run-dir gpt2 --data.corpus {book} --json"))
    assert figures["corpus"] == {"name": str(book)}

    out = command(
        f"--init-from gpt2 --data.corpus {book} --run-dir mine --model.block-size 8 "
        f"--model.dropout 0 --sample.prompt the {TINY}"
    )
    assert re.search(r"from +gpt2, parameters' sha256", out)
    assert "cut to the first 8 of its 12 positions" in out
    mine = gpt_jax.load_run("mine")
    assert mine.config.model == dataclasses.replace(GPT2, block_size=8, dropout=0.0)
    assert mine.config.sample.prompt == "the"

    out = command("export --run-dir mine --out out")
    assert "wrote out: config.json, model.safetensors, tokenizer.json" in out
    exported = gpt_jax.load_run("out")
    assert exported.tokenizer.to_json() == mine.tokenizer.to_json()
    jax.tree.map(np.testing.assert_array_equal, exported.params, mine.params)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 256
    assert gpt_jax.evaluate(exported, corpus_name=str(book)) == gpt_jax.evaluate(mine)
    line = command("export --run-dir mine --out out", status=2)
    assert line == "error: out already holds config.json; choose another folder\n"


def test_a_config_file_may_start_from_a_folder(command, book, monkeypatch, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from gpt_jax.config import *\ndef get_config():\n"
        "    return Config(init_from='gpt2', model=ModelConfig(dropout=0.3))\n"
    )
    calls = []
    monkeypatch.setattr(trainer, "train", calls.append)
    command("--config mine.py --model.block-size 8")
    command("--config mine.py --model.dropout 0")
    command("--config nano --init-from gpt2")
    models = [config.model for config in calls]
    assert models == [
        dataclasses.replace(GPT2, dropout=0.3, block_size=8),
        dataclasses.replace(GPT2, dropout=0.0),
        GPT2,
    ]
    # How a model is computed is the config's; base is bfloat16.
    command("--config base --init-from gpt2")
    command("--config xl --init-from gpt2 --model.dtype float32 --model.attention plain")
    assert [config.model for config in calls[3:]] == [
        dataclasses.replace(GPT2, dtype="bfloat16"),
        dataclasses.replace(GPT2, remat="full", attention="plain"),
    ]
    line = command("--config mine.py --model.n-layer 3", status=2)
    assert "init_from=gpt2 is another model: model.n_layer is 1 there and 3 here" in line


def test_a_folder_that_is_none_is_one_line(command):
    line = command("--init-from gpt3", status=2)
    assert line.startswith("error: gpt3 does not exist; give a run, a GPT-2 folder, or a name on")


# --- the hub --------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of Hugging Face's hub as a download takes: one model, me/gpt2."""

    folder = ROOT
    asked: list[str]

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer()

    def answer(self, head=False):
        sha = "0" * 40
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/me/gpt2/"):
            names = [*(p.name for p in self.folder.iterdir()), "pytorch_model.bin", "run.py"]
            record = {"id": "me/gpt2", "sha": sha, "siblings": [{"rfilename": n} for n in names]}
            entries = [{"type": "file", "path": n, "size": 1, "oid": sha} for n in names]
            body, status = json.dumps(entries if "/tree/" in self.path else record).encode(), 200
        elif self.path.startswith("/me/gpt2/resolve/") and (self.folder / name).is_file():
            self.asked.append(name)
            body, status = (self.folder / name).read_bytes(), 200
        else:
            body, status = b"{}", 404
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", sha)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_a_name_on_the_hub_is_downloaded_without_its_pickles(saved_gpt2, tmp_path):
    Hub.folder, Hub.asked = saved_gpt2, []
    program = """
import sys
from gpt_jax import hf
from gpt_jax.errors import UserError
for name in sys.argv[1:]:
    try:
        print(hf.find(name))
    except UserError as error:
        print("error:", error)
"""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*", "no_proxy": "*",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", program, "me/gpt2", "me/none"],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        server.shutdown()
    folder, missing = done.stdout.splitlines()
    files = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(Hub.asked) == files
    assert sorted(os.listdir(folder)) == sorted(set(Hub.asked))
    assert hf.load(folder)[0] == hf.load(saved_gpt2)[0]
    assert missing.startswith(
        "error: me/none is not a folder, and can't be downloaded from Hugging"
    )
    assert missing.endswith("check the name and the network, or give a folder")


def test_without_the_hubs_package_a_name_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        UserError, match=r"me/gpt2 is not a folder; .*: pip install huggingface_hub"
    ):
        hf.find("me/gpt2")


# --- killed before the first checkpoint -----------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_starts_from_the_same_and_later_goes_on_without_the_folder(
    tiny_config, gpt2, tmp_path
):
    """Before its first checkpoint, not from random parameters, whose loss is another."""
    whole = train(dataclasses.replace(tiny_config, run_dir=str(tmp_path / "whole")), gpt2)
    for step in (0, 2, 8):  # two before the first checkpoint, one after it
        with stopped_at(step):
            train(tiny_config, gpt2)
    shutil.rmtree(gpt2)
    again = train(tiny_config, gpt2)
    assert [row.get("loss") for row in again.rows] == [row.get("loss") for row in whole.rows]
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
    with pytest.raises(ConfigError, match=r"model.n_layer is 1 there and 3 here"):
        train(tiny_config, gpt2, **{"model.n_layer": 3})


@pytest.mark.slow
def test_what_a_killed_run_started_from_must_be_the_same(tiny_config, gpt2):
    with stopped_at(0):
        train(tiny_config, gpt2)
    other = jax.tree.map(lambda x: x + 1, gpt_jax.load_run(gpt2).params)
    shutil.rmtree(gpt2)
    hf.save(gpt2, GPT2, other, end_token=256)
    save_tokenizer(gpt2, BYTES, 12)
    with pytest.raises(UserError, match=r"has other parameters than when .* began; restore"):
        train(tiny_config, gpt2)


# --- a checkpoint of choice -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_starts_from_the_checkpoint_that_is_named(tiny_config, finished_run, tmp_path):
    values = {"run_dir": str(tmp_path / "a"), "optim.learning_rate": 3e-4}
    first = finished_run(tiny_config, **values)
    chosen = {
        name: override(dataclasses.replace(tiny_config, init_from=str(first.run_dir)),
                       {"checkpoint": name, "run_dir": str(tmp_path / f"from-{name}")})
        for name in ("newest", "best", 8)
    }  # fmt: skip
    for name, config in chosen.items():
        setup = prepare_run(start_from(config, {}))
        source = gpt_jax.load_run(first.run_dir, name)
        assert setup.origin["step"] == source.step
        assert digest(setup.params).hexdigest() == digest(source.params).hexdigest()
    assert chosen[8].checkpoint == "8"
    run = gpt_jax.train(start_from(chosen[8], {}), quiet=True)
    assert json.loads((run.run_dir / "config.json").read_text())["origin"]["step"] == 8
    longer = start_from(override(chosen[8], {"train.steps": 14}), {})
    assert gpt_jax.train(longer, quiet=True).step == 14  # the same command resumes
    with pytest.raises(ConfigError, match="checkpoint is 8 there and best here"):
        gpt_jax.train(start_from(override(chosen[8], {"checkpoint": "best"}), {}), quiet=True)


@pytest.mark.parametrize("value", ["last", "-1", "", "1.5", True])
def test_a_checkpoint_that_is_none_is_one_line(tiny_config, value):
    config = dataclasses.replace(tiny_config, init_from="runs/a")
    with pytest.raises(ConfigError, match=r"checkpoint=.* must be"):
        override(config, {"checkpoint": value})


def test_a_checkpoint_without_a_run_is_one_line(tiny_config):
    with pytest.raises(ConfigError, match=r"checkpoint=best is of the run that init_from names"):
        override(tiny_config, {"checkpoint": "best"})


# --- a run saved ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_in_memory_is_saved_loaded_and_resumed(tiny_config, gpt2, tmp_path):
    rows = []
    run = gpt_jax.train(tiny_config, quiet=True, on_row=rows.append)
    assert rows == run.rows
    changed = dataclasses.replace(run, params=jax.tree.map(lambda x: 2 * x, run.params))
    gpt_jax.save_run(changed, tmp_path / "saved")
    found = gpt_jax.load_run(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, found.params, changed.params)
    assert (found.step, found.rows, found.corpus) == (run.step, run.rows, run.corpus)
    assert found.tokenizer.vocab_size == run.tokenizer.vocab_size
    longer = override(tiny_config, {"run_dir": str(tmp_path / "saved"), "train.steps": 14})
    assert gpt_jax.train(longer, quiet=True).step == 14
    with pytest.raises(UserError, match="holds other files"):
        gpt_jax.save_run(run, gpt2.parent)
    with pytest.raises(UserError, match="no steps of training to save"):
        gpt_jax.save_run(gpt_jax.load_run(gpt2), tmp_path / "b")
    other = dataclasses.replace(run, params={"a": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match="other names, shapes or types"):
        gpt_jax.save_run(other, tmp_path / "c")
    assert not (tmp_path / "c").exists()

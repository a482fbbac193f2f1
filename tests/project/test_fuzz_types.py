"""Every value of every JSON file by every type of JSON: read by its reader to the end, or refused.

The readers are those of the verbs: what is read without an error must be usable, too. No value in a
file is looked at before a schema has said what it is.
"""

import copy
import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
from fake_runs import write_run
from safetensors.numpy import save_file

from data.records import read_counts, read_source
from gpt_jax import hf
from gpt_jax.config import Config, override
from gpt_jax.errors import UserError, differences
from gpt_jax.hf.tokenizer import load_tokenizer as load_hf_tokenizer
from gpt_jax.hf.tokenizer import save_tokenizer as save_hf_tokenizer
from gpt_jax.input_pipeline.sequences import write_sequences
from gpt_jax.input_pipeline.shards.reader import open_shards, verify_shards
from gpt_jax.input_pipeline.shards.writer import ShardWriter
from gpt_jax.input_pipeline.text_corpus import TextCorpus
from gpt_jax.integer_tokenizer import IntegerTokenizer
from gpt_jax.run import checkpoints
from gpt_jax.run.folder import create_run, read_config, read_init_from, read_summary, run_record
from gpt_jax.run.metrics import read_rows
from gpt_jax.run.plots import plot_losses
from gpt_jax.tokenizer import BpeTokenizer, CharTokenizer, load_tokenizer
from gpt_jax.training.history import changed_numerics
from gpt_jax.training.resume import resume_config
from gpt_jax.training.rows import step_losses

VALUES = [None, True, 0, -1, 1.5, math.nan, math.inf, 10**400, "", "x", [], [1], {}, {"a": 1}]


def changed(values, path=()) -> Iterator:
    """Yields a nested value with each part in the place of another type, or left out."""
    inner = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in list(inner)[:20]:
        for new in [*VALUES, "left out"]:
            made = copy.deepcopy(values)
            if new == "left out":
                del made[key]
            else:
                made[key] = new
            yield made
        if isinstance(value, dict | list):
            for each in changed(value):
                made = copy.deepcopy(values)
                made[key] = each
                yield made


def try_all(path, values, read):
    """Writes each change of a file; returns (how many were read, how many refused)."""
    counts = [0, 0]
    for made in changed(values):
        path.write_text(json.dumps(made))
        try:
            read()
            counts[0] += 1
        except UserError:
            counts[1] += 1
        except Exception as error:
            raise AssertionError(f"{path.name}: {json.dumps(made)[:2000]}") from error
    return counts


@pytest.mark.slow
def test_a_runs_config(tmp_path):
    config = override(Config(), {"model.vocab_size": 4, "data.corpus": "oz", "train.steps": 4})
    origin = {"source": "gpt2", "path": "/gpt2", "step": 0, "block_size": 8, "sha256": "a"}
    record = {"prng": "threefry2x32", "jax": "0.1", "mesh": "1x1x1x1"}
    corpus, tokenizer = TextCorpus("oz", "oz", "abcd"), CharTokenizer("abcd")
    create_run(tmp_path / "run", config, corpus, tokenizer, origin, record)
    path = tmp_path / "run" / "config.json"

    def read():
        found, corpus = read_config(path.parent)
        assert f"{corpus['name']} {corpus['sha256'][:12]}"
        read_init_from(path.parent).get("sha256")
        checkpoints.newest_valid(path.parent)
        changed_numerics(path.parent, [], record)
        run_record(path.parent)
        resume_config(found, found, corpus, 0)

    n_read, n_refused = try_all(path, json.loads(path.read_text()), read)
    assert n_read > 300  # what is left out, or too large for a computer, is refused
    assert n_refused > 1200


@pytest.mark.parametrize("name", ["model.n_head", "data.train_fraction", "optim.beta1", "seed"])
def test_a_setting_without_which_there_was_never_a_run(tmp_path, name):
    path = write_run(tmp_path / "run") / "config.json"
    values = json.loads(path.read_text())
    *group, last = name.split(".")
    del (values[group[0]] if group else values)[last]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"config.json is damaged: it has no {name}; restore"):
        read_config(path.parent)


def test_a_summary(tmp_path):
    path = tmp_path / "summary.json"
    values = {"step": 4, "val": {"nats_per_token": 1.5}, "corpus": {"name": "oz"}, "parameters": 9}

    def read():
        found = read_summary(tmp_path)
        assert f"{found['step']:,} {found['val']['nats_per_token']:.4f}"

    assert min(try_all(path, values, read)) > 20


@pytest.mark.slow
def test_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    row = {"step": 2, "loss": 2.5, "grad_norm": 0.1, "learning_rate": 1e-3, "train_loss": 2.0}
    row |= {"val_loss": 2.1, "val_bpb": 3.0, "tokens_per_second": 5.0, "seconds": 1.0}
    row |= {"skipped": 0, "numerics": {"jax": "0.1"}, "step_losses": [2.5, None], "changed": {}}
    (tmp_path / "config.json").write_text(
        json.dumps({"format": 1, "corpus": {"name": "a", "sha256": "b"}})
    )
    drawn = 0

    def read():
        nonlocal drawn
        path.write_text(path.read_text() + "\n")
        rows = read_rows(tmp_path)
        step_losses(rows, 10)
        changed_numerics(tmp_path, rows, {"jax": "0.1"})
        assert [f"{r['step']:,} {r.get('loss', 0):.4f} {r.get('seconds') or 0:g}" for r in rows]
        if drawn < 20 and drawn % 4 == 0:  # a picture takes a while
            plot_losses(rows, tmp_path, "a")
        drawn += 1

    assert min(try_all(path, row, read)) > 40


def test_a_checkpoints_manifest(tmp_path):
    writer = checkpoints.CheckpointWriter(tmp_path, keep_newest=1)
    writer.save(3, {"kernel": np.arange(4.0, dtype=np.float32)}, {}, 1.5)
    writer.close()
    path = checkpoints.manifest_path(checkpoints.path_of(tmp_path, 3))

    def read():
        best = checkpoints.best_step(tmp_path)
        assert best in (None, 3)
        assert checkpoints.newest_valid(tmp_path)[0] == 3

    assert min(try_all(path, json.loads(path.read_text()), read)) >= 5


@pytest.mark.parametrize(
    "tokenizer",
    [
        CharTokenizer("abcd"),
        BpeTokenizer([*(bytes([i]) for i in range(256)), b"ab"], r"\w+|\W+", {"<|end|>": 257}),
        IntegerTokenizer(2, ["abcd", "x"]),
    ],
)
def test_a_tokenizer(tmp_path, tokenizer):
    path = tmp_path / "tokenizer.json"

    def read():
        found = load_tokenizer(tmp_path)
        assert set(found.decode(found.encode("abcd"))) <= set("abcd")

    assert try_all(path, json.loads(tokenizer.to_json()), read)[1] > 10


FACTS = {
    "source": {"kind": "text", "by_position": True, "input": "/a", "files": 1, "stored_bytes": 9},
    "settings": {"source": "text", "val_fraction": 0.1},
    "counts": {
        "read": 2, "kept": 1, "dropped": {"length": 1}, "damaged_records": 0, "damaged_files": 0
    },
    "damaged": ["b"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "n"), [("manifest.json", 500), ("tokenizer.json", 10)])
def test_a_prepared_corpus(tmp_path, name, n):
    writer = ShardWriter(tmp_path, CharTokenizer("abcd"), 300)
    writer.append("train", np.arange(400) % 4)
    writer.append("val", np.arange(90) % 4)
    writer.finish("char", {"train": 1, "val": 1}, **FACTS)

    def read():
        opened = open_shards(tmp_path)
        verify_shards(opened)
        json.dumps(opened.record)
        manifest = opened.manifest
        there, counts = read_source(manifest.source, tmp_path), read_counts(manifest, "a")
        assert f"{there.input} {there.files or 0:,} {there.stored_bytes or 0:,}"
        assert f"{counts.read:,} {sum(counts.dropped.values()):,} {counts.damaged_files:,}"
        assert "".join(manifest.damaged) in ("", "b", "x")
        assert isinstance(differences(manifest.settings, {"source": "text"}, repr), list)

    assert try_all(tmp_path / name, json.loads((tmp_path / name).read_text()), read)[1] > n


@pytest.mark.parametrize(("name", "n"), [("manifest.json", 400), ("tokenizer.json", 20)])
def test_a_corpus_of_integers_with_a_mask(tmp_path, name, n):
    folder, mask = tmp_path / "corpus", np.arange(90) % 2
    write_sequences(folder, np.arange(9) % 4, mask, names=list("abcd"), val_mask=mask)

    def read():
        opened = open_shards(folder)
        verify_shards(opened)
        assert all(mask.sum() == 45 for mask in opened.masks["val"])  # or it is left out
        assert opened.tokenizer.encode(opened.tokenizer.decode([0, 3])).tolist() == [0, 3]
        assert opened.tokenizer.token_bytes.shape == (opened.vocab_size,)

    assert try_all(folder / name, json.loads((folder / name).read_text()), read)[1] >= n


BYTES = [bytes([i]) for i in range(256)]
NAMED = {"content": "<|x|>", "special": True}


@pytest.mark.parametrize(
    ("name", "values", "n"),
    [
        ("tokenizer.json", {}, 400),
        ("tokenizer.json", {"normalizer": {"type": "Strip", "strip_left": False}}, 400),
        (
            "tokenizer.json",
            {
                "post_processor": {
                    "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]
                },
                "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
            },
            400,
        ),
        ("added_tokens.json", {"<|x|>": 258}, 10),
        ("tokenizer_config.json", {"added_tokens_decoder": {"258": NAMED}}, 40),
    ],
)  # fmt: skip
def test_a_gpt2_folders_tokenizer(tmp_path, name, values, n):
    tokenizer = BpeTokenizer([*BYTES, b"ab"], r"\w+|\W+", {"<|end|>": 257})
    save_hf_tokenizer(tmp_path, tokenizer, 8)
    path = tmp_path / name
    values = json.loads(path.read_text()) | values if path.exists() else values
    if "model" in values:
        values["model"] |= {"merges": values["model"]["merges"][:2]}

    def read():
        found = load_hf_tokenizer(tmp_path, 259)
        assert set(found.decode(found.encode("abcd"))) <= set("abcd ")  # a prefix space

    tried = sum(try_all(path, values, read))
    assert tried >= n


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_gpt2_folders_model(tmp_path, name):
    sizes = {"n_embd": 4, "n_layer": 1, "n_head": 1, "vocab_size": 5, "n_positions": 3}
    flags = {"scale_attn_weights": True, "tie_word_embeddings": True, "attn_pdrop": 0.1}
    values = {"model_type": "gpt2", "activation_function": "gelu", **sizes, **flags}
    (tmp_path / "config.json").write_text(json.dumps(values))
    D = 4
    shapes = {"wte.weight": (5, D), "wpe.weight": (3, D)}
    for norm in ("ln_f", "h.0.ln_1", "h.0.ln_2"):
        shapes |= {f"{norm}.weight": (D,), f"{norm}.bias": (D,)}
    for layer, n_in, n_out in [("attn.c_attn", D, 3 * D), ("attn.c_proj", D, D),
                               ("mlp.c_fc", D, 4 * D), ("mlp.c_proj", 4 * D, D)]:  # fmt: skip
        shapes |= {f"h.0.{layer}.weight": (n_in, n_out), f"h.0.{layer}.bias": (n_out,)}
    tensors = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    if name != "config.json":
        (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
        index = {"weight_map": {"transformer.wte.weight": "a.safetensors"}}
        (tmp_path / name).write_text(json.dumps(index))

    def read():
        found, loaded = hf.load(tmp_path)
        assert loaded["tokens"]["embedding"].shape == (found.vocab_size, found.n_embd)

    path = tmp_path / name
    assert sum(try_all(path, json.loads(path.read_text()), read)) >= 30

"""Everything read from a disk or a network is data: whatever is in it is read or refused.

Each reader is given `EXAMPLES` versions of a sound file with bytes flipped, cut out, put in,
doubled or replaced by what formats care about, and must return, or raise a `UserError` (or, of a
source that is prepared, `BadInput`): no other exception, and no memory is taken on a file's word.
"""

import functools
import gzip
import json
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpt_jax
from data.config import PrepareConfig
from data.sources import common_crawl
from data.sources.documents import BadInput
from data.sources.readers import read_unit
from gpt_jax import hf
from gpt_jax.config import Config, ModelConfig
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.shards.external_formats import HEADER_BYTES
from gpt_jax.input_pipeline.shards.reader import open_shards, verify_shards
from gpt_jax.input_pipeline.shards.writer import ShardWriter
from gpt_jax.input_pipeline.text_corpus import TextCorpus
from gpt_jax.run import checkpoints
from gpt_jax.run.folder import create_run, read_config, read_init_from, read_summary
from gpt_jax.run.metrics import read_rows
from gpt_jax.tokenizer import BpeTokenizer, CharTokenizer, load_tokenizer

EXAMPLES = 200
MEMORY = 64 << 20  # what a reader of a file of some kilobytes may take at most
INTERESTING = [
    b"", b"\0", b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"-1", b"1e999", b"NaN", b"null", b"true",
    b"[]", b"{}", b'""', b"[" * 100, b"9" * 400,
    b"../../x", b"/etc/passwd", b"\r\n\r\n", b"\\ud800",
]  # fmt: skip
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "double", "end", "replace"]),
        st.floats(0, 1),
        st.floats(0, 0.2),
        st.sampled_from(INTERESTING) | st.binary(max_size=12),
    ),
    min_size=1,
    max_size=4,
)


def change(raw, changes):
    """Returns the bytes with each change made, one after the other."""
    raw = bytearray(raw)
    for what, at, length, new in changes:
        start = int(at * len(raw))
        stop = min(len(raw), start + 1 + int(length * len(raw)))
        if what == "flip" and start < len(raw):
            raw[start] ^= 1 << (len(new) % 8)
        elif what == "cut":
            del raw[start:stop]
        elif what == "insert":
            raw[start:start] = new
        elif what == "double":
            raw[start:start] = raw[start:stop]
        elif what == "end":
            del raw[start:]
        elif what == "replace":
            raw[start:stop] = new
    return bytes(raw)


@functools.cache
def examples():
    """Returns `EXAMPLES` lists of changes, the same for every reader and at every time."""
    found = []

    @settings(
        deadline=None,
        derandomize=True,
        max_examples=EXAMPLES,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(CHANGES)
    def collect(changes):
        found.append(changes)

    collect()
    assert len(found) >= EXAMPLES
    return found


def fuzz(path, read, expected=UserError):
    """Reads `path` in `EXAMPLES` versions; returns how many were read and how many refused."""
    sound = path.read_bytes()
    counts = {"read": 0, "refused": 0}
    read()
    tracemalloc.start()
    try:
        for changes in examples():
            path.write_bytes(change(sound, changes))
            try:
                read()
                counts["read"] += 1
            except expected:
                counts["refused"] += 1
            except Exception as error:
                raise AssertionError(f"{path.name}, changed by {changes}") from error
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
        path.write_bytes(sound)
    read()
    assert counts["refused"] > EXAMPLES // 10
    return counts


def test_changes_change():
    raw = bytes(range(100))
    assert change(raw, [("flip", 0.5, 0, b"")])[50] == 51
    assert change(raw, [("cut", 0.5, 0.1, b"")]) == raw[:50] + raw[61:]
    assert change(raw, [("insert", 0.5, 0, b"xy")]) == raw[:50] + b"xy" + raw[50:]
    assert change(raw, [("end", 0.5, 0, b"")]) == raw[:50]
    assert change(b"", [("flip", 0.5, 0, b"a")]) == b""


@pytest.fixture
def run_dir(tmp_path):
    model = ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=4)
    corpus = TextCorpus("text", "nowhere", "abcd" * 9)
    create_run(tmp_path / "run", Config(model=model), corpus, CharTokenizer("abcd"))
    return tmp_path / "run"


@pytest.mark.slow
def test_a_runs_config(run_dir):
    def read():
        config, _ = read_config(run_dir)
        read_init_from(run_dir)
        assert isinstance(config, Config)

    fuzz(run_dir / "config.json", read)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_tokenizer(tmp_path, kind):
    tokenizer = CharTokenizer("\nabcdé")
    if kind == "bpe":
        tokens = [bytes([b]) for b in range(256)]
        tokenizer = BpeTokenizer([*tokens, b"ab", b"abc"], r"\w+|\W+", {"<|endoftext|>": 258})
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())

    def read():
        found = load_tokenizer(tmp_path)
        assert found.decode(found.encode("")) == ""

    fuzz(tmp_path / "tokenizer.json", read)


@pytest.mark.slow
def test_a_runs_rows_and_summary(tmp_path):
    rows = [{"step": i, "loss": 2.5 / (i + 1), "grad_norm": 0.1} for i in range(9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fuzz(tmp_path / "metrics.jsonl", lambda: read_rows(tmp_path))
    summary = {"step": 8, "val": {"nats_per_token": 1.5}, "corpus": {"name": "oz"}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    fuzz(tmp_path / "summary.json", lambda: read_summary(tmp_path))


@pytest.mark.slow
def test_a_checkpoints_manifest_and_files(tmp_path):
    writer = checkpoints.CheckpointWriter(tmp_path, keep_newest=1)
    writer.save(3, {"kernel": np.arange(40.0, dtype=np.float32)}, {}, 1.5)
    writer.close()
    path = checkpoints.path_of(tmp_path, 3)
    manifest = checkpoints.manifest_path(path)
    refused = []

    def read():  # a manifest is never an error: it says that a checkpoint is none
        refused.append(checkpoints.problem(path))
        checkpoints.best_step(tmp_path)
        if refused[-1]:
            raise UserError(refused[-1])

    fuzz(manifest, read)
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        refused.clear()
        sound = file.read_bytes()
        for at in range(0, len(sound), max(1, len(sound) // 40)):
            file.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
            assert "has changed" in checkpoints.problem(path), (file, at)
            file.write_bytes(sound[:at])
            assert "has changed" in checkpoints.problem(path), (file, at)
        file.write_bytes(sound)
    assert checkpoints.problem(path) == ""


@pytest.fixture
def corpus(tmp_path):
    tokenizer = CharTokenizer("abcd")
    (tmp_path / "corpus").mkdir()
    writer = ShardWriter(tmp_path / "corpus", tokenizer, 300)
    writer.append("train", np.arange(700) % 4)
    writer.append("val", np.arange(90) % 4)
    writer.finish("char", {"train": 1, "val": 1})
    return tmp_path / "corpus"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "train-00000.bin"])
def test_a_prepared_corpus(corpus, name):
    fuzz(corpus / name, lambda: verify_shards(open_shards(corpus)))


@pytest.mark.slow
def test_a_folder_of_llm_c(tmp_path):
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    for split, n in (("train", 400), ("val", 40)):
        header[:3] = 20240520, 1, n
        raw = header.tobytes() + (np.arange(n) % 4).astype("<u2").tobytes()
        (tmp_path / f"text_{split}_000000.bin").write_bytes(raw)
    path = tmp_path / "text_train_000000.bin"
    fuzz(path, lambda: verify_shards(open_shards(tmp_path, CharTokenizer("abcd"))))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_gpt2_folder(tmp_path, name):
    config = ModelConfig(
        n_layer=1, n_embd=8, n_head=2, block_size=8, vocab_size=16, activation="gelu",
        head_bias=False, tied=True, dropout=0.1, embedding_dropout=0.1, residual_init_scale=True,
    )  # fmt: skip
    shapes = jax.eval_shape(
        gpt_jax.GPT(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), np.int32)
    )["params"]
    folder = tmp_path / "gpt2"
    hf.save(folder, config, jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes))
    fuzz(folder / name, lambda: hf.load(folder))


def wet_bytes():
    record = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n"
    texts = [b"a text of some words, %d\n" % i * 5 for i in range(6)]
    return b"".join(record % (len(text), text) for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [True, False])
def test_text_of_common_crawl(tmp_path, compressed):
    path = tmp_path / "a.warc.wet.gz"
    path.write_bytes(gzip.compress(wet_bytes(), mtime=0) if compressed else wet_bytes())
    config = PrepareConfig(source="wet", input=str(path), out=str(tmp_path / "out"))
    unit = {"kind": "wet", "name": path.name, "path": str(path), "size": 0, "start": 0, "end": 0}

    def read():
        with path.open("rb") as file:
            documents = read_unit(config, unit, tmp_path)
            found = list(documents if compressed else common_crawl.records(file, "a", 1 << 20))
        if damaged := [one for one in found if isinstance(one, BadInput)]:
            raise damaged[0]

    fuzz(path, read, (UserError, BadInput))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines(tmp_path, name):
    raw = b"".join(json.dumps({"text": f"document {i} é"}).encode() + b"\n" for i in range(20))
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw, mtime=0) if name.endswith("gz") else raw)
    config = PrepareConfig(source="jsonl", input=str(path), out=str(tmp_path / "out"))
    unit = {"kind": "lines", "name": name, "path": str(path), "size": 0, "start": 0, "end": 0}

    def read():
        found = list(read_unit(config, unit, tmp_path))
        if damaged := [one for one in found if isinstance(one, BadInput)]:
            raise damaged[0]

    fuzz(path, read, (UserError, BadInput))

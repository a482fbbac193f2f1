"""The format of prepared corpora: what is written is read, and no damage is silent."""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.shards.external_formats import HEADER_BYTES
from gpt_jax.input_pipeline.shards.id_widths import find_width
from gpt_jax.input_pipeline.shards.manifest import MANIFEST_FILE, ShardError, read_manifest
from gpt_jax.input_pipeline.shards.memmap import CHECKED_TOKENS, WORK_FOLDER
from gpt_jax.input_pipeline.shards.reader import has_shards, open_shards, verify_shards
from gpt_jax.input_pipeline.shards.writer import ShardWriter, WriterState
from gpt_jax.storage import read_record
from gpt_jax.tokenizer import TOKENIZER_FILE as TOKENIZER_FILE
from gpt_jax.tokenizer import BpeTokenizer, CharTokenizer

TOKENIZER = CharTokenizer("\nabcdefghé")
EXAMPLES = settings(deadline=None, derandomize=True, max_examples=40)


def ids_of(n, seed=0, vocab_size=TOKENIZER.vocab_size):
    return np.random.default_rng(seed).integers(0, vocab_size, n).astype(np.int32)


def write(folder, train=None, val=None, shard_tokens=100, tokenizer=TOKENIZER):
    """A prepared corpus; its defaults are 250 and 30 tokens."""
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(folder, tokenizer, shard_tokens)
    writer.append("train", ids_of(250) if train is None else train)
    writer.append("val", ids_of(30, 1) if val is None else val)
    writer.finish("char", {"train": 3, "val": 1}, source={"kind": "text"})
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "corpus")


def change_manifest(folder, change):
    path = folder / MANIFEST_FILE
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_what_is_written_is_read(folder):
    prepared = open_shards(folder)
    assert has_shards(folder)
    assert prepared.kind == "gpt_jax"
    assert [len(ids) for ids in prepared.shards["train"]] == [100, 100, 50]
    assert np.concatenate(prepared.shards["train"]).tolist() == ids_of(250).tolist()
    assert np.concatenate(prepared.shards["val"]).tolist() == ids_of(30, 1).tolist()
    assert all(isinstance(ids, np.memmap) for ids in prepared.shards["train"])
    assert prepared.tokenizer.to_json() == TOKENIZER.to_json()
    assert (prepared.dtype, prepared.vocab_size) == (np.dtype("<u2"), 10)
    assert prepared.n_tokens == {"train": 250, "val": 30}
    assert prepared.n_bytes["train"] == len(TOKENIZER.decode(ids_of(250)).encode())
    assert prepared.n_documents == {"train": 3, "val": 1}
    assert prepared.notes == ()
    assert verify_shards(prepared) == {"train": 250, "val": 30}


def test_the_bytes_on_disk_by_hand(tmp_path):
    folder = write(tmp_path / "c", np.array([1, 9]), np.array([0]))
    assert (folder / "train-00000.bin").read_bytes() == b"\x01\x00\x09\x00"
    assert (folder / "val-00000.bin").read_bytes() == b"\x00\x00"
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    assert manifest["format"] == 1
    assert manifest["dtype"] == "uint16"
    assert manifest["source"] == {"kind": "text"}
    assert manifest["totals"]["train"] == {"tokens": 2, "bytes": 3, "documents": 3}  # a, é
    assert manifest["shards"][0] == {
        "name": "train-00000.bin",
        "tokens": 2,
        "bytes": 3,
        "sha256": hashlib.sha256(b"\x01\x00\x09\x00").hexdigest(),
    }
    raw = (folder / TOKENIZER_FILE).read_bytes()
    assert manifest["tokenizer"] == {"name": "char", "sha256": hashlib.sha256(raw).hexdigest()}


def test_a_vocabulary_beyond_16_bits_is_written_in_32(tmp_path):
    characters = "".join(chr(i) for i in range(32, 2**16 + 2**12) if not 0xD800 <= i < 0xE000)
    assert len(characters) > 2**16
    tokenizer = CharTokenizer(characters)
    ids = np.array([0, 2**16, len(characters) - 1])
    prepared = open_shards(write(tmp_path / "c", ids, ids, tokenizer=tokenizer))
    assert prepared.dtype == np.dtype("<u4")
    assert prepared.shards["train"][0].tolist() == ids.tolist()
    verify_shards(prepared)


@pytest.mark.slow
@given(
    parts=st.lists(st.tuples(st.sampled_from(["train", "val"]), st.integers(0, 70)), max_size=12),
    stops=st.sets(st.integers(0, 11)),
    lost=st.integers(0, 60),
    shard_tokens=st.integers(1, 50),
)
@EXAMPLES
def test_a_writer_that_was_stopped_anywhere_writes_the_same_bytes(
    tmp_path_factory, parts, stops, lost, shard_tokens
):
    parts = [("train", 3), ("val", 2), *parts]
    whole, stopped = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("stopped")
    writer = ShardWriter(whole, TOKENIZER, shard_tokens)
    other = ShardWriter(stopped, TOKENIZER, shard_tokens)
    for number, (split, n) in enumerate(parts):
        writer.append(split, ids_of(n, number))
        if number in stops:  # what came after the state is lost
            state = json.loads(json.dumps(dataclasses.asdict(other.save_state())))
            other.append(split, ids_of(lost, 99))
            other.close()
            other = ShardWriter(stopped, TOKENIZER, shard_tokens, read_record(state, WriterState))
        other.append(split, ids_of(n, number))
        assert other.n_tokens == writer.n_tokens
    for each in (writer, other):
        each.finish("char", {"train": 1, "val": 1})
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {
        p.name: p.read_bytes() for p in stopped.iterdir()
    }


def test_a_writer_refuses_a_state_whose_shards_are_gone(tmp_path):
    writer = ShardWriter(tmp_path, TOKENIZER, 100)
    writer.append("train", ids_of(50))
    state = writer.save_state()
    writer.close()
    os.truncate(tmp_path / "train-00000.bin", 60)
    with pytest.raises(ShardError, match="40 bytes shorter than the preparation had written"):
        ShardWriter(tmp_path, TOKENIZER, 100, state)
    (tmp_path / "train-00000.bin").unlink()
    with pytest.raises(ShardError, match="can't be opened: No such file"):
        ShardWriter(tmp_path, TOKENIZER, 100, state)


def test_a_split_without_tokens_is_no_corpus(tmp_path):
    writer = ShardWriter(tmp_path, TOKENIZER, 100)
    writer.append("train", ids_of(5))
    with pytest.raises(ShardError, match="no tokens for val"):
        writer.finish("char", {"train": 1, "val": 0})
    assert not has_shards(tmp_path)


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train-00001.bin").unlink(), r"train-00001.bin can't be read: No such"),
        (
            lambda f: os.truncate(f / "train-00001.bin", 198),
            r"train-00001.bin has 198 bytes, and manifest.json says 100 tokens of 2",
        ),
        (
            lambda f: (f / "val-00000.bin").write_bytes(ids_of(31).astype("<u2").tobytes()),
            r"val-00000.bin has 62 bytes, and manifest.json says 30 tokens",
        ),
        (
            lambda f: (f / "val-00000.bin").write_bytes(
                np.append(ids_of(29), 10).astype("<u2").tobytes()
            ),
            r"val-00000.bin has id 10, and the tokenizer's vocabulary is 10",
        ),
        (
            lambda f: (f / TOKENIZER_FILE).write_text(CharTokenizer("ab").to_json()),
            r"is not the tokenizer that .*manifest.json was made with",
        ),
        (lambda f: (f / TOKENIZER_FILE).unlink(), r"tokenizer.json can't be read"),
        (lambda f: (f / MANIFEST_FILE).write_text("{"), r"manifest.json is damaged: Expecting"),
        (lambda f: (f / MANIFEST_FILE).write_text("[" * 100_000), r"manifest.json is damaged"),
        (lambda f: (f / MANIFEST_FILE).write_text("[]"), r"is damaged: it is not a JSON object"),
    ],
)
def test_damaged_files_are_named(folder, damage, message):
    damage(folder)
    with pytest.raises(ShardError, match=message) as caught:
        open_shards(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "has format 2, from a newer gpt_jax"),
        (lambda m: m.update(format=True), "format is True, not a whole number"),
        (lambda m: m.update(dtype="<u8"), "dtype '<u8' is neither uint16 nor uint32"),
        (lambda m: m.update(dtype="uint32"), "bytes, and manifest.json says"),
        (lambda m: m.update(vocab_size=2**16 + 1), "vocab_size 65537 does not fit uint16"),
        (lambda m: m.update(vocab_size=11), "vocab_size is 11, its tokenizer's 10"),
        (lambda m: m["shards"][0].update(name="../train-00000.bin"), "is no shard's name"),
        (lambda m: m["shards"][0].update(name="/etc/train-00000.bin"), "is no shard's name"),
        (lambda m: m["shards"][0].update(name="train-00000.bin\n"), "is no shard's name"),
        (lambda m: m["shards"][0].update(name=m["shards"][1]["name"]), "is named twice"),
        (lambda m: m["shards"][0].update(tokens=2**31), "has 2147483648 tokens"),
        (lambda m: m["shards"][0].update(tokens=10**400), "tokens"),
        (lambda m: m["shards"][0].update(tokens=0), "has 0 tokens"),
        (lambda m: m["shards"][0].update(tokens=1.5), r"shards\[0\].tokens is 1.5, not a"),
        (lambda m: m["shards"][0].update(tokens=99), "tokens of train are not the sum"),
        (lambda m: m["shards"][0].update(bytes=-1), "lacks its bytes"),
        (lambda m: m["shards"][0].update(sha256="x"), "lacks its bytes or its sha256"),
        (lambda m: m["shards"].pop(), "no shard of val"),
        (lambda m: m["shards"].append(7), r"shards\[\d\] is 7, not a JSON object"),
        (lambda m: m.pop("totals"), "it has no totals"),
        (lambda m: m["totals"].pop("val"), "no totals of val"),
        (lambda m: m["tokenizer"].update(sha256=None), "tokenizer.sha256 is None, not a text"),
    ],
)
def test_a_manifest_that_lies_is_refused(folder, change, message):
    change_manifest(folder, change)
    with pytest.raises(ShardError, match=message):
        open_shards(folder)


def test_what_a_manifest_may_take_is_bounded(folder):
    os.truncate(folder / MANIFEST_FILE, (1 << 26) + 1)
    with pytest.raises(ShardError, match=r"manifest.json is damaged: it has more than 67,108,864"):
        open_shards(folder)


def test_verify_finds_one_flipped_bit_that_opening_does_not(tmp_path):
    n = 3 * CHECKED_TOKENS
    folder = write(tmp_path / "c", ids_of(n), shard_tokens=2 * n)
    path = folder / "train-00000.bin"
    raw = bytearray(path.read_bytes())
    raw[n] ^= 1  # in the middle
    path.write_bytes(raw)
    prepared = open_shards(folder)
    with pytest.raises(ShardError, match=r"train-00000.bin has another sha256 than the manifest"):
        verify_shards(prepared)


def test_verify_finds_an_id_beyond_the_vocabulary_that_opening_does_not(tmp_path):
    n = 3 * CHECKED_TOKENS
    ids = ids_of(n)
    folder = write(tmp_path / "c", ids, shard_tokens=2 * n)
    ids[n // 2] = 10
    raw = ids.astype("<u2").tobytes()
    (folder / "train-00000.bin").write_bytes(raw)
    sha256 = hashlib.sha256(raw).hexdigest()
    change_manifest(folder, lambda m: m["shards"][0].update(sha256=sha256))
    with pytest.raises(ShardError, match=r"train-00000.bin has id 10, and the vocabulary 10"):
        verify_shards(open_shards(folder))


def test_verify_recounts_the_bytes(folder):
    def change(manifest):
        manifest["shards"][0]["bytes"] += 1
        manifest["totals"]["train"]["bytes"] += 1

    change_manifest(folder, change)
    with pytest.raises(ShardError, match=r"train-00000.bin stands for"):
        verify_shards(open_shards(folder))


def test_verify_tells_how_far_it_is(folder):
    seen = []
    verify_shards(open_shards(folder), lambda done, total: seen.append((done, total)))
    assert seen == [(100, 280), (200, 280), (250, 280), (280, 280)]


def test_the_record_identifies_the_content_not_the_place(folder, tmp_path):
    record = open_shards(folder).record
    other = write(tmp_path / "other")
    assert open_shards(other).record["sha256"] == record["sha256"]
    changed = write(tmp_path / "changed", np.append(ids_of(249), 3))
    assert open_shards(changed).record["sha256"] != record["sha256"]
    assert record["tokens"] == {"train": 250, "val": 30}
    assert record["sha256"] == read_manifest(folder).content_sha256
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    content = {key: manifest[key] for key in ("dtype", "vocab_size", "shards")}
    content["tokenizer"] = manifest["tokenizer"]["sha256"]
    raw = json.dumps(content, sort_keys=True).encode()
    assert record["sha256"] == hashlib.sha256(raw).hexdigest()  # as runs have recorded it


def test_ids_beyond_the_vocabulary_are_not_written(tmp_path):
    writer = ShardWriter(tmp_path, TOKENIZER, 100)
    with pytest.raises(ShardError, match=r"^id 10 for .*train-00000.bin is beyond .* 10 tokens"):
        writer.append("train", np.array([9, 10]))
    writer.close()


@pytest.mark.parametrize(("hard", "message"), [(2000, ""), (100, "allow more with: ulimit -n")])
def test_more_shards_than_files_may_be_open(tmp_path, hard, message):
    pytest.importorskip("resource", reason="there is no such limit")
    folder = write(tmp_path / "c", ids_of(300), shard_tokens=1)
    code = (
        "import resource, sys; from gpt_jax.input_pipeline.shards.reader import open_shards; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (100, {hard})); "
        "print(open_shards(sys.argv[1]).n_tokens)"
    )
    words = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if message:
        assert re.search(rf"ShardError: shard .* can't be opened: .*{message}", done.stderr)
    else:
        assert done.stdout == "{'train': 300, 'val': 30}\n", done.stderr


def test_a_folder_that_is_no_corpus(tmp_path):
    assert not has_shards(tmp_path)
    assert not has_shards(tmp_path / "missing")
    assert not has_shards("a\0b")
    assert not has_shards("x" * 10_000)
    with pytest.raises(ShardError, match=r"is not a prepared corpus: .* python main.py prepare"):
        open_shards(tmp_path)


def test_an_unfinished_preparation_says_so(tmp_path):
    (tmp_path / WORK_FOLDER).mkdir()
    assert has_shards(tmp_path)
    with pytest.raises(ShardError, match=r"is not finished; run the same `python main.py prepare`"):
        open_shards(tmp_path)


# --- other programs' folders ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def gpt2(gpt2_files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
        return BpeTokenizer.published("gpt2")


@pytest.fixture
def with_gpt2(gpt2, monkeypatch):
    monkeypatch.setattr(BpeTokenizer, "published", classmethod(lambda cls, name: gpt2))


def llm_c(path, ids, magic=20240520, version=1, n_tokens=None, dtype="<u2"):
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if n_tokens is None else n_tokens
    path.write_bytes(header.tobytes() + np.asarray(ids, dtype).tobytes())
    return path


def test_a_nanogpt_folder_is_read_as_it_is(tmp_path, with_gpt2):
    train, val = ids_of(1000, 0, 50257), ids_of(100, 1, 50257)
    (tmp_path / "train.bin").write_bytes(train.astype("<u2").tobytes())
    (tmp_path / "val.bin").write_bytes(val.astype("<u2").tobytes())
    assert has_shards(tmp_path)
    prepared = open_shards(tmp_path)
    assert prepared.kind == "nanoGPT"
    assert prepared.shards["train"][0].tolist() == train.tolist()
    assert prepared.shards["val"][0].tolist() == val.tolist()
    assert (prepared.vocab_size, prepared.dtype) == (50257, np.dtype("<u2"))
    assert prepared.n_bytes == prepared.n_documents == {"train": None, "val": None}
    assert "are taken for GPT-2's" in prepared.notes[0]
    assert verify_shards(prepared) == {"train": 1000, "val": 100}
    assert prepared.manifest is None


def test_a_nanogpt_folder_of_characters_is_not_taken_for_gpt2s(tmp_path, with_gpt2, monkeypatch):
    for name in ("train.bin", "val.bin"):
        (tmp_path / name).write_bytes(ids_of(50).astype("<u2").tobytes())
    meta = tmp_path / "meta.pkl"
    meta.write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    meta.chmod(0)
    with pytest.raises(ShardError, match=r"not GPT-2's: .* main.py prepare --tokenizer char"):
        open_shards(tmp_path)
    assert open_shards(tmp_path, TOKENIZER).vocab_size == 10


def test_a_nanogpt_file_may_be_longer_than_an_int32(tmp_path, with_gpt2):
    n_tokens = 2**31 + 100
    for name, n in (("train.bin", n_tokens), ("val.bin", 9)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 2 * n)  # a hole: next to nothing on the disk
    (ids,) = open_shards(tmp_path).shards["train"]
    assert len(ids) == n_tokens


def test_another_tokenizer_may_be_named(tmp_path):
    for name in ("train.bin", "val.bin"):
        (tmp_path / name).write_bytes(ids_of(50).astype("<u2").tobytes())
    prepared = open_shards(tmp_path, TOKENIZER)
    assert (prepared.vocab_size, prepared.notes) == (10, ())
    with pytest.raises(ShardError, match=r"has id \d, and the tokenizer's vocabulary is 2"):
        open_shards(tmp_path, CharTokenizer("ab"))


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (["fineweb_train_000001.bin", "fineweb_train_000002.bin"], "fineweb_val_000000.bin"),
        (["tiny_shakespeare_train.bin"], "tiny_shakespeare_val.bin"),
        (["train.bin"], "val.bin"),
    ],
)
def test_a_folder_of_llm_c_is_read_as_it_is(tmp_path, with_gpt2, train, val):
    for number, name in enumerate(train):
        llm_c(tmp_path / name, ids_of(600, number, 50257))
    llm_c(tmp_path / val, ids_of(70, 9, 50257))
    prepared = open_shards(tmp_path)
    assert prepared.kind == "llm.c"
    for number, ids in enumerate(prepared.shards["train"]):
        assert ids.tolist() == ids_of(600, number, 50257).tolist()
    assert prepared.shards["val"][0].tolist() == ids_of(70, 9, 50257).tolist()
    assert prepared.n_tokens == {"train": 600 * len(train), "val": 70}


def test_llama_3s_tokens_have_32_bits(tmp_path):
    for name in ("fineweb_train_000001.bin", "fineweb_val_000000.bin"):
        llm_c(tmp_path / name, [128_000, 5, 128_001], 20240801, 7, dtype="<u4")
    prepared = open_shards(tmp_path)
    assert prepared.shards["val"][0].tolist() == [128_000, 5, 128_001]
    assert prepared.dtype == np.dtype("<u4")
    assert prepared.tokenizer is prepared.vocab_size is None
    assert "does not name its tokenizer" in prepared.notes[0]
    verify_shards(prepared)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: llm_c(p, [1, 2], n_tokens=3),
            "its header says 3 tokens of 2 bytes, and 4 bytes",
        ),
        (
            lambda p: llm_c(p, [1, 2], n_tokens=1),
            "its header says 1 tokens of 2 bytes, and 4 bytes",
        ),
        (lambda p: llm_c(p, [1, 2], n_tokens=-1), "its header says -1 tokens"),
        (lambda p: llm_c(p, [], n_tokens=0), "its header says 0 tokens"),
        (lambda p: llm_c(p, [1, 2], version=2), "has version 2 of its header, which is unknown"),
        (lambda p: llm_c(p, [1, 2], 20240801, 7), "its header says 2 tokens of 4 bytes"),
        (lambda p: llm_c(p, [1, 2], 20240801, 7, dtype="<u4"), "mixes token files of different"),
        (lambda p: llm_c(p, [1, 2], 7), "does not begin with the header of llm.c"),
        (lambda p: p.write_bytes(b""), "does not begin with the header of llm.c"),
        (lambda p: os.truncate(llm_c(p, [1, 2]), HEADER_BYTES // 2), "and 0 bytes follow it"),
        (lambda p: llm_c(p, [1, 50257]), "has id 50257, and the tokenizer's vocabulary is 50257"),
        (lambda p: p.symlink_to("nowhere"), "can't be read: No such file"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, with_gpt2, make, message):
    llm_c(tmp_path / "fineweb_val_000000.bin", [1, 2, 3])
    make(tmp_path / "fineweb_train_000001.bin")
    with pytest.raises(ShardError, match=message):
        open_shards(tmp_path)


def test_a_nanogpt_file_of_odd_size_is_refused(tmp_path, with_gpt2):
    (tmp_path / "train.bin").write_bytes(b"abc")
    (tmp_path / "val.bin").write_bytes(b"ab")
    with pytest.raises(ShardError, match=r"train.bin has 3 bytes, which are no uint16 tokens"):
        open_shards(tmp_path)


def ids_by(kind, n, seed):
    """n ids as texts of that vocabulary have them: characters, byte pairs, a large vocabulary."""
    rng = np.random.default_rng(seed)
    if kind == "characters":
        return rng.integers(0, 65, n)
    if kind == "byte pairs":  # most are of bytes below 128
        return np.where(rng.random(n) < 0.6, rng.integers(32, 127, n), rng.integers(256, 451, n))
    vocab_size = {"gpt2": 50257, "llama": 128_256, "two": 2}[kind]
    return (vocab_size * rng.random(n) ** 3).astype(int)


@pytest.mark.parametrize("n", [17, 300, 500_000])
@pytest.mark.parametrize("kind", ["characters", "byte pairs", "gpt2", "llama", "two"])
@pytest.mark.parametrize("dtype", ["<u2", "<u4", "<i4", "<i8", "<u8"])
def test_ids_of_any_width_are_told_from_their_bytes(kind, dtype, n):
    raw = ids_by(kind, n, 0).astype(dtype).tobytes()
    if (kind, dtype) == ("llama", "<u2"):
        return  # they don't fit
    assert find_width([raw[:80_000], raw[-80_000:]], len(raw)) == int(dtype[2])


@pytest.mark.parametrize(
    ("dtype", "looks_like"),
    [
        (">u2", "big-endian ids of 16"),
        (">u4", "big-endian ids of 32"),
        (">i8", "big-endian ids of 64"),
        ("<f4", "floating point"),
        ("<f8", "floating point"),
        ("u1", "ids of 8 bits"),
    ],
)
def test_what_is_no_id_of_16_bits_is_refused(tmp_path, dtype, looks_like):
    for name in ("train.bin", "val.bin"):
        (tmp_path / name).write_bytes(ids_by("characters", 4000, 1).astype(dtype).tobytes())
    with pytest.raises(ShardError, match=f"train.bin does not hold .* look like {looks_like}"):
        open_shards(tmp_path, TOKENIZER)


def test_negative_ids_and_a_text_are_no_ids():
    ids = ids_by("gpt2", 2000, 2)
    for part in (0.01, 0.5):
        ids[: int(part * len(ids))] = -100
        with pytest.raises(ValueError, match="some are negative"):
            find_width([ids.astype("<i4").tobytes()], 8000)
    with pytest.raises(ValueError, match="or a text"):
        find_width([b"The quick brown fox, and so on.\n" * 100], 3200)
    assert find_width([bytes(10_000)], 10_000) == 2  # nothing is told by zeros
    few = np.array([50_256, *range(40)], "<u2").tobytes()  # small words in every second place
    assert find_width([few], len(few)) == 2
    few = np.array([100_256, *range(40)], "<u4").tobytes()
    assert find_width([few], len(few)) == 4


@pytest.mark.parametrize("dtype", ["<u4", "<i4", "<i8"])
def test_a_nanogpt_folder_of_wide_ids_is_read_as_what_it_is(tmp_path, with_gpt2, dtype):
    ids = ids_by("gpt2", 3000, 3)
    for name in ("train.bin", "val.bin"):
        (tmp_path / name).write_bytes(ids.astype(dtype).tobytes())
    prepared = open_shards(tmp_path)
    assert prepared.shards["train"][0].tolist() == ids.tolist()
    assert (prepared.dtype, prepared.vocab_size) == (np.dtype("<u4"), 50257)
    assert verify_shards(prepared) == {"train": 3000, "val": 3000}
    (tmp_path / "val.bin").write_bytes(ids.astype("<u2").tobytes())
    with pytest.raises(ShardError, match="mixes token files of different kinds"):
        open_shards(tmp_path)


def test_wide_ids_beyond_gpt2s_are_not_taken_for_gpt2s(tmp_path, with_gpt2):
    for name in ("train.bin", "val.bin"):
        (tmp_path / name).write_bytes(ids_by("llama", 3000, 4).astype("<u4").tobytes())
    assert open_shards(tmp_path).tokenizer is None


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<i8"])
def test_arrays_that_build_nanogpt_saved_are_read(tmp_path, with_gpt2, dtype):
    ids = ids_by("gpt2", 1000, 5)
    for number, split in enumerate(("val", "train", "train")):
        np.save(
            tmp_path / f"edufineweb_{split}_{number:06d}.npy",
            (ids - number % 2).clip(0).astype(dtype),
        )
    prepared = open_shards(tmp_path)
    assert prepared.kind == "build-nanogpt"
    assert prepared.n_tokens == {"train": 2000, "val": 1000}
    assert prepared.shards["val"][0].tolist() == ids.tolist()
    verify_shards(prepared)


def save_both(path, ids):
    for name in (path.name, "a_val_000000.npy"):
        np.save(path.with_name(name), ids)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: np.save(p, np.zeros((4, 5), "<u2")), r"uint16 with shape \(4, 5\), not of ids"),
        (lambda p: np.save(p, np.zeros(4, "<f4")), "is an array of float32"),
        (lambda p: np.save(p, np.zeros(4, ">u2")), "is an array of >u2"),
        (lambda p: np.save(p, np.zeros(0, "<u2")), "not of ids in a row"),
        (lambda p: np.save(p, np.array([{}]), allow_pickle=True), "is an array of object"),
        (lambda p: save_both(p, np.array([5, -1], "<i8")), "negative or beyond 32 bits"),
        (lambda p: save_both(p, np.array([5, 60000], "<i4")), "has id 60000"),
        (lambda p: p.write_bytes(b"\x93NUMPY\1\0\5\0{'a'}"), "is no array that NumPy saved"),
        (lambda p: p.write_bytes(b"text"), "is no array that NumPy saved"),
        (lambda p: os.mkfifo(p), "is no file"),
        (
            lambda p: (np.save(p, np.zeros(400, "<u2")), os.truncate(p, 200)),
            "says 400 tokens of 2 bytes, and 72 bytes follow it",
        ),
    ],
)
def test_an_array_that_is_no_shard_is_refused(tmp_path, gpt2, make, message):
    np.save(tmp_path / "a_val_000000.npy", np.arange(9, dtype="<u2"))
    make(tmp_path / "a_train_000001.npy")
    with pytest.raises(ShardError, match=message):
        open_shards(tmp_path, gpt2)


def test_a_folder_without_validation_tokens_is_refused(tmp_path, with_gpt2):
    llm_c(tmp_path / "fineweb_train_000001.bin", [1])
    with pytest.raises(ShardError, match=r"has no val tokens \(a file such as val.bin\)"):
        open_shards(tmp_path)


def test_the_sum_of_a_foreign_folder_changes_with_its_ends(tmp_path, with_gpt2):
    sums = set()
    for last in (1, 2):
        for name in ("a_train.bin", "a_val.bin"):
            llm_c(tmp_path / name, [5, 6, last])
        sums.add(open_shards(tmp_path).record["sha256"])
    assert len(sums) == 2


def test_every_error_is_a_users():
    assert issubclass(ShardError, UserError)

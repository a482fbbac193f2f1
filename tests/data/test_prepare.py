"""Preparing corpora: every source, every way to break off, and the same bytes however it went."""

import bz2
import concurrent.futures
import contextlib
import gzip
import http.server
import importlib
import importlib.util
import io
import itertools
import json
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import types
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

import main
from data import encode, merge, workers
from data import prepare as module
from data.config import PrepareConfig
from data.filters import Limits, Seen, digest, is_validation, letters, reject, repetition
from data.prepare import prepare
from data.sources import common_crawl, hugging_face, json_lines, parquet, parquet_pages
from data.sources.documents import BadInput
from data.sources.readers import make_plan, read_unit
from data.sources.text import CUT, plan_text
from gpt_jax.console import Display
from gpt_jax.download import DownloadLimits, FailedDownload, download
from gpt_jax.errors import TrainingError, UserError
from gpt_jax.input_pipeline.dataset import split_text
from gpt_jax.input_pipeline.shards.manifest import MANIFEST_FILE
from gpt_jax.input_pipeline.shards.memmap import WORK_FOLDER
from gpt_jax.input_pipeline.shards.reader import open_shards, verify_shards
from gpt_jax.tokenizer import END_OF_TEXT, PATTERN, BpeTokenizer, CharTokenizer

TEXT = (
    "The wizard said: Dorothy, go home.\nToto ran;  the lion\n\nslept — café, 12345 times!\n" * 60
)
DOCUMENTS = [
    f"Document {i}: " + " ".join(f"word{i * j % 97}" for j in range(i % 37)) for i in range(200)
]
EXAMPLES = settings(deadline=None, derandomize=True, max_examples=150)


def run(tmp_path, name="out", **values):
    """Prepares in this process, and returns the corpus opened and verified."""
    values = {"tokenizer": "char", "workers": 1, "out": str(tmp_path / name)} | values
    prepare(PrepareConfig(**values), Display(quiet=True))
    prepared = open_shards(values["out"])
    verify_shards(prepared)
    return prepared


def ids_of(prepared, split):
    return np.concatenate(prepared.shards[split])


def texts_of(prepared, split):
    """The documents of a split, as their separator parts them."""
    text = prepared.tokenizer.decode(ids_of(prepared, split))
    separator = "\n" if isinstance(prepared.tokenizer, CharTokenizer) else END_OF_TEXT
    assert text.endswith(separator)
    return text.removesuffix(separator).split(separator)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def halves(documents, val_fraction=0.1):
    val = [d for d in documents if is_validation(digest(d), val_fraction)]
    return [d for d in documents if d not in set(val)], val


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def small_units(monkeypatch):
    """Pieces of some hundred bytes, so that a small text has many."""
    monkeypatch.setattr("data.sources.documents.UNIT_BYTES", 300)
    monkeypatch.setattr("data.sources.text.SEARCH_BYTES", 100)
    monkeypatch.setattr("data.sources.text.BLOCK_BYTES", 64)


@pytest.fixture(scope="session")
def gpt2(gpt2_files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
        return BpeTokenizer.published("gpt2")


def write_jsonl(path, documents=DOCUMENTS, field="text"):
    raw = "".join(json.dumps({field: d, "id": i}) + "\n" for i, d in enumerate(documents)).encode()
    if path.suffix == ".gz":
        raw = gzip.compress(raw, mtime=0)
    elif path.suffix == ".zst":
        raw = importlib.import_module("backports.zstd").compress(raw)
    path.write_bytes(raw)
    return path


def warc_record(kind, block, language=None, length=None):
    headers = f"WARC/1.0\r\nWARC-Type: {kind}\r\n"
    if language:
        headers += f"WARC-Identified-Content-Language: {language}\r\n"
    headers += f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    return headers.encode() + block + b"\r\n\r\n"


def wet_bytes(documents=DOCUMENTS, language="eng", first=b"Software-Info: none\r\n"):
    records = [warc_record("warcinfo", first)]
    records += [warc_record("conversion", d.encode() + b"\n", language) for d in documents]
    return b"".join(gzip.compress(record, mtime=0) for record in records)


# --- one text -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["char", "bpe", "gpt2"])
@pytest.mark.parametrize("val_fraction", [0.1, 0.2, 0.37])
def test_a_text_in_pieces_has_the_tokens_of_the_whole(
    tmp_path, book, small_units, gpt2, monkeypatch, tokenizer, val_fraction
):
    monkeypatch.setattr(BpeTokenizer, "published", classmethod(lambda cls, name: gpt2))
    size = 300 if tokenizer == "bpe" else None
    prepared = run(
        tmp_path, input=str(book), tokenizer=tokenizer, vocab_size=size, val_fraction=val_fraction
    )
    parts = split_text(TEXT, 1 - val_fraction)
    expected = {
        "char": lambda: CharTokenizer.train(TEXT),
        "bpe": lambda: BpeTokenizer.train(parts["train"], 300),
        "gpt2": lambda: gpt2,
    }[tokenizer]()
    assert prepared.tokenizer.to_json() == expected.to_json()
    for split, text in parts.items():
        assert ids_of(prepared, split).tolist() == expected.encode(text).tolist()
        assert prepared.n_bytes[split] == len(text.encode())
    assert prepared.n_documents == {"train": 1, "val": 1}
    assert prepared.manifest.source["by_position"] is True


def test_the_units_of_a_text_are_small_and_follow_one_another(book, small_units):
    units, characters = plan_text(str(book), 0.1, True)
    assert len(units) > 15
    assert characters == "".join(sorted(set(TEXT)))
    assert [unit["start"] for unit in units[1:]] == [unit["end"] for unit in units[:-1]]
    assert all(unit["end"] - unit["start"] <= 400 for unit in units)


PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k_base": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k_base": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+",
    "learned": PATTERN,
}
CHARACTERS = st.sampled_from(list("aB9 \n\r\t./'sé²½Ⅷ中\u00a0\u0301\u3000—")) | st.characters(
    codec="utf-8"
)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_no_match_spans_a_place_to_cut(pattern):
    """Cut there, the matches of the pieces are those of the whole, for every published pattern."""
    regex = importlib.import_module("regex")  # comes with tiktoken
    compiled = regex.compile(pattern)

    @given(st.text(CHARACTERS, max_size=40))
    @example("x.\nA y's B\r\n c")
    @example("x\n\nA")
    @example("x\r\nA")
    @example("x\n/A x  A x\n A")
    @EXAMPLES
    def check(text):
        places = [0, *(match.start() for match in CUT.finditer(text)), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(places)]
        assert [m for piece in pieces for m in compiled.findall(piece)] == compiled.findall(text)

    check()


def test_a_text_without_a_place_to_cut_is_cut_between_characters(tmp_path, small_units):
    path = tmp_path / "long.txt"
    path.write_text("é—中" * 2000, encoding="utf-8")
    prepared = run(tmp_path, input=str(path))
    parts = split_text("é—中" * 2000, 0.9)
    for split, text in parts.items():
        assert prepared.tokenizer.decode(ids_of(prepared, split)) == text


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty; give a text file"),
        (b"abc\xffdef" * 99, "is not UTF-8 .byte 0xff: invalid start byte.; convert it"),
        ("é".encode()[:1], "is not UTF-8 .byte 0xc3: unexpected end of data"),
        (b"a" * 300 + b"\0", "looks binary .a zero byte at 300"),
        (b"\xff\xfea\0", "looks like UTF-16, not UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_refused_before_anything_is_written(
    tmp_path, small_units, raw, message
):
    (tmp_path / "x.txt").write_bytes(raw)
    with pytest.raises(UserError, match=message):
        run(tmp_path, input=str(tmp_path / "x.txt"))
    assert not (tmp_path / "out").exists()


def test_filters_are_not_for_a_single_text(tmp_path, book):
    with pytest.raises(UserError, match="filters are for many documents"):
        run(tmp_path, input=str(book), min_characters=3)


# --- many documents -------------------------------------------------------------------------------


def test_documents_are_parted_by_their_hash_and_end_with_the_token_for_it(
    tmp_path, gpt2, monkeypatch
):
    monkeypatch.setattr(BpeTokenizer, "published", classmethod(lambda cls, name: gpt2))
    source = write_jsonl(tmp_path / "a.jsonl", [*DOCUMENTS, f"not a {END_OF_TEXT} token"])
    prepared = run(tmp_path, source="jsonl", input=str(source), tokenizer="gpt2")
    train, val = halves([*DOCUMENTS, f"not a {END_OF_TEXT} token"])
    assert 10 < len(val) < 40
    for split, documents in (("train", train), ("val", val)):
        expected = np.concatenate([[*gpt2.encode(d), 50256] for d in documents])
        assert ids_of(prepared, split).tolist() == expected.tolist()
        assert prepared.n_bytes[split] == sum(len(d.encode()) for d in documents)
        assert prepared.n_documents[split] == len(documents)
    assert prepared.manifest.counts == {
        "read": 201,
        "kept": 201,
        "dropped": {},
        "damaged_records": 0,
        "damaged_files": 0,
    }


@pytest.mark.slow
def test_a_document_stays_on_its_side_as_the_corpus_grows():
    train, val = halves(DOCUMENTS)
    more_train, more_val = halves([*DOCUMENTS, *(f"more {i}" for i in range(500))])
    assert set(train) <= set(more_train)
    assert set(val) <= set(more_val)
    share = len(halves([f"{i}" for i in range(20_000)])[1]) / 20_000
    assert abs(share - 0.1) < 4 * (0.1 * 0.9 / 20_000) ** 0.5  # four standard deviations


def test_characters_of_many_documents_are_parted_by_a_line_feed(tmp_path):
    prepared = run(tmp_path, source="jsonl", input=str(write_jsonl(tmp_path / "a.jsonl")))
    train, val = halves(DOCUMENTS)
    assert texts_of(prepared, "train") == train
    assert texts_of(prepared, "val") == val
    assert set(prepared.tokenizer.vocabulary) == set("".join(DOCUMENTS)) | {"\n"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_json_lines_in_ranges_and_streams(tmp_path, small_units, name):
    source = write_jsonl(tmp_path / name)
    if name == "a.jsonl":
        assert len(json_lines.plan(str(source), source.stat().st_size, 300)) > 50
    prepared = run(tmp_path, source="jsonl", input=str(source))
    assert [texts_of(prepared, split) for split in ("train", "val")] == list(halves(DOCUMENTS))


@given(
    lines=st.lists(st.integers(0, 60), min_size=1, max_size=30),
    unit=st.integers(1, 90),
    ends=st.booleans(),
)
@EXAMPLES
def test_ranges_of_lines_have_every_line_once(tmp_path_factory, lines, unit, ends):
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    documents = ["x" * n for n in lines]
    text = "\n".join(json.dumps({"text": d}) for d in documents) + "\n" * ends
    path.write_text(text)
    config = PrepareConfig(source="jsonl", input="-", out="-")
    units = json_lines.plan(str(path), len(text), unit)
    read = [d.text for u in units for d in read_unit(config, u, path)]
    assert read == documents


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.json", "array"),
        ("a.txt", "array"),
        ("a.json", "indented"),
        ("a.json", "objects"),
        ("a.json.gz", "array"),
        ("a.jsonl.bz2", "lines"),
        ("a.jsonl.xz", "lines"),
        ("a", "lines.gz"),
    ],
)
def test_json_of_any_layout_and_packing(tmp_path, name, form):
    records = [{"text": d, "n": [i, {"s": ']}\\"{['}]} for i, d in enumerate(DOCUMENTS)]
    text = {
        "array": lambda: json.dumps(records),
        "indented": lambda: "\ufeff" + json.dumps(records, indent=2),
        "objects": lambda: "\n".join(json.dumps(r, indent=1) for r in records),
    }.get(form, lambda: "".join(json.dumps(r) + "\n" for r in records))()
    module = name.rpartition(".")[2] if name.count(".") == 2 else form.partition(".")[2]
    packed = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(module, bytes)
    (tmp_path / name).write_bytes(packed(text.encode()))
    prepared = run(tmp_path, source="jsonl", input=str(tmp_path / name))
    assert [texts_of(prepared, split) for split in ("train", "val")] == list(halves(DOCUMENTS))


SCALARS = st.integers() | st.booleans() | st.none() | st.text(max_size=5)
JSON = st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x))


@given(st.lists(JSON, max_size=6), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
@EXAMPLES
def test_the_values_of_an_array_are_found_in_any_blocks(tree, block, indent, ascii_only):
    raw = json.dumps(tree, indent=indent, ensure_ascii=ascii_only).encode() + b" \n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "STREAM_BYTES", block)
        found = list(json_lines.values(io.BytesIO(raw), 1 << 20, True, "a"))
        assert [json.loads(value) for _, value in found] == tree
        few = [value for _, value in json_lines.values(io.BytesIO(raw), 4, True, "a")]
        sizes = [len(value) for _, value in found]
        assert [v is None for v in few] == [n > 4 for n in sizes]
        for cut in range(1, len(raw) - 2, max(7, len(raw) // 6)):
            with pytest.raises(BadInput, match="breaks off"):
                list(json_lines.values(io.BytesIO(raw[:cut]), 1 << 20, True, "a"))


@pytest.mark.parametrize("tail", [b"]", b" x", b"[1]", b'"'])
def test_what_follows_an_array_is_damage(tail):
    with pytest.raises(BadInput):
        list(json_lines.values(io.BytesIO(b"[{}, {}]" + tail), 99, True, "a"))


def test_a_record_without_the_field_names_those_it_has(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", field="body")
    with pytest.raises(
        UserError, match=r"no text in its field 'text' .*; it has 'body', 'id'; rep"
    ):
        run(tmp_path, source="jsonl", input=str(source))


@pytest.mark.parametrize("filling", ["[],", "{},", "1,", '"a",', "[[[]]],", '{"a":1},'])
def test_a_record_of_many_values_is_left_out_before_they_take_memory(tmp_path, filling):
    many = filling * ((1 << 20) // len(filling) - 20)
    line = '{"text": "a", "x": [' + many.rstrip(",") + "]}"
    (tmp_path / "a.jsonl").write_text(line + "\n" + json.dumps({"text": "," * 500_000}) + "\n")
    config = PrepareConfig(source="jsonl", input="-", out="-", max_document_mb=1)
    (unit,) = json_lines.plan(str(tmp_path / "a.jsonl"), 1, 1 << 30)
    unit["end"] = 1 << 30
    tracemalloc.start()
    bad, good = read_unit(config, unit, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "has more values than --max-document-mb 1 allows" in str(bad)
    assert good.text == "," * 500_000
    assert peak < 8 << 20


@pytest.mark.parametrize(
    ("name", "content", "command"),
    [
        ("a.jsonl", b'{"text": "a"}\n', "--source jsonl --input {}"),
        ("a.txt", b'{"text": "a"}\n{"text": "b"}\n', "--source jsonl --input {}"),
        ("a.json", b"[]", "--source jsonl --input {}"),
        ("a.parquet", b"PAR1", "--source parquet --input {}"),
        ("a.csv", b"text\na\n", "make JSON lines of it: python -c "),
        ("a.txt.gz", gzip.compress(b"text"), "gunzip -k {}"),
        ("a.bin", lzma.compress(b"text"), "unxz -k {}"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_what_is_no_text_is_refused_with_what_reads_it(tmp_path, name, content, command, several):
    for number in range(1 + several):
        (tmp_path / f"{number}{name}").write_bytes(content)
    pattern = str(tmp_path / ("*" if several else f"0{name}"))
    with pytest.raises(UserError) as caught:
        run(tmp_path, input=pattern)
    given = pattern if not several or "source" not in command else f"'{pattern}'"
    given = given if "source" in command else str(tmp_path / f"0{name}")
    assert command.format(given) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_records_among_texts(tmp_path):
    """As in a repository: JSON and tables are documents, what can't be one is damage."""
    for i, document in enumerate(DOCUMENTS[:60]):
        (tmp_path / f"{i:03d}.txt").write_text(document)
    (tmp_path / "package.json").write_text('{"name": "a"}')
    (tmp_path / "table.csv").write_text("a,b\n")
    prepared = run(tmp_path, input=str(tmp_path / "*.*"))
    assert sum(prepared.n_documents.values()) == 62
    write_jsonl(tmp_path / "x.jsonl")
    (tmp_path / "y.gz").write_bytes(gzip.compress(b"text"))
    with pytest.raises(UserError, match=r"x.jsonl is JSON lines, not a text; make a corpus of it:"):
        run(tmp_path, "other", input=str(tmp_path / "*.*"), tokenizer="bpe", vocab_size=257)
    prepared = run(tmp_path, "skipped", input=str(tmp_path / "*.*"), on_damage="skip")
    assert prepared.manifest.counts["damaged_records"] == 2


def test_a_device_or_a_name_that_is_not_utf8_is_no_input(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UserError, match="is a device or a pipe; write its text to a file"):
            run(tmp_path, input=str(path))
    name = os.fsdecode(b"\xff.txt")
    (tmp_path / name).write_text(TEXT)
    for pattern in (str(tmp_path / name), str(tmp_path / "*.txt")):
        with pytest.raises(UserError, match="path is not UTF-8"):
            run(tmp_path, input=pattern)
    with pytest.raises(UserError, match="path is not UTF-8; choose another"):
        run(tmp_path, name, input="x")


@pytest.mark.parametrize("rows", [0, None])
def test_a_source_without_documents_says_so(tmp_path, rows):
    if rows is None:
        (tmp_path / "a.x").write_text("\n\n")
        source = "jsonl"
    else:
        table = importlib.import_module("pyarrow").table({"text": [""][:rows]})
        importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "a.x")
        source = "parquet"
    with pytest.raises(
        UserError, match=r"has no document, so there is|has no rows, so there is no"
    ):
        run(tmp_path, source=source, input=str(tmp_path / "a.x"))


def write_parquet(path, columns, **options):
    table = importlib.import_module("pyarrow").table(columns)
    importlib.import_module("pyarrow.parquet").write_table(table, path, **options)
    return path


@pytest.mark.parametrize("order", [1, -1])
def test_a_column_is_the_one_of_exactly_that_name(tmp_path, order):
    columns = [("meta", [{"text": "zz"}] * 200), ("meta.text", DOCUMENTS), ("a.b.c", DOCUMENTS)]
    path = write_parquet(tmp_path / "a.parquet", dict(columns[::order]))
    for field in ("meta.text", "a.b.c"):
        prepared = run(tmp_path, field, source="parquet", input=str(path), text_field=field)
        assert [texts_of(prepared, split) for split in ("train", "val")] == list(halves(DOCUMENTS))
    with pytest.raises(UserError, match=r"has no column .meta.textual."):
        run(tmp_path, source="parquet", input=str(path), text_field="meta.textual")


BIG = "a b " * (1 << 20)  # 4 MB, and nothing once packed


def repeated(options):
    """200 documents and then 30 times `BIG`, in a few KB."""
    pyarrow = importlib.import_module("pyarrow")
    if options.get("use_dictionary", True):
        indices = pyarrow.array([*range(200), *[200] * 30], pyarrow.int32())
        return pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array([*DOCUMENTS, BIG]))
    return pyarrow.array([*DOCUMENTS, *[BIG] * 30])


@pytest.mark.parametrize(
    "options",
    [
        {"store_schema": False},
        {"use_dictionary": False},
        {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"},
        {"use_dictionary": False, "column_encoding": "DELTA_LENGTH_BYTE_ARRAY"},
        {"use_dictionary": False, "data_page_version": "2.0"},
    ],
    ids=str,
)
def test_rows_that_are_large_once_unpacked_are_left_out(tmp_path, options, monkeypatch):
    pyarrow = importlib.import_module("pyarrow")
    monkeypatch.setattr(parquet, "BATCH_BYTES", 8 << 20)
    path = write_parquet(tmp_path / "a.parquet", {"text": repeated(options)}, compression="zstd",
                         **options)  # fmt: skip
    (unit,) = parquet.plan(str(path), 1, 1 << 40)
    config = PrepareConfig(source="parquet", input="-", out="-", max_document_mb=1)
    before, peak, found = pyarrow.total_allocated_bytes(), 0, []
    for document in read_unit(config, unit, tmp_path):
        found.append(getattr(document, "text", None))
        peak = max(peak, pyarrow.total_allocated_bytes() - before)
    if len(found) == 1:  # a page of it is too large
        assert not options.get("use_dictionary", True)
        assert found == [None]
    else:
        assert found == [*DOCUMENTS, *[None] * 30]
    assert peak < 64 << 20


def test_pages_are_measured_by_their_headers(tmp_path):
    pyarrow_parquet = importlib.import_module("pyarrow.parquet")
    path = write_parquet(tmp_path / "a.parquet", {"text": [*DOCUMENTS, BIG], "n": [1] * 201})
    with pyarrow_parquet.ParquetFile(path) as file, open(path, "rb") as raw:
        group = file.metadata.row_group(0)
        sizes = parquet_pages.page_sizes(raw, group.column(0))
        assert len(BIG) < sizes.dictionary == sizes.largest < len(BIG) + 100_000
        assert parquet_pages.page_sizes(raw, group.column(1)).dictionary == 8
    path = write_parquet(tmp_path / "b.parquet", {"text": DOCUMENTS}, use_dictionary=False)
    with pyarrow_parquet.ParquetFile(path) as file, open(path, "rb") as raw:
        chunk = file.metadata.row_group(0).column(0)
        plain = sum(4 + len(d.encode()) for d in DOCUMENTS)
        assert parquet_pages.page_sizes(raw, chunk).largest in range(plain, plain + 20)
        for junk in (b"", b"\xff" * 9999, b"\x15" * 9999, b"\x1c" * 9999):
            with pytest.raises(ValueError, match="page"):
                parquet_pages.page_sizes(io.BytesIO(bytes(chunk.data_page_offset) + junk), chunk)


def test_parquet_in_row_groups(tmp_path, small_units):
    pyarrow = importlib.import_module("pyarrow")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": DOCUMENTS, "score": list(range(200))})
    importlib.import_module("pyarrow.parquet").write_table(table, path, row_group_size=9)
    assert len(parquet.plan(str(path), path.stat().st_size, 300)) > 5
    prepared = run(tmp_path, source="parquet", input=str(path))
    assert [texts_of(prepared, split) for split in ("train", "val")] == list(halves(DOCUMENTS))
    with pytest.raises(UserError, match="has no column 'body'; its columns are text, score"):
        run(tmp_path, "other", source="parquet", input=str(path), text_field="body")


def test_a_page_of_parquet_is_held_and_not_a_column(tmp_path):
    pyarrow = importlib.import_module("pyarrow")
    draw = np.random.default_rng(0)
    table = pyarrow.table({"text": [draw.bytes(2000).hex() for _ in range(5000)]})
    write = importlib.import_module("pyarrow.parquet").write_table
    write(table, tmp_path / "a.parquet", use_dictionary=False)
    del table
    (unit,) = parquet.plan(str(tmp_path / "a.parquet"), 1, 1 << 30)
    config = PrepareConfig(source="parquet", input="-", out="-")
    before = pyarrow.total_allocated_bytes()
    held = max(pyarrow.total_allocated_bytes() for _ in read_unit(config, unit, tmp_path))
    assert os.path.getsize(tmp_path / "a.parquet") > 20_000_000
    assert held - before < 10_000_000  # a batch of 256 rows, some pages, a buffer


def test_a_flipped_bit_in_parquet_is_seen_where_pages_have_sums(tmp_path):
    path = tmp_path / "a.parquet"
    table = importlib.import_module("pyarrow").table({"text": DOCUMENTS})
    write = importlib.import_module("pyarrow.parquet").write_table
    write(table, path, use_dictionary=False, compression="none", write_page_checksum=True)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"Document 7:")] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"can't be read to its end: .* CRC checksum"):
        run(tmp_path, source="parquet", input=str(path), tokenizer="bpe", vocab_size=257)


@pytest.mark.parametrize("source", ["text", "texts", "jsonl", "parquet"])
def test_a_large_source_has_larger_units_and_the_same_shards(
    tmp_path, book, small_units, monkeypatch, source
):
    if source == "text":
        path = book
    elif source == "texts":
        path = tmp_path / "*.md"
        for i, document in enumerate(DOCUMENTS):
            (tmp_path / f"{i:03d}.md").write_text(document)
    elif source == "jsonl":
        path = write_jsonl(tmp_path / "a.jsonl")
    else:
        path = tmp_path / "a.parquet"
        table = importlib.import_module("pyarrow").table({"text": DOCUMENTS})
        importlib.import_module("pyarrow.parquet").write_table(table, path, row_group_size=2)
    values = {"source": source.removesuffix("s"), "input": str(path)}
    config = PrepareConfig(out="-", tokenizer="char", **values)
    many = make_plan(config, tmp_path).units
    small = run(tmp_path, "small", **values)
    monkeypatch.setattr("data.sources.documents.MAX_UNITS", 4)
    few = make_plan(config, tmp_path).units
    large = run(tmp_path, "large", **values)
    assert len(few) <= 10 < 16 < len(many)
    assert small.manifest == large.manifest


def test_several_text_files_are_documents(tmp_path, small_units):
    for i, document in enumerate(DOCUMENTS):
        (tmp_path / f"{i:03d}.txt").write_text(document)
    prepared = run(tmp_path, input=str(tmp_path / "*.txt"))
    assert [texts_of(prepared, split) for split in ("train", "val")] == list(halves(DOCUMENTS))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_data_set_of_the_hub_is_streamed(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(4):
        write_jsonl(folder / f"{i}.jsonl", DOCUMENTS[50 * i : 50 * i + 50])
    prepared = run(tmp_path, source="hf", input=str(folder))
    assert [texts_of(prepared, split) for split in ("train", "val")] == list(halves(DOCUMENTS))
    assert prepared.manifest.source["files"] == 4
    with pytest.raises(UserError, match="has no column 'body'"):
        run(tmp_path, "other", source="hf", input=str(folder), text_field="body")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_parquet_in_a_local_data_set_is_read_as_parquet(tmp_path, monkeypatch):
    """With the bounds of --source parquet, which the package does not have."""
    pyarrow = importlib.import_module("pyarrow")
    monkeypatch.setattr(parquet, "BATCH_BYTES", 8 << 20)
    folder = tmp_path / "set"
    folder.mkdir()
    options = {"compression": "zstd", "store_schema": False, "row_group_size": 100}
    write_parquet(folder / "0.parquet", {"text": repeated({})}, **options)
    write_parquet(folder / "1.parquet", {"text": DOCUMENTS[:30]})
    config = PrepareConfig(source="hf", input=str(folder), out="-", max_document_mb=1)
    before, peak, found = pyarrow.total_allocated_bytes(), 0, []
    for unit in hugging_face.plan(config).units:
        for document in read_unit(config, unit, tmp_path):
            found.append(getattr(document, "text", None))
            peak = max(peak, pyarrow.total_allocated_bytes() - before)
    assert found == [*DOCUMENTS, *[None] * 30, *DOCUMENTS[:30]]
    assert peak < 64 << 20


class HubError(OSError):
    """As huggingface_hub's, with the server's answer."""

    __module__ = "huggingface_hub.errors"

    def __init__(self, status):
        super().__init__(f"{status} from the hub")
        self.response = types.SimpleNamespace(status_code=status)


class Rows(list):
    """As a data set of `datasets` with two files, of which the second breaks off with an error."""

    column_names, num_shards, error = ["text"], 2, None

    def shard(self, num_shards, index):
        rows = Rows(self[index::num_shards])
        rows.error = self.error if index else None
        return rows

    def select_columns(self, names):
        yield from self
        if self.error:
            raise self.error


@pytest.fixture
def hub(monkeypatch):
    """A data set on the hub; its errors are raised when it is opened, asked for, and read."""
    hub = types.SimpleNamespace(opened=None, asked=None, read=None)

    def load_dataset(*args, **kwargs):
        if hub.opened:
            raise hub.opened
        rows = Rows({"text": document} for document in DOCUMENTS)
        rows.error = hub.read
        return rows

    def dataset_info(self, name, revision):
        if hub.asked:
            raise hub.asked
        return types.SimpleNamespace(sha="abc")

    api = types.SimpleNamespace(HfApi=type("HfApi", (), {"dataset_info": dataset_info}))
    monkeypatch.setitem(sys.modules, "huggingface_hub", api)
    builder = types.SimpleNamespace(name="json", config=types.SimpleNamespace(data_files={}))
    datasets = types.SimpleNamespace(
        load_dataset=load_dataset, load_dataset_builder=lambda *args, **kwargs: builder
    )
    monkeypatch.setattr("data.sources.hugging_face.import_optional", lambda name: datasets)
    return hub


@pytest.mark.parametrize("when", ["opened", "asked", "read"])
@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Server Disconnected"),
        TimeoutError("too late"),
        OSError(101, "Network is unreachable"),
        HubError(503),
        HubError(429),
    ],
    ids=repr,
)
def test_a_hub_that_cant_be_reached_is_no_damage(tmp_path, hub, when, error):
    values = {"source": "hf", "input": "name/on_the_hub", "on_damage": "skip"}
    setattr(hub, when, error)
    with pytest.raises(
        TrainingError, match=r"is not available: .*; run the same command again to resume"
    ):
        run(tmp_path, **values)
    setattr(hub, when, HubError(404))
    with pytest.raises(UserError, match=r"can't be opened: HubError: 404 .* check --input"):
        run(tmp_path, **values)
    setattr(hub, when, None)
    prepared = run(tmp_path, **values)
    assert sum(prepared.n_documents.values()) == len(DOCUMENTS)
    assert prepared.manifest.source == {
        "kind": "hf", "by_position": False, "files": 2, "revision": "abc"
    }  # fmt: skip


@pytest.mark.parametrize("error", [ValueError("no JSON"), OSError("Corrupt page"), EOFError("")])
def test_a_file_of_the_hub_that_is_damaged_is_left_out(tmp_path, hub, error):
    hub.read = error
    values = {"source": "hf", "input": "name/on_the_hub"}
    with pytest.raises(UserError, match="file 2 of 2 can't be read to its end"):
        run(tmp_path, **values, tokenizer="bpe", vocab_size=257)
    prepared = run(tmp_path, "skipped", on_damage="skip", **values)
    assert sum(prepared.n_documents.values()) == len(DOCUMENTS) // 2
    assert prepared.manifest.counts["damaged_files"] == 1


@pytest.mark.parametrize(
    ("source", "module", "package"),
    [("parquet", "parquet", "pyarrow"), ("hf", "hugging_face", "the package datasets"),
     ("jsonl", "json_lines", "backports.zstd")],
)  # fmt: skip
def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch, source, module, package):
    (tmp_path / "a.zst").write_bytes(b"x")
    monkeypatch.setattr(f"data.sources.{module}.import_optional", lambda name: None)
    message = f"needs {package}: pip install -r requirements-data.txt"
    with pytest.raises(UserError, match=message):
        run(tmp_path, source=source, input=str(tmp_path / "a.zst"))


# --- Common Crawl ---------------------------------------------------------------------------------

OFF = {"min_characters": 0, "min_letters": 0.0, "max_repetition": 1.0, "deduplicate": False}


def test_wet_files(tmp_path):
    (tmp_path / "a.warc.wet.gz").write_bytes(wet_bytes())
    prepared = run(tmp_path, source="wet", input=str(tmp_path / "*.wet.gz"), **OFF)
    assert [texts_of(prepared, split) for split in ("train", "val")] == [
        [d.strip() for d in half] for half in halves([d.strip() for d in DOCUMENTS])
    ]


def test_filters_are_on_for_wet_and_the_manifest_shows_them(tmp_path):
    good = [f"Page {i} is an ordinary text of words. " * 9 for i in range(40)]
    bad = ["short", "12345 67890 " * 30, "again and again\n" * 30, good[3]]
    (tmp_path / "a.warc.wet.gz").write_bytes(wet_bytes([*good, *bad]))
    prepared = run(tmp_path, source="wet", input=str(tmp_path / "a.warc.wet.gz"))
    counts, shown = prepared.manifest.counts, prepared.manifest.settings
    assert counts["dropped"] == {
        "duplicate": 1,
        "max_repetition": 1,
        "min_characters": 1,
        "min_letters": 1,
    }
    assert (counts["read"], counts["kept"]) == (44, 40)
    assert (shown["min_characters"], shown["min_letters"], shown["deduplicate"]) == (200, 0.6, True)


def test_a_language_is_kept_by_its_first_tag(tmp_path):
    raw = wet_bytes(DOCUMENTS[:100], "eng,deu") + wet_bytes(DOCUMENTS[100:], "deu,eng")
    (tmp_path / "a.warc.wet.gz").write_bytes(raw)
    prepared = run(
        tmp_path, source="wet", input=str(tmp_path / "a.warc.wet.gz"), language="eng", **OFF
    )
    assert sorted(texts_of(prepared, "train") + texts_of(prepared, "val")) == sorted(
        d.strip() for d in DOCUMENTS[:100]
    )
    assert prepared.manifest.counts["dropped"] == {"language": 100}


@pytest.mark.skipif("GPT_JAX_DATA" not in os.environ, reason="GPT_JAX_DATA is not set")
def test_a_real_wet_file():
    path = Path(os.environ["GPT_JAX_DATA"]) / "common_crawl_sample.warc.wet.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with gzip.open(path) as file:
        (document,) = common_crawl.records(file, path.name, 1 << 26)
    assert document.text.startswith("Escopete - Biquipedia")
    assert document.language == "spa"


# --- damage ---------------------------------------------------------------------------------------


def damaged_sources():
    lines = "".join(json.dumps({"text": d}) + "\n" for d in DOCUMENTS[:50]).encode()
    zipped = gzip.compress(lines, mtime=0)
    flipped = bytearray(zipped)
    flipped[len(flipped) // 2] ^= 1
    wet, records = wet_bytes(DOCUMENTS[:50]), warc_record("conversion", b"x" * 90, length=70)
    return {
        "gz that breaks off": ("jsonl", "b.jsonl.gz", zipped[:-20], "ended before"),
        "gz with a flipped bit": ("jsonl", "b.jsonl.gz", bytes(flipped), "can't be read to its"),
        "gz that is none": ("jsonl", "b.jsonl.gz", lines, "Not a gzipped file"),
        "wet that breaks off": ("wet", "b.wet.gz", wet[:-20], "ended before"),
        "wet cut in its text": (
            "wet", "b.wet.gz", gzip.compress(gzip.decompress(wet)[:-20]), "is not as long as its",
        ),
        "wet cut in its headers": (
            "wet", "b.wet.gz", gzip.compress(b"WARC/1.0\r\nWARC-Type: x"), "breaks off in its h",
        ),
        "wet with a wrong length": ("wet", "b.wet.gz", gzip.compress(records), "Content-Length of"),
        "wet that is none": ("wet", "b.wet.gz", zipped, "does not begin with WARC/1"),
        "wet of nothing": ("wet", "b.wet.gz", gzip.compress(b""), "has no records"),
        "parquet that breaks off": ("parquet", "b.parquet", b"PAR1 half", "no whole Parquet file"),
        "zst that breaks off": ("jsonl", "b.jsonl.zst", lines, "can't be read to its end"),
        "zst that is none": ("jsonl", "b.jsonl.zst", lines, "can't be read to its end"),
    }  # fmt: skip


@pytest.mark.parametrize("case", damaged_sources())
def test_a_damaged_file_stops_or_is_left_out_whole_and_named(tmp_path, case):
    source, name, raw, message = damaged_sources()[case]
    if name.endswith(".zst"):
        zstd = importlib.import_module("backports.zstd")
        raw = zstd.compress(raw)[:-20] if "breaks off" in case else raw
        write_jsonl(tmp_path / "a.jsonl.zst")
    elif source == "jsonl":
        write_jsonl(tmp_path / "a.jsonl.gz")
    elif source == "wet":
        (tmp_path / "a.wet.gz").write_bytes(wet_bytes())
    else:
        pyarrow = importlib.import_module("pyarrow")
        table = pyarrow.table({"text": DOCUMENTS})
        importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    (tmp_path / name).write_bytes(raw)
    off = OFF if source == "wet" else {}
    values = {"source": source, "input": str(tmp_path / "*.*"), **off}
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, tokenizer="bpe", vocab_size=257, **values)
    assert name in str(caught.value)
    assert "--on-damage skip" in str(caught.value)
    prepared = run(tmp_path, "skipped", on_damage="skip", **values)
    assert sum(prepared.n_documents.values()) == len(DOCUMENTS)
    assert prepared.manifest.counts["damaged_files"] == 1
    assert name in prepared.manifest.damaged[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oh no", "the line at byte 34, is not JSON"),
        ("[" * 5000, "is not JSON"),
        ('["text"]', "has no text in its field 'text'"),
        ('{"text": 7}', "has no text in its field 'text'"),
        ('{"text": "\\ud800"}', "has half of a surrogate pair at 0"),
        (json.dumps({"text": "x" * (1 << 20)}), "a document of more than --max-document-mb 1"),
    ],
)
def test_a_damaged_line_stops_or_is_left_out_and_named(tmp_path, line, message):
    first = json.dumps({"text": "0123456789 abcdefghij"}) + "\n"
    assert len(first) == 34
    good = "".join(json.dumps({"text": d}) + "\n" for d in DOCUMENTS)
    (tmp_path / "a.jsonl").write_text(first + line + "\n" + good)
    values = {"source": "jsonl", "input": str(tmp_path / "a.jsonl"), "max_document_mb": 1}
    with pytest.raises(UserError, match=message):
        run(tmp_path, **values, tokenizer="bpe", vocab_size=257)
    prepared = run(tmp_path, "skipped", on_damage="skip", **values)
    assert sum(prepared.n_documents.values()) == len(DOCUMENTS) + 1
    assert prepared.manifest.counts["damaged_records"] == 1
    assert re.search(message, prepared.manifest.damaged[0])


# --- filters --------------------------------------------------------------------------------------


def test_measures_by_hand():
    assert letters("ab 1.\n") == 0.5
    assert letters(" \n") == letters("") == 0
    assert letters("éß中") == 1
    assert repetition("ab\ncd\nab\nab") == 4 / 8
    assert repetition("ab\ncd") == repetition("") == repetition("\n\n") == 0


@pytest.mark.parametrize(
    ("text", "limits", "reason"),
    [
        ("", Limits(), "empty"),
        ("abc", Limits(), None),
        ("abc", Limits(min_characters=3, max_characters=3), None),
        ("abc", Limits(min_characters=4), "min_characters"),
        ("abc", Limits(max_characters=2), "max_characters"),
        ("ab12", Limits(min_letters=0.5), None),
        ("ab123", Limits(min_letters=0.5), "min_letters"),
        ("ab\nab", Limits(max_repetition=0.5), None),
        ("ab\nab\nab", Limits(max_repetition=0.5), "max_repetition"),
        ("abc", Limits(language="eng"), "language"),
    ],
)
def test_limits_at_their_edges(text, limits, reason):
    assert reject(text, None, limits) == reason
    assert reject(text, "eng,deu", Limits(language="eng")) == (None if text else "empty")


@given(st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=60), st.integers(1, 50))
@EXAMPLES
def test_what_was_seen_is_a_set_until_it_is_full(values, capacity):
    seen, known = Seen(capacity), set()
    for value in values:
        new = seen.add(value)
        value = value or 1  # 0 stands for an empty place, and is taken for 1
        assert new == (value not in known)
        if len(known) < capacity:
            known.add(value)
    assert seen.forgotten == sum(v not in known for v in (value or 1 for value in values))


def test_duplicates_are_dropped_across_files_and_the_first_is_kept(tmp_path, small_units):
    documents = DOCUMENTS + DOCUMENTS[::-3] + ["new", "new"]
    for i in range(5):
        write_jsonl(tmp_path / f"{i}.jsonl.gz", documents[i * 60 : i * 60 + 60])
    values = {"source": "jsonl", "input": str(tmp_path / "*.gz")}
    prepared = run(tmp_path, deduplicate=True, **values)
    unique = list(dict.fromkeys(documents))
    assert [texts_of(prepared, split) for split in ("train", "val")] == list(halves(unique))
    assert prepared.manifest.counts["dropped"] == {"duplicate": len(documents) - len(unique)}
    assert prepared.manifest.counts["not_remembered"] == 0
    little = run(tmp_path, "little", deduplicate=True, dedup_documents=8, **values)
    assert little.manifest.counts["not_remembered"] > 150


def test_bpe_learns_from_a_bounded_sample_of_the_training_side(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.documents.UNIT_BYTES", 1 << 18)
    documents = [f"{i} " + chr(97 + i % 26) * 40_000 for i in range(60)]
    train, _ = halves(documents, 0.5)
    seen = []
    learn = BpeTokenizer.train.__func__

    def train_spy(cls, text, vocab_size, listener):
        seen.append(text)
        return learn(cls, text[:1000], vocab_size, listener)

    monkeypatch.setattr(BpeTokenizer, "train", classmethod(train_spy))
    source = write_jsonl(tmp_path / "a.jsonl", documents)
    settings = {"tokenizer": "bpe", "vocab_size": 260, "sample_mb": 1, "val_fraction": 0.5}
    run(tmp_path, source="jsonl", input=str(source), **settings)
    (text,) = seen
    assert 2**18 < len(text.encode()) <= 2**20 + len(documents)
    parts = text.removesuffix("\n").split("\n")
    assert all(any(d.startswith(part) for d in train) for part in parts)
    numbers = [int(part.split()[0]) for part in parts]
    assert numbers[0] < 10  # from the beginning, the middle and the end
    assert numbers[-1] > 45
    assert len(numbers) > 8


# --- interruptions --------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def many_files(folder, n=8):
    for i in range(n):
        documents = DOCUMENTS[i::n] + DOCUMENTS[:3]
        write_jsonl(folder / f"{i:02d}.jsonl.gz", documents)
    return {
        "source": "jsonl",
        "input": str(folder / "*.jsonl.gz"),
        "deduplicate": True,
        "shard_tokens": 1000,
    }


@pytest.mark.slow
def test_a_preparation_killed_at_any_file_operation_goes_on_to_the_same_bytes(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(merge, "SAVE_PAUSE", 0)  # the same operations each time
    values = many_files(tmp_path, 3)
    count, last = [0], [0]

    def patch(name):
        real = getattr(os, name)

        def call(*args, **kwargs):
            count[0] += 1
            if last[0] and count[0] >= last[0]:  # the dead do nothing more, so nothing is tidied
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace", "unlink", "mkdir", "rmdir"):
        patch(name)
    whole = run(tmp_path, "whole", **values)
    assert len(whole.shards["train"]) > 2
    n, expected = count[0], contents(tmp_path / "whole")
    assert n > 40
    for at in range(1, n + 1):
        count[0], last[0] = 0, at
        with pytest.raises(Killed):
            run(tmp_path, f"{at}", **values)
        last[0] = 0
        run(tmp_path, f"{at}", **values)
        assert contents(tmp_path / f"{at}") == expected, at


def command(values, out, workers=2):
    words = [sys.executable, str(ROOT / "main.py"), "prepare", f"--out={out}", "--tokenizer=char"]
    words += [f"--{k.replace('_', '-')}={str(v).lower() if v is True else v}"
              for k, v in values.items()]  # fmt: skip
    return [*words, f"--workers={workers}"]


@pytest.mark.slow
def test_real_kills_and_two_processes_give_the_same_bytes(tmp_path):
    values = many_files(tmp_path, 24)
    whole = run(tmp_path, "whole", **values)
    out = tmp_path / "killed"
    journal = out / WORK_FOLDER / "journal.json"
    kills, killed_at = 0, 0
    deadline = time.monotonic() + 120
    while not (out / MANIFEST_FILE).exists():
        assert time.monotonic() < deadline
        process = subprocess.Popen(command(values, out), stdout=subprocess.DEVNULL)
        while process.poll() is None:
            units = 0
            with contextlib.suppress(OSError, ValueError):
                units = json.loads(journal.read_text())["units"]
            if kills < 3 and killed_at < units < 24:  # each time further on
                process.send_signal(signal.SIGKILL)
                kills, killed_at = kills + 1, units
                break
            time.sleep(0.001)
        process.wait()
    assert kills >= 1
    assert contents(out) == contents(tmp_path / "whole")
    assert sum(whole.n_documents.values()) == len(set(DOCUMENTS))


def assert_they_end(processes):
    """Waits until none of these processes is there."""
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{each}/cmdline").exists() for each in processes):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc")
def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    process = subprocess.Popen(
        command(many_files(tmp_path, 24), tmp_path / "out"), stdout=subprocess.DEVNULL
    )
    journal = tmp_path / "out" / WORK_FOLDER / "journal.json"
    while process.poll() is None and not journal.exists():
        time.sleep(0.001)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert len(children) >= 2
    assert_they_end(children)


def descendants(pid):
    """The processes that a process has started, and those that they have."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            found += [child, *descendants(child)]
    return found


ENDLESS_UNITS = """
import os, time
from pathlib import Path
from data import encode

def encode_unit(work, number):
    (Path(os.environ["BEGUN"]) / str(number)).touch()
    time.sleep(3600)

encode.encode_unit = encode_unit
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc")
def test_datatroves_processes_end_with_a_parent_that_is_killed(tmp_path):
    """Two workers, in the middle of a unit; what starts them; the process of their queues."""
    begun, site = tmp_path / "begun", tmp_path / "site"
    for folder in (begun, site):
        folder.mkdir()
    (site / "sitecustomize.py").write_text(ENDLESS_UNITS)  # for the workers, which import anew
    environment = {**os.environ, "BEGUN": str(begun)}
    environment["PYTHONPATH"] = os.pathsep.join([str(site), str(ROOT)])
    words = command({**many_files(tmp_path, 24), "engine": "datatrove"}, tmp_path / "out")
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and len(list(begun.iterdir())) < 2:
        time.sleep(0.01)
    found = descendants(process.pid)
    process.kill()
    process.wait()
    assert len(found) >= 4
    assert_they_end(found)


def test_the_number_of_processes_does_not_show(tmp_path):
    values = many_files(tmp_path)
    run(tmp_path, "one", **values)
    run(tmp_path, "two", **values, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_datatrove_gives_the_same_bytes(tmp_path):
    """By the command: datatrove forks, which a process that jax has threads in must not."""
    values = many_files(tmp_path)
    run(tmp_path, "local", **values)
    words = command({**values, "engine": "datatrove"}, tmp_path / "datatrove")
    subprocess.run(words, check=True, capture_output=True)
    assert contents(tmp_path / "local") == contents(tmp_path / "datatrove")


def test_parts_made_elsewhere_are_taken(tmp_path, monkeypatch):
    from data.engines import Parts

    values = many_files(tmp_path)
    run(tmp_path, "local", **values)
    config = PrepareConfig(out=str(tmp_path / "apart"), tokenizer="char", engine="plan", **values)
    assert prepare(config, Display(quiet=True)) is None
    for rank in (1, 0):
        Parts.of(str(tmp_path / "apart"))(None, rank, 2)
    monkeypatch.setattr(encode, "_write", None)  # there is nothing left to do
    run(tmp_path, "apart", **values)
    assert contents(tmp_path / "local") == contents(tmp_path / "apart")


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:-1],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: bytes(len(raw)),
        lambda raw: raw[:99] + bytes([raw[99] ^ 1]) + raw[100:],
        lambda raw: raw[:-200] + bytes([raw[-200] ^ 1]) + raw[-199:],
    ],
)
def test_a_part_that_a_power_cut_has_damaged_is_made_again(tmp_path, damage):
    from data.engines import Parts

    values = many_files(tmp_path, 3)
    run(tmp_path, "whole", **values)
    config = PrepareConfig(out=str(tmp_path / "cut"), tokenizer="char", engine="plan", **values)
    prepare(config, Display(quiet=True))
    Parts.of(config.out)(None)
    path = encode.encoded_path(tmp_path / "cut" / WORK_FOLDER, 1)
    assert encode.load_encoded(path) is not None
    path.write_bytes(damage(path.read_bytes()))
    assert encode.load_encoded(path) is None
    run(tmp_path, "cut", **values)
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")


def test_a_preparation_goes_on_with_its_own_settings_only(tmp_path, monkeypatch):
    values = many_files(tmp_path, 3)
    with monkeypatch.context() as patch:
        patch.setattr(merge.ShardMerger, "append", lambda self, number: exec("raise KeyError"))
        with pytest.raises(KeyError):
            run(tmp_path, **values)
    with pytest.raises(UserError, match="begun with other settings: shard_tokens is 1000 there"):
        run(tmp_path, **values | {"shard_tokens": 7})
    write_jsonl(tmp_path / "01.jsonl.gz", ["another"])
    with pytest.raises(UserError, match=r"01.jsonl.gz has changed since the preparation began"):
        run(tmp_path, **values)
    (tmp_path / "01.jsonl.gz").unlink()
    with pytest.raises(UserError, match=r"01.jsonl.gz is gone since the preparation began"):
        run(tmp_path, **values)


def test_a_finished_corpus_is_not_made_again(tmp_path, book, monkeypatch):
    run(tmp_path, input=str(book))
    before = contents(tmp_path / "out")
    monkeypatch.setattr(module, "_prepare", None)
    run(tmp_path, input=str(book))
    assert contents(tmp_path / "out") == before
    with pytest.raises(UserError, match=r"other settings: val_fraction is 0.1 there and 0.2 here"):
        run(tmp_path, input=str(book), val_fraction=0.2)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bar_comes_to_its_end(tmp_path, workers, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, display, done, total):
            shown.append(total)

        def update(self, done, speed):
            shown.append(done)

    monkeypatch.setattr(module, "WorkProgress", Bar)
    out = str(tmp_path / "out")
    values = many_files(tmp_path, 4)
    prepare(
        PrepareConfig(**values, tokenizer="char", workers=workers, out=out), Display(quiet=True)
    )
    assert shown[0] == shown[-1] == sum(p.stat().st_size for p in tmp_path.glob("*.gz"))


def die(work, number):
    os._exit(1)


@pytest.mark.parametrize("place", ["submit", "result"])
def test_a_process_that_is_killed_is_one_line(tmp_path, monkeypatch, place):
    broken = BrokenProcessPool
    if place == "submit":
        pool = concurrent.futures.ProcessPoolExecutor
        monkeypatch.setattr(pool, "submit", lambda *args: exec("raise broken", {"broken": broken}))
    else:
        monkeypatch.setattr(workers, "encode_and_count", die)
    with pytest.raises(TrainingError, match="a process was killed, perhaps for its memory"):
        run(tmp_path, **many_files(tmp_path, 4), workers=2)


def test_what_killed_processes_left_is_removed(tmp_path):
    values = many_files(tmp_path, 3)
    run(tmp_path, "whole", **values)
    config = PrepareConfig(out=str(tmp_path / "killed"), tokenizer="char", engine="plan", **values)
    prepare(config, Display(quiet=True))
    out = tmp_path / "killed"
    left = [out / ".manifest.json.12", out / ".tokenizer.json.34"]
    left += [out / WORK_FOLDER / "parts" / ".000001.56.78"]
    for path in left:
        path.write_text("half")
    append = merge.ShardMerger.append
    seen = []

    def spy(self, number):
        seen.extend(path for path in left if path.exists())
        append(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge.ShardMerger, "append", spy)
        run(tmp_path, "killed", **values)
    assert not seen
    assert contents(tmp_path / "whole") == contents(out)


@pytest.mark.slow
def test_many_documents_of_one_unit_take_little_memory(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl.gz", [f"{i:06d}" for i in range(20_000)])
    values = {"source": "jsonl", "input": str(source), "tokenizer": "char"}
    prepare(PrepareConfig(out=str(tmp_path / "out"), engine="plan", **values), Display(quiet=True))
    tracemalloc.start()
    try:
        config = PrepareConfig(out=str(tmp_path / "out"), workers=1, **values)
        prepare(config, Display(quiet=True))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * 20_000  # all told; as a list of tuples they take more alone


def test_parts_are_appended_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "BLOCK_DOCUMENTS", 7)
    documents = [d for i in range(0, 200, 5) for d in (*DOCUMENTS[i : i + 5], *DOCUMENTS[:i:9])]
    source = write_jsonl(tmp_path / "a.jsonl.gz", documents)
    prepared = run(tmp_path, source="jsonl", input=str(source), deduplicate=True)
    unique = list(dict.fromkeys(documents))
    assert [texts_of(prepared, split) for split in ("train", "val")] == list(halves(unique))
    assert prepared.manifest.counts["dropped"] == {"duplicate": len(documents) - len(unique)}


def test_a_folder_that_is_prepared_anew_has_the_new_settings(tmp_path):
    for name, documents in (("old", DOCUMENTS), ("new", [d.upper() for d in DOCUMENTS])):
        source = write_jsonl(tmp_path / f"{name}.jsonl", documents)
        values = {"source": "jsonl", "input": str(source)}
        prepared = run(tmp_path, "out", **values)
        assert [texts_of(prepared, split) for split in ("train", "val")] == list(halves(documents))
        shutil.rmtree(tmp_path / "out")


def change_source(tmp_path, monkeypatch, how):
    if how == "longer":
        with (tmp_path / "b.jsonl").open("a") as file:
            file.write('{"text": "more"}\n')
    elif how == "more":
        write_jsonl(tmp_path / "c.jsonl", [])
    elif how == "elsewhere":  # as large, but another
        (tmp_path / "x").mkdir()
        for name in ("a.jsonl", "b.jsonl"):
            text = (tmp_path / name).read_text()
            (tmp_path / "x" / name).write_text(text.swapcase().replace("TEXT", "text"))
        monkeypatch.chdir(tmp_path / "x")
    elif how == "moved":
        (tmp_path / "x").mkdir()
        for name in ("a.jsonl", "b.jsonl"):
            (tmp_path / name).rename(tmp_path / "x" / name)
        monkeypatch.chdir(tmp_path / "x")
    elif how == "gone":
        (tmp_path / "a.jsonl").unlink()
        (tmp_path / "b.jsonl").unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("longer", r"--input \*.jsonl was 2 files of \d+ bytes and is 2 of \d+; choose another"),
        ("more", r"--input \*.jsonl was 2 files of \d+ bytes and is 3 of \d+"),
        ("elsewhere", r"--input was .*/\*.jsonl and is .*/x/\*.jsonl; choose another --out"),
        ("moved", ""),
        ("gone", ""),
    ],
)
def test_a_finished_corpus_is_of_the_source_as_it_is_now(tmp_path, monkeypatch, how, message):
    for name, half in (("a.jsonl", DOCUMENTS[:100]), ("b.jsonl", DOCUMENTS[100:])):
        write_jsonl(tmp_path / name, half)
    monkeypatch.chdir(tmp_path)
    values = {"source": "jsonl", "input": "*.jsonl"}
    run(tmp_path, **values)
    change_source(tmp_path, monkeypatch, how)
    if message:
        with pytest.raises(UserError, match=f"holds a corpus of another source: {message}"):
            run(tmp_path, **values)
    else:
        run(tmp_path, **values)


def test_a_preparation_goes_on_with_its_own_source_only(tmp_path, monkeypatch):
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    values = {"source": "jsonl", "input": "*.jsonl", "tokenizer": "char"}
    prepare(PrepareConfig(out=str(tmp_path / "out"), engine="plan", **values), Display(quiet=True))
    change_source(tmp_path, monkeypatch, "elsewhere")
    with pytest.raises(UserError, match=r"was begun with --input .*/\*.jsonl, and this is .*/x/"):
        run(tmp_path, **values)


def test_a_local_data_set_that_has_changed_is_noticed(tmp_path, hub):
    write_jsonl(tmp_path / "set.jsonl")
    values = {"source": "hf", "input": str(tmp_path)}
    run(tmp_path, **values)
    run(tmp_path, **values)  # the corpus is below, and no part of it
    (tmp_path / "set.jsonl").unlink()
    write_jsonl(tmp_path / "other.jsonl", DOCUMENTS[1:])
    with pytest.raises(UserError, match="holds a corpus of another source"):
        run(tmp_path, **values)


def test_two_preparations_of_one_folder(tmp_path, book):
    from gpt_jax.storage import lock

    (tmp_path / "out" / WORK_FOLDER).mkdir(parents=True)
    with (
        lock(tmp_path / "out" / WORK_FOLDER),
        pytest.raises(UserError, match="is being prepared by another process"),
    ):
        run(tmp_path, input=str(book))


def test_an_empty_side_is_an_error(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", DOCUMENTS[:3])
    with pytest.raises(UserError, match=r"no document of 3 is for val .0 were dropped"):
        run(tmp_path, source="jsonl", input=str(source), val_fraction=1e-9)


# --- downloads ------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; each path's next trouble is taken from `server.troubles`."""

    def do_GET(self):
        self.server.requests.append((self.path, self.headers.get("Range")))
        trouble = self.server.troubles.get(self.path, [])
        trouble = trouble.pop(0) if trouble else None
        body = self.server.files.get(self.path)
        if isinstance(trouble, int):
            return self.send_error(trouble)
        if body is None:
            return self.send_error(404)
        start, status = 0, 200
        wanted = self.headers.get("Range")
        if wanted and self.headers.get("If-Range") == '"tag"' and trouble != "no range":
            start, status = int(wanted[6:-1]), 206
        self.send_response(status)
        for name, value in ({"Content-Length": len(body) - start} | self.server.headers).items():
            if value is not None:
                self.send_header(name, str(value))
        self.send_header("ETag", '"tag"')
        if status == 206:
            at = 0 if trouble == "wrong range" else start
            self.send_header("Content-Range", f"bytes {at}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        rest = body[start:]
        self.wfile.write(rest[: len(rest) // 2] if trouble == "half" else rest)
        return None

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(common_crawl, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(common_crawl, "DOWNLOAD_BYTES", 256)
    monkeypatch.setenv("NO_PROXY", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    paths = [f"crawl-data/CC-MAIN-2024-33/segments/1/wet/{i}.warc.wet.gz" for i in range(3)]
    server.files = {f"/{path}": wet_bytes(DOCUMENTS[i::3]) for i, path in enumerate(paths)}
    listing = gzip.compress("".join(path + "\n" for path in paths).encode())
    server.files["/crawl-data/CC-MAIN-2024-33/wet.paths.gz"] = listing
    server.paths, server.troubles, server.requests = [f"/{p}" for p in paths], {}, []
    server.headers = {}
    server.values = {
        "source": "wet",
        "input": "CC-MAIN-2024-33",
        "base_url": f"http://127.0.0.1:{server.server_port}/",
        **OFF,
    }
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def half_of(server, path):
    """What a client keeps of half a file: all of it."""
    return len(server.files[path]) // 2


def documents_of(prepared):
    return sorted(texts_of(prepared, "train") + texts_of(prepared, "val"))


@pytest.mark.slow
def test_a_crawl_is_downloaded_by_its_id(tmp_path, server, gpt2, monkeypatch):
    monkeypatch.setattr(BpeTokenizer, "published", classmethod(lambda cls, name: gpt2))
    prepared = run(tmp_path, tokenizer="gpt2", **server.values)
    assert documents_of(prepared) == sorted(d.strip() for d in DOCUMENTS)
    assert prepared.manifest.source["listed_files"] == 3
    assert [path for path, _ in server.requests[1:]] == server.paths
    prepared = run(tmp_path, "two", tokenizer="gpt2", limit_files=2, **server.values)
    assert documents_of(prepared) == sorted(d.strip() for d in DOCUMENTS[0::3] + DOCUMENTS[1::3])


@pytest.mark.parametrize(
    ("trouble", "n_requests"),
    [
        (["half"], 2),
        (["half", "half", "half"], 4),
        (["half", "no range"], 2),
        (["half", "wrong range"], 3),
        (["half", 416], 3),
        ([503, 429, 500], 4),
    ],
)
def test_a_download_with_troubles_is_whole(tmp_path, server, trouble, n_requests):
    path = server.paths[0]
    server.troubles[path] = list(trouble)
    target = tmp_path / "file"
    common_crawl.download_file(server.values["base_url"] + path[1:], target)
    assert target.read_bytes() == server.files[path]
    assert len(server.requests) == n_requests
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    if trouble == ["half"]:
        assert server.requests[1][1] == f"bytes={half_of(server, path)}-"


def test_a_download_goes_on_in_another_process(tmp_path, server):
    path = server.paths[0]
    url, target = server.values["base_url"] + path[1:], tmp_path / "file"
    server.troubles[path] = ["half", *[503] * common_crawl.TRIES]
    with pytest.raises(TrainingError, match=r"could not be downloaded .503 .* again to resume"):
        common_crawl.download_file(url, target)
    server.troubles, server.requests = {}, []
    common_crawl.download_file(url, target)
    assert target.read_bytes() == server.files[path]
    assert server.requests == [(path, f"bytes={half_of(server, path)}-")]


def test_a_download_is_bounded_before_anything_is_stored(tmp_path, server):
    url, target = server.values["base_url"] + server.paths[0][1:], tmp_path / "file"
    with pytest.raises(UserError, match=r"has [\d,]+ bytes, more than the 100 expected$"):
        common_crawl.download_file(url, target, 100)
    with pytest.raises(FailedDownload, match=r"^only 256 bytes in 0 s$"):
        download(url, target, DownloadLimits(2, 0, (1, 1), 256, total_seconds=0))
    assert not target.exists()
    with pytest.raises(TrainingError, match=r"absent/file.part can't be written: No such file"):
        common_crawl.download_file(url, tmp_path / "absent" / "file")
    assert len(server.requests) == 3  # none of these is tried again


def test_what_a_server_says_of_its_answer_is_not_believed(tmp_path, server):
    path = server.paths[0]
    url, target = server.values["base_url"] + path[1:], tmp_path / "file"
    for headers, message in (
        ({"Content-Length": "9" * 18}, "more than the"),
        ({"Content-Length": "9" * 4400}, "the server names no length"),
        ({"Content-Length": "x"}, "the server names no length"),
        ({"Content-Length": None}, "the server names no length"),
    ):
        server.requests.clear()
        server.headers = headers
        with pytest.raises(UserError, match=message):
            common_crawl.download_file(url, target)
        assert len(server.requests) == 1  # another try would end alike
        assert not target.exists()
    server.headers = {"Content-Encoding": "gzip"}  # it is stored as it is served
    common_crawl.download_file(url, target)
    assert target.read_bytes() == server.files[path]


@pytest.mark.parametrize(("status", "tries"), [(501, 1), (410, 1), (408, 2), (502, 2)])
def test_only_what_may_pass_is_tried_again(tmp_path, server, status, tries):
    path = server.paths[0]
    server.troubles[path] = [status]
    with contextlib.suppress(UserError):
        common_crawl.download_file(server.values["base_url"] + path[1:], tmp_path / "file")
    assert len(server.requests) == tries


def test_a_crawl_that_is_not_there_is_a_users_error(tmp_path, server):
    with pytest.raises(UserError, match="404 Not Found; check the crawl's id"):
        run(tmp_path, **server.values | {"input": "CC-MAIN-2019-01"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_a_file_of_a_crawl_is_downloaded_once(tmp_path, server, monkeypatch, tokenizer):
    """Also where its tokenizer needs it first, and where the preparation breaks off there."""
    size = 300 if tokenizer == "bpe" else None
    values = server.values | {"tokenizer": tokenizer, "vocab_size": size}
    last = server.paths[-1]
    server.troubles[last] = ["half", *[503] * common_crawl.TRIES]
    with pytest.raises(TrainingError, match="run the same command again to resume"):
        run(tmp_path, **values)
    assert not (tmp_path / "out" / WORK_FOLDER / encode.PLAN_FILE).exists()
    with pytest.raises(UserError, match="404 Not Found; check the crawl's id"):
        run(tmp_path, **values | {"input": "CC-MAIN-2019-01"})  # not the first one's listing
    server.troubles, server.requests = {}, []
    left, discard = [], encode.discard

    def spy(unit, work):
        discard(unit, work)
        left.append(len(list((work / "downloads").iterdir())))

    monkeypatch.setattr(encode, "discard", spy)
    prepared = run(tmp_path, **values)
    assert server.requests == [(last, f"bytes={half_of(server, last)}-")]
    assert left == [2, 1, 0]
    assert documents_of(prepared) == sorted(d.strip() for d in DOCUMENTS)


def test_a_damaged_download_is_not_kept(tmp_path, server, gpt2, monkeypatch):
    monkeypatch.setattr(BpeTokenizer, "published", classmethod(lambda cls, name: gpt2))
    values, path = server.values | {"tokenizer": "gpt2"}, server.paths[0]
    whole = server.files[path]
    for raw, message in ((whole[:-20], "read to its end"), (gzip.compress(b"x"), "with WARC")):
        server.files[path] = raw
        with pytest.raises(UserError, match=message):
            run(tmp_path, **values)
    server.files[path] = whole
    assert len(documents_of(run(tmp_path, **values))) == len(DOCUMENTS)


@pytest.mark.parametrize("line", ["../../etc/passwd", "/a.warc.wet.gz", "a/../b.warc.wet.gz", "x"])
def test_a_listing_with_other_paths_is_refused(tmp_path, server, line):
    listing = gzip.compress(f"{line}\n".encode())
    server.files["/crawl-data/CC-MAIN-2024-33/wet.paths.gz"] = listing
    with pytest.raises(UserError, match="which is no path of a WET file"):
        run(tmp_path, **server.values)


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.skipif("GPT_JAX_DATA" not in os.environ, reason="GPT_JAX_DATA is not set")
@pytest.mark.parametrize(
    ("name", "tokenizer", "val_fraction", "tokens"),
    [
        ("wizard_of_oz.txt", "char", 0.2, {"train": 166_239, "val": 41_560}),
        ("tinyshakespeare.txt", "gpt2", 0.1, {"train": 301_966, "val": 36_059}),
    ],
)
def test_recipes_give_the_counts_that_the_readme_says(
    tmp_path, gpt2, monkeypatch, name, tokenizer, val_fraction, tokens
):
    """Shakespeare's are those of nanoGPT's data/shakespeare/readme.md."""
    monkeypatch.setattr(BpeTokenizer, "published", classmethod(lambda cls, name: gpt2))
    path = Path(os.environ["GPT_JAX_DATA"]) / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    prepared = run(tmp_path, input=str(path), tokenizer=tokenizer, val_fraction=val_fraction)
    assert prepared.n_tokens == tokens
    readme = (ROOT / "data/README.md").read_text("utf-8")
    assert f"{tokens['train']:,} + {tokens['val']:,} tokens" in readme


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out=o"], "--input is missing; for example: --input book.txt"),
        (["--input=i"], "--out is missing"),
        (["--input=i", "--out=o"], "--input i matches no file"),
        (["--input=.", "--out=o"], "--input . is a folder; give a pattern such as './*'"),
        (["--input=i", "--out=o", "--source=csv"], "source='csv' must be one of text, jsonl"),
        (["--input=i", "--out=o", "--tokenizer=bpe"], "tokenizer=bpe needs vocab_size"),
        (["--input=i", "--out=o", "--vocab-size=300"], "vocab_size=300 is for tokenizer=bpe"),
        (["--input=i", "--out=o", "--val-fraction=0"], "val_fraction=0.0 must be a number between"),
        (["--input=i", "--out=o", "--language=eng"], "language='eng' is for source=wet, and this"),
        (["--input=i", "--out=o", "--hf-split=x"], "hf_split='x' is for source=hf"),
        (["--input=i", "--out=o", "--text-field=x"], "text_field='x' is for source=jsonl or"),
        (["--input=i", "--out=o", "--shard-tokens=0"], "shard_tokens=0 must be a whole number in"),
        (["--inputs=i"], "unknown setting '--inputs'; did you mean --input?"),
        (["--verify=o", "--input=i"], "--verify o takes no other setting"),
        (["--verify=o"], "o is not a prepared corpus"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main.main(["prepare", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_the_command_prepares_and_verifies(tmp_path, book, capsys):
    out = tmp_path / "out"
    words = ["prepare", f"--input={book}", f"--out={out}", "--tokenizer=char", "--workers=1"]
    assert main.main(words) == 0
    shown = capsys.readouterr().out
    parts = split_text(TEXT, 0.9)
    for split in ("train", "val"):
        assert re.search(rf"{split} +{len(parts[split]):,} tokens", shown)
    assert main.main(["prepare", f"--verify={out}"]) == 0
    assert f"{out} is sound" in capsys.readouterr().out
    path = out / "train-00000.bin"
    path.write_bytes(path.read_bytes()[::-1])
    assert main.main(["prepare", "--verify", str(out)]) == 2
    assert "is damaged" in capsys.readouterr().err


def test_a_folder_with_other_files_is_left_alone(tmp_path, book):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds other files .thesis.tex.; choose another folder"):
        run(tmp_path, input=str(book))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file; choose another folder"):
        run(tmp_path, "file", input=str(book))


def test_a_folder_that_no_system_can_make_is_one_line(tmp_path, book):
    with pytest.raises(UserError, match=r"cannot make .*: File name too long; choose another"):
        run(tmp_path, "x" * 300, input=str(book))


def test_a_folder_out_of_reach_is_one_line(tmp_path, book, monkeypatch):
    """As the system answers who may not look into `closed`; root may look anywhere."""
    for name in ("stat", "mkdir"):
        allowed = getattr(os, name)

        def refuse(path, *args, allowed=allowed, **kwargs):
            if "closed/" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return allowed(path, *args, **kwargs)

        monkeypatch.setattr(os, name, refuse)
    with pytest.raises(UserError, match=r"cannot make .*: Permission denied; choose another"):
        run(tmp_path, "closed/out", input=str(book))


def test_the_package_never_imports_the_recipes():
    for path in (ROOT / "gpt_jax").glob("*.py"):
        assert not re.search(r"^\s*(from|import) data\b", path.read_text("utf-8"), re.MULTILINE)

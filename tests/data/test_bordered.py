"""Texts with lines of <|endoftext|> between their documents."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prepare import halves, run, texts_of

from data.config import PrepareConfig
from data.sources import bordered
from data.sources.documents import BadInput
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.tokenizer import END_OF_TEXT

LINES = st.sampled_from(
    [END_OF_TEXT, END_OF_TEXT * 2, f" {END_OF_TEXT}", END_OF_TEXT[:-1], "a", "", "é b", "c " * 9]
)


def parted(text):
    """The documents of a text, by a regular expression in place of lines and offsets."""
    border = rf"(?:\A|(?<=\n)){re.escape(END_OF_TEXT)}(?:\r?\n|\Z)"
    found = re.split(border, text)
    return [re.sub(r"\r?\n\Z", "", document) for document in found if document.strip()]


@given(st.lists(LINES, max_size=12), st.sampled_from(["\n", "\r\n"]), st.integers(1, 40))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_units_of_any_size_have_each_document_once(tmp_path_factory, lines, end, unit_bytes):
    path = tmp_path_factory.getbasetemp() / "bordered.txt"
    text = end.join(lines)
    path.write_bytes(raw := text.encode())
    if not raw:
        return
    units = bordered.plan(str(path), len(raw), unit_bytes)
    found = [document.text for unit in units for document in bordered.read(unit, 1 << 20)]
    assert found == parted(text)


def test_documents_are_told_apart_and_split_by_their_hash(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.documents.UNIT_BYTES", 200)
    documents = [f"Story {i}.\n\nIt says <|endoftext|> in a line." for i in range(60)]
    path = tmp_path / "stories.txt"
    path.write_text(f"\n{END_OF_TEXT}\n".join([*documents, ""]))
    values = {"input": str(path), "tokenizer": "bpe", "vocab_size": 300, "val_fraction": 0.2}
    prepared = run(tmp_path, end_of_text_lines=True, **values)
    train, val = halves(documents, 0.2)
    end = prepared.tokenizer.special_tokens[END_OF_TEXT]
    for split, expected in (("train", train), ("val", val)):
        ids = [i for shard in prepared.shards[split] for i in shard]
        assert ids.count(end) == len(expected)  # as text it has other ids
        (zero,) = prepared.tokenizer.encode("\0")
        texts = prepared.tokenizer.decode([i if i != end else zero for i in ids]).split("\0")
        assert texts == [*expected, ""]
    with pytest.raises(UserError, match="end_of_text_lines is True there and None here"):
        run(tmp_path, **values)


def test_without_the_option_the_lines_are_text(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text(f"one two\n{END_OF_TEXT}\nthree four\n" * 20)
    prepared = run(tmp_path, input=str(path))
    assert prepared.manifest.source["by_position"] is True
    assert END_OF_TEXT in texts_of(prepared, "train")[1]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a\xff\n", r"the document at byte 18, is not UTF-8 \(byte 0xff at 1\)"),
        (b"a\0\n", "the document at byte 18, looks binary"),
        (b"word " * 300_000, "is a document of more than --max-document-mb 1"),
    ],
)
def test_a_bad_document_is_named_and_the_others_are_read(tmp_path, raw, message):
    path = tmp_path / "stories.txt"
    border = END_OF_TEXT.encode() + b"\n"
    path.write_bytes(b"one\n" + border[:-1] + b"\n" + raw + b"\n" + border + b"two")
    (unit,) = bordered.plan(str(path), path.stat().st_size, 1 << 30)
    one, bad, two = bordered.read(unit, 1 << 20)
    assert (one.text, two.text) == ("one", "two")
    assert isinstance(bad, BadInput)
    assert re.search(message, str(bad))


def test_what_is_no_text_is_refused_with_what_reads_it(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match="--source jsonl"):
        run(tmp_path, input=str(path), end_of_text_lines=True)
    with pytest.raises(ConfigError, match="end_of_text_lines=True is for source=text"):
        PrepareConfig(source="jsonl", input="a", out="b", end_of_text_lines=True)


def test_a_corpus_from_before_the_option_is_finished(tmp_path):
    settings = PrepareConfig(input="a", out="b").record()
    assert settings.pop("end_of_text_lines") is None

"""The vocabulary of a corpus of integers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.hf.tokenizer import load_tokenizer as load_hf_tokenizer
from gpt_jax.hf.tokenizer import save_tokenizer as save_hf_tokenizer
from gpt_jax.inference.ending import Ending
from gpt_jax.integer_tokenizer import MAX_VOCAB, IntegerTokenizer
from gpt_jax.tokenizer import CharTokenizer, find_difference, from_json

SUMS = IntegerTokenizer(7, ["0", "1", "2", "3", "+", "=", ";"])
WORDS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=4)


def test_names_stand_for_ids():
    assert SUMS.encode("1 + 2 =").tolist() == [1, 4, 2, 5]
    assert SUMS.encode(" 1\n;  ").tolist() == [1, 6]
    assert SUMS.encode("").shape == (0,)
    assert SUMS.decode([1, 4, 2, 5]) == "1 + 2 ="
    assert SUMS.encode("3").dtype == np.int32
    assert SUMS.token_bytes.tolist() == [0] * 7


def test_without_names_a_word_is_its_id():
    tokenizer = IntegerTokenizer(300)
    assert tokenizer.encode("7 299 0").tolist() == [7, 299, 0]
    assert tokenizer.decode(np.array([7, 299, 0], np.uint16)) == "7 299 0"


@pytest.mark.parametrize("word", ["300", "-1", "1.0", "x", "²", "1" * 5000, "1_0", "٣"])
def test_another_word_is_one_line(word):
    with pytest.raises(
        UserError, match="is not in the vocabulary: the whole numbers from 0 to 299"
    ):
        IntegerTokenizer(300).encode(f"7 {word}")


def test_a_name_that_is_not_there_is_one_line():
    with pytest.raises(UserError, match=r"^'4' is not in the vocabulary: 0 1 2 3 \+ = ;, with"):
        SUMS.encode("1 + 4")


@given(st.lists(WORDS, min_size=1, max_size=20, unique=True), st.data())
def test_the_text_of_ids_has_their_ids_and_so_has_the_file(names, data):
    tokenizer = IntegerTokenizer(len(names), names)
    ids = data.draw(st.lists(st.integers(0, len(names) - 1)))
    assert tokenizer.encode(tokenizer.decode(ids)).tolist() == ids
    again = from_json(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json()
    assert find_difference(again, tokenizer) == ""
    pieces = tokenizer.make_decoder()
    at = data.draw(st.integers(0, len(ids)))
    text = f"{names[0]}{pieces(ids[:at])}{pieces(ids[at:], last=True)}"
    assert tokenizer.encode(text).tolist() == [0, *ids]


@pytest.mark.parametrize(
    ("size", "names", "message"),
    [
        (0, (), "must be in"), (MAX_VOCAB + 1, (), "must be in"), (2, ["a"], "not one for each"),
        (2, ["a", "a"], "different"), (2, ["a", "b c"], "must be a word"),
        (2, ["a", ""], "must be a word"), (2, ["a", "\x1b"], "must be a word"),
        (2, ["a", "\ud800"], "must be a word"), (2, ["a", "b\n"], "must be a word"),
    ],
)  # fmt: skip
def test_a_vocabulary_that_can_t_be_is_refused(size, names, message):
    with pytest.raises(ValueError, match=message):
        IntegerTokenizer(size, names)


def test_what_differs_is_named():
    other = IntegerTokenizer(7, [*"012", "three", *"+=;"])
    assert find_difference(SUMS, other) == "token 3 is '3' and 'three'"
    assert find_difference(SUMS, IntegerTokenizer(9)) == "7 tokens and 9"
    kinds = find_difference(SUMS, CharTokenizer("ab"))
    assert kinds == "one has integers, the other characters"


def test_a_sample_ends_before_a_stop():
    text = Ending(SUMS.make_decoder(), ["; "], None)
    assert text([3, 6]) == " 3 "
    assert text([1]) == ""
    assert text.is_done


@pytest.mark.parametrize("tokenizer", [SUMS, IntegerTokenizer(12)])
def test_what_is_exported_has_the_ids_of_tokenizers_and_loads_as_it_was(tmp_path, tokenizer):
    tokenizers = pytest.importorskip("tokenizers")
    save_hf_tokenizer(tmp_path, tokenizer, 8)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "1 2 0 3"
    assert theirs.encode(text).ids == tokenizer.encode(text).tolist()
    assert theirs.decode(theirs.encode(text).ids) == text
    assert find_difference(load_hf_tokenizer(tmp_path, tokenizer.vocab_size), tokenizer) == ""
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 8

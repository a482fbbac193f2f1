"""The character tokenizer: text to ids and back, and what it refuses."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt_jax.errors import UserError
from gpt_jax.tokenizer import FILE, CharTokenizer, from_json, load_tokenizer

EXAMPLES = settings(deadline=None, derandomize=True, max_examples=150)
ANY_CHARACTER = st.characters(codec=None, exclude_categories=())  # lone surrogates too
ANY_TEXT = st.text(ANY_CHARACTER, min_size=1)
WRITABLE_TEXT = st.text(st.characters(codec="utf-8"), min_size=1)


@given(ANY_TEXT)
@example("a\ud800b")
@example("\udfff\ud800")
@example("\ud83d\ude00")
@example("😀 é\u0301 \0 \r\n\ufeff\U0010ffff")
@EXAMPLES
def test_any_text_round_trips(text):
    tokenizer = CharTokenizer.train(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.shape == (len(text),)
    assert tokenizer.decode(ids) == text


@given(ANY_TEXT)
@EXAMPLES
def test_the_vocabulary_is_the_texts_characters_in_code_point_order(text):
    tokenizer = CharTokenizer.train(text)
    assert tokenizer.vocabulary == "".join(sorted(set(text)))
    assert tokenizer.vocab_size == len(set(text))
    assert tokenizer.encode(tokenizer.vocabulary).tolist() == list(range(tokenizer.vocab_size))


def test_ids_by_hand():
    tokenizer = CharTokenizer.train("hello\n")
    assert tokenizer.vocabulary == "\nehlo"
    assert tokenizer.encode("hole").tolist() == [2, 4, 3, 1]
    assert tokenizer.decode([3, 4, 3, 0]) == "lol\n"


def test_nothing_is_encoded_and_decoded_as_nothing():
    tokenizer = CharTokenizer("ab")
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == ""


@given(ANY_TEXT, ANY_TEXT)
@example("b", "a")
@example("b", "c")
@example("ac", "b")
@example("a", "\ud800")
@EXAMPLES
def test_exactly_the_unknown_characters_are_refused(known, text):
    tokenizer = CharTokenizer.train(known)
    missing = sorted(set(text) - set(known))
    if not missing:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        return
    with pytest.raises(UserError) as caught:
        tokenizer.encode(text)
    message = str(caught.value)
    listed = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in missing[:10])
    assert message.startswith(f"the vocabulary lacks {listed}")
    assert (f" and {len(missing) - 10} more" in message) == (len(missing) > 10)
    assert len(message.splitlines()) == 1
    message.encode("utf-8")  # can be printed


def test_unknown_characters_are_named_beside_what_there_is():
    with pytest.raises(UserError) as caught:
        CharTokenizer.train("abc\n").encode("aéa\té")
    assert str(caught.value) == ("the vocabulary lacks '\\t' (U+0009), 'é' (U+00E9); it has abc")


def test_long_lists_are_cut():
    tokenizer = CharTokenizer("".join(map(chr, range(0x4E00, 0x4E00 + 101))))
    with pytest.raises(UserError) as caught:
        tokenizer.encode("abcdefghijkl")
    message = str(caught.value)
    assert "'j' (U+006A) and 2 more; it has " in message
    assert "'k'" not in message
    assert message.endswith(chr(0x4E00 + 99) + "...")


@pytest.mark.parametrize("ids", [[-1], [3], [0, 1, 2, 99], np.array([0, -5])])
def test_ids_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(ValueError, match=r"^token ids must be in \[0, 3\)$"):
        CharTokenizer("abc").decode(ids)


@pytest.mark.parametrize("vocabulary", ["", "aa", "ba", "abb", "acb", "b\na", "😀a"])
def test_a_bad_vocabulary_is_refused(vocabulary):
    with pytest.raises(ValueError, match="at least one character, in ascending order, once each"):
        CharTokenizer(vocabulary)


def test_no_text_has_no_tokenizer():
    with pytest.raises(ValueError, match="at least one character"):
        CharTokenizer.train("")


@given(WRITABLE_TEXT)
@example("aé€😀")
@EXAMPLES
def test_token_bytes_are_those_of_utf8(text):
    tokenizer = CharTokenizer.train(text)
    sizes = tokenizer.token_bytes
    assert sizes.tolist() == [len(c.encode("utf-8")) for c in tokenizer.vocabulary]
    assert sizes[tokenizer.encode(text)].sum() == len(text.encode("utf-8"))


def test_token_bytes_by_hand():
    assert CharTokenizer("aé€😀").token_bytes.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("vocabulary", "start"), [("\t\nab", 1), ("\nab", 0), ("ab", 0)])
def test_an_empty_prompt_starts_from_a_line_break_or_token_0(vocabulary, start):
    assert CharTokenizer(vocabulary).start_token == start


@given(WRITABLE_TEXT)
@example('\0\n\r\u2028\ufeff\U0010ffff"\\')
@EXAMPLES
def test_json_round_trips(text):
    tokenizer = CharTokenizer.train(text)
    written = tokenizer.to_json()
    assert written.isascii()
    assert from_json(written).vocabulary == tokenizer.vocabulary


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(ANY_CHARACTER, max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "vocabulary"]) | st.text(max_size=4), inner, max_size=3
        )
        | st.fixed_dictionaries({"kind": st.just("char"), "vocabulary": inner})
    ),
    max_leaves=8,
)


@given(st.text() | JUNK.map(json.dumps))
@example("[" * 200_000)
@example('{"kind": "char", "vocabulary": "ba"}')
@example('{"kind": "char", "vocabulary": ["a", "b"]}')
@example("9" * 5000)
@example("\ufeff{}")
@EXAMPLES
def test_json_that_is_no_tokenizer_is_a_value_error(text):
    try:
        tokenizer = from_json(text)
    except ValueError:
        return
    values = json.loads(text)
    assert values["kind"] == "char"
    assert (
        tokenizer.vocabulary == values["vocabulary"] == "".join(sorted(set(values["vocabulary"])))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", 'not a tokenizer of kind "char"'),
        ('{"kind": "bpe", "vocabulary": "ab"}', 'not a tokenizer of kind "char"'),
        ('{"kind": "char"}', "its vocabulary is not a text"),
        ('{"kind": "char", "vocabulary": ["a"]}', "its vocabulary is not a text"),
        ('{"kind": "char", "vocabulary": ""}', "at least one character"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_json_errors_say_what_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        from_json(text)


def test_a_run_keeps_its_tokenizer(tmp_path):
    tokenizer = CharTokenizer.train("Dorothy\u2019s house 😀\n")
    (tmp_path / FILE).write_text(tokenizer.to_json(), encoding="utf-8")
    assert load_tokenizer(tmp_path).vocabulary == tokenizer.vocabulary


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b'{"kind": "char"}'])
def test_a_missing_or_damaged_tokenizer_is_named(tmp_path, content):
    path = tmp_path / FILE
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"cannot read the tokenizer {path}: ")
    assert "\n" not in str(caught.value)

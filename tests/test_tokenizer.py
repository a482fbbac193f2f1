"""The tokenizers: text to ids and back, and what they refuse."""

import base64
import functools
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt_jax import byte_pairs
from gpt_jax.config import DataConfig
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import (
    END_OF_TEXT,
    PATTERN,
    TOKENIZER_FILE,
    BpeTokenizer,
    CharTokenizer,
    from_json,
    load_tokenizer,
    make_tokenizer,
)

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


BYTES_IN_BASE64 = [base64.b64encode(bytes([b])).decode() for b in range(256)]
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(ANY_CHARACTER, max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["kind", "vocabulary"]) | st.text(max_size=4), inner, max_size=3
        )
        | st.fixed_dictionaries({"kind": st.just("char"), "vocabulary": inner})
        | st.fixed_dictionaries(
            {
                "kind": st.just("bpe"),
                "pattern": inner | st.just("."),
                "special_tokens": inner | st.dictionaries(st.text(max_size=3), st.integers()),
                "tokens": inner | st.just(BYTES_IN_BASE64) | st.lists(st.text(max_size=4)),
            }
        )
    ),
    max_leaves=8,
)


def bpe_json(**changes) -> str:
    values = {"kind": "bpe", "pattern": ".", "special_tokens": {}, "tokens": BYTES_IN_BASE64}
    return json.dumps(values | changes)


@pytest.mark.slow
@given(st.text() | JUNK.map(json.dumps))
@example(bpe_json(special_tokens={"<|endoftext|>": 300}))
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
    if values["kind"] == "bpe":
        assert json.loads(tokenizer.to_json()) == values
        return
    assert values["kind"] == "char"
    assert (
        tokenizer.vocabulary == values["vocabulary"] == "".join(sorted(set(values["vocabulary"])))
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "it is not a JSON object"),
        ("{}", 'not a tokenizer of kind "char" or "bpe"'),
        ('{"kind": "word", "vocabulary": "ab"}', 'not a tokenizer of kind "char" or "bpe"'),
        ('{"kind": ["bpe"]}', 'not a tokenizer of kind "char" or "bpe"'),
        (bpe_json(pattern=None), "its pattern is not a text"),
        (bpe_json(pattern="("), "closing parenthesis"),
        (bpe_json(special_tokens=["<|endoftext|>"]), "its special tokens are not texts with ids"),
        (bpe_json(special_tokens={"a": True}), "its special tokens are not texts with ids"),
        (bpe_json(special_tokens={"": 256}), "special tokens have a separate text and id each"),
        (bpe_json(special_tokens={"a": 256, "b": 256}), "a separate text and id each"),
        (bpe_json(special_tokens={"a": 255}), r"special tokens must be in \[256, 2\*\*31\)"),
        (bpe_json(special_tokens={"a": 2**31}), r"special tokens must be in \[256, 2\*\*31\)"),
        (bpe_json(special_tokens={"\ud800": 256}), "surrogates not allowed"),
        (bpe_json(tokens="AAAA"), "its tokens are not a list of texts"),
        (bpe_json(tokens=[65]), "its tokens are not a list of texts"),
        (bpe_json(tokens=["AAA"]), "Incorrect padding"),
        (bpe_json(tokens=BYTES_IN_BASE64[1:]), "each of the 256 bytes must be a token"),
        (bpe_json(tokens=[*BYTES_IN_BASE64, "AA=="]), "at least one byte each, and different"),
        (bpe_json(tokens=[*BYTES_IN_BASE64, ""]), "at least one byte each, and different"),
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
    (tmp_path / TOKENIZER_FILE).write_text(tokenizer.to_json(), encoding="utf-8")
    assert load_tokenizer(tmp_path).vocabulary == tokenizer.vocabulary


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff", b'{"kind": "char"}'])
def test_a_missing_or_damaged_tokenizer_is_named(tmp_path, content):
    path = tmp_path / TOKENIZER_FILE
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"cannot read the tokenizer {path}: ")
    assert "\n" not in str(caught.value)


# --- bytes ----------------------------------------------------------------------------------------

STORY = "".join(
    f"{who}’s house stood in {where}, \r\n and {who.upper()} said: «{number} häuser» 😀\n\n"
    for number, (who, where) in enumerate(
        (who, where)
        for who in ("Dorothy", "the Great Wizard", "Страшила", "Toto", "奥兹")
        for where in ("Kansas", "Oz", "the green city", "a field of grain")
    )
)
HARD = [
    "Hello, world!",
    "it's we'll I'VE they're",
    "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪😀",  # several code points a picture
    "e\u0301 a\u0308\u0323 Z̷̛̳͇a̶l̸g̵o̷",  # combining marks
    "नमस्ते 안녕하세요 مرحبا 奥兹国的巫师",
    " " * 1000 + "a" + " " * 1000,
    "a\t\t\t   \n\n \n",
    "one\r\ntwo\r\n\r\n three\r",
    "\0",
    "a\0\0b\0",
    "\ufeffbyte order mark\u2028\u2029\x85\u00a0\u3000",
    "\U0010ffff\ue000\ufffd\x7f\x80",
    "1234567890 3.14159 ١٢٣",
    "<|endoftext|> <|endoftext|",
]


@functools.cache
def learned() -> BpeTokenizer:
    return BpeTokenizer.train(STORY, 400)


@pytest.fixture(scope="module")
def gpt2(gpt2_files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
        return BpeTokenizer.published("gpt2")


@given(WRITABLE_TEXT | st.sampled_from(HARD))
@EXAMPLES
def test_any_unicode_round_trips_through_learned_tokens(text):
    tokenizer = learned()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode_bytes(ids) == text.encode("utf-8")
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes[ids].sum() == len(text.encode("utf-8"))


@given(st.lists(st.integers(0, 399)))
@EXAMPLES
def test_any_ids_are_bytes(ids):
    tokenizer = learned()
    raw = tokenizer.decode_bytes(ids)
    assert len(raw) == sum(len(END_OF_TEXT) if i == 399 else len(tokenizer.tokens[i]) for i in ids)
    assert tokenizer.decode(ids) == raw.decode("utf-8", "replace")
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(ids)


@given(WRITABLE_TEXT | st.sampled_from(HARD) | st.lists(st.integers(0, 399)), st.integers(1, 5))
@EXAMPLES
def test_text_that_comes_in_pieces_is_the_text(source, size):
    tokenizer = learned()
    ids = list(source if isinstance(source, list) else source.encode("utf-8"))
    if not isinstance(source, list):
        ids = [tokenizer.tokens.index(bytes([b])) for b in ids]  # a byte a token
    decode, written = tokenizer.make_decoder(), ""
    whole = tokenizer.decode(ids)
    for at in range(0, len(ids), size):
        written += decode(np.array(ids[at : at + size], np.int32))
        assert whole.startswith(written)
    assert written + decode([], last=True) == whole


def test_a_character_comes_with_the_last_of_its_bytes():
    tokenizer = learned()
    decode = tokenizer.make_decoder()
    ids = [tokenizer.tokens.index(bytes([b])) for b in "a€".encode()]
    assert [decode([i]) for i in ids] == ["a", "", "", "€"]
    assert decode(ids[1:3]) == ""
    assert decode([], last=True) == "\ufffd"
    decode = CharTokenizer("ab").make_decoder()
    assert decode([1, 0]) + decode([], last=True) == "ba"


@pytest.mark.parametrize("text", HARD)
def test_gpt2s_ids_are_tiktokens(gpt2, gpt2_files, monkeypatch, no_vocabularies, text):
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
    expected = tiktoken.get_encoding("gpt2").encode(text, disallowed_special=())
    saved = from_json(gpt2.to_json())
    assert saved.encode(text).tolist() == expected
    assert saved.decode(expected) == text


def test_gpt2_by_hand(gpt2):
    assert gpt2.encode("Hello, world!").tolist() == [15496, 11, 995, 0]
    assert gpt2.vocab_size == 50257
    assert gpt2.special_tokens == {END_OF_TEXT: 50256}
    assert gpt2.decode([50256]) == END_OF_TEXT
    assert gpt2.decode([gpt2.start_token]) == "\n"
    assert gpt2.token_bytes[[15496, 11, 995, 0, 50256]].tolist() == [5, 1, 6, 1, 0]


def test_special_tokens_in_a_text_are_text_unless_allowed():
    tokenizer = learned()
    text = f"a{END_OF_TEXT}b"
    assert 399 not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    a, b = (tokenizer.tokens.index(c) for c in (b"a", b"b"))
    assert tokenizer.encode(text, allowed_special=[END_OF_TEXT]).tolist() == [a, 399, b]


@pytest.mark.parametrize(("text", "at"), [("a\ud800", 1), ("\udcff b", 0), ("é\ud83d\ude00", 1)])
def test_surrogates_are_refused(text, at):
    with pytest.raises(UserError) as caught:
        learned().encode(text)
    assert str(caught.value) == (
        f"the text is not valid Unicode ({text[at]!r} at {at} is half of a surrogate pair); leave "
        "that out"
    )


@pytest.mark.parametrize("text", [" " * 1_500_000, " " * 1_500_000 + "a", "\r\n" * 500_000])
def test_a_run_longer_than_the_pattern_can_look_back_round_trips(text):
    tokenizer = learned()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_learned_tokens_are_the_bytes_the_merges_and_the_end_of_text():
    tokenizer = learned()
    assert tokenizer.vocab_size == len(tokenizer.token_bytes) == 400
    assert tokenizer.special_tokens == {END_OF_TEXT: 399}
    assert {len(token) for token in tokenizer.tokens[:256]} == {1}
    tokens = set(tokenizer.tokens)
    for token in tokenizer.tokens[256:]:
        assert any(token[:i] in tokens and token[i:] in tokens for i in range(1, len(token)))
    assert len(tokenizer.encode(STORY)) < len(STORY.encode("utf-8")) / 2


def test_tiktokens_ids_are_those_of_the_tokenizers_that_learned_them():
    learner = byte_pairs.learn(STORY, 399, PATTERN, byte_pairs.Silence())
    for text in (STORY, *HARD):
        assert learner.encode(text).ids == learned().encode(text).tolist()


def test_learning_is_the_same_every_time(monkeypatch):
    monkeypatch.setattr(byte_pairs, "CHUNK_CHARACTERS", 500)
    one, two = (BpeTokenizer.train(STORY, 400).to_json() for _ in range(2))
    assert one == two


class Told:
    """What a display is told."""

    def __init__(self):
        self.doing, self.notes = [], []

    def working(self, what):
        self.doing.append(what)

    def note(self, text):
        self.notes.append(text)


def test_learning_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr(byte_pairs, "CHUNK_CHARACTERS", 1000)
    told = Told()
    text = STORY * 3
    chunks = byte_pairs._Chunks(text, PATTERN, told)
    said = [chunks.describe() for _ in chunks]
    assert said[0] == "learning byte pairs: 0% of the text is cut into words"
    assert f": {100_000 / len(text):.0f}% of" in said[1]
    assert chunks.describe() == "learning byte pairs: merging the most frequent"
    assert told.notes == []
    monkeypatch.setattr(byte_pairs, "TICK_SECONDS", 1e-4)
    assert BpeTokenizer.train(STORY * 50, 400, told).vocab_size == 400
    assert told.doing
    assert {text.partition(":")[0] for text in told.doing} == {"learning byte pairs"}


@pytest.mark.parametrize(
    "word",
    ["ACGT" * 500, " " * 3000, "=" * 1500, "\n" * 1200 + "b", "日本" * 700, " " + "x" * 1001],
)
def test_a_text_of_very_long_words_has_one_warning(monkeypatch, word):
    told = Told()
    BpeTokenizer.train(f"{STORY} {word} {word} end", 300, told)
    (note,) = told.notes
    assert "words of more than 1,000 characters" in note
    assert "\n" not in note


@pytest.mark.parametrize("text", [STORY * 20, "12345" * 900, "a.b-" * 900, "\n" * 900, "x" * 1000])
def test_a_text_of_words_has_none(text):
    assert byte_pairs.long_word(text, PATTERN) is None


def test_more_tokens_than_a_text_can_give_are_refused_with_the_most_there_are():
    with pytest.raises(UserError) as caught:
        BpeTokenizer.train("aaaa bb", 10**15)
    assert str(caught.value) == (
        f"vocab_size={10**15} is more than the 261 tokens that can be learned from the "
        "training text; ask for 261 or fewer, or use a longer text"
    )
    assert BpeTokenizer.train("aaaa bb", 261).vocab_size == 261
    assert BpeTokenizer.train("", 257).encode("é").shape == (2,)


def test_byte_pairs_are_learned_from_the_training_text_only():
    texts = {"train": STORY, "val": "xyzzy " * 1000}
    tokenizer = make_tokenizer(DataConfig(tokenizer="bpe", vocab_size=400), texts)
    assert tokenizer.to_json() == learned().to_json()
    assert make_tokenizer(DataConfig(), texts).vocabulary == "".join(sorted({*STORY, *"xyzzy "}))


def test_a_learned_tokenizer_is_saved_whole(tmp_path):
    (tmp_path / TOKENIZER_FILE).write_text(learned().to_json(), encoding="utf-8")
    saved = load_tokenizer(tmp_path)
    assert saved.to_json() == learned().to_json()
    assert saved.to_json().isascii()
    assert saved.encode(STORY).tolist() == learned().encode(STORY).tolist()


def test_ids_without_a_token_are_no_text():
    values = json.loads(bpe_json(special_tokens={"<|a|>": 260}))
    tokenizer = from_json(json.dumps(values))
    assert tokenizer.vocab_size == 261
    assert tokenizer.token_bytes[256:].tolist() == [0] * 5
    assert tokenizer.decode([65, 256, 259, 260, 66]) == "A<|a|>B"
    for ids in ([-1], [261]):
        with pytest.raises(ValueError, match=r"^token ids must be in \[0, 261\)$"):
            tokenizer.decode_bytes(ids)


@pytest.mark.usefixtures("no_vocabularies")
@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base"])
def test_a_published_vocabulary_that_cant_be_had_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        make_tokenizer(DataConfig(tokenizer=name), {})
    assert str(caught.value) == (
        f"tokenizer {name} could not be downloaded (no connection); let TIKTOKEN_CACHE_DIR name a "
        "folder with tiktoken's files, or choose the tokenizer bpe, which is trained"
    )

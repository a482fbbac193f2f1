"""The page's tokenizers give Python's ids and texts, in every script."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from script_engine import scripts

from gpt_jax.integer_tokenizer import IntegerTokenizer
from gpt_jax.report.live import export_tokenizer
from gpt_jax.tokenizer import GPT2_PATTERN, PATTERN, BpeTokenizer, CharTokenizer

TEXT = """It's the Wizard's. WE'LL go, they'RE gone, I'D say; don't, 'tis it'ſ
  indented\tby\ttabs, 1234567 of 12, 3.14 — “quotes”\r\n\r\n   three lines   \n\n
größer naïve İstanbul ﬁn ŉ; Ελληνικά ὀδυσσεύς; Русский ещё; עִבְרִית; العربية؛ ١٢٣٤٥;
हिन्दी में क्षत्रिय १२३; ไทยภาษา; 中文，漢字。 日本語のテキスト；한국어 텍스트; አማርኛ; ខ្មែរ;
𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 Ⅷ ½ ² ①; 👩‍👩‍👧‍👦 🇩🇪 ✊🏽 e\u0301 \u200f\u202eabc\u202c
<script>alert("x")</script> &amp; ' " ` \\ \x1b[31m
\x00 \x7f \x85 \xa0 \u2028 \ufeff \u200b \u3000 \u180e _"""
ALPHABET = st.one_of(
    st.sampled_from(" \t\n\r\x0b\x1c\x85\xa0\u2028\u3000\ufeff\u200b'’sSſtTlLvVeErRdDmM019²½_.,"),
    st.characters(codec="utf-8"),
)


def bpe(pattern=PATTERN, merges=300, **options) -> BpeTokenizer:
    """Byte pairs of TEXT, so that merges cross the bytes of characters."""
    trained = BpeTokenizer.train(TEXT * 3, 257 + merges)
    special = {"<|endoftext|>": len(trained.tokens), "<|end|>": len(trained.tokens) + 1}
    return BpeTokenizer(trained.tokens, pattern, special, **options)


def reversed_ids() -> BpeTokenizer:
    tokens = bpe().tokens
    return BpeTokenizer(
        tokens, PATTERN, {"<|end|>": 3}, ids=[len(tokens) + 9 - i for i in range(len(tokens))],
        common_tokens=["<|end|>"], prefix_space=True,
    )  # fmt: skip


TOKENIZERS = {
    "characters": lambda: CharTokenizer.train(TEXT),
    "gpt4": bpe,
    "gpt2": lambda: bpe(GPT2_PATTERN, common_tokens=["<|end|>", "<|endoftext|>"]),
    "other ids": reversed_ids,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


MAKE = "const t = makeTokenizer(file);"


def test_texts_have_pythons_ids(tokenizer):
    texts = [TEXT, "", "\n", " ", "a<|end|>b<|endoftext|><|end|> c"]
    if isinstance(tokenizer, CharTokenizer):
        texts = [TEXT, "", TEXT[::-1]]
    ours = scripts()(
        MAKE + "return texts.map((x) => t.encode(x).ids);",
        file=export_tokenizer(tokenizer), texts=texts,
    )  # fmt: skip
    assert ours == [tokenizer.encode(text).tolist() for text in texts]
    start = scripts()(MAKE + "return t.startToken", file=export_tokenizer(tokenizer))
    assert start == tokenizer.start_token


@pytest.fixture(scope="module")
def pairs():
    tokenizer = bpe()
    body = "globalThis.pairs = makeTokenizer(file); return 0;"
    scripts()(body, file=export_tokenizer(tokenizer))
    return tokenizer


@settings(max_examples=60, deadline=None)
@given(text=st.text(ALPHABET, max_size=40))
def test_any_text_has_pythons_ids(pairs, text):
    assert scripts()("return pairs.encode(text).ids;", text=text) == pairs.encode(text).tolist()


@settings(max_examples=50, deadline=None)
@given(data=st.lists(st.one_of(st.integers(0, 255), st.sampled_from([0xE2, 0xF0, 0x9F, 0x80]))))
def test_any_bytes_have_pythons_text(data):
    text = scripts()("return fromBytes(data);", data="".join(map(chr, data)))
    assert text == bytes(data).decode("utf-8", "replace")


def test_ids_have_pythons_text(tokenizer):
    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 300).tolist()
    ours = scripts()(MAKE + "return decode(t, ids);", file=export_tokenizer(tokenizer), ids=ids)
    assert ours == tokenizer.decode(ids)


def test_characters_that_the_vocabulary_lacks_are_named():
    file = export_tokenizer(CharTokenizer.train("ab\n"))
    ours = scripts()(MAKE + "return t.encode('aé𝔘bé');", file=file)
    assert ours == {"ids": [1, 2], "missing": ["é", "𝔘"]}


@pytest.mark.parametrize("names", [(), [*"0123", "+", "=", "π"]])
def test_integers_have_pythons_ids_and_text(names):
    tokenizer, texts = IntegerTokenizer(7, names), ["", " 1 3\n0 ", "3", "2\u3000 1"]
    file = export_tokenizer(tokenizer)
    ours = scripts()(MAKE + "return texts.map((x) => t.encode(x).ids);", file=file, texts=texts)
    assert ours == [tokenizer.encode(text).tolist() for text in texts]
    ours = scripts()(MAKE + "return decode(t, [6, 0, 5]);", file=file)
    assert ours == tokenizer.make_decoder()([6, 0, 5])
    ours = scripts()(MAKE + "return t.encode('1 x 2 x 9 y');", file=file)
    assert ours == {"ids": [1, 2], "missing": ["x", "9", "y"]}


def test_half_of_a_surrogate_pair_is_replaced():
    ours = scripts()(r"return toBytes('a\ud800b');")
    assert ours.encode("latin-1") == "a\ufffdb".encode()

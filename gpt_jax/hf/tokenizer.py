"""Tokenizers in Hugging Face's files, in and out: tokenizer.json, or vocab.json with merges.txt.

In come byte pairs as GPT-2 has them, and characters or integers as `save_tokenizer` writes them.
What would give other ids here than there is refused. See `weights.py` for the tensors beside them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.hf.records import (
    BytePairs,
    ModelKind,
    NamedToken,
    Normalizer,
    PostProcessor,
    PreTokenizer,
    SequenceId,
    Split,
    TokenizerFile,
    TokenizerSettings,
    Vocabulary,
)
from gpt_jax.integer_tokenizer import IntegerTokenizer
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
SPECIAL_FILE = "special_tokens_map.json"
SPECIAL_SETTINGS = ("_token", "_special_tokens")  # endings of their names in tokenizer_config.json
UNKNOWN_FLAGS = ("lstrip", "rstrip", "single_word")  # of an added token


def _split(pattern: str) -> dict[str, Any]:
    """Returns what cuts a text at the matches of an expression, in tokenizer.json's words."""
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


CHARACTERS = _split(r"[\s\S]")
WORDS = {"type": "WhitespaceSplit"}


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


@dataclasses.dataclass
class _Added:
    """The tokens that are named beside a vocabulary, and how a text is prepared.

    Attributes:
      ids: {text: id}.
      common: those of them that are one token in any text.
      prefix_space: what tokenizer_config.json says of it; None where it says nothing.
    """

    ids: dict[str, int] = dataclasses.field(default_factory=dict)
    common: set[str] = dataclasses.field(default_factory=set)
    prefix_space: bool | None = None

    def add(self, token: NamedToken, i: int) -> None:
        """Adds a token, of which an earlier file may have said less.

        Raises:
          ValueError: files contradict one another, or the token takes more than its own text.
        """
        text = token.content
        for flag in UNKNOWN_FLAGS:
            if getattr(token, flag):
                raise ValueError(f"its token {text!r} has {flag}, which is not known here")
        if self.ids.setdefault(text, i) != i:
            raise ValueError(f"its files give {text!r} the ids {i} and {self.ids[text]}")
        if token.special:
            self.common.discard(text)
        else:
            self.common.add(text)


def _named_tokens(folder: Path) -> _Added:
    """Returns what the files beside a tokenizer's own say.

    Raises:
      ValueError: a file is damaged, or a token takes more than its own text.
    """
    added = _Added()
    special = {END_OF_TEXT}
    if (path := folder / SPECIAL_FILE).is_file():
        special |= set(_texts(read_json(path)))
    settings = TokenizerSettings()
    if (path := folder / SETTINGS_FILE).is_file():
        values = read_json(path)
        settings = read_record(values, TokenizerSettings)
        special |= set(_texts({k: v for k, v in values.items() if k.endswith(SPECIAL_SETTINGS)}))
    if (path := folder / ADDED_FILE).is_file():
        for text, i in _read_vocabulary(path).items():
            added.add(NamedToken(content=text, special=text in special), i)
    for i, token in (settings.added_tokens_decoder or {}).items():
        if token.special is None:
            token = dataclasses.replace(token, special=token.content in special)
        added.add(token, int(i))
    added.prefix_space = settings.add_prefix_space
    return added


def _texts(value: Any) -> Iterator[str]:
    """Yields the texts of tokens, whichever way transformers wrote them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) and isinstance(value.get("content"), str):
        yield value["content"]
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


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


def _from_tokenizer_json(values: dict[str, Any], added: _Added, vocab_size: int) -> Tokenizer:
    file = read_record(values, TokenizerFile)
    kind = read_record(file.model, ModelKind, "model")
    if not _changes_nothing(file.normalizer):
        raise ValueError("it changes the text before it cuts it (normalizer)")
    if not _adds_nothing(file.post_processor):
        raise ValueError("it may add tokens to those of the text (post_processor)")
    if kind.type == "WordLevel" and file.pre_tokenizer in (CHARACTERS, WORDS):
        vocab = read_record(file.model, Vocabulary, "model").vocab
        if list(vocab.values()) != list(range(len(vocab))):
            raise ValueError("its ids are not those of its characters or words in order")
        if file.pre_tokenizer == CHARACTERS:
            return CharTokenizer("".join(vocab))
        are_ids = all(name == str(i) for name, i in vocab.items())
        return IntegerTokenizer(len(vocab), () if are_ids else tuple(vocab))
    unlike = [
        f.name for f in dataclasses.fields(kind) if f.name != "type" and getattr(kind, f.name)
    ]
    if kind.type != "BPE" or unlike:
        raise ValueError(f"it is no byte-level BPE as GPT-2's ({', '.join(unlike) or 'type'})")
    pattern = _pattern(file.pre_tokenizer or {}, added)
    for token in file.added_tokens or ():
        added.add(token, token.id)
    model = read_record(file.model, BytePairs, "model")
    merges = [m.split(" ") if isinstance(m, str) else m for m in model.merges]
    return _byte_pairs(model.vocab, merges, added, pattern, vocab_size)


def _pattern(cut: dict[str, Any], added: _Added) -> str:
    """Returns the regular expression with which a text is cut; `added` learns of a space before it.

    Raises:
      ValueError: the text is cut in another way than byte-level BPE has here.
    """
    where = "pre_tokenizer"
    outer = read_record(cut, PreTokenizer, where)
    *before, inner = (outer.pretokenizers or [{}]) if outer.type == "Sequence" else [cut]
    last = read_record(inner, PreTokenizer, where)
    if added.prefix_space is None:
        added.prefix_space = last.add_prefix_space
    if last.type != "ByteLevel" or (before and added.prefix_space):
        raise ValueError("it is not over bytes as they are (pre_tokenizer)")
    if not before and last.use_regex:
        return GPT2_PATTERN
    if len(before) == 1 and not last.use_regex and before[0].get("type") == "Split":
        pattern = read_record(before[0], Split, where).pattern.Regex
        if before[0] == _split(pattern):
            return pattern
    raise ValueError("it cuts the text in a way that this program does not know (pre_tokenizer)")


def _byte_pairs(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: _Added,
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
    if min([*ids, *added.ids.values()]) < 0:
        raise ValueError("its ids are not the 256 bytes and then the merges in their order")
    tokens = [bytes(byte_of[c] for c in name) for name in names]
    if len(set(ids)) < len(ids) or not _are_sound(tokens, merges):
        if any(a >= b for a, b in itertools.pairwise(ids)):
            raise ValueError("its ids are not the 256 bytes and then the merges in their order")
        raise ValueError("its merges are not those that make its tokens")
    rest = {name: vocab[name] for name in vocab.keys() - set(names)}
    for name in added.common - rest.keys():
        if vocab.get(name) == added.ids[name]:
            raise ValueError(f"its added token {name!r} is one that merges make, too")
    for name in added.ids.keys() & rest.keys():
        if added.ids[name] != rest[name]:
            raise ValueError(f"its files give {name!r} the ids {rest[name]} and {added.ids[name]}")
    named = {name: i for name, i in added.ids.items() if vocab.get(name) != i or name in rest}
    special = {name: i for name, i in (rest | named).items() if i < vocab_size}
    return BpeTokenizer(
        tokens,
        pattern,
        special,
        vocab_size=max(vocab_size, max(ids) + 1),
        ids=ids,
        common_tokens=added.common & special.keys(),
        prefix_space=bool(added.prefix_space),
    )


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
        if isinstance(tokenizer, IntegerTokenizer):
            vocab = {tokenizer.decode([i]): i for i in range(tokenizer.vocab_size)}
            values |= {"pre_tokenizer": WORDS, "decoder": None}  # which joins words with spaces
            values["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": ""}
        elif isinstance(tokenizer, CharTokenizer):
            vocab = {c: i for i, c in enumerate(tokenizer.vocabulary)}
            values["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": ""}
        else:
            values |= _bpe_values(tokenizer)
            if tokenizer.prefix_space:
                settings["add_prefix_space"] = True
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
    pattern = canonical_pattern(tokenizer.pattern)
    if not tokenizer.prefix_space:
        parts = [_split(pattern), {**byte_level, "use_regex": False}]
        cut: dict[str, Any] = {"type": "Sequence", "pretokenizers": parts}
    elif pattern == GPT2_PATTERN:  # a Split before it would give each word a space
        cut = {**byte_level, "add_prefix_space": True, "use_regex": True}
    else:
        raise ValueError("a space before a text has no form there with this pattern")
    return {
        "added_tokens": [
            {"id": i, "content": text, **flags, "special": text not in tokenizer.common_tokens}
            for text, i in sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
        ],
        "pre_tokenizer": cut,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": find_merges(tokenizer.tokens),
        },
    }

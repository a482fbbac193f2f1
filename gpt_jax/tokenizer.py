"""Tokenizers: text to token ids and back, by characters or byte pairs.

Those of integers, whose text is the ids or names for them, are in `integer_tokenizer.py`.

A tokenizer knows its vocabulary and nothing of models, corpora or devices. It is saved with every
run, so that reading a run needs no network.
"""

from __future__ import annotations

import base64
import codecs
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gpt_jax import byte_pairs
from gpt_jax.config import DataConfig
from gpt_jax.download import download_error_reason
from gpt_jax.errors import UserError
from gpt_jax.integer_tokenizer import IntegerTokenizer
from gpt_jax.storage import open_folder, parse_json, read_record

TOKENIZER_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
OLD_PADDING = "<|padding {}|>"  # what earlier versions named the last id of a padded vocabulary
# GPT-4's (cl100k_base), as tiktoken had it first: words, up to 3 digits, marks, line ends, spaces.
PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"""
    r"""|\s*[\r\n]|\s+(?!\S)|\s+"""
)
# GPT-2's (Radford et al. 2019): English endings, words, numbers, marks, spaces.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT2_SPELLINGS = (  # all split every text alike
    GPT2_PATTERN,
    # tiktoken's, whose possessive repeats are faster
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    # GPT-2's own release, and `transformers`
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)


class CharTokenizer:
    """One token per character; the vocabulary is the characters of a text, in code point order.

    Attributes:
      vocabulary: the characters; a token's id is its character's index.
    """

    def __init__(self, vocabulary: str):
        """Takes the characters in order.

        Raises:
          ValueError: the vocabulary is empty or its characters are not strictly ascending.
        """
        points = _code_points(vocabulary)
        if not len(points) or (points[1:] <= points[:-1]).any():
            raise ValueError(
                "a vocabulary is at least one character, in ascending order, once each"
            )
        self.vocabulary = vocabulary
        self._points = points

    @classmethod
    def train(cls, text: str) -> CharTokenizer:
        """Returns the tokenizer of the characters that occur in `text`."""
        return cls("".join(map(chr, np.unique(_code_points(text)))))

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 (V,): how many bytes of UTF-8 each token stands for."""
        sizes = [len(c.encode("utf-8", "surrogatepass")) for c in self.vocabulary]
        return np.array(sizes, np.int32)

    @property
    def start_token(self) -> int:
        """The id that an empty prompt starts from: a line break, or token 0 without one."""
        return max(self.vocabulary.find("\n"), 0)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`, int32 (len(text),).

        Raises:
          UserError: the text has characters that the vocabulary lacks; the message lists them.
        """
        points = _code_points(text)
        ids = np.searchsorted(self._points, points).astype(np.int32)
        known = self._points[np.minimum(ids, len(self._points) - 1)] == points
        if not known.all():
            raise UserError(f"the vocabulary lacks {_listed(text, known)}; it has {_shown(self)}")
        return ids

    def decode(self, ids) -> str:
        """Returns the text of ids, a sequence of integers in [0, vocab_size)."""
        return "".join([self.vocabulary[i] for i in _checked(ids, self.vocab_size)])

    def make_decoder(self) -> Callable[..., str]:
        """Returns decode(ids, last=False) for ids that arrive a few at a time."""
        return lambda ids, last=False: self.decode(ids)

    def to_json(self) -> str:
        """Returns what `from_json` reads; characters outside ASCII are escaped."""
        return json.dumps({"kind": "char", "vocabulary": self.vocabulary}, indent=1) + "\n"


class BpeTokenizer:
    """Byte-level BPE: a token is some bytes of UTF-8, so any text has ids.

    Byte pairs are merged in the order of the vocabulary (Sennrich et al. 2016,
    https://arxiv.org/abs/1508.07909; over bytes: Radford et al. 2019). `tiktoken` does the
    merging, whatever the source of the vocabulary.

    Attributes:
      vocab_size: V; ids are in [0, V). An id that no token has stands for no text.
      tokens: the bytes of each token that merging can give, in the order of the merges.
      ids: the id of each of them; None where it is its index, as in nearly every vocabulary.
      pattern: the regular expression that splits a text first; merges stay inside its matches.
      special_tokens: {text: id} of tokens that merging never gives. In a text they are ordinary
        characters, unless they are allowed.
      common_tokens: those of them that are tokens in any text, as other programs add them.
      prefix_space: whether a text that does not begin with a space gets one, as does what follows
        a special token.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        pattern: str,
        special_tokens: Mapping[str, int],
        *,
        vocab_size: int | None = None,
        ids: Sequence[int] | None = None,
        common_tokens: Collection[str] = (),
        prefix_space: bool = False,
    ):
        """Takes the tokens in the order of their merges.

        Args:
          tokens: see above, as are the rest.
          pattern: see above.
          special_tokens: see above.
          vocab_size: None is one more than the highest id.
          ids: of the tokens; None is their indices.
          common_tokens: see above, as is prefix_space.

        Raises:
          ValueError: the tokens are not different or lack a byte, a special token's text is empty
            or its id is taken, or the pattern is no regular expression.
        """
        import tiktoken

        ranks = {token: rank for rank, token in enumerate(tokens)}
        if len(ranks) < len(tokens) or b"" in ranks:
            raise ValueError("tokens are at least one byte each, and different")
        if not all(bytes([b]) in ranks for b in range(256)):
            raise ValueError("each of the 256 bytes must be a token")
        if _matches_nothing(pattern):
            raise ValueError("its pattern matches no characters at all, which splits nothing")
        n, own_ids = len(tokens), list(range(len(tokens)) if ids is None else ids)
        _check_ids(own_ids, n, special_tokens, ids is None)
        all_ids = [*own_ids, *special_tokens.values()]
        self.tokens = tuple(tokens)
        self.pattern = pattern
        self.special_tokens = dict(special_tokens)
        self.common_tokens = frozenset(common_tokens)
        self.prefix_space = prefix_space
        if not self.common_tokens <= self.special_tokens.keys():
            raise ValueError("its common tokens are not among the special ones")
        self.ids = None if own_ids == list(range(n)) else tuple(own_ids)
        self.vocab_size = max(all_ids) + 1 if vocab_size is None else vocab_size
        if self.vocab_size <= max(all_ids):
            raise ValueError(f"a token's id is beyond the {self.vocab_size} of the vocabulary")
        self._bytes = dict(zip(own_ids, tokens, strict=True))
        self._bytes |= {i: text.encode("utf-8") for text, i in special_tokens.items()}
        inside = self.special_tokens  # the ids that tiktoken has, which merges by their order
        self._id_of = None
        if self.ids is not None:
            inside = {text: n + i for i, text in enumerate(special_tokens)}
            self._id_of = np.array(all_ids, np.int32)
        self._encoding = tiktoken.Encoding(
            "gpt_jax", pat_str=pattern, mergeable_ranks=ranks, special_tokens=inside
        )

    @classmethod
    def train(
        cls, text: str, vocab_size: int, listener: byte_pairs.Listener | None = None
    ) -> BpeTokenizer:
        """Trains a vocabulary: the 256 bytes, the merges most frequent in `text`, END_OF_TEXT.

        The same text gives the same vocabulary, on any number of cores.

        Args:
          text: the training text, valid Unicode.
          vocab_size: total number of tokens, at least 257.
          listener: is told how far it is.

        Raises:
          UserError: the text gives fewer tokens; the message says how many.
        """
        listener = listener or byte_pairs.Silence()
        vocabulary = byte_pairs.learn(text, vocab_size - 1, PATTERN, listener).get_vocab()
        n = len(vocabulary)
        if n < vocab_size - 1:
            raise UserError(
                f"vocab_size={vocab_size} is more than the {n + 1} tokens that can be learned "
                f"from the training text; ask for {n + 1} or fewer, or use a longer text"
            )
        byte_of = byte_of_character()
        names = sorted(vocabulary, key=vocabulary.__getitem__)
        tokens = [bytes(byte_of[c] for c in name) for name in names]
        return cls(tokens, PATTERN, {END_OF_TEXT: n})

    @classmethod
    def published(cls, name: str) -> BpeTokenizer:
        """Returns a vocabulary that tiktoken knows: "gpt2", "cl100k_base", "o200k_base".

        It is read from the folder that TIKTOKEN_CACHE_DIR names, else from tiktoken's own cache,
        and downloaded to there if it is missing.

        Raises:
          UserError: it can't be downloaded.
        """
        import tiktoken

        try:
            encoding = tiktoken.get_encoding(name)
        except (OSError, ValueError) as error:  # requests' are OSErrors; a wrong hash, a ValueError
            raise UserError(
                f"tokenizer {name} could not be downloaded ({download_error_reason(error)}); let "
                "TIKTOKEN_CACHE_DIR name a folder with tiktoken's files, or choose the tokenizer "
                "bpe, which is trained"
            ) from error
        ranks = encoding._mergeable_ranks  # tiktoken's README gives no other way to get them
        tokens = sorted(ranks, key=ranks.__getitem__)
        return cls(tokens, encoding._pat_str, encoding._special_tokens)

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 (V,): bytes of UTF-8 of each token; 0 for special ones that are not common."""
        sizes = np.zeros(self.vocab_size, np.int32)
        sizes[list(self.ids or range(len(self.tokens)))] = [len(token) for token in self.tokens]
        for text in self.common_tokens:
            sizes[self.special_tokens[text]] = len(text.encode("utf-8"))
        return sizes

    @property
    def start_token(self) -> int:
        """The id that an empty prompt starts from: a line break."""
        index = self.tokens.index(b"\n")
        return index if self.ids is None else self.ids[index]

    def encode(self, text: str, allowed_special: Collection[str] = ()) -> np.ndarray:
        """Returns the ids of `text`, int32 (N,).

        Args:
          text: valid Unicode.
          allowed_special: special tokens to encode as such where the text has them.

        Raises:
          UserError: the text contains a surrogate, which UTF-8 has no bytes for.
        """
        taken = {*allowed_special, *self.common_tokens}
        if not taken and not self.prefix_space:
            return self._merge(text)
        names = sorted(taken & self.special_tokens.keys(), key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
        ids = [np.zeros(0, np.int32)]
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(np.array([self.special_tokens[part]], np.int32))
            elif part:
                ids.append(self._merge(f" {part}" if self._lacks_space(part) else part))
        return np.concatenate(ids)

    def _lacks_space(self, text: str) -> bool:
        return self.prefix_space and not text.startswith(" ")

    def _merge(self, text: str) -> np.ndarray:
        """Returns the ids of a text without special tokens; see `encode`."""
        try:
            ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError as error:
            raise UserError(
                f"the text is not valid Unicode ({text[error.start]!r} at {error.start} is half of "
                "a surrogate pair); leave that out"
            ) from None
        except ValueError:  # the pattern can't look back far enough: some million spaces in a row
            if len(text) < 2:
                raise
            middle = len(text) // 2
            halves = (text[:middle], text[middle:])
            return np.concatenate([self._merge(half) for half in halves])
        return ids.astype(np.int32) if self._id_of is None else self._id_of[ids]

    def decode_bytes(self, ids) -> bytes:
        """Returns the bytes of ids, a sequence of integers in [0, vocab_size)."""
        return b"".join([self._bytes.get(i, b"") for i in _checked(ids, self.vocab_size)])

    def decode(self, ids) -> str:
        """Returns the text of ids, with U+FFFD for bytes that are not UTF-8."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def make_decoder(self) -> Callable[..., str]:
        """Returns decode(ids, last=False) for ids that arrive a few at a time.

        A character appears with the last of its bytes. With `last`, an incomplete one is U+FFFD.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda ids, last=False: decoder.decode(self.decode_bytes(ids), last)

    def to_json(self) -> str:
        """Returns what `from_json` reads; tokens are in base64, one per line, in order."""
        values = {
            "kind": "bpe",
            "pattern": self.pattern,
            "special_tokens": self.special_tokens,
            "tokens": [base64.b64encode(token).decode("ascii") for token in self.tokens],
        }
        if self.ids is not None:
            values["ids"] = list(self.ids)
        if self.common_tokens:
            values["common_tokens"] = sorted(self.common_tokens)
        if self.prefix_space:
            values["prefix_space"] = True
        if self.vocab_size > max(self._bytes) + 1:
            values["vocab_size"] = self.vocab_size
        return json.dumps(values, indent=1) + "\n"


def _check_ids(ids: list[int], n: int, special: Mapping[str, int], are_indices: bool) -> None:
    """Raises ValueError where n tokens and the special ones do not have an id each."""
    special_ids = set(special.values())
    if "" in special or len(special_ids) < len(special):
        raise ValueError("special tokens have a separate text and id each")
    least = n if are_indices else 0
    if not all(least <= i < 2**31 for i in special_ids):
        raise ValueError(f"ids of special tokens must be in [{least}, 2**31)")
    if len(ids) != n or len({*ids, *special_ids}) < n + len(special_ids):
        raise ValueError("each token must have an id of its own")
    if not all(0 <= i < 2**31 for i in ids):
        raise ValueError("ids must be in [0, 2**31)")


Tokenizer = CharTokenizer | BpeTokenizer | IntegerTokenizer


@dataclasses.dataclass(frozen=True)
class CharFile:
    """tokenizer.json of characters."""

    vocabulary: str


@dataclasses.dataclass(frozen=True)
class BpeFile:
    """tokenizer.json of byte pairs; tokens are in base64, and ids their ranks if left out."""

    pattern: str
    special_tokens: dict[str, int]
    tokens: list[str]
    vocab_size: int | None = None
    ids: list[int] | None = None
    common_tokens: list[str] = dataclasses.field(default_factory=list)
    prefix_space: bool = False


def make_tokenizer(
    data: DataConfig, texts: Mapping[str, str], listener: byte_pairs.Listener | None = None
) -> Tokenizer:
    """Returns the tokenizer that `data.tokenizer` asks for.

    Args:
      data: the settings.
      texts: "train" and "val". Characters are those of both; byte pairs are trained on "train".
      listener: is told how far the learning of byte pairs is.

    Raises:
      UserError: a published vocabulary can't be downloaded, or the text gives too few tokens.
    """
    if data.tokenizer == "char":
        return CharTokenizer.train("".join(texts.values()))
    if data.tokenizer == "bpe":
        assert data.vocab_size is not None  # DataConfig checks it
        return BpeTokenizer.train(texts["train"], data.vocab_size, listener)
    return BpeTokenizer.published(data.tokenizer)


def from_json(text: str) -> Tokenizer:
    """Returns the tokenizer that `to_json` wrote.

    Raises:
      ValueError: the text is not such a tokenizer.
    """
    return _from_values(parse_json(text))


def _from_values(values: dict[str, Any]) -> Tokenizer:
    kind = values.get("kind")
    if kind == "bpe":
        return _bpe_from(values)
    if kind == "integers":
        return IntegerTokenizer.from_values(values)
    if kind != "char":
        raise ValueError('not a tokenizer of kind "char" or "bpe" or "integers"')
    return CharTokenizer(read_record(values, CharFile).vocabulary)


def _bpe_from(values: dict[str, Any]) -> BpeTokenizer:
    file = read_record(values, BpeFile)
    special, size = dict(file.special_tokens), file.vocab_size
    if size is not None and not 0 < size <= 2**31:
        raise ValueError("its vocab_size is no number of tokens")
    if file.ids is not None and len(file.ids) != len(file.tokens):
        raise ValueError("its ids are not those of its tokens")
    highest = max(special.values(), default=-1)
    if special.get(OLD_PADDING.format(highest)) == highest:  # of a padded vocabulary: made-up text
        del special[OLD_PADDING.format(highest)]
        size = highest + 1
    return BpeTokenizer(
        [base64.b64decode(token, validate=True) for token in file.tokens],
        file.pattern,
        special,
        vocab_size=size,
        ids=file.ids,
        common_tokens=file.common_tokens,
        prefix_space=file.prefix_space,
    )


def load_tokenizer(run_dir: str | os.PathLike[str], sha256: str | None = None) -> Tokenizer:
    """Returns the tokenizer of a folder.

    Args:
      run_dir: the folder.
      sha256: of the file, as another one says; None where nothing does.

    Raises:
      UserError: the file is missing, damaged or another one.
    """
    folder = open_folder(run_dir)
    path = folder.path / TOKENIZER_FILE
    try:
        content = folder.read(TOKENIZER_FILE)
        tokenizer = _from_values(parse_json(content))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the tokenizer {path}: {error}") from error
    if sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise UserError(f"{path} is not the file that was written with {run_dir}; restore it")
    return tokenizer


def _matches_nothing(pattern: str) -> bool:
    """Returns whether a pattern can match the empty text, on which tiktoken ends the process."""
    import regex

    try:
        found = regex.finditer(pattern, " a1.\n\u00e9", timeout=1)
        return any(match.start() == match.end() for match in found)
    except (regex.error, TimeoutError):  # tiktoken has another engine, and says so itself
        return False


def _checked(ids, vocab_size: int) -> list[int]:
    ids = np.asarray(ids, np.int64)
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise ValueError(f"token ids must be in [0, {vocab_size})")
    return ids.tolist()


def byte_of_character() -> dict[str, int]:
    """Returns the byte behind each character that GPT-2, and `tokenizers`, write for it."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _listed(text: str, known: np.ndarray, limit: int = 10) -> str:
    missing = sorted({c for c, ok in zip(text, known, strict=True) if not ok})
    shown = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in missing[:limit])
    more = f" and {len(missing) - limit} more" if len(missing) > limit else ""
    return f"{shown}{more}"


def _shown(tokenizer: CharTokenizer, limit: int = 100) -> str:
    characters = "".join(c for c in tokenizer.vocabulary if c.isprintable())
    return characters[:limit] + ("..." if len(characters) > limit else "")


def find_difference(a: Tokenizer, b: Tokenizer) -> str:
    """Returns in what two tokenizers differ, or "" where they give every text the same ids."""
    if _content(a) == _content(b):
        return ""
    if type(a) is not type(b):
        return f"one has {_kind(a)}, the other {_kind(b)}"
    if a.vocab_size != b.vocab_size:
        return f"{a.vocab_size:,} tokens and {b.vocab_size:,}"
    for i in range(a.vocab_size):
        if a.decode([i]) != b.decode([i]):
            return f"token {i} is {a.decode([i])!r} and {b.decode([i])!r}"
    return "they split a text differently before merging"


def _kind(tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer, IntegerTokenizer):
        return "integers"
    return "characters" if isinstance(tokenizer, CharTokenizer) else "byte pairs"


def _content(tokenizer: Tokenizer) -> tuple[Any, ...]:
    if isinstance(tokenizer, BpeTokenizer):
        pattern, special = canonical_pattern(tokenizer.pattern), tokenizer.special_tokens
        how = tokenizer.common_tokens, tokenizer.prefix_space
        return tokenizer.tokens, pattern, special, tokenizer.ids, tokenizer.vocab_size, how
    if isinstance(tokenizer, IntegerTokenizer):
        return tokenizer.vocab_size, tokenizer.names
    return (tokenizer.vocabulary,)


def canonical_pattern(pattern: str) -> str:
    """Returns one spelling, good for every program, of known expressions that split texts alike."""
    if pattern in GPT2_SPELLINGS:
        return GPT2_PATTERN
    # In cl100k's a digit can't begin what follows, so the + that keeps what was taken changes
    # nothing; in Hugging Face's regular expressions it would mean any number of times 1 to 3.
    return pattern.replace("{1,3}+|", "{1,3}|")

"""The JSON files of a GPT-2 folder as typed records; what a record has no field for is ignored."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Gpt2Config:
    """config.json; what it leaves out is transformers' default."""

    model_type: str = ""
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_positions: int = 1024
    vocab_size: int = 50257
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5
    activation_function: str = "gelu_new"
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    tie_word_embeddings: bool = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    add_cross_attention: bool = False


@dataclasses.dataclass(frozen=True)
class WeightsIndex:
    """model.safetensors.index.json: {name of a tensor: the file that has it}."""

    weight_map: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """vocab.json, added_tokens.json and a part of tokenizer.json: {text: id}."""

    vocab: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedToken:
    """A token in tokenizer_config.json, whose id is its key."""

    content: str
    special: bool | None = None
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddedToken(NamedToken):
    """A token that tokenizer.json names beside its vocabulary."""

    id: int


@dataclasses.dataclass(frozen=True)
class TokenizerSettings:
    """tokenizer_config.json."""

    added_tokens_decoder: dict[str, NamedToken] | None = None
    add_prefix_space: bool | None = None


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """What changes a text before it is cut."""

    type: str = ""
    normalizers: list[Normalizer] = dataclasses.field(default_factory=list)
    strip_left: bool = True
    strip_right: bool = True
    prepend: str | None = None


@dataclasses.dataclass(frozen=True)
class SequenceId:
    """Which of two texts a part of a template is."""

    id: str = ""


@dataclasses.dataclass(frozen=True)
class TemplatePart:
    """A part of a template: a text, or else a token."""

    Sequence: SequenceId | None = None


@dataclasses.dataclass(frozen=True)
class PostProcessor:
    """What may add tokens to those of a text."""

    type: str = ""
    processors: list[PostProcessor] = dataclasses.field(default_factory=list)
    single: list[TemplatePart] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """What cuts a text before its pieces become tokens."""

    type: str = ""
    pretokenizers: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    add_prefix_space: bool | None = None
    use_regex: bool = True


@dataclasses.dataclass(frozen=True)
class SplitPattern:
    """The regular expression of a Split."""

    Regex: str


@dataclasses.dataclass(frozen=True)
class Split:
    """A cut at the matches of a regular expression."""

    pattern: SplitPattern


@dataclasses.dataclass(frozen=True)
class ModelKind:
    """What a tokenizer's model is; its vocabulary is read once that is known."""

    type: str | None = "BPE"
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool | None = None
    ignore_merges: bool | None = None


@dataclasses.dataclass(frozen=True)
class BytePairs:
    """A model of byte pairs; a merge is two texts, or one with a space between them."""

    vocab: dict[str, int]
    merges: list[Any]


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
    """tokenizer.json."""

    model: dict[str, Any]
    normalizer: Normalizer | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: PostProcessor | None = None
    added_tokens: list[AddedToken] | None = None

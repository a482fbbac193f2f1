"""The settings of a preparation, each declared once with its meaning and rule."""

from __future__ import annotations

import dataclasses
import os
import typing
from typing import Any

from data.filters import Limits
from gpt_jax.config.fields import FRACTION, NOT_NEGATIVE_INT, POSITIVE_INT, check_fields, field
from gpt_jax.errors import ConfigError
from gpt_jax.input_pipeline.shards.manifest import MAX_SHARD_TOKENS

SHARE = (lambda x: 0 <= x <= 1, "a number in [0, 1]")

# What a crawl of the web needs before anything else; other sources are taken as they are.
WET_FILTERS = {
    "min_characters": 200,
    "min_letters": 0.6,
    "max_repetition": 0.3,
    "deduplicate": True,
}


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """How a source becomes a prepared corpus."""

    source: typing.Literal["text", "jsonl", "parquet", "hf", "wet"] = field(
        "text",
        "text: UTF-8 files; jsonl: JSON lines, also .gz and .zst; parquet; hf: a data set on "
        "Hugging Face's hub, streamed; wet: text of Common Crawl",
    )
    input: str = field(
        "",
        "path or pattern such as 'dir/*.jsonl.gz'; for hf, a name; for wet, also the id of a crawl",
    )
    out: str = field("", "folder of the prepared corpus, created if missing")
    tokenizer: typing.Literal["char", "bpe", "gpt2", "cl100k_base", "o200k_base"] = field(
        "gpt2",
        "as data.tokenizer of training: char; bpe, trained on the documents; or a published one",
    )
    vocab_size: int | None = field(
        None,
        "vocabulary size of bpe",
        (lambda x: x >= 257, "a whole number of at least 257"),
        unset="the tokenizer's own",
    )
    sample_mb: int = field(64, "megabytes of training text that bpe is trained on", POSITIVE_INT)
    val_fraction: float = field(
        0.1,
        "fraction for validation: the end of a single text; of many documents, those that a "
        "hash selects",
        FRACTION,
    )
    end_of_text_lines: bool | None = field(
        None,
        "a line that is just <|endoftext|> is the border between two documents of a file; for text",
        unset="false",
    )
    text_field: str = field("text", "field or column of the text; for jsonl, parquet, hf")
    shard_tokens: int = field(
        100_000_000,
        "number of tokens per shard",
        (lambda x: 1 <= x <= MAX_SHARD_TOKENS, f"a whole number in [1, {MAX_SHARD_TOKENS}]"),
    )
    max_document_mb: int = field(
        64, "a larger document counts as damaged; bounds the memory", POSITIVE_INT
    )
    on_damage: typing.Literal["stop", "skip"] = field(
        "stop", "on a damaged file or record: stop; skip: leave it out and list it in the manifest"
    )
    min_characters: int | None = field(
        None, "drop shorter documents", NOT_NEGATIVE_INT, unset="200 for wet, else no limit"
    )
    max_characters: int | None = field(
        None, "drop longer documents", POSITIVE_INT, unset="no limit"
    )
    min_letters: float | None = field(
        None,
        "drop documents with a smaller fraction of letters among their characters, spaces aside",
        SHARE,
        unset="0.6 for wet, else no limit",
    )
    max_repetition: float | None = field(
        None,
        "drop documents with a larger fraction of their characters in repeated lines",
        SHARE,
        unset="0.3 for wet, else no limit",
    )
    deduplicate: bool | None = field(
        None,
        "drop documents whose whole text has occurred before",
        unset="true for wet, else false",
    )
    dedup_documents: int = field(
        10_000_000,
        "capacity of the deduplication table, in documents (16 to 32 bytes each)",
        (lambda x: 1 <= x <= 2**32, "a whole number in [1, 2**32]"),
    )  # fmt: skip
    language: str | None = field(
        None,
        "keep only this language, by the tag in a wet file's records, such as eng",
        unset="all",
    )
    hf_config: str | None = field(
        None,
        "configuration of the data set, such as sample-10BT; for hf",
        unset="the data set's own",
    )
    hf_split: str = field("train", "split of the data set; for hf")
    hf_revision: str | None = field(
        None,
        "branch, tag or commit of the data set, such as refs/convert/parquet; for hf",
        unset="its main branch",
    )
    limit_files: int | None = field(
        None, "read only the first files of a crawl, this many; for wet", POSITIVE_INT, unset="all"
    )
    base_url: str = field(
        "https://data.commoncrawl.org/", "where crawls are downloaded from; for wet"
    )
    workers: int | None = field(
        None,
        "number of worker processes; does not affect the result",
        POSITIVE_INT,
        unset="one per core",
    )
    engine: typing.Literal["local", "datatrove", "plan"] = field(
        "local",
        "execution engine: local: processes of this machine; datatrove; plan: only write the "
        "plan, for other machines to run. Does not affect the result (see data/README.md)",
    )

    def __post_init__(self):
        check_fields(self)
        for name, example in (("input", "book.txt"), ("out", "data/book")):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is missing; for example: --{name} {example}")
        if self.tokenizer == "bpe" and self.vocab_size is None:
            raise ConfigError(
                "tokenizer=bpe needs vocab_size, the number of tokens to learn; try 8192"
            )
        if self.tokenizer != "bpe" and self.vocab_size is not None:
            raise ConfigError(
                f"vocab_size={self.vocab_size} is for tokenizer=bpe, and this is {self.tokenizer}; "
                "leave one of them out"
            )
        for name in ("language", "limit_files", "base_url"):
            self._only_for(("wet",), name)
        for name in ("hf_config", "hf_split", "hf_revision"):
            self._only_for(("hf",), name)
        self._only_for(("jsonl", "parquet", "hf"), "text_field")
        if self.end_of_text_lines:
            self._only_for(("text",), "end_of_text_lines")

    def _only_for(self, sources: tuple[str, ...], name: str) -> None:
        default = next(f.default for f in dataclasses.fields(self) if f.name == name)
        if self.source not in sources and getattr(self, name) != default:
            raise ConfigError(
                f"{name}={getattr(self, name)!r} is for source={' or '.join(sources)}, and this is "
                f"{self.source}; leave one of them out"
            )

    def filter(self, name: str) -> Any:
        """Returns a filter's setting, or what it is for the source where none is set."""
        value = getattr(self, name)
        return WET_FILTERS.get(name) if value is None and self.source == "wet" else value

    def limits(self) -> Limits:
        """Returns what documents must keep to."""
        return Limits(**{f.name: self.filter(f.name) for f in dataclasses.fields(Limits)})

    def record(self) -> dict[str, Any]:
        """Returns what the manifest keeps: all that the result depends on, and the input's name."""
        values = dataclasses.asdict(self)
        for name in ("out", "workers", "engine"):
            del values[name]
        for name in WET_FILTERS:
            values[name] = self.filter(name)
        values["end_of_text_lines"] = self.end_of_text_lines or None  # as before there was one
        values["input"] = os.path.expanduser(self.input)
        return values

"""Corpora: whatever `data.corpus` names, found and opened.

That is a named text, a text file, a folder of token shards or a mixture of such folders. A text
becomes a `TextCorpus`, folders a `TokenCorpus`. Nothing here knows batches or devices;
`dataset.py` has what every corpus yields, and `sampler.py` is next on the way to the model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from gpt_jax.byte_pairs import Listener
from gpt_jax.config import Config, DataConfig
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.input_pipeline.dataset import Component, Corpus, Dataset, count_bytes
from gpt_jax.input_pipeline.file_kinds import is_utf8
from gpt_jax.input_pipeline.loss_mask import with_mask
from gpt_jax.input_pipeline.shards.manifest import SPLITS
from gpt_jax.input_pipeline.shards.memmap import TokenShards
from gpt_jax.input_pipeline.shards.reader import has_shards, open_shards
from gpt_jax.input_pipeline.text_corpus import (
    DOWNLOADS,
    CorpusError,
    DownloadError,
    TextCorpus,
    load_named,
    load_python_manual,
    read_text,
)
from gpt_jax.tokenizer import Tokenizer, find_difference

WEIGHTED = re.compile(r"\s*(.+?):(\d+\.?\d*|\.\d+)(?:,|$)")  # a component of a mixture


@dataclasses.dataclass(frozen=True)
class TokenCorpus(Corpus):
    """Folders of token shards with one tokenizer, sampled by their weights.

    Attributes:
      components: (weight, folder) of each; the weights sum to 1.
    """

    components: tuple[tuple[Fraction, TokenShards], ...]
    kind = "tokens"

    @property
    def tokenizer(self) -> Tokenizer:
        (_, first), *_ = self.components
        assert first.tokenizer is not None
        return first.tokenizer

    @property
    def folders(self) -> tuple[TokenShards, ...]:
        return tuple(folder for _, folder in self.components)

    @property
    def size(self) -> str:
        return f"{sum(sum(folder.n_tokens.values()) for _, folder in self.components):,} tokens"

    @property
    def sha256(self) -> str:
        """Of the folders' content; of a mixture, of those and the weights."""
        if len(self.components) == 1:
            return self.components[0][1].record["sha256"]
        lines = [f"{weight} {folder.record['sha256']}\n" for weight, folder in self.components]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        head = {"name": self.name, "requested": self.requested or self.name}
        if len(self.components) == 1:
            return {**self.components[0][1].record, **head}
        components = [
            {"share": float(weight), **folder.record} for weight, folder in self.components
        ]
        return {**head, "source": self.source, "sha256": self.sha256, "parts": components}

    def choose_tokenizer(self, data: DataConfig, listener: Listener | None = None) -> Tokenizer:
        if data.tokenizer != DataConfig().tokenizer:
            raise ConfigError(
                f"data.tokenizer={data.tokenizer} is for a text, and {self.source} has the "
                "tokenizer that it was prepared with; leave data.tokenizer out"
            )
        return self.tokenizer

    def make_datasets(self, tokenizer: Tokenizer, config: Config) -> dict[str, Dataset]:
        components: dict[str, list[Component]] = {split: [] for split in SPLITS}
        for weight, folder in self.components:
            for split, shards in folder.shards.items():
                _check_length(folder, split, config.model.block_size)
                n_bytes = folder.n_bytes[split]
                if n_bytes is None and split == "val":  # needed for bits per byte
                    n_bytes = count_bytes(shards, tokenizer.token_bytes)
                tokens = with_mask(shards, folder.masks[split], tokenizer.vocab_size)
                components[split].append(Component(weight, tokens, n_bytes))
        return {split: Dataset(tuple(those)) for split, those in components.items()}


def _check_length(folder: TokenShards, split: str, block_size: int) -> None:
    longest = max(map(len, folder.shards[split]))
    if longest < block_size + 1:
        raise UserError(
            f"the corpus {folder.folder} is too short: its longest shard for {split} has "
            f"{longest:,} tokens, and model.block_size={block_size} needs {block_size + 1}; use a "
            "smaller block_size or another corpus"
        )


def load_corpus(
    name: str,
    fallback: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    tokenizer: Tokenizer | None = None,
) -> Corpus:
    """Returns the corpus `name`: one of `NAMES`, a UTF-8 text file, or prepared folders.

    Args:
      name: a name, a path, or paths of prepared folders with weights ("DIR1:0.7,DIR2:0.3").
      fallback: a corpus to use if `name` can't be downloaded; None makes that an error.
      progress: called with (bytes so far, total bytes or None) during a download.
      tokenizer: of prepared folders that do not name their own, see `shards.open_shards`.

    Raises:
      CorpusError: it is not available, and why, and the ways out.
      ShardError: a prepared folder is damaged.
    """
    _check_name(name)
    if name in DOWNLOADS:
        try:
            return load_named(name, progress)
        except DownloadError as error:
            if fallback is None:
                raise
            corpus = load_corpus(fallback, tokenizer=tokenizer)
            reason = f"could not be downloaded ({error.reason})"
            note = f"corpus {name} {reason}; using {fallback} instead"
            return dataclasses.replace(corpus, notes=(note, *corpus.notes), requested=name)
    if name == "python-manual":
        return load_python_manual()
    path = Path(os.path.expanduser(name))  # unlike Path's own, takes any name
    if entries := parse_mixture(name):
        if any("," in str(path) and not path.exists() for path, _ in entries):
            _check_has_weights(name)
        return _load_mixture(entries, tokenizer)
    if has_shards(path):
        opened = [(Fraction(1), open_shards(path, tokenizer))]
        return _token_corpus(str(path.absolute()), opened)
    _check_has_weights(name)
    return TextCorpus(str(path.absolute()), str(path), read_text(path))


def _check_name(name: str) -> None:
    """Raises CorpusError where a path, which is written down in UTF-8, can't be."""
    if not is_utf8(os.path.abspath(os.path.expanduser(name))):
        raise CorpusError(
            f"corpus {name!r}: its path is not UTF-8, which a run's settings are; rename it"
        )


def _check_has_weights(name: str) -> None:
    """Raises CorpusError where a name lists folders of which some have no weight."""
    entries = [entry.strip() for entry in name.split(",") if entry.strip()]
    paths = [re.sub(r":[\d.]+$", "", entry) for entry in entries]
    if len(paths) < 2 or os.path.lexists(os.path.expanduser(name)):
        return
    if any(os.path.exists(os.path.expanduser(path)) for path in paths):
        shown = ",".join(f"{path}:{1 / len(paths):.3g}" for path in paths)
        raise CorpusError(
            f"corpus {name} is a list of {len(paths)}, and a mixture needs the share of each; for "
            f"equal ones: {shown}"
        )


def note_on_fallback(requested: str, record: dict[str, Any]) -> tuple[str, ...]:
    """Returns a note where a run is on its fallback corpus and the other can be had by now.

    Args:
      requested: the corpus that the command asks for; it is tried once.
      record: of the run's corpus, from its config.json.
    """
    used = record.get("name")
    if requested not in DOWNLOADS or requested != record.get("requested") or requested == used:
        return ()
    try:
        source = load_named(requested, None, tries=1).source
    except CorpusError:
        return ()
    return (
        f"corpus {requested} can be had now ({source}); this run began on {used} instead and stays "
        f"on it: to train on {requested}, run the same command with another --run-dir",
    )


def parse_mixture(name: str) -> list[tuple[Path, str]]:
    """Returns (absolute path, weight as written) of each entry of DIR1:0.7,DIR2:0.3.

    An entry ends at its weight, so a path may contain commas and colons. A name that is not a
    mixture, or that is a file's or folder's, has none.
    """
    if os.path.exists(os.path.expanduser(name)):
        return []
    entries, at = [], 0
    while match := WEIGHTED.match(name, at):
        entries.append((Path(os.path.abspath(os.path.expanduser(match[1]))), match[2]))
        at = match.end()
    return entries if at == len(name) else []


def with_absolute_paths(name: str) -> str:
    """Returns `name` with its paths made absolute, if they exist."""
    if entries := parse_mixture(name):
        return ",".join(f"{path}:{weight}" for path, weight in entries)
    path = os.path.abspath(os.path.expanduser(name))
    return path if os.path.exists(path) else name


def _load_mixture(entries: list[tuple[Path, str]], tokenizer: Tokenizer | None) -> TokenCorpus:
    weights = [Fraction(weight) for _, weight in entries]
    for path, weight in entries:
        if not Fraction(weight):
            raise CorpusError(
                f"corpus {path} has the weight {weight}; give it more, or leave it out"
            )
        if not has_shards(path):
            raise CorpusError(
                f"corpus {path} of a mixture is not a prepared folder; make one of your text with: "
                "python main.py prepare"
            )
    opened = [open_shards(path, tokenizer) for path, _ in entries]
    name = ",".join(f"{path}:{weight}" for path, weight in entries)
    normalised = [weight / sum(weights) for weight in weights]
    return _token_corpus(name, list(zip(normalised, opened, strict=True)))


def _token_corpus(name: str, components: list[tuple[Fraction, TokenShards]]) -> TokenCorpus:
    for _, folder in components:
        if folder.tokenizer is None:
            raise CorpusError(
                f"corpus {folder.folder} does not say which tokenizer its ids are of; prepare it "
                "from its text with: python main.py prepare"
            )
    (_, first), *others = components
    assert first.tokenizer is not None
    for _, other in others:
        assert other.tokenizer is not None
        if difference := find_difference(first.tokenizer, other.tokenizer):
            raise CorpusError(
                f"corpora {first.folder} and {other.folder} have different tokenizers: "
                f"{difference}; prepare both with the same one"
            )
    source = first.record["source"]
    if others:
        source = ", ".join(f"{float(w):.1%} {folder.record['source']}" for w, folder in components)
    notes = tuple(note for _, folder in components for note in folder.notes)
    return TokenCorpus(name, source, tuple(components), notes=notes)


def check_same_tokenizer(corpus: Corpus, tokenizer: Tokenizer, source: Path | str) -> None:
    """Raises UserError where a prepared corpus has ids of another tokenizer than a model."""
    if corpus.tokenizer is not None and (
        difference := find_difference(tokenizer, corpus.tokenizer)
    ):
        raise UserError(
            f"{source} and {corpus.source} have different tokenizers: {difference}; prepare the "
            "corpus with the model's, or name a text"
        )


def check_same_corpus(corpus: Corpus, record: dict[str, Any], run_dir: Path) -> None:
    """Raises UserError where a corpus is not the one that a run's record names."""
    if corpus.sha256 != record["sha256"]:
        raise UserError(
            f"{run_dir} was trained on {record.get('name')} with sha256 {record['sha256'][:12]}, "
            f"and {corpus.source} now has {corpus.sha256[:12]}: not the same {corpus.kind}; name "
            "the old one with --data.corpus PATH, or choose another --run-dir"
        )

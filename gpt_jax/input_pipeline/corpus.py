"""Corpora: named texts, the user's own files, prepared folders: found and brought to form.

Everything here ends in a `TextCorpus`, a text, or in a `TokenCorpus`, tokens on disk, with a record
of where it came from. Nothing here knows batches or devices; `data.py` is next on the way to the
model.
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

from gpt_jax.errors import UserError
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

WEIGHTED = re.compile(r"\s*(.+?):(\d+\.?\d*|\.\d+)(?:,|$)")  # an entry of a mixture


@dataclasses.dataclass(frozen=True)
class TokenCorpus:
    """Prepared folders of one tokenizer, drawn from by their shares.

    Attributes:
      name: what `data.corpus` says, with absolute paths.
      parts: (share of the sequences, folder) of each; the shares sum to 1.
      tokenizer: of all.
      notes: as a `TextCorpus` has them.
      requested: as a `TextCorpus` has it.
    """

    name: str
    parts: tuple[tuple[Fraction, TokenShards], ...]
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()
    requested: str = ""

    @property
    def source(self) -> str:
        """Where it was read from, for people."""
        sources = [prepared.record["source"] for _, prepared in self.parts]
        if len(sources) == 1:
            return sources[0]
        shares = [float(share) for share, _ in self.parts]
        return ", ".join(f"{s:.1%} {source}" for s, source in zip(shares, sources, strict=True))

    @property
    def size(self) -> str:
        """How large it is, for people."""
        return f"{sum(sum(p.n_tokens.values()) for _, p in self.parts):,} tokens"

    @property
    def sha256(self) -> str:
        """Of the folders' content; of a mixture, of those and the shares."""
        sums = [prepared.record["sha256"] for _, prepared in self.parts]
        if len(sums) == 1:
            return sums[0]
        shares = [share for share, _ in self.parts]
        mixed = "".join(f"{share} {s}\n" for share, s in zip(shares, sums, strict=True))
        return hashlib.sha256(mixed.encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """Returns what a run's config.json keeps of the corpus."""
        head = {"name": self.name, "requested": self.requested or self.name}
        records = [prepared.record for _, prepared in self.parts]
        if len(records) == 1:
            return {**records[0], **head}
        parts = [
            {"share": float(share), **record}
            for (share, _), record in zip(self.parts, records, strict=True)
        ]
        return {**head, "source": self.source, "sha256": self.sha256, "parts": parts}


def load_corpus(
    name: str,
    fallback: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    tokenizer: Tokenizer | None = None,
) -> TextCorpus | TokenCorpus:
    """Returns the corpus `name`: one of `NAMES`, a UTF-8 text file, prepared folders.

    Args:
      name: a name, a path, or paths of prepared folders with weights ("DIR1:0.7,DIR2:0.3").
      fallback: a corpus to use where `name` can't be downloaded; None makes that an error.
      progress: called with (bytes so far, bytes in all or None) during a download.
      tokenizer: of prepared folders that do not name their own, see `shards.open_prepared`.

    Raises:
      CorpusError: it can't be had, and why, and the ways out.
      ShardError: a prepared folder is damaged.
    """
    if name in DOWNLOADS:
        try:
            return load_named(name, progress)
        except DownloadError as error:
            if fallback is None:
                raise
            corpus = load_corpus(fallback, tokenizer=tokenizer)
            note = f"corpus {name} could not be had ({error.reason}); using {fallback} instead"
            return dataclasses.replace(corpus, notes=(note, *corpus.notes), requested=name)
    if name == "python-manual":
        return load_python_manual()
    path = Path(os.path.expanduser(name))  # unlike Path's own, takes any name
    if entries := parse_mixture(name):
        return _load_mixture(entries, tokenizer)
    if has_shards(path):
        opened = [(Fraction(1), open_shards(path, tokenizer))]
        return _prepared(str(path.absolute()), opened)
    return TextCorpus(str(path.absolute()), read_text(path), str(path))


def parse_mixture(name: str) -> list[tuple[Path, str]]:
    """Returns (absolute path, weight as written) of each entry of DIR1:0.7,DIR2:0.3.

    An entry ends at its weight, so a path may hold commas and colons. A name that is no mixture, or
    is a file's or folder's, has none.
    """
    if os.path.exists(os.path.expanduser(name)):
        return []
    entries, at = [], 0
    while match := WEIGHTED.match(name, at):
        entries.append((Path(os.path.abspath(os.path.expanduser(match[1]))), match[2]))
        at = match.end()
    return entries if at == len(name) else []


def with_absolute_paths(name: str) -> str:
    """Returns `name` with the paths in it made absolute, where there is something at them."""
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
                f"corpus {path} of a mixture is no prepared folder; make one of your text with: "
                "python main.py prepare"
            )
    opened = [open_shards(path, tokenizer) for path, _ in entries]
    name = ",".join(f"{path}:{weight}" for path, weight in entries)
    return _prepared(name, [(w / sum(weights), p) for w, p in zip(weights, opened, strict=True)])


def _prepared(name: str, parts: list[tuple[Fraction, TokenShards]]) -> TokenCorpus:
    for _, prepared in parts:
        if prepared.tokenizer is None:
            raise CorpusError(
                f"corpus {prepared.folder} does not say which tokenizer its ids are of; prepare it "
                "from its text with: python main.py prepare"
            )
    (_, first), *others = parts
    assert first.tokenizer is not None
    for _, other in others:
        assert other.tokenizer is not None
        if difference := find_difference(first.tokenizer, other.tokenizer):
            raise CorpusError(
                f"corpora {first.folder} and {other.folder} have different tokenizers: "
                f"{difference}; prepare both with the same one"
            )
    notes = tuple(note for _, prepared in parts for note in prepared.notes)
    return TokenCorpus(name, tuple(parts), first.tokenizer, notes)


def check_same_tokenizer(
    corpus: TextCorpus | TokenCorpus, tokenizer: Tokenizer, source: Path | str
) -> None:
    """Raises UserError where a prepared corpus has ids of another tokenizer than a model."""
    if isinstance(corpus, TokenCorpus) and (
        difference := find_difference(tokenizer, corpus.tokenizer)
    ):
        raise UserError(
            f"{source} and {corpus.source} have different tokenizers: {difference}; prepare the "
            "corpus with the model's, or name a text"
        )


def check_same_corpus(
    corpus: TextCorpus | TokenCorpus, record: dict[str, Any], run_dir: Path
) -> None:
    """Raises UserError where a corpus is not the one that a run's record names."""
    if corpus.sha256 != record["sha256"]:
        kind = "text" if isinstance(corpus, TextCorpus) else "tokens"
        raise UserError(
            f"{run_dir} was trained on {record.get('name')} with sha256 {record['sha256'][:12]}, "
            f"and {corpus.source} now has {corpus.sha256[:12]}: not the same {kind}; name the old "
            "one with --data.corpus PATH, or choose another --run-dir"
        )

"""Texts: named ones, downloaded once, and the user's own files.

Each is a `TextCorpus`, with a record of where it came from; `text_files.py` reads a file, and
`corpus.py` has the corpora of token ids.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt_jax.byte_pairs import Listener
from gpt_jax.config import Config, DataConfig
from gpt_jax.config.files import checkout_dir
from gpt_jax.download import DownloadLimits, FailedDownload, TooLarge, download_error_reason, fetch
from gpt_jax.input_pipeline.dataset import Corpus, Dataset, datasets_of_arrays, split_text
from gpt_jax.input_pipeline.text_files import CorpusError as CorpusError
from gpt_jax.input_pipeline.text_files import read_text as read_text
from gpt_jax.storage import write_atomically
from gpt_jax.tokenizer import Tokenizer, make_tokenizer

OZ_FILE = "wizard_of_oz.txt"
OZ_URL = "https://www.gutenberg.org/cache/epub/55/pg55.txt"  # GPT_JAX_OZ_URL names a mirror
OZ_SHA256 = "5fbceadaf1cbc51bd8bf30e5ebe60ed99d67ebda266120ba3f6379d6ecf106c2"
OZ_CHARACTERS = 207_799
OZ_VOCABULARY = 73
SHAKESPEARE_FILE = "tinyshakespeare.txt"  # nanoGPT's text; GPT_JAX_SHAKESPEARE_URL names a mirror
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_CHARACTERS = 1_115_394
MAX_DOWNLOAD_BYTES = 20_000_000
TRIES = 3
TIMEOUT_SECONDS = (5, 10)  # to connect; between two packets
TOTAL_SECONDS = 60  # of all attempts together


class DownloadError(CorpusError):
    """A corpus that could not be downloaded, for a reason; a fallback may be used instead."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class TextCorpus(Corpus):
    """A text; it is tokenized when a run starts.

    Attributes:
      text: the whole text.
    """

    text: str
    kind = "text"

    @property
    def tokenizer(self) -> None:
        return None

    @property
    def size(self) -> str:
        return f"{len(self.text):,} characters"

    @property
    def sha256(self) -> str:
        """Of the text as UTF-8."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "requested": self.requested or self.name,
            "source": self.source,
            "sha256": self.sha256,
            "characters": len(self.text),
            "vocabulary": len(set(self.text)),
        }

    def choose_tokenizer(self, data: DataConfig, listener: Listener | None = None) -> Tokenizer:
        return make_tokenizer(data, split_text(self.text, data.train_fraction), listener)

    def make_datasets(self, tokenizer: Tokenizer, config: Config) -> dict[str, Dataset]:
        texts = split_text(self.text, config.data.train_fraction)
        tokens = {split: tokenizer.encode(text) for split, text in texts.items()}
        return datasets_of_arrays(tokens, tokenizer.token_bytes, config.model.block_size)


def data_dir() -> Path:
    """Returns the folder of texts: GPT_JAX_DATA, else the checkout's data/, else a user cache."""
    if named := os.environ.get("GPT_JAX_DATA"):
        return Path(os.path.expanduser(named))
    if checkout := checkout_dir():
        return checkout / "data"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gpt_jax"


def load_named(
    name: str, progress: Callable[[int, int | None], None] | None, tries: int | None = None
) -> TextCorpus:
    """Returns one of `DOWNLOADS`, from the first folder that has it, or downloads it.

    Args:
      name: of the text.
      progress: called with (bytes so far, total bytes or None) during a download.
      tries: how often to try; None is `TRIES`.

    Raises:
      DownloadError: it can't be downloaded, and why, and the ways out.
      CorpusError: the stored file can't be read.
    """
    download = DOWNLOADS[name]
    path, checkout = data_dir() / download.file, checkout_dir()
    for stored in dict.fromkeys([path, *([checkout / "data" / download.file] if checkout else [])]):
        if stored.exists():
            return _with_notes(name, read_text(stored), str(stored))
    url = os.environ.get(f"GPT_JAX_{name.upper()}_URL", download.url)
    try:
        text = download.form(_fetch(url, progress, download.what, tries or TRIES))
    except (FailedDownload, OSError, ValueError) as error:
        why = f"{url}: {download_error_reason(error)}"
        raise DownloadError(
            f"corpus {name} could not be downloaded ({why}); put the {download.what} at {path}, or "
            "train on another text with --data.corpus python-manual or --data.corpus PATH",
            why,
        ) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        corpus = _with_notes(name, text, url)
        note = (
            f"{path} could not be written ({error.strerror}): the {download.what} is downloaded "
            "every time"
        )
        return dataclasses.replace(corpus, notes=(*corpus.notes, note))
    return _with_notes(name, text, f"{url}, now at {path}")


def _with_notes(name: str, text: str, source: str) -> TextCorpus:
    corpus = TextCorpus(name, source, text)
    return dataclasses.replace(corpus, notes=DOWNLOADS[name].notes(corpus))


def _oz_notes(corpus: TextCorpus) -> tuple[str, ...]:
    if corpus.sha256 == OZ_SHA256:
        return ()
    vocabulary = len(set(corpus.text))
    note = (
        f"this edition of oz is not the original's: {len(corpus.text):,} characters of "
        f"{vocabulary} kinds against {OZ_CHARACTERS:,} of {OZ_VOCABULARY}"
    )
    if vocabulary != OZ_VOCABULARY:
        note += ", so the parameter count differs too"
    return (note,)


def _shakespeare_notes(corpus: TextCorpus) -> tuple[str, ...]:
    if corpus.sha256 == SHAKESPEARE_SHA256:
        return ()
    return (
        f"this shakespeare is not nanoGPT's: {len(corpus.text):,} characters against "
        f"{SHAKESPEARE_CHARACTERS:,}, or others",
    )


def original_form(raw: bytes) -> str:
    """Returns a Project Gutenberg page in the form that the original model was trained on.

    That is the text between the START and END markers, with LF line ends and without outer white
    space, after the byte order mark that began the original's file.

    Raises:
      ValueError: it is not UTF-8, or a marker is missing (an error page, or half of the book).
    """
    text = raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    start = re.search(r"^\*\*\* ?START OF TH[^\n]*\*\*\*[ \t]*$", text, re.MULTILINE)
    end = re.search(r"^\*\*\* ?END OF TH[^\n]*\*\*\*", text, re.MULTILINE)
    if not start or not end or end.start() < start.end():
        which = "START" if not start else "END"
        raise ValueError(f"no {which} marker of Project Gutenberg in {len(raw):,} bytes")
    body = text[start.end() : end.start()].strip()
    if not body:
        raise ValueError("nothing between the markers")
    return "\ufeff" + body


def checked_shakespeare(raw: bytes) -> str:
    """Returns the text as it is served.

    Raises:
      ValueError: it is another (an error page, or half of the text).
    """
    found = hashlib.sha256(raw).hexdigest()
    if found != SHAKESPEARE_SHA256:
        raise ValueError(
            f"{len(raw):,} bytes with sha256 {found[:12]}, not {SHAKESPEARE_SHA256[:12]}"
        )
    return raw.decode("utf-8")


@dataclasses.dataclass(frozen=True)
class Download:
    """A named text that is downloaded once.

    Attributes:
      file: its name in the folder of texts.
      url: its address; the environment variable GPT_JAX_NAME_URL takes precedence.
      what: a word for it, for messages.
      form: from the bytes served to the text; raises ValueError if they are not the text.
      notes: from a corpus to what differs from the usual text of this name, a sentence each.
    """

    file: str
    url: str
    what: str
    form: Callable[[bytes], str]
    notes: Callable[[TextCorpus], tuple[str, ...]]


DOWNLOADS = {
    "oz": Download(OZ_FILE, OZ_URL, "book", original_form, _oz_notes),
    "shakespeare": Download(
        SHAKESPEARE_FILE, SHAKESPEARE_URL, "text", checked_shakespeare, _shakespeare_notes
    ),
}


def _fetch(
    url: str, progress: Callable[[int, int | None], None] | None, what: str, tries: int
) -> bytes:
    limits = DownloadLimits(
        tries=tries,
        pause_seconds=0.5,
        timeout_seconds=TIMEOUT_SECONDS,
        block_bytes=1 << 10,
        total_seconds=TOTAL_SECONDS,
        max_bytes=MAX_DOWNLOAD_BYTES,
    )
    try:
        return fetch(url, limits, progress)
    except TooLarge as error:
        raise ValueError(f"{error}, so not the {what}") from error


def load_python_manual() -> TextCorpus:
    """Returns the help texts of Python's topics, which every machine has."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name].strip() for name in sorted(topics))
    version = ".".join(map(str, sys.version_info[:3]))
    return TextCorpus("python-manual", f"pydoc_data.topics of Python {version}", text)

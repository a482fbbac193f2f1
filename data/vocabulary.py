"""The tokenizer of a preparation: trained on the documents of its plan, or a published one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.config import PrepareConfig
from data.encode import to_user_error
from data.filters import digest, is_validation, reject
from data.sources import documents
from data.sources.documents import BadInput, Document, Plan, Unit
from data.sources.readers import read_unit
from gpt_jax.byte_pairs import Listener
from gpt_jax.errors import UserError
from gpt_jax.tokenizer import BpeTokenizer, CharTokenizer, Tokenizer


def make_tokenizer(
    config: PrepareConfig, plan: Plan, work: Path, listener: Listener | None = None
) -> Tokenizer:
    """Returns the tokenizer that the settings ask for.

    Args:
      config: the settings.
      plan: what there is to read.
      work: has the plan's downloads.
      listener: is told how far the learning of byte pairs is.

    Raises:
      UserError: there is no text to train on, or it is damaged and `on_damage` is "stop".
    """
    if config.tokenizer == "char":
        characters = plan.characters or _characters(config, plan, work)
        return CharTokenizer(characters)
    if config.tokenizer == "bpe":
        assert config.vocab_size is not None  # PrepareConfig checks it
        return BpeTokenizer.train(_sample(config, plan, work), config.vocab_size, listener)
    return BpeTokenizer.published(config.tokenizer)


def _characters(config: PrepareConfig, plan: Plan, work: Path) -> str:
    """Returns the characters of all documents that are kept, and the line feed between them."""
    found = {"\n"}
    limits = config.limits()
    for unit in plan.units:
        for document in _sound(config, unit, work):
            if not reject(document.text, document.language, limits):
                found.update(document.text)
    return "".join(sorted(found))


def _sample(config: PrepareConfig, plan: Plan, work: Path) -> str:
    """Returns the text to train byte pairs on: training documents, at most `sample_mb`.

    Each unit contributes its beginning: an equal share of the sample, and at least UNIT_BYTES; if
    there are too many units for that, evenly spaced ones are chosen. A single text that is not
    larger than the sample is taken whole.
    """
    limits, budget = config.limits(), config.sample_mb << 20
    units = [unit for unit in plan.units if unit.get("split") != "val"]
    n = min(len(units), max(1, budget // documents.UNIT_BYTES))
    whole = plan.by_position and sum(unit["size"] for unit in units) <= budget
    texts: list[str] = []
    left = budget
    for i in range(n):
        quota = left if whole else left // (n - i)
        for document in _sound(config, units[i * len(units) // n], work):
            if not document.split:
                if reject(document.text, document.language, limits):
                    continue
                if is_validation(digest(document.text), config.val_fraction):
                    continue
            text = document.text.encode("utf-8")[:quota].decode("utf-8", "ignore")
            size = len(text.encode("utf-8"))
            texts.append(text if document.split else text + "\n")
            quota, left = quota - size, left - size
            if quota < 4:  # bytes of a character
                break
    if not texts:
        raise UserError(
            f"--input {config.input} has no training document to learn byte pairs from; use a "
            "smaller --val-fraction or more documents"
        )
    return "".join(texts)


def _sound(config: PrepareConfig, unit: Unit, work: Path) -> Iterator[Document]:
    """Yields the valid documents of a unit; damage is reported when it is encoded."""
    try:
        for document in read_unit(config, unit, work):
            if isinstance(document, Document):
                yield document
    except BadInput as error:
        if config.on_damage == "stop":
            raise to_user_error(error) from error

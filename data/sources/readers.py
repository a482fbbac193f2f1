"""The sources of documents: plans that divide a source into units, and the reading of one unit.

Units (see `documents.py`) are in the order of the corpus and are read independently of each other,
in any process, without holding a unit in memory. Each kind of source has a module: `text.py`,
`bordered.py`, `json_lines.py`, `parquet.py`, `hugging_face.py`, `common_crawl.py`.

A reader yields `Document`s, and a `BadInput` for a bad record; for a truncated file, or one of
another kind, it raises `BadInput`. No reader takes a truncated file for a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.config import PrepareConfig
from data.sources import bordered, common_crawl, hugging_face, json_lines, parquet, text
from data.sources.documents import BadInput, Document, Plan, Unit, file_unit, unit_bytes_of
from data.sources.local_files import local_files
from gpt_jax.errors import UserError


def make_plan(config: PrepareConfig, work: Path) -> Plan:
    """Returns the plan of a source; `work` keeps downloads that it needed.

    Raises:
      UserError: there is nothing to read, or it is of another kind; which, and a way out.
      TrainingError: it is not available now.
    """
    if config.source == "hf":
        return hugging_face.plan(config)
    if config.source == "wet" and common_crawl.is_crawl(config.input):
        return common_crawl.plan(config, work)
    files, facts = local_files(config)
    is_bordered = bool(config.end_of_text_lines)
    if config.source == "text" and len(files) == 1 and not is_bordered:
        path, with_characters = files[0][0], config.tokenizer == "char"
        units, characters = text.plan_text(path, config.val_fraction, with_characters)
        return Plan(units, files, True, characters, facts=facts)
    if config.source == "text" and not is_bordered:
        text.check_are_prose(config.input, [path for path, _, _ in files])
    plan_file = {
        "text": bordered.plan if is_bordered else text.plan_small,
        "jsonl": json_lines.plan,
        "parquet": parquet.plan,
        "wet": lambda path, size, unit_bytes: [file_unit("wet", path, size)],
    }[config.source]
    unit_bytes = unit_bytes_of(facts["stored_bytes"])
    units, damaged = [], []
    for path, size, _ in files:
        try:
            units.extend(plan_file(path, size, unit_bytes))
        except BadInput as error:
            if config.on_damage == "stop":
                raise UserError(f"{error}; repair or remove it, or use --on-damage skip") from error
            damaged.append(str(error))
    if config.source == "text" and not is_bordered:
        units = text.grouped(units, unit_bytes)
    if not units:
        what = "is empty or damaged" if damaged else "has no rows"
        raise UserError(f"--input {config.input}: every file {what}, so there is no document")
    return Plan(units, files, damaged=tuple(damaged), facts=facts)


def read_unit(config: PrepareConfig, unit: Unit, work: Path) -> Iterator[Document | BadInput]:
    """Yields the documents of a unit, and a `BadInput` for each bad record.

    Raises:
      BadInput: the file can't be read to its end.
      UserError, TrainingError: it is not available.
    """
    kind = unit["kind"]
    try:
        if kind == "piece":
            yield from text.read_piece(unit)
        elif kind == "files":
            yield from text.read_files(unit, config.max_document_mb << 20)
        elif kind == "bordered":
            yield from bordered.read(unit, config.max_document_mb << 20)
        elif kind == "lines":
            yield from json_lines.read(unit, config)
        elif kind == "parquet":
            yield from parquet.read(unit, config)
        elif kind == "hf":
            yield from hugging_face.read(unit, config)
        else:
            yield from common_crawl.read(unit, config, work)
    except (EOFError, OSError) as error:  # gzip's and zstd's own, and the disk's
        why = getattr(error, "strerror", None) or str(error) or "it breaks off"
        raise BadInput(f"{unit['name']} can't be read to its end: {why}") from error

"""A run's folder: the names of its files, its creation, and their validation. Never imports jax.

config.json     the settings, the corpus really used, what it started from, versions and numerics,
                the run's id, the tokenizer's sha256, a format number
tokenizer.json  the vocabulary, whole: a run is read without a network
metrics.jsonl   one row for each chunk of steps, with the evaluations
summary.json    the exact evaluation at the end; exists once the run is finished
samples.txt     text written at the end
samples.jsonl   a short text for each evaluation
loss.png, .svg  the losses over the steps
tensorboard/    the same rows as TensorBoard events
checkpoints/    see checkpoints.py
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from gpt_jax import hf
from gpt_jax.config import Config, from_dict, override, to_dict
from gpt_jax.config.fields import get_field
from gpt_jax.devices import describe_machine
from gpt_jax.errors import ConfigError, UserError, differences
from gpt_jax.input_pipeline.dataset import Corpus
from gpt_jax.storage import NewerFormatError, open_folder, read_record, read_versioned
from gpt_jax.terminal import program
from gpt_jax.tokenizer import TOKENIZER_FILE as TOKENIZER_FILE
from gpt_jax.tokenizer import Tokenizer, load_tokenizer

CHECKPOINTS = "checkpoints"
CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
SAMPLES_FILE = "samples.txt"
FIRST_FILES = (TOKENIZER_FILE, CONFIG_FILE)  # with the last it is a run
FILES = (
    *FIRST_FILES,
    "metrics.jsonl",
    SUMMARY_FILE,
    SAMPLES_FILE,
    "samples.jsonl",
    "loss.png",
    "loss.svg",
)
REPAIR = "; restore the file, or choose another --run-dir"
# What config.json has beside the settings.
RECORDS = ("format", "corpus", "origin", "versions", "machine", "numerics", "id")
RECORDS += ("tokenizer_sha256",)
FORMAT = 1  # of a run folder; a reader refuses a newer one


# What a run keeps of its settings from its first checkpoint to its last, `KEPT` of them all.
KEPT = ("seed", "init_seed", "data_seed", "dropout_seed", "init_from", "model", "optim")
KEPT += ("data.tokenizer", "data.vocab_size", "data.train_fraction", "data.order")
KEPT += ("train.batch_size", "train.on_divergence", "train.spike", "train.spike_window")
KEPT += ("branch_from", "at_step")
FREE = ("model.attention", "model.remat")  # see `training.resume`, of these and of the next
FREE += ("optim.schedule_steps", "optim.decay_steps", "optim.floor")


# What config.json had from the first release on, whose default is not meant where it is missing.
FIRST_SETTINGS = {"seed", "data.corpus", "data.train_fraction", "train.batch_size", "train.steps"}
FIRST_SETTINGS |= {f"model.{n}" for n in ("n_layer", "n_head", "n_embd", "block_size", "dropout")}
FIRST_SETTINGS |= {f"optim.{n}" for n in ("learning_rate", "weight_decay", "beta1", "beta2")}


@dataclasses.dataclass(frozen=True)
class CorpusRecord:
    """What config.json must say of the corpus; the whole record is free."""

    name: str
    sha256: str
    requested: str | None = None


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What config.json says beside the settings.

    Attributes:
      format: of the folder.
      corpus: what it was trained on.
      origin: what its parameters started from; None where that was random.
      versions: of the packages that began it.
      machine: that began it, in words; None in earlier releases.
      numerics: how it is computed, see `gpt_jax/numerics.py`; None in earlier releases.
      id: of the run, as its checkpoints have it; None in earlier releases.
      tokenizer_sha256: of tokenizer.json; None in earlier releases.
    """

    format: int
    corpus: CorpusRecord
    origin: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    machine: str | None = None
    numerics: dict[str, Any] | None = None
    id: str | None = None
    tokenizer_sha256: str | None = None


def create_run(
    run_dir: str | os.PathLike[str],
    config: Config,
    corpus: Corpus | dict[str, Any],
    tokenizer: Tokenizer,
    origin: dict[str, Any] | None = None,
    numerics: dict[str, Any] | None = None,
) -> None:
    """Creates a run's folder, whole or not at all.

    Args:
      run_dir: the folder.
      config: the settings.
      corpus: what is trained on.
      tokenizer: of the corpus.
      origin: the record of the initial parameters' source.
      numerics: the record of how it is computed.

    The corpus may be given by its record.

    Raises:
      UserError: it can't be written.
    """
    versions = {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax")}
    begun = {
        **{k: v for k, v in to_dict(config).items() if k != "run_dir"},
        "corpus": corpus if isinstance(corpus, dict) else corpus.record(),
        "origin": origin,
    }
    # No random number: runs that were begun alike have the same checkpoints.
    identity = hashlib.sha256(json.dumps(begun, sort_keys=True).encode()).hexdigest()[:16]
    tokens = tokenizer.to_json()
    values = {
        "format": FORMAT,
        **begun,
        "versions": {"python": platform.python_version(), **versions},
        "machine": describe_machine(),
        "numerics": numerics,
        "id": identity,
        "tokenizer_sha256": hashlib.sha256(tokens.encode()).hexdigest(),
    }
    contents = (tokens, _to_text(values))
    try:
        open_folder(run_dir).create(dict(zip(FIRST_FILES, contents, strict=True)))
    except OSError as error:
        raise UserError(
            f"cannot make the run folder {run_dir}: {error.strerror or error}; choose another "
            "--run-dir"
        ) from error


def _to_text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2) + "\n"


def update_config(run_dir: str | os.PathLike[str], config: Config) -> None:
    """Updates, in config.json, the settings that may change on resume; see `training.resume`."""
    values, now = _read_json(run_dir, CONFIG_FILE), to_dict(config)
    values |= {name: now[name] for name in ("model", "train", "sample")}
    if config.optim.schedule != "constant":
        values["optim"] = now["optim"]
    open_folder(run_dir).write(CONFIG_FILE, _to_text(values))


def is_run(run_dir: str | os.PathLike[str]) -> bool:
    return open_folder(run_dir).has(CONFIG_FILE)


def read_config(run_dir: str | os.PathLike[str]) -> tuple[Config, dict[str, Any]]:
    """Returns a run's settings and the record of its corpus; {} for a GPT-2 folder, which has none.

    Raises:
      UserError: the folder is no run, its config is damaged, or a newer program wrote it.
    """
    folder = open_folder(run_dir)
    path = folder.path / CONFIG_FILE
    if not is_run(folder):
        whats = {"": "does not exist", "folder": "has no config.json", "file": "is a file"}
        what = whats[folder.kind()]
        raise UserError(f"{run_dir} is not a run: it {what}; train one with: {program()} train")
    values = _read_json(folder, CONFIG_FILE, follow=True)
    if "model_type" in values:  # transformers wrote it; in the hub's cache it is a link
        model = hf.load_config(folder.local_path("a GPT-2 folder"))
        return Config(run_dir=str(run_dir), model=model), {}
    folder.inside(CONFIG_FILE)  # which refuses a link
    _check_record(values, path)
    if missing := sorted(FIRST_SETTINGS - _flat(values).keys()):
        raise UserError(f"{path} is damaged: it has no {missing[0]}{REPAIR}")
    settings = {k: v for k, v in values.items() if k not in RECORDS}
    try:
        config = from_dict({**settings, "run_dir": str(run_dir)})
    except ConfigError as error:
        raise UserError(f"{path} is damaged: {error}{REPAIR}") from error
    if not config.model.vocab_size:
        raise UserError(f"{path} is damaged: it has no model.vocab_size{REPAIR}")
    for name in ("model.dtype", "train.micro_batch"):
        if get_field(config, name) == "auto":  # a run records what was chosen
            raise UserError(f"{path} is damaged: its {name} is auto{REPAIR}")
    if config.train.micro_batch and "dropout_masks" not in values["train"]:  # an older run
        config = override(config, {"train.dropout_masks": "micro_batch"})
    return config, values["corpus"]


def _check_record(values: dict[str, Any], path: Path) -> RunRecord:
    """Returns what config.json says beside the settings; raises UserError where it is damaged."""
    try:
        return read_versioned(values, RunRecord, FORMAT)
    except NewerFormatError as error:
        raise UserError(f"{path} {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}{REPAIR}") from error


def run_record(run_dir: str | os.PathLike[str]) -> RunRecord:
    """Returns what a run's config.json says beside the settings.

    Raises:
      UserError: it is missing or damaged.
    """
    folder = open_folder(run_dir)
    return _check_record(_read_json(folder, CONFIG_FILE), folder.path / CONFIG_FILE)


def read_tokenizer(run_dir: str | os.PathLike[str], vocab_size: int) -> Tokenizer:
    """Returns a run's tokenizer.

    Args:
      run_dir: the run's folder.
      vocab_size: of its model.

    Raises:
      UserError: it is missing, damaged, or not the one that the run was made with.
    """
    tokenizer = load_tokenizer(run_dir, run_record(run_dir).tokenizer_sha256)
    if tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{run_dir} is damaged: its tokenizer has {tokenizer.vocab_size} tokens, its config "
            f"{vocab_size}"
        )
    return tokenizer


def read_id(run_dir: str | os.PathLike[str]) -> str | None:
    """Returns a run's id; None in a folder of an earlier release, and in one that is no run."""
    return run_record(run_dir).id if is_run(run_dir) else None


def read_settings(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns config.json as it is, to be compared with another; {} in a folder that is no run."""
    return _read_json(run_dir, CONFIG_FILE) if is_run(run_dir) else {}


def changed_settings(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Returns a line for each setting that no run changes and that differs between two records.

    Args:
      ours: config.json. One with an id has each setting of the model that this release knows.
      theirs: the settings that a checkpoint was saved with.
    """
    here, there = _flat(ours), _flat(theirs)
    known = _flat({"model": to_dict(Config())["model"]}) if ours.get("id") else {}
    here = {**{name: "left out" for name in known if name not in here}, **here}
    names = [name for name in here if name in there and name not in FREE]
    names = [n for n in names if n in KEPT or n.partition(".")[0] in KEPT]
    return differences({n: there[n] for n in names}, {n: here[n] for n in names})


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by their dotted names."""
    flat = {}
    for name, value in values.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def read_init_from(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the record of what a run started from; {} where that was random parameters."""
    return run_record(run_dir).origin or {}


@dataclasses.dataclass(frozen=True)
class ExactEvaluation:
    """What a summary must say of the validation split, and what others read of it.

    Attributes:
      nats_per_token: mean cross-entropy.
      bits_per_byte: None where the tokens stand for no text.
      tokens_predicted: None in earlier releases.
    """

    nats_per_token: float
    bits_per_byte: float | None = None
    tokens_predicted: int | None = None


@dataclasses.dataclass(frozen=True)
class Summary:
    """What summary.json must say; the rest of it is for readers."""

    step: int
    val: ExactEvaluation


def read_summary(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns a finished run's summary; {} for a run that is not finished."""
    folder = open_folder(run_dir)
    if not folder.has(SUMMARY_FILE):
        return {}
    values = _read_json(folder, SUMMARY_FILE)
    try:
        read_record(values, Summary)
    except ValueError as error:
        path = folder.path / SUMMARY_FILE
        raise UserError(
            f"{path} is damaged: it has no evaluation of a step ({error}){REPAIR}"
        ) from None
    return values


def _read_json(
    run_dir: str | os.PathLike[str], name: str, *, follow: bool = False
) -> dict[str, Any]:
    folder = open_folder(run_dir)
    try:
        return folder.read_json(name, follow=follow)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.path / name} is damaged: {error}{REPAIR}") from error


def clear_unfinished(run_dir: str | os.PathLike[str]) -> None:
    """Removes what killed processes left of files that they were writing; the run is locked."""
    names = "|".join(re.escape(name) for name in FILES)
    open_folder(run_dir).remove_unfinished(f"({names})")


def check_folder(run_dir: str | os.PathLike[str]) -> None:
    """Raises UserError where a folder that is no run can't become one."""
    folder = open_folder(run_dir)
    if not folder.path.name:
        raise UserError(f"run_dir {run_dir} is not a folder's name; choose another --run-dir")
    if folder.kind() == "file":
        raise UserError(f"run_dir {run_dir} is a file; choose another --run-dir")
    try:
        there = folder.obstacles(FIRST_FILES)
    except OSError as error:
        raise UserError(f"run_dir {run_dir} can't be read: {error.strerror or error}") from error
    if there:
        raise UserError(
            f"run_dir {run_dir} holds other files ({there[0]}) and no config.json; choose "
            "another --run-dir"
        )

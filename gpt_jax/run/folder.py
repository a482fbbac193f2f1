"""A run's folder: the names of its files, its creation, and their validation. Never imports jax.

config.json     the settings, the corpus really used, what it started from, versions, a format
                number
tokenizer.json  the vocabulary, whole: a run is read without a network
metrics.jsonl   one row for each chunk of steps, with the evaluations
summary.json    the exact evaluation at the end; exists once the run is finished
samples.txt     text written at the end
loss.png, .svg  the losses over the steps
tensorboard/    the same rows as TensorBoard events
checkpoints/    see checkpoints.py
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Any

from gpt_jax import hf
from gpt_jax.config import Config, from_dict, to_dict
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.input_pipeline.dataset import Corpus
from gpt_jax.storage import open_folder
from gpt_jax.tokenizer import TOKENIZER_FILE as TOKENIZER_FILE
from gpt_jax.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
SAMPLES_FILE = "samples.txt"
FIRST_FILES = (TOKENIZER_FILE, CONFIG_FILE)  # with the last it is a run
REPAIR = "; restore the file, or choose another --run-dir"
FORMAT = 1  # of a run folder; a reader refuses a newer one


def create_run(
    run_dir: str | os.PathLike[str],
    config: Config,
    corpus: Corpus | dict[str, Any],
    tokenizer: Tokenizer,
    origin: dict[str, Any] | None = None,
) -> None:
    """Creates a run's folder, whole or not at all; origin records the initial parameters' source.

    The corpus may be given by its record.

    Raises:
      UserError: it can't be written.
    """
    versions = {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax")}
    values = {
        "format": FORMAT,
        **{k: v for k, v in to_dict(config).items() if k != "run_dir"},
        "corpus": corpus if isinstance(corpus, dict) else corpus.record(),
        "origin": origin,
        "versions": {"python": platform.python_version(), **versions},
    }
    contents = (tokenizer.to_json(), _to_text(values))
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
        raise UserError(f"{run_dir} is not a run: it {what}; train one with: python main.py train")
    values = _read_json(folder, CONFIG_FILE)
    if "model_type" in values:  # transformers wrote it
        model = hf.load_config(folder.local_path("a GPT-2 folder"))
        return Config(run_dir=str(run_dir), model=model), {}
    written = values.pop("format", None)
    if not isinstance(written, int) or isinstance(written, bool) or written < 1:
        raise UserError(f"{path} is damaged: its format is {written!r}{REPAIR}")
    if written > FORMAT:
        raise UserError(
            f"{path} has format {written}, from a newer gpt_jax; this one reads up to {FORMAT}"
        )
    corpus = values.pop("corpus", None)
    for record in ("versions", "origin"):
        values.pop(record, None)
    if not isinstance(corpus, dict) or not isinstance(corpus.get("sha256"), str):
        raise UserError(f"{path} is damaged: it has no record of the corpus{REPAIR}")
    try:
        config = from_dict({**values, "run_dir": str(run_dir)})
    except ConfigError as error:
        raise UserError(f"{path} is damaged: {error}{REPAIR}") from error
    if not config.model.vocab_size:
        raise UserError(f"{path} is damaged: it has no model.vocab_size{REPAIR}")
    return config, corpus


def read_init_from(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the record of what a run started from; {} where that was random parameters."""
    origin = _read_json(run_dir, CONFIG_FILE).get("origin")
    return origin if isinstance(origin, dict) else {}


def read_summary(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns a finished run's summary; {} for a run that is not finished."""
    folder = open_folder(run_dir)
    if not folder.has(SUMMARY_FILE):
        return {}
    values = _read_json(folder, SUMMARY_FILE)
    try:
        float(values["val"]["nats_per_token"]), int(values["step"])
    except (KeyError, TypeError, ValueError):
        path = folder.path / SUMMARY_FILE
        raise UserError(f"{path} is damaged: it has no evaluation of a step{REPAIR}") from None
    return values


def _read_json(run_dir: str | os.PathLike[str], name: str) -> dict[str, Any]:
    folder = open_folder(run_dir)
    try:
        return folder.read_json(name)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.path / name} is damaged: {error}{REPAIR}") from error


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

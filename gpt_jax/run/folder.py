"""A run's folder: what its files are called, made whole, read with care. Never imports jax.

config.json     the settings, the corpus really used, what it started from, versions, a format
                number
tokenizer.json  the vocabulary, whole: a run is read without a network
metrics.jsonl   one row for each chunk of steps, with the evaluations
summary.json    the exact evaluation at the end; there once the run is finished
samples.txt     text written at the end
loss.png, .svg  the losses over the steps
tensorboard/    the same rows as TensorBoard events
checkpoints/    see checkpoint.py
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from gpt_jax import hf
from gpt_jax.config import Config, from_dict, to_dict
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.input_pipeline.dataset import Corpus
from gpt_jax.storage import entries, is_remote, write_atomically
from gpt_jax.tokenizer import TOKENIZER_FILE as TOKENIZER_FILE
from gpt_jax.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
REPAIR = "; restore the file, or choose another --run-dir"
FORMAT = 1  # of a run folder; a reader refuses a newer one


def create_run(
    run_dir: Path,
    config: Config,
    corpus: Corpus,
    tokenizer: Tokenizer,
    origin: dict[str, Any] | None = None,
) -> None:
    """Makes a run's folder, whole or not at all; origin is the record of what it starts from.

    Raises:
      UserError: it can't be written.
    """
    versions = {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax")}
    values = {
        "format": FORMAT,
        **{k: v for k, v in to_dict(config).items() if k != "run_dir"},
        "corpus": corpus.record(),
        "origin": origin,
        "versions": {"python": platform.python_version(), **versions},
    }
    try:
        if is_remote(run_dir):
            _write_start(run_dir, values, tokenizer)
        else:
            temporary = run_dir.with_name(f".{run_dir.name}.{os.getpid()}")
            try:
                temporary.mkdir(parents=True)
                _write_start(temporary, values, tokenizer)
                if os.path.isdir(run_dir):
                    run_dir.rmdir()  # only ever an empty one: check_folder has seen to that
                temporary.rename(run_dir)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cannot make the run folder {run_dir}: {error.strerror or error}; choose another "
            "--run-dir"
        ) from error


def _write_start(folder: Path, values: dict[str, Any], tokenizer: Tokenizer) -> None:
    write_atomically(folder / TOKENIZER_FILE, tokenizer.to_json())
    write_atomically(folder / CONFIG_FILE, json.dumps(values, indent=2) + "\n")  # makes it a run


def update_config(run_dir: Path, config: Config) -> None:
    """Changes what may change when a run goes on, in its config.json; see `start`."""
    values, now = _read_json(run_dir / CONFIG_FILE), to_dict(config)
    values["model"], values["train"] = now["model"], now["train"]
    if config.optim.schedule != "constant":
        values["optim"] = now["optim"]
    write_atomically(run_dir / CONFIG_FILE, json.dumps(values, indent=2) + "\n")


def is_run(run_dir: Path) -> bool:
    path = run_dir / CONFIG_FILE
    # Path.is_file raises on too long a name
    return path.is_file() if is_remote(path) else os.path.isfile(path)


def read_config(run_dir: Path) -> tuple[Config, dict[str, Any]]:
    """Returns a run's settings and the record of its corpus; {} for a GPT-2 folder, which has none.

    Raises:
      UserError: the folder is no run, its config is damaged, or a newer program wrote it.
    """
    path = run_dir / CONFIG_FILE
    if not is_run(run_dir):
        what = "does not exist"
        if os.path.lexists(run_dir):
            what = "has no config.json" if os.path.isdir(run_dir) else "is a file"
        raise UserError(f"{run_dir} is not a run: it {what}; train one with: python main.py train")
    values = _read_json(path)
    if "model_type" in values:  # transformers wrote it
        if is_remote(run_dir):
            raise UserError(f"{run_dir} is a GPT-2 folder; copy it to this machine")
        return Config(run_dir=str(run_dir), model=hf.load_config(run_dir)), {}
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


def read_init_from(run_dir: Path) -> dict[str, Any]:
    """Returns the record of what a run started from; {} where that was random parameters."""
    origin = _read_json(run_dir / CONFIG_FILE).get("origin")
    return origin if isinstance(origin, dict) else {}


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Returns a finished run's summary; {} for a run that is not finished."""
    path = run_dir / SUMMARY_FILE
    if not path.exists():
        return {}
    values = _read_json(path)
    try:
        float(values["val"]["nats_per_token"]), int(values["step"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged: it has no evaluation of a step{REPAIR}") from None
    return values


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}{REPAIR}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it holds no settings{REPAIR}")
    return values


def check_folder(run_dir: Path) -> None:
    """Raises UserError where a folder that is no run can't become one."""
    if not run_dir.name:
        raise UserError(f"run_dir {run_dir} has no name of its own; choose another --run-dir")
    remote = is_remote(run_dir)
    if not remote and os.path.exists(run_dir) and not run_dir.is_dir():
        raise UserError(f"run_dir {run_dir} is a file; choose another --run-dir")
    try:
        there = entries(run_dir) if remote or os.path.isdir(run_dir) else []
    except OSError as error:
        raise UserError(f"run_dir {run_dir} can't be read: {error.strerror}") from error
    if remote:  # where a kill may have come before config.json
        there = [path for path in there if path.name != TOKENIZER_FILE]
    if there:
        raise UserError(
            f"run_dir {run_dir} holds other files ({there[0].name}) and no config.json; choose "
            "another --run-dir"
        )

"""Initial parameters from another run or from a GPT-2 folder."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from gpt_jax.config import Config, override
from gpt_jax.config.fields import get_field
from gpt_jax.errors import ConfigError, UserError, differences
from gpt_jax.hf import find
from gpt_jax.model import Params
from gpt_jax.parallel.mesh import host_device, make_mesh
from gpt_jax.run.folder import is_run, read_config, read_init_from
from gpt_jax.run.load import Run, load_run
from gpt_jax.storage import open_folder, to_folder

# Settings of a model that do not depend on its parameters: how it is computed.
COMPUTE_SETTINGS = ("model.dtype", "model.remat", "model.attention")
# Those that a run may have of its own beside them; a block_size must not be larger.
FREE_SETTINGS = ("model.dropout", "model.attention_dropout", "model.embedding_dropout")
FREE_SETTINGS += ("model.residual_init_scale", "model.block_size")


def start_from(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns the settings for a run that starts from `config.init_from`.

    Args:
      config: with init_from, a path or a name on the hub. Of its model settings those that say how
        it is computed (`COMPUTE_SETTINGS`) are used; the others are the folder's, or those of the
        run in `config.run_dir` where that was begun so.
      values: dotted settings to replace after that.

    Raises:
      ConfigError: a value breaks a rule, or chooses a tokenizer: the folder has one.
      UserError: the folder can't be read.
    """
    for name in ("data.tokenizer", "data.vocab_size"):
        if name in values:
            raise ConfigError(
                f"{name}={values[name]} can't be chosen: init_from={config.init_from} brings its "
                "tokenizer; leave it out"
            )
    run_dir = to_folder(config.run_dir)
    theirs = read_config(run_dir)[0] if is_run(run_dir) else config
    if theirs.init_from == config.init_from and is_run(run_dir):
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(
                config.data, tokenizer=theirs.data.tokenizer, vocab_size=theirs.data.vocab_size
            ),
        )
    else:
        theirs, _ = read_config(find(config.init_from or ""))
    check_same_model(config.init_from, theirs, values)
    how = {name: get_field(config, name) for name in COMPUTE_SETTINGS}
    return override(dataclasses.replace(config, model=theirs.model), {**how, **values})


def check_same_model(init_from: str | None, theirs: Config, values: Mapping[str, Any]) -> None:
    """Raises ConfigError where dotted settings of the model contradict those to start from."""
    free = {*COMPUTE_SETTINGS, *FREE_SETTINGS}
    if values.get("model.block_size", 0) > theirs.model.block_size:
        free.remove("model.block_size")
    ours = {name: value for name, value in values.items() if name not in free}
    different = differences({name: get_field(theirs, name) for name in ours}, ours)
    if different:
        raise ConfigError(
            f"init_from={init_from} is another model: {'; '.join(different)}. Leave these "
            "settings out; only dropout, attention_dropout, embedding_dropout, "
            "residual_init_scale, dtype, remat and attention may differ, and block_size be smaller"
        )


def load_source(config: Config, step: int | None = None) -> Run:
    """Returns the run that `config` starts from, with the parameters of its checkpoint.

    They are in the host's memory: a device may be too small for them, with a mesh of many.

    Args:
      config: with `init_from` and `checkpoint`.
      step: of the checkpoint that was chosen when the run began; it may not be the newest any more.
    """
    on_host = make_mesh(1, [host_device()])
    return load_run(find(config.init_from or ""), step or config.checkpoint, mesh=on_host)


def initial_params(source: Run, config: Config) -> tuple[Params, dict[str, Any]]:
    """Returns the parameters to start a run of `config` from, and the record of their source.

    Positions beyond the run's block_size are cut.

    Raises:
      ConfigError: a setting of the model is not that of the source; the message names each.
    """
    theirs, ours = source.config.model, config.model
    values = {f"model.{name}": value for name, value in dataclasses.asdict(ours).items()}
    del values["model.vocab_size"]  # comes with the tokenizer
    check_same_model(config.init_from, source.config, values)
    params = jax.tree.map(np.asarray, source.params)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).data)
    origin = {
        "source": config.init_from,
        "path": str(open_folder(source.run_dir).absolute()),
        "step": source.step,
        "block_size": theirs.block_size,
        "sha256": digest.hexdigest(),
    }
    if "positions" in params:
        params = {**params, "positions": params["positions"][: ours.block_size]}
    return params, origin


def reload_initial_params(config: Config) -> tuple[Params, dict[str, Any]]:
    """Returns what the run of `config` started from, as `initial_params` does.

    Raises:
      UserError: it is not available any more, or has changed.
    """
    recorded = read_init_from(to_folder(config.run_dir))
    params, origin = initial_params(load_source(config, recorded.get("step")), config)
    if origin["sha256"] != recorded.get("sha256"):
        raise UserError(
            f"init_from={config.init_from} has other parameters than when {config.run_dir} began; "
            "restore them, or choose another --run-dir"
        )
    return params, origin

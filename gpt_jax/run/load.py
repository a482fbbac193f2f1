"""A run is a folder; a `Run` is that folder in memory: settings, tokenizer, model and parameters.

`run/folder.py` lists its files. Everything that reads a run takes the folder and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax import hf, numerics
from gpt_jax.config import Config, MeshConfig, ModelConfig
from gpt_jax.config.fields import plain
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.hf import tokenizer as hf_tokenizer
from gpt_jax.model import GPT, Params, decoding_params
from gpt_jax.parallel.mesh import params_mesh
from gpt_jax.parallel.sharding import state_shardings
from gpt_jax.run import checkpoints
from gpt_jax.run.folder import read_config, read_summary, read_tokenizer
from gpt_jax.run.metrics import read_rows
from gpt_jax.storage import open_folder
from gpt_jax.terminal import say
from gpt_jax.tokenizer import END_OF_TEXT, Tokenizer

prepare_decoding = jax.jit(decoding_params, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with all that belongs to it.

    Attributes:
      run_dir: the folder.
      config: the settings; `config.model` builds the model.
      corpus: the record of the corpus it was trained on (name, sha256, characters, ...); {} for a
        GPT-2 folder.
      tokenizer: text to ids and back.
      model: the linen module.
      params: float32 tree; `model.apply({"params": params}, tokens_BT)` gives logits.
      step: optimizer steps that made the parameters.
      rows: of metrics.jsonl.
      summary: of the finished run, with its exact evaluation; empty before that.
    """

    run_dir: Path
    config: Config
    corpus: dict[str, Any]
    tokenizer: Tokenizer
    model: GPT
    params: Params
    step: int
    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    @functools.cached_property
    def decode_params(self) -> Params:
        """The parameters as decoding reads them, see `gpt_jax.model.decoding_params`."""
        return prepare_decoding(self.config.model, self.params)


@numerics.fixed()
def load_run(
    run_dir: str | os.PathLike[str],
    checkpoint: str | int = "newest",
    *,
    mesh: MeshConfig | jax.sharding.Mesh | None = None,
    which: str | int | None = None,
) -> Run:
    """Returns the run of a folder, with the parameters of one of its checkpoints.

    A GPT-2 folder is read as a run of 0 steps without a corpus.

    Args:
      run_dir: the folder.
      checkpoint: "newest", the newest valid one; "best", the one with the lowest validation loss;
        or a step.
      mesh: over how many devices of this process, on the axes fsdp and tensor, the parameters are
        split. None is the mesh of training, on as many of its devices as there are here. A mesh
        of jax's is taken as it is; over several hosts, each of which calls this.
      which: an older name of `checkpoint`.

    Raises:
      ConfigError: `mesh` can't split the parameters evenly.
      UserError: the folder is no run, has no such checkpoint, or is damaged.
    """
    checkpoint = plain(checkpoint if which is None else which)
    run_dir = open_folder(run_dir).path
    config, corpus = read_config(run_dir)
    if not corpus:
        if checkpoint != "newest":
            raise UserError(
                f"{run_dir} is a GPT-2 folder, without checkpoints; leave {checkpoint} out"
            )
        tokenizer = hf_tokenizer.load_tokenizer(run_dir, config.model.vocab_size)
        params = hf.load(run_dir)[1]
        params = jax.device_put(params, _shardings(params, config, mesh))
        return Run(run_dir, config, corpus, tokenizer, GPT(config.model), params, 0, [], {})
    tokenizer = read_tokenizer(run_dir, config.model.vocab_size)
    model = GPT(config.model)
    step, messages = checkpoints.newest_valid(run_dir, _find_checkpoints(run_dir, checkpoint))
    if not step:
        raise UserError(f"{run_dir} has no checkpoint yet; resume it with the same command")
    params = checkpoints.load_params(run_dir, step, _params_target(config, mesh))
    for message in messages:
        say(f"note: {message}; using step {step}")
    summary = read_summary(run_dir)
    return Run(
        run_dir=run_dir,
        config=config,
        corpus=corpus,
        tokenizer=tokenizer,
        model=model,
        params=params,
        step=step,
        rows=read_rows(run_dir),
        summary=summary if summary.get("step") == step else {},
    )


def _params_target(config: Config, mesh: MeshConfig | jax.sharding.Mesh | None) -> Params:
    """Returns the parameters' shapes, dtypes and shardings; see `load_run`."""
    shapes = _param_shapes(config.model)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        _shardings(shapes, config, mesh),
    )


def _shardings(
    params: Params, config: Config, requested: MeshConfig | jax.sharding.Mesh | None
) -> Params:
    """Returns the sharding of each parameter: its share on each device, or all on the first."""
    if isinstance(requested, jax.sharding.Mesh):
        return state_shardings(params, requested)
    mesh = params_mesh(requested or config.mesh, config.model.kv_heads, n_embd=config.model.n_embd)
    if requested and (n := abs(requested.fsdp * requested.tensor)) > mesh.size:
        raise ConfigError(
            f"mesh.fsdp={requested.fsdp} and mesh.tensor={requested.tensor} ask for {n} devices, "
            f"and {mesh.size} of the {len(jax.local_devices())} here can split the model so"
        )
    if mesh.size > 1:
        return state_shardings(params, mesh)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: device, params)


@functools.lru_cache(maxsize=8)
def _param_shapes(model: ModelConfig) -> Params:
    init = functools.partial(jax.eval_shape, GPT(model).init)
    return init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def _find_checkpoints(run_dir: Path, checkpoint: str | int) -> list[int]:
    """Returns the steps that `checkpoint` may mean, ascending; see `load_run`."""
    there = checkpoints.steps(run_dir)
    if checkpoint == "newest":
        return there
    step: int | str | None = checkpoint
    if checkpoint == "best":
        rows = [row for row in read_rows(run_dir) if "val_loss" in row]
        step = checkpoints.best_step(run_dir, {row["step"]: row["val_loss"] for row in rows})
    if isinstance(step, str) and step.isdecimal():
        step = int(step)
    if isinstance(step, str | bool):
        raise UserError(f"checkpoint={step!r} must be newest, best or a step")
    if step not in there:
        what = f"step {checkpoint}" if step is not None else "an evaluated step"
        raise UserError(
            f"{run_dir} has no checkpoint of {what}; it has those of "
            f"{', '.join(map(str, there)) or 'none'} (see --train.keep-interval)"
        )
    return [step]


def export(run: Run, folder: Path) -> None:
    """Writes a run's model and tokenizer as a GPT-2 folder that transformers loads.

    Raises:
      ConfigError: GPT-2 does not support a setting of the model.
      UserError: the folder holds a model already or can't be written.
    """
    special = getattr(run.tokenizer, "special_tokens", {})
    hf.save(folder, run.config.model, run.params, end_token=special.get(END_OF_TEXT))
    hf_tokenizer.save_tokenizer(folder, run.tokenizer, run.config.model.block_size)

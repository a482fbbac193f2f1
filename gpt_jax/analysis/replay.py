"""One training step of a run, recomputed: its batch, the loss of each sequence, the gradient.

The state before the step is recomputed from the last checkpoint before it. Everything is a function
of the run's folder and its corpus, so nothing had to be recorded for this. It must not change the
run's folder.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt_jax import numerics
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.loss_mask import unmark
from gpt_jax.model import Params
from gpt_jax.model.loss import batch_losses
from gpt_jax.parallel.sharding import make_constrain_batch
from gpt_jax.prng import Keys
from gpt_jax.run.folder import read_config
from gpt_jax.run.metrics import read_rows
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.history import changed_numerics, numerics_now
from gpt_jax.training.past_state import nearest_checkpoint, state_after
from gpt_jax.training.run_setup import RunSetup, prepare_run
from gpt_jax.training.state import TrainState
from gpt_jax.training.step import loss_and_grads, micro_batch_dropout


@dataclasses.dataclass(frozen=True)
class Replay:
    """A recomputed training step.

    Attributes:
      step: its number, from 1.
      from_step: of the checkpoint that it was computed from; 0 is the run's beginning.
      segments: which segment of the training tokens each sequence is from, (B,).
      offsets: where in it the sequence begins, (B,).
      batch: its tokens, int32 (B, T + 1).
      losses: of each sequence, with the step's dropout, nats per token that counts, (B,).
      loss: of the step, nats per token.
      grad_norm: global L2 norm, before clipping.
      norms: {path of a parameter: (L2 norm of its gradient, of the parameter before the step)}.
      tokenizer: of the run.
    """

    step: int
    from_step: int
    segments: np.ndarray
    offsets: np.ndarray
    batch: np.ndarray
    losses: np.ndarray
    loss: float
    grad_norm: float
    norms: dict[str, tuple[float, float]]
    tokenizer: Tokenizer

    def record(self) -> dict[str, Any]:
        """Returns the result for JSON; a piece is a segment, a start an offset."""
        sequences = [
            {
                "piece": int(self.segments[i]),
                "start": int(self.offsets[i]),
                "loss": float(self.losses[i]),
                "tokens": self.batch[i].tolist(),
                "text": self.tokenizer.decode(self.batch[i]),
            }
            for i in range(len(self.batch))
        ]
        norms = {path: {"gradient": g, "parameter": p} for path, (g, p) in self.norms.items()}
        values = {"step": self.step, "from_step": self.from_step, "loss": self.loss}
        return {**values, "grad_norm": self.grad_norm, "norms": norms, "sequences": sequences}

    def __str__(self) -> str:
        width = max(map(len, self.norms))
        lines = [
            f"step {self.step}, recomputed from step {self.from_step}: loss {self.loss:.6f} "
            f"nats per token, gradient norm {self.grad_norm:.6g}",
            "",
            "  loss  segment      offset  text",
        ]
        for i in np.argsort(-self.losses):  # nan is last
            text = repr(self.tokenizer.decode(self.batch[i])[:60])
            place = f"{self.segments[i]:>7} {self.offsets[i]:>11,}"
            lines.append(f"{self.losses[i]:>6.3f}  {place}  {text}")
        lines += ["", f"{'parameter':<{width}}  gradient's norm   its own"]
        for path, (gradient, parameter) in self.norms.items():
            lines.append(f"{path:<{width}}  {gradient:>15.6g}  {parameter:>8.4g}")
        return "\n".join(lines)


@numerics.fixed()
def replay(run_dir: Path, step: int) -> Replay:
    """Recomputes a training step of a run, from the newest valid checkpoint before it.

    Args:
      run_dir: the run's folder; it is not changed.
      step: from 1 to the run's `train.steps`; it need not have been trained yet.

    Raises:
      UserError: the folder is not a run, its corpus is not found, or it has no such step.
    """
    config, corpus = read_config(run_dir)
    if not corpus:
        raise UserError(
            f"{run_dir} is a GPT-2 folder, which has no steps; give the folder of a run"
        )
    if not 1 <= step <= config.train.steps:
        raise UserError(f"{run_dir} has no step {step}; its steps are 1 to {config.train.steps:,}")
    start = prepare_run(config)
    _, line = changed_numerics(run_dir, read_rows(run_dir), numerics_now(start.config))
    if line:
        print(f"note: {line}", file=sys.stderr)
    programs = CompiledSteps(start.config, start.splits)
    try:
        keys = programs.keys()
        from_step, _ = nearest_checkpoint(run_dir, step - 1)
        state, _ = state_after(programs, start.config, keys, from_step, step - 1)
        return _inspect_step(programs, start, state, keys, from_step, step)
    finally:
        programs.close()


def _inspect_step(
    programs: CompiledSteps,
    start: RunSetup,
    state: TrainState,
    keys: Keys,
    from_step: int,
    step: int,
) -> Replay:
    model, train = start.config.model, start.config.train
    segments, offsets, batch = programs.loader.batch_of_step(keys, step - 1)
    constrain_batch = make_constrain_batch(programs.mesh)
    n = train.batch_size // train.micro_batch_size
    is_masked = programs.loader.samplers[0].is_masked

    @jax.jit  # batch and key are arguments: one program, and one in jax's cache, for all steps
    def look(params: Params, batch: jax.Array, key: jax.Array):
        micro_batches = batch.reshape(n, train.micro_batch_size, batch.shape[1])
        shown = constrain_batch(batch if n == 1 else micro_batches)
        loss, grads = loss_and_grads(model, params, shown, key, train, is_masked=is_masked)

        def losses_of(i: int) -> jax.Array:
            dropout = (key, None) if n == 1 else micro_batch_dropout(train, key, jnp.int32(i))
            ids, counts = constrain_batch(micro_batches[i]), None
            if is_masked:
                ids, counts = unmark(ids)
            losses_BT = batch_losses(model, params, ids, dropout[0], train.loss_chunk, dropout[1])
            if counts is None:
                return losses_BT.mean(axis=1)
            n_B = counts[:, 1:].sum(axis=1).astype(jnp.float32)
            return jnp.where(counts[:, 1:], losses_BT, 0.0).sum(axis=1) / jnp.maximum(n_B, 1)

        norms = jax.tree.map(lambda g, p: (_norm(g), _norm(p)), grads, params)
        losses_B = jnp.concatenate([losses_of(i) for i in range(n)])
        return loss, optax.tree.norm(grads), norms, losses_B

    with programs.layouts():
        key = jax.random.fold_in(keys.dropout, step - 1)
        loss, grad_norm, norms, losses = jax.device_get(look(state.params, batch, key))
    named = jax.tree.flatten_with_path(norms, is_leaf=lambda x: isinstance(x, tuple))[0]
    return Replay(
        step=step,
        from_step=from_step,
        segments=segments,
        offsets=offsets,
        batch=unmark(batch)[0] if is_masked else batch,
        losses=losses,
        loss=float(loss),
        grad_norm=float(grad_norm),
        norms={
            "/".join(str(entry.key) for entry in path): (float(gradient), float(parameter))
            for path, (gradient, parameter) in named
        },
        tokenizer=start.tokenizer,
    )


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x)))

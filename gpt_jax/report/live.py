"""The model of a run as a page computes it in a browser: settings, tokenizer, rounded parameters.

`model.js` and its neighbours read what `make_live_model` returns. Nothing is drawn here.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import numerics
from gpt_jax.config import Config, ModelConfig
from gpt_jax.config.known_settings import unknown_settings
from gpt_jax.errors import UserError
from gpt_jax.inference.ending import end_token
from gpt_jax.inference.evaluation import evaluate_split, load_datasets
from gpt_jax.model import GPT, Params
from gpt_jax.prng import make_keys
from gpt_jax.run import checkpoints
from gpt_jax.run.folder import read_config, run_record
from gpt_jax.run.load import load_run
from gpt_jax.terminal import visible
from gpt_jax.tokenizer import (
    GPT2_PATTERN,
    PATTERN,
    BpeTokenizer,
    Tokenizer,
    canonical_pattern,
    load_tokenizer,
)

MAX_PARAMETERS = 2_000_000  # a page holds the parameters of a model of up to this many
MAX_STATES = 5
ROUNDING_TOKENS = 200_000  # the most on which the rounding is measured: all of nano's
# Those that `model.js` computes, and what `tokenizer.js` calls the patterns that it knows.
ACTIVATIONS = ("relu", "gelu", "gelu_exact", "relu2", "swiglu")
PATTERNS = {PATTERN: "gpt4", GPT2_PATTERN: "gpt2"}
# View -> the lines of this package that compute it: the file, and how the first and last begin.
CODE = {
    "write": (
        "inference/decoding.py",
        "logits_BV = logits_BV / temperature",
        "logits_BV = jnp.where(rank_BV < filters.top_k",
    ),
    "probability": (
        "model/loss.py",
        "log_sum_BT = _log_sum_exp(logits_BTV)",
        "return log_sum_BT - target_BT",
    ),
    "attention": (
        "model/attention.py",
        'scores = jnp.einsum("...TK,...SK->...TS"',
        'return jnp.einsum("...TS,...SK->...TK"',
    ),
    "lens": (
        "model/gpt.py",
        'x_BTD = make_norm(c, "norm_f"',
        "output = (x_BTD, head) if return_hidden",
    ),
    "training": ("training/step.py", "updates, opt_state = optimizer.update", "params = optax"),
}


@numerics.fixed()
def make_live_model(
    run_dir: str | os.PathLike[str],
    *,
    max_parameters: int = MAX_PARAMETERS,
    max_states: int = MAX_STATES,
    max_bytes: int | None = None,
    measure: bool = True,
    address: str | None = None,
) -> dict[str, Any]:
    """Returns what `startLive` of views.js takes, ready for JSON; {"reason": text} if it can't be.

    Args:
      run_dir: the run's folder.
      max_parameters: a larger model is left out.
      max_states: step 0, made from the seed, and checkpoints; at most this many.
      max_bytes: of all parameters in base64; fewer states fit into less.
      measure: evaluate what the rounding does to the loss; takes an exact evaluation, twice.
      address: of the project's files on the web, to link quoted lines to.

    Raises:
      UserError: the folder is no run, or is damaged.
    """
    config, _ = read_config(run_dir)
    tokenizer = load_tokenizer(run_dir)
    shapes = jax.eval_shape(lambda: _initial_params(config))
    n = sum(x.size for x in jax.tree.leaves(shapes))
    size = -(-2 * n // 3) * 4  # of a state in base64
    most = max_states if max_bytes is None else min(max_states, max_bytes // size)
    if reason := _why_not(config.model, tokenizer, n, max_parameters, most, size):
        return {"reason": reason}
    states = {s: export_params(p) for s, p in _load_states(run_dir, config, most).items()}
    states = {s: a for s, a in states.items() if all(np.isfinite(x).all() for x in a.values())}
    if not states:
        return {"reason": "It has no checkpoint that can be read at half precision."}
    newest = max(states)
    return {
        "name": visible(run_dir),
        "model": dataclasses.asdict(config.model),
        "parameters": n,
        "tokenizer": export_tokenizer(tokenizer),
        "end": end_token(tokenizer),
        "sample": {**dataclasses.asdict(config.sample), "seed": config.seed},
        "arrays": [[name, list(x.shape)] for name, x in states[newest].items()],
        "states": [{"step": step, "values": to_base64(arrays)} for step, arrays in states.items()],
        "rounding": _measure_rounding(run_dir, newest) if measure and newest else None,
        "code": {view: quote(*lines) for view, lines in CODE.items()},
        "address": address,
    }


def _why_not(
    model: ModelConfig, tokenizer: Tokenizer, n: int, max_parameters: int, most: int, size: int
) -> str:
    """Returns why a page can't compute a model of n parameters, in a sentence; "" if it can."""
    unknown = unknown_settings(model)
    if model.activation not in ACTIVATIONS:
        unknown.append(f"model.activation={model.activation}")
    if unknown:
        return f"The page does not know how to compute {', '.join(unknown)}."
    if isinstance(tokenizer, BpeTokenizer) and not _splits_like(tokenizer):
        return "The page does not know the pattern by which its tokenizer splits a text."
    if n > max_parameters:
        return f"It has {n:,} parameters, and a page holds at most {max_parameters:,}."
    if most < 1:
        return f"Its parameters take {size / 1e6:.1f} MB, more than is left of the page's size."
    return ""


def _splits_like(tokenizer: BpeTokenizer) -> str | None:
    return PATTERNS.get(canonical_pattern(tokenizer.pattern))


def _initial_params(config: Config) -> Params:
    key = make_keys(*config.seeds).init
    return GPT(config.model).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def choose_steps(steps: list[int], most: int) -> list[int]:
    """Returns at most `most` of ascending steps, evenly spread: the last, and of two the first."""
    if most == 1 or len(steps) <= most:
        return steps[-most:]
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _load_states(run_dir: str | os.PathLike[str], config: Config, most: int) -> dict[int, Params]:
    """Returns the parameters of step 0 and of checkpoints that are whole, by their steps."""
    kept = [
        step
        for step in checkpoints.steps(run_dir)
        if not checkpoints.problem(checkpoints.path_of(run_dir, step))
    ]
    begun_here = run_record(run_dir).origin is None  # else step 0 is another run's
    states = {}
    for step in choose_steps([0, *kept] if begun_here else kept, most):
        try:
            params = (
                load_run(run_dir, step).params
                if step
                else jax.jit(_initial_params, static_argnums=0)(config)
            )
        except UserError:  # a run that is still going may have removed it
            continue
        states[step] = params
    return states


def export_params(params: Params) -> dict[str, np.ndarray]:
    """Returns float16 arrays by their paths, "blocks/mlp/up/kernel"; kernels (.., outputs, inputs).

    A parameter that float16 can't hold becomes infinite.
    """
    arrays = {}
    for path, x in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        with np.errstate(over="ignore"):
            rounded = np.asarray(x).astype(np.float16)
        arrays[name] = rounded.swapaxes(-1, -2) if name.endswith("kernel") else rounded
    return arrays


def to_base64(arrays: dict[str, np.ndarray]) -> str:
    """Returns the arrays one after another, little-endian float16, as text."""
    parts = [np.ascontiguousarray(x, "<f2").tobytes() for x in arrays.values()]
    return base64.b64encode(b"".join(parts)).decode("ascii")


def export_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns tokenizer.json, of byte pairs with the pattern of tokenizer.js that splits alike."""
    values = json.loads(tokenizer.to_json())
    if isinstance(tokenizer, BpeTokenizer):
        values["splits_like"] = _splits_like(tokenizer)
    return values


def round_params(params: Params) -> Params:
    """Returns the parameters that the page computes with, as float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), params)


def _measure_rounding(run_dir: str | os.PathLike[str], step: int) -> dict[str, Any]:
    """Returns the validation loss, in nats per token, without the rounding and with it."""
    try:
        run = load_run(run_dir, step)
        dataset = load_datasets(run)["val"]
    except UserError as error:
        return {"why": str(error)}
    exact, rounded = (
        evaluate_split(
            run.config.model,
            params,
            dataset,
            run.tokenizer.token_bytes,
            train=run.config.train,
            max_tokens=ROUNDING_TOKENS,
        )
        for params in (run.params, round_params(run.params))
    )
    return {
        "exact": exact.nats_per_token,
        "rounded": rounded.nats_per_token,
        "tokens": exact.tokens,
        "is_whole": exact.is_whole,
    }


def quote(path: str, first: str, last: str) -> dict[str, Any]:
    """Returns the lines of a file of this package from one that begins with first to last's."""
    lines = (Path(__file__).parent.parent / path).read_text("utf-8").split("\n")
    begin = next(i for i, line in enumerate(lines) if line.lstrip().startswith(first))
    end = next(i for i in range(begin, len(lines)) if lines[i].lstrip().startswith(last))
    text = textwrap.dedent("\n".join(lines[begin : end + 1]))
    return {"path": f"gpt_jax/{path}", "line": begin + 1, "text": text}

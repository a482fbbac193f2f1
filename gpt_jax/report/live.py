"""The model of a run as a page computes it in a browser: settings, tokenizer, rounded parameters.

`model.js` and its neighbours read what `make_live_model` returns. Nothing is drawn here.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import textwrap
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import numerics
from gpt_jax import tokenizer as tokenizers
from gpt_jax.config import Config, ModelConfig
from gpt_jax.config.known_settings import unknown_settings
from gpt_jax.errors import UserError
from gpt_jax.inference.ending import end_token
from gpt_jax.inference.evaluation import evaluate
from gpt_jax.model import GPT, Params
from gpt_jax.prng import make_keys
from gpt_jax.run import checkpoints
from gpt_jax.run.folder import read_config, read_tokenizer, run_record
from gpt_jax.run.load import load_run
from gpt_jax.terminal import visible

MAX_PARAMETERS = 2_000_000  # a page holds the parameters of a model of up to this many
MAX_STATES, MAX_BYTES = 5, 10_000_000
MAX_ROUNDING = 0.001  # nats per token, that half precision may change the loss unnoticed
ROUNDING_TOKENS = 200_000  # the most on which the rounding is measured: all of nano's
# Those that `model.js` computes, and what `tokenizer.js` calls the patterns that it knows.
ACTIVATIONS = ("relu", "gelu", "gelu_exact", "relu2", "swiglu")
PATTERNS = {tokenizers.PATTERN: "gpt4", tokenizers.GPT2_PATTERN: "gpt2"}
# View -> the lines of this package that compute it: the file, and how the first and last begin.
CODE = {
    "write": ("inference/decoding.py", "logits_BV = logits_BV / temp", "logits_BV = jnp.where("),
    "probability": ("model/loss.py", "log_sum_BT = _log_sum_exp", "return log_sum_BT - target_BT"),
    "attention": ("model/attention.py", "scores = jnp.einsum(", "return jnp.einsum("),
    "lens": ("model/gpt.py", 'x_BTD = make_norm(c, "norm_f"', "output = (x_BTD, head)"),
    "training": ("training/step.py", "updates, opt_state = optimizer.update", "params = optax"),
}


@numerics.fixed()
def make_live_model(
    run_dir: str | os.PathLike[str],
    *,
    max_parameters: int = MAX_PARAMETERS,
    max_bytes: int = MAX_BYTES,
    measure: bool = True,
) -> dict[str, Any]:
    """Returns what `Live` of views.js takes, ready for JSON; {"reason": text} if it can't be.

    Args:
      run_dir: the run's folder.
      max_parameters: a larger model is left out.
      max_bytes: of all parameters in base64; fewer states fit into less. States are step 0, made
        from the seed, and checkpoints. "notes" says what was left out, and why.
      measure: evaluate what the rounding does to the loss; takes an exact evaluation, twice.

    Raises:
      UserError: the folder is no run, or is damaged.
    """
    config, _ = read_config(run_dir)
    tokenizer = read_tokenizer(run_dir, config.model.vocab_size)
    shapes = jax.eval_shape(lambda: _initial_params(config))
    n = sum(x.size for x in jax.tree.leaves(shapes))
    size = -(-2 * n // 3) * 4  # of a state in base64
    most = min(MAX_STATES, max_bytes // size)
    if reason := _why_not(config.model, tokenizer, n, max_parameters, most, size):
        return {"reason": reason}
    notes: list[str] = []
    states, found = _load_states(run_dir, config, most, notes)
    if not states:
        return {"reason": visible("; ".join(["It has no checkpoint that can be read", *notes]))}
    newest = max(states)
    rounding = _measure_rounding(run_dir, newest, notes) if measure and newest else {}
    return {
        "name": visible(run_dir),
        "model": dataclasses.asdict(config.model),
        "parameters": n,
        "tokenizer": export_tokenizer(tokenizer),
        "end": end_token(tokenizer),
        "sample": {**dataclasses.asdict(config.sample), "seed": config.seed},
        "arrays": [[name, list(x.shape)] for name, x in states[newest].items()],
        "states": [{"step": step, "values": to_base64(arrays)} for step, arrays in states.items()],
        "rounding": rounding,
        "found": found,
        "has_room": found < most,
        "notes": notes,
        "code": {view: quote(*lines) for view, lines in CODE.items()},
    }


def _why_not(
    model: ModelConfig,
    tokenizer: tokenizers.Tokenizer,
    n: int,
    max_parameters: int,
    most: int,
    size: int,
) -> str:
    """Returns why a page can't compute a model of n parameters, in a sentence; "" if it can."""
    unknown = unknown_settings(model)
    if model.activation not in ACTIVATIONS:
        unknown.append(f"model.activation={model.activation}")
    if unknown:
        return f"The page does not know how to compute {', '.join(unknown)}."
    if export_tokenizer(tokenizer).get("splits_like", "") is None:
        return "The page does not know the pattern by which its tokenizer splits a text."
    if n > max_parameters:
        return f"It has {n:,} parameters, and a page holds at most {max_parameters:,}."
    if most < 1:
        return f"Its parameters take {size / 1e6:.1f} MB, more than is left of the page's size."
    return ""


def _initial_params(config: Config) -> Params:
    key = make_keys(*config.seeds).init
    return GPT(config.model).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def spread_out(values: list[Any], most: int) -> list[Any]:
    """Returns at most `most` of some values, evenly spread: the last, and of two the first."""
    if most == 1 or len(values) <= most:
        return values[-most:]
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _load_states(
    run_dir: str | os.PathLike[str], config: Config, most: int, notes: list[str]
) -> tuple[dict[int, dict[str, np.ndarray]], int]:
    """Returns rounded parameters of `most` of the run's steps, and how many it has.

    Adds to the notes why a step has none.
    """
    without = lambda step, why: notes.append(f"without the state of step {step}: {why}")
    found = [0] if run_record(run_dir).origin is None else []  # else step 0 is another run's
    for step in checkpoints.steps(run_dir):
        if why := checkpoints.problem(checkpoints.path_of(run_dir, step)):
            without(step, why)
        else:
            found.append(step)
    if (left_out := min(MAX_STATES, len(found)) - most) > 0:
        of = f"{most} of {len(found)} states of training"
        notes.append(f"{of}: the page's limit leaves no room for {left_out} more")
    states, first = {}, jax.jit(_initial_params, static_argnums=0)
    for step in spread_out(found, most):
        try:  # a run that is still going may have removed it
            states[step] = export_params(load_run(run_dir, step).params if step else first(config))
            if not all(np.isfinite(x).all() for x in states[step].values()):
                without(step, "half precision can't hold it")
                del states[step]
        except UserError as error:
            without(step, error)
    return states, len(found)


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


def export_tokenizer(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
    """Returns tokenizer.json, of byte pairs with the pattern of tokenizer.js that splits alike."""
    values = json.loads(tokenizer.to_json())
    if isinstance(tokenizer, tokenizers.BpeTokenizer):
        values["splits_like"] = PATTERNS.get(tokenizers.canonical_pattern(tokenizer.pattern))
    return values


def round_params(params: Params) -> Params:
    """Returns the parameters that the page computes with, as float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float16).astype(jnp.float32), params)


def _measure_rounding(
    run_dir: str | os.PathLike[str], step: int, notes: list[str]
) -> dict[str, Any]:
    """Returns the validation loss, in nats per token, without the rounding and with it.

    Adds to the notes where these are too far apart.
    """
    try:
        run = load_run(run_dir, step)
        rounded_run = dataclasses.replace(run, params=round_params(run.params))
        exact = evaluate(run, max_tokens=ROUNDING_TOKENS)
        rounded = evaluate(rounded_run, max_tokens=ROUNDING_TOKENS).nats_per_token
    except UserError as error:
        return {"why": str(error), "said": f"What the rounding changes was not measured: {error}"}
    if (by := abs(rounded - exact.nats_per_token)) > MAX_ROUNDING:
        notes.append(f"not quite the run's model: half precision changes its loss by {by:.4f}")
    split = "the whole" if exact.is_whole else f"the first {exact.tokens:,} tokens of the"
    return {
        "exact": exact.nats_per_token,
        "rounded": rounded,
        "is_whole": exact.is_whole,
        "said": f"The rounding changes its loss on {split} validation split, "
        f"{exact.nats_per_token:.4f} nats per token, by {by:.7f}.",
    }


def quote(path: str, first: str, last: str) -> dict[str, Any]:
    """Returns the lines of a file of this package from one that begins with first to last's."""
    lines = (Path(__file__).parent.parent / path).read_text("utf-8").split("\n")
    begin = next(i for i, line in enumerate(lines) if line.lstrip().startswith(first))
    end = next(i for i in range(begin, len(lines)) if lines[i].lstrip().startswith(last))
    text, address = textwrap.dedent("\n".join(lines[begin : end + 1])), _address()
    url = address and f"{address}/gpt_jax/{path}#L{begin + 1}"
    return {"path": f"gpt_jax/{path}", "line": begin + 1, "text": text, "url": url}


def _address() -> str | None:
    """Returns where the project's files lie on the web: "Source" of the package's URLs."""
    try:
        urls = metadata("gpt_jax").get_all("Project-URL") or []
    except PackageNotFoundError:  # a checkout that is not installed
        return None
    return dict(url.split(", ", 1) for url in urls).get("Source")

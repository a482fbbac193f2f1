"""The project's guarantees, checked with small models on this machine: `python main.py verify`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt_jax import hf, numerics
from gpt_jax.config import Config, ModelConfig, override
from gpt_jax.errors import OutOfTime
from gpt_jax.model import GPT, forward, init_cache
from gpt_jax.run import checkpoints
from gpt_jax.run.load import Run, load_run
from gpt_jax.training.compiled_steps import CompiledSteps
from gpt_jax.training.run_setup import prepare_run
from gpt_jax.training.trainer import train

EPS = float(np.finfo(np.float32).eps)
STEPS = 8
SETTINGS: dict[str, Any] = {
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 32,
    "model.block_size": 16,
    "model.dropout": 0.1,
    "optim.learning_rate": 1e-3,
    "train.batch_size": 8,
    "train.steps": STEPS,
    "train.log_interval": 2,
    "train.eval_interval": 4,
    "train.eval_batches": 2,
    "train.checkpoint_interval": 4,
    "sample.max_new_tokens": 8,
}
VOCAB_SIZE = 61
# A loss is the mean of 8 x 16 tokens of about 4 nats. A sum of n float32 terms in another order
# differs by at most n eps, relatively; a few steps of AdamW increase that: 20 times are allowed.
# A wrong mask, batch or gradient changes a loss by 1e-2 and more.
ROUNDING = 20 * 8 * 16 * EPS * 4
# Logits of about 1, each from sums of up to 128 products in each of 2 layers.
LOGIT_ROUNDING = 2 * 128 * EPS


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one check.

    Attributes:
      promise: the guarantee, in a few words.
      difference: the largest one found; nan if the check failed to run.
      allowed: the largest difference that passes.
      seconds: duration of the check.
      note: more about it, such as an error.
    """

    promise: str
    difference: float
    allowed: float
    seconds: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed


def verify() -> Iterator[Result]:
    """Runs each check in a temporary folder, and yields its result.

    On a CPU a resumed run must be bitwise equal to an uninterrupted one. Elsewhere sums may be
    taken in another order at each execution, so it must be equal within rounding.
    """
    with tempfile.TemporaryDirectory(prefix="gpt_jax_verify_") as folder:
        config = _small_config(Path(folder))
        for promise, allowed, check in _checks(config):
            begun, note, difference = time.perf_counter(), "", math.nan
            try:
                with numerics.fixed(), jax.default_matmul_precision("highest"):
                    difference, note = check()
            except Exception as error:  # whatever it is, the check has failed
                note = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            yield Result(promise, difference, allowed, time.perf_counter() - begun, note)


def _small_config(folder: Path) -> Config:
    words = "the wizard said to dorothy and toto in oz that it was so".split()  # noqa: SIM905
    text = " ".join(words[(i * i + i // 7) % len(words)] for i in range(3000))
    (folder / "text.txt").write_text(text.replace(" so ", " so.\n"), encoding="utf-8")
    values = {"data.corpus": str(folder / "text.txt"), "run_dir": str(folder / "run")}
    return override(Config(), {**SETTINGS, **values})


def _checks(config: Config) -> list[tuple[str, float, Callable[[], tuple[float, str]]]]:
    exact = 0.0 if jax.default_backend() == "cpu" else ROUNDING
    n = max(n for n in (1, 2, 4, 8) if n <= len(jax.devices()))
    all_data, all_fsdp = (n, 1, 1, 1), (1, n, 1, 1)
    alone = functools.cache(lambda: _losses(config))
    checks: list[tuple[str, float, Callable[[], tuple[float, str]]]] = [
        ("a run resumed after each chunk = an uninterrupted one", exact, lambda: _resumed(config)),
        ("a damaged checkpoint is found, the previous one used", 0.0, lambda: _damaged(config)),
        ("gradient accumulation = the whole batch", ROUNDING, lambda: _accumulated(config)),
        ("decoding with the KV cache = one forward pass", LOGIT_ROUNDING, lambda: _cached(config)),
        ("a GPT-2 folder, written and read = the same model", 0.0, lambda: _gpt2(config)),
    ]
    if n > 1:
        for name, mesh in (("data parallel", all_data), ("fully sharded", all_fsdp)):
            check = lambda mesh=mesh: (_largest(alone(), _losses(config, mesh)), "")
            checks.append((f"{n} devices, {name} = one device", ROUNDING, check))
    return checks


def _quiet_train(config: Config, **values: Any) -> Run:
    return train(override(config, values), quiet=True)


def _resumed(config: Config) -> tuple[float, str]:
    whole = _quiet_train(config, run_dir=f"{config.run_dir}-whole")
    stops = 0
    while True:
        try:
            resumed = _quiet_train(config, **{"train.max_minutes": 1e-9 if stops < STEPS else None})
            break
        except OutOfTime:
            stops += 1
    rows = [[row.get("loss", 0.0) for row in run.rows] for run in (whole, resumed)]
    params = [jax.tree.leaves(run.params) for run in (whole, resumed)]
    differences = [_largest(a, b) for a, b in zip(*params, strict=True)]
    return max(_largest(*rows), *differences), f"resumed {stops} times"


def _damaged(config: Config) -> tuple[float, str]:
    run_dir = Path(config.run_dir)
    newest, before = reversed(checkpoints.steps(run_dir)[-2:])
    path = checkpoints.path_of(run_dir, newest)
    victim = max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        used = load_run(run_dir).step
    if f"{victim.relative_to(path).as_posix()} has changed" not in said.getvalue():
        return math.inf, "the damaged file is not named"
    return abs(used - before), f"one bit of step {newest}; step {used} was used"


def _accumulated(config: Config) -> tuple[float, str]:
    micro = override(config, {"train.micro_batch": 2})
    return _largest(_losses(config), _losses(micro)), ""


def _compile_forward(model: ModelConfig) -> Callable:
    """Returns `forward` of a model, compiled; traced anew, as it is to be checked now."""
    return jax.jit(lambda params, tokens, cache=None: forward(model, params, tokens, cache=cache))


def _cached(config: Config) -> tuple[float, str]:
    model = dataclasses.replace(config.model, vocab_size=VOCAB_SIZE)
    tokens_1T = jnp.arange(model.block_size)[None]
    params = jax.jit(GPT(model).init)(jax.random.key(0), tokens_1T)["params"]
    compiled = _compile_forward(model)
    whole_1TV = compiled(params, tokens_1T)
    cache, steps = init_cache(model, 1), []
    for t in range(model.block_size):
        logits, cache = compiled(params, tokens_1T[:, t : t + 1], cache)
        steps.append(logits[:, 0])
    return _largest(jnp.stack(steps, axis=1), whole_1TV), ""


def _gpt2(config: Config) -> tuple[float, str]:
    gpt2 = {"activation": "gelu", "qkv_bias": True, "tied": True, "head_bias": False}
    model = dataclasses.replace(config.model, vocab_size=VOCAB_SIZE, **gpt2)
    tokens_1T = jnp.arange(model.block_size)[None]
    params = jax.jit(GPT(model).init)(jax.random.key(0), tokens_1T)["params"]
    folder = Path(config.run_dir).with_name("gpt2")
    hf.save(folder, model, params)
    read, loaded = hf.load(folder)
    logits = [_compile_forward(m)(p, tokens_1T) for m, p in ((model, params), (read, loaded))]
    return _largest(*logits), ""


def _losses(config: Config, mesh: tuple[int, ...] = (1, 1, 1, 1), steps: int = 4) -> np.ndarray:
    """Returns the losses of the first steps of a new run on a mesh: (steps,)."""
    axes = ("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence")
    sizes = dict(zip(axes, mesh, strict=True))
    start = prepare_run(override(config, {**sizes, "run_dir": f"{config.run_dir}-new"}))
    programs = CompiledSteps(start.config, start.splits)
    try:
        keys = programs.keys()
        _, metrics = programs.train_chunk(programs.init_state(keys), keys, 0, steps)
        return np.asarray(metrics["loss"])
    finally:
        programs.close()


def _largest(a: Any, b: Any) -> float:
    """Returns the largest absolute difference; nan counts as infinite."""
    difference = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max(initial=0.0)
    return float(difference) if np.isfinite(difference) else math.inf

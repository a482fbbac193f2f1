"""What a GPU's arrangement of the model does to losses, beside the one for CPUs: 300 steps of each.

    python benchmarks/tunings.py [--seeds 5] [--out benchmarks/results/tunings.json]

Both sides are computed in bfloat16 on this machine's CPU, with equal seeds and batches. They differ
in what `model/tuning.py` chooses, and in the dtype of the logits' gradient, which a GPU multiplies
in bfloat16. Attention is plain: a CPU has no cuDNN. The model has the settings of `base`, 2 layers
and a width of 256, from which on a GPU has a tuning of its own. About a minute a run on two
cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine
from gpt_jax.config import Config, load_config, override
from gpt_jax.experiments.statistics import correlation, mean_of, paired_t
from gpt_jax.input_pipeline.corpus import load_corpus
from gpt_jax.input_pipeline.text_corpus import OZ_SHA256
from gpt_jax.model.loss import batch_losses
from gpt_jax.parallel.backend import compiling_for
from gpt_jax.prng import make_keys
from gpt_jax.tokenizer import CharTokenizer
from gpt_jax.training.optimizer import make_optimizer
from gpt_jax.training.state import init_state
from gpt_jax.training.step import make_train_chunk

SIDES = {"before": "cpu", "GPU": "cuda 9.0"}  # -> the backend that programs are traced for
SETTINGS = {
    "model.n_layer": 2, "model.n_embd": 256, "model.n_head": 4, "model.block_size": 64,
    "model.dtype": "bfloat16", "model.attention": "plain",
    "optim.learning_rate": 1e-3, "optim.schedule": "constant", "optim.warmup_steps": 50,
    "train.batch_size": 16, "train.micro_batch": None, "train.loss_chunk": None,
    "train.steps": 300,
}  # fmt: skip


def exact_loss(config: Config, params: Any, tokens: np.ndarray) -> float:
    """Returns the mean loss of a text, in windows that do not overlap, in nats per token."""
    T = config.model.block_size
    n = (len(tokens) - 1) // T
    windows = np.stack([tokens[i * T : i * T + T + 1] for i in range(n)])
    losses = jax.jit(functools.partial(batch_losses, config.model))
    return float(np.mean([np.mean(losses(params, windows[i : i + 64])) for i in range(0, n, 64)]))


def final_losses(config: Config, train: np.ndarray, val: np.ndarray, seeds: int) -> list[float]:
    """Returns the exact validation loss after the last step, for each seed."""
    chunk = make_train_chunk(config.model, config.optim, config.train)
    step = jax.jit(chunk, static_argnames="steps")
    init = jax.jit(lambda key: init_state(config.model, make_optimizer(config.optim), key))
    found = []
    for seed in range(seeds):
        keys = make_keys(seed)
        state, _ = step(init(keys.init), train, keys, steps=config.train.steps)
        found.append(exact_loss(config, state.params, val))
        print(f"seed {seed}: {found[-1]:.4f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tunings.json"))
    args = parser.parse_args()
    corpus = load_corpus("oz")
    if corpus.sha256 != OZ_SHA256:
        sys.exit("the text is another edition")
    tokenizer = CharTokenizer.train(corpus.text)
    ids = np.asarray(tokenizer.encode(corpus.text), np.int32)
    cut = int(0.8 * len(ids))
    config = override(load_config("base"), SETTINGS)
    model = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, model=model)
    losses = {}
    for side, backend in SIDES.items():
        print(side, flush=True)
        with compiling_for(backend):
            losses[side] = np.array(final_losses(config, ids[:cut], ids[cut:], args.seeds))
    before, after = losses.values()
    estimate = paired_t(before, after)
    result = {
        "machine": describe_machine(),
        "command": "python " + " ".join(sys.argv),
        "losses": {side: dataclasses.asdict(mean_of(x)) for side, x in losses.items()},
        "difference": {"mean": estimate.mean, "half_width": estimate.half_width, "p": estimate.p},
        "correlation": correlation(before, after),
        "settings": SETTINGS,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["difference"]))


if __name__ == "__main__":
    main()

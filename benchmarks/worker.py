"""One side of the comparison, alive in a separate process; `speed.py` drives it.

Reads a JSON object a line ({"do": "train", "model": "nano", "steps": 10}), does that, and answers
with {"seconds": ...}. Everything is compiled and warmed up before the first answer to a job.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

# name: (n_layer, n_head, n_embd, block_size, batch_size)
MODELS = {
    "nano": (3, 4, 128, 64, 32),
    "shakespeare_cpu": (4, 4, 128, 64, 12),
    "4x256x128": (4, 4, 256, 128, 32),
    "6x384x256": (6, 6, 384, 256, 32),
}
VOCAB_SIZE, DROPOUT = 73, 0.2
CONFIGS = {"shakespeare_cpu": 65}  # trained as the config says: the size of its vocabulary
TOKENS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 166_239).astype(np.int32)


def vocab_size(model: str) -> int:
    return CONFIGS.get(model, VOCAB_SIZE)


def jax_config(model: str):
    """Returns gpt_jax's settings of a model."""
    from gpt_jax.config import Config, ModelConfig, TrainConfig, load_config, override

    if model in CONFIGS:
        return override(load_config(model), {"model.vocab_size": CONFIGS[model]})
    n_layer, n_head, n_embd, block_size, batch_size = MODELS[model]
    shape = ModelConfig(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=block_size,
        dropout=DROPOUT, vocab_size=VOCAB_SIZE,
    )  # fmt: skip
    return Config(model=shape, train=TrainConfig(batch_size=batch_size))


class Jax:
    """gpt_jax: the functions that `main.py` runs."""

    def __init__(self) -> None:
        from gpt_jax.devices import request_cpu_devices, retain_freed_memory

        request_cpu_devices(32)
        retain_freed_memory()
        import jax

        self.jax = jax
        self.states: dict[str, Any] = {}

    def train(self, model: str, steps: int) -> None:
        from gpt_jax.input_pipeline.dataset import Dataset
        from gpt_jax.training.compiled_steps import CompiledSteps

        if model not in self.states:
            split = Dataset.from_shards((TOKENS % vocab_size(model),), len(TOKENS))
            programs = CompiledSteps(jax_config(model), {"train": split, "val": split})
            keys = programs.keys()
            self.states[model] = programs, keys, programs.init_state(keys)
        programs, keys, state = self.states[model]
        state, metrics = programs.train_chunk(state, keys, 0, steps)
        np.asarray(metrics["loss"])
        self.states[model] = programs, keys, state

    def sample(self, model: str, batch: int, prompt: int, tokens: int, cache: bool) -> None:
        from gpt_jax.inference.decoding import Filters, generate_tokens
        from gpt_jax.model import GPT, decoding_params

        jax, config = self.jax, jax_config(model).model
        if "params" not in self.states:
            variables = jax.jit(GPT(config).init)(jax.random.key(0), np.zeros((1, 1), np.int32))
            convert = jax.jit(decoding_params, static_argnums=0)  # as a Run's
            self.states["params"] = convert(config, variables["params"])
        for _ in generate_tokens(
            config, self.states["params"], TOKENS[:prompt], jax.random.key(1),
            Filters(temperature=1.0), max_new_tokens=tokens, num_samples=batch,
        ):  # fmt: skip
            pass

    def matmul(self, n: int) -> None:
        if "a" not in self.states:
            a = self.jax.numpy.ones((n, n), np.float32)
            self.states["a"] = a, self.jax.jit(lambda a: a @ a)
        a, f = self.states["a"]
        f(a).block_until_ready()


class Torch:
    """PyTorch, eager or compiled."""

    def __init__(self, compiled: bool):
        import torch

        from benchmarks import torch_gpt, torch_shakespeare

        torch.manual_seed(0)
        self.torch, self.gpt, self.compiled = torch, torch_gpt, compiled
        self.recipe = torch_shakespeare
        self.tokens = torch.tensor(TOKENS, dtype=torch.long)
        self.states: dict[str, Any] = {}

    def model(self, name: str):
        n_layer, n_head, n_embd, block_size, _ = MODELS[name]
        return self.gpt.GPT(VOCAB_SIZE, n_layer, n_head, n_embd, block_size, DROPOUT)

    def train(self, model: str, steps: int) -> None:
        if model not in self.states:
            make = self._recipe_steps if model in CONFIGS else self._steps
            self.states[model] = make(model)
        self.states[model](steps).item()

    def _steps(self, model: str) -> Callable:
        """Returns a function that takes so many steps of a model."""
        net = self.model(model)
        call = self.torch.compile(net) if self.compiled else net
        optimizer, batch_size = self.gpt.make_optimizer(net), MODELS[model][-1]
        return lambda steps: self.gpt.train_steps(
            net, call, optimizer, self.tokens, batch_size, steps
        )

    def _recipe_steps(self, model: str) -> Callable:
        """The same for shakespeare_cpu, by its own recipe."""
        recipe, size = self.recipe, CONFIGS[model]
        net, tokens = recipe.GPT(size), self.tokens % size
        call = self.torch.compile(net) if self.compiled else net
        optimizer = recipe.make_optimizer(net)
        return lambda steps: recipe.train_steps(net, call, optimizer, tokens, range(steps))

    def sample(self, model: str, batch: int, prompt: int, tokens: int, cache: bool) -> None:
        if "sample" not in self.states:
            self.states["sample"] = self.model(model)
        net = self.states["sample"]
        self.gpt.generate(net, self.tokens[None, :prompt], batch, tokens, cache=cache)

    def matmul(self, n: int) -> None:
        a = self.torch.ones((n, n))
        a @ a


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("variant", choices=("jax", "torch", "torch_compiled"))
    args = parser.parse_args()
    side = Jax() if args.variant == "jax" else Torch(args.variant == "torch_compiled")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        do, times = job.pop("do"), job.pop("times", 1)
        if do == "memory":
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({"peak_bytes": peak}), flush=True)
            continue
        before = time.perf_counter()
        for _ in range(times):
            getattr(side, do)(**job)
        print(json.dumps({"seconds": time.perf_counter() - before}), flush=True)


if __name__ == "__main__":
    main()

"""Reproduces others' losses: the original's with `nano`, nanoGPT's with `shakespeare_cpu`.

    python benchmarks/reproduce.py [--seeds 5] [--out benchmarks/results/reproduce.json]
    python benchmarks/reproduce.py shakespeare_cpu [--seeds 3] [--out ...]

Trains `nano_original` and `nano`, or `shakespeare_cpu`, with seeds 0, 1, ... on the original's
corpus, by the original's protocol: the mean loss of random batches of each split, dropout off, and
the exact loss of the whole validation split. Refuses another edition of a text. About 80 s a run of
nano, two to four minutes one of shakespeare_cpu, on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine
from gpt_jax.config import Config, load_config, override
from gpt_jax.devices import request_cpu_devices
from gpt_jax.experiments.sides import RunFiles, find_side
from gpt_jax.experiments.statistics import mean_of
from gpt_jax.input_pipeline.corpus import load_corpus
from gpt_jax.input_pipeline.text_corpus import OZ_SHA256, SHAKESPEARE_SHA256

SPLITS = ("train", "val")
STEPS = (0, 50, 100, 200, 300, 400, 450, 500)
ORIGINAL = {  # the PyTorch original's own figures
    "train": (4.264, 2.765, 2.524, 2.369, 2.288, 2.220, 2.175),
    "val": (4.263, 2.775, 2.521, 2.379, 2.304, 2.232, 2.191),
}


def initial_losses(config: Config, n: int = 200) -> dict[str, float]:
    """Returns mean and standard deviation of the val loss over n initialisations, untrained.

    Each by the original's protocol: 50 random batches of 32, dropout off.
    """
    import jax

    from gpt_jax.prng import make_keys
    from gpt_jax.training.optimizer import make_optimizer
    from gpt_jax.training.run_setup import prepare_run
    from gpt_jax.training.state import init_state
    from gpt_jax.training.step import make_eval_step

    start = prepare_run(config)
    (component,) = start.splits["val"].components
    config, tokens = start.config, jax.numpy.asarray(component.shards[0])
    eval_step = make_eval_step(config.model, config.train)

    @jax.jit
    def initial(seed):
        keys = make_keys(seed)
        params = init_state(config.model, make_optimizer(config.optim), keys.init).params
        return eval_step(params, [tokens], keys.eval)[0]

    losses = [float(initial(seed)) for seed in range(n)]
    return {
        "initialisations": n,
        "mean": statistics.mean(losses),
        "standard_deviation": statistics.stdev(losses),
        "lowest": min(losses),
        "highest": max(losses),
    }


def train_seeds(name: str, seeds: int, prompt: str) -> tuple[Sequence[RunFiles], str]:
    """Returns a config's runs with seeds 0 to seeds - 1, and a sample from the last."""
    import gpt_jax

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / name
        gpt_jax.sweep(load_config(name), seeds=seeds, out=out, together="one-after-another")
        runs = find_side(out).runs
        return runs, gpt_jax.generate(gpt_jax.load_run(runs[-1].run_dir), prompt, seed=0)


def describe_runs(runs: Sequence[RunFiles], steps: Iterable[int]) -> dict[str, Any]:
    """Returns the losses of both splits at the steps, over the seeds."""
    by_step = [{row["step"]: row for row in run.rows} for run in runs]
    return {
        split: {
            step: asdict(mean_of([rows[step][f"{split}_loss"] for rows in by_step]))
            for step in steps
        }
        for split in SPLITS
    }


def exact_losses(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Returns the figures of the whole validation split, over the seeds."""
    return {
        key: asdict(mean_of([run.summary["val"][key] for run in runs]))
        for key in ("nats_per_token", "perplexity", "bits_per_byte")
    }


def reproduce_original(seeds: int) -> dict[str, Any]:
    config = override(load_config("nano"), {"data.fallback_corpus": None})
    result: dict[str, Any] = {"initial_val_loss": initial_losses(config), "configs": {}}
    for name in ("nano_original", "nano"):
        runs, sample = train_seeds(name, seeds, "The Great Wizard said ")
        result["configs"][name] = {
            **describe_runs(runs, STEPS),
            "exact_val_at_500": exact_losses(runs),
            "sample": sample,
        }
    print(f"{'step':>6} {'original':>9}   {'nano_original':>17}   {'nano':>17}   (val)")
    for i, step in enumerate(STEPS):
        original = f"{ORIGINAL['val'][i]:.3f}" if i < len(ORIGINAL["val"]) else "-"
        cells = [
            "{mean:.3f} +- {half_width:.3f}".format(**result["configs"][name]["val"][step])
            for name in ("nano_original", "nano")
        ]
        print(f"{step:>6} {original:>9}   {cells[0]:>17}   {cells[1]:>17}")
    return result


def reproduce_nanogpt(seeds: int) -> dict[str, Any]:
    runs, sample = train_seeds("shakespeare_cpu", seeds, "\n")
    steps = [row["step"] for row in runs[0].rows if "val_loss" in row]
    result = {
        **describe_runs(runs, steps),
        "exact_val": exact_losses(runs),
        "parameters": runs[0].summary["parameters"],
        "sample": sample,
    }
    for step in steps:
        cells = ["{mean:.3f} +- {half_width:.3f}".format(**result[s][step]) for s in SPLITS]
        print(f"{step:>6}   train {cells[0]}   val {cells[1]}")
    exact = result["exact_val"]["nats_per_token"]
    print("exact val {mean:.4f} +- {half_width:.4f}".format(**exact))
    return result


# what -> (corpus, its sum, batch, seeds, result file, function)
JOBS: dict[str, tuple[str, str, int, int, str, Callable[[int], dict[str, Any]]]] = {
    "nano": ("oz", OZ_SHA256, 32, 5, "reproduce.json", reproduce_original),
    "shakespeare_cpu": (
        "shakespeare", SHAKESPEARE_SHA256, 12, 3, "shakespeare_cpu.json", reproduce_nanogpt
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", default="nano", choices=JOBS)
    parser.add_argument("--seeds", type=int, help="at least 2")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    corpus, sha256, batch_size, seeds, file, reproduce = JOBS[args.what]
    if args.seeds is not None and args.seeds < 2:
        parser.error("--seeds must be at least 2: one has no interval")
    if load_corpus(corpus).sha256 != sha256:
        sys.exit(f"error: this is not the original's edition of {corpus}; see GPT_JAX_DATA")
    request_cpu_devices(batch_size)
    result = {"machine": describe_machine(), "command": " ".join(["python", *sys.argv])}
    result |= reproduce(args.seeds or seeds)
    out = args.out or Path("benchmarks/results") / file
    out.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(out.read_text("utf-8")) if out.exists() else {}
    result |= {name: before[name] for name in before if name not in result}  # PyTorch's figures
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}")


if __name__ == "__main__":
    main()

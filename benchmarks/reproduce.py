"""Reproduces the original's losses, and shows what the standard attention scale gives.

    python benchmarks/reproduce.py [--seeds 5] [--out benchmarks/results/reproduce.json]

Trains `nano_original` and `nano` with seeds 0, 1, ... on the original's corpus, by the original's
protocol: the mean loss of 50 random batches of each split, dropout off. Refuses another edition of
the book. About 80 s a run on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine
from gpt_jax.config import Config, override
from gpt_jax.config_files import load_config
from gpt_jax.corpora import OZ_SHA256, load_corpus
from gpt_jax.devices import request_cpu_devices

STEPS = (0, 50, 100, 200, 300, 400, 450, 500)
ORIGINAL = {  # the PyTorch original's own figures
    "train": (4.264, 2.765, 2.524, 2.369, 2.288, 2.220, 2.175),
    "val": (4.263, 2.775, 2.521, 2.379, 2.304, 2.232, 2.191),
}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}  # n - 1 degrees


def interval(values: list[float]) -> dict[str, float]:
    """Returns the mean and the half width of its 95% confidence interval (Student's t)."""
    n = len(values)
    half = T_95[n] * statistics.stdev(values) / math.sqrt(n)
    return {"mean": statistics.mean(values), "half_width": half, "values": values}


def initial_losses(config: Config, n: int = 200) -> dict[str, float]:
    """Returns mean and standard deviation of the val loss over n initialisations, untrained.

    Each by the original's protocol: 50 random batches of 32, dropout off.
    """
    import jax

    from gpt_jax.optim import make_optimizer
    from gpt_jax.start import make_start
    from gpt_jax.step import init_state, make_eval_step, make_keys

    start = make_start(config)
    config, tokens = start.config, jax.numpy.asarray(start.splits["val"].tokens)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, choices=T_95)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reproduce.json"))
    args = parser.parse_args()
    if load_corpus("oz").sha256 != OZ_SHA256:
        sys.exit("error: this is not the original's edition of the book; see GPT_JAX_DATA")
    request_cpu_devices(32)
    import gpt_jax

    result = {"machine": describe_machine(), "command": " ".join(sys.argv), "configs": {}}
    config = override(load_config("nano"), {"data.fallback_corpus": None})
    result["initial_val_loss"] = initial_losses(config)
    for name in ("nano_original", "nano"):
        runs = []
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                values = {"seed": seed, "run_dir": os.path.join(folder, name)}
                runs.append(gpt_jax.train(override(load_config(name), values)))
                sample = gpt_jax.generate(runs[-1], "The Great Wizard said ", seed=0)
            print(f"\n=== {name}, seed {seed} done ===\n", flush=True)
        by_step = [{row["step"]: row for row in run.rows} for run in runs]
        table = {
            split: {
                step: interval([rows[step][f"{split}_loss"] for rows in by_step]) for step in STEPS
            }
            for split in ("train", "val")
        }
        exact = {
            key: interval([run.summary["val"][key] for run in runs])
            for key in ("nats_per_token", "perplexity", "bits_per_byte")
        }
        result["configs"][name] = {**table, "exact_val_at_500": exact, "sample": sample}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    print(f"{'step':>6} {'original':>9}   {'nano_original':>17}   {'nano':>17}   (val)")
    for i, step in enumerate(STEPS):
        original = f"{ORIGINAL['val'][i]:.3f}" if i < len(ORIGINAL["val"]) else "-"
        cells = [
            "{mean:.3f} +- {half_width:.3f}".format(**result["configs"][name]["val"][step])
            for name in ("nano_original", "nano")
        ]
        print(f"{step:>6} {original:>9}   {cells[0]:>17}   {cells[1]:>17}")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()

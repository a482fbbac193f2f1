"""What the bench found: trials of changes of `nano`, and the config that they led to.

    python benchmarks/tuned.py --trials trials/*
    python benchmarks/tuned.py --seeds 8

The first collects trials as far as they have come. The second trains `nano` and `nano_tuned` with
seeds from 100 on, which no trial has used, and compares them; the same command continues after a
kill. About 80 s a run on two cores. `python benchmarks/tables.py` renders both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine
from gpt_jax.config import from_dict, load_config, override
from gpt_jax.devices import request_cpu_devices
from gpt_jax.experiments.sides import different_settings
from gpt_jax.experiments.statistics import correlation, mean_of, pairing_gain, welch_t
from gpt_jax.experiments.trial_record import read_trial
from gpt_jax.input_pipeline.corpus import load_corpus
from gpt_jax.input_pipeline.text_corpus import OZ_SHA256
from gpt_jax.storage import open_folder, write_atomically

CONFIGS, FIRST_SEED = ("nano", "nano_tuned"), 100
MEASURING = ("train.eval_interval", "train.eval_batches")
COMPARED = ("verdict", "paired", "pairs", "mean_difference", "half_width", "p", "alpha")
COMPARED += ("correlation", "pairing_gain", "settings")


def describe_trial(folder: Path) -> dict[str, Any]:
    """Returns what a trial has found so far, and how its baseline differs from nano."""
    record = read_trial(open_folder(folder))
    found, asked = record.outcome(folder), record.question
    x, y = found.losses_2N
    half_width = float(found.sequence.half_widths[-1]) if found.pairs else np.inf
    base = different_settings(load_config("nano"), from_dict(asked.config), MEASURING)
    return {
        "name": folder.resolve().name,
        "baseline": {name: value for name, (_, value) in base.items()},
        "change": {**asked.change, **({"code": "another checkout's"} if asked.trees else {})},
        "paired": asked.paired,
        "seeds": sorted({seed for pair in found.pairs for seed in pair.seeds}),
        "differences": found.differences.tolist(),
        "alpha": asked.alpha,
        "mean": float(np.mean(found.differences)) if found.pairs else None,
        "half_width": half_width if np.isfinite(half_width) else None,
        "verdict": found.verdict,
        "correlation": correlation(x, y) if asked.paired else None,
        "pairing_gain": pairing_gain(x, y) if asked.paired else None,
    }


def train_seeds(seeds: Sequence[int], folder: Path) -> dict[str, Any]:
    """Returns the exact validation losses of both configs over the seeds, compared."""
    import gpt_jax

    configs = {}
    for name in CONFIGS:
        config, place = override(load_config(name), {"data.fallback_corpus": None}), folder / name
        found = gpt_jax.sweep(config, seeds=seeds, out=place, together="one-after-another")
        run = gpt_jax.load_run(place / found.members[0].member.run_dir)
        configs[name] = {
            "parameters": run.summary["parameters"],
            "exact_val": asdict(mean_of([each.loss for each in found.members])),
            "bits_per_byte": asdict(mean_of([each.bits_per_byte for each in found.members])),
        }
    compared = gpt_jax.compare(*(folder / name for name in CONFIGS)).record()
    unpaired = welch_t(*(np.array(row["exact_val"]["values"]) for row in configs.values()))
    return {
        "seeds": list(seeds),
        "configs": configs,
        "compared": {name: compared[name] for name in COMPARED},
        "as_if_unpaired": {"half_width": unpaired.half_width, "p": unpaired.p},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=Path, nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/tuned"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tuned.json"))
    args = parser.parse_args()
    if args.seeds == 1 or not (args.seeds or args.trials):
        parser.error("give --trials FOLDER..., or --seeds N of at least 2, or both")
    request_cpu_devices(32)
    result = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}

    def write(part: str, words: str, found: dict[str, Any]) -> None:
        command = f"python benchmarks/tuned.py {words}"
        result[part] = {"machine": describe_machine(), "command": command, **found}
        write_atomically(args.out, json.dumps(result, indent=1) + "\n")
        print(f"written: {args.out}")

    before = result.get("trials", {}).get("rows", [])
    rows = {row["name"]: row for row in [*before, *map(describe_trial, args.trials)]}
    if args.trials:
        write("trials", "--trials trials/*", {"rows": [*rows.values()]})
    if args.seeds:
        seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
        if used := [name for name, row in rows.items() if {*row["seeds"]} & {*seeds}]:
            sys.exit(f"error: the trial {used[0]} has used some of these seeds")
        if load_corpus("oz").sha256 != OZ_SHA256:
            sys.exit("error: this is not the original's edition of oz; see GPT_JAX_DATA")
        write("final", f"--seeds {args.seeds}", train_seeds(seeds, args.runs))


if __name__ == "__main__":
    main()

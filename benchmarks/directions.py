"""The original's four next steps, tried on its own book: which of them help at this size?

    python benchmarks/directions.py [--seeds 3] [--steps 500]

More text, a wider and deeper model, byte pairs, a longer context: each changes one thing of `nano`
and sees as many tokens per step. All are judged on the same validation text, the last fifth of the
book, in bits per byte over the whole of it, so that tokenizers compare. The curves are of few
random batches. About 20 minutes on two cores. Writes a JSON and a picture; `python
benchmarks/tables.py` renders the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine
from gpt_jax.config import load_config, override
from gpt_jax.devices import request_cpu_devices
from gpt_jax.experiments.sides import find_side
from gpt_jax.experiments.statistics import mean_of, paired_t
from gpt_jax.input_pipeline.corpus import load_corpus
from gpt_jax.input_pipeline.dataset import split_text

ROOT = Path(__file__).parent.parent
MORE_TEXT = "more text"
SELDOM: dict[str, Any] = {"train.eval_interval": 100, "train.eval_batches": 10}
DIRECTIONS: dict[str, dict[str, Any]] = {
    "nano": {},
    MORE_TEXT: {},  # its corpus is made below
    "wider and deeper": {"model.n_layer": 4, "model.n_embd": 192, "model.n_head": 6},
    "byte pairs": {"data.tokenizer": "bpe", "data.vocab_size": 512},
    "longer context": {"model.block_size": 256, "train.batch_size": 8},
}


def more_text(folder: Path, train_fraction: float) -> dict[str, Any]:
    """Writes another book before the first and returns the settings for them.

    The cut between training and validation stays where it was in the book.
    """
    book, other = load_corpus("oz").text, load_corpus("shakespeare").text
    path = folder / "more.txt"
    path.write_text(other + book, encoding="utf-8", newline="")
    train = len(other) + len(split_text(book, train_fraction)["train"])
    fraction = (train + 0.5) / (len(other) + len(book))  # rounding down gives `train` again
    return {"data.corpus": str(path), "data.train_fraction": fraction}


def run_seeds(values: dict[str, Any], seeds: int, out: Path, text: str) -> dict[str, Any]:
    """Trains each seed; returns curve and exact figures in bits per byte, means, and the cost."""
    import gpt_jax

    config = override(load_config("nano"), {"data.fallback_corpus": None, **SELDOM, **values})
    found = gpt_jax.sweep(config, seeds=seeds, out=out, together="one-after-another")
    runs = find_side(out).runs
    predicted = {run.summary["val"]["bytes_predicted"] for run in runs}
    assert min(predicted) > 0.99 * len(text.encode()), "another validation text"
    steps = runs[0].curve("val_bpb")[0]
    means = np.mean([run.curve("val_bpb")[1] for run in runs], axis=0)
    return {
        "parameters": runs[0].summary["parameters"],
        "bits_per_byte": asdict(mean_of([run.summary["val"]["bits_per_byte"] for run in runs])),
        "seconds": statistics.median(each.member.seconds or 0 for each in found.members),
        "curve": dict(zip(steps.tolist(), means.tolist(), strict=True)),
    }


def beside(nano: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    """Returns a direction's figures minus nano's, seed by seed: `compare`'s paired t test.

    `compare` itself refuses more text, whose corpus is another, and pairs no runs of other batches,
    as those of byte pairs and of a longer context are. Here the validation text is the same, and
    what a pair shares is the seed of its parameters.
    """
    found = paired_t(np.array(nano), np.array(own))
    figures = {"mean": found.mean, "half_width": found.half_width, "p": found.p}
    return {**figures, "values": np.subtract(own, nano).tolist()}


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws the mean of each direction's curves over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, row in result["directions"].items():
        steps = [int(step) for step in row["curve"]][1:]
        means = list(row["curve"].values())[1:]
        label = f"{name}, {row['bits_per_byte']['mean']:.3f} at the end"
        axes.plot(steps, means, marker="o", markersize=3.5, label=label)
    axes.set_title("The four directions on The Wonderful Wizard of Oz")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("validation loss (bits per byte)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/directions.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/directions.png")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("--seeds must be at least 2: one has no interval")
    request_cpu_devices(32)
    fraction = load_config("nano").data.train_fraction
    val_text = split_text(load_corpus("oz").text, fraction)["val"]
    with tempfile.TemporaryDirectory() as folder:
        settings = {**DIRECTIONS, MORE_TEXT: more_text(Path(folder), fraction)}
        found = {
            name: run_seeds(
                {**values, "train.steps": args.steps}, args.seeds, Path(folder) / name, val_text
            )
            for name, values in settings.items()
        }
    nano = found["nano"]["bits_per_byte"]["values"]
    for name, row in found.items():
        row["settings"] = DIRECTIONS[name]
        if name != "nano":
            row["beside_nano"] = beside(nano, row["bits_per_byte"]["values"])
    result = {
        "machine": describe_machine(),
        "command": " ".join(["python", *sys.argv]),
        "steps": args.steps,
        "val_characters": len(val_text),
        "directions": found,  # beside nano seed by seed: below 0 is better
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, args.picture)
    print(f"written: {args.out}, {args.picture}")


if __name__ == "__main__":
    main()

"""The original's four next steps, tried on its own book: which of them help at this size?

    python benchmarks/directions.py [--seeds 3] [--steps 500]

More text, a wider and deeper model, byte pairs, a longer context: each changes one thing of `nano`
and sees as many tokens per step. All are judged on the same validation text, the last fifth of the
book, in bits per byte over the whole of it, so that tokenizers compare. About 20 minutes on two
cores. Writes a JSON and a picture; `python benchmarks/tables.py` renders the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.machine import describe_machine
from benchmarks.reproduce import T_95, interval
from gpt_jax.config import load_config, override
from gpt_jax.devices import request_cpu_devices
from gpt_jax.input_pipeline.corpus import load_corpus
from gpt_jax.input_pipeline.dataset import split_text

ROOT = Path(__file__).parent.parent
MORE_TEXT = "more text"
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


def run_one(values: dict[str, Any], text: str) -> dict[str, Any]:
    """Trains once; returns the curve and the exact figure, in bits per byte, and the cost."""
    import gpt_jax

    with tempfile.TemporaryDirectory() as folder:
        config = override(load_config("nano"), {"data.fallback_corpus": None, **values})
        before = time.perf_counter()
        run = gpt_jax.train(override(config, {"run_dir": f"{folder}/run"}), quiet=True)
        seconds = time.perf_counter() - before
    exact = run.summary["val"]
    assert exact["bytes_predicted"] > 0.99 * len(text.encode()), "another validation text"
    return {
        "bits_per_byte": exact["bits_per_byte"],
        "parameters": run.summary["parameters"],
        "seconds": seconds,
        "curve": {row["step"]: row["val_bpb"] for row in run.rows if "val_bpb" in row},
    }


def draw(result: dict[str, Any], path: Path) -> None:
    """Draws the mean of each direction's curves over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.8), layout="constrained")
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
    axes.legend(frameon=False)
    figure.savefig(path, dpi=144)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, choices=T_95)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/directions.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/directions.png")
    args = parser.parse_args()
    request_cpu_devices(32)
    fraction = load_config("nano").data.train_fraction
    val_text = split_text(load_corpus("oz").text, fraction)["val"]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in DIRECTIONS}
    with tempfile.TemporaryDirectory() as folder:
        settings = {**DIRECTIONS, MORE_TEXT: more_text(Path(folder), fraction)}
        for seed in range(args.seeds):  # seed by seed: a slow hour slows all directions
            for name, values in settings.items():
                values = {**values, "seed": seed, "train.steps": args.steps}
                runs[name].append(run_one(values, val_text))
                bits, seconds = runs[name][-1]["bits_per_byte"], runs[name][-1]["seconds"]
                print(f"{name}, seed {seed}: {bits:.4f} bits per byte, {seconds:.0f} s", flush=True)
    result = {
        "machine": describe_machine(),
        "command": " ".join(["python", *sys.argv]),
        "steps": args.steps,
        "val_characters": len(val_text),
        "directions": {
            name: {
                "settings": DIRECTIONS[name],
                "parameters": row[0]["parameters"],
                "bits_per_byte": interval([one["bits_per_byte"] for one in row]),
                "beside_nano": interval(  # seed by seed: below 0 is better
                    [
                        one["bits_per_byte"] - nano["bits_per_byte"]
                        for one, nano in zip(row, runs["nano"], strict=True)
                    ]
                ),
                "seconds": statistics.median(one["seconds"] for one in row),
                "curve": {
                    step: statistics.mean(one["curve"][step] for one in row)
                    for step in row[0]["curve"]
                },
            }
            for name, row in runs.items()
        },
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, args.picture)
    print(f"written: {args.out}, {args.picture}")


if __name__ == "__main__":
    main()

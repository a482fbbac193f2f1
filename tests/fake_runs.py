"""Folders of runs that nobody trained: what `compare` reads of one, and nothing else."""

import json
from pathlib import Path

from gpt_jax.config import Config, TrainConfig, override, to_dict

NANO = Config(train=TrainConfig(steps=500, eval_interval=100, checkpoint_interval=100))
CORPUS = {"name": "oz", "requested": "oz", "sha256": "5" * 64, "characters": 207_799}


def write_run(
    run_dir, seed=0, loss=1.95, *, settings=None, corpus=None, finished=True, speed=10_000.0,
    summary=None, tokenizer="{}",
):  # fmt: skip
    """Writes a run whose losses fall from `loss` + 2 to `loss`; returns its folder.

    Args:
      run_dir: the folder.
      seed: of the run.
      loss: exact, after the last step; evaluations are 0.01 above it there.
      settings: that differ from `NANO`'s.
      corpus: what differs in the record of the corpus.
      finished: False for a run that stopped before its last evaluation.
      speed: tokens per second.
      summary: what differs in the exact evaluation.
      tokenizer: the text of tokenizer.json; None for none.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True)
    vocabulary = {"model.vocab_size": 73, "seed": seed, "run_dir": str(run_dir)}
    config = override(NANO, {**vocabulary, **(settings or {})})
    values = {k: v for k, v in to_dict(config).items() if k != "run_dir"}
    values |= {"format": 1, "corpus": {**CORPUS, **(corpus or {})}}
    (run_dir / "config.json").write_text(json.dumps(values), encoding="utf-8")
    if tokenizer is not None:
        (run_dir / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    steps, interval = config.train.steps, config.train.eval_interval
    rows = []
    for step in range(0, steps + 1, interval):
        val_loss = loss + 0.01 + 2 * (1 - step / steps)
        row = {
            "step": step,
            "train_loss": val_loss,
            "val_loss": val_loss,
            "val_bpb": val_loss * 1.4,
        }
        if step:
            tokens = interval * config.train.batch_size * config.model.block_size
            row |= {"loss": val_loss, "tokens_per_second": speed, "seconds": tokens / speed}
            row |= {"grad_norm": 1.0}
        rows.append(row)
    rows = rows if finished else rows[:-1]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run_dir / "metrics.jsonl").write_text(text, encoding="utf-8")
    if finished:
        val = {"nats_per_token": loss, "bits_per_byte": loss * 1.4, "tokens_predicted": 41_559}
        record = {"step": steps, "val": {**val, **(summary or {})}}
        (run_dir / "summary.json").write_text(json.dumps(record), encoding="utf-8")
    return run_dir


def write_side(pattern, losses, *, seeds=None, **values):
    """Writes a run for each loss, at PATTERN-SEED; returns their folders."""
    seeds = range(len(losses)) if seeds is None else seeds
    return [
        write_run(f"{pattern}-{seed}", seed, loss, **values)
        for seed, loss in zip(seeds, losses, strict=True)
    ]


def write_sweep(folder, members):
    """Writes a sweep of (values, seed, loss or None for a run that is not finished)."""
    folder, listed = Path(folder), []
    folder.mkdir(parents=True)
    for i, (values, seed, loss) in enumerate(members):
        write_run(folder / f"m{i}", seed, loss or 9.0, settings=values, finished=loss is not None)
        listed.append({"run_dir": f"m{i}", "values": values, "seed": seed})
    shared = {k: v for k, v in to_dict(NANO).items() if k not in ("run_dir", "seed")}
    record = {"format": 1, "version": "0", "config": shared, "config_name": "nano"}
    (folder / "sweep.json").write_text(json.dumps({**record, "members": listed}))
    return folder

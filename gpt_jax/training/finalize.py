"""After the last step: the exact evaluation, a sample, the loss curves, the summary."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax

from gpt_jax.console import Display
from gpt_jax.inference.evaluation import evaluate_split
from gpt_jax.inference.generation import stream
from gpt_jax.parallel import multihost
from gpt_jax.parallel.sharding import spans_hosts
from gpt_jax.run import plots
from gpt_jax.run.folder import SAMPLES_FILE, SUMMARY_FILE
from gpt_jax.run.load import Run
from gpt_jax.storage import open_folder
from gpt_jax.terminal import program_command
from gpt_jax.training.advice import advise
from gpt_jax.training.run_setup import RunSetup


def finalize(
    run: Run, setup: RunSetup, display: Display, seconds_per_step: float | None = None
) -> Run:
    """Evaluates exactly, writes a sample, draws the loss curves; the summary is written last.

    Args:
      run: with all its steps.
      setup: what it was trained from.
      display: where to show it.
      seconds_per_step: see `advice.advise`.
    """
    prompt = run.config.sample.prompt or ""
    with display:
        display.doing("evaluating on the validation split")
        evaluation = evaluate_split(
            run.config.model,
            run.params,
            setup.splits["val"],
            run.tokenizer.token_bytes,
            train=run.config.train,
            max_tokens=run.config.train.final_eval_tokens,
        )
    what = "whole validation split" if evaluation.is_whole else "part of the validation split"
    display.line(f"\n{what}: {evaluation}")
    if not multihost.is_host0():
        if spans_hosts(run.params):  # this host's devices take part
            _sample(run, prompt, display)
        return run
    corpus = Path(run.config.data.corpus).name
    folder = open_folder(run.run_dir)
    title = f"{folder.absolute().name}: {corpus}, {run.step:,} steps"
    parts = []
    if run.config.at_step is not None:
        parts = [(run.config.at_step, f"branch of {Path(run.config.branch_from or '').name}")]
    picture = plots.plot_losses(run.rows, run.run_dir, title, *parts)
    display.line(f"\nsample for {prompt!r}, temperature {run.config.sample.temperature:g}:\n")
    texts = _sample(run, prompt, display)
    display.line("\n")
    try:
        before = folder.read_text(SAMPLES_FILE)
    except (OSError, ValueError):  # there is none, or no text
        before = ""
    heading = f"=== step {run.step}, prompt {prompt!r}, corpus {run.corpus['name']} ===\n"
    texts_before = [part for part in before.split("=== step ") if part]
    kept = [f"=== step {p}" for p in texts_before if not p.startswith(f"{run.step},")]
    folder.write(SAMPLES_FILE, "".join(kept) + "".join(f"{heading}{t}\n\n" for t in texts))
    summary = {
        "step": run.step,
        "corpus": run.corpus,
        "parameters": sum(x.size for x in jax.tree.leaves(run.params)),
        "val": evaluation.record(),
    }
    folder.write(SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    display.line(f"losses over the steps: {picture}")
    sample = program_command("sample", "--run-dir", run.run_dir)
    display.command("more text", sample)
    display.command("a page that shows it", program_command("report", run.run_dir))
    advise(run, display, seconds_per_step)
    return dataclasses.replace(run, summary=summary)


def _sample(run: Run, prompt: str, display: Display) -> list[str]:
    """Returns texts that continue the prompt, and shows the first as it is sampled."""
    display.write(prompt)
    texts = [prompt] * run.config.sample.num_samples
    for pieces in stream(run, prompt):
        display.write(pieces[0])
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    return texts

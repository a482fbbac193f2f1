"""Which runs can't be compared: on other corpora, other validation splits, or with themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gpt_jax.errors import UserError
from gpt_jax.experiments.measures import Metric
from gpt_jax.experiments.sides import RunFiles, Side


def check_comparable(sides: Sequence[Side], metric: Metric) -> None:
    """Raises UserError where a run of one side can't be compared with one of another."""
    first = sides[0].runs[0]
    seen: dict[str, Side] = {}
    for side in sides:
        for run in side.runs:
            place = os.path.realpath(run.run_dir)
            if place in seen:
                raise UserError(f"{run.run_dir} is on both sides; compare it with another run")
            _check_same_corpus(first, run)
            _check_same_split(first, run, metric)
        seen |= {os.path.realpath(run.run_dir): side for run in side.runs}


def _check_same_corpus(a: RunFiles, b: RunFiles) -> None:
    if a.corpus["sha256"] != b.corpus["sha256"]:
        (x, m), (y, n) = ((r.corpus["name"], r.corpus["sha256"][:12]) for r in (a, b))
        raise UserError(
            f"{a.run_dir} and {b.run_dir} were trained on different corpora: {x} with sha256 {m}, "
            f"and {y} with {n}; their losses can't be compared"
        )


def _check_same_split(a: RunFiles, b: RunFiles, metric: Metric) -> None:
    """Raises UserError where the validation splits, or their tokens, are not the same."""
    both = f"{a.run_dir} and {b.run_dir}"
    x, y = (run.config.data.train_fraction for run in (a, b))
    if "characters" in a.corpus and x != y:  # of a text; prepared folders are split already
        raise UserError(
            f"{both} have different validation splits: data.train_fraction is {x:g} and {y:g}"
        )
    same_tokens = _tokens(a) == _tokens(b)
    if metric.is_by_token and not same_tokens:
        raise UserError(
            f"{both} have different tokenizers, so their {metric.title} can't be compared; "
            "use --metric bpb"
        )
    if not metric.is_exact:
        return
    x, y = (run.config.train.final_eval_tokens for run in (a, b))
    if x != y or (x is not None and not same_tokens):
        raise UserError(
            f"{both} were evaluated on different parts of the validation split: "
            f"train.final_eval_tokens is {x or 'all'} and {y or 'all'}"
            + ("" if same_tokens else ", of different tokenizers")
        )
    x, y = (run.summary.get("val", {}).get("tokens_predicted") for run in (a, b))
    if same_tokens and None not in (x, y) and x != y:
        raise UserError(f"{both} have different validation splits: of {x} and {y} tokens")


def _tokens(run: RunFiles) -> tuple[object, ...]:
    data = run.config.data
    settings = data.tokenizer, data.vocab_size, run.config.model.vocab_size
    return (run.tokenizer,) if run.tokenizer else settings

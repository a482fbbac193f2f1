"""trial.json: what a trial asks, and the pairs that it has so far."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_jax.errors import UserError
from gpt_jax.experiments.budgets import Budget
from gpt_jax.experiments.outcomes import Pair, Trial
from gpt_jax.experiments.trees import Tree
from gpt_jax.storage import Folder, NewerFormatError, read_versioned

TRIAL_FILE = "trial.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Question:
    """What a trial asks.

    Attributes:
      config: the settings of the baseline, but its run_dir.
      change: {setting: value} of the other side.
      alpha: the chance of a false verdict, at most.
      smallest: the least difference that matters, in nats per token; None where that was not said.
      paired: both sides have the same seeds.
      equal: what both sides spend alike, see `budgets.EQUALS`; None: each has its own steps.
      trees: the checkout of each side; None: both are computed by this program.
    """

    config: dict[str, Any]
    change: dict[str, Any]
    alpha: float
    smallest: float | None
    paired: bool
    equal: str | None = None
    trees: dict[str, Tree] | None = None


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """What trial.json holds.

    Attributes:
      format: of the file.
      question: what is asked.
      pairs: so far.
      budget: the steps of each side, found before the first pair; None without `question.equal`.
    """

    format: int
    question: Question
    pairs: list[Pair]
    budget: Budget | None = None

    def outcome(self, out: Path, max_pairs: int | None = None) -> Trial:
        """Returns what the pairs show.

        Args:
          out: the trial's folder.
          max_pairs: at most so many; None: those that there are.
        """
        asked = self.question
        return Trial(
            out, asked.change, self.pairs, asked.alpha, asked.smallest, asked.paired,
            len(self.pairs) if max_pairs is None else max_pairs, self.budget, asked.trees,
        )  # fmt: skip


def read_trial(folder: Folder) -> TrialRecord:
    """Returns what trial.json says.

    Raises:
      UserError: it is damaged, or a newer program wrote it.
    """
    path = folder.path / TRIAL_FILE
    try:
        return read_versioned(folder.read_json(TRIAL_FILE), TrialRecord, FORMAT)
    except NewerFormatError as error:
        raise UserError(f"{path} {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}; choose another --out") from error


def record_text(question: Question, pairs: Sequence[Pair], budget: Budget | None = None) -> str:
    """Returns what trial.json is to hold."""
    record = TrialRecord(FORMAT, question, list(pairs), budget)
    return json.dumps(dataclasses.asdict(record), indent=1) + "\n"

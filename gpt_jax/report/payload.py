"""What the page shows, as JSON values; every text of a run is made visible here."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from gpt_jax.experiments.sides import read_run
from gpt_jax.report.live import make_live_model
from gpt_jax.terminal import visible


def make_payload(
    names: Sequence[str], metric: str, max_parameters: int, most_bytes: int
) -> tuple[dict[str, Any], list[str]]:
    """Returns the page's data, and notes on what was left out; see `page.make_report`."""
    runs = [read_run(name) for name in names]
    shown = [{"name": os.path.basename(run.run_dir), "rows": run.rows} for run in runs]
    values = shown_values({"title": ", ".join(names), "runs": shown, "comparison": None})
    live = make_live_model(runs[0].run_dir, max_parameters=max_parameters)
    return {**values, "live": live}, []


def shown_values(value: Any) -> Any:
    """Returns JSON values with control characters shown; null stands for what is no number."""
    if isinstance(value, dict):
        return {visible(name): shown_values(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [shown_values(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return visible(value) if isinstance(value, str) else value

"""The model of a run as the page computes with it: settings, tokenizer, parameters."""

from __future__ import annotations

import os
from typing import Any


def make_live_model(run_dir: str | os.PathLike[str], **options: Any) -> dict[str, Any] | None:
    """Returns what the page computes with, as JSON values; None where it can't or shan't."""
    return None

"""The interval of a mean; see also `statistics.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

LEVEL = 0.95


def interval(values: np.ndarray, axis: int = 0) -> Any:
    """Returns the half width of the mean's 95% interval (Student 1908); NaN of fewer than two."""
    from scipy import special

    n = values.shape[axis]
    if n < 2:
        return values.mean(axis=axis) * np.nan
    t = special.stdtrit(n - 1, (1 + LEVEL) / 2)
    return t * values.std(axis=axis, ddof=1) / math.sqrt(n)

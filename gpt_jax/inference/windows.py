"""Windows over tokens in which every token but the first is predicted exactly once."""

from __future__ import annotations

import numpy as np

from gpt_jax.errors import ConfigError


def count_windows(n_tokens: int, block_size: int, stride: int) -> int:
    """Returns W, the number of windows of `make_windows`."""
    return 1 + max(0, -(-(n_tokens - 1 - block_size) // stride))


def make_windows(
    n_tokens: int, block_size: int, stride: int | None = None, windows: range | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns windows over N tokens in which every token but the first is predicted exactly once.

    Args:
      n_tokens: N, at least 2.
      block_size: T, inputs per window.
      stride: from one window's start to the next, in [1, T]; None is T. A smaller one gives every
        prediction of all windows but the first at least T - stride tokens of context.
      windows: the numbers of the windows to return; None is all W.

    Returns:
      starts (W,) and, for each window, the range [first, last) of its T predictions that count:
      int64 (W,) each. Prediction i of a window is of token start + i + 1.

    Raises:
      ConfigError: the stride is not in [1, T].
    """
    stride = block_size if stride is None else stride
    if not 1 <= stride <= block_size:
        raise ConfigError(f"stride={stride} must be between 1 and block_size={block_size}")
    if windows is None:
        windows = range(count_windows(n_tokens, block_size, stride))
    starts = np.arange(windows.start, windows.stop, dtype=np.int64) * stride
    lasts = np.minimum(starts + block_size, n_tokens - 1) - starts
    firsts = np.where(starts == 0, 0, block_size - stride)
    return starts, firsts, lasts

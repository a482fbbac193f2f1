"""What the steps of gpu_bench.py share: the sizes, the clock and the file of results. No jax."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt_jax.analysis.gpu_chips import model_flops_utilisation

TINY = bool(os.environ.get("TINY"))  # everything small enough for a CPU: a dry run
OUT = Path(os.environ.get("OUT", "."))
NANO_VOCABULARY = 73  # characters of nano's book


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model that base trains; padded_vocab_size is a multiple of 128."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    padded_vocab_size: int


BASE = Sizes(2, 2, 64, 64, 257, 384) if TINY else Sizes(12, 12, 768, 1024, 50257, 50304)
# As the project computes on a CPU, by the fields of gpt_jax.model.tuning.Tuning.
PLAIN = {"unroll": "6", "vocab_multiple": "1", "one_pass_loss": "0", "recompute_activation": "0",
         "most_summed": "0", "least_rows": "1", "split_qkv": "0",
         "one_pass_norm": "0"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of gpu_bench.py: its name and its KEY=VALUE arguments."""

    name: str
    args: dict[str, str]

    def record(self, **figures: Any) -> None:
        """Prints a row of figures as JSON, and appends it to $OUT/results.jsonl at once."""
        line = json.dumps({"what": self.name, **self.args, **figures})
        with open(OUT / "results.jsonl", "a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def record_error(self, error: Exception, **figures: Any) -> None:
        """Records what failed, so that the rest of the step can follow."""
        self.record(**figures, error=f"{type(error).__name__}: {error}"[:300])

    def numbers(self, key: str) -> list[int]:
        return [int(n) for n in self.args[key].split(",")]

    @property
    def batch(self) -> tuple[int, int]:
        """(sequences in a micro-batch, micro-batches in an optimizer step)."""
        if TINY:
            return 2, 2
        return int(self.args.get("micro", 32)), int(self.args.get("accumulate", 4))


def time_calls(
    call: Callable[[], Any], at_least: int = 5, most_seconds: float = 12.0
) -> tuple[float, float, int]:
    """Returns the median and the least seconds of a call, and how many calls were timed.

    Two calls go before. Short calls are timed for 1.5 s, up to 50 of them.
    """
    call()
    call()
    times: list[float] = []
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < most_seconds:
        if len(times) >= at_least and (TINY or elapsed > 1.5 or len(times) >= 50):
            break
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return statistics.median(times), min(times), len(times)


def base_mfu(tokens_per_second: float, n_params: int, device_name: str) -> float | None:
    """Returns the MFU of training base: 6 N + 12 L T D operations per token, N without positions.

    None for a GPU whose peak is not known. Chowdhery et al. 2022, appendix B.
    """
    looked_up = BASE.block_size * BASE.n_embd
    attention = 12 * BASE.n_layer * BASE.block_size * BASE.n_embd
    flops = 6 * (n_params - looked_up) + attention
    return model_flops_utilisation(tokens_per_second * flops, device_name)

"""What the steps of gpu_bench.py share: the sizes, the clock and the file of results. No jax."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt_jax.analysis.gpu_chips import CHIPS, GpuChip, model_flops_utilisation

ROOT = Path(__file__).parents[2]
TINY = bool(os.environ.get("TINY"))  # everything small enough for a CPU: a dry run
OUT = Path(os.environ.get("OUT", "."))
STARTED = time.monotonic()
LIMIT = float(os.environ.get("STEP_LIMIT", "inf"))  # seconds that gpu_run.sh gives this process
NANO_VOCABULARY = 73  # characters of nano's book
PROMPT = 8  # tokens before those that are generated
BFLOAT16 = 2  # bytes


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model that base trains; padded_vocab_size is a multiple of 128."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    padded_vocab_size: int


BASE = Sizes(1, 2, 16, 16, 65, 128) if TINY else Sizes(12, 12, 768, 1024, 50257, 50304)
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
        """Prints a row of figures as JSON, and appends it to $OUT/results.jsonl at once.

        A figure replaces an argument of its name: one of several micro-batches, say.
        """
        part = {"part": int(os.environ["STEP_PART"])} if os.environ.get("STEP_PART") else {}
        line = json.dumps({"what": self.name, **part, **self.args, **figures})
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


def seconds_left() -> float:
    """Returns the seconds until gpu_run.sh ends this process; infinite outside it."""
    return LIMIT - (time.monotonic() - STARTED)


def work_folder(name: str) -> Path:
    """Returns a folder for what a step writes and nobody keeps."""
    return Path(os.environ.get("W") or tempfile.mkdtemp()) / name


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


def peak_flops(device_name: str) -> float | None:
    """Returns the FLOP/s that `base_mfu` counts as all of a GPU; None where that is not known."""
    share = model_flops_utilisation(1e12, device_name)
    return 1e12 / share if share else None


def described_chip(device_name: str) -> tuple[str, GpuChip] | None:
    """Returns the GPU with this name, and what `plan --topology` calls it; None if unknown.

    A dry run has no GPU and takes an H100's rates, so that they are computed with.
    """
    if TINY:
        return "h100", CHIPS["h100"]
    return next(((short, c) for short, c in CHIPS.items() if c.name == device_name), None)


def new_tokens() -> int:
    """Returns how many tokens each stream generates."""
    return 8 if TINY else 256


def decoding_bytes(streams: int, n_params: int) -> float:
    """Returns the bytes that generating one token in each of base's streams must read.

    In bfloat16: each weight once but the table of positions, and keys and values as far as they
    are filled, on average over the tokens.
    """
    weights = n_params - BASE.block_size * BASE.n_embd
    filled = PROMPT + new_tokens() / 2
    return BFLOAT16 * (weights + 2 * streams * BASE.n_layer * BASE.n_embd * filled)

"""The step of gpu_bench.py that makes one table of the results of all calls. No jax."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import ratios
from benchmarks.gpu.harness import OUT
from benchmarks.gpu.results import Call, Row, read_calls, read_files

TITLES = {
    1: "base in bfloat16, beside PyTorch compiled",
    2: "nano, 500 steps, beside PyTorch",
    3: "shakespeare_char, a whole run",
    4: "generation with base, beside PyTorch",
    5: "correctness and reproducibility",
    6: "predicted and measured",
    7: "tests",
    8: "more: profiles, and what was tried",
}
LABELS = (
    *("tuning", "unroll", "vocab_multiple", "one_pass_loss", "recompute_activation", "split_qkv"),
    "one_pass_norm", "config",
    *("micro", "micro_here", "chunk", "mode", "graphs_here", "model", "streams", "deterministic"),
)  # fmt: skip
SHOWN_AS_JSON = ("correct", "reproducible", "profile", "tests")


def summary(paths: Sequence[str | Path]) -> None:
    """Prints one table of the results in files or folders, and writes it to $OUT/summary.txt."""
    text = format_calls(read_files(paths))
    (OUT / "summary.txt").write_text(text)
    print(text)


def format_results(text: str) -> str:
    """Returns the table of results, given as lines of JSON; an incomplete line is left out."""
    return format_calls(read_calls(text))


def format_calls(calls: Sequence[Call]) -> str:
    """Returns the table of the results of some calls: each part, then what is missing."""
    lines = [line for call in calls for line in _header(call)]
    for part in (None, 0, *TITLES):
        sections = [_section(call, part) for call in calls]
        found = [line for section in sections for line in section]
        if part in TITLES:
            lines += ["", f"== part {part}: {TITLES[part]}"]
            found = found or ["not asked for" if not _asked(calls, part) else "no results"]
        lines += found
    return "\n".join([*lines, *_missing(calls)]) + "\n"


def _asked(calls: Sequence[Call], part: int) -> bool:
    return any(part in call.header.get("parts", []) for call in calls)


def _header(call: Call) -> list[str]:
    lines = []
    if call.header:
        parts = ", ".join(map(str, call.header["parts"]))
        began, budget = call.header["call"], call.header["budget_s"]
        lines.append(f"call of {began}, parts {parts}, at most {budget} s")
    return lines + [_facts(row) for row in call.rows if row["what"] == "facts"]


def _section(call: Call, part: int | None) -> list[str]:
    """Returns what a call found for a part: tables, ratios, the rest, and how its steps ended."""
    rows = [row for row in call.rows if row.get("part") == part]
    lines = _training(rows) + _decoding(rows)
    lines += ratios.RATIOS[part](call) if part in ratios.RATIOS else []
    for row in rows:
        if row["what"] in SHOWN_AS_JSON or "error" in row or "skipped" in row:
            rest = {k: v for k, v in row.items() if k not in ("what", "part", "sample")}
            lines.append(f"{row['what']} {json.dumps(rest)}"[:400])
    return lines + [_status(row) for row in call.steps if row.get("part") == part]


def _missing(calls: Sequence[Call]) -> list[str]:
    """Returns the steps, and the rows of steps, that did not fit or failed in their last try."""
    last = {row["step"]: row for call in calls for row in call.steps}
    lines = [_status(row) for row in last.values() if "skipped" in row or row["rc"]]
    ended = {id(row) for call in calls for row in call.rows if "error" in row or "skipped" in row}
    for call in calls:
        for row in call.rows:
            if id(row) in ended:
                why = f"FAILED, {row['error']}" if "error" in row else f"skipped, {row['skipped']}"
                lines.append(f"{_label(row)}: {why}"[:200])
    return ["", "== did not fit, or failed", *(lines or ["nothing"])]


def _training(rows: list[Row]) -> list[str]:
    lines = [_line("training", "ms per step", "tokens/s", "MFU %", "peak GiB", "compile s", "loss")]
    for row in rows:
        if "ms_per_step" in row:
            figures = [
                _figure(row, "ms_per_step"),
                _figure(row, "tokens_per_second", 6),
                _figure(row, "mfu", 3, 100),
                _figure(row, "peak_gib"),
                _figure(row, "compile_s"),
                _figure(row, "loss"),
            ]
            lines.append(_line(_label(row), *figures))
    return lines if len(lines) > 1 else []


def _decoding(rows: list[Row]) -> list[str]:
    lines = [_line("generation", "ms per token", "tokens/s")]
    for row in rows:
        if "ms_per_token" in row:
            figures = _figure(row, "ms_per_token"), _figure(row, "tokens_per_second", 6)
            lines.append(_line(_label(row), *figures))
    return lines if len(lines) > 1 else []


def _facts(row: Row) -> str:
    shown = {k: v for k, v in row.items() if k not in ("what", "part", "platform", "rates")}
    values = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items())
    return "facts " + " ".join(values)


def _status(row: Row) -> str:
    if "skipped" in row:
        return f"step {row['step']}: skipped, {row['skipped']}"
    status = "ok" if row["rc"] == 0 else f"FAILED with exit status {row['rc']}"
    return f"step {row['step']}: {status} after {row['wall_s']} s"


def _line(name: str, *figures: str) -> str:
    return (f"{name:<68}" + "".join(f"{figure:>13}" for figure in figures)).rstrip()


def _label(row: Row) -> str:
    named = [f"{name}={row[name]}" for name in LABELS if name in row]
    return " ".join([row["what"], *named])


def _figure(row: Row, key: str, digits: int = 4, factor: float = 1) -> str:
    value: Any = row.get(key)
    return "" if value is None else f"{factor * value:.{digits}g}"

"""The step of gpu_bench.py that makes a table of the results."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.gpu.harness import OUT, Step

LABELS = (
    *("tuning", "unroll", "vocab_multiple", "one_pass_loss", "recompute_activation", "split_qkv"),
    "one_pass_norm",
    *("micro", "micro_here", "chunk", "mode", "graphs_here", "model", "streams"),
)
Row = dict[str, Any]


def summary(step: Step) -> None:
    """Prints a table of the results so far, and writes it to $OUT/summary.txt."""
    text = format_results((OUT / "results.jsonl").read_text())
    (OUT / "summary.txt").write_text(text)
    print(text)


def format_results(text: str) -> str:
    """Returns the table of results, given as lines of JSON; an incomplete line is left out."""
    rows = [row for line in text.splitlines() if (row := _parse(line))]
    results = [row for row in rows if "what" in row]
    lines = [_facts(row) for row in results if row["what"] == "facts"]
    lines += _training(results) + _decoding(results)
    for row in results:
        if row["what"] in ("correct", "profile") or "error" in row:
            rest = {k: v for k, v in row.items() if k != "what"}
            lines.append(f"{row['what']} {json.dumps(rest)}"[:400])
    steps = [row for row in rows if "step" in row]
    lines += [_status(row) for row in steps]
    return "\n".join(lines) + "\n"


def _parse(line: str) -> Row | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _training(rows: list[Row]) -> list[str]:
    lines = [_line("training", "ms per step", "tokens/s", "MFU %", "peak GiB", "compile s", "loss")]
    for row in rows:
        if "ms_per_step" in row:
            skip = ("micro",) if row["what"] == "sweep" else ()
            figures = [
                _figure(row, "ms_per_step"),
                _figure(row, "tokens_per_second", 6),
                _figure(row, "mfu", 3, 100),
                _figure(row, "peak_gib"),
                _figure(row, "compile_s"),
                _figure(row, "loss"),
            ]
            lines.append(_line(_label(row, skip), *figures))
    return lines


def _decoding(rows: list[Row]) -> list[str]:
    lines = [_line("generation", "ms per token", "tokens/s")]
    for row in rows:
        if "ms_per_token" in row:
            figures = _figure(row, "ms_per_token"), _figure(row, "tokens_per_second", 6)
            lines.append(_line(_label(row), *figures))
    return lines


def _facts(row: Row) -> str:
    shown = {k: v for k, v in row.items() if k not in ("what", "platform")}
    values = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items())
    return "facts " + " ".join(values)


def _status(row: Row) -> str:
    if "skipped" in row:
        return f"step {row['step']}: skipped, {row['skipped']}"
    status = "ok" if row["rc"] == 0 else f"FAILED with exit status {row['rc']}"
    return f"step {row['step']}: {status} after {row['wall_s']} s"


def _line(name: str, *figures: str) -> str:
    return (f"{name:<68}" + "".join(f"{figure:>13}" for figure in figures)).rstrip()


def _label(row: Row, skip: tuple[str, ...] = ()) -> str:
    named = [f"{name}={row[name]}" for name in LABELS if name in row and name not in skip]
    return " ".join([row["what"], *named])


def _figure(row: Row, key: str, digits: int = 4, factor: float = 1) -> str:
    value = row.get(key)
    return "" if value is None else f"{factor * value:.{digits}g}"

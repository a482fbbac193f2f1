"""What the rows of one call say together: ratios, and predictions beside measurements. No jax."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from benchmarks.gpu.results import Call, Row

MFU = "MFU = tokens/s x (6 (N - positions) + 12 L T D) / peak"  # Chowdhery et al. 2022
NANOGPT = "nanoGPT reports 1.4697 for the lowest, and three minutes on one A100"


def fastest(rows: Sequence[Row]) -> Row | None:
    """Returns the row with the most tokens in a second; None without any."""
    return max(rows, key=lambda row: row["tokens_per_second"], default=None)


def of_base(call: Call) -> list[str]:
    """Compares base with PyTorch, each with its best micro-batch."""
    ours = fastest(call.of("train", part=1) + call.of("sweep", part=1))
    theirs = fastest(call.of("torch_train", part=1))
    lines = []
    if ours and theirs:
        ratio = ours["tokens_per_second"] / theirs["tokens_per_second"]
        lines.append(
            f"base: {ratio:.3f} times PyTorch's tokens/s in the same call, each with its best "
            f"micro-batch: {ours.get('micro', 32)} and {theirs['micro']} sequences"
        )
    best = ours or theirs
    if best:
        peak = best.get("peak_flops")
        shown = f"{peak / 1e12:.0f} TFLOP/s, {best['device']} in bfloat16" if peak else "not known"
        lines.append(f"{MFU}; peak: {shown}")
    return lines


def of_nano(call: Call) -> list[str]:
    """Compares nano with each of PyTorch's ways, and says how both multiply."""
    ours, theirs = call.of("nano", part=2), call.of("torch_nano", part=2)
    lines = []
    if ours:
        seconds = ours[0]["seconds_of_500_steps"]
        lines.append(f"nano: 500 steps in {seconds:.3g} s")
        for row in theirs:
            ratio = row["seconds_of_500_steps"] / seconds
            lines.append(
                f"nano: {ratio:.3g} times the steps per second of PyTorch {row['mode']} in the "
                f"same call, which takes {row['seconds_of_500_steps']:.3g} s"
            )
    used = {(name, row["tf32"]) for name, rows in (("gpt_jax", ours), ("PyTorch", theirs))
            for row in rows if "tf32" in row}  # fmt: skip
    if used:
        ways = {tf32 for _, tf32 in used}
        said = {True: "as TF32", False: "in full"}
        how = f"both {said[ways.pop()]}" if len(ways) == 1 and len(used) == 2 else ", ".join(
            f"{name} {said[tf32]}" for name, tf32 in sorted(used)
        )  # fmt: skip
        lines.append(f"nano: float32, whose products are multiplied {how}, by their errors")
    return lines


def of_runs(call: Call) -> list[str]:
    """Says what whole runs reached, and how far those came that did not end."""
    return [
        f"{row['config']}: {line}"
        for row in call.rows
        if row["what"] == "run"
        for line in _run(row)
    ]


def _run(row: Row) -> list[str]:
    if "steps" not in row:
        return [f"no step in {row['seconds']:.0f} s"]
    how_far = f"all {row['steps']:,} steps" if row["status"] == 0 else (
        f"{row['steps']:,} of {row['of_steps']:,} steps"
    )  # fmt: skip
    lines = [f"{how_far} in {row['seconds']:.0f} s, from the command's start"]
    if row.get("tokens_per_second"):
        lines.append(
            f"{row['tokens_per_second']:,.0f} tokens/s in its steps, which are "
            f"{row['seconds_of_steps']:.1f} s of it, in {row['dtype']}"
        )
    if "val_loss" in row:
        lines.append(
            f"val loss {row['val_loss']:.4f} at the end, {row['lowest_val_loss']:.4f} the lowest "
            f"of {row['evaluations']}, at step {row['lowest_at_step']:,}"
        )
    if "exact_val_loss" in row:
        lines.append(f"{row['exact_val_loss']:.4f} on the whole validation split")
    if row["config"] == "shakespeare_char":
        lines.append(NANOGPT)
    return lines + [f"sample | {line}" for line in row.get("sample", "").splitlines()]


def of_decoding(call: Call) -> list[str]:
    """Compares decoding with PyTorch's, and with the bandwidth of copies in the same process."""
    lines = []
    for row in call.of("decode", part=4):
        share = row.get("share_of_copies")
        if share is not None:
            lines.append(
                f"decode streams={row['streams']}: {row['gb_per_token']:.3g} GB per token, "
                f"{100 * share:.1f}% of the {row['copy_tb_per_second']:.3g} TB/s that copies move"
            )
        for other in call.of("torch_decode", part=4):
            if other["streams"] == row["streams"]:
                ratio = other["ms_per_token"] / row["ms_per_token"]
                lines.append(
                    f"decode streams={row['streams']}: {ratio:.3g} times the tokens/s of PyTorch "
                    f"({other['mode']}) in the same call"
                )
    if lines:
        lines.append(
            "bytes: the weights once, keys and values as far as they are filled, in bfloat16"
        )
    return lines


def of_predictions(call: Call) -> list[str]:
    """Shows each prediction beside what was measured, and the cost of --train.deterministic."""
    lines = []
    rows = call.of("predict", part=6)
    for row in rows:
        name = row["config"] + (" deterministic" if row.get("deterministic") == "1" else "")
        lines += [f"{name:<34}{'predicted':>12}{'measured':>12}{'measured / predicted':>24}"]
        seen = {"ms": row["ms_per_step"], "gib": row["peak_gib"], "mfu": row["mfu"]}
        for source in ("compiled", "committed"):
            found = row[source] or {}
            for key, title in (("ms", "ms per step, bound"), ("mfu", "MFU, at most"),
                               ("gib", "GiB")):  # fmt: skip
                lines += _beside(f"  {source}: {title}", found.get(key), seen[key])
            if "no_bound" in found:
                lines.append(f"  {source}: no bound, {found['no_bound']}")
            if not found:
                lines.append(f"  {source}: none of this step on {row['device']}")
        lines += _beside("  estimate: GiB at least", row["estimate_gib"], seen["gib"])
        for group in (row["compiled"] or {}).get("groups", []):
            title = f"  ms of {group['group']}"
            lines += _beside(title, group["bound_ms"] or 0.0, group["ms"])
    times = {row.get("deterministic") == "1": row["ms_per_step"]
             for row in rows if row["config"] == "base"}  # fmt: skip
    if len(times) == 2:
        lines.append(
            f"--train.deterministic: base takes {times[True]:.4g} ms a step with it, "
            f"{times[False]:.4g} without: {times[True] / times[False]:.3f} times the time"
        )
    return lines


def _beside(title: str, predicted: float | None, measured: float | None) -> list[str]:
    if predicted is None:
        return []
    if not measured or not math.isfinite(measured):
        return [f"{title:<34}{predicted:>12.4g}{'not known':>12}"]
    ratio = f"{measured / predicted:.3f}" if predicted else "-"
    return [f"{title:<34}{predicted:>12.4g}{measured:>12.4g}{ratio:>24}"]


def of_correctness(call: Call) -> list[str]:
    """Says whether runs of the same bits were the same."""
    lines = []
    for row in call.of("reproducible", part=5):
        for key, what in (("same_twice", "two runs"), ("same_after_kill", "killed and resumed")):
            if key in row:
                different = f"DIFFERENT in {', '.join(row['different'])}"
                said = "the same bits" if row[key] else different
                lines.append(f"--train.deterministic, {what}: {said}")
    return lines


def of_tests(call: Call) -> list[str]:
    """Counts the tests."""
    names = ("passed", "failed", "skipped_tests", "errors")
    return [
        ", ".join(f"{row[name]} {name.removesuffix('_tests')}" for name in names)
        + (f"; {row['error']}" if "error" in row else "")
        for row in call.rows
        if row["what"] == "tests" and "passed" in row
    ]


RATIOS: dict[int | None, Callable[[Call], list[str]]] = {
    1: of_base,
    2: of_nano,
    3: of_runs,
    4: of_decoding,
    5: of_correctness,
    6: of_predictions,
    7: of_tests,
}

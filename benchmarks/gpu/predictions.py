"""The step of gpu_bench.py that puts a plan's bound and memory beside what is measured."""

from __future__ import annotations

import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.harness import ROOT, TINY, Step, described_chip, peak_flops
from benchmarks.gpu.internals import (
    Group,
    Training,
    choose_attention,
    estimate_memory,
    find_bound,
    fix_schedule,
    load_config,
    model_flops,
    override,
    program_bytes,
    resolve_dtype,
    target_backend,
)
from benchmarks.gpu.profiles import time_by_instruction
from benchmarks.gpu.project_steps import GIB, base_config, change_project, measure

UNKNOWN = "not attributed"
PLANS = ROOT / "benchmarks/results/gpu_plans.json"
SHAKESPEARE_VOCABULARY = 65
SMALL = {
    "model.n_layer": 1, "model.n_embd": 16, "model.n_head": 2, "model.block_size": 8,
    "train.batch_size": 4,
}  # fmt: skip


def predict(step: Step) -> None:
    """Trains a config on random tokens, and records the same figures as predicted.

    Each group of the program's kernels has its bound beside the time in a profile. Predicted three
    ways: by the program that was compiled here, whose text gives the bound and
    whose memory XLA planned; by the estimate before compiling; and by the committed plan, which was
    compiled without a GPU, where there is one of this config on this GPU.
    """
    change_project({})
    config, steps = base_config(step), 1
    if step.args["config"] != "base":
        values = {"model.vocab_size": SHAKESPEARE_VOCABULARY} | (SMALL if TINY else {})
        config, steps = override(load_config(step.args["config"]), values), 20
    config, _ = resolve_dtype(config, target_backend())
    training = Training(config, steps)
    row = measure(training, 3)
    flops = model_flops(config.model, training.n_params, training.tokens)
    rate = flops * row["tokens_per_second"] / training.tokens
    peak = peak_flops(row["device"])
    row |= {"mfu": rate / peak if peak else None, "peak_flops": peak}
    compiled = predict_by_program(training, flops, row["device"])
    need = estimate_memory(fix_schedule(config), (1, 1, 1, 1), target_backend())
    tokens = training.tokens // steps
    step.record(
        **row,
        attention=choose_attention(config.model, target_backend())[0],
        compiled=compiled,
        estimate_gib=need.total / GIB,
        committed=committed_plan(step.args["config"], row["device"], training.n_params, tokens),
    )
    training.close()


def predict_by_program(training: Training, flops: float, device_name: str) -> dict[str, Any]:
    """Returns the bound and the memory of a compiled program, or why there is no bound."""
    program = training.wait()
    found: dict[str, Any] = {"gib": program_bytes(program.memory_analysis()) / GIB}
    chip = described_chip(device_name)
    if chip is None:
        return {**found, "no_bound": f"no data sheet of {device_name}"}
    try:
        groups, purposes = find_bound(program.as_text(), chip[1])
    except Exception as error:  # the text is XLA's, and may hold what is not known
        return {**found, "no_bound": f"{type(error).__name__}: {error}"[:200]}
    seconds = sum(group.seconds for group in groups)
    if not seconds:
        return {**found, "no_bound": "the program's text has no kernels"}
    found["ms"] = 1e3 * seconds / training.steps
    found["launches"] = sum(group.launches for group in groups) / training.steps
    if chip[1].peak_flops:
        found["mfu"] = flops / seconds / chip[1].peak_flops
    try:
        spent = time_by_instruction(training.run, f"predict-{training.n_params}")
        found["groups"] = compare_groups(groups, purposes, spent, training.steps)
    except Exception as error:  # of the profiler, which may be missing
        found["no_groups"] = f"{type(error).__name__}: {error}"[:200]
    return found


def compare_groups(
    groups: Sequence[Group], purposes: Mapping[str, str], spent: Mapping[str, float], steps: int
) -> list[dict[str, Any]]:
    """Returns for each group of kernels the bound and the time of a step, in milliseconds.

    Args:
      groups: of the program.
      purposes: the group of each instruction.
      spent: milliseconds of each instruction in a call; those of none that is known come last.
      steps: in a call.
    """
    measured: collections.Counter[str] = collections.Counter()
    for name, ms in spent.items():
        measured[purposes.get(name, UNKNOWN)] += ms / steps
    bounds = {group.name: 1e3 * group.seconds / steps for group in groups}
    return [
        {"group": name, "bound_ms": bounds.get(name), "ms": measured.get(name)}
        for name in dict.fromkeys([*bounds, *measured])
    ]


def committed_plan(
    name: str, device_name: str, n_params: int, tokens: int
) -> dict[str, Any] | None:
    """Returns the bound and memory of the plan in benchmarks/results; None where there is none.

    Args:
      name: of the config.
      device_name: as the driver gives it.
      n_params: of the model; another number is another model.
      tokens: in an optimizer step; another number is another step.
    """
    chip = described_chip(device_name)
    if chip is None or not PLANS.is_file():
        return None
    command = f"python main.py plan --config {name} --topology {chip[0]}:1"
    plan = json.loads(PLANS.read_text("utf-8"))["plans"].get(command)
    if plan is None or (plan["n_params"], plan["tokens"]) != (n_params, tokens):
        return None
    launches = sum(group["launches"] for group in plan["groups"])
    return {
        "gib": plan["memory"] / GIB,
        "ms": 1e3 * plan["kernel_seconds"],
        "mfu": plan["mfu"],
        "launches": launches,
    }

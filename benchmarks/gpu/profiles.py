"""The step of gpu_bench.py that says where the time goes, kernel by kernel."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks.gpu.harness import OUT, TINY, Step, work_folder
from benchmarks.gpu.internals import STREAM_TOKENS, Training, generate, init_params
from benchmarks.gpu.project_steps import base_config, change_project, nano_config


def profile(step: Step) -> None:
    """Appends kernels by name and time to $OUT/profiles.txt.

    Of 2 train steps; with `batch`, of so many streams that generate STREAM_TOKENS tokens.
    """
    change_project(step.args)
    name = " ".join([step.name, *step.args.values()])
    config = base_config(step) if step.args["model"] == "base" else nano_config()
    if streams := step.args.get("batch"):
        params = init_params(config.model)
        call = lambda: generate(config.model, params, int(streams), STREAM_TOKENS)
    else:
        training = Training(config, 2)
        training.wait()
        training.start()
        call = training.run
    call()
    folder = work_folder(name.replace(" ", "_"))
    with jax.profiler.trace(str(folder)):
        call()
    lines = [f"# {name}", *_profile_lines(next(folder.rglob("*.xplane.pb")))]
    with open(OUT / "profiles.txt", "a") as file:
        file.write("\n".join(lines) + "\n\n")
    step.record(profile=name, lines=len(lines), first=lines[1] if len(lines) > 1 else "no GPU")


def device_lines(trace: Path) -> Iterator[tuple[str, list[Any]]]:
    """Yields the name and the events of each line of a profile that a device wrote."""
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        if "GPU" in plane.name or (TINY and "CPU" in plane.name):
            for line in plane.lines:
                if events := list(line.events):
                    yield f"{plane.name} {line.name}", events


def time_by_instruction(call: Callable[[], Any], name: str) -> dict[str, float]:
    """Returns the milliseconds that a call's kernels take, by the instruction that each executes.

    By "" those of kernels whose instruction the profiler does not know.

    Args:
      call: what is profiled, once.
      name: of the folder for the profile.
    """
    folder = work_folder(name)
    with jax.profiler.trace(str(folder)):
        call()
    found: collections.Counter[str] = collections.Counter()
    for line, events in device_lines(next(folder.rglob("*.xplane.pb"))):
        if " Stream" in line or TINY:  # others repeat the same kernels
            for event in events:
                found[str(dict(event.stats).get("hlo_op", ""))] += event.duration_ns / 1e6
    return dict(found)


def _profile_lines(trace: Path) -> list[str]:
    lines = []
    for name, some in device_lines(trace):
        events = [(e.name, e.start_ns, e.duration_ns) for e in some]
        busy: collections.Counter[str] = collections.Counter()
        for event, _, duration in events:
            busy[event] += duration
        count = collections.Counter(event for event, _, _ in events)
        span = max(s + d for _, s, d in events) - min(s for _, s, _ in events)
        lines.append(
            f"## {name}: busy {busy.total() / 1e6:.2f} ms of {span / 1e6:.2f}, {len(events)} events"
        )
        lines += [
            f"{ns / 1e6:10.3f} ms {count[event]:6d}x  {event[:150]}"
            for event, ns in busy.most_common(45)
        ]
    return lines

"""A run that is killed again and again, against one that is not: are they the same bits?

    python benchmarks/chaos.py

Trains a small model twice with `python main.py`: once undisturbed, and once killed with SIGKILL at
random moments and resumed by the same command, until it ends. Saves and evaluations are
frequent, so that many kills fall into one. Then the whole state (parameters, the optimizer's, the
step) and all rows but their timing fields must be equal bit for bit. It does so with one device and
with eight. Last, it sends SIGTERM to `--config nano`, also at random moments, and takes the time to
its end. The status is 1 where something differs, where a run ended before all kills, or did not
save at a SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
# fmt: off
SETTINGS = [
    "--config", "nano", "--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "32",
    "--model.block-size", "32", "--train.batch-size", "8", "--train.log-interval", "5",
    "--train.eval-interval", "100", "--train.checkpoint-interval", "200",
    "--train.eval-batches", "50",
]
# fmt: on


def start(run_dir: Path, settings: list[str], devices: int | None = None) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "main.py"), *settings, "--run-dir", str(run_dir)]
    env = os.environ | ({"JAX_NUM_CPU_DEVICES": str(devices)} if devices else {})
    log = (run_dir.parent / f"{run_dir.name}.log").open("ab")
    with log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=log)


def where_it_was(run_dir: Path) -> str:
    """Returns what a kill interrupted, by what it left behind."""
    if not (run_dir / "metrics.jsonl").exists():
        return "before the first row"
    if is_saving(run_dir):
        return "in a save"
    return "elsewhere: starting, between chunks, in steps or in an evaluation"


def is_saving(run_dir: Path) -> bool:
    """Returns whether a checkpoint is there without its manifest, or the other way round."""
    checkpoints = run_dir / "checkpoints"
    names = {path.name for path in checkpoints.iterdir()} if checkpoints.exists() else set()
    whole = manifests(run_dir)
    return whole != {name for name in names if not name.endswith(".json")}


def torment(
    run_dir: Path, settings: list[str], devices: int, n_kills: int, draw: random.Random
) -> dict[str, Any]:
    """Trains with this many kills, then to the end; returns how many there were, and where."""
    kills: dict[str, int] = {}
    longest = 2.0  # seconds from a life's start to its first checkpoint
    while True:
        before = manifests(run_dir)
        process, begun = start(run_dir, settings, devices), time.monotonic()
        kind = draw.random()
        if sum(kills.values()) == n_kills:
            delay = None
        elif kind < 0.2:  # at any time of its start
            delay = draw.uniform(0, longest)
        else:  # once it trains and has saved
            while process.poll() is None and manifests(run_dir) <= before:
                time.sleep(0.002)
            longest = max(longest, time.monotonic() - begun)
            delay = draw.uniform(0, 1)
            if kind < 0.6:  # while it saves again
                while process.poll() is None and not is_saving(run_dir):
                    time.sleep(0.001)
                delay = draw.uniform(0, 0.03)
        try:
            status = process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            status = process.wait()
        if status == 0:
            return {"kills": sum(kills.values()), "left": dict(sorted(kills.items()))}
        if status != -signal.SIGKILL:
            raise SystemExit(f"status {status}: see {run_dir}.log")
        where = where_it_was(run_dir)
        kills[where] = kills.get(where, 0) + 1
        newest = max(manifests(run_dir), default="none")
        print(f"{devices} devices, kill {sum(kills.values())}, {newest}: {where}", flush=True)


def tell_to_stop(run_dir: Path, times: int, draw: random.Random) -> list[float]:
    """Sends SIGTERM to a run of nano, resumed each time; returns the seconds to each end."""
    seconds = []
    for _ in range(times):
        rows = run_dir / "metrics.jsonl"
        before = rows.read_text().count("\n") if rows.exists() else 0
        process = start(run_dir, ["--config", "nano", "--train.steps", "5000"])
        while not rows.exists() or rows.read_text().count("\n") <= before:  # it trains
            if process.poll() is not None:
                raise SystemExit(f"status {process.returncode}: see {run_dir}.log")
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 8))
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)
        status = process.wait()
        seconds.append(time.monotonic() - told)
        said = Path(f"{run_dir}.log").read_text().splitlines()[-1]
        if status != 128 + signal.SIGTERM or not said.startswith("SIGTERM: "):
            raise SystemExit(f"status {status}: {said}")
        print(f"{seconds[-1]:.2f} s: {said}", flush=True)
    return seconds


def manifests(run_dir: Path) -> set[str]:
    """Returns the names of the checkpoints that are whole."""
    return {path.stem for path in (run_dir / "checkpoints").glob("*.json")}


def differences(one: Path, other: Path) -> list[str]:
    """Returns which arrays of the final state and which rows differ, bit for bit."""
    import jax
    import numpy as np

    import gpt_jax
    from gpt_jax.run import checkpoints as checkpoint
    from gpt_jax.run.metrics import TIMING_FIELDS
    from gpt_jax.training.state import state_shapes

    config = gpt_jax.load_run(one).config
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        state_shapes(config.model, config.optim),
    )
    states = [checkpoint.load(r, config.train.steps, target) for r in (one, other)]
    leaves = [jax.tree_util.tree_leaves_with_path(state) for state in states]
    found = [
        jax.tree_util.keystr(path)
        for (path, a), (_, b) in zip(*leaves, strict=True)
        if np.asarray(a).tobytes() != np.asarray(b).tobytes()
    ]
    rows = [gpt_jax.load_run(r).rows for r in (one, other)]
    if len(rows[0]) != len(rows[1]):
        return [*found, f"{len(rows[0])} and {len(rows[1])} rows"]
    for a, b in zip(*rows, strict=True):
        names = ({*a} | {*b}) - {*TIMING_FIELDS}
        found += [f"row {a['step']}, {name}" for name in names if a.get(name) != b.get(name)]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30, help="kills per number of devices")
    parser.add_argument("--signals", type=int, default=12, help="SIGTERMs")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/chaos.json")
    args = parser.parse_args()
    from benchmarks.machine import describe_machine

    settings = [*SETTINGS, "--train.steps", str(args.steps)]
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "command": " ".join(["python", "benchmarks/chaos.py", *sys.argv[1:]]),
        "settings": " ".join(settings),
        "devices": {},
    }
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for devices in args.devices:
            calm, killed = (Path(folder) / f"{name}-{devices}" for name in ("calm", "killed"))
            if start(calm, settings, devices).wait():
                raise SystemExit((Path(folder) / f"{calm.name}.log").read_text())
            found = torment(killed, settings, devices, args.kills, random.Random(args.seed))
            found["different"] = differences(calm, killed)
            result["devices"][str(devices)] = found
            failed |= bool(found["different"]) or found["kills"] < args.kills
            print(f"{devices} devices: {found}")
        seconds = tell_to_stop(Path(folder) / "told", args.signals, random.Random(args.seed))
        result["sigterm_seconds"] = [round(x, 3) for x in seconds]
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {args.out}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

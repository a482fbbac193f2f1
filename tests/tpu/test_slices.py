"""Every config, compiled for the TPU slice that its header names; and what is refused.

Kept apart, for libtpu is no small install: `make test-tpu`. No TPU is needed.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CONFIGS = sorted(ROOT.glob("configs/*.py"))
SMALL_CONFIGS = ("nano", "nano_bpe", "nano_original", "nano_tuned")
SMALL_CONFIGS += ("shakespeare_char", "shakespeare_cpu")


def run(words: list[str]) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return subprocess.run(
        [sys.executable, "main.py", *words], cwd=ROOT, env=env, capture_output=True, text=True
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_fits_the_slice_of_its_header(path):
    header = path.read_text("utf-8").replace("\\\\\n", " ")
    plans = [line for line in header.splitlines() if line.startswith("python main.py plan")]
    (line,) = [line for line in plans if re.search(r"--topology v\d", line)]  # others are of GPUs
    words = line.split()[2:]
    assert words[words.index("--config") + 1] == path.stem
    done = run([*words, "--json", "--sampling"])
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads(done.stdout)
    assert plan["fits"]
    assert plan["memory"] <= plan["limit"]
    assert plan["sampling"] <= plan["limit"]
    if count := re.match(r"\D*([\d,]+)[ -]parameter", header.partition("\n")[0]):
        assert count[1] == f"{plan['n_params']:,}"
    assert plan["collectives"]
    assert set(plan["seconds"]) == {"computing", "memory", "network"}
    if plan["attention"].startswith("plain"):
        assert re.search("dropout 0.2; fused has none|fused needs a block_size", plan["attention"])
    else:
        assert plan["attention"].startswith("fused (splash")


@pytest.mark.parametrize("chip", ["v5e", "v6e"])
@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_a_small_config_compiles_for_the_tpus_of_colab(name, chip):
    words = ["plan", "--config", name, "--topology", f"{chip}:1x1", "--model.dtype", "auto"]
    done = run([*words, "--train.micro-batch", "auto", "--json"])
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads(done.stdout)
    assert plan["fits"]
    assert plan["notes"][0] == "model.dtype=auto is bfloat16: a TPU multiplies it fastest"


def test_what_does_not_fit_is_told_with_a_way_out():
    """Whole copies of large's state: parameters, gradients, two moments, 16 bytes each."""
    done = run(["plan", "--config", "large", "--topology", "v5e:2x2", "--train.micro-batch", "4"])
    assert done.returncode == 1
    assert "does NOT fit" in done.stdout
    assert "it fits with" in done.stdout
    assert "--mesh.data 1 --mesh.fsdp 4" in done.stdout


@pytest.mark.parametrize("topology", ["v5e:3x3x3", "v99:2x2", "nonsense"])
def test_no_such_slice_is_one_line(topology):
    done = run(["plan", "--config", "base", "--topology", topology])
    assert done.returncode == 2
    assert f"error: topology={topology} is not a TPU slice" in done.stderr

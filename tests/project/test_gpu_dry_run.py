"""benchmarks/gpu as it runs on a GPU, in small on a CPU: both calls, every kind of step."""

import importlib.util
import json
import os
import random
import re
import subprocess
import sys

import pytest
from conftest import ROOT

HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
# All but one that does what another does, with another config.
STEPS = "facts|train|sweep|nano|run_|decode|correct|reproducible|predict_config=base|tests"
WORDS = ("The", "Great", "Wizard", "said", "to", "Dorothy", "and", "Toto;", '"come', 'back!"')


@pytest.fixture
def texts(tmp_path):
    """A folder with the named texts, which are too short to be the real ones."""
    (tmp_path / "texts").mkdir()
    for seed, name in enumerate(("wizard_of_oz.txt", "tinyshakespeare.txt")):
        words = random.Random(seed).choices(WORDS, k=1500)
        lines = [" ".join(words[i : i + 10]) for i in range(0, len(words), 10)]
        (tmp_path / "texts" / name).write_text("\n".join(lines))
    return tmp_path / "texts"


@pytest.fixture
def started():
    """Calls that have been started; none of them begins another step after the test."""
    calls = []
    yield calls
    for call in calls:
        call.kill()
        call.wait()


def start(parts, folder, texts):
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    env |= {"TINY": "1", "PY": sys.executable, "JAX_PLATFORMS": "cpu"}
    env |= {"CACHE": str(folder / "cache"), "ONLY": STEPS}
    command = ["bash", str(ROOT / "benchmarks/gpu/gpu_run.sh"), parts]
    command += ["--out", str(folder / parts), "--data", str(texts)]
    with open(folder / f"{parts}.txt", "w") as file:
        return subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_a_dry_run_does_every_kind_of_step(tmp_path, texts, started):
    for parts in ("1-3", "4-7"):  # side by side
        started.append(start(parts, tmp_path, texts))
    folders = [tmp_path / parts for parts in ("1-3", "4-7")]
    for call, folder in zip(started, folders, strict=True):
        said = lambda folder=folder: (folder / "log.txt").read_text()[-6000:]
        assert call.wait(540) == 0, said()
        rows = list(map(json.loads, (folder / "results.jsonl").read_text().splitlines()))
        for row in rows:
            reason = row.get("skipped")
            assert row.get("rc", 0) == 0, (row, said())
            assert "error" not in row, (row, said())
            torch_missing = reason == "PyTorch is not installed" and not HAS_TORCH
            assert reason in (None, "transformers is not installed") or torch_missing, row
    check_rows(folders)
    summary = subprocess.run(
        [sys.executable, "benchmarks/gpu/gpu_bench.py", "summary", *map(str, folders)],
        cwd=ROOT, env=os.environ | {"OUT": str(tmp_path)}, capture_output=True, text=True,
        check=True,
    ).stdout  # fmt: skip
    assert (tmp_path / "summary.txt").read_text() == summary.removesuffix("\n")
    parts = re.split(r"^== part ", summary, flags=re.MULTILINE)[1:]
    assert [part[0] for part in parts] == list("12345678")
    for part in parts[:7]:
        assert "not asked for" not in part
        assert "no results" not in part
    assert "two runs: the same bits" in summary
    assert "killed and resumed: the same bits" in summary
    assert "--train.deterministic: base takes" in summary
    assert ("nothing" in summary.splitlines()[-1]) == (HAS_TORCH and HAS_TRANSFORMERS)


def check_rows(folders):
    """Finds in the rows of each kind what it is for."""
    lines = [(folder / "results.jsonl").read_text().splitlines() for folder in folders]
    rows = {}
    for row in (row for some in lines for row in map(json.loads, some) if "what" in row):
        rows.setdefault(row["what"], []).append(row)
    kinds = {"facts", "train", "sweep", "nano", "run", "decode", "correct", "reproducible"}
    kinds |= {"predict", "tests"}
    kinds |= {"torch_train", "torch_nano", "torch_decode"} if HAS_TORCH else set()
    assert rows.keys() == kinds
    assert {row["micro"] for row in rows["sweep"]} == {8, 16, 64}
    assert {row["streams"] for row in rows["decode"]} == {1, 64, 256}
    assert all(row["share_of_copies"] > 0 for row in rows["decode"])
    (run,) = rows["run"]
    assert (run["config"], run["steps"], run["status"]) == ("shakespeare_char", 20, 0)
    assert run["sample"]
    assert run["lowest_val_loss"] <= run["val_loss"]
    same = {key: row[key] for row in rows["reproducible"] for key in row if key.startswith("same")}
    assert same == {"same_twice": True, "same_after_kill": True}
    killed = rows["reproducible"][1]
    assert 0 < killed["killed_after_step"] < killed["steps"]
    assert [row.get("deterministic") for row in rows["predict"]] == [None, "1"]
    (tests,) = rows["tests"]
    assert tests["passed"] > 0
    assert tests["failed"] == tests["errors"] == 0

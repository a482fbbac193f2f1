"""What benchmarks/gpu makes of results: of two calls, of runs that ended early, of plans."""

import json
import re
import shutil
import subprocess

import pytest
from conftest import ROOT

from benchmarks.gpu import harness, predictions, whole_runs
from benchmarks.gpu.internals import Group
from benchmarks.gpu.results import read_calls, read_files
from benchmarks.gpu.summary import format_calls

SCRIPT = str(ROOT / "benchmarks/gpu/gpu_run.sh")
RUN = ROOT / "tests/fixtures/run_2026_11/run"
CALL_1 = [
    {"call": "2026-11-27T10:00:00Z", "parts": [1, 2, 3], "budget_s": 510},
    {"what": "facts", "part": 1, "kind": "NVIDIA H200"},
    {"what": "train", "part": 1, "micro": 32, "ms_per_step": 2.0, "tokens_per_second": 500.0},
    {"what": "sweep", "part": 1, "micro": 16, "ms_per_step": 1.6, "tokens_per_second": 600.0,
     "mfu": 0.5, "peak_flops": 989e12, "device": "NVIDIA H200"},
    {"what": "sweep", "part": 1, "micro": 64, "error": "RESOURCE_EXHAUSTED"},
    {"what": "torch_train", "part": 1, "micro": 8, "ms_per_step": 2.0, "tokens_per_second": 400.0},
    {"what": "torch_train", "part": 1, "micro": 64, "skipped": "no time left"},
    {"step": "train", "part": 1, "rc": 0, "wall_s": 30},
    {"what": "nano", "part": 2, "ms_per_step": 1.0, "seconds_of_500_steps": 0.5, "tf32": True},
    {"what": "torch_nano", "part": 2, "mode": "eager", "ms_per_step": 4.0,
     "seconds_of_500_steps": 2.0, "tf32": True},
    {"what": "run", "part": 3, "config": "shakespeare_char", "status": 124, "seconds": 99.0,
     "steps": 1750, "of_steps": 5000, "error": "the time limit ended it after 99 s"},
    {"step": "run", "part": 3, "rc": 124, "wall_s": 100},
]  # fmt: skip
CALL_2 = [
    {"call": "2026-11-27T11:00:00Z", "parts": [4, 6], "budget_s": 300},
    {"what": "decode", "part": 4, "streams": 64, "ms_per_token": 1.0, "tokens_per_second": 64e3,
     "gb_per_token": 0.5, "share_of_copies": 0.25, "copy_tb_per_second": 3.5},
    {"what": "torch_decode", "part": 4, "mode": "transformers", "streams": 64,
     "ms_per_token": 3.0, "tokens_per_second": 21e3},
    {"what": "torch_decode", "part": 4, "mode": "transformers", "streams": 1, "ms_per_token": 3.0,
     "tokens_per_second": 333.0},
    {"what": "predict", "part": 6, "config": "base", "device": "NVIDIA H200", "ms_per_step": 1000.0,
     "peak_gib": 20.0, "mfu": 0.44, "estimate_gib": 16.0, "committed": None,
     "compiled": {"ms": 800.0, "gib": 20.0, "mfu": 0.55, "groups": [
         {"group": "MLP products", "bound_ms": 250.0, "ms": 300.0},
         {"group": "not attributed", "bound_ms": None, "ms": 7.0}]}},
    {"what": "predict", "part": 6, "config": "base", "deterministic": "1", "device": "NVIDIA H200",
     "ms_per_step": 1100.0, "peak_gib": None, "mfu": 0.4, "estimate_gib": 16.0, "committed": None,
     "compiled": {"gib": 20.0, "no_bound": "the program's text has no kernels"}},
    {"step": "predict", "part": 6, "skipped": "no time left"},
]  # fmt: skip


@pytest.fixture
def summary(tmp_path):
    """The summary of two calls: one left a folder, the other a file; the last line is cut off."""
    (tmp_path / "first").mkdir()
    for path, rows in (("first/results.jsonl", CALL_1), ("second.jsonl", CALL_2)):
        text = "\n".join(map(json.dumps, rows)) + '\n{"what": "cut'
        (tmp_path / path).write_text(text)
    return format_calls(read_files([tmp_path / "first", tmp_path / "second.jsonl"]))


def section(summary, part):
    return summary.partition(f"== part {part}:")[2].partition("\n== ")[0]


def test_a_summary_merges_calls_and_has_every_part(summary):
    assert re.findall(r"^== part (\d)", summary, re.MULTILINE) == list("12345678")
    for part in (5, 7, 8):
        assert "not asked for" in section(summary, part)
    assert "call of 2026-11-27T10:00:00Z, parts 1, 2, 3, at most 510 s" in summary


def test_base_is_compared_at_the_best_of_each(summary):
    base = section(summary, 1)
    assert "1.500 times PyTorch's tokens/s in the same call" in base
    assert "16 and 8 sequences" in base
    assert "12 L T D" in base
    assert "989 TFLOP/s, NVIDIA H200" in base


def test_nano_is_compared_with_each_way_and_says_how_both_multiply(summary):
    assert "4 times the steps per second of PyTorch eager" in section(summary, 2)
    assert "multiplied both as TF32" in section(summary, 2)


def test_a_dtype_that_differs_is_said():
    rows = [CALL_1[0], CALL_1[8], {**CALL_1[9], "tf32": False}]
    text = "\n".join(map(json.dumps, rows))
    said = "multiplied PyTorch in full, gpt_jax as TF32"
    assert said in format_calls(read_calls(text))


def test_decoding_has_its_share_of_the_bandwidth(summary):
    decoding = section(summary, 4)
    assert "decode streams=64: 0.5 GB per token, 25.0% of the 3.5 TB/s" in decoding
    assert "decode streams=64: 3 times the tokens/s of PyTorch (transformers)" in decoding
    assert "streams=1:" not in decoding  # nothing to compare it with


def test_predictions_stand_beside_what_was_seen(summary):
    lines = section(summary, 6).splitlines()
    row = next(line for line in lines if line.startswith("  compiled: ms"))
    assert row.split()[-3:] == ["800", "1000", "1.250"]
    row = next(line for line in lines if line.startswith("  ms of MLP products"))
    assert row.split()[-3:] == ["250", "300", "1.200"]
    row = next(line for line in lines if line.startswith("  ms of not attributed"))
    assert row.split()[-3:] == ["0", "7", "-"]
    assert any(line.startswith("  compiled: no bound, the program's text") for line in lines)
    assert any(line.split()[-2:] == ["not", "known"] for line in lines)  # the peak of the second
    assert any("1100 ms a step with it, 1000 without: 1.100 times" in line for line in lines)


def test_what_did_not_fit_or_failed_is_named(summary):
    missing = summary.partition("== did not fit, or failed")[2]
    assert "step run: FAILED with exit status 124 after 100 s" in missing
    assert "step predict: skipped, no time left" in missing
    assert "sweep micro=64: FAILED, RESOURCE_EXHAUSTED" in missing
    assert "torch_train micro=64: skipped, no time left" in missing
    assert "run config=shakespeare_char: FAILED, the time limit ended it" in missing
    assert "step train" not in missing
    assert "1,750 of 5,000 steps in 99 s" in section(summary, 3)


def test_a_run_is_described_whole_or_not(tmp_path):
    found = whole_runs.describe_run(RUN)
    assert (found["steps"], found["evaluations"], found["lowest_at_step"]) == (4, 2, 4)
    assert found["exact_val_loss"] == pytest.approx(2.61271965)
    assert found["sample"].startswith("rothy said and to the said")
    assert found["val_loss"] == found["lowest_val_loss"] == pytest.approx(2.62103772)
    ended = shutil.copytree(RUN, tmp_path / "ended")
    (ended / "summary.json").unlink()
    (ended / "samples.txt").unlink()
    lines = (RUN / "metrics.jsonl").read_text().splitlines()
    (ended / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    found = whole_runs.describe_run(ended)
    assert (found["steps"], found["of_steps"], found["evaluations"]) == (2, 4, 1)
    assert not {"sample", "exact_val_loss"} & found.keys()
    assert whole_runs.describe_run(tmp_path / "none") == {}


def test_tests_are_counted_as_far_as_they_ran():
    said = "tests/a.py::test_x PASSED [ 1%]\ntests/a.py::test_y[a b] FAILED [ 2%]\n"
    said += "tests/b.py::test_z SKIPPED (no) [ 3%]\ntests/b.py::test_w ERROR [4%]\ntests/b.py::t"
    found = whole_runs.count_tests(said)
    assert [found[name] for name in whole_runs.OUTCOMES] == [1, 1, 1, 1]
    assert found["failed_tests"] == ["tests/a.py::test_y[a b]", "tests/b.py::test_w"]


def test_a_committed_plan_counts_for_the_same_step_on_the_same_gpu_only():
    of_base = predictions.committed_plan("base", "NVIDIA H200", 124439808, 524288)
    assert of_base == {
        "gib": pytest.approx(20.46, abs=0.01),
        "ms": pytest.approx(799.75, abs=0.01),
        "mfu": pytest.approx(0.567, abs=0.001),
        "launches": 11245,
    }
    for other in (("base", "NVIDIA H200", 124439808, 131072), ("base", "NVIDIA H200", 5, 524288),
                  ("base", "NVIDIA H100 PCIe", 124439808, 524288),
                  ("nano", "NVIDIA H200", 620873, 2048)):  # fmt: skip
        assert predictions.committed_plan(*other) is None


def test_a_profile_is_split_into_the_groups_of_the_plan():
    group = lambda name, ms: Group(name, "", 1, ms / 1e3, 0, 0)
    groups = [group("MLP products", 4.0), group("optimizer", 1.0)]
    purposes = {"fusion.1": "MLP products", "gemm.2": "MLP products", "fusion.3": "optimizer"}
    spent = {"fusion.1": 3.0, "gemm.2": 5.0, "": 2.0, "other": 2.0}
    assert predictions.compare_groups(groups, purposes, spent, steps=2) == [
        {"group": "MLP products", "bound_ms": 2.0, "ms": 4.0},
        {"group": "optimizer", "bound_ms": 0.5, "ms": None},
        {"group": "not attributed", "bound_ms": None, "ms": 2.0},
    ]


def test_decoding_reads_weights_once_and_keys_and_values_as_filled(monkeypatch):
    base = harness.Sizes(12, 12, 768, 1024, 50257, 50304)
    monkeypatch.setattr(harness, "BASE", base)
    weights, of_a_position = 124439808 - 1024 * 768, 2 * 12 * 768
    assert harness.decoding_bytes(64, 124439808) == 2 * (weights + 64 * of_a_position * 136)


def test_results_of_earlier_versions_are_read():
    text = format_calls(read_files([ROOT / "benchmarks/results/gpu_h200.jsonl"]))
    assert re.search(r"^train +260.6 +503034 +43.5 ", text, re.MULTILINE)
    assert "step shakespeare_char: FAILED with exit status 137" in text


def test_a_killed_step_leaves_no_broken_line(tmp_path):
    (tmp_path / "results.jsonl").write_text('{"what": "cut')
    env = {"PATH": "/usr/bin:/bin", "OUT": str(tmp_path), "PY": "false", "ONLY": "nothing"}
    subprocess.run(["bash", SCRIPT, "2"], env=env, capture_output=True, check=False)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert lines[0] == '{"what": "cut'
    assert json.loads(lines[1])["parts"] == [2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["0-3"], "0-3: unknown; see --help"),
        (["3-9"], "3-9: parts are 1 to 8"),
        (["--only"], "--only needs a value"),
        (["--only", "("], "--only ( is no regular expression"),
        (["--data", "/nowhere"], "--data /nowhere is no folder"),
        (["--parts", "1"], "--parts: unknown; see --help"),
    ],
)
def test_usage_errors_end_before_anything_starts(tmp_path, words, message):
    env = {"PATH": "/usr/bin:/bin", "OUT": str(tmp_path / "out"), "PY": "false"}
    done = subprocess.run(
        ["bash", SCRIPT, *words], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_parts_have_the_seconds_of_their_calls(tmp_path):
    env = {"PATH": "/usr/bin:/bin", "OUT": str(tmp_path), "PY": "false", "ONLY": "nothing"}
    for words in (["1-3"], ["4-7"], ["5,1-2"], []):
        subprocess.run(["bash", SCRIPT, *words], env=env, capture_output=True, check=False)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    calls = [row for row in map(json.loads, lines) if "call" in row]
    found = [(row["parts"], row["budget_s"]) for row in calls]
    assert found[:2] == [([1, 2, 3], 510), ([4, 5, 6, 7], 300)]
    assert found[2][0] == [5, 1, 2]
    assert found[3] == ([1, 2, 3, 4, 5, 6, 7, 8], 510)

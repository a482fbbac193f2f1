"""benchmarks/gpu still fits the package, and reads compiled programs right; no GPU is needed."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT

from benchmarks.gpu import harness, internals, plans
from benchmarks.gpu.compile_for_gpu import count_graphs, parse_values
from benchmarks.gpu.project_steps import change_project
from benchmarks.gpu.roofline import summarize
from benchmarks.gpu.summary import format_results
from gpt_jax.analysis.gpu_bound import Rates
from gpt_jax.analysis.gpu_chips import CHIPS, model_flops_utilisation
from gpt_jax.analysis.gpu_kernels import find_kernels
from gpt_jax.config import override
from gpt_jax.inference import decoding
from gpt_jax.model import tuning
from gpt_jax.training import compiled_steps

# A loop of 3 iterations with a product and a slice of a stacked array; beside it a copy that other
# kernels overlap, one that they do not, and a sum over devices.
HLO = """\
HloModule handmade, is_scheduled=true

%slice_of (p0: f32[10,4], p1: s32[]) -> f32[1,4] {
  %p0 = f32[10,4]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = f32[1,4]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,4}
}

%body (carry: (s32[], bf16[64,32], bf16[32,16], f32[10,4])) -> (s32[], bf16[64,32]) {
  %carry = (s32[], bf16[64,32]{1,0}, bf16[32,16]{1,0}, f32[10,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %a = bf16[64,32]{1,0} get-tuple-element(%carry), index=1
  %b = bf16[32,16]{1,0} get-tuple-element(%carry), index=2
  %stack = f32[10,4]{1,0} get-tuple-element(%carry), index=3
  %matmul = (bf16[64,16]{1,0}, s8[512]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(f)/dot"}, backend_config=\
{"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}
  %sliced = f32[1,4]{1,0} fusion(%stack, %i), kind=kLoop, calls=%slice_of
  ROOT %next = (s32[], bf16[64,32]{1,0}) tuple(%i, %a)
}

ENTRY %main (x: f32[10,4], y: f32[8]) -> f32[8] {
  %x = f32[10,4]{1,0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %moved = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%y)
  %loop = (s32[], bf16[64,32]{1,0}) while(%x), condition=%less, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %copied = f32[10,4]{0,1} copy(%x)
  %sent = f32[8]{0} all-reduce-start(%y), to_apply=%add
  %summed = f32[8]{0} all-reduce-done(%sent)
  ROOT %done = f32[8]{0} copy-done(%moved)
}
"""


def test_kernels_are_counted_with_their_bytes_and_products():
    kernels = {k.name: k for k in find_kernels(HLO)}
    assert set(kernels) == {"matmul", "sliced", "moved", "copied", "sent"}
    matmul = kernels["matmul"]
    assert (matmul.times, matmul.dtype, matmul.source) == (3, "bf16", "jit(f)/dot")
    assert matmul.flops == 2 * 64 * 32 * 16
    assert matmul.bytes == 2 * (64 * 32 + 32 * 16 + 64 * 16)  # of bfloat16; not the 512 of scratch
    sliced = kernels["sliced"]
    assert (sliced.times, sliced.bytes) == (3, 16 + 4 + 16)  # 4 of 40 floats, the index; written
    assert (kernels["copied"].group, kernels["copied"].bytes) == ("kernel", 2 * 160)
    assert (kernels["moved"].group, kernels["moved"].bytes) == ("async", 2 * 32)
    assert (kernels["sent"].group, kernels["sent"].bytes) == ("collective", 32)


def test_the_lower_bound_adds_up():
    # At 1e6 bytes/s a product takes 7.168 ms for its bytes, and 65.536 ms at 1e6 FLOP/s.
    rates = Rates(bf16=1e6, tf32=1e6, f32=1e6, bandwidth=1e6, network=1e3)
    facts = {"tokens": 30, "steps": 3, "devices": 2, "model_flops": 1e5}
    figures = summarize(find_kernels(HLO), rates, facts, peak=1e6)
    milliseconds = 3 * (65.536 + 0.036) + 0.320
    assert figures["ms"] == pytest.approx(milliseconds)
    assert figures["launches"] == 3 + 3 + 1
    assert figures["ms_per_step"] == pytest.approx(milliseconds / 3)
    assert figures["matmuls"]["bf16"]["tflop"] == pytest.approx(3 * 65536e-12)
    assert figures["copies"]["gb"] == pytest.approx(320e-9)
    assert figures["async"]["ms"] == pytest.approx(0.064)
    assert figures["collectives"]["ms"] == pytest.approx(2 * 32)  # there and back, at 1 byte/ms
    seconds = milliseconds / 1e3
    assert figures["tokens_per_second_per_gpu"] == pytest.approx(30 / seconds / 2)
    assert figures["mfu"] == pytest.approx(1e5 / seconds / 2 / 1e6)
    faster = summarize(find_kernels(HLO), Rates(1e9, 1e9, 1e9, 1e6, 1e3), {}, peak=None)
    assert faster["ms"] == pytest.approx(3 * (7.168 + 0.036) + 0.320)  # now bound by its bytes
    assert "mfu" not in faster


@pytest.mark.parametrize("name", CHIPS)
def test_a_chips_description_is_whole(name):
    chip = CHIPS[name]
    text = chip.description()
    opened, closed = text.count("{"), text.count("}")
    assert opened == closed == 4
    fields = dict(re.findall(r"^ *(\w+): (.*)$", text, re.MULTILINE))
    assert int(fields["memory_bandwidth"]) == chip.bandwidth
    assert fields["device_description_str"] == f'"{chip.name}"'
    assert chip.backend.removeprefix("cuda ") in fields["platform_version"]


def test_utilisation_needs_a_known_peak():
    assert CHIPS["h100"].peak_float32_flops == pytest.approx(67e12, rel=0.01)  # the data sheet's
    assert model_flops_utilisation(98.9e12, "Tesla T4") is None
    assert Rates.of(CHIPS["t4"]).tf32 == Rates.of(CHIPS["t4"]).f32


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA L4", 121e12),
    ],
)
def test_utilisation_is_of_the_peak_of_the_very_gpu(name, peak):
    assert model_flops_utilisation(0.1 * peak, name) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA L40S", "NVIDIA L40", "NVIDIA A10", "NVIDIA A10G", "NVIDIA H20", "NVIDIA GH200 480GB",
     "NVIDIA GB200", "NVIDIA H200 NVL", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA A100X",
     "NVIDIA H800", "NVIDIA T400 4GB", "NVIDIA GeForce RTX 4090", "h100", "nvidia l4", "cpu", ""],
)  # fmt: skip
def test_a_gpu_whose_name_only_resembles_a_known_one_has_no_utilisation(name):
    assert model_flops_utilisation(1e12, name) is None


def test_each_plan_that_a_header_names_is_committed():
    assert {("base", "h100:1", ""), ("medium", "h100:1", "")} <= set(plans.header_plans())
    assert all(topology[0] != "v" for _, topology, _ in plans.header_plans())
    assert list(json.loads(plans.OUT.read_text("utf-8"))["plans"]) == list(plans.COMMANDS)


@pytest.mark.parametrize("script", ["compile_for_gpu", "roofline", "gpu_bench"])
def test_the_scripts_start_without_jax(script):
    code = f"import sys, runpy; sys.argv = ['x', '--help']; sys.modules['jax'] = None; \
runpy.run_path('benchmarks/gpu/{script}.py', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.fixture
def one_device(tiny_config):
    """Settings of a tiny run on one of the test's devices."""
    values = {"model.vocab_size": 11, "train.micro_batch": 4, "mesh.data": 1}
    return override(tiny_config, values)


@pytest.mark.slow
def test_programs_lower_for_devices_that_are_described(one_device):
    devices = jax.devices()[:1]
    with internals.compiling_for("cuda 9.0"):
        lowered, facts = internals.lower_train_steps(one_device, devices, 2)
    assert "func" in lowered.as_text()
    assert (facts["tokens"], facts["steps"]) == (2 * 8 * 8, 2)  # steps, sequences, positions
    assert set(facts["mesh"].values()) == {1}
    for mode in ("cached", "recompute", "refill"):
        lowered, facts = internals.lower_decoder(one_device, devices[0], mode)
        assert "func" in lowered.as_text()
        assert facts == {"tokens": 32, "steps": 32}


@pytest.mark.slow
def test_programs_run(one_device):
    training = internals.Training(one_device, 2)
    training.wait()
    training.start()
    losses = training.run()
    training.close()
    np.testing.assert_allclose(losses, [np.log(11)] * 2, atol=0.1)  # random tokens
    model = one_device.model
    internals.generate(model, internals.init_params(model), streams=2, max_new_tokens=3)
    plan = internals.plan_text(one_device, jax.devices()[:1], "cuda 9.0")
    assert f"{training.n_params:,}" in plan
    batch = np.zeros((4, 9), np.int32)
    compute = internals.loss_and_gradient(override(one_device, {"model.dropout": 0.0}), batch)
    value, gradient = compute(jax.devices()[1], "highest")
    assert value == pytest.approx(np.log(11), abs=0.1)
    assert sum(x.size for x in jax.tree.leaves(gradient)) == training.n_params


def test_the_changes_find_what_they_change(monkeypatch):
    patched = [(tuning, "CUDA"), (compiled_steps, "compiler_options")]
    patched += [(decoding, "compiler_options")]
    for module, name in patched:
        monkeypatch.setattr(module, name, getattr(module, name))  # to be restored
    assert set(harness.PLAIN) == {field.name for field in dataclasses.fields(tuning.CPU)}
    change_project({"tuning": "plain", "unroll": "3"}, "step")
    plain = dataclasses.replace(tuning.CPU, unroll=3, most_summed=0)  # 0 too sums all at once
    assert tuning.choose_tuning("cuda 9.0", 768) == plain
    options = compiled_steps.compiler_options("gpu", library_products=True)
    assert options == internals.GRAPHS["step"]
    with pytest.raises(AttributeError, match=r"has no NOTHING: adapt .*internals\.py"):
        internals._replace(tuning, "NOTHING", 1)


def test_settings_and_graphs_are_read(tmp_path):
    assert parse_values(["a.b=3", "c=None", "d=full"]) == {"a.b": 3, "c": None, "d": "full"}
    commands = (
        "000: kCommandBuffer\n    000: kGemm\n    001: kKernel\n001: kWhile\n  000: kKernel\n"
    )
    (tmp_path / "module.thunk_sequence_after_thunk_passes.txt").write_text(commands)
    expected = {"cuda_graphs": 1, "loops_outside_graphs": 1, "commands_outside_graphs": 1}
    assert count_graphs(str(tmp_path)) == expected


def test_the_table_of_results_says_what_failed():
    rows = [
        {"what": "train", "micro": "16", "ms_per_step": 250.0, "peak_gib": 7.5, "mfu": 0.5},
        {"step": "train", "rc": 0, "wall_s": 30},
        {"what": "decode", "model": "base", "streams": 64, "ms_per_token": 0.125},
        {"what": "sweep", "micro_here": 64, "error": "RESOURCE_EXHAUSTED"},
        {"step": "correct", "rc": 124, "wall_s": 60},
        {"step": "torch_train", "skipped": "PyTorch is not installed"},
    ]
    text = format_results("\n".join(map(json.dumps, rows)) + '\n{"what": "cut o')
    assert re.search(r"^train micro=16 +250 +50 +7.5$", text, re.MULTILINE), text
    assert re.search(r"^decode model=base streams=64 +0\.125$", text, re.MULTILINE), text
    assert "RESOURCE_EXHAUSTED" in text
    assert "step train: ok after 30 s" in text
    assert "step correct: FAILED with exit status 124 after 60 s" in text
    assert "step torch_train: skipped, PyTorch is not installed" in text


@pytest.fixture
def gpu_run(tmp_path):
    """Runs gpu_run.sh with a Python that has no torch and fails at the first train step."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/bash\n"
        f'case "$*" in -c*) exit 1;; *summary*) exec {sys.executable} "$@";; esac\n'
        'echo "$*" >>"$OUT/calls"\n'
        'case "$*" in *"train save=base") exit 3;; esac\n'
        'case "$*" in *torch_*) exit 4;; esac\n'
    )
    python.chmod(0o755)

    def run(*words, **environment):
        variables = {**os.environ, "OUT": str(tmp_path / "out"), "PY": str(python), **environment}
        done = subprocess.run(
            ["bash", str(ROOT / "benchmarks/gpu/gpu_run.sh"), *words],
            cwd=tmp_path, env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        rows = (tmp_path / "out/results.jsonl").read_text().splitlines()
        steps = [row for row in map(json.loads, rows) if "step" in row]
        return done.stdout, {row["step"]: row for row in steps}

    return run


def test_a_step_that_fails_does_not_stop_the_run(gpu_run, tmp_path):
    text, steps = gpu_run()
    failed = {name: row["rc"] for name, row in steps.items() if row.get("rc")}
    assert failed == {"train_save=base": 3}
    skipped = {name: row["skipped"] for name, row in steps.items() if "skipped" in row}
    assert set(skipped.values()) == {"PyTorch is not installed"}
    assert all(name.startswith("torch_") for name in skipped)
    assert len(skipped) == 3
    done = [name for name in steps if steps[name].get("rc") == 0]
    assert {"correct", "sweep_micro=8,16,32,64", "run_config=nano", "tests", "summary"} <= set(done)
    assert "step train_save=base: FAILED with exit status 3" in text
    assert "skipped, PyTorch is not installed" in text
    assert (tmp_path / "out/summary.txt").read_text() in text


def test_the_budget_and_the_choice_of_steps_hold(gpu_run, tmp_path):
    text, steps = gpu_run(BUDGET="25", ONLY="facts|decode")
    ran = [name for name in steps if "skipped" not in steps[name]]
    assert ran == ["summary"]  # 5 s remain before the summary's 20: too short for a step
    assert steps["facts"]["skipped"] == "no time left"
    assert not any(name.startswith("sweep") for name in steps)
    assert not (tmp_path / "out/calls").exists()
    assert "no time left" in text

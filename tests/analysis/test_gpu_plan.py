"""Plans for NVIDIA GPUs: what kernels are for. Programs are compiled in `tests/gpu`."""

import dataclasses
import importlib.util
import json

import pytest
from conftest import ROOT

import main
from gpt_jax.analysis import compiling, gpu_bound, plan, topologies
from gpt_jax.analysis.chips import CHIPS
from gpt_jax.analysis.gpu_bound import LEVERS, Rates, find_groups, purpose
from gpt_jax.analysis.gpu_chips import CHIPS as GPUS
from gpt_jax.analysis.gpu_kernels import Kernel, find_kernels
from gpt_jax.errors import ConfigError, UserError

STEP = "jit(train_chunk)/while/body/"


@pytest.mark.parametrize(
    ("source", "flops", "expected"),
    [
        ("jvp(GPT)/blocks/mlp/up/dot_general", 8, gpu_bound.MLP),
        ("transpose(jvp(GPT))/blocks/mlp/up/reduce_sum", 0, gpu_bound.ELEMENTWISE),
        ("transpose(jvp(GPT))/blocks/attn/qkv/dot_general", 8, gpu_bound.ATTENTION_PRODUCTS),
        ("jvp(GPT)/blocks/attn/reduce_max", 0, gpu_bound.ATTENTION),
        ("jvp(GPT)/blocks/norm_1/mul", 0, gpu_bound.ELEMENTWISE),
        ("transpose(jvp(GPT))/norm_f/mul", 0, gpu_bound.ELEMENTWISE),
        ("transpose(jvp(loss))/dot_general", 8, gpu_bound.LOSS),
        ("optimizer/add", 0, gpu_bound.OPTIMIZER),
        ("gradient_accumulation/add", 0, gpu_bound.ACCUMULATION),
        ("transpose(jvp(GPT))/tokens/scatter-add", 0, gpu_bound.EMBEDDING),
        ("GPT/Block/mlp/up/dot_general", 8, gpu_bound.MLP),
        ("GPT/Block/attn/dot_general", 8, gpu_bound.ATTENTION_PRODUCTS),
        ("head/dot_general", 8, gpu_bound.HEAD),
        ("sampling/argmax", 0, gpu_bound.SAMPLING),
        ("jvp(loss)/head/dot_general", 8, gpu_bound.LOSS),
        ("jvp(GPT)/embeddings_of_blockswords", 0, gpu_bound.OTHER),
        ("", 0, gpu_bound.OTHER),
    ],
)
def test_a_kernel_is_known_by_the_name_of_its_operation(source, flops, expected):
    kernel = Kernel("k", "fusion", 1, flops=flops, dtype="bf16", source=STEP + source)
    assert purpose(kernel) == expected
    assert expected in LEVERS


def test_copies_and_collectives_are_what_they_are_whatever_they_serve():
    source = STEP + "jvp(GPT)/blocks/mlp/up"
    assert purpose(Kernel("c", "copy", 1, source=source)) == gpu_bound.COPIES
    assert purpose(Kernel("c", "copy-start", 1, group="async")) == gpu_bound.COPIES
    sent = Kernel("c", "all-reduce-start", 1, group="collective", source=source)
    assert purpose(sent) == gpu_bound.COLLECTIVES


def test_no_committed_plan_reads_memory_for_longer_than_its_kernels_take():
    """Each kernel takes the time of its bytes at least, at less than the data sheet's rate."""
    committed = json.loads((ROOT / "benchmarks/results/gpu_plans.json").read_text("utf-8"))
    bounds = [each for each in committed["plans"].values() if each["kernel_seconds"]]
    assert len(bounds) > 10
    for each in bounds:
        assert each["seconds"]["memory"] <= each["kernel_seconds"], each["text"]


FUSED = """\
HloModule handmade

%double (p0: f32[8]) -> f32[8] {
  %p0 = f32[8]{0} parameter(0)
  ROOT %sum = f32[8]{0} add(%p0, %p0), metadata={op_name="jit(f)/optimizer/add"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %fused = f32[8]{0} fusion(%x), kind=kLoop, calls=%double
}
"""


def test_a_fusion_without_a_name_has_that_of_what_it_computes():
    (kernel,) = find_kernels(FUSED)
    assert kernel.source == "jit(f)/optimizer/add"


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_cudnns_attention_has_its_operations(backward, causal):
    """16 sequences, 12 heads, 1,024 positions, 64 wide."""
    text = f"""\
ENTRY %main (q: bf16[16,1024,12,64]) -> bf16[16,12,1024,64] {{
  %q = bf16[16,1024,12,64]{{3,2,1,0}} parameter(0)
  %a = (bf16[16,12,1024,64]{{3,1,2,0}}, f32[16,12,1024]{{2,1,0}}, u8[0]{{0}}) custom-call(%q), \
custom_call_target="__cudnn$fmhaSoftmax{"Backward" if backward else ""}", \
metadata={{op_name="jit(f)/blocks/attn/fused"}}, backend_config={{"cudnn_fmha_backend_config": \
{{"intermediate_tensor_shape": {{"element_type": "BF16", "dimensions": ["16", "12", "1024", \
"1024"]}}, "mask_type": "{"CAUSAL" if causal else "NO_MASK"}"}}}}
  ROOT %y = bf16[16,12,1024,64]{{3,1,2,0}} get-tuple-element(%a), index=0
}}
"""
    (kernel,) = find_kernels(text)
    products = 5 if backward else 2
    assert kernel.flops == products * 2 * 16 * 12 * 1024**2 * 64 // (1 + causal)
    assert purpose(kernel) == gpu_bound.ATTENTION


def make(group_seconds: dict[str, float]) -> plan.Plan:
    groups = [
        gpu_bound.Group(name, LEVERS[name], 3, seconds, 10, 0)
        for name, seconds in group_seconds.items()
    ]
    return plan.Plan(
        devices="2 of 2 x NVIDIA H100 80GB HBM3", mesh={"data": 2}, n_params=1, tokens=100,
        flops=989e12, attention="fused", memory=1, arguments=1, limit=None,
        chip=CHIPS["NVIDIA H100 80GB HBM3"], groups=tuple(groups),
    )  # fmt: skip


def test_the_bound_says_why():
    """Collectives run beside the kernels: they are shown, and not added."""
    seconds = {"MLP products": 0.5, "collectives": 0.3, "logits and loss": 0.2, "optimizer": 0.1,
               "copies": 0.1, "embedding": 0.1, "other": 0.0}  # fmt: skip
    planned = make(seconds)
    assert planned.kernel_seconds == pytest.approx(1.0)
    assert planned.mfu == pytest.approx(0.5)  # half of 989e12 on each of two
    shown = str(planned)
    assert "21 launched, at least 1000 ms at 70% of the peak" in shown
    assert "MFU at most 50.0%" in shown
    lines = [line.split("  ")[0] for line in shown.splitlines()[-5:]]
    assert lines == ["MLP products", "collectives", "logits and loss", "optimizer", "copies"]
    assert " 50%  bound by the peak" in shown
    assert " beside  a larger --train.batch-size" in shown
    record = planned.record()
    assert (record["kernel_seconds"], record["mfu"]) == (planned.kernel_seconds, planned.mfu)
    assert record["groups"][0]["name"] == "MLP products"


SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION"


@pytest.mark.parametrize(
    ("share", "gib", "fits", "said"),
    [
        ("", 59.0, True, "available: 59.33 GiB: fits"),
        ("", 60.0, False, f"does NOT fit; with {SHARE}=0.92 it does"),
        ("", 72.7, False, f"does NOT fit; with {SHARE}=0.92 it does"),
        ("", 73.0, False, "available: 59.33 GiB: does NOT fit"),  # 72.78 are 92%
        ("0.92", 60.0, True, "available: 72.78 GiB: fits"),
        ("0.5", 40.0, False, f"available: 39.55 GiB: does NOT fit; with {SHARE}=0.92 it does"),
    ],
)
def test_a_step_fits_a_gpu_where_it_fits_the_share_that_jax_takes(
    share, gib, fits, said, monkeypatch
):
    for name in compiling.SHARE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if share:
        monkeypatch.setenv(SHARE, share)
    planned = make({"MLP products": 0.5})
    device = dataclasses.make_dataclass("Device", ["device_kind"])("NVIDIA H100 80GB HBM3")
    limit = plan._memory_limit(device, described=True)
    planned = dataclasses.replace(planned, memory=gib * 2**30, limit=limit)
    assert planned.fits == fits
    (line,) = [line for line in str(planned).splitlines() if line.startswith("memory")]
    assert line.endswith(said)


@pytest.mark.parametrize("value", ["x", "0", "-1", "1.5", "nan"])
@pytest.mark.parametrize("name", compiling.SHARE_VARIABLES)
def test_a_share_that_is_none_is_one_line(name, value, monkeypatch):
    for other in compiling.SHARE_VARIABLES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}={value} must be above 0 and at most 1"):
        compiling.gpu_share()


def test_what_compiling_took_is_shown_and_kept():
    planned = dataclasses.replace(make({"copies": 1}), trace_seconds=7.6, compile_seconds=31.2)
    assert "compiling    traced in 8 s, compiled in 31 s" in str(planned)
    assert planned.record()["compile_seconds"] == 31.2
    assert "compiling" not in str(make({"copies": 1}))


def test_groups_add_up_to_their_kernels():
    rates = Rates(bf16=1e3, tf32=1e3, f32=1e3, bandwidth=10, network=1)
    kernels = [
        Kernel("a", "matmul", 2, 100, 4000, "bf16", source="blocks/mlp/up"),
        Kernel("b", "matmul", 1, 100, 4000, "bf16", source="blocks/mlp/down"),
        Kernel("c", "fusion", 5, 10, source="optimizer"),
        Kernel("d", "all-gather", 1, 7, group="collective"),
        Kernel("e", "copy-start", 4, 30, group="async"),  # beside other kernels
    ]
    groups = {group.name: group for group in find_groups(kernels, rates)}
    mlp = groups["MLP products"]
    assert (mlp.launches, mlp.bytes, mlp.flops) == (3, 300, 12_000)
    assert mlp.seconds == pytest.approx(2 * 10 + 10)  # the second's bytes take as long
    assert groups["optimizer"].seconds == pytest.approx(5)
    assert groups["collectives"].seconds == pytest.approx(7)
    assert [group.seconds for group in groups.values()] == [30, 7, 5, 0]
    assert (groups["copies"].launches, groups["copies"].bytes) == (4, 120)


@pytest.mark.parametrize("topology", ["h100", "h200:8", "t4:1", "L4:1"])
def test_gpus_without_jaxs_plugin_are_one_line(topology, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with monkeypatch.context() as patch:
        patch.setattr("os.environ", {"PATH": ""})
        assert main.main(["plan", "--config", "base", "--topology", topology]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: topology={topology} needs jax's CUDA plugin: "
        "pip install -r requirements-gpu-plan.txt\n"
    )


@pytest.mark.parametrize("topology", ["h300:1", "", ":", "gpu", "8"])
def test_an_unknown_topology_is_told_those_that_there_are(topology):
    with pytest.raises(ConfigError, match="nor NVIDIA GPUs, such as h100:8: of these there are h1"):
        topologies.check_can_plan(topology)


@pytest.mark.parametrize("count", ["0", "9", "-1", "x", "1.5", "2:3"])
def test_a_machine_has_at_most_eight_gpus(count):
    with pytest.raises(ConfigError, match="must name 1 to 8 GPUs of a machine"):
        topologies._gpu_count(f"h100:{count}")


@pytest.fixture
def has_plugin(monkeypatch):
    monkeypatch.setattr(topologies.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("has_plugin")
@pytest.mark.parametrize("name", GPUS)
def test_each_described_gpu_has_a_data_sheet(name):
    gpu = GPUS[name]
    sheet = CHIPS[gpu.name]
    assert (sheet.memory, sheet.bandwidth, sheet.network, sheet.source) == (
        gpu.memory, gpu.bandwidth, gpu.network, gpu.source
    )  # fmt: skip
    topologies.check_can_plan(f"{name}:2")
    device = dataclasses.make_dataclass("Device", ["device_kind", "platform"])(gpu.name, "gpu")
    assert topologies.described_backend(device) == "cuda {}.{}".format(*gpu.capability)

"""The programs for NVIDIA GPUs, compiled without one, and held to what was reached.

Kept apart, for jax's CUDA plugin takes 5 GB: `make test-gpu-plan`. The committed plans are those of
`benchmarks/gpu/plans.py`.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import plans  # noqa: E402
from gpt_jax.analysis.gpu_bound import (  # noqa: E402
    ATTENTION,
    ATTENTION_PRODUCTS,
    COPIES,
    LOSS,
    MLP,
)
from gpt_jax.analysis.gpu_kernels import find_kernels  # noqa: E402

SMALL_CONFIGS = ("nano", "nano_bpe", "nano_original", "nano_tuned")
SMALL_CONFIGS += ("shakespeare_char", "shakespeare_cpu")
COMMITTED = json.loads(plans.OUT.read_text("utf-8"))["plans"]
SMALL = "--model.n-layer {} --train.batch-size 32 --train.micro-batch 16"


def groups_of(plan):
    return {group["name"]: group for group in plan["groups"]}


@pytest.fixture(scope="module")
def one_and_two_layers():
    return [plans.make_plan("base", "h100:1", SMALL.format(n)) for n in (1, 2)]


def test_the_products_of_a_layer_are_those_of_a_count_by_hand(one_and_two_layers):
    """Forward, and twice as much backward, of 32 x 1,024 tokens and a width of 768."""
    one, two = map(groups_of, one_and_two_layers)
    tokens, D = 32 * 1024, 768
    of_products = lambda columns: 3 * 2 * tokens * D * columns
    assert two[MLP]["flops"] - one[MLP]["flops"] == of_products(2 * 4 * D)
    products = two[ATTENTION_PRODUCTS]["flops"] - one[ATTENTION_PRODUCTS]["flops"]
    assert products == of_products(4 * D)  # queries, keys, values, and the projection
    scores = 2 * 32 * 12 * 1024**2 * 64 // 2  # a product of 12 heads, but its upper triangle
    assert two[ATTENTION]["flops"] - one[ATTENTION]["flops"] == (2 + 5) * scores
    assert one[LOSS]["flops"] == two[LOSS]["flops"] == of_products(50304)  # with the padding


def test_a_layer_copies_at_most_two_activations(one_and_two_layers):
    """In each of two micro-batches, read and written in bfloat16.

    Stacks of all that layers save, which begin as copies of zeros, would be many times as much.
    """
    one, two = map(groups_of, one_and_two_layers)
    activation = 16 * 1024 * 768 * 2
    more = two[COPIES]["bytes"] - one[COPIES]["bytes"]
    assert more <= 2 * 2 * 2 * activation + 1024  # and a few numbers


def compiled_text(tmp_path, **environment):
    """Two layers of base, compiled."""
    out, script = tmp_path / "base", ROOT / "benchmarks/gpu/compile_for_gpu.py"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    settings = ("model.n_layer=2", "train.batch_size=32", "train.micro_batch=16")
    words = (sys.executable, script, "base", "--out", out, "--set", *settings)
    subprocess.run(words, cwd=ROOT, env=env | environment, check=True, capture_output=True)
    return out.with_suffix(".hlo").read_text("utf-8")


def test_products_of_a_bfloat16_model_are_in_bfloat16(tmp_path):
    kernels = find_kernels(compiled_text(tmp_path))
    assert {kernel.dtype for kernel in kernels if kernel.flops} == {"bf16"}


def test_reproducible_programs_sort_nothing(tmp_path):
    """XLA would sort each entry of the embedding's gradient; products in bfloat16 sum it."""
    text = compiled_text(tmp_path, XLA_FLAGS="--xla_gpu_deterministic_ops=true")
    assert " sort(" not in text
    assert {kernel.dtype for kernel in find_kernels(text) if kernel.flops} == {"bf16"}


@pytest.mark.parametrize(
    ("chip", "dtype"), [("t4", "float32"), ("l4", "bfloat16"), ("a100", "bfloat16")]
)
@pytest.mark.parametrize("name", SMALL_CONFIGS)
def test_a_small_config_compiles_for_the_gpus_of_colab(name, chip, dtype):
    found = plans.make_plan(name, f"{chip}:1", "--model.dtype auto --train.micro-batch auto")
    assert found["fits"]
    assert found["notes"][0].startswith(f"model.dtype=auto is {dtype}: a GPU of compute capability")


def test_bfloat16_on_a_gpu_without_it_gets_a_line():
    found = plans.make_plan("nano", "t4:1", "--model.n-layer 1 --model.dtype bfloat16")
    assert found["notes"] == [
        "model.dtype=bfloat16 is slower here than float32, to which it is converted: a GPU of "
        "compute capability 7.5 has no bfloat16"
    ]


def test_each_larger_config_names_gpus_in_its_header():
    """Beside its TPU slice; these are compiled below, with the rest of `PLANS`."""
    named = {name for name, _, _ in plans.header_plans()}
    assert named == {"base", "base_8k", "large", "medium", "shakespeare_char", "xl"}


@functools.cache
def compiled(plan):
    return plans.make_plan(*plan)


def near(found, committed):
    """Within 5%, either way: a committed plan that is much larger is a stale one."""
    return abs(found - committed) <= 0.05 * committed


STALE = "if this is no mistake: python benchmarks/gpu/plans.py, then python benchmarks/tables.py"


@pytest.mark.parametrize("plan", plans.PLANS, ids="-".join)
def test_a_config_takes_what_the_committed_plan_says(plan):
    found = compiled(plan)
    committed = COMMITTED["python main.py " + " ".join(plans.words(*plan))]
    assert found["fits"] == committed["fits"]
    assert found["limit"] == committed["limit"]
    assert near(found["memory"], committed["memory"]), STALE
    assert not found["memory_is_floor"]
    for name in ("launches", "bytes", "flops"):
        total = lambda plan, name=name: sum(group[name] for group in plan["groups"])
        assert near(total(found), total(committed)), STALE
    assert near(found["kernel_seconds"], committed["kernel_seconds"]), STALE
    times = lambda plan: [(c["kind"], c["times"]) for c in plan["collectives"]]
    assert times(found) == times(committed), STALE
    for bound, known in zip(found["decoding"], committed["decoding"], strict=True):
        assert near(bound["launches"], known["launches"]), STALE
        assert near(bound["seconds"], known["seconds"]), STALE


def test_base_on_one_h100_is_within_its_aims():
    """965 ms and 13 GiB of an optimizer step, at 16 sequences at once."""
    found = compiled(("base", "h100:1", "--train.micro-batch 16"))
    assert found["kernel_seconds"] <= 0.965
    assert found["memory"] <= 13 * 2**30
    assert compiled(("base", "h100:1", ""))["kernel_seconds"] <= 0.965


def test_decoding_base_is_near_the_limit_of_memory():
    """One stream in at most 110 us a token; 64 in at most 1.2 times what must be read."""
    bounds = compiled(("base", "h100:1", "--sampling --sample.num-samples 64"))["decoding"]
    at = {(b["streams"], b["positions"]): b for b in bounds}
    assert at[1, 1024]["seconds"] <= 110e-6
    assert at[1, None]["seconds"] <= at[1, 1024]["seconds"]
    weights, cache = 2 * 124_439_808, 64 * 1024 * 12 * 2 * 768 * 2  # bytes in bfloat16
    assert weights + cache <= at[64, 1024]["bytes"] <= 1.2 * (weights + cache)


@pytest.mark.parametrize("name", ["base", "large"])
def test_gradients_are_summed_once_a_step_over_eight_gpus(name):
    """All-reduces bring as many bytes as there are gradients, however many micro-batches."""
    (plan,) = [p for p in plans.PLANS if p[:2] == (name, "h100:8")]
    found = compiled(plan)
    assert found["mesh"]["data"] == 8
    reduced = [c for c in found["collectives"] if c["kind"] == "all-reduce"]
    once = 2 * 7 / 8 * 4 * found["n_params"]  # bytes of float32 that a ring's member sends
    assert once <= sum(c["bytes_sent"] for c in reduced) <= 1.01 * once
    assert {c["kind"] for c in found["collectives"]} <= {"all-reduce", "all-to-all"}
    assert sum(c["bytes_sent"] for c in found["collectives"]) <= 1.01 * once


def test_parameters_of_xl_are_gathered_once_a_step():
    (plan,) = [p for p in plans.PLANS if p[0] == "xl"]
    found = compiled(plan)
    assert found["mesh"]["fsdp"] == 8
    sent = {c["kind"]: c["bytes_sent"] for c in found["collectives"]}
    once = 7 / 8 * 4 * found["n_params"]
    assert sent["all-gather"] <= 1.05 * once
    assert sent["reduce-scatter"] <= 1.05 * once

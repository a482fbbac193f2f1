"""The programs for NVIDIA GPUs, compiled without one, and held to what was reached.

Kept apart, for jax's CUDA plugin takes 5 GB: `make test-gpu-plan`. The committed plans are those of
`benchmarks/gpu/plans.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import plans  # noqa: E402
from gpt_jax.analysis.gpu_bound import ATTENTION_PRODUCTS, COPIES, MLP  # noqa: E402
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


@pytest.mark.parametrize("plan", plans.PLANS, ids=lambda plan: "-".join(plan[:2]))
def test_a_config_takes_no_more_than_the_committed_plan(plan):
    found = plans.make_plan(*plan)
    committed = COMMITTED["python main.py " + " ".join(plans.words(*plan))]
    assert found["fits"] == committed["fits"]
    assert found["memory"] <= 1.05 * committed["memory"]
    if not found["memory_is_floor"]:
        launches = lambda plan: sum(group["launches"] for group in plan["groups"])
        assert launches(found) <= 1.05 * launches(committed)
        assert found["kernel_seconds"] <= 1.05 * committed["kernel_seconds"]
        total = lambda plan: sum(group["bytes"] for group in plan["groups"])
        assert total(found) <= 1.05 * total(committed)

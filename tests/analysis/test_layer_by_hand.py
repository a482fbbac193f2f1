"""What the analysis counts in a compiled step, against a count by hand.

`base_one_layer_h100.hlo.gz` is the step of base with one layer, in two micro-batches of 16,
compiled for an H100, without the notes on its sources:

    python benchmarks/gpu/compile_for_gpu.py base \\
        --set model.n_layer=1 train.batch_size=32 train.micro_batch=16

What it says of time is in `gpu_bound.py`; `tests/gpu` counts the products of a fresh one.
"""

import functools
import gzip
from pathlib import Path

import pytest

from gpt_jax.analysis.gpu_bound import (
    ATTENTION,
    ATTENTION_PRODUCTS,
    LOSS,
    MLP,
    Rates,
    find_groups,
    purpose,
)
from gpt_jax.analysis.gpu_chips import CHIPS
from gpt_jax.analysis.gpu_kernels import FUSED_ATTENTION, Kernel, find_kernels

STEP = Path(__file__).with_name("base_one_layer_h100.hlo.gz")
B, T, D, H, K, V = 16, 1024, 768, 12, 64, 50304  # V with the padding
TIMES, TOKENS = 2, B * T  # micro-batches, and tokens in each
BF16, F32 = 2, 4  # bytes


@functools.cache
def kernels() -> tuple[Kernel, ...]:
    return tuple(find_kernels(gzip.decompress(STEP.read_bytes()).decode()))


def of(group: str) -> list[Kernel]:
    """The kernels of a group that multiply."""
    return [k for k in kernels() if purpose(k) == group and k.flops]


def total(group: str, amount: str) -> int:
    return sum(k.times * getattr(k, amount) for k in of(group))


@pytest.mark.parametrize(
    ("group", "columns"),
    [
        (MLP, 4 * D + 4 * D),  # up and down
        (ATTENTION_PRODUCTS, 3 * D + D),  # queries, keys, values; the projection
        (LOSS, V),  # the logits
    ],
)
def test_products_forward_and_twice_as_many_backward(group, columns):
    assert total(group, "flops") == 3 * TIMES * 2 * TOKENS * D * columns
    assert {k.dtype for k in of(group)} == {"bf16"}


def test_attention_multiplies_twice_forward_and_five_times_backward():
    """Half of it, as the upper triangle of the scores is skipped."""
    assert total(ATTENTION, "flops") == TIMES * (2 + 5) * 2 * B * H * T * T * K // 2


def test_the_bytes_of_the_mlps_products():
    x, h = BF16 * TOKENS * D, BF16 * TOKENS * 4 * D  # activations, narrow and wide
    weight, gradient = BF16 * 4 * D * D, F32 * 4 * D * D
    up = x + weight + BF16 * 4 * D + 2 * h  # with the bias; GELU's result and argument
    down = h + weight + BF16 * D + x + x  # with the bias and the residual
    of_inputs = (x + weight + h) + (h + weight + x)
    of_weights = 2 * (x + h + 2 * gradient)  # added to those of the micro-batch before
    assert total(MLP, "bytes") == TIMES * (up + down + of_inputs + of_weights)


def test_the_bytes_of_attention():
    """Forward q, k, v and the result; backward these, and the gradients of all."""
    x, statistics = BF16 * TOKENS * D, F32 * B * H * T
    forward, backward = 4 * x + statistics, 8 * x + statistics
    fused = sum(k.times * k.bytes for k in of(ATTENTION) if FUSED_ATTENTION in k.kind)
    assert fused == TIMES * (forward + backward)


def test_the_bytes_of_the_logits_products():
    """The logits in float32; their gradient in bfloat16 is read twice."""
    hidden, head = BF16 * TOKENS * D, BF16 * D * V
    forward = hidden + head + F32 * V + F32 * TOKENS * V  # with a bias, which hides the padding
    of_hidden = BF16 * TOKENS * V + head + hidden
    of_head = hidden + BF16 * TOKENS * V + F32 * D * V
    assert total(LOSS, "bytes") == TIMES * (forward + of_hidden + of_head)


def test_the_bound_is_the_slower_of_bytes_and_products():
    h100 = CHIPS["h100"]
    groups = {g.name: g for g in find_groups(kernels(), Rates.of(h100))}
    assert groups[MLP].seconds >= total(MLP, "flops") / (0.7 * 989e12)
    assert groups[MLP].seconds <= 1.01 * total(MLP, "flops") / (0.7 * 989e12)
    assert groups[LOSS].seconds >= groups[LOSS].bytes / (0.9 * 3.35232e12)

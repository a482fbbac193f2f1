"""The step of gpu_bench.py that asks whether a GPU computes what it should."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.harness import NANO_VOCABULARY, TINY, Step
from benchmarks.gpu.internals import (
    Training,
    attend,
    choose_attention,
    load_config,
    loss_and_gradient,
    target_backend,
)
from benchmarks.gpu.project_steps import nano_config


def relative_error(expected: Any, found: Any) -> float:
    """Returns the largest difference as a share of the largest number expected."""
    expected, found = (np.asarray(x, np.float32) for x in (expected, found))
    return float(abs(expected - found).max() / (abs(expected).max() + 1e-12))


def worst_error(expected: Any, found: Any) -> float:
    """Returns the largest relative error of the arrays of two trees."""
    return max(jax.tree.leaves(jax.tree.map(relative_error, expected, found)))


def correct(step: Step) -> None:
    """Records the device against the CPU, attention against plain attention, and a repeated run."""
    compare_with_cpu(step)
    compare_attention(step)
    compare_runs(step)


def compare_attention(step: Step) -> None:
    """Compares the value and gradients of base's attention with those of plain attention."""
    name, reason = choose_attention(load_config("base").model, target_backend())
    step.record(base_attention=name, reason=reason)
    other = "fused" if name == "fused" else "blockwise"
    B, H, T, K = (1, 2, 64, 16) if TINY else (4, 12, 1024, 64)
    for group, length in ((1, T), (2, T), (1, T - 1), (1, 1)):
        variant = {"against_plain": other, "heads_per_key": group, "T": length}
        keys = jax.random.split(jax.random.key(0), 4)
        heads = (H, H // group, H // group, H)
        qkvw = [
            jax.random.normal(key, (B, n, length, K), "bfloat16")
            for key, n in zip(keys, heads, strict=True)
        ]
        try:
            expected, expected_grads = weighted_attention("plain", *qkvw)
            value, grads = weighted_attention(other, *qkvw)
        except Exception as error:
            step.record_error(error, **variant)
            continue
        errors = [relative_error(*pair) for pair in zip(expected_grads, grads, strict=True)]
        difference = float(value - expected)
        step.record(**variant, value=float(expected), difference=difference, gradient_errors=errors)


def weighted_attention(
    name: str, q: jax.Array, k: jax.Array, v: jax.Array, w: jax.Array
) -> tuple[jax.Array, Any]:
    """Returns the sum of w times attention, and its gradients by q, k and v."""

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        y = attend(name, q * q.shape[-1] ** -0.5, k, v, 0, lambda x: x)
        return (y.astype(jnp.float32) * w.astype(jnp.float32)).sum()

    return jax.jit(jax.value_and_grad(total, (0, 1, 2)))(q, k, v)


def compare_with_cpu(step: Step) -> None:
    """Compares nano's loss and gradient with those of the CPU in float32."""
    config = nano_config(**{"model.dropout": 0.0})
    shape = (4 if TINY else 32, config.model.block_size + 1)
    batch = np.random.default_rng(0).integers(0, NANO_VOCABULARY, shape).astype(np.int32)
    compute = loss_and_gradient(config, batch)
    loss, gradient = compute(jax.devices("cpu")[0], "highest")
    for precision in ("default", "highest"):
        found_loss, found = compute(jax.devices()[0], precision)
        step.record(
            against_cpu=precision,
            difference=float(found_loss - loss),
            gradient_errors=[worst_error(gradient, found)],
        )


def compare_runs(step: Step) -> None:
    """Compares the losses of the same 10 steps of nano, taken twice."""
    losses = []
    for _ in range(2):
        training = Training(nano_config(), 10)
        training.wait()
        training.start()
        losses.append(training.run().tolist())
        training.close()
    step.record(same_twice=losses[0] == losses[1], losses=[row[-1] for row in losses])

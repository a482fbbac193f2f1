"""model.dtype=auto: what suits the device, said in a line, and kept when a run is resumed."""

import jax
import jax.numpy as jnp
import pytest

from gpt_jax.config import ModelConfig, fix_schedule, load_config, override
from gpt_jax.model import GPT, init_cache
from gpt_jax.model.dtype import choose_dtype, dtype_of, resolve_dtype, slow_dtype
from gpt_jax.parallel.backend import compiling_for
from gpt_jax.training.resume import resume_config

AUTO = override(load_config("nano"), {"model.dtype": "auto"})


@pytest.mark.parametrize(
    ("backend", "dtype", "reason"),
    [
        ("cpu", "float32", "the fastest on a CPU"),
        ("rocm", "float32", "the fastest on rocm"),
        ("tpu", "bfloat16", "a TPU multiplies it fastest"),
        ("cuda 7.0", "float32", "a GPU of compute capability 7.0 has no bfloat16"),
        ("cuda 7.5", "float32", "a GPU of compute capability 7.5 has no bfloat16"),
        ("cuda 8.0", "bfloat16", "a GPU of compute capability 8.0 multiplies it fastest"),
        ("cuda 8.9", "bfloat16", "a GPU of compute capability 8.9 multiplies it fastest"),
        ("cuda 12.0", "bfloat16", "a GPU of compute capability 12.0 multiplies it fastest"),
    ],
)
def test_auto_is_what_the_device_multiplies_fastest(backend, dtype, reason):
    assert choose_dtype(backend) == (dtype, reason)
    config, notes = resolve_dtype(AUTO, backend)
    assert config == override(AUTO, {"model.dtype": dtype})
    assert notes == (f"model.dtype=auto is {dtype}: {reason}",)
    assert resolve_dtype(config, backend) == (config, ())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["cpu", "tpu", "cuda 7.5", "cuda 8.0"])
def test_a_dtype_that_is_asked_for_is_taken_and_bfloat16_without_products_of_it_gets_a_line(
    dtype, backend
):
    asked = override(AUTO, {"model.dtype": dtype})
    assert resolve_dtype(asked, backend) == (asked, ())
    line = slow_dtype(dtype, backend)
    assert line == (
        "model.dtype=bfloat16 is slower here than float32, to which it is converted: a GPU of "
        "compute capability 7.5 has no bfloat16"
        if (dtype, backend) == ("bfloat16", "cuda 7.5")
        else ""
    )


@pytest.mark.parametrize("recorded", ["float32", "bfloat16"])
def test_a_resumed_run_keeps_what_auto_was(recorded):
    saved = fix_schedule(override(AUTO, {"model.dtype": recorded, "model.vocab_size": 73}))
    assert resume_config(AUTO, saved, {}, done=1).model.dtype == recorded


@pytest.mark.parametrize("backend", ["cpu", "cuda 7.5", "cuda 8.0", "tpu"])
def test_a_model_that_belongs_to_no_run_computes_in_what_the_device_would_choose(backend):
    model = ModelConfig(n_layer=1, n_embd=8, n_head=2, dtype="auto", vocab_size=5)
    tokens = jnp.zeros((1, 4), jnp.int32)
    with compiling_for(backend):
        chosen = dtype_of(model, backend)
        assert chosen == choose_dtype(backend)[0]
        assert init_cache(model, 1).k_NSK[0].dtype == chosen
        hidden = lambda: GPT(model).init_with_output(jax.random.key(0), tokens, return_hidden=True)
        (x_BTD, _), _ = jax.eval_shape(hidden)
    assert x_BTD.dtype == chosen

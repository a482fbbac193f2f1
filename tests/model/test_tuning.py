"""The tunings for kinds of devices: the same loss and gradients, arranged otherwise.

Everything here is computed on this machine's CPU with the tuning of another device, in float32
unless a test says otherwise.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from gpt_jax.config import ModelConfig, TrainConfig, load_config
from gpt_jax.model import GPT, tuning
from gpt_jax.model.gpt import pad_head
from gpt_jax.model.layers import matmul
from gpt_jax.model.loss import loss_fn, token_losses
from gpt_jax.model.tuning import CPU, CUDA, choose_tuning
from gpt_jax.parallel.backend import compiling_for

EPS = np.finfo(np.float32).eps
MODELS = {
    "tied": dataclasses.replace(TINY, activation="gelu", qkv_bias=True, vocab_size=11),
    "head with bias": dataclasses.replace(TINY, tied=False, head_bias=True, vocab_size=130),
    "gated, grouped": dataclasses.replace(
        TINY, activation="swiglu", n_kv_head=1, qkv_bias=False, bias=False, norm="rms"
    ),
    "tied, bias, remat": dataclasses.replace(TINY, head_bias=True, remat="dots", vocab_size=128),
}


def param_shapes(model: ModelConfig):
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda: GPT(model).init(jax.random.key(0), tokens)["params"])


def loss_and_gradient(model: ModelConfig, loss_chunk: int | None):
    shapes, random = param_shapes(model), np.random.default_rng(0)

    def draw(path, x):  # logits far from uniform, and no bias is 0
        mean = 5.0 if path[-1].key == "scale" else 0.01
        return random.normal(mean, 0.1, x.shape).astype(np.float32)

    params = jax.tree.map_with_path(draw, shapes)
    batch = jax.random.randint(jax.random.key(1), (3, model.block_size + 1), 0, model.vocab_size)
    train = TrainConfig(loss_chunk=loss_chunk)
    key = jax.random.key(2)
    loss = functools.partial(loss_fn, model, batch=batch, dropout_key=key, train=train)
    return jax.jit(jax.value_and_grad(lambda params: loss(params)))(params)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_gpus_tuning_computes_the_same(monkeypatch, name):
    """Each gradient within what sums of some hundred roundings allow, of its largest entry."""
    model = dataclasses.replace(MODELS[name], dropout=0.1)
    for loss_chunk in (None, 5) if name == "tied" else (None,):
        with compiling_for("cpu"):  # where this runs on a GPU, too
            monkeypatch.setattr(tuning, "CPU", CPU)
            loss, gradient = loss_and_gradient(model, loss_chunk)
            monkeypatch.setattr(tuning, "CPU", CUDA)
            other_loss, other = loss_and_gradient(model, loss_chunk)
        assert float(other_loss) == pytest.approx(float(loss), rel=float(50 * EPS))
        for path, expected in jax.tree.leaves_with_path(gradient):
            found = functools.reduce(lambda tree, key: tree[key.key], path, other)
            bound = 500 * EPS * float(np.abs(expected).max())
            np.testing.assert_allclose(found, expected, atol=bound, err_msg=f"{path}")


@pytest.mark.slow
def test_in_bfloat16_a_gpus_gradients_point_where_those_of_float32_do():
    """Base's shape at 2 layers, all choices for a GPU but its kernel for attention."""
    base = load_config("base").model
    base = dataclasses.replace(base, n_layer=2, block_size=32, attention="plain", dtype="float32")
    random = np.random.default_rng(0)

    def draw(path, x):
        noise = random.standard_normal(x.shape, np.float32)
        return 0.02 * noise + (path[-1].key == "scale")

    params = jax.tree.map_with_path(draw, param_shapes(base))
    batch = jnp.asarray(random.integers(0, base.vocab_size, (2, base.block_size + 1)))

    def gradient(dtype: str, backend: str):
        model = dataclasses.replace(base, dtype=dtype)
        with compiling_for(backend):
            return jax.jit(jax.grad(lambda params: loss_fn(model, params, batch)))(params)

    expected, found = gradient("float32", "cpu"), gradient("bfloat16", "cuda 9.0")

    def cosine(a, b):
        a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
        return a @ b / np.sqrt((a @ a) * (b @ b))

    cosines = jax.tree.map(cosine, expected, found)
    assert min(jax.tree.leaves(cosines)) >= 0.9999, cosines
    assert max(jax.tree.leaves(cosines)) < 1 - 1e-9  # it is another program


@pytest.mark.slow
@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(CUDA)])
def test_each_choice_changes_the_program(monkeypatch, field):
    """A choice that nothing reads would be a claim about speed that nothing keeps."""
    model = dataclasses.replace(TINY, n_layer=7, activation="gelu")
    programs = set()
    for value in (getattr(CPU, field), getattr(CUDA, field)):
        monkeypatch.setattr(tuning, "CPU", dataclasses.replace(CPU, **{field: value}))
        params = param_shapes(model)
        B = 17 if field == "most_summed" else 1
        batch = jnp.zeros((B, model.block_size + 1), jnp.int32)
        gradient = jax.grad(functools.partial(loss_fn, model, batch=batch))
        programs.add(str(jax.make_jaxpr(lambda params: gradient(params))(params)))  # noqa: B023
    assert len(programs) == 2


def test_a_backend_has_one_tuning():
    assert all(choose_tuning(backend, 768) == CPU for backend in ("cpu", "tpu", "rocm"))
    assert choose_tuning("cuda 7.5", 768) == choose_tuning("cuda 9.0", 256) == CUDA
    assert choose_tuning("cuda 9.0", 128) == CPU


def test_ids_that_pad_the_vocabulary_have_no_probability():
    logits = 3 * jax.random.normal(jax.random.key(0), (2, 128, 11))
    targets = jax.random.randint(jax.random.key(1), (2, 128), 0, 11)
    with compiling_for("cuda 9.0"):
        kernel_DV, bias_V = pad_head((logits.reshape(256, 11), None))
    padded = (kernel_DV + bias_V).reshape(2, 128, 128)

    @functools.partial(jax.jit, static_argnames="one_pass")
    def with_gradient(logits, **options):
        losses = lambda logits: token_losses(logits, targets, **options)
        return losses(logits), jax.grad(lambda logits: losses(logits).sum())(logits)

    found, gradient = with_gradient(padded, one_pass=True)
    expected, unpadded = with_gradient(logits)
    np.testing.assert_allclose(found, expected, rtol=8 * EPS)
    gradient = np.asarray(gradient)
    assert (gradient[..., 11:] == 0).all()
    np.testing.assert_allclose(gradient[..., :11], unpadded, atol=8 * EPS)


@pytest.mark.parametrize(("backend", "expected"), [("cpu", 3 * 1.001), ("cuda 9.0", 3)])
def test_the_gradient_of_logits_is_rounded_before_its_products_but_on_a_cpu(backend, expected):
    """Of 3 tokens, each with a gradient that bfloat16 rounds to 1; the sum over them is float32."""
    x, kernel = jnp.ones((3, 2), jnp.bfloat16), jnp.ones((2, 5))
    with compiling_for(backend):
        total = lambda kernel: 1.001 * matmul(x, kernel, jnp.float32).sum()
        of_kernel = jax.grad(total)(kernel)
    assert of_kernel.dtype == np.float32
    np.testing.assert_allclose(of_kernel, expected, rtol=4 * EPS)

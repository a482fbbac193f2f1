"""The model: its size, its causality, its options, the equality of its ways to the same logits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, TINY

from gpt_jax.config import ModelConfig, list_configs, load_config
from gpt_jax.config.files import config_dir
from gpt_jax.model import GPT, forward, init_cache, tuning
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.parallel.sharding import state_shardings
from gpt_jax.prng import make_keys

EPS = np.finfo(np.float32).eps


def init(config: ModelConfig, scale: float = 1.0):
    """Parameters of a tiny model; scaled up, so that its logits are far from uniform."""
    params = jax.device_get(jit_init(config)(jax.random.key(0)))
    return jax.tree.map(lambda x: x * np.float32(scale), params)


def jit_init(config: ModelConfig):
    return jax.jit(lambda key: GPT(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"])


PARAMS = init(TINY, scale=5.0)
TOKENS_BT = jax.random.randint(jax.random.key(1), (3, TINY.block_size), 0, TINY.vocab_size)


def count(config: ModelConfig) -> int:
    shapes = jax.eval_shape(jit_init(config), jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))


MODELS_PAGE = (ROOT / "docs" / "models-and-options.md").read_text("utf-8")
PARAMETERS = {  # (vocabulary of its corpus, parameters)
    "nano": (73, 620_873),
    "nano_original": (73, 620_873),
    "nano_bpe": (512, 733_696),
    "nano_tuned": (73, 621_065),
    "shakespeare_cpu": (65, 804_096),
    "shakespeare_char": (65, 10_745_088),
    "base": (50257, 124_439_808),
    "medium": (50257, 354_823_168),
    "large": (50257, 774_030_080),
    "xl": (50257, 1_557_611_200),
    "base_8k": (50257, 123_653_376),
}


@pytest.mark.parametrize("name", list_configs())
def test_every_config_has_the_parameter_count_it_states(name):
    vocab_size, parameters = PARAMETERS[name]
    assert count(dataclasses.replace(load_config(name).model, vocab_size=vocab_size)) == parameters
    stated = config_dir() / f"{name}.py"
    if name != "nano_original":
        assert f"{parameters:,}" in stated.read_text("utf-8").partition("\n")[0]
    assert f"`{name}`" in MODELS_PAGE
    assert f"{parameters:,}" in MODELS_PAGE


@pytest.mark.slow
def test_initial_weights_have_the_originals_distribution():
    params = init(dataclasses.replace(load_config("nano").model, vocab_size=73))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if "bias" in name:
            assert (leaf == 0).all(), name
        elif "scale" in name:
            assert (leaf == 1).all(), name
        else:  # five standard errors of a mean and of a standard deviation
            assert abs(leaf.mean()) < 5 * 0.02 / leaf.size**0.5, name
            assert abs(leaf.std() / 0.02 - 1) < 5 / (2 * leaf.size) ** 0.5, name


def test_query_key_value_have_no_bias_and_the_rest_does():
    blocks = PARAMS["blocks"]
    assert set(blocks["attn"]["qkv"]) == {"kernel"}
    for layer in (blocks["attn"]["proj"], blocks["mlp"]["up"], blocks["mlp"]["down"]):
        assert set(layer) == {"kernel", "bias"}
    assert set(PARAMS["head"]) == {"kernel", "bias"}


BASE = dataclasses.replace(TINY, n_head=4)
GPT2 = {"activation": "gelu", "qkv_bias": True, "head_bias": False, "tied": True}
MODERN = {
    "activation": "swiglu",
    "norm": "rms",
    "bias": False,
    "head_bias": False,
    "positions": "rotary",
    "qk_norm": True,
    "n_kv_head": 2,
}
OPTIONS = {
    "nano": {},
    "gpt2": GPT2,
    "modern": MODERN,
    "all": {**MODERN, **GPT2, "activation": "swiglu", "bias": True, "head_bias": True},
    "one key head": {"n_kv_head": 1},
    "relu2, a scale, a wide MLP": {
        "activation": "relu2", "attention_scale": 0.3, "mlp_width": 40
    },
    "inverse layers": {"inverse_layer_scale": True, "attention_scale": 2.0},
    "a narrow gated MLP": {"mlp_width": 5, "activation": "swiglu"},
    "epsilon": {"norm_epsilon": 30.0},
    "epsilon of RMS, a base": {
        "norm_epsilon": 30.0, "norm": "rms", "qk_norm": True,
        "positions": "rotary", "rotary_base": 7.0,
    },
}  # fmt: skip
CONFIGS = {name: dataclasses.replace(BASE, **options) for name, options in OPTIONS.items()}
each_option = pytest.mark.parametrize("name", OPTIONS)
each_combination = pytest.mark.parametrize(
    "name", ["nano", "gpt2", "modern", "all", "one key head", "inverse layers"]
)
compiled = jax.jit(forward, static_argnums=0, static_argnames="last_only")
dropped = jax.jit(functools.partial(forward, deterministic=False), static_argnums=0)


@functools.cache
def init_unlike(config: ModelConfig):
    """Parameters of which no two are alike: biases are not zero, scales are not one."""
    random = np.random.default_rng(2)

    def draw(path, like):
        mean = 5.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(random.normal(mean, 0.3, like.shape), like.dtype)

    shapes = jax.eval_shape(jit_init(config), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def plain_logits(c: ModelConfig, params, tokens_T):
    """The model's arithmetic, written again in float64 from its description; (T, V)."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    T, H, K = len(tokens_T), c.n_head, c.n_embd // c.n_head
    n_kv = c.n_kv_head or H

    def rms(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon) * scale

    def norm(x, q):
        if c.norm == "rms":
            return rms(x, q["scale"])
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + c.norm_epsilon) * q["scale"] + q.get("bias", 0)

    def dense(x, q):
        return x @ q["kernel"] + q.get("bias", 0)

    def activation(x):
        if c.activation == "gelu":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        if c.activation == "swiglu":
            return x / (1 + np.exp(-x))
        return np.maximum(x, 0) ** (2 if c.activation == "relu2" else 1)

    def turn(x, t):  # entries i and i + K/2 are a complex number
        z = (x[: K // 2] + 1j * x[K // 2 :]) * np.exp(
            1j * t / c.rotary_base ** (np.arange(K // 2) * 2 / K)
        )
        return np.concatenate([z.real, z.imag])

    def head_rows(x, n, scale):
        rows = x.reshape(T, n, K)
        if scale is not None and c.qk_norm:
            rows = rms(rows, scale["scale"])
        if scale is not None and c.positions == "rotary":
            rows = np.array([[turn(row, t) for row in rows[t]] for t in range(T)])
        return rows

    x = p["tokens"]["embedding"][tokens_T]
    if c.positions == "learned":
        x = x + p["positions"][:T]
    for i in range(c.n_layer):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
        attn, mlp = layer["attn"], layer["mlp"]
        qkv = dense(norm(x, layer["norm_1"]), attn["qkv"])
        q = head_rows(qkv[:, : H * K], H, attn.get("q_norm", {}))
        k = head_rows(qkv[:, H * K : (H + n_kv) * K], n_kv, attn.get("k_norm", {}))
        v = head_rows(qkv[:, (H + n_kv) * K :], n_kv, None)
        y = np.zeros((T, H, K))
        for h in range(H):
            shared = h // (H // n_kv)
            for t in range(T):
                scores = k[: t + 1, shared] @ q[t, h] * (c.attention_scale or K**-0.5)
                scores = scores / (i + 1 if c.inverse_layer_scale else 1)
                weights = np.exp(scores - scores.max())
                y[t, h] = weights @ v[: t + 1, shared] / weights.sum()
        x = x + dense(y.reshape(T, -1), attn["proj"])
        h = norm(x, layer["norm_2"])
        if c.activation == "swiglu":
            hidden = activation(dense(h, mlp["gate"])) * dense(h, mlp["up"])
        else:
            hidden = activation(dense(h, mlp["up"]))
        x = x + dense(hidden, mlp["down"])
    x = norm(x, p["norm_f"])
    if c.tied:
        return x @ p["tokens"]["embedding"].T + p.get("head_bias", 0)
    return dense(x, p["head"])


@pytest.mark.slow
@each_option
def test_logits_equal_a_plain_numpy_transformer(name):
    config = CONFIGS[name]
    params = init_unlike(config)
    ours_BTV = compiled(config, params, TOKENS_BT)
    for tokens_T, ours_TV in zip(np.asarray(TOKENS_BT), ours_BTV, strict=True):
        expected_TV = plain_logits(config, params, tokens_T)
        # float32 rounding through some 20 operations, each of sums of at most 64 terms
        atol = 20 * 64 * EPS * np.abs(expected_TV).max()
        np.testing.assert_allclose(ours_TV, expected_TV, atol=atol)


@pytest.mark.slow
@each_combination
def test_every_way_to_the_logits_gives_the_full_forwards(name):
    """Token by token and several at a time through the cache, and the last position alone."""
    config = CONFIGS[name]
    params = init_unlike(config)
    full_BTV = compiled(config, params, TOKENS_BT)
    atol = 20 * 64 * EPS * float(np.abs(full_BTV).max())
    cache = init_cache(config, len(TOKENS_BT))
    assert {x.shape for x in (*cache.k_NSK, *cache.v_NSK)} == {
        (len(TOKENS_BT) * (config.n_kv_head or config.n_head), config.block_size, 4)
    }
    parts = []
    for start, end in [(0, 3), (3, 4), (4, 5), (5, 8)]:
        part_BTV, cache = compiled(config, params, TOKENS_BT[:, start:end], cache=cache)
        parts.append(part_BTV)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), full_BTV, atol=atol)
    last_B1V = compiled(config, params, TOKENS_BT, last_only=True)
    np.testing.assert_allclose(last_B1V, full_BTV[:, -1:], atol=atol)


@pytest.mark.slow
@each_combination
def test_every_parameter_has_a_finite_gradient_and_a_sharding_rule(name):
    config = CONFIGS[name]
    params = init_unlike(config)

    @jax.jit
    def grad(params):
        rngs = {"dropout": jax.random.key(3)}
        kwargs = {"deterministic": False, "rngs": rngs}
        losses = lambda p: jax.nn.log_softmax(forward(config, p, TOKENS_BT, **kwargs))[..., 0]
        return jax.grad(lambda p: losses(p).mean())(params)

    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(grad(params))):
        assert np.isfinite(leaf).all(), path
        assert np.any(leaf), path
    state_shardings({"params": params}, make_mesh(1))


@pytest.mark.parametrize(
    ("options", "missing", "present"),
    [
        (GPT2, {"head", "head_bias"}, {"attn/qkv/bias", "norm_f/bias", "positions"}),
        (MODERN, {"positions", "bias", "head_bias"}, {"mlp/gate/kernel", "attn/q_norm/scale"}),
        ({"tied": True}, {"head"}, {"head_bias"}),
        ({"bias": False}, {"attn/proj/bias", "norm_f/bias", "mlp/up/bias"}, {"head/bias"}),
    ],
)
def test_an_option_brings_the_parameters_it_names_and_no_other(options, missing, present):
    shapes = jax.eval_shape(jit_init(dataclasses.replace(BASE, **options)), jax.random.key(0))
    names = [
        "/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)
    ]
    for name in missing:
        assert not any(f"/{name}/" in f"/{found}/" for found in names), name
    for name in present:
        assert any(f"/{name}/" in f"/{found}/" for found in names), name


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_embd", "parameters"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_gpt2_has_the_parameters_it_was_published_with(n_layer, n_head, n_embd, parameters):
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd}
    assert count(ModelConfig(**sizes, block_size=1024, vocab_size=50257, **GPT2)) == parameters


FIRST_AND_LAST = {  # of nano's parameters, seed 0; all others are all 0 or all 1
    "blocks/attn/proj/kernel": (0.0304306, 0.0356638),
    "blocks/attn/qkv/kernel": (0.0132966, 0.0005624),
    "blocks/mlp/down/kernel": (0.0240576, -0.0270651),
    "blocks/mlp/up/kernel": (-0.0110529, -0.0088643),
    "head/kernel": (0.017095, 0.0131929),
    "positions": (0.0202041, -0.0035805),
    "tokens/embedding": (-0.0167186, 0.0195494),
}


@pytest.mark.slow
def test_nano_starts_from_the_parameters_it_always_had():
    """To the seventh place: versions of jax differ in a normal draw's last bits."""
    config = dataclasses.replace(load_config("nano").model, vocab_size=73)
    key = make_keys(load_config("nano").seed).init
    params = jit_init(config)(key)
    drawn = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        values = np.asarray(leaf).ravel()
        if name in FIRST_AND_LAST:
            np.testing.assert_allclose(values[[0, -1]], FIRST_AND_LAST[name], rtol=0, atol=1e-7)
            drawn.add(name)
        else:
            assert (values == float(name.endswith("scale"))).all(), name
    assert drawn == set(FIRST_AND_LAST)


@pytest.mark.slow
def test_residual_layers_may_start_smaller():
    config, factor_of_3_layers = dataclasses.replace(BASE, n_layer=3), (2 * 3) ** -0.5
    one, other = (
        init(dataclasses.replace(config, residual_init_scale=scaled))["blocks"]
        for scaled in (False, True)
    )
    for part, layer, factor in [
        ("attn", "proj", factor_of_3_layers),
        ("mlp", "down", factor_of_3_layers),
        ("attn", "qkv", 1),
        ("mlp", "up", 1),
    ]:
        expected = one[part][layer]["kernel"] * factor
        np.testing.assert_allclose(other[part][layer]["kernel"], expected, rtol=4 * EPS)


@pytest.mark.slow
def test_embeddings_are_dropped_when_asked():
    config = dataclasses.replace(BASE, dropout=0.0, embedding_dropout=0.5)
    plain = compiled(config, PARAMS, TOKENS_BT)
    rngs = {"dropout": jax.random.key(0)}
    assert (dropped(config, PARAMS, TOKENS_BT, rngs=rngs) != np.asarray(plain)).any()
    none = dataclasses.replace(config, embedding_dropout=0.0)
    np.testing.assert_array_equal(dropped(none, PARAMS, TOKENS_BT), plain)


@pytest.mark.slow
def test_no_position_depends_on_a_later_one():
    def logits(embedding):
        params = {**PARAMS, "tokens": {"embedding": embedding}}
        tokens = jnp.arange(TINY.block_size)[None]  # each position has an embedding of its own
        return forward(TINY, params, tokens)[0]

    jacobian_TVED = jax.jit(jax.jacrev(logits))(PARAMS["tokens"]["embedding"])
    reached_TE = jnp.abs(jacobian_TVED).sum(axis=(1, 3))[:, : TINY.block_size] > 0
    np.testing.assert_array_equal(reached_TE, np.tri(TINY.block_size, dtype=bool))


@pytest.mark.slow
def test_cached_decoding_equals_the_full_forward_at_every_position():
    full_BTV = compiled(TINY, PARAMS, TOKENS_BT)
    cache = init_cache(TINY, len(TOKENS_BT))
    for t in range(TINY.block_size):
        step_B1V, cache = compiled(TINY, PARAMS, TOKENS_BT[:, t : t + 1], cache=cache)
        assert int(cache.length) == t + 1
        np.testing.assert_allclose(step_B1V[:, 0], full_BTV[:, t], atol=2e-5)


def test_deterministic_by_default_and_dropout_needs_a_key():
    np.testing.assert_array_equal(
        forward(TINY, PARAMS, TOKENS_BT), GPT(TINY).apply({"params": PARAMS}, TOKENS_BT)
    )
    with pytest.raises(Exception, match="dropout"):
        forward(TINY, PARAMS, TOKENS_BT, deterministic=False)


@pytest.mark.slow
def test_dropout_changes_with_its_key_alone():
    def apply(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(dropped(TINY, PARAMS, TOKENS_BT, rngs=rngs))

    np.testing.assert_array_equal(apply(0), apply(0))
    assert (apply(0) != apply(1)).any()
    assert (apply(0) != compiled(TINY, PARAMS, TOKENS_BT)).any()


def test_attention_scale_is_what_it_says():
    standard = np.asarray(compiled(TINY, PARAMS, TOKENS_BT))
    head_size = TINY.n_embd // TINY.n_head
    explicit = dataclasses.replace(TINY, attention_scale=head_size**-0.5)
    np.testing.assert_array_equal(compiled(explicit, PARAMS, TOKENS_BT), standard)
    other = dataclasses.replace(TINY, attention_scale=TINY.n_embd**-0.5)
    assert np.abs(compiled(other, PARAMS, TOKENS_BT) - standard).max() > 1e-3


def test_too_many_tokens_are_refused():
    with pytest.raises(ValueError, match="9 tokens do not fit block_size=8"):
        forward(TINY, PARAMS, jnp.zeros((1, 9), jnp.int32))
    with pytest.raises(ValueError, match="vocab_size is 0"):
        forward(dataclasses.replace(TINY, vocab_size=0), PARAMS, TOKENS_BT)


# --- what large models need -----------------------------------------------------------------------

BF16 = 2.0**-8  # bfloat16 has 8 bits, so a rounding is at most half of this, relatively


def dropped_loss(config: ModelConfig, params):
    """A loss with dropout, whose gradient reaches every parameter."""
    rngs = {"dropout": jax.random.key(3)}
    logits_BTV = forward(config, params, TOKENS_BT, deterministic=False, rngs=rngs)
    return -jax.nn.log_softmax(logits_BTV)[..., 0].mean()


def equations(jaxpr):
    """Yields every equation of a jaxpr, those inside of others too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_in_bfloat16_products_are_and_parameters_gradients_and_sums_are_not(name):
    config = dataclasses.replace(CONFIGS[name], dtype="bfloat16", remat="dots")
    params = jax.eval_shape(jit_init(config), jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype("float32")}
    traced = jax.make_jaxpr(jax.grad(functools.partial(dropped_loss, config)))(params)
    assert {x.dtype for x in traced.out_avals} == {np.dtype("float32")}
    sums, products, of_kernels = set(), [], []
    kernels = {x.shape[-2:] for x in jax.tree.leaves(params) if x.ndim > 1}
    kernels |= {shape[::-1] for shape in kernels}
    for equation in equations(traced.jaxpr):
        dtype = equation.invars[0].aval.dtype if equation.invars else None
        if equation.primitive.name.startswith(("reduce_sum", "reduce_max", "scatter", "cum")):
            sums.add(dtype.name)
        if equation.primitive.name == "exp":  # of a softmax
            assert dtype == np.dtype("float32")
        if equation.primitive.name == "dot_general":
            products.append(dtype.name)
            if (result := equation.outvars[0].aval).shape in kernels:
                of_kernels.append(result.dtype.name)
    assert sums == {"float32"}
    # In float32 remain the gradients of scores and logits, whose sums they are.
    assert products.count("bfloat16") > 0.7 * len(products)
    # Of each layer, blocks being one loop's body, and of the head.
    layers = ["qkv", "proj", "up", "down"] + (["gate"] if name == "modern" else [])
    assert of_kernels == ["float32"] * (len(layers) + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "modern"])
def test_bfloat16_changes_rounding_only(name):
    """Its logits are as far from float32's as some 10 roundings a block and 3 more allow.

    They add up at worst, where no product is much larger than what it is made from, as at the
    start. The loss moves by at most twice what a logit does.
    """
    config = CONFIGS[name]
    half = dataclasses.replace(config, dtype="bfloat16")
    params = init(config)
    exact, ours = (compiled(c, params, TOKENS_BT) for c in (config, half))
    assert ours.dtype == np.dtype("float32")
    bound = (10 * config.n_layer + 3) * BF16 / 2 * float(np.abs(exact).max())
    assert 0 < float(np.abs(np.asarray(ours) - exact).max()) < bound
    loss, other = (jax.jit(functools.partial(dropped_loss, c))(params) for c in (config, half))
    assert abs(float(loss - other)) < 2 * bound


@pytest.mark.slow
def test_in_bfloat16_too_the_cache_gives_the_full_forwards_logits():
    config = dataclasses.replace(CONFIGS["modern"], dtype="bfloat16")
    params = init(config)
    full_BTV = compiled(config, params, TOKENS_BT)
    cache = init_cache(config, len(TOKENS_BT))
    parts = []
    for start, end in [(0, 4), (4, 8)]:
        part_BTV, cache = compiled(config, params, TOKENS_BT[:, start:end], cache=cache)
        parts.append(part_BTV)
    assert {x.dtype for x in (*cache.k_NSK, *cache.v_NSK)} == {jnp.dtype("bfloat16")}
    # Two ways of rounding, each as above.
    bound = 2 * (10 * config.n_layer + 3) * BF16 / 2 * float(np.abs(full_BTV).max())
    np.testing.assert_allclose(np.concatenate(parts, axis=1), full_BTV, atol=bound)
    last_B1V = compiled(config, params, TOKENS_BT, last_only=True)
    np.testing.assert_allclose(last_B1V, full_BTV[:, -1:], atol=bound)


@pytest.mark.slow
def test_computing_again_changes_nothing_but_memory():
    """With dropout: masks of its own would move the loss by some 1e-2."""
    plain, params = TINY, PARAMS
    found, memory = {}, {}
    for remat in ("none", "dots", "full"):
        config = dataclasses.replace(plain, remat=remat)
        program = (
            jax.jit(jax.value_and_grad(functools.partial(dropped_loss, config)))
            .lower(params)
            .compile()
        )
        found[remat] = program(params)
        memory[remat] = program.memory_analysis().temp_size_in_bytes
    assert memory["full"] < memory["dots"] < memory["none"]
    loss, grads = found["none"]
    for remat in ("dots", "full"):
        np.testing.assert_allclose(found[remat][0], loss, rtol=8 * EPS)
        for one, other in zip(
            jax.tree.leaves(found[remat][1]), jax.tree.leaves(grads), strict=True
        ):
            # The same products, fused otherwise: sums of at most 64 terms, through some 20 layers.
            np.testing.assert_allclose(one, other, atol=20 * 64 * EPS * np.abs(other).max())


@pytest.mark.slow
def test_in_bfloat16_as_many_products_are_computed_again():
    """Their gradients are defined by hand there, and remat's policy must see inside."""

    def count_products(remat, dtype):
        config = dataclasses.replace(TINY, n_layer=2, remat=remat, dtype=dtype)
        traced = jax.make_jaxpr(jax.grad(functools.partial(dropped_loss, config)))(PARAMS)
        return sum(e.primitive.name == "dot_general" for e in equations(traced.jaxpr))

    half = {remat: count_products(remat, "bfloat16") for remat in ("none", "dots", "full")}
    assert half == {remat: count_products(remat, "float32") for remat in half}
    assert half["none"] < half["dots"] < half["full"]


@pytest.mark.slow
def test_blocks_of_deep_models_are_a_loop_and_compute_the_same(monkeypatch):
    config = dataclasses.replace(BASE, n_layer=7)
    params = init(config, scale=5.0)
    rolled, unrolled = (jax.jit(forward, static_argnums=0) for _ in range(2))
    assert "while" in rolled.lower(config, params, TOKENS_BT).as_text()
    expected = rolled(config, params, TOKENS_BT)
    monkeypatch.setattr(tuning, "CPU", dataclasses.replace(tuning.CPU, unroll=7))
    jax.clear_caches()
    assert "while" not in unrolled.lower(config, params, TOKENS_BT).as_text()
    atol = 20 * 64 * EPS * float(np.abs(expected).max())
    np.testing.assert_allclose(unrolled(config, params, TOKENS_BT), expected, atol=atol)

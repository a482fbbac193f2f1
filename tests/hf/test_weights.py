"""GPT-2 folders of Hugging Face: logits equal to a plain GPT-2's and to transformers'."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import load_file, save_file

import gpt_jax
from gpt_jax import hf
from gpt_jax.config import ModelConfig
from gpt_jax.config.fields import field
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.inference.decoding import Filters, generate_tokens
from gpt_jax.model import GPT
from gpt_jax.model.attention import choose_attention

SIZES = {"n_layer": 2, "n_head": 3, "n_embd": 12, "n_positions": 10, "vocab_size": 17}
TOKENS_BT = np.arange(20).reshape(2, 10) ** 2 % 17
OURS = ModelConfig(
    n_layer=2,
    n_head=3,
    n_embd=12,
    block_size=10,
    vocab_size=17,
    activation="gelu",
    qkv_bias=True,
    head_bias=False,
    tied=True,
)


def make_tensors(values, seed=0):
    """Random tensors of a GPT-2, by the names that transformers gives them."""
    L, D = values["n_layer"], values["n_embd"]
    F = values.get("n_inner") or 4 * D
    shapes = {
        "wte.weight": (values["vocab_size"], D),
        "wpe.weight": (values["n_positions"], D),
        "ln_f.weight": (D,),
        "ln_f.bias": (D,),
    }
    for i in range(L):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{norm}.weight": (D,), f"h.{i}.{norm}.bias": (D,)}
        for name, n_in, n_out in [
            ("attn.c_attn", D, 3 * D),
            ("attn.c_proj", D, D),
            ("mlp.c_fc", D, F),
            ("mlp.c_proj", F, D),
        ]:
            shapes |= {f"h.{i}.{name}.weight": (n_in, n_out), f"h.{i}.{name}.bias": (n_out,)}
    tensors = {f"transformer.{name}": shape for name, shape in shapes.items()}
    tensors["lm_head.weight"] = (values["vocab_size"], D)
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in tensors.items()}


def write_folder(folder, tensors=None, **values):
    """Writes a GPT-2 folder; returns the tensors. A config value of None leaves its key out."""
    values = {"model_type": "gpt2", **SIZES, "attn_pdrop": 0.0, "resid_pdrop": 0.0, **values}
    values = {name: value for name, value in values.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    if tensors is None:
        sizes = {k: v for k, v in values.items() if k in (*SIZES, "n_inner")}
        tensors = make_tensors({**SIZES, **sizes})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


PLAIN = {
    "gelu_new": lambda h: 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))),
    "gelu": lambda h: 0.5 * h * (1 + np.vectorize(math.erf)(h / np.sqrt(2))),
    "relu": lambda h: np.maximum(h, 0),
    "relu2": lambda h: np.maximum(h, 0) ** 2,
}
OTHER_NAMES = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "gelu_python": "gelu"}


def plain_gpt2(tensors, tokens_T, n_head, *, tied=True, scaled=True, activation="gelu_new",
               epsilon=1e-5, inverse=False):  # fmt: skip
    """GPT-2 in float64 from the tensors of its file; logits (T, V)."""
    t = {
        name.removeprefix("transformer."): np.asarray(x, np.float64) for name, x in tensors.items()
    }
    T, D = len(tokens_T), t["wte.weight"].shape[1]
    K = D // n_head

    def norm(x, name):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + epsilon) * t[f"{name}.weight"] + t[f"{name}.bias"]

    def conv(x, name):
        return x @ t[f"{name}.weight"] + t[f"{name}.bias"]

    x = t["wte.weight"][tokens_T] + t["wpe.weight"][:T]
    for i in range(sum(name.endswith("ln_1.bias") for name in t)):
        q, k, v = np.split(conv(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn"), 3, axis=1)
        heads = []
        for h in range(n_head):
            part = slice(h * K, (h + 1) * K)
            scores = q[:, part] @ k[:, part].T / (np.sqrt(K) if scaled else 1)
            scores /= i + 1 if inverse else 1
            scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
        x = x + conv(np.concatenate(heads, axis=1), f"h.{i}.attn.c_proj")
        h = conv(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        h = PLAIN[OTHER_NAMES.get(activation, activation)](h)
        x = x + conv(h, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ t["wte.weight" if tied else "lm_head.weight"].T


def logits(config, params, tokens_BT=TOKENS_BT):
    return jax.jit(GPT(config).apply)({"params": params}, tokens_BT)


# --- in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"tie_word_embeddings": False},
        {"scale_attn_weights": False},
        {"n_layer": 1, "n_head": 1, "n_embd": 5, "vocab_size": 31},
        {"activation_function": "gelu_pytorch_tanh", "n_inner": 48, "n_layer": 3},
        {"n_inner": 7},
        {"n_inner": 100, "layer_norm_epsilon": 1e-12},
        {"layer_norm_epsilon": 0.5},
        *({"activation_function": name} for name in [*PLAIN, *OTHER_NAMES]),
    ],
)
def test_logits_equal_a_plain_gpt2s(tmp_path, values):
    tensors = write_folder(tmp_path, **values)
    config, params = gpt_jax.hf.load(tmp_path)
    assert jax.tree.all(jax.tree.map(lambda x: x.dtype == np.float32, params))
    for tokens_T, ours_TV in zip(TOKENS_BT, logits(config, params), strict=True):
        expected_TV = plain_gpt2(
            tensors,
            tokens_T,
            values.get("n_head", 3),
            tied=values.get("tie_word_embeddings", True),
            scaled=values.get("scale_attn_weights", True),
            activation=values.get("activation_function", "gelu_new"),
            epsilon=values.get("layer_norm_epsilon", 1e-5),
        )
        np.testing.assert_allclose(ours_TV, expected_TV, atol=1e-4)


def test_the_settings_are_gpt2s(tmp_path):
    write_folder(tmp_path, attn_pdrop=0.2, resid_pdrop=0.2, embd_pdrop=0.3)
    config, _ = hf.load(str(tmp_path))
    expected = dataclasses.replace(
        OURS, dropout=0.2, embedding_dropout=0.3, residual_init_scale=True
    )
    assert config == expected


def test_dropout_of_attention_may_differ(tmp_path):
    write_folder(tmp_path / "a", attn_pdrop=0.0, resid_pdrop=0.2)
    config, params = hf.load(tmp_path / "a")
    assert (config.dropout, config.attention_dropout) == (0.2, 0.0)
    assert choose_attention(dataclasses.replace(config, block_size=2048), "cpu")[0] == "blockwise"
    hf.save(tmp_path / "b", config, params)
    values = json.loads((tmp_path / "b" / "config.json").read_text())
    assert (values["attn_pdrop"], values["resid_pdrop"]) == (0.0, 0.2)
    assert hf.load(tmp_path / "b")[0] == config


def test_what_config_json_leaves_out_is_transformers_default(tmp_path):
    write_folder(tmp_path, make_tensors(SIZES), **dict.fromkeys(SIZES), attn_pdrop=0.1,
                 resid_pdrop=None)  # fmt: skip
    with pytest.raises(UserError, match=r"wte.weight has shape \(17, 12\).* \(50257, 768\)"):
        hf.load(tmp_path)


def strip_prefix(tensors):
    return {name.removeprefix("transformer."): x for name, x in tensors.items()}


def test_names_without_a_prefix_and_masks_are_as_good(tmp_path):
    """As in the files of 2019: GPT2Model's names, causal masks, no head."""
    tensors = write_folder(tmp_path / "new")
    old = strip_prefix(tensors)
    del old["lm_head.weight"]
    for i in range(2):
        old[f"h.{i}.attn.bias"] = np.tri(10, dtype=np.float32)[None, None]
        old[f"h.{i}.attn.masked_bias"] = np.float32([-1e4])
    write_folder(tmp_path / "old", old)
    (config, new), (other, params) = hf.load(tmp_path / "new"), hf.load(tmp_path / "old")
    assert config == other
    assert jax.tree.all(jax.tree.map(np.array_equal, new, params))


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_precisions_are_widened(tmp_path, kind):
    tensors = {name: x.astype(jnp.dtype(kind)) for name, x in make_tensors(SIZES).items()}
    write_folder(tmp_path, tensors)
    _, params = hf.load(tmp_path)
    expected = tensors["transformer.h.1.mlp.c_fc.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["blocks"]["mlp"]["up"]["kernel"][1], expected)


def test_bfloat16_needs_no_jax(tmp_path):
    write_folder(tmp_path, {n: x.astype(jnp.bfloat16) for n, x in make_tensors(SIZES).items()})
    code = f"import sys\nfrom gpt_jax import hf\nhf.load({str(tmp_path)!r})\n"
    code += "print('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def shard(folder, tensors, names=("model-00001-of-00002.safetensors", "b.safetensors")):
    """Cuts a folder's weights into two files with an index."""
    (folder / "model.safetensors").unlink()
    parts = [dict(list(tensors.items())[i::2]) for i in range(2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    weight_map = {t: name for name, part in zip(names, parts, strict=True) for t in part}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index, weight_map


def test_weights_may_lie_in_several_files(tmp_path):
    tensors = write_folder(tmp_path)
    _, whole = hf.load(tmp_path)
    shard(tmp_path, tensors)
    _, params = hf.load(tmp_path)
    assert jax.tree.all(jax.tree.map(np.array_equal, whole, params))


@pytest.mark.parametrize(
    "name",
    ["../b.safetensors", "/b.safetensors", "sub/b.safetensors", "..\\b.safetensors", "..", "",
     "b.bin", ".safetensors", "b.safetensors\0", 3, None, ["b.safetensors"]],
)  # fmt: skip
def test_an_index_stays_in_its_folder(tmp_path, name):
    folder = tmp_path / "model"
    tensors = write_folder(folder)
    save_file(tensors, tmp_path / "b.safetensors")
    index, weight_map = shard(folder, tensors)
    index.write_text(json.dumps({"weight_map": {**weight_map, "transformer.wte.weight": name}}))
    with pytest.raises(
        UserError,
        match=r"index\.json (names .* no \.safetensors file of its folder|.* is .*, not a text)",
    ):
        hf.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama', not 'gpt2'"),
        ({"model_type": None}, "model_type None, not 'gpt2'"),
        ({"activation_function": "silu"}, "activation_function='silu' can't be loaded"),
        ({"activation_function": 1}, "activation_function is 1, not a text"),
        ({"activation_function": ["gelu_new"]}, "activation_function is ['gelu_new'], not a text"),
        ({"layer_norm_epsilon": 0}, "model.norm_epsilon=0.0 must be a finite number above 0"),
        ({"layer_norm_epsilon": math.nan}, "model.norm_epsilon=nan must be a finite number above"),
        ({"scale_attn_by_inverse_layer_idx": 1}, "_by_inverse_layer_idx is 1, not true or"),
        ({"scale_attn_weights": 1}, "scale_attn_weights is 1, not true or false"),
        ({"scale_attn_weights": "false"}, "scale_attn_weights is 'false', not true or false"),
        ({"add_cross_attention": 0}, "add_cross_attention is 0, not true or false"),
        ({"add_cross_attention": True}, "add_cross_attention=True can't be loaded"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no', not true or false"),
        ({"attn_pdrop": 1.5}, "model.attention_dropout=1.5 must be a number in [0, 1)"),
        ({"attn_pdrop": "x"}, "attn_pdrop is 'x', not a number"),
        ({"embd_pdrop": 1}, "model.embedding_dropout=1.0 must be a number in [0, 1)"),
        ({"n_inner": 40}, "c_fc.weight has shape (12, 48), and its config.json asks for (12, 40)"),
        ({"n_inner": 0}, "model.mlp_width=0 must be a whole number of at least 1"),
        ({"n_layer": 0}, "model.n_layer=0 must be a whole number of at least 1"),
        ({"n_layer": 2.0}, "n_layer is 2.0, not a whole number"),
        ({"n_head": 5}, "model.n_embd=12 must be divisible by model.n_head=5"),
        ({"vocab_size": 0}, "wte.weight has shape (17, 12), and its config.json asks for (0, 12)"),
        ({"vocab_size": -1}, "model.vocab_size=-1 must be"),
        ({"n_layer": 10**15}, "model.n_layer is too large: a whole number of 50 bits"),
        ({"n_layer": 10**9}, "lacks the tensor transformer.h.2.ln_1.weight"),
        ({"n_layer": 1}, "which a GPT-2 of 1 layers has no place for"),
        ({"n_embd": 3 * 10**9}, "model.n_embd is too large: a whole number of 32 bits"),
        ({"n_embd": 3 * 10**8}, "wte.weight has shape (17, 12), and its config.json asks for (17,"),
        (
            {"n_positions": 11},
            "wpe.weight has shape (10, 12), and its config.json asks for (11, 12",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(tmp_path, change, message):
    tensors = make_tensors(SIZES)
    write_folder(tmp_path, tensors, **change)
    with pytest.raises(UserError) as caught:
        hf.load(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("transformer.h.1.mlp.c_fc.bias"),
            "lacks the tensor transformer.h.1.mlp.c_",
        ),
        (lambda t: t.pop("transformer.wte.weight"), "lacks the tensor transformer.wte.weight"),
        (
            lambda t: t.update({"transformer.h.0.attn.c_attn.weight": np.zeros((36, 12))}),
            "h.0.attn.c_attn.weight has shape (36, 12), and its config.json asks for (12, 36)",
        ),
        (
            lambda t: t.update({"transformer.ln_f.bias": np.zeros(12, np.int32)}),
            "ln_f.bias has type I32; only F32, F16, BF16, F64 can be loaded",
        ),
        (lambda t: t.update({"score.weight": np.zeros(3)}), "holds score.weight, which a GPT-2"),
        (
            lambda t: t.update({f"_orig_mod.{name}": t.pop(name) for name in list(t)}),
            "weights that were saved from torch.compile's wrapper; save the model in it: model.",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tmp_path, change, message):
    tensors = make_tensors(SIZES)
    change(tensors)
    write_folder(tmp_path, tensors)
    with pytest.raises(UserError) as caught:
        hf.load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_untied_head_must_be_there(tmp_path):
    tensors = make_tensors(SIZES)
    del tensors["lm_head.weight"]
    write_folder(tmp_path, tensors, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"lacks the tensor lm_head\.weight"):
        hf.load(tmp_path)


def damage_weights(make):
    def change(folder):
        path = folder / "model.safetensors"
        path.write_bytes(make(path.read_bytes()))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damage_weights(lambda raw: raw[:-1]), "model.safetensors is damaged or no safetensors"),
        (damage_weights(lambda raw: raw[:100]), "model.safetensors is damaged or no safetensors"),
        (damage_weights(lambda raw: b""), "model.safetensors is damaged or no safetensors"),
        (damage_weights(lambda raw: b"version https://git-lfs"), "model.safetensors is damaged"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json can't be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "it is not a JSON object"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json; give a folder"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors; get"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "has its weights as a pickle, pytorch_model.bin, which is not read",
        ),
    ],
)
def test_a_damaged_folder_is_one_line(tmp_path, change, message):
    write_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError) as caught:
        hf.load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda index: index.write_text('{"weight_map": []}'),
            "weight_map is [], not a JSON object",
        ),
        (lambda index: index.write_text("no"), "can't be read"),
        (lambda index: (index.parent / "b.safetensors").unlink(), "b.safetensors is missing"),
        (
            lambda index: save_file({"x": np.zeros(1)}, index.parent / "b.safetensors"),
            "lacks the tensor transformer.",
        ),
    ],
)
def test_damaged_shards_are_one_line(tmp_path, change, message):
    index, _ = shard(tmp_path, write_folder(tmp_path))
    change(index)
    with pytest.raises(UserError) as caught:
        hf.load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["gpt2", "no/such", "nul\0", "x" * 5000])
def test_a_folder_that_is_none_is_one_line(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="does not exist; give a folder of a GPT-2"):
        hf.load(folder)


# --- out ------------------------------------------------------------------------------------------


def init_unlike(config: ModelConfig):
    """Parameters of which no two are alike: biases are not zero, scales are not one."""
    params = GPT(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    new = [x + rng.normal(0, 0.3, x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, new)


EXPORTS = {
    "gpt2": {},
    "untied": {"tied": False, "dropout": 0.1, "embedding_dropout": 0.3},
    "widths": {"mlp_width": 20, "norm_epsilon": 0.25, "attention_dropout": 0.4},
    "no biases": {"qkv_bias": False, "bias": False},
    "scale 1": {"attention_scale": 1.0},
    "inverse layers": {"inverse_layer_scale": True},
    "explicit": {"attention_scale": 0.5, "n_kv_head": 3},
    **{name: {"activation": name} for name in ("relu", "relu2", "gelu_exact")},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTS)
def test_what_is_saved_loads_as_it_was(tmp_path, name):
    config = dataclasses.replace(OURS, **EXPORTS[name])
    params = init_unlike(config)
    hf.save(tmp_path / "new", config, params, end_token=3)
    loaded, back = hf.load(tmp_path / "new")
    sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "tied", "dropout")
    sizes += ("inverse_layer_scale", "mlp_width", "norm_epsilon", "attention_dropout")
    assert all(getattr(loaded, n) == getattr(config, n) for n in sizes)
    assert loaded.embedding_dropout == config.embedding_dropout
    was = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(params)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(back):
        expected = was.pop(jax.tree_util.keystr(path), np.zeros_like(leaf))
        np.testing.assert_array_equal(leaf, expected)
    assert not was
    np.testing.assert_array_equal(logits(config, params), logits(loaded, back))
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    values = json.loads((tmp_path / "new" / "config.json").read_text())
    like = {"scaled": config.attention_scale != 1.0, "activation": values["activation_function"]}
    like |= {"epsilon": config.norm_epsilon, "inverse": config.inverse_layer_scale}
    expected_TV = plain_gpt2(tensors, TOKENS_BT[0], 3, tied=config.tied, **like)
    np.testing.assert_allclose(logits(config, params)[0], expected_TV, atol=1e-4)
    assert values["eos_token_id"] == values["bos_token_id"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_bias_is_held_only_where_it_is_zero(tmp_path, tied):
    config = dataclasses.replace(OURS, tied=tied, head_bias=True)
    params = init_unlike(config)
    with pytest.raises(ConfigError, match=r"model\.head_bias=True is not supported .* zero"):
        hf.save(tmp_path / "new", config, params)
    assert not (tmp_path / "new").exists()
    if tied:
        params["head_bias"] = jnp.zeros(17)
    else:
        params["head"]["bias"] = jnp.zeros(17)
    hf.save(tmp_path / "new", config, params)
    np.testing.assert_array_equal(logits(config, params), logits(*hf.load(tmp_path / "new")))


@pytest.mark.slow
def test_a_setting_that_export_does_not_know_is_refused_unless_it_is_at_its_default(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class NewConfig(ModelConfig):
        parallel_block: bool = field(False, "attention and MLP side by side")

    values = {f.name: getattr(OURS, f.name) for f in dataclasses.fields(OURS)}
    with pytest.raises(
        ConfigError, match=r"^model\.parallel_block=True is not supported in a GPT-2"
    ):
        hf.save(tmp_path / "new", NewConfig(**values, parallel_block=True), {})
    assert not (tmp_path / "new").exists()
    hf.save(tmp_path / "new", NewConfig(**values), init_unlike(OURS))
    np.testing.assert_array_equal(
        logits(*hf.load(tmp_path / "new")), logits(OURS, init_unlike(OURS))
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("activation", "swiglu"),
        ("norm", "rms"),
        ("positions", "rotary"),
        ("qk_norm", True),
        ("n_kv_head", 1),
        ("attention_scale", 0.3),
    ],
)
def test_what_gpt2_has_no_place_for_is_named(tmp_path, setting, value):
    config = dataclasses.replace(OURS, **{setting: value})
    with pytest.raises(ConfigError) as caught:
        hf.save(tmp_path / "new", config, {})
    assert str(caught.value).startswith(
        f"model.{setting}={value!r} is not supported in a GPT-2 folder; train a model with "
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_save_checks_what_it_is_given(tmp_path):
    params = init_unlike(OURS)
    with pytest.raises(ConfigError, match="vocab_size is 0"):
        hf.save(tmp_path, dataclasses.replace(OURS, vocab_size=0), params)
    with pytest.raises(UserError, match=r"end_token=17 must be an id in \[0, 17\)"):
        hf.save(tmp_path, OURS, params, end_token=17)
    with pytest.raises(UserError, match=r"positions has shape \(10, 12\), not \(11, 12\)"):
        hf.save(tmp_path, dataclasses.replace(OURS, block_size=11), params)
    with pytest.raises(UserError, match=r"they lack blocks/attn/qkv/bias of shape \(2, 36\)"):
        hf.save(tmp_path, OURS, init_unlike(dataclasses.replace(OURS, qkv_bias=False)))
    with pytest.raises(UserError, match="the config, which has no blocks/attn/qkv/bias"):
        hf.save(tmp_path, dataclasses.replace(OURS, qkv_bias=False), params)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_model_is_never_written_over(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"already holds {name}; choose another folder"):
        hf.save(tmp_path, OURS, init_unlike(OURS))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.slow
def test_a_folder_that_cant_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file.*; choose another folder"):
        hf.save(tmp_path / "file" / "new", OURS, init_unlike(OURS))


# --- beside transformers --------------------------------------------------------------------------


@pytest.fixture
def gpt2_random():
    folder = Path(os.environ.get("GPT_JAX_DATA", "")) / "gpt2_random"
    if not (folder / "expected.npz").is_file():
        pytest.skip("GPT_JAX_DATA names no folder with gpt2_random")
    return folder


@pytest.mark.slow
def test_a_model_of_transformers_has_its_logits_loss_and_text(gpt2_random):
    expected = np.load(gpt2_random / "expected.npz")
    config, params = hf.load(gpt2_random)
    tokens_BT = expected["tokens"]
    logits_BTV = logits(config, params, tokens_BT)
    np.testing.assert_allclose(logits_BTV, expected["logits"], atol=1e-4)
    log_p = np.asarray(jax.nn.log_softmax(logits_BTV[:, :-1]), np.float64)
    loss = -np.take_along_axis(log_p, tokens_BT[:, 1:, None], axis=-1).mean()
    assert loss == pytest.approx(float(expected["loss"]), abs=1e-4)
    prompt, greedy = np.split(expected["greedy"].ravel(), [8])
    np.testing.assert_array_equal(prompt, tokens_BT[0, :8])
    parts = generate_tokens(
        config,
        params,
        prompt,
        jax.random.key(0),
        Filters(temperature=0.0),
        max_new_tokens=len(greedy),
    )
    np.testing.assert_array_equal(np.concatenate(list(parts), axis=1)[0], greedy)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", EXPORTS)
def test_transformers_loads_what_is_saved_and_gives_equal_logits(tmp_path, name):
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = dataclasses.replace(OURS, **EXPORTS[name])
    params = init_unlike(config)
    hf.save(tmp_path / "new", config, params)
    theirs, info = transformers.GPT2LMHeadModel.from_pretrained(
        tmp_path / "new", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    with torch.no_grad():
        theirs_BTV = theirs.eval()(torch.tensor(TOKENS_BT)).logits.numpy()
    np.testing.assert_allclose(logits(config, params), theirs_BTV, atol=1e-4)
    theirs.save_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(
        logits(*hf.load(tmp_path / "again")), logits(*hf.load(tmp_path / "new"))
    )

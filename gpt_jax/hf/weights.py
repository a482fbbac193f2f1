"""GPT-2 folders in Hugging Face's format, in and out: config.json and model.safetensors.

This module maps tensors to parameters; `safetensors_io.py` reads them. It knows NumPy
and neither jax nor torch. The tokenizer beside them is in `hf/tokenizer.py`.

`load` takes any GPT-2 of transformers' `GPT2LMHeadModel` or `GPT2Model` that computes what
`model/gpt.py` can; `save` writes what transformers computes the same logits from. Projections are
(in, out) on both sides (transformers' Conv1D); an untied head alone is transposed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax.config import ModelConfig
from gpt_jax.config.activations import ACTIVATIONS
from gpt_jax.config.fields import plain
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.hf.records import Gpt2Config
from gpt_jax.hf.safetensors_io import (
    INDEX_FILE,
    WEIGHTS_FILE,
    check_tensor,
    open_tensors,
    read_json,
    read_tensor,
)
from gpt_jax.storage import (
    give_default_mode,
    read_record,
    remove_unfinished,
    to_local,
    write_atomically,
)

CONFIG_FILE = "config.json"
PREFIX = "transformer."  # of GPT2LMHeadModel's tensors; GPT2Model's have none
HEAD = "lm_head.weight"
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # causal masks in older files

# What every GPT-2 of transformers has, as settings of our model.
GPT2 = {
    "norm": "layer",
    "positions": "learned",
    "qk_norm": False,
    "n_kv_head": None,
}
# Settings that a GPT-2 folder can express at any value or that do not change the logits: biases are
# written as zeros where the model has none, the last three say how the same logits are computed.
# `activation` has a list of its own, `ACTIVATION_NAMES`.
# A setting that is named neither here nor in GPT2 and SIZES must be at its default.
EXPRESSIBLE = {"attention_scale", "tied", "dropout", "embedding_dropout", "residual_init_scale"}
EXPRESSIBLE |= {
    "attention_dropout",
    "bias",
    "qkv_bias",
    "head_bias",
    "dtype",
    "remat",
    "attention",
    "activation",
    "inverse_layer_scale",
}
# activation_function -> model.activation.
ACTIVATION_NAMES = {name: ours for ours, a in ACTIVATIONS.items() for name in a.gpt2_names}
# Our settings of sizes and of the norms: transformers' names.
SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
    "mlp_width": "n_inner",
    "norm_epsilon": "layer_norm_epsilon",
}


def load(folder: str | os.PathLike[str]) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a GPT-2 folder.

    Args:
      folder: with config.json and model.safetensors, or model.safetensors.index.json and the files
        that it names.

    Returns:
      (config, params): `GPT(config).apply({"params": params}, tokens_BT)` gives the logits. params
      is a tree of float32 NumPy arrays; half precision is widened.

    Raises:
      UserError: the folder is no GPT-2, is incomplete or damaged, or holds pickled weights.
      ConfigError: it is a GPT-2 of a kind that the model has no setting for.
    """
    folder = to_local(folder)
    config = load_config(folder)
    with contextlib.ExitStack() as stack:
        tensors = open_tensors(folder, stack)
        if compiled := next((name for name in tensors if "_orig_mod." in name), None):
            raise UserError(
                f"{folder} holds {compiled:.80}: weights that were saved from torch.compile's "
                "wrapper; save the model in it: model._orig_mod.save_pretrained(folder)"
            )
        prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
        params: dict[str, Any] = {}
        for path, shape, names in list(_locate_tensors(config, tensors, prefix, folder)):
            _put(params, path, _read_tensor(tensors, path, shape, names, folder))
    return config, params


def save(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    params: Any,
    *,
    end_token: int | None = None,
) -> None:
    """Writes a GPT-2 folder that transformers loads and computes the same logits from.

    A bias that the model does not have is written as zeros, and loaded as zeros.

    Args:
      folder: made if missing; must not hold a model yet.
      config: the model's, with its vocab_size.
      params: the model's, as it is trained (blocks stacked).
      end_token: id at which a text ends; None for none.

    Raises:
      ConfigError: GPT-2 does not support a setting of the model.
      UserError: params don't fit config, or the folder can't be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder, end_token = to_local(folder), plain(end_token)
    _check_is_gpt2(config)
    if end_token is not None and not 0 <= end_token < config.vocab_size:
        raise UserError(f"end_token={end_token} must be an id in [0, {config.vocab_size}), or none")
    tensors = dict(_export_tensors(config, params))
    for name in (CONFIG_FILE, WEIGHTS_FILE, INDEX_FILE):
        if os.path.lexists(folder / name):
            raise UserError(f"{folder} already holds {name}; choose another folder")
    temporary = folder / f".{WEIGHTS_FILE}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_unfinished(folder / WEIGHTS_FILE)
        try:
            save_file(tensors, temporary, metadata={"format": "pt"})  # transformers asks for it
            give_default_mode(temporary)  # the library's own is for its owner alone
            temporary.replace(folder / WEIGHTS_FILE)
        finally:
            temporary.unlink(missing_ok=True)
        values = {**_export_config(config), "bos_token_id": end_token, "eos_token_id": end_token}
        write_atomically(folder / CONFIG_FILE, json.dumps(values, indent=2) + "\n")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {error}; choose another folder") from error


# --- names and shapes -----------------------------------------------------------------------------


def _tensor_map(config: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns {path of a parameter: (its tensor's name, its shape)}; {} stands for each layer."""
    D, V, S = config.n_embd, config.vocab_size, config.block_size
    F = config.mlp_width or 4 * D
    parts = {
        "tokens/embedding": ("wte.weight", (V, D)),
        "positions": ("wpe.weight", (S, D)),
        "norm_f/scale": ("ln_f.weight", (D,)),
        "norm_f/bias": ("ln_f.bias", (D,)),
    }
    for norm, theirs in (("norm_1", "ln_1"), ("norm_2", "ln_2")):
        parts[f"blocks/{norm}/scale"] = (f"h.{{}}.{theirs}.weight", (D,))
        parts[f"blocks/{norm}/bias"] = (f"h.{{}}.{theirs}.bias", (D,))
    for layer, theirs, n_in, n_out in (
        ("attn/qkv", "attn.c_attn", D, 3 * D),
        ("attn/proj", "attn.c_proj", D, D),
        ("mlp/up", "mlp.c_fc", D, F),
        ("mlp/down", "mlp.c_proj", F, D),
    ):
        parts[f"blocks/{layer}/kernel"] = (f"h.{{}}.{theirs}.weight", (n_in, n_out))
        parts[f"blocks/{layer}/bias"] = (f"h.{{}}.{theirs}.bias", (n_out,))
    return parts


def _put(params: dict[str, Any], path: str, array: np.ndarray) -> None:
    *groups, last = path.split("/")
    for group in groups:
        params = params.setdefault(group, {})
    params[last] = array


def _flatten(params: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, array) of nested dicts."""
    if not isinstance(params, Mapping):
        yield prefix, params
        return
    for name, inner in params.items():
        yield from _flatten(inner, f"{prefix}/{name}" if prefix else str(name))


# --- in -------------------------------------------------------------------------------------------


def load_config(folder: Path) -> ModelConfig:
    """Returns the settings of a GPT-2 folder's model; raises as `load` does."""
    path = folder / CONFIG_FILE
    if not os.path.isfile(path):
        what = "has no config.json" if os.path.isdir(folder) else "does not exist"
        raise UserError(
            f"{folder} {what}; give a folder of a GPT-2, such as one made by: "
            "hf download openai-community/gpt2 --local-dir gpt2"
        )
    values = read_json(path)
    if values.get("model_type") != "gpt2":
        raise UserError(
            f"{path} has model_type {values.get('model_type')!r:.60}, not 'gpt2'; "
            "only GPT-2 can be loaded"
        )
    try:
        file = read_record(values, Gpt2Config)
    except ValueError as error:
        raise ConfigError(f"{path} is no GPT-2's: {error}") from error
    if file.add_cross_attention:
        raise ConfigError(
            f"{path}: add_cross_attention=True can't be loaded, only False; choose a model with "
            "that"
        )
    if file.activation_function not in ACTIVATION_NAMES:
        raise ConfigError(
            f"{path}: activation_function={file.activation_function!r:.60} can't be loaded, only "
            f"{', '.join(ACTIVATION_NAMES)}; choose a model with that"
        )
    try:
        return ModelConfig(
            **{ours: getattr(file, theirs) for ours, theirs in SIZES.items()},
            **GPT2,
            activation=ACTIVATION_NAMES[file.activation_function],
            qkv_bias=True,
            head_bias=False,
            tied=file.tie_word_embeddings,
            attention_scale=None if file.scale_attn_weights else 1.0,
            inverse_layer_scale=file.scale_attn_by_inverse_layer_idx,
            residual_init_scale=True,
            dropout=file.resid_pdrop,
            attention_dropout=None if file.attn_pdrop == file.resid_pdrop else file.attn_pdrop,
            embedding_dropout=file.embd_pdrop,
        )
    except ConfigError as error:
        raise ConfigError(f"{path} is no GPT-2's: {error}") from error


def _locate_tensors(
    config: ModelConfig, tensors: dict[str, Any], prefix: str, folder: Path
) -> Iterator[tuple[str, tuple[int, ...], list[str]]]:
    """Yields (path, shape of one tensor, names of its tensors), each checked; none is read.

    Raises:
      UserError: a tensor is missing, of another shape or type, or not of the model.
    """
    parts = {path: (prefix + name, shape) for path, (name, shape) in _tensor_map(config).items()}
    if not config.tied:
        parts["head/kernel"] = (HEAD, (config.vocab_size, config.n_embd))
    used = {HEAD}  # a tied head may be stored as well
    for path, (name, shape) in parts.items():
        layers = range(config.n_layer) if path.startswith("blocks/") else range(1)
        names = []
        for i in layers:
            names.append(name.format(i))
            check_tensor(tensors, names[-1], shape, folder)
        used.update(names)
        yield path, shape, names
    for name in sorted(tensors.keys() - used):
        if not BUFFERS.fullmatch(name.removeprefix(prefix)):
            raise UserError(
                f"{folder} holds {name:.80}, which a GPT-2 of {config.n_layer} layers has no place "
                "for; its config.json and weights don't belong together"
            )


def _read_tensor(
    tensors: dict[str, Any], path: str, shape: tuple[int, ...], names: list[str], folder: Path
) -> np.ndarray:
    """Returns the float32 array of one parameter: the layers' stacked, the head transposed."""
    array = np.empty((len(names), *shape), np.float32)
    for i, name in enumerate(names):
        array[i] = read_tensor(tensors, name, folder)
    if path.startswith("blocks/"):
        return array
    return np.ascontiguousarray(array[0].T) if path == "head/kernel" else array[0]


# --- out ------------------------------------------------------------------------------------------


def _check_is_gpt2(config: ModelConfig) -> None:
    """Raises ConfigError if GPT-2's architecture does not support a setting of the model."""
    if not config.vocab_size:
        raise ConfigError("model.vocab_size is 0; set it to the tokenizer's")
    named = {*GPT2, *SIZES, *EXPRESSIBLE}
    others = {f.name: f.default for f in dataclasses.fields(config) if f.name not in named}
    wanted = (
        others | GPT2 | {"n_kv_head": None if config.n_kv_head != config.n_head else config.n_head}
    )
    if config.attention_scale not in (None, 1.0, config.head_size**-0.5):
        wanted["attention_scale"] = None
    unlike = {name: value for name, value in wanted.items() if getattr(config, name) != value}
    if not ACTIVATIONS[config.activation].gpt2_names:
        unlike["activation"] = "gelu"
    if unlike:
        have = ", ".join(f"model.{name}={getattr(config, name)!r}" for name in unlike)
        need = ", ".join(f"model.{name}={value!r}" for name, value in unlike.items())
        raise ConfigError(
            f"{have} {'is' if len(unlike) == 1 else 'are'} not supported in a GPT-2 folder; "
            f"train a model with {need} to save it"
        )


def _export_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        "activation_function": ACTIVATIONS[config.activation].gpt2_names[0],
        "add_cross_attention": False,
        "scale_attn_weights": config.attention_scale != 1.0,
        "scale_attn_by_inverse_layer_idx": config.inverse_layer_scale,
        "tie_word_embeddings": config.tied,
        "attn_pdrop": config.attention_dropout_rate,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.embedding_dropout,
        "initializer_range": 0.02,
        "dtype": "float32",
    }


def _export_tensors(config: ModelConfig, params: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name, float32 array in C order: safetensors scrambles others).

    Raises:
      UserError: params don't fit config.
      ConfigError: the head has a bias that is not zero.
    """
    found = dict(_flatten(params))
    V, D = config.vocab_size, config.n_embd

    def take(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path not in found:
            raise UserError(f"params don't fit the config: they lack {path} of shape {shape}")
        leaf = found.pop(path)
        if tuple(getattr(leaf, "shape", ())) != shape:
            raise UserError(
                f"params don't fit the config: {path} has shape "
                f"{tuple(getattr(leaf, 'shape', ()))}, not {shape}"
            )
        return np.asarray(leaf, np.float32)

    for path, (name, shape) in _tensor_map(config).items():
        stacked = path.startswith("blocks/")
        whole = (config.n_layer, *shape) if stacked else shape
        has_bias = config.qkv_bias if "/qkv/" in path else config.bias
        if path.endswith("/bias") and not has_bias:
            array = np.zeros(whole, np.float32)
        else:
            array = take(path, whole)
        for i in range(config.n_layer if stacked else 1):
            one = array[i] if stacked else array
            yield PREFIX + name.format(i), np.ascontiguousarray(one)
    if not config.tied:
        yield HEAD, np.ascontiguousarray(take("head/kernel", (D, V)).T)
    if config.head_bias and take("head_bias" if config.tied else "head/bias", (V,)).any():
        raise ConfigError(
            "model.head_bias=True is not supported in a GPT-2 folder unless the bias is zero; "
            "train a model with model.head_bias=False to save it"
        )
    if found:
        raise UserError(f"params don't fit the config, which has no {min(found)}")

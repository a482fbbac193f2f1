"""Settings of the model that every part of the program knows; what is new is refused or bounded.

The model computes a new setting once its code says so, and training, checkpoints, decoding and
sharding follow the model. Three parts rest on a description of it instead: kernels for attention,
which compute what they were written for; the estimate of memory; the operations that a plan counts.
They ask `unknown_settings`, and for a setting or a value that this table lacks take plain
attention, a smaller estimate, and no count. `hf/weights.py` has a list of its own: what a GPT-2
folder can express.

Add a setting here once all three are right with it; see docs/change-one-thing.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gpt_jax.config.run_config import ModelConfig

# Name -> its known values; None: all of them. An activation's own entry says what is known of it;
# an attention implementation that does not exist is an error.
KNOWN: dict[str, tuple[Any, ...] | None] = {
    **dict.fromkeys(("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "n_kv_head")),
    **dict.fromkeys(("dropout", "embedding_dropout", "attention_scale", "residual_init_scale")),
    **dict.fromkeys(("bias", "qkv_bias", "head_bias", "tied", "qk_norm")),
    **dict.fromkeys(("activation", "attention", "mlp_width", "attention_dropout")),
    **dict.fromkeys(("norm_epsilon", "rotary_base", "inverse_layer_scale")),
    "norm": ("layer", "rms"),
    "positions": ("learned", "rotary"),
    "dtype": ("float32", "bfloat16", "auto"),
    "remat": ("none", "full", "dots"),
}


def unknown_settings(model: ModelConfig) -> list[str]:
    """Returns "model.NAME=VALUE" for each setting whose value KNOWN does not cover.

    A setting that is not in KNOWN at all counts where it is not at its default.
    """
    unknown = []
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        values = KNOWN.get(field.name, (field.default,))
        if values is not None and value not in values:
            unknown.append(f"model.{field.name}={value}")
    return unknown

"""The GPT, a linen module, and its loss: no files, no sharding rules."""

from gpt_jax.model.gpt import (
    GPT,
    Cache,
    Params,
    decoding_params,
    forward,
    init_cache,
    unstack_blocks,
)

__all__ = [
    "GPT",
    "Cache",
    "Params",
    "decoding_params",
    "forward",
    "init_cache",
    "unstack_blocks",
]

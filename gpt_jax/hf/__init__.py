"""GPT-2 folders of Hugging Face, read and written; imports neither jax nor safetensors."""

from gpt_jax.hf.hub import find
from gpt_jax.hf.weights import load, load_config, save

__all__ = [
    "find",
    "load",
    "load_config",
    "save",
]

"""A GPT-2 folder on this machine, or one downloaded from Hugging Face's hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpt_jax.errors import UserError
from gpt_jax.hf.safetensors_io import INDEX_FILE
from gpt_jax.hf.weights import CONFIG_FILE
from gpt_jax.storage import open_folder

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
HUB_FILES = [CONFIG_FILE, "*.safetensors", INDEX_FILE, "tokenizer.json", "vocab.json", "merges.txt"]
HUB_FILES += ["added_tokens.json", "tokenizer_config.json"]


def find(source: str | os.PathLike[str]) -> Path:
    """Returns a folder, or that of a model on Hugging Face's hub, downloaded once to its own cache.

    Args:
      source: a path, or a name such as openai-community/gpt2 that is no path.

    Raises:
      UserError: there is no such folder, or it can't be downloaded, and why.
    """
    folder = open_folder(source)
    name = os.fspath(source)
    if folder.kind():
        return folder.path
    if not HUB_NAME.fullmatch(name):
        raise UserError(
            f"{name} does not exist; give a run, a GPT-2 folder, or a name on Hugging Face's hub "
            "such as openai-community/gpt2"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise UserError(
            f"{name} is not a folder; for a model of that name on Hugging Face's hub: "
            "pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub's own, and those of the network library it happens to use
        detail = str(error).strip().partition("\n")[0][:100]
        raise UserError(
            f"{name} is not a folder, and can't be downloaded from Hugging Face's hub "
            f"({type(error).__name__}: {detail}); check the name and the network, or give a folder"
        ) from error

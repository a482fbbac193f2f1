"""Tensors of a folder in Hugging Face's format: safetensors, in one file or several with an index.

Everything is checked against the header of the file, names, shapes and types, before memory is
taken for it. Pickled weights (.bin) are never read: unpickling runs code.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from gpt_jax import storage
from gpt_jax.errors import UserError
from gpt_jax.hf.records import WeightsIndex

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOATS = ("F32", "F16", "BF16", "F64")
SHARD_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")  # no separator: nothing outside the folder


def read_json(path: Path) -> dict[str, Any]:
    """Returns the values of a small JSON file, or raises UserError."""
    try:
        return storage.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}; get it again") from error


def open_tensors(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Returns {name: the open file that has it}; reads headers only."""
    if os.path.isfile(folder / WEIGHTS_FILE):
        return _open_file(folder / WEIGHTS_FILE, stack)
    index = folder / INDEX_FILE
    if not os.path.isfile(index):
        bins = sorted(path.name for path in folder.glob("*.bin"))
        if bins:
            raise UserError(
                f"{folder} has its weights as a pickle, {bins[0]}, which is not read because it "
                "could run code; get model.safetensors, or convert it with transformers: "
                "GPT2LMHeadModel.from_pretrained(folder).save_pretrained(new_folder)"
            )
        raise UserError(f"{folder} has no {WEIGHTS_FILE}; get it again, with its weights")
    try:
        weight_map = storage.read_record(read_json(index), WeightsIndex).weight_map
    except ValueError as error:
        raise UserError(f"{index} is damaged: {error}; get it again") from error
    tensors = {}
    for name in dict.fromkeys(weight_map.values()):
        if not SHARD_NAME.fullmatch(name):
            raise UserError(
                f"{index} names {name!r:.80}, which is no .safetensors file of its folder; "
                "get it again from a source you trust"
            )
        tensors |= _open_file(folder / name, stack)
    return tensors


def _open_file(path: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    import ml_dtypes  # noqa: F401 - NumPy learns from it what bfloat16 is; it comes with jax
    from safetensors import SafetensorError, safe_open

    if not os.path.isfile(path):
        raise UserError(f"{path} is missing; get it again")
    try:
        file = stack.enter_context(safe_open(path, framework="numpy"))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} is damaged or no safetensors file: {error}; get it again"
        ) from error
    return dict.fromkeys(file.keys(), file)


def check_tensor(tensors: dict[str, Any], name: str, shape: tuple[int, ...], folder: Path) -> None:
    """Raises UserError where a tensor is missing, or of another shape or type; reads none."""
    if name not in tensors:
        raise UserError(f"{folder} lacks the tensor {name}, which its config.json asks for")
    header = tensors[name].get_slice(name)
    found, kind = tuple(header.get_shape()), header.get_dtype()
    if found != shape:
        raise UserError(f"{folder}: {name} has shape {found}, and its config.json asks for {shape}")
    if kind not in FLOATS:
        raise UserError(f"{folder}: {name} has type {kind}; only {', '.join(FLOATS)} can be loaded")


def read_tensor(tensors: dict[str, Any], name: str, folder: Path) -> np.ndarray:
    """Returns one tensor, of the type that its file has, or raises UserError."""
    from safetensors import SafetensorError

    try:
        return tensors[name].get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: {name} can't be read: {error}; get it again") from error

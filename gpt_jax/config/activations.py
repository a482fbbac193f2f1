"""The activation functions of the MLP: the values of `model.activation`, one entry each.

An entry is all that the program knows of an activation: the check of the setting, the model and the
estimate of memory read this table. A new one needs its function and nothing else; see
docs/change-one-thing.md. Settings are read before jax is imported, so a function is given jax.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation function, and what other parts of the program use of it.

    Attributes:
      function: (the module jax, x of any shape) -> f(x), of x's shape and dtype.
      gated: the MLP is down(f(gate(x)) * up(x)), a gated linear unit, not down(f(up(x))).
      saved_arrays: arrays of the MLP's width that f's gradient keeps beside its argument and result
        where blocks are a loop; 0, the default, never makes the estimate of memory too large.
      gpt2_names: of the same function in transformers, the one to write first; () where a GPT-2
        folder can't have it.
    """

    function: Callable[[Any, Any], Any]
    gated: bool = False
    saved_arrays: int = 0
    gpt2_names: tuple[str, ...] = ()


TANH_NAMES = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh")
ACTIVATIONS = {
    "relu": Activation(lambda jax, x: jax.nn.relu(x), gpt2_names=("relu",)),
    # The tanh form (Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415, section 2).
    "gelu": Activation(
        lambda jax, x: jax.nn.gelu(x, approximate=True), saved_arrays=3, gpt2_names=TANH_NAMES
    ),
    # x times the normal distribution's function, as in the paper: transformers' "gelu".
    "gelu_exact": Activation(
        lambda jax, x: jax.nn.gelu(x, approximate=False), gpt2_names=("gelu", "gelu_python")
    ),
    # So et al. 2021, https://arxiv.org/abs/2109.08668
    "relu2": Activation(
        lambda jax, x: jax.numpy.square(jax.nn.relu(x)), saved_arrays=1, gpt2_names=("relu2",)
    ),
    # Shazeer 2020, https://arxiv.org/abs/2002.05202
    "swiglu": Activation(lambda jax, x: jax.nn.silu(x), gated=True, saved_arrays=2),
}

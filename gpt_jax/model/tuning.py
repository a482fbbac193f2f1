"""How the model's computations are arranged on each kind of device.

The results are the same but for rounding, so nothing here is a setting: `choose_tuning` reads the
backend, and the modules that compute ask it. Attention is chosen apart, in `attention.py`. What
each choice is worth was measured on one GPU; see benchmarks/gpu/README.md.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What one kind of device computes fastest.

    Attributes:
      unroll: layers up to which the scan over blocks is unrolled. Rolled up, a step compiles faster
        and is slower: what each block saves for its gradient is copied to a stack and back.
      vocab_multiple: the loss pads the vocabulary to a multiple of this; see `gpt.pad_head`.
      one_pass_loss: the gradient of the loss is softmax - one-hot in one pass over the logits.
      recompute_activation: the backward pass recomputes the MLP's activation function from its
        argument, which is less to read than what its gradient would save.
      most_summed: sequences that a sum over a batch adds up at once; None: all of them.
      least_rows: rows that a matrix product has at least, as in decoding a few streams; XLA makes
        an elementwise product of one row, writes that to memory and then sums it.
      one_pass_norm: LayerNorm reads its input once for mean and variance.
      split_qkv: queries, keys and values are three matrix products, not one that is cut in three.
    """

    unroll: int
    vocab_multiple: int = 1
    one_pass_loss: bool = False
    recompute_activation: bool = False
    most_summed: int | None = None
    least_rows: int = 1
    one_pass_norm: bool = False
    split_qkv: bool = False


CPU = Tuning(unroll=6)
CUDA = Tuning(
    unroll=24,
    vocab_multiple=128,
    one_pass_loss=True,
    recompute_activation=True,
    most_summed=16,
    least_rows=16,
    one_pass_norm=True,
    split_qkv=True,
)


NARROW_N_EMBD = 256  # below it a GPU waits for launches, not for what these choices save


def choose_tuning(backend: str, n_embd: int) -> Tuning:
    """Returns the tuning for a model of width n_embd.

    Args:
      backend: as `target_backend` returns it: "cpu", "tpu", "cuda 9.0".
      n_embd: the model's.
    """
    return CUDA if backend.startswith("cuda") and n_embd >= NARROW_N_EMBD else CPU

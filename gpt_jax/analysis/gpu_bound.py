"""A lower bound on the time of a compiled GPU program, and what it is made of.

Every kernel takes at least the time of its bytes or of its matrix products, whichever is longer;
kernels run one after another. Not counted: launches, kernels below these rates, and, as they
overlap with kernels, asynchronous copies and communication. All bytes are the memory's, as if
nothing stayed in the GPU's cache, where a small model's arrays may; of a conditional the largest
branch counts. No jax is needed.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence

from gpt_jax.analysis.gpu_chips import GpuChip
from gpt_jax.analysis.gpu_kernels import FUSED_ATTENTION, Kernel

MATMUL_SHARE, BANDWIDTH_SHARE = 0.7, 0.9  # of the data sheet; assumed, not measured


@dataclasses.dataclass(frozen=True)
class Rates:
    """What kernels are assumed to reach: FLOP/s of matrix products by dtype, bytes/s."""

    bf16: float
    tf32: float
    f32: float
    bandwidth: float
    network: float

    @classmethod
    def of(
        cls, chip: GpuChip, matmul: float = MATMUL_SHARE, memory: float = BANDWIDTH_SHARE
    ) -> Rates:
        """Returns these shares of a chip's data sheet; nothing of it is measured."""
        f32 = matmul * chip.peak_float32_flops
        bf16, tf32 = f32, f32  # where there are no tensor cores for them
        if chip.peak_flops:
            bf16, tf32 = matmul * chip.peak_flops, matmul * chip.peak_flops / 2
        return cls(bf16, tf32, f32, memory * chip.bandwidth, chip.network)

    def seconds(self, kernel: Kernel) -> float:
        """Returns the least seconds of all executions of a kernel."""
        if kernel.group == "collective":
            passes = 2 if kernel.kind.startswith("all-reduce") else 1
            return kernel.times * passes * kernel.bytes / self.network
        computing = kernel.flops / getattr(self, kernel.dtype) if kernel.flops else 0.0
        return kernel.times * max(kernel.bytes / self.bandwidth, computing)


@dataclasses.dataclass(frozen=True)
class Group:
    """The kernels that serve one purpose.

    Attributes:
      name: of the purpose.
      lever: what changes their time.
      launches: kernels launched in an execution of the program.
      seconds: of all of them, at least; of asynchronous copies none, as other kernels run then.
      bytes: read and written.
      flops: of matrix products.
    """

    name: str
    lever: str
    launches: int
    seconds: float
    bytes: int
    flops: int


MLP, ATTENTION_PRODUCTS, ATTENTION = "MLP products", "attention's products", "attention"
LOSS, OPTIMIZER, ELEMENTWISE = "logits and loss", "optimizer", "norms, activations, residuals"
EMBEDDING, ACCUMULATION = "embedding", "gradient accumulation"
HEAD, SAMPLING = "output head", "sampling"  # of decoding
COPIES, COLLECTIVES, OTHER = "copies", "collectives", "other"
LEVERS = {
    MLP: "bound by the peak; smaller with --model.mlp-width",
    ATTENTION_PRODUCTS: "bound by the peak; smaller with --model.n-kv-head",
    ATTENTION: "--model.attention fused; grows with --model.block-size",
    LOSS: "no --train.loss-chunk, if the memory allows; a smaller vocabulary",
    OPTIMIZER: "a larger --train.batch-size: fewer updates a token",
    ELEMENTWISE: "bound by memory; --model.norm rms, --model.remat none",
    EMBEDDING: "a larger --train.micro-batch: fewer sums",
    ACCUMULATION: "a larger --train.micro-batch: fewer sums",
    HEAD: "bound by memory; a smaller vocabulary",
    SAMPLING: "",
    COPIES: "a larger --train.micro-batch, --model.remat none",
    COLLECTIVES: "a larger --train.batch-size; more --mesh.data, less fsdp and tensor",
    OTHER: "",
}
# The first pattern found in the name of a kernel's operation says what it is for: the names of
# linen's modules, and those that loss.py, step.py and decoding.py give with `jax.named_scope`.
BLOCK = "(?:blocks|Block)"  # the scan over blocks, or one that decoding applies
PURPOSES = (
    (r"\boptimizer\b", OPTIMIZER),
    (r"\bloss\b", LOSS),
    (rf"\b{BLOCK}/mlp\b", MLP),
    (rf"\b{BLOCK}/attn\b", ATTENTION),
    (rf"\b{BLOCK}\b|\bnorm_f\b", ELEMENTWISE),
    (r"\bgradient_accumulation\b", ACCUMULATION),
    (r"\btokens\b|\bpositions\b", EMBEDDING),
    (r"\bhead\b", HEAD),
    (r"\bsampling\b", SAMPLING),
)


def purpose(kernel: Kernel) -> str:
    """Returns the name of the group that a kernel belongs to, a key of `LEVERS`."""
    if kernel.group == "collective":
        return COLLECTIVES
    if kernel.group == "async" or kernel.kind == "copy":
        return COPIES
    found = (name for pattern, name in PURPOSES if re.search(pattern, kernel.source))
    name = next(found, OTHER)
    if name == ATTENTION and kernel.flops and FUSED_ATTENTION not in kernel.kind:
        return ATTENTION_PRODUCTS
    return ELEMENTWISE if name == MLP and not kernel.flops else name


def find_groups(kernels: Sequence[Kernel], rates: Rates) -> tuple[Group, ...]:
    """Returns the groups of a program's kernels, the slowest first."""
    members = collections.defaultdict(list)
    for kernel in kernels:
        members[purpose(kernel)].append(kernel)
    groups = (
        Group(
            name=name,
            lever=LEVERS[name],
            launches=sum(k.times for k in some),
            seconds=sum(rates.seconds(k) for k in some if k.group != "async"),
            bytes=sum(k.times * k.bytes for k in some),
            flops=sum(k.times * k.flops for k in some),
        )
        for name, some in members.items()
    )
    return tuple(sorted(groups, key=lambda group: -group.seconds))


def overlaps(group: Group) -> bool:
    """Returns whether a group's kernels run beside others: its seconds are no part of the bound."""
    return group.name == COLLECTIVES

"""The steps of gpu_bench.py that measure PyTorch, on the same models and batches. No jax."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import torch_gpt
from benchmarks.gpu.harness import (
    BASE,
    NANO_VOCABULARY,
    TINY,
    Step,
    base_mfu,
    peak_flops,
    seconds_left,
    time_calls,
)

DEVICE = "cpu" if TINY else "cuda"
Cache = tuple[torch.Tensor, torch.Tensor]  # keys and values of a block: (B, H, positions, K)


class Block(nn.Module):
    """A block of GPT-2."""

    def __init__(self, n_embd: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.norm_1, self.norm_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.qkv, self.proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.up, self.down = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor, cache: Cache | None = None
    ) -> torch.Tensor:
        B, T, D = x.shape
        qkv = self.qkv(self.norm_1(x)).view(B, T, 3, self.n_head, D // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = cache[0].index_copy_(2, positions, k), cache[1].index_copy_(2, positions, v)
            seen = torch.arange(k.shape[2], device=x.device) <= positions[:, None]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """GPT-2 small with a padded vocabulary and tied head."""

    def __init__(self) -> None:
        super().__init__()
        V, D = BASE.padded_vocab_size, BASE.n_embd
        self.tokens, self.positions = nn.Embedding(V, D), nn.Embedding(BASE.block_size, D)
        self.blocks = nn.ModuleList(Block(D, BASE.n_head) for _ in range(BASE.n_layer))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, V, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(
        self,
        ids: torch.Tensor,
        targets: torch.Tensor | None = None,
        caches: list[Cache] | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the loss of targets, else logits; positions are those from 0 on if not given."""
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.tokens(ids) + self.positions(positions)
        for i, block in enumerate(self.blocks):
            x = block(x, positions, None if caches is None else caches[i])
        logits = self.head(self.norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.reshape(-1))


def time_training(call: Callable[[], Any], steps: int, at_least: int) -> dict[str, Any]:
    """Returns the time of a call of `steps` train steps, the first call's apart."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    median, least, timed = time_calls(call, at_least)
    return {
        "ms_per_step": 1e3 * median / steps,
        "min_ms_per_step": 1e3 * least / steps,
        "timed": timed,
        "compile_s": round(first, 1),
    }


def torch_train(step: Step) -> None:
    """Trains GPT-2 small in bfloat16, `mode=compiled` or eager, with several micro-batches.

    A micro-batch for which the time left may not do is recorded as skipped.
    """
    torch.set_float32_matmul_precision("high")
    longest = 0.0
    for micro in step.numbers("micro") if "micro" in step.args else [step.batch[0]]:
        if seconds_left() < 1.2 * longest + 5:
            step.record(micro=micro, skipped="no time left")
            continue
        began = time.perf_counter()
        try:
            step.record(micro=micro, **train_gpt2(step, micro))
        except Exception as error:  # out of memory, say: the others may fit
            step.record_error(error, micro=micro)
        gc.collect()
        if not TINY:
            torch.cuda.empty_cache()
        longest = max(longest, time.perf_counter() - began)


def train_gpt2(step: Step, micro: int) -> dict[str, Any]:
    """Returns the time and memory of train steps of 131,072 tokens, `micro` sequences at once."""
    torch.manual_seed(0)
    accumulate = int(step.args.get("accumulate", max(1, 128 // micro)))
    if TINY:
        micro, accumulate = step.batch
    else:
        torch.cuda.reset_peak_memory_stats()
    torch.compiler.reset()  # each shape is compiled for itself
    with torch.device(DEVICE):
        net = GPT2()
    n_params = sum(parameter.numel() for parameter in net.parameters())
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=not TINY
    )
    compiled = step.args["mode"] == "compiled" and not TINY
    forward = torch.compile(net, dynamic=False) if compiled else net
    shape = accumulate, micro, BASE.block_size + 1
    batch = torch.randint(0, BASE.vocab_size, shape, device=DEVICE)

    def train_step() -> None:
        for ids in batch:
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = forward(ids[:, :-1], ids[:, 1:]) / accumulate
            loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if not TINY:
            torch.cuda.synchronize()

    row = time_training(train_step, 1, 4)
    tokens_per_second = 1e3 * micro * accumulate * BASE.block_size / row["ms_per_step"]
    device = "cpu" if TINY else torch.cuda.get_device_name()
    return {
        **row,
        "tokens_per_second": tokens_per_second,
        "n_params": n_params,
        "mfu": base_mfu(tokens_per_second, n_params, device),
        "peak_flops": peak_flops(device),
        "device": device,
        "peak_gib": 0 if TINY else torch.cuda.max_memory_allocated() / 2**30,
    }


def multiplies_as_tf32() -> bool:
    """Returns whether float32 products are TF32's here, which has 11 bits: from their errors."""
    a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ a.double()
    error = ((a.to(DEVICE) @ a.to(DEVICE)).cpu() - exact).abs().max()
    return bool(error > 1e-5 * exact.abs().max())


def torch_nano(step: Step) -> None:
    """Trains nano in PyTorch, in each `mode`: eager, or compiled with CUDA graphs."""
    torch.set_float32_matmul_precision(step.args.get("precision", "highest"))
    for mode in step.args["mode"].split(","):
        try:
            step.record(mode=mode, **train_nano(mode), tf32=multiplies_as_tf32())
        except Exception as error:  # of a compiler: the other mode needs none
            step.record_error(error, mode=mode)


def train_nano(mode: str) -> dict[str, Any]:
    tokens = torch.randint(0, NANO_VOCABULARY, (166_239,), device=DEVICE)
    shape = (1, 2, 16, 8) if TINY else (3, 4, 128, 64)
    net = torch_gpt.GPT(NANO_VOCABULARY, *shape, 0.2).to(DEVICE)
    optimizer, steps = torch_gpt.make_optimizer(net), 5 if TINY else 50
    graphs = mode == "graphs" and not TINY
    forward = torch.compile(net, mode="reduce-overhead") if graphs else net
    batch = 4 if TINY else 32
    call = lambda: torch_gpt.train_steps(net, forward, optimizer, tokens, batch, steps).item()
    row = time_training(call, steps, 5)
    return {**row, "seconds_of_500_steps": row["ms_per_step"] / 2}

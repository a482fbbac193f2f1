"""The steps of gpu_bench.py that measure PyTorch, on the same models and batches. No jax."""

from __future__ import annotations

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
    time_calls,
)

DEVICE = "cpu" if TINY else "cuda"
Caches = list[list[torch.Tensor]]  # (keys, values) of each block


class Block(nn.Module):
    """A block of GPT-2."""

    def __init__(self, n_embd: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.norm_1, self.norm_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.qkv, self.proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.up, self.down = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)

    def forward(
        self, x: torch.Tensor, cache: list[torch.Tensor] | None = None, position: int = 0
    ) -> torch.Tensor:
        B, T, D = x.shape
        qkv = self.qkv(self.norm_1(x)).view(B, T, 3, self.n_head, D // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            end = position + T
            cache[0][:, :, position:end], cache[1][:, :, position:end] = k, v
            k, v = cache[0][:, :, :end], cache[1][:, :, :end]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
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
        caches: Caches | None = None,
        position: int = 0,
    ) -> torch.Tensor:
        positions = torch.arange(position, position + ids.shape[1], device=ids.device)
        x = self.tokens(ids) + self.positions(positions)
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[i], position)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.reshape(-1))


def time_training(step: Step, call: Callable[[], Any], steps: int, at_least: int) -> dict[str, Any]:
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
    """Trains GPT-2 small in bfloat16, `mode=compiled` or eager."""
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    net = GPT2().to(DEVICE)
    n_params = sum(parameter.numel() for parameter in net.parameters())
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=not TINY
    )
    forward = torch.compile(net) if step.args["mode"] == "compiled" and not TINY else net
    micro, accumulate = step.batch
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

    row = time_training(step, train_step, 1, 4)
    tokens_per_second = 1e3 * micro * accumulate * BASE.block_size / row["ms_per_step"]
    device = "cpu" if TINY else torch.cuda.get_device_name()
    step.record(
        **row,
        tokens_per_second=tokens_per_second,
        n_params=n_params,
        mfu=base_mfu(tokens_per_second, n_params, device),
        device=device,
        peak_gib=0 if TINY else torch.cuda.max_memory_allocated() / 2**30,
    )


def torch_nano(step: Step) -> None:
    """Trains nano in PyTorch, `mode=eager` or with CUDA graphs."""
    torch.set_float32_matmul_precision(step.args.get("precision", "highest"))
    tokens = torch.randint(0, NANO_VOCABULARY, (166_239,), device=DEVICE)
    shape = (1, 2, 16, 8) if TINY else (3, 4, 128, 64)
    net = torch_gpt.GPT(NANO_VOCABULARY, *shape, 0.2).to(DEVICE)
    optimizer, steps = torch_gpt.make_optimizer(net), 5 if TINY else 50
    graphs = step.args["mode"] == "graphs" and not TINY
    forward = torch.compile(net, mode="reduce-overhead") if graphs else net
    batch = 4 if TINY else 32
    call = lambda: torch_gpt.train_steps(net, forward, optimizer, tokens, batch, steps).item()
    row = time_training(step, call, steps, 5)
    step.record(**row, seconds_of_500_steps=row["ms_per_step"] / 2)


@torch.inference_mode()
def generate(net: GPT2, streams: int, n: int) -> None:
    """Samples n tokens for each stream with a key/value cache."""
    shape = streams, BASE.n_head, BASE.block_size, BASE.n_embd // BASE.n_head
    empty = lambda: torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE)
    caches = [[empty(), empty()] for _ in range(BASE.n_layer)]
    token = torch.zeros(streams, 1, dtype=torch.long, device=DEVICE)
    for position in range(n):
        logits = net(token, caches=caches, position=position)[:, -1].float()
        token = torch.multinomial(torch.softmax(logits, -1), 1)
    token.cpu()


def torch_decode(step: Step) -> None:
    """Generates tokens with GPT-2 small in bfloat16."""
    net = GPT2().to(DEVICE, torch.bfloat16).eval()
    n = 8 if TINY else 256
    for streams in step.numbers("batch"):
        median, _, _ = time_calls(lambda streams=streams: generate(net, streams, n), 3, 5.0)
        step.record(
            streams=streams,
            tokens_per_second=streams * n / median,
            ms_per_token=1e3 * median / n,
        )

"""The step of gpu_bench.py that generates tokens in PyTorch: transformers, or written by hand.

Both have a static key/value cache and are compiled, with CUDA graphs. No jax.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.harness import (
    BASE,
    PROMPT,
    TINY,
    Step,
    new_tokens,
    seconds_left,
    time_calls,
)
from benchmarks.gpu.torch_steps import DEVICE, GPT2

Generate = Callable[[], Any]
STARTS = 25  # seconds in which a way must have compiled and begun, about


def torch_decode(step: Step) -> None:
    """Generates tokens with GPT-2 small in bfloat16, for several numbers of streams.

    By transformers; where that is not installed or fails, by hand, compiled and, if that fails,
    eagerly.
    """
    for streams in step.numbers("batch"):
        for name, prepare in (("transformers", with_transformers), ("compiled", by_hand),
                              ("eager", by_hand)):  # fmt: skip
            if name == "transformers" and not importlib.util.find_spec("transformers"):
                step.record(mode=name, streams=streams, skipped="transformers is not installed")
                continue
            if seconds_left() < (8 if name == "eager" else STARTS):
                step.record(mode=name, streams=streams, skipped="no time left")
                continue
            torch.compiler.reset()  # each shape is compiled for itself
            try:
                row = measure(prepare(streams, name), streams)
                step.record(mode=name, streams=streams, **row)
                break
            except Exception as error:  # of a version that has no static cache, of a compiler
                step.record_error(error, mode=name, streams=streams)


def measure(generate: Generate, streams: int) -> dict[str, Any]:
    """Returns the time of generating tokens in each stream."""
    median, _, timed = time_calls(generate, 3, 5.0)
    n = new_tokens()
    return {
        "tokens_per_second": streams * n / median,
        "ms_per_token": 1e3 * median / n,
        "timed": timed,
    }


def with_transformers(streams: int, _: str) -> Generate:
    """Returns a call of transformers' `generate` with a static cache, which compiles by itself.

    GPT-2's weights are random: nothing is downloaded.
    """
    import transformers

    config = transformers.GPT2Config(
        vocab_size=BASE.vocab_size,
        n_positions=BASE.block_size,
        n_layer=BASE.n_layer,
        n_head=BASE.n_head,
        n_embd=BASE.n_embd,
    )
    with torch.device(DEVICE):
        net = transformers.GPT2LMHeadModel(config).to(torch.bfloat16).eval()
    net.generation_config.eos_token_id = None  # else a text may end early
    ids = torch.zeros(streams, PROMPT, dtype=torch.long, device=DEVICE)
    settings = transformers.GenerationConfig(
        max_new_tokens=new_tokens(),
        do_sample=True,
        top_k=0,
        eos_token_id=None,
        pad_token_id=0,
        cache_implementation="static",
    )

    def generate() -> None:
        with torch.no_grad():
            mask = torch.ones_like(ids)
            out = net.generate(ids, attention_mask=mask, generation_config=settings)
        assert out.shape[1] == PROMPT + new_tokens()
        out.cpu()

    return generate


def by_hand(streams: int, mode: str) -> Generate:
    """Returns a call that samples tokens one after another, `mode` "compiled" or "eager"."""
    with torch.device(DEVICE):
        net = GPT2().to(torch.bfloat16).eval()
    shape = streams, BASE.n_head, PROMPT + new_tokens(), BASE.n_embd // BASE.n_head
    for i in range(2 * BASE.n_layer):  # as buffers, which stay where they are between CUDA graphs
        empty = torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE)
        net.register_buffer(f"cache_{i}", empty, persistent=False)

    def forward(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        cache = lambda i: getattr(net, f"cache_{i}")
        caches = [(cache(2 * i), cache(2 * i + 1)) for i in range(BASE.n_layer)]
        return net(ids, caches=caches, positions=positions)[:, -1].float()

    advance = forward
    if mode == "compiled" and not TINY:
        advance = torch.compile(forward, mode="reduce-overhead", dynamic=False)
    prompt = torch.zeros(streams, PROMPT, dtype=torch.long, device=DEVICE)
    positions = torch.arange(PROMPT + new_tokens(), device=DEVICE)

    @torch.no_grad()
    def generate() -> None:
        logits = forward(prompt, positions[:PROMPT])
        for i in range(PROMPT, PROMPT + new_tokens()):
            token = torch.multinomial(torch.softmax(logits, -1), 1)
            logits = advance(token, positions[i : i + 1].clone())
        token.cpu()

    return generate

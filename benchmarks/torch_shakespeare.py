"""nanoGPT's recipe for a CPU in PyTorch, over seeds: what `shakespeare_cpu` is compared with.

    python benchmarks/torch_shakespeare.py [--seeds 3] [--threads 1]

The model of `configs/shakespeare_cpu.py` with the recipe's own GELU, the exact one, and its
optimizer, written anew; the losses of random batches and of the whole validation split. Prints
them, and adds them to benchmarks/results/shakespeare_cpu.json. Needs torch.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import torch_gpt
from gpt_jax.config import fix_schedule, load_config

CONFIG = fix_schedule(load_config("shakespeare_cpu"))
RESULT = Path(__file__).parent / "results" / "shakespeare_cpu.json"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        D = CONFIG.model.n_embd
        self.norm_1, self.norm_2 = nn.LayerNorm(D, bias=False), nn.LayerNorm(D, bias=False)
        self.qkv, self.proj = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, x):
        B, T, D = x.shape
        qkv = self.qkv(self.norm_1(x)).view(B, T, 3, CONFIG.model.n_head, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class GPT(nn.Module):
    def __init__(self, vocab_size: int):
        super().__init__()
        c = CONFIG.model
        self.block_size = c.block_size
        self.tokens = nn.Embedding(vocab_size, c.n_embd)
        self.positions = nn.Embedding(c.block_size, c.n_embd)
        self.blocks = nn.Sequential(*[Block() for _ in range(c.n_layer)])
        self.norm_f = nn.LayerNorm(c.n_embd, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * c.n_layer) if residual else 0.02)

    def forward(self, tokens, targets):
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        logits = F.linear(self.norm_f(self.blocks(x)), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def learning_rate(step: int) -> float:
    c = CONFIG.optim
    assert c.schedule_steps is not None
    if step < c.warmup_steps:
        return c.learning_rate * (step + 1) / (c.warmup_steps + 1)
    p = (step - c.warmup_steps) / (c.schedule_steps - c.warmup_steps)
    return c.learning_rate * (c.floor + (1 - c.floor) * (1 + math.cos(math.pi * p)) / 2)


def make_optimizer(model, fused: bool = True):
    """Returns AdamW as the recipe has it: no decay of biases and norms."""
    c = CONFIG.optim
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": c.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (c.beta1, c.beta2)
    return torch.optim.AdamW(groups, lr=c.learning_rate, betas=betas, fused=fused)


def train_steps(model, call, optimizer, tokens, steps):
    """Takes the optimizer steps of these numbers; `call` is the model or its compiled form.

    Returns the last loss.
    """
    clip = CONFIG.optim.clip
    assert clip is not None
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss = call(*torch_gpt.get_batch(tokens, model.block_size, CONFIG.train.batch_size))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return loss.detach()


def train(seed: int, train_tokens, val_tokens, vocab_size: int) -> dict[str, float]:
    """Returns the losses at the end: random batches of both splits, and exactly."""
    torch.manual_seed(seed)
    model, batch_size = GPT(vocab_size), CONFIG.train.batch_size
    optimizer = make_optimizer(model, fused=False)
    train_steps(model, model, optimizer, train_tokens, range(CONFIG.train.steps))
    losses = [
        torch_gpt.evaluate(model, model, part, batch_size, CONFIG.train.eval_batches).item()
        for part in (train_tokens, val_tokens)
    ]
    T, total = model.block_size, 0.0
    with torch.inference_mode():
        for start in range(0, len(val_tokens) - 1, 64 * T):
            part = val_tokens[start : start + 64 * T + 1]
            n = (len(part) - 1) // T * T
            if n:
                total += model(part[:n].view(-1, T), part[1 : n + 1].view(-1, T)).item() * n
            if rest := len(part) - 1 - n:
                total += model(part[None, n:-1], part[None, n + 1 :]).item() * rest
    return {"train": losses[0], "val": losses[1], "exact_val": total / (len(val_tokens) - 1)}


def main() -> None:
    from gpt_jax.experiments.statistics import mean_of  # not above: they import jax
    from gpt_jax.input_pipeline.corpus import load_corpus
    from gpt_jax.input_pipeline.text_corpus import SHAKESPEARE_SHA256

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--threads", type=int, default=1, help="more are slower beside other work")
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error("--seeds must be at least 2: one has no interval")
    torch.set_num_threads(args.threads)
    corpus = load_corpus("shakespeare")
    if corpus.sha256 != SHAKESPEARE_SHA256:
        sys.exit("error: this is not nanoGPT's edition of shakespeare; see GPT_JAX_DATA")
    vocabulary = sorted(set(corpus.text))
    ids = {c: i for i, c in enumerate(vocabulary)}
    tokens = torch.tensor([ids[c] for c in corpus.text])
    cut = int(CONFIG.data.train_fraction * len(tokens))
    runs = []
    for seed in range(args.seeds):
        runs.append(train(seed, tokens[:cut], tokens[cut:], len(vocabulary)))
        print(f"seed {seed}: {runs[-1]}", flush=True)
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    figures = {name: asdict(mean_of([run[name] for run in runs])) for name in runs[0]}
    result["torch"] = {"version": torch.__version__, **figures}
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

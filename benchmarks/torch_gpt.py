"""The same model in PyTorch, as its best users would write it: what gpt_jax is measured against.

Fused query-key-value projection, scaled_dot_product_attention, fused AdamW, the whole corpus as one
tensor, no `.item()` in the loop, key-value cache in decoding. The original script's scale of the
attention scores is a setting. Needs torch, which gpt_jax itself does not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, n_embd: int, n_head: int, dropout: float):
        super().__init__()
        self.n_head, self.dropout = n_head, dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.proj = nn.Linear(n_embd, n_embd)
        self.up, self.down = nn.Linear(n_embd, 4 * n_embd), nn.Linear(4 * n_embd, n_embd)

    def forward(self, x, cache=None):
        B, T, D = x.shape
        qkv = self.qkv(self.norm_1(x)).view(B, T, 3, self.n_head, D // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            k_cache, v_cache, position = cache
            k_cache[:, :, position : position + T] = k
            v_cache[:, :, position : position + T] = v
            k, v = k_cache[:, :, : position + T], v_cache[:, :, : position + T]
        rate = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=T > 1)
        y = self.proj(y.transpose(1, 2).reshape(B, T, D))
        x = x + F.dropout(y, self.dropout, self.training)
        y = self.down(F.relu(self.up(self.norm_2(x))))
        return x + F.dropout(y, self.dropout, self.training)


class GPT(nn.Module):
    def __init__(self, vocab_size, n_layer, n_head, n_embd, block_size, dropout):
        super().__init__()
        self.block_size, self.n_head, self.n_embd = block_size, n_head, n_embd
        self.tokens = nn.Embedding(vocab_size, n_embd)
        self.positions = nn.Embedding(block_size, n_embd)
        self.blocks = nn.ModuleList(Block(n_embd, n_head, dropout) for _ in range(n_layer))
        self.norm_f, self.head = nn.LayerNorm(n_embd), nn.Linear(n_embd, vocab_size)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens, targets=None, caches=None, position=0, last_only=False):
        T = tokens.shape[1]
        at = torch.arange(position, position + T, device=tokens.device)
        x = self.tokens(tokens) + self.positions(at)
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else (*caches[i], position))
        if last_only:
            x = x[:, -1:]
        logits = self.head(self.norm_f(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def get_batch(tokens, block_size, batch_size):
    starts = torch.randint(len(tokens) - block_size, (batch_size,), device=tokens.device)
    batch = tokens[starts[:, None] + torch.arange(block_size + 1, device=tokens.device)]
    return batch[:, :-1], batch[:, 1:]


def make_optimizer(model, learning_rate=3e-4, weight_decay=0.01):
    return torch.optim.AdamW(
        model.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
    )


def train_steps(model, call, optimizer, tokens, batch_size, steps):
    """Takes optimizer steps; `call` is the model or its compiled form. Returns the last loss."""
    model.train()
    for _ in range(steps):
        loss = call(*get_batch(tokens, model.block_size, batch_size))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return loss.detach()


@torch.no_grad()
def evaluate(model, call, tokens, batch_size, batches):
    """Returns the mean loss of random batches, dropout off."""
    model.eval()
    losses = [call(*get_batch(tokens, model.block_size, batch_size)) for _ in range(batches)]
    return torch.stack(losses).mean()


@torch.inference_mode()
def generate(model, prompt, batch_size, max_new_tokens, temperature=1.0, cache=True):
    """Draws tokens: inside block_size through a cache, or as nanoGPT does by a full forward pass
    over the context so far; past block_size by a full forward pass over the last block_size tokens.
    """
    model.eval()
    tokens = prompt.expand(batch_size, -1)
    head = (batch_size, model.n_head, model.block_size, model.n_embd // model.n_head)
    caches = None
    if cache:
        caches = [
            (torch.empty(head, device=prompt.device), torch.empty(head, device=prompt.device))
            for _ in model.blocks
        ]
    logits = model(tokens[:, -model.block_size :], caches=caches, last_only=True)
    for _ in range(max_new_tokens):
        probabilities = F.softmax(logits[:, -1] / temperature, dim=-1)
        token = torch.multinomial(probabilities, 1)
        tokens = torch.cat((tokens, token), dim=1)
        length = tokens.shape[1]
        if cache and length <= model.block_size:
            logits = model(token, caches=caches, position=length - 1)
        else:
            logits = model(tokens[:, -model.block_size :], last_only=True)
    return tokens

"""nano's whole job as a PyTorch script: 500 steps, all evaluations, the exact one, a sample.

    python benchmarks/torch_script.py [--compile]

The same work as `python main.py --config nano`, without its checkpoints, records and pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F

from benchmarks import torch_gpt
from gpt_jax.input_pipeline.corpus import load_corpus


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    text = load_corpus("oz").text
    vocabulary = sorted(set(text))
    ids = {c: i for i, c in enumerate(vocabulary)}
    tokens = torch.tensor([ids[c] for c in text])
    cut = int(0.8 * len(tokens))
    train, val = tokens[:cut], tokens[cut:]
    model = torch_gpt.GPT(len(vocabulary), 3, 4, 128, 64, 0.2)
    call = torch.compile(model) if args.compile else model
    optimizer = torch_gpt.make_optimizer(model)
    for step in range(0, 501, 50):
        losses = [torch_gpt.evaluate(model, call, part, 32, 50).item() for part in (train, val)]
        print(f"step {step}: train {losses[0]:.4f} val {losses[1]:.4f}", flush=True)
        if step < 500:
            torch_gpt.train_steps(model, call, optimizer, train, 32, 50)

    model.eval()
    with torch.inference_mode():
        n = (len(val) - 1) // 64
        inputs, targets = val[: n * 64].view(n, 64), val[1 : n * 64 + 1].view(n, 64)
        total = sum(
            F.cross_entropy(model(i).flatten(0, 1), t.flatten(), reduction="sum").item()
            for i, t in zip(inputs.split(64), targets.split(64), strict=True)
        )
        print(f"whole validation split: {total / (n * 64):.4f} nats per token")
    prompt = torch.tensor([[ids[c] for c in "The Great Wizard said "]])
    out = torch_gpt.generate(model, prompt, 1, 300)[0].tolist()
    print("".join(vocabulary[i] for i in out))


if __name__ == "__main__":
    main()

"""GPT-2 medium on OpenWebText: 354,823,168 parameters; not run.

python main.py --config medium
python main.py plan --config medium --topology v5e:4x4
python main.py plan --config medium --topology h100:1

The recipe of base, with the learning rate of GPT-3's model of that size (Brown et al. 2020, table
2.1). By the estimate of gpt_jax/training/memory.py it fits a GPU of 80 GB, or several, with a micro_batch of
16 (the activations of 32 are some 69 GB, by hand). The published GPT-2 medium has a val loss of 2.84
on OpenWebText, by nanoGPT.
"""

import dataclasses

from gpt_jax.config import Config, load_config


def get_config() -> Config:
    base = load_config("base")
    return dataclasses.replace(
        base,
        run_dir="runs/medium",
        model=dataclasses.replace(base.model, n_layer=24, n_head=16, n_embd=1024),
        optim=dataclasses.replace(base.optim, learning_rate=3e-4),
        train=dataclasses.replace(base.train, micro_batch=16),
    )

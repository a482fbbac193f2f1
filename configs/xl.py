"""GPT-2 xl on OpenWebText: 1,557,611,200 parameters; not run.

python main.py --config xl
python main.py plan --config xl --topology v5e:4x4 --mesh.data 1 --mesh.fsdp 16
python main.py plan --config xl --topology h100:8 \\
    --mesh.data 1 --mesh.fsdp 8 --train.micro-batch 32

The recipe of base, with the learning rate of GPT-3's model of that size (Brown et al. 2020, table
2.1). By the estimate of gpt_jax/training/memory.py it fits a GPU of 80 GB, or several, with a micro_batch of
16. The published GPT-2 xl has a val loss of 2.54 on OpenWebText, by nanoGPT.
"""

import dataclasses

from gpt_jax.config import Config, load_config


def get_config() -> Config:
    base = load_config("base")
    return dataclasses.replace(
        base,
        run_dir="runs/xl",
        model=dataclasses.replace(base.model, n_layer=48, n_head=25, n_embd=1600, remat="full"),
        optim=dataclasses.replace(base.optim, learning_rate=2e-4),
        train=dataclasses.replace(base.train, micro_batch=16),
    )

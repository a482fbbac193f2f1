"""GPT-2 large on OpenWebText: 774,030,080 parameters; not run.

python main.py --config large
python main.py plan --config large --topology v5e:4x4 \\
    --train.micro-batch 16 --mesh.data 1 --mesh.fsdp 16
python main.py plan --config large --topology h100:8 --train.micro-batch 64

The recipe of base, with the learning rate of GPT-3's model of that size (Brown et al. 2020, table
2.1). By the estimate of gpt_jax/training/memory.py it fits a GPU of 80 GB, or several, with a micro_batch of
8. The published GPT-2 large has a val loss of 2.67 on OpenWebText, by nanoGPT.
"""

import dataclasses

from gpt_jax.config import Config, load_config


def get_config() -> Config:
    base = load_config("base")
    return dataclasses.replace(
        base,
        run_dir="runs/large",
        model=dataclasses.replace(base.model, n_layer=36, n_head=20, n_embd=1280),
        optim=dataclasses.replace(base.optim, learning_rate=2.5e-4),
        train=dataclasses.replace(base.train, micro_batch=8),
    )

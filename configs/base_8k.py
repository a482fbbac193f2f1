"""base with a context of 8,192 and rotary positions: 123,653,376 parameters; not run.

python main.py --config base_8k
python main.py plan --config base_8k --topology v5e:4x4 --train.micro-batch 16
python main.py plan --config base_8k --topology h100:1

Without 1,024 learned positions of 768 there are 786,432 parameters fewer. As many tokens a step as
base: 64 sequences. By the estimate of gpt_jax/training/memory.py it fits a GPU of 80 GB with a micro_batch of
4. No loss is known.
"""

import dataclasses

from gpt_jax.config import Config, load_config


def get_config() -> Config:
    base = load_config("base")
    return dataclasses.replace(
        base,
        run_dir="runs/base_8k",
        model=dataclasses.replace(base.model, block_size=8192, positions="rotary"),
        train=dataclasses.replace(base.train, batch_size=64, micro_batch=4),
    )

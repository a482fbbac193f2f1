"""nanoGPT's baby GPT: 10,745,088 parameters on tiny Shakespeare, for a GPU.

python main.py --config shakespeare_char
python main.py plan --config shakespeare_char --topology v5e:2x2
python main.py plan --config shakespeare_char --topology h100:1

On an H200 the lowest val loss was 1.4665, at step 1,750 of one run in float32, and all steps took some
two minutes. model.dtype=auto is bfloat16 where a GPU or TPU has it; no loss in it is known.
nanoGPT gives 1.4697 and 3 minutes on one A100 for its own.
"""

import dataclasses

from gpt_jax.config import Config, load_config


def get_config() -> Config:
    small = load_config("shakespeare_cpu")
    return dataclasses.replace(
        small,
        run_dir="runs/shakespeare_char",
        model=dataclasses.replace(
            small.model,
            n_layer=6,
            n_head=6,
            n_embd=384,
            block_size=256,
            dropout=0.2,
            embedding_dropout=0.2,
            dtype="auto",
        ),
        train=dataclasses.replace(small.train, batch_size=64, steps=5000, eval_batches=200),
    )

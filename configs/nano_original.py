"""nano as its PyTorch original was, exactly: attention scores divided by sqrt(n_embd).

python main.py --config nano_original
python main.py plan --config nano_original --topology v5e:2x2

As large as nano, and as fast: about 100 s on two cores of an AMD EPYC. To expect, of five seeds
(`python benchmarks/reproduce.py`): val loss 2.189 at step 450, where the original has 2.191, and
2.103 at step 500.
"""

import dataclasses

from gpt_jax.config import Config, load_config


def get_config() -> Config:
    nano = load_config("nano")
    model = dataclasses.replace(nano.model, attention_scale=nano.model.n_embd**-0.5)
    return dataclasses.replace(nano, run_dir="runs/nano_original", model=model)

"""nano with 512 byte pairs in place of 73 characters: 733,696 parameters, the same book.

python main.py --config nano_bpe

Not run to its end yet. Its loss is of longer tokens than nano's: compare bits a byte.
`python benchmarks/directions.py` puts both side by side.
"""

import dataclasses

from gpt_jax.config import Config
from gpt_jax.config_files import load_config


def get_config() -> Config:
    nano = load_config("nano")
    return dataclasses.replace(
        nano,
        run_dir="runs/nano_bpe",
        data=dataclasses.replace(nano.data, tokenizer="bpe", vocab_size=512),
    )

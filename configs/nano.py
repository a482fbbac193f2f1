"""620,873-parameter character model on The Wonderful Wizard of Oz: two minutes on a laptop CPU.

python main.py --config nano
"""

from gpt_jax.config import Config, DataConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(n_layer=3, n_head=4, n_embd=128, block_size=64, dropout=0.2),
        data=DataConfig(corpus="oz", fallback_corpus="python-manual", train_fraction=0.8),
        optim=OptimConfig(learning_rate=3e-4, weight_decay=0.01),
        train=TrainConfig(batch_size=32, steps=500, eval_interval=50, eval_batches=50),
        sample=SampleConfig(prompt="The Great Wizard said "),
    )

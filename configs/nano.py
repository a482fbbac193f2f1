"""620,873-parameter character model on The Wonderful Wizard of Oz: about 100 s on two CPU cores.

python main.py --config nano
python main.py plan --config nano --topology v5e:2x2

On two cores of an AMD EPYC the whole command takes 101 s, and 93 s once its programs are compiled
(`python benchmarks/speed.py`). To expect at step 500, of five seeds (`python
benchmarks/reproduce.py`): val loss 1.946, on the whole validation split 1.949 nats per token.
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

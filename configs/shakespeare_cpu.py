"""nanoGPT's recipe for a CPU: 804,096 parameters on tiny Shakespeare, val loss 1.88 there.

python main.py --config shakespeare_cpu

`python benchmarks/reproduce.py shakespeare_cpu` trains it with several seeds; the README has the
table. The recipe's AdamW decays matrices only, its dropout is off, its GELU is the exact one (here
its tanh form).
"""

from gpt_jax.config import Config, DataConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            n_layer=4,
            n_head=4,
            n_embd=128,
            block_size=64,
            dropout=0.0,
            activation="gelu",
            bias=False,
            head_bias=False,
            tied=True,
            residual_init_scale=True,
        ),
        data=DataConfig(corpus="shakespeare", train_fraction=0.9),
        optim=OptimConfig(
            learning_rate=1e-3,
            schedule="cosine",
            warmup_steps=100,
            floor=0.1,
            weight_decay=0.1,
            decay="matrices",
            beta2=0.99,
            clip=1.0,
        ),
        train=TrainConfig(
            batch_size=12,
            steps=2000,
            log_interval=50,
            eval_interval=250,
            eval_batches=20,
            checkpoint_interval=500,
        ),
        sample=SampleConfig(prompt="\n"),
    )

"""nanoGPT's recipe for a CPU: 804,096 parameters on tiny Shakespeare, some minutes on two cores.

python main.py --config shakespeare_cpu
python main.py plan --config shakespeare_cpu --topology v5e:2x2

Loss, from `python benchmarks/reproduce.py shakespeare_cpu` on two CPU cores: 1.904 nats a character
on the whole validation split; see docs/reproduction-and-speed.md. nanoGPT states 1.88 for one seed
and 20 random batches; its recipe in PyTorch gives 1.912 on the whole split
(`benchmarks/torch_shakespeare.py`). Its GELU is the exact one, here it is the tanh form.
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

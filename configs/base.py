"""GPT-2 small on OpenWebText, nanoGPT's recipe: 124,439,808 parameters.

python main.py --config base
python main.py plan --config base --topology v5e:4x4
python main.py plan --config base --topology h100:1

Steps on random tokens ran at 503,000 tokens/s on an H200; it has not been trained.
First prepare data/openwebtext, with GPT-2's tokenizer. By the estimate of gpt_jax/training/memory.py it fits
a GPU of 80 GB, or several, with a micro_batch of 32. A step is 524,288 tokens, so 600,000 steps are
315 billion. nanoGPT says of its own: 4 days on 8 A100s of 40 GB, val loss about 2.85; the published
GPT-2 small has 3.12 there.
"""

from gpt_jax.config import Config, DataConfig, ModelConfig, OptimConfig, SampleConfig, TrainConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            n_layer=12,
            n_head=12,
            n_embd=768,
            block_size=1024,
            dropout=0.0,
            activation="gelu",
            qkv_bias=True,
            head_bias=False,
            tied=True,
            residual_init_scale=True,
            dtype="bfloat16",
            vocab_size=50257,  # what the corpus has; memory is checked before that is read
        ),
        data=DataConfig(corpus="data/openwebtext"),
        optim=OptimConfig(
            learning_rate=6e-4,
            schedule="cosine",
            warmup_steps=2000,
            floor=0.1,
            weight_decay=0.1,
            decay="matrices",
            beta2=0.95,
            clip=1.0,
        ),
        train=TrainConfig(
            batch_size=512,
            micro_batch=32,
            steps=600_000,
            eval_interval=1000,
            eval_batches=5,
            checkpoint_interval=1000,
        ),
        sample=SampleConfig(prompt="\n"),
    )

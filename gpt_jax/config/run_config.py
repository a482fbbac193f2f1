"""Every setting of a run, declared once: its default, help and rule, and rules between settings.

This module must not import jax or use a device, so that a usage error is reported at once. How a
setting is declared is in `fields.py`; configs with other values are in `configs/`.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import typing
from collections.abc import Mapping
from typing import Any

from gpt_jax.config.activations import ACTIVATIONS
from gpt_jax.config.fields import (
    BELOW_ONE,
    FRACTION,
    NOT_NEGATIVE,
    NOT_NEGATIVE_INT,
    POSITIVE,
    POSITIVE_INT,
    check_fields,
    field,
    from_nested_dict,
    iter_fields,
    plain,
)
from gpt_jax.errors import ConfigError, suggest

DEFAULT_RUN_DIR = "runs/run"  # a config file without a run_dir gets runs/ and the name of the file


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture of the model: with its parameters, all that is needed to compute logits."""

    n_layer: int = field(3, "number of transformer blocks", POSITIVE_INT)
    n_head: int = field(4, "number of attention heads; must divide n_embd", POSITIVE_INT)
    n_embd: int = field(128, "width of the embeddings and of each block", POSITIVE_INT)
    block_size: int = field(64, "context length, in tokens", POSITIVE_INT)
    mlp_width: int | None = field(
        None,
        "width of the MLP",
        POSITIVE_INT,
        unset="4 n_embd; with a gated activation 8/3 n_embd, rounded to a multiple of 8",
    )
    dropout: float = field(0.2, "dropout rate, in [0, 1)", BELOW_ONE)
    attention_dropout: float | None = field(
        None, "dropout rate of the attention weights, in [0, 1)", BELOW_ONE, unset="dropout"
    )
    attention_scale: float | None = field(
        None,
        "multiplier of attention scores",
        POSITIVE,
        advice="use none for the default",
        unset="1/sqrt(n_embd / n_head)",
    )
    inverse_layer_scale: bool = field(
        False, "divide the attention scores of each layer by its number, 1 for the first"
    )
    activation: str = field(
        "relu",
        f"activation of the MLP: {', '.join(ACTIVATIONS)}. gelu is the tanh form, as in GPT-2; "
        "gelu_exact is not; relu2 is squared; swiglu is gated, and its MLP narrower for as many "
        "parameters",
        (lambda x: x in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    )
    norm: typing.Literal["layer", "rms"] = field(
        "layer", "layer: LayerNorm; rms: RMSNorm, without mean and bias"
    )
    norm_epsilon: float = field(1e-5, "what norms add to the variance", POSITIVE)
    bias: bool = field(True, "biases in the attention output projection, the MLP and LayerNorm")
    qkv_bias: bool = field(False, "biases of queries, keys and values")
    head_bias: bool = field(True, "bias of the output head")
    tied: bool = field(False, "weight tying: the token embedding is also the output head")
    positions: typing.Literal["learned", "rotary"] = field(
        "learned", "position encoding: learned embeddings, or rotary (RoPE) on queries and keys"
    )
    rotary_base: float = field(
        10_000.0, "base of the rotations of rotary positions; larger for longer contexts", POSITIVE
    )
    qk_norm: bool = field(False, "RMSNorm on each head's queries and keys")
    n_kv_head: int | None = field(
        None,
        "number of key/value heads, for grouped-query attention (GQA); must divide n_head",
        POSITIVE_INT,
        unset="n_head",
    )
    embedding_dropout: float = field(0.0, "dropout rate of the embeddings, in [0, 1)", BELOW_ONE)
    residual_init_scale: bool = field(
        False, "scale the initial weights of residual projections by 1/sqrt(2 n_layer), as in GPT-2"
    )
    dtype: typing.Literal["float32", "bfloat16", "auto"] = field(
        "float32",
        "dtype of activations and matrix products; bfloat16 is mixed precision: parameters, "
        "their gradients, norms, softmax and loss stay float32; auto: bfloat16 on a TPU or an "
        "NVIDIA GPU that has it, else float32: chosen and recorded when the run begins",
    )
    remat: typing.Literal["none", "full", "dots"] = field(
        "none",
        "activation checkpointing (rematerialisation) in each block, to save memory: none; "
        "full: recompute everything; dots: keep the outputs of matrix products with parameters",
    )
    attention: typing.Literal["auto", "plain", "blockwise", "fused"] = field(
        "auto",
        "attention implementation: plain: all scores in memory; blockwise: a block of queries "
        "at a time; fused: flash attention, by cuDNN or a TPU kernel; auto: chosen for the "
        "device and settings",
    )
    vocab_size: int = field(
        0,
        "number of tokens in the vocabulary; 0 until the tokenizer is known",
        NOT_NEGATIVE_INT,
        internal=True,
    )

    def __post_init__(self):
        check_fields(self, "model.", bits=31)
        if self.n_embd % self.n_head:
            below = self.n_embd // self.n_head * self.n_head
            tries = " or ".join(str(n) for n in (below, below + self.n_head) if n)
            raise ConfigError(
                f"model.n_embd={self.n_embd} must be divisible by model.n_head={self.n_head}; "
                f"try n_embd={tries}"
            )
        if self.n_kv_head and self.n_head % self.n_kv_head:
            raise ConfigError(
                f"model.n_kv_head={self.n_kv_head} must divide model.n_head={self.n_head}; "
                f"try n_kv_head={math.gcd(self.n_kv_head, self.n_head)}"
            )
        if self.positions == "rotary" and self.head_size % 2:
            raise ConfigError(
                f"model.positions='rotary' needs an even head size, not n_embd={self.n_embd} / "
                f"n_head={self.n_head} = {self.head_size}; "
                f"try n_embd={(self.head_size + 1) * self.n_head}"
            )
        if self.attention_dropout_rate and self.attention in ("blockwise", "fused"):
            name = "dropout" if self.attention_dropout is None else "attention_dropout"
            raise ConfigError(
                f"model.attention={self.attention} has no dropout of attention weights, and "
                f"model.{name}={self.attention_dropout_rate}; set model.attention_dropout=0 or "
                "model.attention=plain"
            )

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def attention_dropout_rate(self) -> float:
        """Dropout rate of the attention weights: attention_dropout, or dropout."""
        return self.dropout if self.attention_dropout is None else self.attention_dropout

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The corpus, its tokenizer, and how sequences are drawn from it."""

    corpus: str = field(
        "oz",
        "name of a corpus (oz, shakespeare, python-manual), path of a UTF-8 text file or of a "
        "prepared folder; or a mixture of prepared folders with their weights, as "
        "DIR1:0.7,DIR2:0.3 (a path may contain commas)",
    )
    fallback_corpus: str | None = field(
        None, "corpus to train on if `corpus` cannot be downloaded", unset="stop with an error"
    )
    train_fraction: float = field(
        0.8,
        "fraction of the text for training, from its start; the rest is for validation. "
        "Prepared folders are already split",
        FRACTION,
    )
    order: typing.Literal["random", "epochs"] = field(
        "random",
        "random: sequences at random offsets, with replacement; epochs: non-overlapping "
        "sequences, each once per epoch, reshuffled every epoch",
    )
    resident: typing.Literal["auto", "device", "host"] = field(
        "auto",
        "where tokens are kept: device: a copy on each; host: batches are prefetched from host "
        "memory; auto: on the devices if they fit a quarter of one's memory (CPU: 1 GiB). "
        "Batches are identical",
    )
    tokenizer: typing.Literal["char", "bpe", "gpt2", "cl100k_base", "o200k_base"] = field(
        "char",
        "char: one token per character; bpe: byte-pair encoding, trained on the training text; "
        "gpt2, cl100k_base (GPT-4), o200k_base (GPT-4o): published, downloaded once or read "
        "from the folder TIKTOKEN_CACHE_DIR. Prepared folders have their own: leave this out",
    )
    vocab_size: int | None = field(
        None,
        "vocabulary size of `bpe`, with 256 bytes and <|endoftext|>",
        (lambda x: x >= 257, "a whole number of at least 257"),
        unset="the tokenizer's own",
    )

    def __post_init__(self):
        check_fields(self, "data.")
        if not self.corpus:
            raise ConfigError(
                "data.corpus is empty; give a name (oz, shakespeare, python-manual) or a path"
            )
        if self.tokenizer == "bpe" and self.vocab_size is None:
            raise ConfigError(
                "data.tokenizer=bpe needs data.vocab_size, the number of tokens to learn; try 1024"
            )
        if self.tokenizer != "bpe" and self.vocab_size is not None:
            raise ConfigError(
                f"data.vocab_size={self.vocab_size} is for data.tokenizer=bpe, and this is "
                f"{self.tokenizer}; set one of them: data.tokenizer=bpe or data.vocab_size=none"
            )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter 2019) or Muon, learning-rate schedule, gradient clipping."""

    optimizer: typing.Literal["adamw", "muon"] = field(
        "adamw",
        "adamw; muon: orthogonalised momentum for the weight matrices of blocks, AdamW for the "
        "rest",
    )
    learning_rate: float = field(3e-4, "peak learning rate", POSITIVE)
    schedule: typing.Literal["constant", "cosine", "wsd"] = field(
        "constant",
        "learning-rate schedule after warmup: constant; cosine: cosine decay to the floor; "
        "wsd: constant, then linear decay to the floor over the last decay_steps",
    )
    warmup_steps: int = field(0, "steps of linear warmup", NOT_NEGATIVE_INT)
    schedule_steps: int | None = field(
        None,
        "step at which cosine or wsd reaches its floor; the learning rate stays there",
        POSITIVE_INT,
        unset="train.steps",
    )
    decay_steps: int | None = field(
        None, "steps of wsd's linear decay", POSITIVE_INT, unset="a fifth of schedule_steps"
    )
    floor: float = field(
        0.1,
        "final learning rate of cosine or wsd, as a fraction of learning_rate, in [0, 1]",
        (lambda x: 0 <= x <= 1, "a number in [0, 1]"),
    )
    weight_decay: float = field(0.01, "decoupled weight decay (AdamW)", NOT_NEGATIVE)
    decay: typing.Literal["all", "matrices"] = field(
        "all",
        "parameters with weight decay: all; matrices: kernels and embeddings, not norms and biases",
    )
    beta1: float = field(
        0.9, "AdamW's decay rate of the gradient's moving average, in [0, 1)", BELOW_ONE
    )
    beta2: float = field(
        0.999, "AdamW's decay rate of the squared gradient's moving average, in [0, 1)", BELOW_ONE
    )
    muon_beta: float = field(0.95, "Muon's momentum, in [0, 1)", BELOW_ONE)
    clip: float | None = field(None, "clip gradients to this global L2 norm", POSITIVE, unset="off")

    def __post_init__(self):
        check_fields(self, "optim.")
        if self.decay_steps is not None and self.schedule != "wsd":
            raise ConfigError(
                f"optim.decay_steps={self.decay_steps} is for optim.schedule=wsd, and this is "
                f"{self.schedule}; set optim.decay_steps=none (optim.schedule_steps is where "
                "cosine ends)"
            )

    @property
    def constant_steps(self) -> float:
        """Step at which the learning rate starts to decay; infinite where it is constant.

        Raises:
          ValueError: the schedule has no length; `fix_schedule` sets it.
        """
        if self.schedule == "constant":
            return math.inf
        if self.schedule_steps is None or (self.schedule == "wsd" and self.decay_steps is None):
            raise ValueError(f"optim.schedule={self.schedule} has no length; see fix_schedule")
        if self.decay_steps is None:
            return self.warmup_steps
        return self.schedule_steps - self.decay_steps

    def with_fixed_schedule(self, train_steps: int) -> OptimConfig:
        """Returns these settings with explicit lengths of the schedule; see `fix_schedule`."""
        if self.schedule == "constant":
            return self
        end = train_steps if self.schedule_steps is None else self.schedule_steps
        decay = self.decay_steps
        if self.schedule == "wsd" and decay is None:
            decay = max(1, end // 5)
        return dataclasses.replace(self, schedule_steps=end, decay_steps=decay)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Batch size, length, logging, evaluation, checkpoints, divergence."""

    batch_size: int = field(
        32, "global batch size: sequences per optimizer step, over all devices", POSITIVE_INT
    )
    micro_batch: int | typing.Literal["auto"] | None = field(
        None,
        "micro-batch size for gradient accumulation, over all devices; auto: the largest that "
        "fits into their memory, chosen and recorded when the run begins; a number must divide "
        "batch_size",
        POSITIVE_INT,
        unset="the whole batch",
    )
    loss_chunk: int | None = field(
        None,
        "compute the loss in chunks of this many tokens, over all devices, to save memory",
        POSITIVE_INT,
        unset="all at once",
    )
    steps: int = field(500, "total number of optimizer steps", POSITIVE_INT)
    log_interval: int = field(10, "steps per log row; a compiled call has no more", POSITIVE_INT)
    eval_interval: int = field(50, "steps between evaluations", POSITIVE_INT)
    eval_batches: int = field(50, "random batches of each split per evaluation", POSITIVE_INT)
    eval_fixed: bool = field(
        False,
        "each evaluation has the same random batches, so that its losses differ by what was "
        "learned alone; else each draws its own",
    )
    sample_tokens: int = field(
        64,
        "tokens of a sample text kept at each evaluation, within the context, of a model of at "
        "most 50 million parameters; 0: none",
        NOT_NEGATIVE_INT,
    )
    final_eval_tokens: int | None = field(
        None,
        "evaluate at most this many validation tokens of each corpus after the last step",
        POSITIVE_INT,
        unset="all",
    )
    checkpoint_interval: int = field(
        100, "steps between checkpoints, from which a run resumes", POSITIVE_INT
    )
    keep_checkpoints: int = field(2, "number of newest checkpoints to keep", POSITIVE_INT)
    keep_interval: int | None = field(
        None,
        "also keep, permanently, one checkpoint every this many steps; a multiple of "
        "checkpoint_interval",
        POSITIVE_INT,
        unset="off",
    )
    keep_best: bool = field(True, "also keep the checkpoint with the lowest validation loss")
    on_divergence: typing.Literal["stop", "skip"] = field(
        "stop",
        "on a non-finite loss or gradient or a loss spike: stop, keeping earlier checkpoints; "
        "skip: discard the update and count it",
    )
    max_skipped: int = field(
        20, "with skip: stop after this many skipped steps in a row", POSITIVE_INT
    )
    spike: float | None = field(
        None,
        "a loss of at least this multiple of the mean of the losses before it counts as a spike; "
        "see spike_window",
        (lambda x: 1 < x <= sys.float_info.max, "a finite number above 1"),
        unset="off",
    )
    spike_window: int = field(
        10,
        "the mean is that of the last this many steps that were not spikes, or of all there are",
        POSITIVE_INT,
    )
    deterministic: bool = field(
        False,
        "use deterministic GPU kernels, so that a resumed run is bitwise equal to an "
        "uninterrupted one; may be slower. On a CPU runs are deterministic without it",
    )
    max_minutes: float | None = field(
        None,
        "after this many minutes of training save a checkpoint and exit with status 75; the "
        "same command resumes",
        POSITIVE,
        unset="no limit",
    )
    dropout_masks: typing.Literal["batch", "micro_batch"] = field(
        "batch",
        "the dropout masks of micro-batches: rows of the whole batch's; or of their own, in runs "
        "begun when that was so",
        internal=True,
    )

    def __post_init__(self):
        check_fields(self, "train.")
        if self.batch_size % self.micro_batch_size:
            tries = range(min(self.micro_batch_size, self.batch_size), 0, -1)
            raise ConfigError(
                f"train.batch_size={self.batch_size} must be divisible by train.micro_batch="
                f"{self.micro_batch}; try micro_batch="
                f"{next(n for n in tries if self.batch_size % n == 0)}"
            )
        if self.keep_interval and self.keep_interval % self.checkpoint_interval:
            above = -(-self.keep_interval // self.checkpoint_interval) * self.checkpoint_interval
            raise ConfigError(
                f"train.keep_interval={self.keep_interval} must be a multiple of "
                f"train.checkpoint_interval={self.checkpoint_interval}; try keep_interval={above}"
            )

    @property
    def micro_batch_size(self) -> int:
        """Sequences per micro-batch: micro_batch, or the whole batch until auto is chosen."""
        return self.micro_batch if isinstance(self.micro_batch, int) else self.batch_size

    @property
    def chunk_steps(self) -> int:
        """Steps per compiled call: log_interval, or fewer where another interval requires it.

        Every evaluation and checkpoint is at the end of a chunk, so a resumed run executes the same
        calls as an uninterrupted one.
        """
        return math.gcd(self.log_interval, self.eval_interval, self.checkpoint_interval)


REST = (
    lambda x: x >= 1 or x == -1,
    "a whole number of at least 1, or -1 for all remaining devices",
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The size of each axis of the device mesh; see `parallel/sharding.py`.

    A run may be resumed on another mesh: its batches and dropout masks are the same on any.
    """

    data: int = field(
        -1, "data parallel: replicas, which split the batch (-1: all remaining devices)", REST
    )
    fsdp: int = field(
        1,
        "fully sharded data parallel: devices that shard the batch, the parameters and the "
        "optimizer state",
        REST,
    )
    tensor: int = field(
        1, "tensor parallel: devices that split attention heads and the width of the MLP", REST
    )
    sequence: int = field(
        1,
        "sequence parallel: devices that split the tokens of each sequence, and in attention "
        "its heads",
        REST,
    )

    def __post_init__(self):
        check_fields(self, "mesh.")
        rest = [f"mesh.{name}" for name, size in vars(self).items() if size == -1]
        if len(rest) > 1:
            raise ConfigError(
                f"{' and '.join(rest)} are both -1, and the rest of the devices can go to one axis "
                f"only; try {rest[-1]}=1"
            )

    @property
    def n_requested(self) -> int:
        """Number of devices that the sizes ask for, not counting -1."""
        return math.prod(size for size in vars(self).values() if size != -1)


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How text is generated."""

    prompt: str | None = field(
        None, "text to continue", unset="the first line of the validation text"
    )
    max_new_tokens: int = field(300, "number of tokens to generate", POSITIVE_INT)
    temperature: float = field(
        1.0, "divides the logits; lower is more predictable, 0 is greedy decoding", NOT_NEGATIVE
    )
    top_k: int | None = field(
        None, "sample from the k most likely tokens only", POSITIVE_INT, unset="all"
    )
    top_p: float | None = field(
        None,
        "nucleus sampling: sample from the most likely tokens that hold this much probability, "
        "in (0, 1]",
        (lambda x: 0 < x <= 1, "a number in (0, 1]"),
        unset="all",
    )
    num_samples: int = field(1, "number of texts to generate from one prompt", POSITIVE_INT)
    window: typing.Literal["exact", "refill"] = field(
        "exact",
        "when the context is full: exact: recompute the last block_size tokens for every new "
        "one; refill: drop the older half, an approximation several times faster",
    )

    def __post_init__(self):
        check_fields(self, "sample.")


SEED = (lambda x: 0 <= x < 2**32, "a whole number in [0, 2**32)")


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    run_dir: str = field(
        DEFAULT_RUN_DIR,
        "folder of the run, created if missing; one that holds a run resumes it. May be in a "
        "bucket: gs://BUCKET/FOLDER",
    )
    seed: int = field(
        0,
        "random seed of initialisation, batches, dropout, evaluations and samples",
        SEED,
    )
    init_seed: int | None = field(None, "random seed of initialisation", SEED, unset="seed")
    data_seed: int | None = field(None, "random seed of the batches", SEED, unset="seed")
    dropout_seed: int | None = field(None, "random seed of dropout", SEED, unset="seed")
    init_from: str | None = field(
        None,
        "fine-tune: start from the parameters, model settings and tokenizer of a run, of a "
        "GPT-2 folder or of a model on Hugging Face's hub (openai-community/gpt2). "
        "model.dtype, remat and attention are this config's; model.dropout, attention_dropout, "
        "embedding_dropout and residual_init_scale may differ, model.block_size may be smaller",
        unset="random parameters",
    )
    checkpoint: str = field(
        "newest",
        "with init_from: the checkpoint of that run to start from: newest, best (lowest "
        "validation loss) or a step",
        (lambda x: x in ("newest", "best") or x.isdecimal(), "newest, best or a step"),
    )
    branch_from: str | None = field(
        None,
        "continue another run from its step at_step: with its optimizer state, batches and masks, "
        "and with these settings",
        unset="no branch",
        internal=True,  # see `training.branches.branch_from`: settings default to the parent's
    )
    at_step: int | None = field(
        None,
        "with branch_from: the step of that run to continue from",
        POSITIVE_INT,
        advice="a branch from step 0 is a new run of the same settings",
        unset="no branch",
        internal=True,
    )
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    sample: SampleConfig = dataclasses.field(default_factory=SampleConfig)

    def __post_init__(self):
        if isinstance(number := plain(self.checkpoint), int) and not isinstance(number, bool):
            object.__setattr__(self, "checkpoint", str(number))
        check_fields(self)
        if not self.run_dir:
            raise ConfigError("run_dir is empty; give a folder such as runs/nano")
        if self.checkpoint != "newest" and self.init_from is None:
            raise ConfigError(
                f"checkpoint={self.checkpoint} is of the run that init_from names; give it too"
            )
        self._check_branch()
        heads, tensor = self.model.kv_heads, self.mesh.tensor
        if tensor != -1 and heads % tensor:
            name = "n_head" if self.model.n_kv_head is None else "n_kv_head"
            divisors = [str(n) for n in range(1, heads + 1) if heads % n == 0]
            raise ConfigError(
                f"mesh.tensor={tensor} must divide model.{name}={heads}; try mesh.tensor="
                f"{' or '.join(divisors)}, or mesh.fsdp={tensor}"
            )
        self._check_sequence()
        optim = self.optim.with_fixed_schedule(self.train.steps)
        if optim.schedule != "constant" and (
            optim.warmup_steps + (optim.decay_steps or 1) > (optim.schedule_steps or 0)
        ):
            decay = f" and optim.decay_steps={optim.decay_steps}" if optim.decay_steps else ""
            raise ConfigError(
                f"optim.warmup_steps={optim.warmup_steps}{decay} must fit into the schedule's "
                f"{optim.schedule_steps} steps; try fewer, or more train.steps or "
                "optim.schedule_steps"
            )

    @property
    def seeds(self) -> tuple[int, int, int, int]:
        """The arguments of `prng.make_keys`: the seed, and those of three purposes."""
        others = (self.init_seed, self.data_seed, self.dropout_seed)
        first, second, third = (self.seed if seed is None else seed for seed in others)
        return self.seed, first, second, third

    def _check_branch(self) -> None:
        if (self.branch_from is None) != (self.at_step is None):
            given = "at_step" if self.branch_from is None else "branch_from"
            missing = "branch_from, the run" if given == "at_step" else "at_step, its step"
            raise ConfigError(f"{given} is given without {missing} to branch from; give both")
        if self.branch_from is not None and self.init_from is not None:
            raise ConfigError(
                f"branch_from={self.branch_from} continues a run with its optimizer's state, and "
                f"init_from={self.init_from} starts from parameters alone; give one of them"
            )
        if self.at_step is not None and self.train.steps <= self.at_step:
            raise ConfigError(
                f"at_step={self.at_step} leaves none of train.steps={self.train.steps} to train; "
                f"give more, such as train.steps={2 * self.at_step}"
            )

    def _check_sequence(self) -> None:
        size, tokens = max(1, self.mesh.sequence), self.model.block_size
        tensor, heads = max(1, self.mesh.tensor), self.model.kv_heads
        advice = f"try mesh.sequence={math.gcd(size, tokens, heads // tensor)}"
        if tokens % size:
            raise ConfigError(
                f"mesh.sequence={size} must divide model.block_size={tokens}; {advice}"
            )
        if heads % (tensor * size):
            name = "n_head" if self.model.n_kv_head is None else "n_kv_head"
            both = f"mesh.tensor={tensor} x " if tensor > 1 else ""
            raise ConfigError(
                f"{both}mesh.sequence={size} must divide model.{name}={heads}, as attention shares "
                f"heads; {advice}"
            )


def fix_schedule(config: Config) -> Config:
    """Returns the config with explicit lengths of its schedule, where None means train.steps.

    A run stores these: if they followed train.steps, a longer run would change its past steps.
    """
    return dataclasses.replace(config, optim=config.optim.with_fixed_schedule(config.train.steps))


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns `config` with dotted settings replaced, and every rule checked.

    Two settings belong to the config's own corpus. If `values` name a corpus, there is no
    `data.fallback_corpus`, because a corpus that the user names is never replaced by another; if
    that is a different corpus, `sample.prompt` is unset too.

    Raises:
      ConfigError: a name is unknown or a value breaks a rule.
    """
    values = dict(values)
    if "data.corpus" in values:
        values.setdefault("data.fallback_corpus", None)
        if values["data.corpus"] != config.data.corpus:
            values.setdefault("sample.prompt", None)
    known = {name for name, _, _ in iter_fields(Config)}
    nested = to_dict(config)
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}{suggest(name, known)}")
        *groups, last = name.split(".")
        target = nested
        for group in groups:
            target = target[group]
        target[last] = value
    return from_dict(nested)


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the settings as nested dicts, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: Any) -> Config:
    """Returns the Config of nested dicts; a missing setting keeps its default.

    Raises:
      ConfigError: a name is unknown, a value has another type or breaks a rule.
    """
    return from_nested_dict(values, Config)

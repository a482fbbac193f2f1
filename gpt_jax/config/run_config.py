"""The settings: what each means, its default, its rule, and the rules between them.

Every setting is declared once, here. Nothing in this module imports jax or touches a device, so a
mistake is reported at once.
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
)
from gpt_jax.errors import ConfigError, suggest

DEFAULT_RUN_DIR = "runs/run"  # a config file that names none gets runs/ and its own name


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of the model; with its parameters, all that is needed to compute logits."""

    n_layer: int = field(3, "transformer blocks", POSITIVE_INT)
    n_head: int = field(4, "attention heads; must divide n_embd", POSITIVE_INT)
    n_embd: int = field(128, "width of the embedding", POSITIVE_INT)
    block_size: int = field(64, "longest context, in tokens", POSITIVE_INT)
    dropout: float = field(0.2, "share of activations dropped in training, in [0, 1)", BELOW_ONE)
    attention_scale: float | None = field(
        None,
        "factor on attention scores; none is the standard 1/sqrt(n_embd / n_head)",
        POSITIVE,
        advice="leave it at none for the standard",
    )
    activation: str = field(
        "relu",
        "of the MLP: relu; gelu (its tanh form, GPT-2's); relu2, squared; swiglu, gated, with a "
        "width of 8/3 n_embd rounded to a multiple of 8, not 4 n_embd, for as many parameters",
        (lambda x: x in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    )
    norm: typing.Literal["layer", "rms"] = field(
        "layer", "layer: LayerNorm; rms: RMSNorm, without mean and bias"
    )
    bias: bool = field(True, "biases in attention's output projection, the MLP and LayerNorm")
    qkv_bias: bool = field(False, "biases on queries, keys and values")
    head_bias: bool = field(True, "a bias on the logits")
    tied: bool = field(False, "the output head is the token embedding, transposed")
    positions: typing.Literal["learned", "rotary"] = field(
        "learned", "learned: an embedding each; rotary: queries and keys are turned by theirs"
    )
    qk_norm: bool = field(False, "RMSNorm of each head's queries and keys")
    n_kv_head: int | None = field(
        None,
        "heads of keys and values, each shared by n_head / n_kv_head query heads; none is n_head",
        POSITIVE_INT,
    )
    embedding_dropout: float = field(
        0.0, "share of the embeddings dropped in training, in [0, 1)", BELOW_ONE
    )
    residual_init_scale: bool = field(
        False, "start the layers that end in a residual sum 1/sqrt(2 n_layer) times as large"
    )
    dtype: typing.Literal["float32", "bfloat16"] = field(
        "float32",
        "of activations and matrix products; parameters, their gradients, norms, softmax and loss "
        "are float32",
    )
    remat: typing.Literal["none", "full", "dots"] = field(
        "none",
        "what a block computes again for its gradient, to save memory: none; full, all from its "
        "input; dots, all but products with parameters",
    )
    attention: typing.Literal["auto", "plain", "blockwise", "fused"] = field(
        "auto",
        "how attention is computed: plain, with all scores in memory; blockwise, some queries at a "
        "time; fused, cuDNN's or the TPU's kernel; auto, what the device and the settings allow",
    )
    vocab_size: int = field(
        0,
        "different tokens; 0 until the tokenizer says",
        NOT_NEGATIVE_INT,
        internal=True,
    )

    def __post_init__(self):
        check_fields(self, "model.")
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
        if self.dropout and self.attention in ("blockwise", "fused"):
            raise ConfigError(
                f"model.attention={self.attention} has no dropout of attention weights, and "
                f"model.dropout={self.dropout}; set model.dropout=0 or model.attention=plain"
            )

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read."""

    corpus: str = field(
        "oz",
        "name of a corpus (oz, shakespeare, python-manual), path of a UTF-8 text file or of a "
        "prepared folder; or prepared folders with their shares of the sequences, as "
        "DIR1:0.7,DIR2:0.3 (a comma in a path does no harm)",
    )
    fallback_corpus: str | None = field(
        None, "corpus to train on when `corpus` cannot be downloaded; none makes that an error"
    )
    train_fraction: float = field(
        0.8,
        "first part of the text, for training; the rest is for validation. Prepared folders have "
        "both parts already",
        FRACTION,
    )
    order: typing.Literal["random", "epochs"] = field(
        "random",
        "random: each sequence starts anywhere; epochs: sequences of block_size tokens side by "
        "side, each once in an epoch, in an order that is new in each",
    )
    resident: typing.Literal["auto", "device", "host"] = field(
        "auto",
        "where tokens lie: device, on each; host, which gathers batches ahead of time; auto: on "
        "the devices where they take at most a quarter of one's memory (on a CPU 1 GiB). The "
        "batches are the same",
    )
    tokenizer: typing.Literal["char", "bpe", "gpt2", "cl100k_base", "o200k_base"] = field(
        "char",
        "char: a token for each character of the text; bpe: byte pairs learned from the training "
        "text; gpt2, cl100k_base (GPT-4), o200k_base (GPT-4o): published ones, downloaded once, or "
        "read from the folder that TIKTOKEN_CACHE_DIR names. Prepared folders have their own: "
        "leave this out",
    )
    vocab_size: int | None = field(
        None,
        "tokens that `bpe` learns, 256 bytes and <|endoftext|> among them; none for other "
        "tokenizers, which have their own number",
        (lambda x: x >= 257, "a whole number of at least 257"),
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
    """AdamW (Loshchilov and Hutter 2019) or Muon, the learning rate over the steps, clipping."""

    optimizer: typing.Literal["adamw", "muon"] = field(
        "adamw",
        "adamw; muon: orthogonalised momentum for the matrices of blocks, AdamW for all else",
    )
    learning_rate: float = field(3e-4, "step size, at its highest", POSITIVE)
    schedule: typing.Literal["constant", "cosine", "wsd"] = field(
        "constant",
        "of the learning rate after warmup: constant; cosine: falls to its floor by half a cosine; "
        "wsd: stays, then falls to its floor by a line over the last decay_steps",
    )
    warmup_steps: int = field(
        0, "first steps, over which the learning rate rises by a line", NOT_NEGATIVE_INT
    )
    schedule_steps: int | None = field(
        None,
        "step at which cosine or wsd reaches its floor, and stays there; none is train.steps",
        POSITIVE_INT,
    )
    decay_steps: int | None = field(
        None, "steps of wsd's decay; none is a fifth of schedule_steps", POSITIVE_INT
    )
    floor: float = field(
        0.1,
        "learning rate at the end of cosine or wsd, as a share of learning_rate, in [0, 1]",
        (lambda x: 0 <= x <= 1, "a number in [0, 1]"),
    )
    weight_decay: float = field(
        0.01, "decoupled decay: a step shrinks weights by learning_rate * this", NOT_NEGATIVE
    )
    decay: typing.Literal["all", "matrices"] = field(
        "all", "what decays: all parameters; matrices: kernels and embeddings, no norms and biases"
    )
    beta1: float = field(0.9, "decay of the gradient's running mean, in [0, 1)", BELOW_ONE)
    beta2: float = field(0.999, "decay of the squared gradient's mean, in [0, 1)", BELOW_ONE)
    muon_beta: float = field(0.95, "decay of Muon's running mean, in [0, 1)", BELOW_ONE)
    clip: float | None = field(
        None, "largest global L2 norm of the gradient; a larger one is scaled to it", POSITIVE
    )

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
        """Step from which on the learning rate falls; infinite where it is constant.

        Raises:
          ValueError: the schedule has no length; `fix_schedule` gives it one.
        """
        if self.schedule == "constant":
            return math.inf
        if self.schedule_steps is None or (self.schedule == "wsd" and self.decay_steps is None):
            raise ValueError(f"optim.schedule={self.schedule} has no length; see pin_schedule")
        if self.decay_steps is None:
            return self.warmup_steps
        return self.schedule_steps - self.decay_steps

    def with_fixed_schedule(self, train_steps: int) -> OptimConfig:
        """Returns these settings with every length of the schedule said; see `fix_schedule`."""
        if self.schedule == "constant":
            return self
        end = train_steps if self.schedule_steps is None else self.schedule_steps
        decay = self.decay_steps
        if self.schedule == "wsd" and decay is None:
            decay = max(1, end // 5)
        return dataclasses.replace(self, schedule_steps=end, decay_steps=decay)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how much at once, and what is recorded."""

    batch_size: int = field(
        32, "sequences in an optimizer step, over all devices together", POSITIVE_INT
    )
    micro_batch: int | None = field(
        None,
        "sequences computed at once, over all devices together: saves memory, gradients are "
        "averaged; must divide batch_size; none is all of them",
        POSITIVE_INT,
    )
    loss_chunk: int | None = field(
        None,
        "tokens whose logits are in memory at once, over all devices together; none is all that "
        "are computed at once",
        POSITIVE_INT,
    )
    steps: int = field(500, "optimizer steps in all", POSITIVE_INT)
    log_interval: int = field(10, "steps in one compiled call and one log row", POSITIVE_INT)
    eval_interval: int = field(50, "steps between evaluations", POSITIVE_INT)
    eval_batches: int = field(50, "random batches of each split in an evaluation", POSITIVE_INT)
    final_eval_tokens: int | None = field(
        None,
        "the most tokens of the validation split, the first, that the exact evaluation at the end "
        "predicts, of each corpus; none is all",
        POSITIVE_INT,
    )
    checkpoint_interval: int = field(100, "steps between checkpoints", POSITIVE_INT)
    keep_checkpoints: int = field(2, "newest checkpoints kept", POSITIVE_INT)
    keep_interval: int | None = field(
        None,
        "steps between checkpoints that are kept for good; a multiple of checkpoint_interval; none "
        "keeps no others than keep_checkpoints and keep_best say",
        POSITIVE_INT,
    )
    keep_best: bool = field(
        True, "keep the checkpoint with the lowest validation loss too, of those that have one"
    )
    on_divergence: typing.Literal["stop", "skip"] = field(
        "stop",
        "what follows a step whose loss or gradient is not finite, or whose loss is a spike: stop, "
        "with the checkpoints before it; skip: its update is left out, and counted",
    )
    spike: float | None = field(
        None,
        "a loss of more than so many times the mean of log_interval steps before counts as a "
        "spike; none looks for what is not finite only",
        (lambda x: 1 < x <= sys.float_info.max, "a finite number above 1"),
    )
    deterministic: bool = field(
        False,
        "on a GPU: the same bits from the same steps, so that a run that was killed ends as one "
        "that was not; some kernels are slower. Other devices always do so",
    )
    max_minutes: float | None = field(
        None,
        "minutes of training after which the state is saved and the program ends, with exit status "
        "75; the same command goes on; none is no limit",
        POSITIVE,
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
        """Sequences computed at once: micro_batch, or the whole batch."""
        return self.batch_size if self.micro_batch is None else self.micro_batch

    @property
    def chunk_steps(self) -> int:
        """Steps in one compiled call: log_interval, or less where an interval asks for it.

        Every evaluation and checkpoint falls on a chunk's end, so a resumed run executes the very
        same calls as one that was never interrupted.
        """
        return math.gcd(self.log_interval, self.eval_interval, self.checkpoint_interval)


REST = (lambda x: x >= 1 or x == -1, "a whole number of at least 1, or -1 for what is left")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices share the work along each axis of the mesh; see `sharding.py`.

    A run may go on with other numbers: its batches and dropout masks are the same on any mesh.
    """

    data: int = field(
        -1,
        "groups of devices that share the batch, each group with the whole state; -1: what is left",
        REST,
    )
    fsdp: int = field(
        1, "devices that share the batch, and the parameters and the optimizer's state", REST
    )
    tensor: int = field(
        1, "devices that share the heads and the MLP's width, and so the parameters too", REST
    )
    sequence: int = field(
        1, "devices that share the tokens of each sequence, and in attention its heads", REST
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
        """Devices that the sizes ask for, -1 aside."""
        return math.prod(size for size in vars(self).values() if size != -1)


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How text is written."""

    prompt: str | None = field(
        None, "text to continue; none takes the first line of the validation text"
    )
    max_new_tokens: int = field(300, "tokens to write", POSITIVE_INT)
    temperature: float = field(
        1.0, "divides the logits; below 1 is safer, above wilder, 0 is greedy", NOT_NEGATIVE
    )
    top_k: int | None = field(
        None, "choose among the k likeliest tokens only; none is all", POSITIVE_INT
    )
    top_p: float | None = field(
        None,
        "choose among the likeliest tokens that hold this much probability, in (0, 1]; none is all",
        (lambda x: 0 < x <= 1, "a number in (0, 1]"),
    )
    num_samples: int = field(1, "texts to write from one prompt", POSITIVE_INT)
    window: typing.Literal["exact", "refill"] = field(
        "exact",
        "past block_size: `exact` sees the last block_size tokens for every token; `refill` drops "
        "half the context whenever it is full: an approximation, and several times as fast",
    )

    def __post_init__(self):
        check_fields(self, "sample.")


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    run_dir: str = field(
        DEFAULT_RUN_DIR, "folder of the run, made if missing; gs://BUCKET/FOLDER is one too"
    )
    seed: int = field(
        0,
        "of initialisation, batches, dropout and samples",
        (lambda x: 0 <= x < 2**32, "a whole number in [0, 2**32)"),
    )
    init_from: str | None = field(
        None,
        "run or GPT-2 folder to start from, or a name on Hugging Face's hub "
        "(openai-community/gpt2): its parameters, model settings and tokenizer. model.dtype, remat "
        "and attention are this config's; model.dropout, embedding_dropout and residual_init_scale "
        "may differ, model.block_size be smaller; none starts from random parameters",
    )
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    sample: SampleConfig = dataclasses.field(default_factory=SampleConfig)

    def __post_init__(self):
        check_fields(self)
        if not self.run_dir:
            raise ConfigError("run_dir is empty; give a folder such as runs/nano")
        heads, tensor = self.model.kv_heads, self.mesh.tensor
        if tensor != -1 and heads % tensor:
            name = "n_head" if self.model.n_kv_head is None else "n_kv_head"
            ways = [str(n) for n in range(1, heads + 1) if heads % n == 0]
            raise ConfigError(
                f"mesh.tensor={tensor} must divide model.{name}={heads}; try mesh.tensor="
                f"{' or '.join(ways)}, or mesh.fsdp={tensor}"
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

    def _check_sequence(self) -> None:
        size, tokens = max(1, self.mesh.sequence), self.model.block_size
        tensor, heads = max(1, self.mesh.tensor), self.model.kv_heads
        way_out = f"try mesh.sequence={math.gcd(size, tokens, heads // tensor)}"
        if tokens % size:
            raise ConfigError(
                f"mesh.sequence={size} must divide model.block_size={tokens}; {way_out}"
            )
        if heads % (tensor * size):
            name = "n_head" if self.model.n_kv_head is None else "n_kv_head"
            both = f"mesh.tensor={tensor} x " if tensor > 1 else ""
            raise ConfigError(
                f"{both}mesh.sequence={size} must divide model.{name}={heads}, as attention shares "
                f"heads; {way_out}"
            )


def fix_schedule(config: Config) -> Config:
    """Returns the config with every length of its schedule said, none standing for train.steps.

    A run keeps these: were they to follow train.steps, more steps would change the past.
    """
    return dataclasses.replace(config, optim=config.optim.with_fixed_schedule(config.train.steps))


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns `config` with dotted settings replaced, and every rule checked.

    Two settings belong to a config's own corpus. `data.fallback_corpus` does not outlive a corpus
    asked for by name (what the user names is never swapped for another), and `sample.prompt` does
    not outlive a change of corpus.

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
    """Returns the Config of nested dicts; a setting left out keeps its default.

    Raises:
      ConfigError: a name is unknown, a value has another type or breaks a rule.
    """
    return from_nested_dict(values, Config)

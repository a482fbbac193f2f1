"""A run is a folder; a `Run` is that folder in memory: settings, tokenizer, model and parameters.

    config.json     the settings, the corpus really used, versions, a format number
    tokenizer.json  the vocabulary, whole: a run is read without a network
    metrics.jsonl   one row for each chunk of steps, with the evaluations
    summary.json    the exact evaluation at the end; there once the run is finished
    samples.txt     text written at the end
    loss.png, .svg  the losses over the steps
    tensorboard/    the same rows as TensorBoard events
    checkpoints/    see checkpoint.py

Everything that reads a run takes the folder and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import shutil
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax

from gpt_jax import checkpoint, hf, hf_tokenizer
from gpt_jax.config import FORMAT, Config, from_dict, to_dict
from gpt_jax.corpora import PreparedCorpus, find_difference, load_corpus
from gpt_jax.data import Mixture, Split, count_bytes, make_splits, split_text
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.evaluation import Evaluation, evaluate_split
from gpt_jax.files import write_atomically
from gpt_jax.metrics import read_rows
from gpt_jax.model import GPT, Params, unstack_blocks
from gpt_jax.plain_text import Corpus
from gpt_jax.step import state_shapes
from gpt_jax.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer
from gpt_jax.tokenizer import FILE as TOKENIZER_FILE

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
REPAIR = "; restore the file, or choose another --run-dir"


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained model with all that belongs to it.

    Attributes:
      run_dir: the folder.
      config: the settings; `config.model` builds the model.
      corpus: the record of the corpus it was trained on (name, sha256, characters, ...); {} for a
        GPT-2 folder.
      tokenizer: text to ids and back.
      model: the linen module.
      params: float32 tree; `model.apply({"params": params}, tokens_BT)` gives logits.
      step: optimizer steps behind the parameters.
      rows: of metrics.jsonl.
      summary: of the finished run, with its exact evaluation; empty before that.
    """

    run_dir: Path
    config: Config
    corpus: dict[str, Any]
    tokenizer: Tokenizer
    model: GPT
    params: Params
    step: int
    rows: list[dict[str, Any]]
    summary: dict[str, Any]

    @functools.cached_property
    def decode_params(self) -> Params:
        """The parameters with each block's apart, as decoding reads them."""
        return jax.jit(unstack_blocks)(self.params)


def create_folder(
    run_dir: Path,
    config: Config,
    corpus: Corpus | PreparedCorpus,
    tokenizer: Tokenizer,
    origin: dict[str, Any] | None = None,
) -> None:
    """Makes a run's folder, whole or not at all; origin is the record of what it starts from.

    Raises:
      UserError: it can't be written.
    """
    versions = {p: importlib.metadata.version(p) for p in ("jax", "jaxlib", "flax", "optax")}
    values = {
        "format": FORMAT,
        **{k: v for k, v in to_dict(config).items() if k != "run_dir"},
        "corpus": corpus.record(),
        "origin": origin,
        "versions": {"python": platform.python_version(), **versions},
    }
    temporary = run_dir.with_name(f".{run_dir.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        write_atomically(temporary / CONFIG_FILE, json.dumps(values, indent=2) + "\n")
        write_atomically(temporary / TOKENIZER_FILE, tokenizer.to_json())
        if os.path.isdir(run_dir):
            run_dir.rmdir()  # only ever an empty one: check_folder has seen to that
        temporary.rename(run_dir)
    except OSError as error:
        raise UserError(
            f"cannot make the run folder {run_dir}: {error.strerror}; choose another --run-dir"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def update_config(run_dir: Path, config: Config) -> None:
    """Changes what may change when a run goes on, in its config.json; see `start`."""
    values, now = _read_json(run_dir / CONFIG_FILE), to_dict(config)
    values["model"], values["train"] = now["model"], now["train"]
    if config.optim.schedule != "constant":
        values["optim"] = now["optim"]
    write_atomically(run_dir / CONFIG_FILE, json.dumps(values, indent=2) + "\n")


def is_run(run_dir: Path) -> bool:
    return os.path.isfile(run_dir / CONFIG_FILE)  # Path.is_file raises on too long a name


def read_config(run_dir: Path) -> tuple[Config, dict[str, Any]]:
    """Returns a run's settings and the record of its corpus; {} for a GPT-2 folder, which has none.

    Raises:
      UserError: the folder is no run, its config is damaged, or a newer program wrote it.
    """
    path = run_dir / CONFIG_FILE
    if not os.path.isfile(path):
        what = "does not exist"
        if os.path.lexists(run_dir):
            what = "has no config.json" if os.path.isdir(run_dir) else "is a file"
        raise UserError(f"{run_dir} is not a run: it {what}; train one with: python main.py train")
    values = _read_json(path)
    if "model_type" in values:  # transformers wrote it
        return Config(run_dir=str(run_dir), model=hf.load_config(run_dir)), {}
    written = values.pop("format", None)
    if not isinstance(written, int) or isinstance(written, bool) or written < 1:
        raise UserError(f"{path} is damaged: its format is {written!r}{REPAIR}")
    if written > FORMAT:
        raise UserError(
            f"{path} has format {written}, from a newer gpt_jax; this one reads up to {FORMAT}"
        )
    corpus = values.pop("corpus", None)
    for record in ("versions", "origin"):
        values.pop(record, None)
    if not isinstance(corpus, dict) or not isinstance(corpus.get("sha256"), str):
        raise UserError(f"{path} is damaged: it has no record of the corpus{REPAIR}")
    try:
        config = from_dict({**values, "run_dir": str(run_dir)})
    except ConfigError as error:
        raise UserError(f"{path} is damaged: {error}{REPAIR}") from error
    if not config.model.vocab_size:
        raise UserError(f"{path} is damaged: it has no model.vocab_size{REPAIR}")
    return config, corpus


def load_run(run_dir: str | os.PathLike[str]) -> Run:
    """Returns the run of a folder, with the parameters of its newest sound checkpoint.

    A GPT-2 folder is as good: a run of 0 steps without a corpus.

    Raises:
      UserError: the folder is no run, has no checkpoint yet, or is damaged.
    """
    run_dir = Path(os.path.expanduser(run_dir))
    config, corpus = read_config(run_dir)
    if not corpus:
        tokenizer = hf_tokenizer.load_tokenizer(run_dir, config.model.vocab_size)
        params = jax.device_put(hf.load(run_dir)[1], jax.devices()[0])
        return Run(run_dir, config, corpus, tokenizer, GPT(config.model), params, 0, [], {})
    tokenizer = load_tokenizer(run_dir)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{run_dir} is damaged: its tokenizer has {tokenizer.vocab_size} tokens, its config "
            f"{config.model.vocab_size}"
        )
    model = GPT(config.model)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        state_shapes(config.model, config.optim),
    )
    step, state, messages = checkpoint.restore(run_dir, target)
    for message in messages:
        print(f"note: {message}; using step {step}", file=sys.stderr)
    if state is None:
        raise UserError(f"{run_dir} has no checkpoint yet; train it on with the same command")
    summary = read_summary(run_dir)
    return Run(
        run_dir=run_dir,
        config=config,
        corpus=corpus,
        tokenizer=tokenizer,
        model=model,
        params=state.params,
        step=step,
        rows=read_rows(run_dir),
        summary=summary if summary.get("step") == step else {},
    )


def export(run: Run, folder: Path) -> None:
    """Writes a run's model and tokenizer as a GPT-2 folder that transformers loads.

    Raises:
      ConfigError: GPT-2 has no place for a setting of the model.
      UserError: the folder holds a model already or can't be written.
    """
    special = getattr(run.tokenizer, "special_tokens", {})
    hf.save(folder, run.config.model, run.params, end_token=special.get(END_OF_TEXT))
    hf_tokenizer.save_tokenizer(folder, run.tokenizer, run.config.model.block_size)


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Returns a finished run's summary; {} for a run that is not finished."""
    path = run_dir / SUMMARY_FILE
    if not path.exists():
        return {}
    values = _read_json(path)
    try:
        float(values["val"]["nats_per_token"]), int(values["step"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is damaged: it has no evaluation of a step{REPAIR}") from None
    return values


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}{REPAIR}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is damaged: it holds no settings{REPAIR}")
    return values


def load_splits(run: Run, corpus_name: str | None = None) -> dict[str, Split] | dict[str, Mixture]:
    """Returns the training and validation parts of the corpus that a run was trained on.

    Args:
      run: the run.
      corpus_name: where that corpus is now; None is where it was. For a GPT-2 folder, any corpus.

    Raises:
      UserError: it can't be had, or is not the same any more.
    """
    if not run.corpus and not corpus_name:
        raise UserError(
            f"{run.run_dir} is a GPT-2 folder and has no corpus of its own; name one with "
            "--data.corpus"
        )
    corpus = load_corpus(corpus_name or run.config.data.corpus, tokenizer=run.tokenizer)
    check_same_tokenizer(corpus, run.tokenizer, run.run_dir)
    if run.corpus:
        check_same_corpus(corpus, run.corpus, run.run_dir)
    return encode_corpus(corpus, run.tokenizer, run.config)


def encode_corpus(
    corpus: Corpus | PreparedCorpus, tokenizer: Tokenizer, config: Config
) -> dict[str, Split] | dict[str, Mixture]:
    """Returns the tokens of a corpus, "train" and "val".

    Raises:
      UserError: a part is too short for one sequence, or has characters without a token.
    """
    block_size = config.model.block_size
    if isinstance(corpus, Corpus):
        texts = split_text(corpus.text, config.data.train_fraction)
        tokens = {name: tokenizer.encode(text) for name, text in texts.items()}
        return make_splits(tokens, tokenizer.token_bytes, block_size)
    parts: dict[str, list[tuple[Fraction, Split]]] = {"train": [], "val": []}
    for share, prepared in corpus.parts:
        for name in parts:
            shards, n_bytes = prepared.shards[name], prepared.n_bytes[name]
            longest = max(map(len, shards))
            if longest < block_size + 1:
                raise UserError(
                    f"the corpus {prepared.folder} is too short: its longest shard for {name} has "
                    f"{longest:,} tokens, and model.block_size={block_size} needs "
                    f"{block_size + 1}; use a smaller block_size or another corpus"
                )
            if n_bytes is None and name == "val":
                n_bytes = count_bytes(shards, tokenizer.token_bytes)
            parts[name].append((share, Split(shards, n_bytes)))
    if len(corpus.parts) == 1:
        return {name: part[0][1] for name, part in parts.items()}
    return {name: Mixture(tuple(part)) for name, part in parts.items()}


def check_same_tokenizer(
    corpus: Corpus | PreparedCorpus, tokenizer: Tokenizer, source: Path | str
) -> None:
    """Raises UserError where a prepared corpus has ids of another tokenizer than a model."""
    if isinstance(corpus, PreparedCorpus) and (
        difference := find_difference(tokenizer, corpus.tokenizer)
    ):
        raise UserError(
            f"{source} and {corpus.source} have different tokenizers: {difference}; prepare the "
            "corpus with the model's, or name a text"
        )


def check_same_corpus(
    corpus: Corpus | PreparedCorpus, record: dict[str, Any], run_dir: Path
) -> None:
    """Raises UserError where a corpus is not the one that a run's record names."""
    if corpus.sha256 != record["sha256"]:
        kind = "text" if isinstance(corpus, Corpus) else "tokens"
        raise UserError(
            f"{run_dir} was trained on {record.get('name')} with sha256 {record['sha256'][:12]}, "
            f"and {corpus.source} now has {corpus.sha256[:12]}: not the same {kind}; name the old "
            "one with --data.corpus PATH, or choose another --run-dir"
        )


def evaluate(
    run: Run,
    *,
    split: str = "val",
    stride: int | None = None,
    corpus_name: str | None = None,
    max_tokens: int | None = None,
) -> Evaluation:
    """Evaluates a run exactly: every token of the split but the first, predicted once.

    "First" is that of each shard. Of a mixture it evaluates each corpus and weighs them.

    Args:
      run: the run.
      split: "val" or "train".
      stride: tokens from one window's start to the next; None is block_size. Smaller gives each
        prediction more context, at more cost.
      corpus_name: where the run's corpus is now; None is where it was.
      max_tokens: the most tokens to predict, of each corpus; None is all.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens={max_tokens} must be at least 1")
    if split not in ("train", "val"):
        raise ConfigError(f"split={split!r} must be val or train")
    part = load_splits(run, corpus_name)[split]
    return evaluate_split(
        run.config.model,
        run.params,
        part,
        run.tokenizer.token_bytes,
        stride=stride,
        train=run.config.train,
        max_tokens=max_tokens,
    )

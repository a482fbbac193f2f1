"""A run is a folder; a `Run` is that folder in memory: settings, tokenizer, model and parameters.

`run_folder.py` says what is in it. Everything that reads a run takes the folder and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax

from gpt_jax import checkpoint, hf, hf_tokenizer
from gpt_jax.config import Config
from gpt_jax.corpora import PreparedCorpus, find_difference, load_corpus
from gpt_jax.data import Mixture, Split, count_bytes, make_splits, split_text
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.evaluation import Evaluation, evaluate_split
from gpt_jax.files import to_folder
from gpt_jax.metrics import read_rows
from gpt_jax.model import GPT, Params, unstack_blocks
from gpt_jax.plain_text import Corpus
from gpt_jax.run_folder import read_config, read_summary
from gpt_jax.step import state_shapes
from gpt_jax.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer


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


def load_run(run_dir: str | os.PathLike[str], which: str | int = "newest") -> Run:
    """Returns the run of a folder, with the parameters of one of its checkpoints.

    A GPT-2 folder is as good: a run of 0 steps without a corpus.

    Args:
      run_dir: the folder.
      which: "newest", the newest sound one; "best", the one with the lowest validation loss; or a
        step.

    Raises:
      UserError: the folder is no run, has no such checkpoint, or is damaged.
    """
    run_dir = to_folder(run_dir)
    config, corpus = read_config(run_dir)
    if not corpus:
        if which != "newest":
            raise UserError(f"{run_dir} is a GPT-2 folder, without checkpoints; leave {which} out")
        tokenizer = hf_tokenizer.load_tokenizer(run_dir, config.model.vocab_size)
        params = jax.device_put(hf.load(run_dir)[1], jax.local_devices()[0])
        return Run(run_dir, config, corpus, tokenizer, GPT(config.model), params, 0, [], {})
    tokenizer = load_tokenizer(run_dir)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{run_dir} is damaged: its tokenizer has {tokenizer.vocab_size} tokens, its config "
            f"{config.model.vocab_size}"
        )
    model = GPT(config.model)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        state_shapes(config.model, config.optim),
    )
    among = _find_checkpoints(run_dir, which)
    step, state, messages = checkpoint.restore(run_dir, target, among)
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


def _find_checkpoints(run_dir: Path, which: str | int) -> list[int]:
    """Returns the steps that `which` may mean, ascending; see `load_run`."""
    there = checkpoint.steps(run_dir)
    if which == "newest":
        return there
    step = checkpoint.best_step(run_dir) if which == "best" else int(which)
    if step not in there:
        what = f"step {which}" if step is not None else "an evaluated step"
        raise UserError(
            f"{run_dir} has no checkpoint of {what}; it has those of "
            f"{', '.join(map(str, there)) or 'none'} (see --train.keep-interval)"
        )
    return [step]


def export(run: Run, folder: Path) -> None:
    """Writes a run's model and tokenizer as a GPT-2 folder that transformers loads.

    Raises:
      ConfigError: GPT-2 has no place for a setting of the model.
      UserError: the folder holds a model already or can't be written.
    """
    special = getattr(run.tokenizer, "special_tokens", {})
    hf.save(folder, run.config.model, run.params, end_token=special.get(END_OF_TEXT))
    hf_tokenizer.save_tokenizer(folder, run.tokenizer, run.config.model.block_size)


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

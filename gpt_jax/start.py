"""What a run starts from: every setting, text and folder read and checked before computing.

Nothing here writes, and nothing here touches a device.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt_jax import checkpoint
from gpt_jax.config import Config, DataConfig, override, pin_schedule
from gpt_jax.corpora import PreparedCorpus, absolute_name, load_corpus, mixture_entries
from gpt_jax.data import Mixture, Split, split_text
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.files import entries, is_remote, to_absolute, to_folder
from gpt_jax.hf import find
from gpt_jax.model import Params
from gpt_jax.plain_text import Corpus
from gpt_jax.run import Run, check_same_corpus, check_same_tokenizer, encode_corpus, load_run
from gpt_jax.run_folder import is_run, read_config, read_origin
from gpt_jax.settings import get, settings
from gpt_jax.text import check_top_k
from gpt_jax.tokenizer import FILE as TOKENIZER_FILE
from gpt_jax.tokenizer import BpeTokenizer, Tokenizer, load_tokenizer, make_tokenizer

# Settings of a model that any parameters can be computed with.
HOW_COMPUTED = ("model.dtype", "model.remat", "model.attention")


@dataclasses.dataclass(frozen=True)
class Start:
    """All that a run starts from, read and checked; making it writes nothing.

    Attributes:
      config: as it will be trained: with the corpus really used, the vocabulary's size, a prompt.
      corpus: the text, or the prepared folders, and its record.
      tokenizer: of the corpus.
      splits: "train" and "val".
      resumes: the run's folder is there already.
      params: what a run without a checkpoint starts from, NumPy's; None is random parameters.
      origin: the record of where `params` are from, for config.json.
    """

    config: Config
    corpus: Corpus | PreparedCorpus
    tokenizer: Tokenizer
    splits: dict[str, Split] | dict[str, Mixture]
    resumes: bool
    params: Params | None = None
    origin: dict[str, Any] | None = None


def make_start(config: Config, progress: Callable[[int, int | None], None] | None = None) -> Start:
    """Reads the corpus and checks all that can be checked before computing.

    Args:
      config: the settings asked for.
      progress: of a download, see `corpora.load_corpus`.

    Raises:
      UserError: what is wrong, and a way out.
    """
    run_dir = to_folder(config.run_dir)
    resumes = is_run(run_dir)
    params = origin = None
    if resumes:
        saved, record = read_config(run_dir)
        if not record:
            raise UserError(
                f"run_dir {run_dir} is a GPT-2 folder; train on from it in a folder of its own: "
                f"--init-from {run_dir} --run-dir {run_dir}-trained"
            )
        done = max(checkpoint.steps(run_dir), default=0)
        config = merge_with_saved(config, saved, record, done)
        tokenizer = load_tokenizer(run_dir)
        corpus = load_corpus(config.data.corpus, progress=progress, tokenizer=tokenizer)
        check_same_corpus(corpus, record, run_dir)
        if tokenizer.vocab_size != config.model.vocab_size:
            raise UserError(f"{run_dir} is damaged: its tokenizer does not fit its config")
        if config.init_from is not None and not done:  # killed before its first checkpoint
            params, origin = load_origin(config)
    else:
        check_folder(run_dir)
        data = config.data
        if config.init_from is None:
            corpus = load_corpus(data.corpus, data.fallback_corpus, progress)
            tokenizer = choose_tokenizer(data, corpus)
        else:
            source = load_run(find(config.init_from))
            params, origin = take_params(source, config)
            tokenizer = source.tokenizer
            corpus = load_corpus(data.corpus, data.fallback_corpus, progress, tokenizer)
            check_same_tokenizer(corpus, tokenizer, config.init_from)
            if isinstance(corpus, Corpus):
                learned = isinstance(tokenizer, BpeTokenizer)
                data = dataclasses.replace(
                    data,
                    tokenizer="bpe" if learned else "char",
                    # 257 is the setting's least; a folder may have the bare 256 bytes
                    vocab_size=max(tokenizer.vocab_size, 257) if learned else None,
                )
        config = dataclasses.replace(
            pin_schedule(config),
            data=dataclasses.replace(data, corpus=corpus.name),
            model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size),
        )
    if config.data.order == "epochs" and mixture_entries(config.data.corpus):
        raise ConfigError(
            "data.order=epochs is for one corpus, and a mixture is drawn at random; use "
            "data.order=random"
        )
    splits = encode_corpus(corpus, tokenizer, config)
    prompt = config.sample.prompt
    if prompt is None:
        prompt = _first_text(splits["val"], tokenizer).strip().partition("\n")[0][:60]
    tokenizer.encode(prompt)
    check_top_k(config.sample, tokenizer)
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, prompt=prompt))
    return Start(config, corpus, tokenizer, splits, resumes, params, origin)


def start_from(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns the settings for a run that starts from `config.init_from`.

    Args:
      config: with init_from, a path or a name on the hub. Of its model settings those that say how
        it is computed (`HOW_COMPUTED`) are used; the others are the folder's, or those of the run
        where `config.run_dir` is one already and was begun so.
      values: dotted settings to replace after that.

    Raises:
      ConfigError: a value breaks a rule, or chooses a tokenizer: the folder has one.
      UserError: the folder can't be read.
    """
    for name in ("data.tokenizer", "data.vocab_size"):
        if name in values:
            raise ConfigError(
                f"{name}={values[name]} can't be chosen: init_from={config.init_from} brings its "
                "tokenizer; leave it out"
            )
    run_dir = to_folder(config.run_dir)
    theirs = read_config(run_dir)[0] if is_run(run_dir) else config
    if theirs.init_from == config.init_from and is_run(run_dir):
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(
                config.data, tokenizer=theirs.data.tokenizer, vocab_size=theirs.data.vocab_size
            ),
        )
    else:
        theirs, _ = read_config(find(config.init_from or ""))
    check_same_model(config.init_from, theirs, values)
    how = {name: get(config, name) for name in HOW_COMPUTED}
    return override(dataclasses.replace(config, model=theirs.model), {**how, **values})


def check_same_model(init_from: str | None, theirs: Config, values: Mapping[str, Any]) -> None:
    """Raises ConfigError where dotted settings of the model contradict those to start from."""
    free = {f"model.{name}" for name in ("dropout", "embedding_dropout", "residual_init_scale")}
    free |= set(HOW_COMPUTED)
    if values.get("model.block_size", math.inf) < theirs.model.block_size:
        free.add("model.block_size")
    differences = [
        f"{name} is {get(theirs, name)} there and {value} here"
        for name, value in values.items()
        if name not in free and get(theirs, name) != value
    ]
    if differences:
        raise ConfigError(
            f"init_from={init_from} is another model: {'; '.join(differences)}. Leave these "
            "settings out; only dropout, embedding_dropout, residual_init_scale, dtype, remat and "
            "attention may differ, and block_size be smaller"
        )


def take_params(source: Run, config: Config) -> tuple[Params, dict[str, Any]]:
    """Returns the parameters to start a run of `config` from, and the record of their source.

    Positions beyond the run's block_size are cut.

    Raises:
      ConfigError: a setting of the model is not that of the source; the message names each.
    """
    theirs, ours = source.config.model, config.model
    values = {f"model.{name}": value for name, value in dataclasses.asdict(ours).items()}
    del values["model.vocab_size"]  # comes with the tokenizer
    check_same_model(config.init_from, source.config, values)
    params = jax.tree.map(np.asarray, source.params)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).data)
    origin = {
        "source": config.init_from,
        "path": str(to_absolute(source.run_dir)),
        "step": source.step,
        "block_size": theirs.block_size,
        "sha256": digest.hexdigest(),
    }
    if "positions" in params:
        params = {**params, "positions": params["positions"][: ours.block_size]}
    return params, origin


def load_origin(config: Config) -> tuple[Params, dict[str, Any]]:
    """Returns what the run of `config` started from, as `take_params` does.

    Raises:
      UserError: it can't be had any more, or is not the same.
    """
    recorded = read_origin(to_folder(config.run_dir))
    params, origin = take_params(load_run(find(config.init_from or "")), config)
    if origin["sha256"] != recorded.get("sha256"):
        raise UserError(
            f"init_from={config.init_from} has other parameters than when {config.run_dir} began; "
            "restore them, or choose another --run-dir"
        )
    return params, origin


def choose_tokenizer(data: DataConfig, corpus: Corpus | PreparedCorpus) -> Tokenizer:
    """Returns the tokenizer that the settings ask for, or that a prepared corpus has.

    Raises:
      ConfigError: they ask for another than that.
    """
    if isinstance(corpus, Corpus):
        return make_tokenizer(data, split_text(corpus.text, data.train_fraction))
    if data.tokenizer != DataConfig().tokenizer:
        raise ConfigError(
            f"data.tokenizer={data.tokenizer} is for a text, and {corpus.source} is prepared with "
            "a tokenizer of its own; leave data.tokenizer out"
        )
    return corpus.tokenizer


def _first_text(split: Split | Mixture, tokenizer: Tokenizer) -> str:
    """Returns the first 200 characters of a split's first corpus, without special tokens."""
    _, first = split.parts[0]
    ids = np.array(first.shards[0][:800])  # a character takes 4 tokens at most
    return tokenizer.make_decoder()(ids[tokenizer.token_bytes[ids] > 0])[:200]


def check_folder(run_dir: Path) -> None:
    """Raises UserError where a folder that is no run can't become one."""
    if not run_dir.name:
        raise UserError(f"run_dir {run_dir} has no name of its own; choose another --run-dir")
    remote = is_remote(run_dir)
    if not remote and os.path.exists(run_dir) and not run_dir.is_dir():
        raise UserError(f"run_dir {run_dir} is a file; choose another --run-dir")
    try:
        there = entries(run_dir) if remote or os.path.isdir(run_dir) else []
    except OSError as error:
        raise UserError(f"run_dir {run_dir} can't be read: {error.strerror}") from error
    if remote:  # where a kill may have come before config.json
        there = [path for path in there if path.name != TOKENIZER_FILE]
    if there:
        raise UserError(
            f"run_dir {run_dir} holds other files ({there[0].name}) and no config.json; choose "
            "another --run-dir"
        )


# What says how a schedule ends.
ENDS = {"optim.schedule_steps", "optim.decay_steps", "optim.floor"}
# What suits the machine that a run goes on on. train.micro_batch is not among them: each part has
# dropout masks of its own.
MACHINES = ("model.attention", "model.remat", "train.loss_chunk", "train.deterministic")
# What says when training ends and what is kept of it; train.steps only grows.
ENDINGS = (
    "train.steps",
    "train.max_minutes",
    "train.keep_checkpoints",
    "train.keep_interval",
    "train.keep_best",
)


def merge_with_saved(config: Config, saved: Config, record: dict[str, Any], done: int) -> Config:
    """Returns the settings to train a run on with.

    `train.steps` may differ, and only grow; when to stop and what to keep (`ENDINGS`); how the
    schedule ends, where none of the `done` steps has felt it; and what another machine may need,
    which changes rounding only (`MACHINES`).

    Raises:
      ConfigError: another setting differs; the message names each.
    """
    corpus = config.data.corpus
    asked_for, used = record.get("requested"), saved.data.corpus
    if corpus == asked_for and config.data.fallback_corpus is not None:
        corpus = used  # a run that began on a fallback corpus stays on it
    path = absolute_name(corpus)
    if corpus != used:
        corpus = path
    free = {"run_dir", "model.vocab_size", *ENDINGS, *MACHINES}
    free |= {"data.corpus", "data.fallback_corpus", "data.resident"}
    free |= {"mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.sequence"}
    config = pin_schedule(config)
    ends_may_move = config.optim.schedule == saved.optim.schedule and done <= min(
        config.optim.constant_steps, saved.optim.constant_steps
    )
    if ends_may_move:
        free |= ENDS
    if config.sample.prompt is None:
        config = override(config, {"sample.prompt": saved.sample.prompt})
    differences = [
        f"{name} is {get(saved, name)} there and {get(config, name)} here"
        for name, _, _ in settings(Config)
        if name not in free and get(saved, name) != get(config, name)
    ]
    # Another path may hold the same corpus: `check_same_corpus` compares sums.
    if corpus != used and not (os.path.isabs(corpus) or mixture_entries(corpus)):
        differences.append(f"data.corpus is {used} there and {corpus} here")
    if config.train.steps < saved.train.steps:
        differences.append(
            f"train.steps is {saved.train.steps} there and {config.train.steps} here (it can grow)"
        )
    way_on = ""
    end = saved.optim.schedule_steps
    if not ends_may_move and end not in (None, config.optim.schedule_steps):
        way_on = (
            f"; --optim.schedule-steps {end} keeps the learning rate of the {done} steps taken, "
            "and later steps stay at its floor"
        )
    if differences:
        raise ConfigError(
            f"{config.run_dir} is a run with other settings: {'; '.join(differences)}. Choose "
            f"another --run-dir, or its own settings{way_on}"
        )
    kept = dataclasses.replace(
        saved,
        run_dir=config.run_dir,
        data=dataclasses.replace(saved.data, corpus=corpus),
        optim=config.optim,
        mesh=config.mesh,
    )
    now = {name: get(config, name) for name in (*ENDINGS, *MACHINES, "data.resident")}
    return override(kept, now)

"""What a run starts from: every setting, text and folder read and checked before computing.

Nothing here writes, and nothing here touches a device.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt_jax import checkpoint
from gpt_jax.config import Config, ConfigError, get, override, pin_schedule, settings
from gpt_jax.corpora import Corpus, load_corpus
from gpt_jax.data import Split, make_splits, split_text
from gpt_jax.errors import UserError
from gpt_jax.run import check_same_corpus, is_run, read_config
from gpt_jax.text import check_top_k
from gpt_jax.tokenizer import Tokenizer, load_tokenizer, make_tokenizer


@dataclasses.dataclass(frozen=True)
class Start:
    """All that a run starts from, read and checked; making it writes nothing.

    Attributes:
      config: as it will be trained: with the corpus really used, the vocabulary's size, a prompt.
      corpus: the text and its record.
      tokenizer: of the text.
      splits: "train" and "val".
      resumes: the run's folder is there already.
    """

    config: Config
    corpus: Corpus
    tokenizer: Tokenizer
    splits: dict[str, Split]
    resumes: bool


def make_start(config: Config, progress: Callable[[int, int | None], None] | None = None) -> Start:
    """Reads the corpus and checks all that can be checked before computing.

    Args:
      config: the settings asked for.
      progress: of a download, see `corpora.load_corpus`.

    Raises:
      UserError: what is wrong, and a way out.
    """
    run_dir = Path(config.run_dir)
    resumes = is_run(run_dir)
    if resumes:
        saved, record = read_config(run_dir)
        done = max(checkpoint.steps(run_dir), default=0)
        config = merge_with_saved(config, saved, record, done)
        tokenizer = load_tokenizer(run_dir)
        corpus = load_corpus(config.data.corpus, progress=progress)
        check_same_corpus(corpus, record, run_dir)
        texts = split_text(corpus.text, config.data.train_fraction)
        if tokenizer.vocab_size != config.model.vocab_size:
            raise UserError(f"{run_dir} is damaged: its tokenizer does not fit its config")
    else:
        check_folder(run_dir)
        data = config.data
        corpus = load_corpus(data.corpus, data.fallback_corpus, progress)
        texts = split_text(corpus.text, data.train_fraction)
        tokenizer = make_tokenizer(data, texts)
        config = dataclasses.replace(
            pin_schedule(config),
            data=dataclasses.replace(data, corpus=corpus.name),
            model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size),
        )
    tokens = {name: tokenizer.encode(text) for name, text in texts.items()}
    splits = make_splits(tokens, tokenizer.token_bytes, config.model.block_size)
    prompt = config.sample.prompt
    if prompt is None:
        prompt = texts["val"][:200].strip().partition("\n")[0][:60]
    tokenizer.encode(prompt)
    check_top_k(config.sample, tokenizer)
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, prompt=prompt))
    return Start(config, corpus, tokenizer, splits, resumes)


def check_folder(run_dir: Path) -> None:
    """Raises UserError where a folder that is no run can't become one."""
    if not run_dir.name:
        raise UserError(f"run_dir {run_dir} has no name of its own; choose another --run-dir")
    if os.path.exists(run_dir) and not run_dir.is_dir():
        raise UserError(f"run_dir {run_dir} is a file; choose another --run-dir")
    try:
        entries = list(run_dir.iterdir()) if os.path.isdir(run_dir) else []
    except OSError as error:
        raise UserError(f"run_dir {run_dir} can't be read: {error.strerror}") from error
    if entries:
        raise UserError(
            f"run_dir {run_dir} holds other files ({entries[0].name}) and no config.json; choose "
            "another --run-dir"
        )


# What says how a schedule ends.
ENDS = {"optim.schedule_steps", "optim.decay_steps", "optim.floor"}


def merge_with_saved(config: Config, saved: Config, record: dict[str, Any], done: int) -> Config:
    """Returns the settings to train a run on with.

    Only `train.steps` may differ, and only grow; and how the schedule ends, where none of the
    `done` steps has felt it.

    Raises:
      ConfigError: another setting differs; the message names each.
    """
    corpus = config.data.corpus
    asked_for, used = record.get("requested"), saved.data.corpus
    if corpus == asked_for and config.data.fallback_corpus is not None:
        corpus = used  # a run that began on a fallback corpus stays on it
    path = os.path.abspath(os.path.expanduser(corpus))
    if corpus != used and os.path.exists(path):
        corpus = path
    free = {"run_dir", "train.steps", "model.vocab_size", "data.corpus", "data.fallback_corpus"}
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
    # Another path may hold the same text: `check_same_corpus` compares sums.
    if corpus not in (used, path):
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
    return dataclasses.replace(
        saved,
        run_dir=config.run_dir,
        data=dataclasses.replace(saved.data, corpus=corpus),
        optim=config.optim,
        train=dataclasses.replace(saved.train, steps=config.train.steps),
    )

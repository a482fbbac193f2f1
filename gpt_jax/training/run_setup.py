"""What a run starts from: every setting, text and folder read and checked before computing.

A run is new, resumed, a branch, or starts from other parameters: one function each. Nothing here
writes, and nothing here touches a device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt_jax import numerics
from gpt_jax.byte_pairs import Listener
from gpt_jax.config import Config, DataConfig, fix_schedule
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.inference.generation import check_top_k
from gpt_jax.input_pipeline.corpus import (
    check_same_corpus,
    check_same_tokenizer,
    load_corpus,
    note_on_fallback,
    parse_mixture,
)
from gpt_jax.input_pipeline.dataset import Corpus, Dataset
from gpt_jax.input_pipeline.loss_mask import plain_ids
from gpt_jax.integer_tokenizer import IntegerTokenizer
from gpt_jax.model import Params
from gpt_jax.model.attention import choose_attention
from gpt_jax.model.dtype import resolve_dtype
from gpt_jax.parallel.backend import target_backend
from gpt_jax.parallel.mesh import micro_batches, with_micro_batch
from gpt_jax.run import checkpoints
from gpt_jax.run.folder import (
    check_folder,
    is_run,
    read_config,
    read_init_from,
    read_tokenizer,
    run_record,
)
from gpt_jax.storage import to_folder
from gpt_jax.terminal import shell_command
from gpt_jax.tokenizer import BpeTokenizer, Tokenizer
from gpt_jax.training.branch_start import BranchStart, make_branch_start, on_this_machine
from gpt_jax.training.branches import branch_record, check_step, corpus_of, read_parent
from gpt_jax.training.init_from import initial_params, load_source, reload_initial_params
from gpt_jax.training.memory import check_memory
from gpt_jax.training.resume import changed_measuring, machine_settings, resume_config

PROMPT_INTEGERS = 8  # of a sequence of integers, as a prompt
Progress = Callable[[int, int | None], None]  # of a download, see `corpus.load_corpus`


@dataclasses.dataclass(frozen=True)
class RunSetup:
    """All that a run starts from, read and checked.

    Attributes:
      config: as it will be trained: with the corpus really used, the vocabulary's size, a prompt.
      corpus: the text, or the prepared folders, and its record.
      tokenizer: of the corpus.
      splits: "train" and "val".
      resumes: the run's folder exists already.
      params: the initial parameters of a run without a checkpoint, NumPy's; None for random ones.
      origin: the record of where `params` are from, for config.json.
      changed: see `resume.changed_measuring`.
      branch: where a branch without a checkpoint of its own starts; else None.
      notes: a line for each setting that was "auto".
      micro_batch_is_auto: train.micro_batch is still to be chosen, see `micro_batch.py`; in a
        resumed run only where what it recorded no longer fits.
    """

    config: Config
    corpus: Corpus
    tokenizer: Tokenizer
    splits: dict[str, Dataset]
    resumes: bool
    params: Params | None = None
    origin: dict[str, Any] | None = None
    changed: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    branch: BranchStart | None = None
    notes: tuple[str, ...] = ()
    micro_batch_is_auto: bool = False


def prepare_run(
    config: Config, progress: Progress | None = None, listener: Listener | None = None
) -> RunSetup:
    """Reads the corpus and checks all that can be checked before computing.

    Args:
      config: the settings asked for.
      progress: of a download.
      listener: is told how far the learning of byte pairs is.

    Raises:
      UserError: what is wrong, and what to do about it.
    """
    if is_run(to_folder(config.run_dir)):
        return prepare_resumed(config, progress)
    if config.branch_from is not None:
        return prepare_branch(config, progress)
    if config.init_from is not None:
        return prepare_from_params(config, progress)
    return prepare_new(config, progress, listener)


def prepare_new(config: Config, progress: Progress | None, listener: Listener | None) -> RunSetup:
    """Returns the setup of a run that starts from random parameters."""
    check_folder(to_folder(config.run_dir))
    data = config.data
    corpus = load_corpus(data.corpus, data.fallback_corpus, progress)
    tokenizer = corpus.choose_tokenizer(data, listener)
    config, notes = _first_config(config, data, corpus, tokenizer)
    return _complete(config, corpus, tokenizer, notes=notes)


def prepare_from_params(config: Config, progress: Progress | None) -> RunSetup:
    """Returns the setup of a run that starts from the parameters that `config.init_from` names."""
    check_folder(to_folder(config.run_dir))
    data = config.data
    source = load_source(config)
    params, origin = initial_params(source, config)
    tokenizer = source.tokenizer
    corpus = load_corpus(data.corpus, data.fallback_corpus, progress, tokenizer)
    check_same_tokenizer(corpus, tokenizer, config.init_from or "")
    if corpus.tokenizer is None and isinstance(tokenizer, IntegerTokenizer):
        raise UserError(
            f"{config.init_from} was trained on sequences of integers, and {corpus.source} is a "
            "text; write sequences of its vocabulary with gpt_jax.write_sequences"
        )
    if corpus.tokenizer is None:
        learned = isinstance(tokenizer, BpeTokenizer)
        data = dataclasses.replace(
            data,
            tokenizer="bpe" if learned else "char",
            # 257 is the setting's least; a folder may have the bare 256 bytes
            vocab_size=max(tokenizer.vocab_size, 257) if learned else None,
        )
    config, notes = _first_config(config, data, corpus, tokenizer)
    return _complete(config, corpus, tokenizer, notes=notes, params=params, origin=origin)


def prepare_branch(config: Config, progress: Progress | None) -> RunSetup:
    """Returns the setup of a run that continues another from one of its steps."""
    check_folder(to_folder(config.run_dir))
    check_step(config.branch_from or "", config.at_step or 0)
    parent = _prepare_parent(config, progress)
    corpus = parent.corpus
    if config.data.corpus != parent.config.data.corpus:
        corpus = load_corpus(config.data.corpus, progress=progress, tokenizer=parent.tokenizer)
        check_same_tokenizer(corpus, parent.tokenizer, config.branch_from or "")
    own, notes = _first_config(config, config.data, corpus, parent.tokenizer)
    start = make_branch_start(parent.config, parent.splits, own)
    origin = branch_record(parent.config, own)
    setup = _complete(
        own, corpus, parent.tokenizer, notes=notes, origin=origin, splits=_shared(own, parent)
    )
    return dataclasses.replace(setup, branch=start)


def _prepare_parent(config: Config, progress: Progress | None) -> RunSetup:
    """Returns the setup of the run that a branch continues, as it is recomputed here."""
    parent = on_this_machine(read_parent(config.branch_from or ""), config)
    record = read_config(parent.run_dir)[1]
    tokenizer = read_tokenizer(parent.run_dir, parent.model.vocab_size)
    corpus = load_corpus(config.data.corpus, progress=progress, tokenizer=tokenizer)
    is_same = corpus.sha256 == record["sha256"]  # it may lie elsewhere now
    return prepare_resumed(corpus_of(config, parent, is_same), progress)


def _shared(config: Config, other: RunSetup) -> dict[str, Dataset] | None:
    """Returns the datasets of another run where those of `config` are the same."""
    there = other.config
    same = config.data == there.data and config.model.block_size == there.model.block_size
    return other.splits if same else None


def prepare_resumed(config: Config, progress: Progress | None) -> RunSetup:
    """Returns the setup of a run whose folder exists, checked against what is in it."""
    run_dir = to_folder(config.run_dir)
    saved, record = read_config(run_dir)
    if not record:
        raise UserError(
            f"run_dir {run_dir} is a GPT-2 folder; fine-tune it in another folder: "
            + shell_command("--init-from", run_dir, "--run-dir", f"{run_dir}-trained")
        )
    numerics.check_kept(run_record(run_dir).numerics, str(run_dir))
    done = max(checkpoints.steps(run_dir), default=saved.at_step or 0)
    asked_for, micro_batch = config.data.corpus, config.train.micro_batch
    config = resume_config(config, saved, record, done)
    tokenizer = read_tokenizer(run_dir, config.model.vocab_size)
    corpus = load_corpus(config.data.corpus, progress=progress, tokenizer=tokenizer)
    check_same_corpus(corpus, record, run_dir)
    notes = (*corpus.notes, *note_on_fallback(asked_for, record))
    corpus = dataclasses.replace(corpus, notes=notes)
    params = origin = None
    if config.init_from is not None and not done:  # killed before its first checkpoint
        params, origin = reload_initial_params(config)
    start = None
    if config.branch_from is not None and not checkpoints.steps(run_dir):
        start = _reload_branch_start(config, progress)
    setup = _complete(config, corpus, tokenizer, resumes=True, params=params, origin=origin)
    is_auto = micro_batch == "auto" and "train.micro_batch" in machine_settings(saved.train)
    changed = changed_measuring(saved, setup.config)
    return dataclasses.replace(setup, changed=changed, branch=start, micro_batch_is_auto=is_auto)


def _reload_branch_start(config: Config, progress: Progress | None) -> BranchStart:
    """Returns where a branch starts that was killed before its first checkpoint.

    Raises:
      UserError: its parent is not available any more, or is another run.
    """
    begun = read_init_from(config.run_dir).get("lineage") or [{}]
    try:
        read_parent(config.branch_from or "")
        same = run_record(to_folder(config.branch_from or "")).id == begun[-1].get("id")
        if same:
            parent = _prepare_parent(config, progress)
            return make_branch_start(parent.config, parent.splits, config)
        why = "it is another run now"
    except UserError as error:
        why = str(error)
    raise UserError(
        f"{config.run_dir} has no checkpoint yet, and branch_from={config.branch_from} can't be "
        f"continued: {why}; restore it, or choose another --run-dir"
    )


def prepare_beside(
    config: Config, other: RunSetup | None, progress: Progress | None = None
) -> RunSetup:
    """Returns `prepare_run`'s setup; a new run takes the corpus and tokenizer of another.

    Args:
      config: the settings asked for.
      other: of a run that asked for the same corpus and tokenizer; None reads them.
      progress: of a download.

    Raises:
      UserError: as `prepare_run`.
    """
    starts_elsewhere = config.init_from is not None or config.branch_from is not None
    if other is None or starts_elsewhere or is_run(to_folder(config.run_dir)):
        return prepare_run(config, progress)
    check_folder(to_folder(config.run_dir))
    own, notes = _first_config(config, config.data, other.corpus, other.tokenizer)
    splits = _shared(own, other)
    return _complete(own, other.corpus, other.tokenizer, notes=notes, splits=splits)


def check_machine(config: Config, *, resumes: bool = False) -> None:
    """Raises UserError where this machine can't train as the settings say, whatever is "auto"."""
    config, _ = resolve_dtype(config, target_backend())
    if config.train.micro_batch == "auto":
        config = with_micro_batch(config, micro_batches(config, len(jax.devices()))[-1])
    name, reason = choose_attention(config.model, target_backend())
    asked = config.model.attention
    if asked not in ("auto", name):
        raise ConfigError(f"model.attention={asked} can't be: {reason}; set model.attention=auto")
    check_memory(config, resumes=resumes)


def _first_config(
    config: Config, data: DataConfig, corpus: Corpus, tokenizer: Tokenizer
) -> tuple[Config, tuple[str, ...]]:
    """Returns the settings that a run keeps, with what was found: corpus, vocabulary, dtype.

    And a line for each setting that was "auto".
    """
    config, notes = resolve_dtype(config, target_backend())
    config = dataclasses.replace(
        fix_schedule(config),
        data=dataclasses.replace(data, corpus=corpus.name),
        model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size),
    )
    return config, notes


def _complete(
    config: Config,
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    resumes: bool = False,
    notes: tuple[str, ...] = (),
    params: Params | None = None,
    origin: dict[str, Any] | None = None,
    splits: dict[str, Dataset] | None = None,
) -> RunSetup:
    """Tokenizes the corpus, unless given, finds a prompt, and checks what depends on both."""
    if config.data.order == "epochs" and parse_mixture(config.data.corpus):
        raise ConfigError(
            "data.order=epochs is for one corpus, and a mixture is drawn at random; use "
            "data.order=random"
        )
    splits = corpus.make_datasets(tokenizer, config) if splits is None else splits
    prompt = config.sample.prompt
    if prompt is None:
        prompt = _first_text(splits["val"], tokenizer).strip().partition("\n")[0]
        prompt = prompt if isinstance(tokenizer, IntegerTokenizer) else prompt[:60]
    tokenizer.encode(prompt)
    check_top_k(config.sample, tokenizer)
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, prompt=prompt))
    is_auto = config.train.micro_batch == "auto"
    return RunSetup(
        config, corpus, tokenizer, splits, resumes, params, origin,
        notes=notes, micro_batch_is_auto=is_auto,
    )  # fmt: skip


def _first_text(dataset: Dataset, tokenizer: Tokenizer) -> str:
    """Returns the first 200 characters of a dataset, without special tokens; of integers, a few."""
    shard = plain_ids(dataset.components[0].shards[0])
    if isinstance(tokenizer, IntegerTokenizer):
        return tokenizer.decode(shard[:PROMPT_INTEGERS])
    ids = np.array(shard[:800])  # a character takes 4 tokens at most
    return tokenizer.make_decoder()(ids[tokenizer.token_bytes[ids] > 0])[:200]

"""A short text at each evaluation, written in the background, into samples.jsonl.

Training never waits for one: the parameters are copied, and a thread compiles what the sample after
the last step needs too, and generates. Texts end within the context, whose keys and values are
cached. What goes wrong ends the samples with a note, and training goes on.
"""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from gpt_jax import numerics
from gpt_jax.console import Display
from gpt_jax.inference.decoding import Filters, generate_tokens
from gpt_jax.inference.generation import encode_prompt, sample_key
from gpt_jax.model import Params
from gpt_jax.parallel import multihost
from gpt_jax.run.load import prepare_decoding
from gpt_jax.run.samples import FILE, Sample, read_short_samples
from gpt_jax.storage import open_folder
from gpt_jax.terminal import one_line
from gpt_jax.training.run_setup import RunSetup

MOST_PARAMETERS = 50_000_000


class ShortSamples:
    """The texts of a run in training.

    There are none where `train.sample_tokens` is 0, of a model of more than `MOST_PARAMETERS`, on
    several hosts, and where the parameters are split over devices.
    """

    def __init__(self, setup: RunSetup, abstract_params: Params, step: int, display: Display):
        """Opens samples.jsonl to continue after `step`; texts of later steps are dropped.

        Args:
          setup: of the run.
          abstract_params: shapes and shardings of its parameters.
          step: of the checkpoint that it continues from.
          display: for the note where something goes wrong.
        """
        self._config, self._tokenizer, self._display = setup.config, setup.tokenizer, display
        self._pool: ThreadPoolExecutor | None = None
        self._ended = False  # nothing more is written
        leaves = jax.tree.leaves(abstract_params)
        is_small = sum(x.size for x in leaves) <= MOST_PARAMETERS
        is_whole = all(x.sharding.is_fully_replicated for x in leaves)
        wanted = setup.config.train.sample_tokens and step < setup.config.train.steps
        if not (wanted and is_small and is_whole and multihost.host_count() == 1):
            return
        folder = open_folder(setup.config.run_dir)
        kept = [each for each in read_short_samples(folder) if each.step <= step] if step else []
        self._log = folder.append_log(FILE, "".join(map(_line, kept)))
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sample")

    def take(self, step: int, params: Params) -> None:
        """Begins the text of a step; its parameters are copied before this returns."""
        if self._pool is not None and not self._ended:
            copied = jax.tree.map(lambda x: np.array(x.addressable_data(0)), params)
            self._pool.submit(numerics.carried(self._write), step, copied)

    def _write(self, step: int, params: Params) -> None:
        try:
            text = self._generate(step, params)
            if not self._ended:
                self._log.write(_line(Sample(step, text)))
        except Exception as error:  # nobody's loss but that of the texts
            if not self._ended:  # else the file was closed meanwhile
                self._display.note(f"no more samples during training: {one_line(error)}")
            self._ended = True

    def _generate(self, step: int, params: Params) -> str:
        config, sample = self._config.model, self._config.sample
        prompt = sample.prompt or ""
        context = encode_prompt(self._tokenizer, prompt, special=False)
        context = context[-max(1, config.block_size // 2) :]
        n = min(self._config.train.sample_tokens, config.block_size - len(context))
        device = SingleDeviceSharding(jax.local_devices()[0])
        pieces = generate_tokens(
            config,
            prepare_decoding(config, jax.device_put(params, device)),
            context,
            jax.random.fold_in(sample_key(self._config.seed), step),
            Filters(temperature=sample.temperature, top_k=sample.top_k, top_p=sample.top_p),
            max_new_tokens=n,
        )
        ids = [id for ids_BT in pieces for id in ids_BT[0]]
        return prompt + self._tokenizer.make_decoder()(ids, last=True)

    def finish(self) -> None:
        """Waits for the texts that are not written yet."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._log.sync()
            self._log.close()
            self._pool = None

    def close(self) -> None:
        """Leaves what is not written yet; waits for nothing."""
        self._ended = True
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._log.close()


def _line(sample: Sample) -> str:
    return json.dumps(dataclasses.asdict(sample)) + "\n"

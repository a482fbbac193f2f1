"""How batches come to the devices: from tokens that lie there, or gathered by the host meanwhile.

Both take the places that the sampler draws, by the same function, so the batches are the same.
`programs.py` gives what a feed returns to the compiled programs.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gpt_jax.config import Config
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.input_pipeline.gather import gather_on_host, put_tokens_on_devices
from gpt_jax.input_pipeline.sampler import SampleIndices, eval_indices, make_sampler, train_indices
from gpt_jax.parallel.sharding import batch_sharding, replicated
from gpt_jax.prng import Keys, make_keys

RESIDENT_SHARE = 1 / 4  # of an accelerator's memory, at most, for tokens
CPU_RESIDENT_BYTES = 2**30  # on a CPU, the copies of all its devices together


class BatchLoader:
    """The batches of a run.

    Attributes:
      samplers: of "train" and "val".
      is_resident: tokens lie on the devices, and the compiled programs draw from them.
      token_bytes: of all tokens; on each device, where they are resident.
    """

    def __init__(self, config: Config, splits: dict[str, Dataset], mesh: Mesh):
        """Puts the tokens on the devices, or prepares to gather on the host.

        Raises:
          UserError: a split is too short, or resident tokens have ids beyond the vocabulary.
        """
        self._config = config
        sizes = config.model.block_size, config.train.batch_size
        orders = {"train": config.data.order, "val": "random"}
        made = [make_sampler(splits[name], *sizes, orders[name]) for name in ("train", "val")]
        self.samplers = [sampler for sampler, _ in made]
        self._pieces = [pieces for _, pieces in made]
        self._sharding = batch_sharding(mesh, axis=1)
        self._prefetched: tuple[tuple[int, int], Future] | None = None
        self._pool = ThreadPoolExecutor(1, "gather")
        self.token_bytes = sum(piece.nbytes for pieces in self._pieces for piece in pieces)
        where = config.data.resident
        if where == "auto":
            where = "device" if fits(self.token_bytes, mesh) else "host"
        self.is_resident = where == "device"
        if self.is_resident:
            check = self._check
            self._tokens = [
                put_tokens_on_devices(pieces, replicated(mesh), check) for pieces in self._pieces
            ]
            return
        _expect_random_reads(self._pieces[0])
        cpu = _host_device()
        with jax.default_device(cpu):
            self._keys = jax.device_put(jax.jit(make_keys, static_argnums=0)(config.seed), cpu)
        self._train_indices = jax.jit(
            lambda key, steps_S: train_indices(self.samplers[0], key, steps_S)
        )
        self._eval_indices = jax.jit(
            lambda key, step: eval_indices(
                self.samplers, jax.random.fold_in(key, step), config.train.eval_batches
            )
        )

    def describe(self) -> str:
        """Returns where batches come from and the bytes that takes, for people."""
        if self.is_resident:
            return f"cut from tokens on each device, {self.token_bytes / 2**20:,.1f} MiB"
        train = self._config.train
        chunk = train.chunk_steps * train.batch_size * (self._config.model.block_size + 1) * 4
        return (
            f"gathered by the host, at most 2 chunks of {chunk / 2**20:,.1f} MiB at a time, from "
            f"{self.token_bytes / 2**20:,.1f} MiB of tokens"
        )

    def train_spec(self, steps: int) -> Any:
        """Returns the shape of what `train_batches` returns for so many steps."""
        if self.is_resident:
            return self._tokens[0]
        return self._target(steps)

    def eval_spec(self) -> list[Any]:
        """Returns the shapes of what `eval_batches_of_step` returns."""
        if self.is_resident:
            return self._tokens
        return [self._target(self._config.train.eval_batches)] * 2

    def train_batches(self, step: int, steps: int) -> jax.Array:
        """Returns what `step.make_train_chunk`'s function takes for `steps` steps after `step`.

        Raises:
          UserError: an id is beyond the vocabulary.
        """
        if self.is_resident:
            return self._tokens[0]
        if self._prefetched is None or self._prefetched[0] != (step, steps):
            self.prepare(step, steps)
        assert self._prefetched is not None
        (_, batches), self._prefetched = self._prefetched, None
        return batches.result()

    def prepare(self, step: int, steps: int, after: Any = None) -> None:
        """Begins to gather for `train_batches(step, steps)`, once the arrays `after` are computed.

        That wait is the bound: while a chunk is computed, only the next one lies ready.
        """
        if self.is_resident:
            return

        def gather() -> jax.Array:
            jax.block_until_ready(after)
            steps_S = np.arange(step, step + steps, dtype=np.int32)
            return self._put(self._pieces[0], self._train_indices(self._keys.data, steps_S))

        self._prefetched = (step, steps), self._pool.submit(gather)

    def eval_batches_of_step(self, step: int) -> list[jax.Array]:
        """Returns what `step.make_eval_step`'s function takes for the evaluation after `step`."""
        if self.is_resident:
            return self._tokens
        places = self._eval_indices(self._keys.eval, np.int32(step))
        return [self._put(*x) for x in zip(self._pieces, places, strict=True)]

    def batch_of_step(self, keys: Keys, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns what the training step after `step` draws: of which pieces, where, the tokens.

        Args:
          keys: the run's.
          step: steps before it.

        Returns:
          int32 (B,), (B,) and (B, T + 1), on the host.
        """
        places = train_indices(self.samplers[0], keys.data, jnp.full(1, step, jnp.int32))
        pieces, starts = (np.asarray(part)[0] for part in places)
        return pieces, starts, gather_on_host(self._pieces[0], (pieces, starts), self._block_size)

    def close(self) -> None:
        """Lets go of what nobody waits for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def _block_size(self) -> int:
        return self._config.model.block_size

    def _target(self, n: int) -> jax.ShapeDtypeStruct:
        shape = (n, self._config.train.batch_size, self._block_size + 1)
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self._sharding)

    def _put(self, pieces: Sequence[np.ndarray], places: SampleIndices) -> jax.Array:
        """Gathers batches (n, B, T + 1): of the rows, those of this host's devices."""
        which, starts = (np.asarray(part) for part in places)
        gathered: dict[tuple, np.ndarray] = {}

        def rows(index: Any) -> np.ndarray:
            key = index[1].start, index[1].stop  # devices may have the same
            if key not in gathered:
                here = which[index[:2]], starts[index[:2]]
                gathered[key] = gather_on_host(pieces, here, self._block_size)
                self._check(gathered[key])
            return gathered[key]

        shape = (*which.shape, self._block_size + 1)
        return jax.make_array_from_callback(shape, self._sharding, rows)

    def _check(self, ids: np.ndarray) -> None:
        highest, vocab_size = int(ids.max()), self._config.model.vocab_size
        if vocab_size and highest >= vocab_size:
            raise UserError(
                f"the corpus {self._config.data.corpus} has id {highest}, and its tokenizer "
                f"{vocab_size} tokens: it was made with another tokenizer, or is damaged; prepare "
                "it again"
            )


def fits(n_bytes: int, mesh: Mesh) -> bool:
    """Says whether tokens of so many bytes may lie on every device of a mesh."""
    device = mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if limit:
        return n_bytes <= limit * RESIDENT_SHARE
    return n_bytes * mesh.size <= CPU_RESIDENT_BYTES


def _expect_random_reads(pieces: Sequence[np.ndarray]) -> None:
    """Tells the system not to read ahead in mapped files: rows are a page or two, here and there.

    Otherwise each row of a file that memory does not hold costs a hundred times its size.
    """
    for piece in pieces:
        mapped = getattr(piece, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)


def _host_device() -> jax.Device:
    """The CPU beside an accelerator; where jax was told to do without, what there is."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]

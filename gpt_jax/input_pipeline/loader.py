"""The batch loader: tokens kept on the devices, or batches prefetched from host memory.

Both use the sampler's indices, so the batches are identical. `compiled_steps.py` passes what the
loader returns to the compiled programs; `training/step.py` is next on the way to the model.
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

from gpt_jax import numerics
from gpt_jax.config import Config
from gpt_jax.errors import UserError
from gpt_jax.input_pipeline.dataset import Dataset
from gpt_jax.input_pipeline.gather import gather_on_host, put_tokens_on_devices
from gpt_jax.input_pipeline.loss_mask import MaskedTokens, Tokens, plain_ids
from gpt_jax.input_pipeline.sampler import SampleIndices, eval_indices, make_sampler, train_indices
from gpt_jax.parallel.mesh import host_device
from gpt_jax.parallel.sharding import batch_sharding, replicated
from gpt_jax.prng import Keys, make_keys

RESIDENT_SHARE = 1 / 4  # of an accelerator's memory that tokens may take
CPU_RESIDENT_BYTES = 2**30  # that the copies of all devices of a CPU may take together

_make_keys = jax.jit(make_keys)
_train_indices = jax.jit(train_indices, static_argnums=0)
_eval_indices = jax.jit(
    lambda samplers, key, step, n: eval_indices(samplers, jax.random.fold_in(key, step), n),
    static_argnums=(0, 3),
)


class BatchLoader:
    """The batches of a run.

    Attributes:
      mesh: the devices that have the batches.
      samplers: of "train" and "val".
      is_resident: the tokens are on the devices, and the compiled programs gather batches there.
      token_bytes: bytes of all tokens; on each device, if they are resident.
    """

    def __init__(self, config: Config, datasets: dict[str, Dataset], mesh: Mesh):
        """Puts the tokens on the devices, or prepares to gather on the host.

        Raises:
          UserError: a dataset is too short, or resident tokens have ids beyond the vocabulary.
        """
        self._config, self.mesh = config, mesh
        sizes = config.model.block_size, config.train.batch_size
        made = [make_sampler(datasets[x], *sizes, config.data.order) for x in ("train", "val")]
        self.samplers = [sampler for sampler, _ in made]
        self._segments = [segments for _, segments in made]
        self._sharding = batch_sharding(mesh, axis=1)
        self._prefetched: tuple[tuple[int, int], Future] | None = None
        self._pool = ThreadPoolExecutor(1, "gather")
        self.token_bytes = sum(
            segment.nbytes for segments in self._segments for segment in segments
        )
        where = config.data.resident
        if where == "auto":
            where = "device" if fits(self.token_bytes, mesh) else "host"
        self.is_resident = where == "device"
        if self.is_resident:
            check = self._check
            self._tokens = [
                put_tokens_on_devices(segments, replicated(mesh), check)
                for segments in self._segments
            ]
            return
        _expect_random_reads(self._segments[0])
        cpu = host_device()
        with jax.default_device(cpu):
            self._keys = jax.device_put(_make_keys(*map(np.uint32, config.seeds)), cpu)

    def describe(self) -> str:
        """Returns where batches come from and the memory that takes, as a line to print."""
        if self.is_resident:
            return f"cut from tokens on each device, {self.token_bytes / 2**20:,.1f} MiB"
        train = self._config.train
        chunk = train.chunk_steps * train.batch_size * (self._config.model.block_size + 1) * 4
        return (
            f"gathered by the host, at most 2 chunks of {chunk / 2**20:,.1f} MiB at a time, from "
            f"{self.token_bytes / 2**20:,.1f} MiB of tokens"
        )

    def train_spec(self, steps: int) -> Any:
        """Returns the shape, dtype and sharding of what `train_batches` returns."""
        if self.is_resident:
            return self._tokens[0]
        return self._spec(steps)

    def eval_spec(self) -> list[Any]:
        """Returns the shapes, dtypes and shardings of what `eval_batches` returns."""
        if self.is_resident:
            return self._tokens
        return [self._spec(self._config.train.eval_batches)] * 2

    def train_batches(self, step: int, steps: int) -> jax.Array:
        """Returns what `step.make_train_chunk`'s function takes for `steps` steps after `step`.

        Raises:
          UserError: an id is beyond the vocabulary.
        """
        if self.is_resident:
            return self._tokens[0]
        if self._prefetched is None or self._prefetched[0] != (step, steps):
            self.prefetch(step, steps)
        assert self._prefetched is not None
        (_, batches), self._prefetched = self._prefetched, None
        return batches.result()

    def prefetch(self, step: int, steps: int, after: Any = None) -> None:
        """Starts to gather for `train_batches(step, steps)` once the arrays `after` are computed.

        Waiting for them bounds the memory: at most one chunk is held beside the one in use.
        """
        if self.is_resident:
            return

        def gather() -> jax.Array:
            jax.block_until_ready(after)
            steps_S = np.arange(step, step + steps, dtype=np.int32)
            return self._put(
                self._segments[0], _train_indices(self.samplers[0], self._keys.data, steps_S)
            )

        self._prefetched = (step, steps), self._pool.submit(numerics.carried(gather))

    def eval_batches(self, step: int) -> list[jax.Array]:
        """Returns what `step.make_eval_step`'s function takes for the evaluation after `step`."""
        if self.is_resident:
            return self._tokens
        key, n_batches = self._keys.eval, self._config.train.eval_batches
        indices = _eval_indices(tuple(self.samplers), key, np.int32(step), n_batches)
        return [self._put(*x) for x in zip(self._segments, indices, strict=True)]

    def batch_of_step(self, keys: Keys, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the segments, offsets and tokens of the training step after `step`.

        Args:
          keys: the run's.
          step: steps before it.

        Returns:
          int32 (B,), (B,) and (B, T + 1), on the host; tokens with a mask are marked.
        """
        indices = train_indices(self.samplers[0], keys.data, jnp.full(1, step, jnp.int32))
        numbers, offsets = (np.asarray(array)[0] for array in indices)
        batch = gather_on_host(self._segments[0], (numbers, offsets), self._block_size)
        return numbers, offsets, batch

    def close(self) -> None:
        """Cancels prefetching."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def _block_size(self) -> int:
        return self._config.model.block_size

    def _spec(self, n: int) -> jax.ShapeDtypeStruct:
        shape = (n, self._config.train.batch_size, self._block_size + 1)
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self._sharding)

    def _put(self, segments: Sequence[Tokens], indices: SampleIndices) -> jax.Array:
        """Gathers batches (n, B, T + 1); each host only the sequences of its own devices."""
        numbers, offsets = (np.asarray(array) for array in indices)
        gathered: dict[tuple, np.ndarray] = {}

        def rows(index: Any) -> np.ndarray:
            key = index[1].start, index[1].stop  # several devices may need the same
            if key not in gathered:
                here = numbers[index[:2]], offsets[index[:2]]
                gathered[key] = gather_on_host(segments, here, self._block_size)
                self._check(gathered[key])
            return gathered[key]

        shape = (*numbers.shape, self._block_size + 1)
        return jax.make_array_from_callback(shape, self._sharding, rows)

    def _check(self, tokens: Tokens) -> None:
        """Raises UserError where an id is beyond the vocabulary; the tokens may be marked."""
        ids = plain_ids(tokens)
        highest, vocab_size = int(ids.max()), self._config.model.vocab_size
        if any(sampler.is_masked for sampler in self.samplers):
            highest = max(highest, -1 - int(ids.min()))
        if vocab_size and highest >= vocab_size:
            raise UserError(
                f"the corpus {self._config.data.corpus} has id {highest}, and its tokenizer "
                f"{vocab_size} tokens: it was made with another tokenizer, or is damaged; prepare "
                "it again"
            )


def fits(n_bytes: int, mesh: Mesh) -> bool:
    """Returns whether tokens of this size may be copied to every device of a mesh."""
    device = mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
    if limit:
        return n_bytes <= limit * RESIDENT_SHARE
    return n_bytes * mesh.size <= CPU_RESIDENT_BYTES


def _expect_random_reads(segments: Sequence[Tokens]) -> None:
    """Tells the system not to read ahead in mapped files: a sequence is a page or two.

    Otherwise each sequence of a file that is not in memory costs a hundred times its size.
    """
    masks = [segment.mask for segment in segments if isinstance(segment, MaskedTokens)]
    for array in [*map(plain_ids, segments), *masks]:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)

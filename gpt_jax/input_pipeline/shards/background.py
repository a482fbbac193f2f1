"""The sums of a corpus's shards, compared in the background while training begins.

Opening a corpus reads its ends alone; a shard that was changed in its middle would be trained on.
So one thread reads all shards once, at half its speed, and training ends where a sum is another.
Other programs' folders have no sums.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence

import numpy as np

from gpt_jax.input_pipeline.shards.manifest import SPLITS, ShardError
from gpt_jax.input_pipeline.shards.memmap import CHUNK_TOKENS, TokenShards, _name_of


def _arrays_with_sums(folder: TokenShards) -> list[tuple[TokenShards, np.ndarray, str]]:
    """Returns (folder, ids or mask, its sum) of each shard; nothing without a manifest."""
    found = []
    if folder.manifest is None:
        return found
    for split in SPLITS:
        entries = folder.manifest.entries(split)
        sums = [entry.sha256 for entry in entries]
        masks = [entry.mask.sha256 for entry in entries if entry.mask]
        pairs = zip([*folder.shards[split], *folder.masks[split]], [*sums, *masks], strict=True)
        found += [(folder, array, expected) for array, expected in pairs]
    return found


class SumCheck:
    """The check of some prepared folders."""

    def __init__(self, folders: Sequence[TokenShards]):
        """Begins to read, if any of the folders has sums."""
        self._shards = [each for folder in folders for each in _arrays_with_sums(folder)]
        self._stopped, self._error = threading.Event(), ""
        self._thread = threading.Thread(target=self._run, name="sums", daemon=True)
        if self._shards:
            self._thread.start()

    def _run(self) -> None:
        try:
            for folder, ids, expected in self._shards:
                found = self._sum(ids)
                if self._stopped.is_set():
                    return
                if found != expected:
                    self._error = (
                        f"shard {folder.folder / _name_of(ids)} has another sha256 than the "
                        "manifest: it has changed since it was prepared, and steps so far may "
                        "have read it; restore it or prepare the corpus again"
                    )
                    return
        except OSError as error:
            self._error = f"a shard can't be read: {error}"

    def _sum(self, ids: np.ndarray) -> str:
        digest = hashlib.sha256()
        for start in range(0, len(ids), CHUNK_TOKENS):
            began = time.monotonic()
            digest.update(np.ascontiguousarray(ids[start : start + CHUNK_TOKENS]).data)
            if self._stopped.wait(time.monotonic() - began):
                break
        return digest.hexdigest()

    def raise_if_damaged(self) -> None:
        """Raises ShardError where a shard that was read so far is not what it was."""
        if self._error:
            raise ShardError(self._error)

    def finish(self, seconds: float) -> bool:
        """Waits for the rest, for so long at most; says whether all is read.

        Raises:
          ShardError: see `raise_if_damaged`.
        """
        if self._shards:
            self._thread.join(seconds)
        self.raise_if_damaged()
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Reads no more."""
        self._stopped.set()

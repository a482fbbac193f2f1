"""How a run has been computed so far: what its folder says of versions, devices and mesh.

config.json has it of the beginning. Where a resumed run is computed in another way, its next row
says so, under "numerics"; later rows are made in that way too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from gpt_jax import numerics
from gpt_jax.config import Config
from gpt_jax.parallel.mesh import mesh_of
from gpt_jax.run.folder import run_record


def numerics_now(config: Config, arrangement: str | None = None) -> dict[str, Any]:
    """Returns the record of how a run is computed here; it asks for the devices.

    Args:
      config: the settings.
      arrangement: recorded as its mesh, where it is computed beside others; see `stack.py`.
    """
    now = {**numerics.asked_for(), **numerics.environment(mesh_of(config).shape)}
    return now if arrangement is None else now | {"mesh": arrangement}


def changed_numerics(
    run_dir: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], now: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Returns what changes rounding and is not as it was before, and a line about it.

    Args:
      run_dir: the run's folder.
      rows: of the run so far.
      now: see `numerics_now`.

    Returns:
      ({}, "") where nothing has changed.
    """
    record = run_record(run_dir)
    before = {**(record.versions or {}), **(record.numerics or {})}
    for row in rows:
        before |= row.get("numerics", {})
    changed = numerics.changes(before, {n: v for n, v in now.items() if n not in numerics.KEPT})
    shown = [f"{name} was {before.get(name, 1)!s} and is {new}" for name, new in changed.items()]
    return changed, f"earlier steps may be rounded otherwise: {'; '.join(shown)}" if shown else ""

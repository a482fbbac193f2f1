"""How the members of a sweep run: one after another, side by side, or stacked; chosen by measuring.

One after another the devices share the batch of a member, and each member is bit for bit the run
that it would have been alone. Side by side a device has a member; stacked it has several, under
`vmap`. Then members differ from runs alone by rounding.
"""

from __future__ import annotations

import jax

from gpt_jax.config import fix_schedule
from gpt_jax.console import format_duration
from gpt_jax.errors import ConfigError, UserError
from gpt_jax.experiments.estimate import step_seconds
from gpt_jax.experiments.members import ONE_AFTER_ANOTHER, SIDE_BY_SIDE, STACKED, Together
from gpt_jax.training.memory import estimate_memory, memory_limit
from gpt_jax.training.run_setup import RunSetup
from gpt_jax.training.stack import Arrangement

# Members on a device, at most: past that an accelerator gains nothing, and a CPU's caches lose.
MOST_STACKED = {"cpu": 8}
MOST_STACKED_ELSEWHERE = 128
WORTH_SECONDS = 300  # of a sweep: measuring another way takes about half a minute of compiling
GAIN = 0.9  # another way than the first must take less than this share of its time


def arrange(way: str, setup: RunSetup, n: int) -> Arrangement | None:
    """Returns where n members of one shape run, as many at once; None for one after another.

    Raises:
      ConfigError: these can't run so.
    """
    if way == ONE_AFTER_ANOTHER or n == 1:
        return None
    mesh = setup.config.mesh
    if (mesh.fsdp, mesh.tensor, mesh.sequence) != (1, 1, 1) or mesh.data > 1:
        raise ConfigError(
            f"{way} needs whole members on a device, and mesh asks for several; use --together "
            f"{ONE_AFTER_ANOTHER}"
        )
    if setup.micro_batch_is_auto:
        raise ConfigError(
            f"{way} needs a number for train.micro_batch: auto is what one member on all devices "
            f"has room for; use --together {ONE_AFTER_ANOTHER}"
        )
    n_devices = min(len(jax.local_devices()), n)
    if way == SIDE_BY_SIDE:
        if n_devices == 1:
            raise ConfigError(
                f"{way} needs several devices, and there is one; use --together {STACKED} or "
                f"{ONE_AFTER_ANOTHER}"
            )
        _most_on_a_device(setup, n_devices)
        return n_devices, 1
    groups = -(-n // (n_devices * _most_on_a_device(setup, n_devices)))
    return n_devices, -(-n // (groups * n_devices))


def _most_on_a_device(setup: RunSetup, n_devices: int) -> int:
    """Returns how many members fit on each device; raises ConfigError where none does.

    The estimate is at least half of what XLA plans, so each counts twice.
    """
    device = jax.local_devices()[0]
    most = MOST_STACKED.get(device.platform, MOST_STACKED_ELSEWHERE)
    limit = memory_limit(device)
    if limit is None:
        return most
    need = estimate_memory(fix_schedule(setup.config), (1, 1, 1, 1), device.platform).total
    share = limit // n_devices if device.platform == "cpu" else limit  # a CPU's devices share it
    fit = min(most, share // (2 * need))
    if fit < 1:
        raise ConfigError(
            "members don't fit into the memory, one on each device; use --together "
            f"{ONE_AFTER_ANOTHER}"
        )
    return fit


def choose(setup: RunSetup, n: int, n_steps: int) -> Together:
    """Returns how members run, by measuring a few steps of each way that can be.

    What is usual on these devices is measured first, and taken where the sweep is short.

    Args:
      setup: of a member of the shape that most members have.
      n: members of that shape.
      n_steps: of all members.
    """
    if n == 1:
        return Together(ONE_AFTER_ANOTHER, "no two members have one shape")
    usual = [ONE_AFTER_ANOTHER, STACKED, SIDE_BY_SIDE]
    if jax.local_devices()[0].platform != "cpu":  # small models are bound by launches there
        usual = [STACKED, SIDE_BY_SIDE, ONE_AFTER_ANOTHER]
    measured: dict[str, float] = {}
    for way in usual:
        try:
            arrangement = arrange(way, setup, n)
            if way == STACKED and arrangement is not None and arrangement[1] == 1:
                continue  # that is side by side
            measured[way] = step_seconds(setup, arrangement)
        except (UserError, jax.errors.JaxRuntimeError, NotImplementedError):
            if way == ONE_AFTER_ANOTHER:
                raise
            continue  # it does not fit into the memory, or a kernel can't be stacked
        first = next(iter(measured))
        if way == first and measured[way] * n_steps < WORTH_SECONDS:
            total = format_duration(measured[way] * n_steps)
            return Together(way, f"usual here, and about {total} are too short to try other ways")
    times = ", ".join(f"{1000 * seconds:.3g} ms {way}" for way, seconds in measured.items())
    first, best = next(iter(measured)), min(measured, key=lambda way: measured[way])
    way = best if measured[best] < GAIN * measured[first] else first
    return Together(way, f"measured: a step of a member takes {times}")

"""Several processes that train one run: connecting, collectives between them, lost hosts.

Each process is a host, whether or not it has a machine to itself. All hosts execute every step
together, each on its own rows of the batch. Host 0 alone prints and writes files, except for
checkpoints: all hosts write those together, so the run's folder must be visible to all of them.
With one host every function here returns at once.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_jax.config.fields import NOT_NEGATIVE_INT, POSITIVE_INT, check_fields, field
from gpt_jax.errors import ConfigError, TrainingError, UserError, differences, is_out_of_memory
from gpt_jax.terminal import say

# Messages of the libraries below jax about a host that does not answer; the types differ.
LOST_HOST = re.compile(
    "gloo|nccl|coordination|heartbeat|connection reset"
    "|^(unavailable|deadline_exceeded|aborted|cancelled):",
    re.IGNORECASE,
)
SHUTDOWN_SECONDS = 3600  # for which a host that has finished waits for the others


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """How the hosts of a run connect; without the first three settings the launcher decides."""

    coordinator: str | None = field(
        None,
        "ADDRESS:PORT of host 0",
        (lambda x: bool(re.fullmatch(r"\S+:\d+", x)), "ADDRESS:PORT"),
        unset="detected on TPU pods, Slurm and Open MPI",
    )
    count: int | None = field(
        None, "number of hosts (processes) of the run", POSITIVE_INT, unset="detected likewise"
    )
    index: int | None = field(
        None, "index of this host, from 0", NOT_NEGATIVE_INT, unset="detected likewise"
    )
    timeout: int = field(
        60,
        "seconds to wait for other hosts at startup, and without a heartbeat before a host is "
        "considered lost",
        POSITIVE_INT,
    )

    def __post_init__(self):
        check_fields(self, "hosts.")
        given = {name: vars(self)[name] for name in ("coordinator", "count", "index")}
        missing = [f"hosts.{name}" for name, value in given.items() if value is None]
        if 0 < len(missing) < len(given):
            raise ConfigError(f"{' and '.join(missing)} must be given too, or none of the three")
        if self.count is not None and self.index is not None and self.index >= self.count:
            raise ConfigError(
                f"hosts.index={self.index} must be below hosts.count={self.count}: the first is 0"
            )


@dataclasses.dataclass(frozen=True)
class Launch:
    """The settings of a process, not of its run: options whose names begin with `hosts.`."""

    hosts: HostsConfig = dataclasses.field(default_factory=HostsConfig)


def has_launcher(environment: Mapping[str, str], has_tpu: bool = False) -> bool:
    """Returns whether a launcher that jax supports has started this process.

    Args:
      environment: the environment variables of the process.
      has_tpu: whether the machine has a TPU; its launcher knows of other such machines.
    """
    slurm = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"}
    several = [environment.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    return (
        (slurm <= set(environment) and several[0] != "1")
        or several[1] != "1"
        or (has_tpu and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu"))
    )


def cluster_detection_method(environment: Mapping[str, str]) -> str | None:
    """Returns the method by which jax detects the other processes; None lets jax choose.

    Raises:
      ConfigError: Open MPI 5 or later has started this process, and mpi4py is missing.
    """
    if "OMPI_COMM_WORLD_SIZE" not in environment or "OMPI_MCA_orte_hnp_uri" in environment:
        return None
    if importlib.util.find_spec("mpi4py") is None:
        raise ConfigError(
            "Open MPI 5 or later has started this process, and its hosts are detected with mpi4py: "
            "pip install mpi4py, or give --hosts.coordinator, --hosts.count and --hosts.index"
        )
    return "mpi4py"


def connect(config: HostsConfig, has_tpu: bool = False) -> None:
    """Connects to the other hosts, if there are any; call it before jax's first computation.

    Raises:
      ConfigError: see `cluster_detection_method`.
      TrainingError: the hosts did not connect in time.
    """
    is_given = config.coordinator is not None
    if not is_given and not has_launcher(os.environ, has_tpu):
        return
    import jax

    if jax.distributed.is_initialized():
        return
    method = "deactivate" if is_given else cluster_detection_method(os.environ)
    where = config.coordinator or "the address that the launcher gives"
    if is_given:  # jax may end the process after the timeout, with another message
        who = f"host {config.index} of {config.count}"
        line = f"{who}: connecting at {where}, timeout {config.timeout} s"
        say(line)
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.count,
            config.index,
            cluster_detection_method=method,
            initialization_timeout=config.timeout,
            heartbeat_timeout_seconds=config.timeout,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        if not is_given and has_tpu and "coordinator_address" in str(error):
            return  # a single machine with a TPU, as on Colab
        raise TrainingError(
            f"the hosts did not connect at {where} within {config.timeout} s: "
            f"{' '.join(str(error).split()):.300}"
        ) from error


def host_count() -> int:
    """Returns the number of hosts that are connected."""
    jax = sys.modules.get("jax")
    return jax.process_count() if jax and jax.distributed.is_initialized() else 1


def is_host0() -> bool:
    """Returns whether this is the host that prints and writes files."""
    return host_count() == 1 or sys.modules["jax"].process_index() == 0


def exit_process(error: Exception, status: int) -> int:
    """Returns the exit status if all hosts end; otherwise exits this process at once.

    A normal exit would wait for the other hosts; this way they notice that one is lost, and end.
    """
    if host_count() > 1 and not getattr(error, "on_all_hosts", False):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def lost_host_message(error: BaseException) -> str:
    """Returns jax's message if an error may come from a lost host, else "".

    The first error in the chain of causes counts: clean-up after it, such as of a checkpoint, may
    fail too.
    """
    at: BaseException | None = error if host_count() > 1 else None
    found = ""
    for _ in range(20):  # causes may form a cycle
        if at is None or is_out_of_memory(at):
            break
        if LOST_HOST.search(str(at)):
            found = f"{' '.join(str(at).split()):.200}"
        at = at.__cause__ or at.__context__
    return found


def all_gather_json(value: Any) -> list[Any]:
    """Returns the value of each host, in the order of their indices; values must suit JSON."""
    if host_count() == 1:
        return [value]
    import numpy as np
    from jax.experimental import multihost_utils

    raw = np.frombuffer(json.dumps(value).encode("utf-8"), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(raw)], np.int32))[:, 0].tolist()
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(raw)] = raw
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)]


def broadcast_from_host0(make: Callable[[], Any]) -> Any:
    """Returns on every host what `make` returns on host 0, which alone calls it: a JSON value.

    Raises:
      UserError, TrainingError: what `make` raised there.
    """
    return all_gather_json(all_agree(make if is_host0() else lambda: None))[0]


def all_reduce_max(values: Sequence[int]) -> list[int]:
    """Returns the elementwise maximum of the integers over the hosts."""
    return [max(of_hosts) for of_hosts in zip(*all_gather_json(list(values)), strict=True)]


def start_all_reduce_max(values: Sequence[int]) -> Callable[[], list[int]]:
    """Starts `all_reduce_max`, for values of 32 bits; returns a function that waits for its result.

    The devices compute it after what was dispatched before it, so nothing waits that reads the
    result after the next dispatch. All hosts must call this at the same point of the program.
    """
    if host_count() == 1:
        return lambda: list(values)
    import jax
    import numpy as np

    reduce_max, split = _max_over_devices()
    row = np.asarray(values, np.int32)[None]
    rows = [jax.device_put(row, device) for device in jax.local_devices()]
    shape = len(jax.devices()), len(values)
    result = reduce_max(jax.make_array_from_single_device_arrays(shape, split, rows))
    return lambda: np.asarray(result.addressable_data(0)).tolist()


@functools.cache
def _max_over_devices() -> tuple[Any, Any]:
    """Returns the jitted maximum of rows, one on each device, and the sharding of these."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()), ("devices",))
    split, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["devices"], []))
    return jax.jit(lambda x: x.max(axis=0), out_shardings=everywhere), split


def all_agree(make: Callable[[], Any], describe: Callable[[Any], Any] = lambda made: None) -> Any:
    """Returns what `make` returns here, after all hosts have made equal values: a barrier.

    Args:
      make: may fail on some of the hosts.
      describe: returns the properties of the value that must be equal: {name: value} for JSON.

    Raises:
      UserError, TrainingError: `make` raised it here, or failed on another host.
      ConfigError: the values differ; the message names the differences.
    """
    if host_count() == 1:
        return make()
    made = failure = None
    try:
        made = make()
        said = {"made": describe(made)}
    except (UserError, TrainingError) as error:
        failure, said = error, {"error": str(error), "mistake": isinstance(error, UserError)}
    answers = all_gather_json(said)
    problem: UserError | TrainingError | None = failure or _problem(answers)
    if problem:
        problem.on_all_hosts = True
        raise problem
    return made


def _problem(answers: Sequence[Mapping[str, Any]]) -> UserError | TrainingError | None:
    """Returns the first error or difference in the answers of the hosts, if there is one."""
    for host, answer in enumerate(answers):
        if "error" in answer:
            kind = UserError if answer["mistake"] else TrainingError
            return kind(f"host {host}: {answer['error']}")
    ours = answers[0]["made"]
    for host, answer in enumerate(answers):
        if answer["made"] != ours:
            difference = _difference(answer["made"], ours)
            return ConfigError(f"host {host} differs from host 0: {difference}")
    return None


def _difference(there: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    ours = {name: first.get(name) for name in sorted({*there, *first})}
    return "; ".join(differences(there, ours, repr, "on host 0"))

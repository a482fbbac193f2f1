"""Several processes that train one run: how they meet, agree, and notice that one is gone.

Each is a host, on a machine of its own or not. All take every step together, each on its own rows
of the batch; host 0 alone prints and writes, checkpoints aside, which all write together into the
run's folder, so it must be one that all of them see. With one host nothing here does anything.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt_jax.config.fields import NOT_NEGATIVE_INT, POSITIVE_INT, check_fields, field
from gpt_jax.errors import ConfigError, TrainingError, UserError, is_out_of_memory

# What the libraries beneath jax say of a host that does not answer; they raise many kinds.
LOST_HOST = re.compile(
    "gloo|nccl|coordination|heartbeat|connection reset"
    "|^(unavailable|deadline_exceeded|aborted|cancelled):",
    re.IGNORECASE,
)
SHUTDOWN_SECONDS = 3600  # that a host which is done waits for those that are not


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """Where the hosts of a run meet; with none of the first three, as their launcher says."""

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
    """What belongs to a process, not to its run: the command line's names begin with `hosts.`."""

    hosts: HostsConfig = dataclasses.field(default_factory=HostsConfig)


def has_launcher(environment: Mapping[str, str], has_tpu: bool = False) -> bool:
    """Says whether a launcher that jax knows has started this process, perhaps among others.

    Args:
      environment: of the process.
      has_tpu: a TPU is in the machine; whether there are more such machines, its launcher knows.
    """
    slurm = {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"}
    several = [environment.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    return (
        (slurm <= set(environment) and several[0] != "1")
        or several[1] != "1"
        or (has_tpu and environment.get("JAX_PLATFORMS", "tpu").startswith("tpu"))
    )


def cluster_detection_method(environment: Mapping[str, str]) -> str | None:
    """Returns the name of the way in which jax finds the other processes; None for its own choice.

    Raises:
      ConfigError: Open MPI from 5 on has started this process, and a package to ask it is missing.
    """
    if "OMPI_COMM_WORLD_SIZE" not in environment or "OMPI_MCA_orte_hnp_uri" in environment:
        return None
    if importlib.util.find_spec("mpi4py") is None:
        raise ConfigError(
            "Open MPI from 5 on tells its processes where they are by another package only: pip "
            "install mpi4py, or give --hosts.coordinator, --hosts.count and --hosts.index"
        )
    return "mpi4py"


def connect(config: HostsConfig, has_tpu: bool = False) -> None:
    """Meets the other hosts, if there are any; before jax's first computation.

    Raises:
      ConfigError: the launcher can't be asked, see `cluster_detection_method`.
      TrainingError: they could not be met in time.
    """
    is_given = config.coordinator is not None
    if not is_given and not has_launcher(os.environ, has_tpu):
        return
    import jax

    if jax.distributed.is_initialized():
        return
    method = "deactivate" if is_given else cluster_detection_method(os.environ)
    where = config.coordinator or "the place that the launcher names"
    if is_given:  # jax may end the process where nobody comes, with words of its own
        who = f"host {config.index} of {config.count}"
        within = f"within {config.timeout} s"
        print(f"{who} meets the others at {where}, {within}", file=sys.stderr, flush=True)
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
            f"the hosts did not meet at {where} within {config.timeout} s: "
            f"{' '.join(str(error).split()):.300}"
        ) from error


def host_count() -> int:
    """Returns how many hosts have met."""
    jax = sys.modules.get("jax")
    return jax.process_count() if jax and jax.distributed.is_initialized() else 1


def is_host0() -> bool:
    """Says whether this is the host that prints and writes."""
    return host_count() == 1 or sys.modules["jax"].process_index() == 0


def exit_process(error: Exception, status: int) -> int:
    """Returns the exit status, where the hosts end together; else ends this one at once.

    The others notice, and end too: at the end of a program jax waits for them.
    """
    if host_count() > 1 and not getattr(error, "on_all_hosts", False):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def lost_host_message(error: BaseException) -> str:
    """Returns the words of jax in an error that a host which is gone may cause, or ''.

    They are in what came first: what is cleaned up after it, such as a checkpoint, fails too.
    """
    at: BaseException | None = error if host_count() > 1 else None
    found = ""
    for _ in range(20):  # causes may be a ring
        if at is None or is_out_of_memory(at):
            break
        if LOST_HOST.search(str(at)):
            found = f"{' '.join(str(at).split()):.200}"
        at = at.__cause__ or at.__context__
    return found


def all_gather_json(value: Any) -> list[Any]:
    """Returns what each host gave, in their order; values that JSON can hold."""
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
    """Returns what `make` returns on host 0, which alone calls it: what JSON can hold.

    Raises:
      UserError, TrainingError: what it raised there.
    """
    return all_gather_json(all_agree(make if is_host0() else lambda: None))[0]


def all_reduce_max(values: Sequence[int]) -> list[int]:
    """Returns the largest of each of the integers over the hosts."""
    return [max(of_hosts) for of_hosts in zip(*all_gather_json(list(values)), strict=True)]


def all_agree(make: Callable[[], Any], describe: Callable[[Any], Any] = lambda made: None) -> Any:
    """Returns what `make` returns, once it has on all hosts, and alike.

    Args:
      make: may fail on some of them.
      describe: what must be the same everywhere, of what was made: {name: value} for JSON.

    Raises:
      UserError, TrainingError: what `make` raised here, or that it did so elsewhere.
      ConfigError: what was made differs; the message names it.
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
    """Returns what is wrong with what the hosts said, if anything is."""
    for host, answer in enumerate(answers):
        if "error" in answer:
            kind = UserError if answer["mistake"] else TrainingError
            return kind(f"host {host}: {answer['error']}")
    ours = answers[0]["made"]
    for host, answer in enumerate(answers):
        if answer["made"] != ours:
            differences = _difference(answer["made"], ours)
            return ConfigError(f"host {host} is not like host 0: {differences}")
    return None


def _difference(there: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    return "; ".join(
        f"{name} is {there.get(name)!r} there and {first.get(name)!r} on host 0"
        for name in sorted({*there, *first})
        if there.get(name) != first.get(name)
    )

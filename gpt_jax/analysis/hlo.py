"""Collectives and memory traffic of a compiled program, read from its HLO text.

XLA's own cost analysis counts the body of a loop once; here every instruction is multiplied by the
trip counts of the loops around it. Must not import jax.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

from gpt_jax.analysis.hlo_text import Computation, Instruction, elements, n_bytes, parse

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Opcodes without memory traffic themselves.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
        "call", "after-all", "partition-id", "replica-id", "opt-barrier"}  # fmt: skip
SLICES = {"dynamic-slice", "slice", "gather"}
UPDATE = "dynamic-update-slice"
START = "async-collective-start"
VIEWS = {"bitcast", "reshape", "convert"}
_CALLED = re.compile(
    r"\b(calls|body|condition|branch_computations|true_computation|false_computation|"
    r"called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind and group size in a program.

    Attributes:
      kind: one of `KINDS`.
      group: number of devices that take part in each.
      times: number of executions in one execution of the program.
      bytes_each: bytes of the largest result on one device.
      bytes_sent: lower bound of the bytes that one device sends, in total: those of a ring.
    """

    kind: str
    group: int
    times: int
    bytes_each: int
    bytes_sent: float


class HloProgram:
    """The computations of an HLO text, and how often each is executed."""

    def __init__(self, text: str):
        self._computations, entry = parse(text)
        self._times: dict[str, int] = defaultdict(int)
        self._fused: set[str] = set()
        self._repeats: set[str] = set()
        self._count(entry, 1)

    def collectives(self) -> list[Collective]:
        """Returns the collectives between devices, the largest `bytes_sent` first."""
        found: dict[tuple[str, int], list[tuple[int, int, float]]] = defaultdict(list)
        # of each kind and group: (times, bytes of the result, total bytes sent)
        for computation, times in self._times.items():
            if computation in self._repeats:
                continue
            by_name = self._computations[computation]
            for i in by_name.values():
                kind = i.opcode.removesuffix("-done")
                if kind not in KINDS:
                    continue
                started = by_name.get(i.operands[0]) if i.opcode.endswith("-done") else None
                group = _group_size((started or i).attributes)
                size = n_bytes(i.type)
                if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
                    kind, size = "reduce-scatter", size // group  # the TPU's fusion of both
                share = (group - 1) / group
                sent = {
                    "all-reduce": 2 * share * size,
                    "reduce-scatter": (group - 1) * size,
                    "collective-permute": size,
                }.get(kind, share * size)
                found[kind, group].append((times, size, times * sent))
        all_ = [
            Collective(
                *key, sum(n for n, _, _ in x), max(s for _, s, _ in x), sum(b for *_, b in x)
            )
            for key, x in found.items()
            if key[1] > 1
        ]
        return sorted(all_, key=lambda c: -c.bytes_sent)

    def memory_traffic(self) -> int:
        """Returns approximately the bytes that one device reads and writes in its memory (HBM).

        Each instruction outside a fusion reads its operands and writes its result, in full except
        for slices and updates of slices. A TPU's fast memory does not count.
        """
        total = 0
        for computation, times in self._times.items():
            if computation in self._fused:
                continue
            by_name = self._computations[computation]
            total += times * sum(self._traffic(i, by_name) for i in by_name.values())
        return total

    def _traffic(self, i: Instruction, by_name: Computation) -> int:
        if i.opcode in FREE or i.opcode.endswith(("-start", "-update")) or not i.operands:
            return 0
        if i.opcode.endswith("-done"):  # a copy from one memory to another, or a collective's
            return n_bytes(i.type) + n_bytes(i.type, far=True)
        types = [by_name[name].type for name in i.operands if name in by_name]
        if i.opcode in SLICES:
            return 2 * n_bytes(i.type, far=True)
        if i.opcode == UPDATE:
            return 2 * n_bytes(types[1], far=True)
        written = [n_bytes(t, far=True) for t in elements(i.type)]
        read = [n_bytes(t, far=True) for t in types]
        if i.opcode == "fusion":
            fused = _called(i)["calls"][0]
            slices = self._written(fused)
            if len(slices) == len(written):  # else its root is not a tuple, and has several results
                written = [min(x) for x in zip(written, slices, strict=True)]
            read = [min(n, self._read(fused, index)) for index, n in enumerate(read)]
        return sum(written) + sum(read)

    def _read(self, computation: str, index: int) -> int:
        """Returns the bytes that a fusion reads of one of its operands."""
        body = self._computations[computation].values()

        def of(name: str, whole: int) -> int:
            total = 0
            for k in body:
                for position in (n for n, operand in enumerate(k.operands) if operand == name):
                    if k.opcode in SLICES and position == 0:
                        total += n_bytes(k.type)
                    elif k.opcode == "fusion":
                        total += self._read(_called(k)["calls"][0], position)
                    elif k.opcode in VIEWS:
                        total += of(k.name, whole)
                    elif k.opcode != "tuple" and (k.opcode != UPDATE or position > 0):
                        return whole
            return min(total, whole)

        parameter = next(i for i in body if i.opcode == "parameter" and i.arguments == str(index))
        return of(parameter.name, n_bytes(parameter.type))

    def _written(self, computation: str) -> list[int]:
        """Returns the bytes that a fusion writes of each result; of an update, only the slice."""
        body = self._computations[computation]

        def of(i: Instruction) -> list[int]:
            if i.opcode == "tuple":
                return [sum(of(body[name])) for name in i.operands]
            if i.opcode in VIEWS:
                return of(body[i.operands[0]])
            if i.opcode == "fusion":
                return self._written(_called(i)["calls"][0])
            if i.opcode == UPDATE:
                return [n_bytes(body[i.operands[1]].type)]
            return [n_bytes(i.type)]

        return of(next(i for i in body.values() if i.is_root))

    def _count(self, computation: str, times: int) -> None:
        self._times[computation] += times
        for i in self._computations.get(computation, {}).values():
            called = _called(i)
            if i.opcode in ("async-done", "async-update"):
                continue
            for name in called.get("calls", ()) if i.opcode == "fusion" else ():
                self._fused.add(name)
                # A TPU's asynchronous collective is in each of the fusions that run beside it, and
                # in those of its start and its end: only the last is counted.
                if name.startswith("async_collective_fusion") or START in i.name:
                    self._repeats.add(name)
            turns = self._turns(i, called) if i.opcode == "while" else 1
            for attribute, names in called.items():
                for name in names if attribute != "condition" else ():
                    self._count(name, times * turns)

    def _turns(self, i: Instruction, called: dict[str, list[str]]) -> int:
        """Returns the trip count of a loop: as XLA notes it, or the number it counts up to."""
        if known := re.search(r'known_trip_count"?:?=?\s*\{"?n"?:"?(\d+)', i.attributes):
            return int(known[1])
        numbers = [
            int(j.arguments)
            for computation in called.get("condition", ())
            for name in self._below(computation)
            for j in self._computations.get(name, {}).values()
            if j.opcode == "constant" and j.arguments.isdecimal()
        ]
        return max(numbers, default=1)

    def _below(self, computation: str) -> Iterator[str]:
        yield computation
        for i in self._computations.get(computation, {}).values():
            for names in _called(i).values():
                for name in names:
                    yield from self._below(name)


def _called(i: Instruction) -> dict[str, list[str]]:
    found = _CALLED.findall(i.attributes)
    if i.opcode == "call":  # in other opcodes to_apply computes single numbers
        found += re.findall(r"\b(to_apply)=(%?[\w.\-]+)", i.attributes)
    return {name: re.findall(r"[\w.\-]+", value) for name, value in found}


def _group_size(attributes: str) -> int:
    """Returns the number of devices per group, from replica_groups in any of its forms.

    Raises:
      ValueError: the form is unknown.
    """
    if "source_target_pairs=" in attributes:
        return 2
    mesh = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))?\s*\{([^}]*)\}"
    if found := re.search(mesh, attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return found[1].count(",") + 1
    raise ValueError(f"unknown form of replica_groups: {attributes:.300}")

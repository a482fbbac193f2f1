"""Collectives and memory traffic of a compiled program, read from its HLO text.

XLA's own cost analysis counts the body of a loop once; here every instruction is multiplied by the
trip counts of the loops around it. Must not import jax.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Opcodes without memory traffic themselves.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
        "call", "after-all", "partition-id", "replica-id", "opt-barrier"}  # fmt: skip
SLICES = {"dynamic-slice", "slice", "gather"}
UPDATE = "dynamic-update-slice"
START = "async-collective-start"
VIEWS = {"bitcast", "reshape", "convert"}
BITS = {
    "pred": 8,
    "s4": 4,
    "u4": 4,
    "bf16": 16,
    "tuple": 0,
    "token": 0,
}  # other names end in their bits

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
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


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    opcode: str
    rest: str  # from the operands to the end of the line
    is_root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest[: _closing(self.rest, depth=1)])


class HloProgram:
    """The computations of an HLO text, and how often each is executed."""

    def __init__(self, text: str):
        self._computations: dict[str, list[_Instruction]] = {}
        entry = ""
        for line in text.splitlines():
            if found := _COMPUTATION.match(line):
                body = self._computations[found[1]] = []
                entry = found[1] if line.startswith("ENTRY") else entry
            elif instruction := _parse(line):
                body.append(instruction)
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
            by_name = {i.name: i for i in self._computations[computation]}
            for i in by_name.values():
                kind = i.opcode.removesuffix("-done")
                if kind not in KINDS:
                    continue
                started = by_name.get(i.operands[0]) if i.opcode.endswith("-done") else None
                group = _group_size((started or i).rest)
                size = _size(i.type)
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
            by_name = {i.name: i for i in self._computations[computation]}
            total += times * sum(self._traffic(i, by_name) for i in by_name.values())
        return total

    def _traffic(self, i: _Instruction, by_name: dict[str, _Instruction]) -> int:
        if i.opcode in FREE or i.opcode.endswith(("-start", "-update")) or not i.operands:
            return 0
        if i.opcode.endswith("-done"):  # a copy from one memory to another, or a collective's
            return _size(i.type) + _size(i.type, far=True)
        types = [by_name[name].type for name in i.operands if name in by_name]
        if i.opcode in SLICES:
            return 2 * _size(i.type, far=True)
        if i.opcode == UPDATE:
            return 2 * _size(types[1], far=True)
        written = [_size(t, far=True) for t in _elements(i.type)]
        read = [_size(t, far=True) for t in types]
        if i.opcode == "fusion":
            fused = _called(i)["calls"][0]
            slices = self._written(fused)
            if len(slices) == len(written):  # else its root is not a tuple, and has several results
                written = [min(x) for x in zip(written, slices, strict=True)]
            read = [min(n, self._read(fused, index)) for index, n in enumerate(read)]
        return sum(written) + sum(read)

    def _read(self, computation: str, index: int) -> int:
        """Returns the bytes that a fusion reads of one of its operands."""
        body = self._computations[computation]

        def of(name: str, whole: int) -> int:
            total = 0
            for k in body:
                for position in (n for n, operand in enumerate(k.operands) if operand == name):
                    if k.opcode in SLICES and position == 0:
                        total += _size(k.type)
                    elif k.opcode == "fusion":
                        total += self._read(_called(k)["calls"][0], position)
                    elif k.opcode in VIEWS:
                        total += of(k.name, whole)
                    elif k.opcode != "tuple" and (k.opcode != UPDATE or position > 0):
                        return whole
            return min(total, whole)

        parameter = next(
            i for i in body if i.opcode == "parameter" and i.rest.startswith(f"{index})")
        )
        return of(parameter.name, _size(parameter.type))

    def _written(self, computation: str) -> list[int]:
        """Returns the bytes that a fusion writes of each result; of an update, only the slice."""
        body = {i.name: i for i in self._computations[computation]}

        def of(i: _Instruction) -> list[int]:
            if i.opcode == "tuple":
                return [sum(of(body[name])) for name in i.operands]
            if i.opcode in VIEWS:
                return of(body[i.operands[0]])
            if i.opcode == "fusion":
                return self._written(_called(i)["calls"][0])
            if i.opcode == UPDATE:
                return [_size(body[i.operands[1]].type)]
            return [_size(i.type)]

        return of(next(i for i in body.values() if i.is_root))

    def _count(self, computation: str, times: int) -> None:
        self._times[computation] += times
        for i in self._computations.get(computation, []):
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

    def _turns(self, i: _Instruction, called: dict[str, list[str]]) -> int:
        """Returns the trip count of a loop: as XLA notes it, or the number it counts up to."""
        if known := re.search(r'known_trip_count"?:?=?\s*\{"?n"?:"?(\d+)', i.rest):
            return int(known[1])
        numbers = [
            int(found[1])
            for computation in called.get("condition", ())
            for name in self._below(computation)
            for j in self._computations.get(name, ())
            if j.opcode == "constant" and (found := re.match(r"(\d+)\)", j.rest))
        ]
        return max(numbers, default=1)

    def _below(self, computation: str) -> Iterator[str]:
        yield computation
        for i in self._computations.get(computation, ()):
            for names in _called(i).values():
                for name in names:
                    yield from self._below(name)


def _parse(line: str) -> _Instruction | None:
    found = re.match(r"^\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    opcode, _, after = rest[end:].strip().partition("(")
    return _Instruction(found[2], rest[:end], opcode, after, bool(found[1]))


def _closing(text: str, depth: int = 0) -> int:
    """Returns the position of the bracket that closes the first one, or the one already open."""
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if not depth:
            return at
    return len(text)


def _called(i: _Instruction) -> dict[str, list[str]]:
    found = _CALLED.findall(i.rest)
    if i.opcode == "call":  # in other opcodes to_apply computes single numbers
        found += re.findall(r"\b(to_apply)=(%?[\w.\-]+)", i.rest)
    return {name: re.findall(r"[\w.\-]+", value) for name, value in found}


def _size(type_: str, *, far: bool = False) -> int:
    """Returns the bytes of a type or of a whole tuple; `far` omits fast memory, S(1)."""
    total = 0
    for dtype, shape, layout in _ARRAY.findall(type_):
        if far and re.search(r"S\([1-9]", layout):
            continue
        bits = BITS.get(dtype) if dtype in BITS else int((re.search(r"\d+", dtype) or [8])[0])
        total += math.prod(int(n) for n in shape.split(",") if n) * int(bits or 0) // 8
    return total


def _elements(type_: str) -> list[str]:
    """Returns the types in a tuple's type; for any other type, that one."""
    if not type_.startswith("("):
        return [type_]
    parts, depth, start = [], 0, 1
    for end, character in enumerate(type_):
        depth += (character in "([{") - (character in ")]}")
        if (character == "," and depth == 1) or (character == ")" and depth == 0):
            parts.append(type_[start:end])
            start = end + 1
    return parts


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

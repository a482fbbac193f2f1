"""The text of a compiled program, XLA's HLO, read into instructions. No jax is needed.

What they cost is in `hlo.py`, and for GPUs in `gpu_kernels.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "tuple": 0, "token": 0}  # others end in theirs
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: name = type opcode(arguments), attributes."""

    name: str
    type: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    def attribute(self, pattern: str) -> str:
        """Returns the first group of a pattern found in the attributes, or ''."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns {name: {instruction's name: instruction}} and the name of the entry computation."""
    computations: dict[str, Computation] = {}
    current: Computation = {}
    entry = ""
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif found := INSTRUCTION.match(line):
            current[found[2]] = _parse_instruction(*found.groups())
    return computations, entry


def _parse_instruction(root: str | None, name: str, rest: str) -> Instruction:
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    type_, call = rest[:end], rest[end:].strip()
    opcode, bracket, _ = call.partition("(")
    call = call[len(opcode) :] if bracket else "()"
    end = _closing(call)
    return Instruction(name, type_, opcode, call[1:end], call[end + 1 :], bool(root))


def _closing(text: str) -> int:
    """Returns the position of the bracket that closes the one that `text` begins with."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if not depth:
            return at
    return len(text)


def n_bytes(type_: str, *, far: bool = False) -> int:
    """Returns the bytes of all arrays in a type; `far` omits a TPU's fast memory, S(1)."""
    total = 0
    for dtype, dims, layout in ARRAY.findall(type_):
        if far and re.search(r"S\([1-9]", layout):
            continue
        bits = BITS.get(dtype) if dtype in BITS else int((re.search(r"\d+", dtype) or [8])[0])
        total += math.prod(int(n) for n in dims.split(",") if n) * int(bits or 0) // 8
    return total


def elements(type_: str) -> list[str]:
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

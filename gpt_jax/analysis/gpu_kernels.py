"""The kernels of a compiled GPU program, read from its text. No jax is needed."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

from gpt_jax.analysis.hlo_text import ARRAY, Computation, Instruction, n_bytes, parse

NO_WORK = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "iota", "opt-barrier", "copy-done", "fusion-done", "async-done",
    "all-reduce-done", "all-gather-done", "reduce-scatter-done", "all-to-all-done",
    "collective-permute-done",
}  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
FUSED_ATTENTION = "fmha"  # in the names of cuDNN's functions for it
SOURCE = r'op_name="([^"]*)"'
CALLS = r"(?:calls|to_apply|body)=%?([\w.\-]+)"
BRANCHES = r"(?:branch|true|false)_computations?=(\{[^}]*\}|%?[\w.\-]+)"
FLOPS_PER_BYTE = 300  # some, for which an H100 takes as long as for a byte: 989e12 / 3.35e12


def workspace_bytes(type_: str) -> int:
    """Returns the bytes of the scratch arrays that library calls return beside their result."""
    return sum(int(n) for n in re.findall(r"s8\[(\d+)\]", type_))


def without_layout(type_: str) -> str:
    """Returns a type for humans."""
    return re.sub(r"\{[^}]*\}", "", type_).strip("(")


def matmul(instruction: Instruction, computation: Computation) -> tuple[int, str, str]:
    """Returns a matrix product's operations, the dtype it is multiplied in, and its shapes.

    The dtype is "bf16", "tf32", or "f32" where the highest precision was asked for.
    """
    left, right = (computation[name].type for name in instruction.operands[:2])
    gone = set()  # dimensions of the right side that the result does not add to the left's
    for kind in ("contracting", "batch"):
        if instruction.opcode == "dot":
            found = instruction.attribute(rf"rhs_{kind}_dims=\{{([\d,]*)\}}")
        else:
            found = instruction.attribute(rf'"rhs_{kind}_dimensions":\[([^\]]*)\]')
        gone |= {int(n) for n in re.findall(r"\d+", found)}
    flops = 2 * math.prod(_shape(left))
    flops *= math.prod(n for i, n in enumerate(_shape(right)) if i not in gone)
    highest = "highest" in instruction.attributes.lower()
    dtype = "bf16" if left.startswith(("bf16", "f16")) else "f32" if highest else "tf32"
    result = "{}[{}]".format(*ARRAY.findall(instruction.type)[0][:2])
    return flops, dtype, f"{without_layout(left)} x {without_layout(right)} -> {result}"


def attention_flops(instruction: Instruction) -> int:
    """Returns the operations of cuDNN's attention: 2 products forward, 5 backward; causal: half."""
    scores = instruction.attribute(r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]')
    product = 2 * math.prod(map(int, re.findall(r"\d+", scores))) * _shape(instruction.type)[-1]
    n_products = 5 if "Backward" in instruction.attributes else 2
    causal = re.search(r'"mask_type":\s*"CAUSAL"', instruction.attributes)
    return n_products * product // (2 if causal else 1)


def _shape(type_: str) -> list[int]:
    return [int(n) for n in ARRAY.findall(type_)[0][1].split(",") if n]


@dataclasses.dataclass
class Kernel:
    """One execution of an instruction.

    Attributes:
      name: the instruction's.
      kind: custom call's target, fusion's kind or opcode.
      times: executions in a call of the program.
      bytes: read and written.
      flops: of matrix products.
      dtype: of the products: bf16, tf32 or f32; "" without.
      group: "kernel", "async" or "collective".
      shapes: of the products, or the result.
      source: the operation in the traced program.
      seconds: of all executions together, at least.
      unknown_times: whether it is in a loop whose length the compiler does not know: `times` then
        counts one iteration.
    """

    name: str
    kind: str
    times: int
    bytes: int = 0
    flops: int = 0
    dtype: str = ""
    group: str = "kernel"
    shapes: str = ""
    source: str = ""
    seconds: float = 0
    unknown_times: bool = False


def find_kernels(text: str) -> list[Kernel]:
    """Returns the kernels of a program, each with how often it is executed.

    Of a conditional those of one branch, the one with the most work.
    """
    computations, entry = parse(text)
    return list(_walk(computations, entry, 1))


def _walk(computations: dict[str, Computation], name: str, times: int) -> Iterator[Kernel]:
    for i in computations[name].values():
        if i.opcode == "while":
            iterations = i.attribute(r'"known_trip_count":\{"n":"(\d+)"\}')
            for kernel in _walk(computations, i.attribute(CALLS), times * int(iterations or 1)):
                kernel.unknown_times |= not iterations
                yield kernel
        elif i.opcode == "call":
            yield from _walk(computations, i.attribute(CALLS), times)
        elif i.opcode == "conditional":
            names = re.findall(r"[\w.\-]+", " ".join(re.findall(BRANCHES, i.attributes)))
            branches = [list(_walk(computations, name, times)) for name in names]
            yield from max(branches, key=_work, default=[])
        elif i.opcode not in NO_WORK:
            yield _make_kernel(i, times, computations[name], computations)


def _work(kernels: list[Kernel]) -> float:
    """Returns the bytes, or as many as the products take the time of, of some kernels."""
    return sum(k.times * max(k.bytes, k.flops / FLOPS_PER_BYTE) for k in kernels)


def _make_kernel(
    i: Instruction, times: int, names: Computation, computations: dict[str, Computation]
) -> Kernel:
    kernel = Kernel(i.name, i.opcode, times, shapes=without_layout(i.type)[:90])
    kernel.source = i.attribute(SOURCE)
    read = sum(n_bytes(names[name].type) for name in i.operands if name in names)
    if i.opcode == "custom-call":
        kernel.kind = i.attribute(r'custom_call_target="([^"]*)"')
        kernel.bytes = n_bytes(i.type) + read - workspace_bytes(i.type)
        if "matmul" in kernel.kind or "gemm" in kernel.kind:
            kernel.flops, kernel.dtype, kernel.shapes = matmul(i, names)
        elif FUSED_ATTENTION in kernel.kind:
            kernel.flops, kernel.dtype = attention_flops(i), "bf16"
    elif i.opcode in ("fusion", "fusion-start"):
        _describe_fusion(kernel, i, names, computations[i.attribute(CALLS)])
    elif i.opcode.startswith(COLLECTIVES):
        kernel.group, kernel.bytes = "collective", read
    elif i.opcode.endswith("-start"):  # its type holds the argument again
        kernel.group, kernel.bytes = "async", 2 * read
    else:
        kernel.bytes = n_bytes(i.type) + read
    return kernel


def _describe_fusion(kernel: Kernel, i: Instruction, names: Computation, body: Computation) -> None:
    kernel.kind = f"fusion {i.attribute(r'kind=(k[A-Za-z]+)')}"
    kernel.kind += " triton" if "__triton" in i.attributes else ""
    kernel.group = "async" if i.opcode == "fusion-start" else "kernel"
    kernel.bytes = fusion_bytes(i, names, body)
    named = [name for inner in body.values() if (name := inner.attribute(SOURCE))]
    kernel.source = kernel.source or (named[-1] if named else "")
    for inner in body.values():
        library = 'custom_call_target="__cublas' in inner.attributes
        if library or inner.opcode == "dot":
            flops, kernel.dtype, kernel.shapes = matmul(inner, body)
            kernel.flops += flops
            kernel.source = inner.attribute(SOURCE) or kernel.source
            kernel.kind = f"matmul, {'slices its arguments' if library else 'fused'}"


def fusion_bytes(fusion: Instruction, names: Computation, body: Computation) -> int:
    """Returns the bytes that a fusion moves; of arrays it only slices or updates, that part."""
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for instruction in body.values():
        for operand in instruction.operands:
            users[operand].append(instruction)
    parameters = {int(i.arguments): name for name, i in body.items() if i.opcode == "parameter"}
    total = 0
    for i, operand in enumerate(fusion.operands):
        whole = n_bytes(names[operand].type) if operand in names else 0
        total += int(min(whole, _bytes_read(parameters[i], users) if i in parameters else whole))
    root = next(i for i in body.values() if i.is_root)
    return total + _bytes_written(root, body) - workspace_bytes(fusion.type)


def _bytes_read(name: str, users: dict[str, list[Instruction]]) -> float:
    """Returns the bytes that users read of `name`: through views what is sliced; infinite: all."""
    total = 0.0
    for user in users[name]:
        first = user.operands[0] == name
        if user.opcode in ("bitcast", "slice", "dynamic-slice") and first:
            total += min(n_bytes(user.type), _bytes_read(user.name, users))
        elif user.opcode == "gather" and first:
            total += n_bytes(user.type)
        elif user.opcode != "dynamic-update-slice" or not first:
            return math.inf
    return total if users[name] else math.inf


def _bytes_written(result: Instruction, body: Computation) -> int:
    if result.opcode == "dynamic-update-slice":
        return n_bytes(body[result.operands[1]].type)
    if result.opcode == "bitcast":
        return _bytes_written(body[result.operands[0]], body)
    if result.opcode == "tuple":
        return sum(_bytes_written(body[name], body) for name in result.operands)
    return n_bytes(result.type)

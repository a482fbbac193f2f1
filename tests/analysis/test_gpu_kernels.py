"""The kernels of compiled GPU programs: loops and conditionals."""

import pytest

from gpt_jax.analysis import plan
from gpt_jax.analysis.gpu_kernels import find_kernels

# Each `f32[n]` negated reads and writes 4 n bytes.
PROGRAM = """\
HloModule handmade

%small (s: f32[8]) -> f32[8] {
  %s = f32[8]{0} parameter(0)
  ROOT %small_work = f32[8]{0} negate(%s)
}

%large (l: f32[64]) -> f32[8] {
  %l = f32[64]{0} parameter(0)
  %large_work = f32[64]{0} negate(%l)
  ROOT %cut = f32[8]{0} slice(%large_work), slice={[0:8]}
}

%product (q: f32[64,64]) -> f32[8] {
  %q = f32[64,64]{1,0} parameter(0)
  %multiplied = f32[64,64]{1,0} dot(%q, %q), rhs_contracting_dims={0}
  ROOT %cut2 = f32[8]{0} slice(%multiplied), slice={[0:8]}
}

%inner (i: f32[8]) -> f32[8] {
  %i = f32[8]{0} parameter(0)
  ROOT %inner_work = f32[8]{0} negate(%i)
}

%outer (o: f32[8]) -> f32[8] {
  %o = f32[8]{0} parameter(0)
  %outer_work = f32[8]{0} negate(%o)
  ROOT %again = f32[8]{0} while(%outer_work), condition=%c, body=%inner INNER
}

ENTRY %main (x: f32[8], p: pred[], y: f32[64]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %p = pred[] parameter(1)
  %y = f32[64]{0} parameter(2)
  %chosen = f32[8]{0} conditional(%p, %x, %y), BRANCHES
  ROOT %loop = f32[8]{0} while(%chosen), condition=%c, body=%outer OUTER
}
"""


def times(iterations: int | None) -> str:
    known = f'backend_config={{"known_trip_count":{{"n":"{iterations}"}}}}'
    return "" if iterations is None else f", {known}"


def kernels_of(branches="branch_computations={%small, %large}", outer=5, inner=3):
    text = PROGRAM.replace("BRANCHES", branches)
    return {
        k.name: k
        for k in find_kernels(text.replace("OUTER", times(outer)).replace("INNER", times(inner)))
    }


@pytest.mark.parametrize(
    ("branches", "chosen"),
    [
        ("branch_computations={%small, %large}", "large_work"),
        ("branch_computations={%large, %small}", "large_work"),
        ("branch_computations={%small, %large, %small}", "large_work"),
        ("true_computation=%small, false_computation=%large", "large_work"),
        ("true_computation=%large, false_computation=%small", "large_work"),
        ("branch_computations={%large, %product}", "multiplied"),
        ("true_computation=%small, false_computation=%small", "small_work"),
    ],
)
def test_of_a_conditional_the_largest_branch_counts(branches, chosen):
    found = set(kernels_of(branches)) - {"outer_work", "inner_work"}
    assert {name for name in found if not name.startswith("cut")} == {chosen}


def test_a_loop_in_a_loop_multiplies():
    found = kernels_of()
    assert (found["outer_work"].times, found["inner_work"].times) == (5, 15)
    assert not any(kernel.unknown_times for kernel in found.values())


@pytest.mark.parametrize(
    ("outer", "inner", "unknown"),
    [
        (None, 3, {"outer_work": 1, "inner_work": 3}),
        (5, None, {"inner_work": 5}),
        (None, None, {"outer_work": 1, "inner_work": 1}),
    ],
)
def test_a_loop_of_unknown_length_is_counted_once_and_said(outer, inner, unknown):
    kernels = kernels_of(outer=outer, inner=inner)
    assert {name: k.times for name, k in kernels.items() if k.unknown_times} == unknown
    (note,) = plan._counted_once(list(kernels.values()))
    assert note.startswith(f"{len(unknown)} kernels are in loops whose length XLA does not know")


def test_loops_of_known_length_need_no_note():
    assert plan._counted_once(list(kernels_of().values())) == ()

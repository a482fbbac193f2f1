"""What is read from HLO: collectives and memory traffic, as often as loops turn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gpt_jax.analysis import hlo

# Forms that a TPU's compiler writes, cut down.
TPU = """
%cond.1 (p.1: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[], f32[8]{0}) parameter(0)
  %n.1 = s32[] constant(12)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt.1 = pred[] compare(%i.1, %n.1), direction=LT
}

%body.1 (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.2 = (s32[], /*index=1*/f32[8]{0:T(128)S(1)}) parameter(0)
  %x.2 = f32[8]{0:T(128)S(1)} get-tuple-element(%p.2), index=1
  %ar.2 = (f32[8]{0}, f32[4,2]{1,0:T(8,128)S(1)}) all-reduce(%x.2, %x.2), GROUPS
  %start.2 = (f32[8], f32[32]) all-gather-start(%x.2), replica_groups=[2,4]<=[8], dimensions={0}
  %done.2 = f32[32]{0} all-gather-done(%start.2)
  ROOT %t.2 = (s32[], f32[8]) tuple(%p.2, %x.2)
}

%all-reduce-scatter.3 (p.3: f32[16]) -> f32[4] {
  %p.3 = f32[16]{0} parameter(0)
  %ar.3 = f32[16]{0} all-reduce(%p.3), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %ds.3 = f32[4]{0} dynamic-slice(%ar.3, %z), dynamic_slice_sizes={4}
}

%fused.4 (p.4: f32[1]) -> f32[4] {
  %p.4 = f32[1]{0} parameter(0)
  ROOT %ag.4 = f32[4]{0} all-gather(%p.4), channel_id=7, replica_groups=[1,4]<=[4]
}

%async_collective_fusion.5 (p.5: f32[1]) -> f32[4] {
  %p.5 = f32[1]{0} parameter(0)
  ROOT %ag.5 = f32[4]{0} all-gather(%p.5), channel_id=7, replica_groups=[1,4]<=[4]
}

%fused.6 (p.6: f32[1]) -> f32[4] {
  %p.6 = f32[1]{0} parameter(0)
  ROOT %ag.6 = f32[4]{0} all-gather(%p.6), channel_id=7, replica_groups=[1,4]<=[4]
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %async-collective-start = f32[4]{0} fusion(%b), kind=kCustom, calls=%fused.4
  %product = f32[4]{0} fusion(%b), kind=kOutput, calls=%async_collective_fusion.5
  %async-collective-done = f32[4]{0} fusion(%b), kind=kCustom, calls=%fused.6
  %a = f32[8]{0} parameter(0)
  %w = (s32[], f32[8]) while(%t), condition=%cond.1, body=%body.1, metadata={op_name="x"}
  %f = f32[4]{0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.3
  %p = bf16[6]{0} collective-permute(%b), source_target_pairs={{0,1},{1,0}}
  %alone = f32[4]{0} all-reduce(%b), replica_groups={{0},{1}}, to_apply=%add
  ROOT %r = f32[8]{0} copy(%a)
}
""".replace("GROUPS", "replica_groups=mesh['axis_0'=2,'axis_1'=4,'axis_2'=1] {'axis_1'}")


def test_collectives_of_a_tpus_program():
    found = {c.kind: c for c in hlo.HloProgram(TPU).collectives()}
    assert found == {
        "all-reduce": hlo.Collective("all-reduce", 4, 12, 64, 12 * 2 * 3 / 4 * 64),
        "all-gather": hlo.Collective("all-gather", 4, 13, 128, 12 * 3 / 4 * 128 + 3 / 4 * 16),
        "reduce-scatter": hlo.Collective("reduce-scatter", 4, 1, 16, 3 * 16),
        "collective-permute": hlo.Collective("collective-permute", 2, 1, 12, 12),
    }


@pytest.mark.parametrize(
    ("form", "size"),
    [
        ("replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0','axis_1'}, dimensions={0}", 4),
        (
            "replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=8], device_ids=([4,8]T(1,0)) "
            "{'axis_2'}, dimensions={1}",
            8,
        ),
        ("replica_groups=mesh['axis_0'=16] {'axis_0':(1)4}", 4),
        ("replica_groups=[2,8]<=[4,4]T(1,0)", 8),
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
    ],
)
def test_how_many_take_part(form, size):
    assert hlo._group_size(f"%x), channel_id=1, {form}, to_apply=%add") == size


def test_a_form_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="unknown form of replica_groups: %x, replica_groups=new"):
        hlo._group_size("%x, replica_groups=new")


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))


def test_collectives_count_as_often_as_loops_turn(mesh):
    """5 turns, each with the sum of 1,000 numbers over 8 devices."""

    def f(x):
        def body(total, _):
            return total + jnp.sin(x * total.mean()).sum(axis=0), None

        return jax.lax.scan(body, jnp.ones(1000), None, length=5)[0]

    sharding = NamedSharding(mesh, P("d"))
    x = jax.ShapeDtypeStruct((16, 1000), np.float32, sharding=sharding)
    program = jax.jit(f, out_shardings=NamedSharding(mesh, P())).lower(x).compile()
    (found,) = hlo.HloProgram(program.as_text()).collectives()
    assert (found.kind, found.group, found.times, found.bytes_each) == ("all-reduce", 8, 5, 4000)
    assert found.bytes_sent == 5 * 2 * 7 / 8 * 4000


def test_memory_traffic_takes_slices_as_slices():
    """A loop over the rows of a matrix reads and writes each once, not the matrix for each."""
    n, width = 50, 4096

    def f(x):
        return jax.lax.map(lambda row: jnp.sin(row) * 2, x)

    x = jax.ShapeDtypeStruct((n, width), np.float32)
    read = hlo.HloProgram(jax.jit(f).lower(x).compile().as_text())
    matrix = 4 * n * width
    # Each row in and out; XLA may copy a row, or clear the result, on the way.
    assert 2 * matrix <= read.memory_traffic() <= 6 * matrix
    whole = hlo.HloProgram(jax.jit(lambda x: x @ x.T).lower(x).compile().as_text())
    assert whole.memory_traffic() >= matrix + 4 * n * n


TRAFFIC = """
%fused.1 (p.1: f32[100,8], p.2: s32[]) -> f32[1,8] {
  %p.1 = f32[100,8]{1,0} parameter(0)
  %p.2 = s32[] parameter(1)
  %s.1 = f32[1,8]{1,0} dynamic-slice(%p.1, %p.2, %p.2), dynamic_slice_sizes={1,8}
  ROOT %r.1 = f32[1,8]{1,0} sine(%s.1)
}

%fused.2 (p.3: f32[100,8], p.4: f32[1,8]) -> f32[100,8] {
  %p.3 = f32[100,8]{1,0} parameter(0)
  %p.4 = f32[1,8]{1,0} parameter(1)
  %z.2 = s32[] constant(3)
  ROOT %r.2 = f32[100,8]{1,0} dynamic-update-slice(%p.3, %p.4, %z.2, %z.2)
}

ENTRY %main (a: f32[100,8], i: s32[]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
INSTRUCTION
}
"""


@pytest.mark.parametrize(
    ("instruction", "n_bytes"),
    [
        ("%x = f32[100,8]{1,0} add(%a, %a)", 3 * 3200),
        ("%x = f32[100,8]{1,0:S(1)} add(%a, %a)", 2 * 3200),  # into fast memory
        ("%x = f32[1,8]{1,0} dynamic-slice(%a, %i, %i), dynamic_slice_sizes={1,8}", 2 * 32),
        ("%u = f32[1,8] parameter(2)\n  %x = f32[100,8] dynamic-update-slice(%a, %u, %i)", 2 * 32),
        ("%x = f32[1,8]{1,0} fusion(%a, %i), kind=kLoop, calls=%fused.1", 32 + 32 + 4),
        (
            "%u = f32[1,8] parameter(2)\n"
            "  %x = f32[100,8]{1,0} fusion(%a, %u), kind=kLoop, calls=%fused.2",
            32 + 32,
        ),
        ("%x = f32[800]{0} bitcast(%a)", 0),
        ("%x = f32[1,8]{1,0} call(%a, %i), to_apply=%fused.1", 32 + 32 + 32 + 32),
    ],
    ids=["whole", "fast", "slice", "update", "fused slice", "fused update", "view", "call"],
)
def test_what_an_instruction_moves_through_memory(instruction, n_bytes):
    text = TRAFFIC.replace("INSTRUCTION", f"  {instruction}")
    assert hlo.HloProgram(text).memory_traffic() == n_bytes

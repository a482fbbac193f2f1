"""The bound on the time of a decoded token; programs are compiled in `tests/gpu`."""

import pytest

from gpt_jax.analysis import decode_plan
from gpt_jax.analysis.decode_plan import DecodeBound, decode_bound, mean_bound, tokens_by_positions
from gpt_jax.analysis.gpu_bound import Rates
from gpt_jax.inference.decoding import STREAM_TOKENS, filled_positions

# A loop over the tokens of a call with a kernel of the head and a sum over devices, beside which
# the call copies once.
CALL = """\
HloModule handmade

%body (carry: f32[100]) -> f32[100] {
  %carry = f32[100]{0} parameter(0)
  %sent = f32[100]{0} all-reduce(%carry), to_apply=%add
  ROOT %logits = f32[100]{0} negate(%sent), metadata={op_name="jit(_decode)/while/body/head/neg"}
}

ENTRY %main (x: f32[100], y: f32[400]) -> f32[100] {
  %x = f32[100]{0} parameter(0)
  %y = f32[400]{0} parameter(1)
  %once = f32[400]{0} copy(%y)
  ROOT %loop = f32[100]{0} while(%x), condition=%less, body=%body, \
backend_config={"known_trip_count":{"n":"32"}}
}
"""


def test_a_token_has_its_kernels_and_its_share_of_the_call():
    rates = Rates(bf16=1e3, tf32=1e3, f32=1e3, bandwidth=1e3, network=1.0)
    bound = decode_bound(CALL, rates, streams=4, positions=256)
    assert (bound.streams, bound.positions) == (4, 256)
    assert bound.launches == 2 + 1 / STREAM_TOKENS
    assert bound.seconds == pytest.approx(0.8 + 3.2 / STREAM_TOKENS)  # without the sum
    assert {group.name for group in bound.groups} == {"output head", "copies", "collectives"}
    assert bound.bytes == pytest.approx(800 + 400 + 3200 / STREAM_TOKENS)


@pytest.mark.parametrize(
    ("block_size", "expected"),
    [
        (64, {64: 64}),
        (256, {256: 256}),
        (1024, {256: 256, 512: 256, 1024: 512}),
        (1000, {256: 256, 512: 256, 1000: 488}),
        (8192, {256: 256, 512: 256, 1024: 512, 2048: 1024, 4096: 2048, 8192: 4096}),
    ],
)
def test_each_token_of_a_context_reads_the_positions_that_its_program_does(block_size, expected):
    assert tokens_by_positions(block_size) == expected
    assert sum(expected.values()) == block_size
    assert max(expected) == filled_positions(block_size, block_size)


def test_the_mean_weighs_by_tokens():
    bounds = {n: DecodeBound(2, n, n, 1e-6 * n, 10 * n, 0) for n in (256, 1024)}
    mean = mean_bound(bounds, {256: 1, 1024: 3})
    assert (mean.streams, mean.positions, mean.launches) == (2, None, 832)
    assert mean.seconds == pytest.approx(832e-6)
    assert str(mean).split() == ["2", "mean", "832", "832.0", "0.0", "0"]
    assert len(str(mean)) == len(decode_plan.HEADING.splitlines()[-1])

"""Described devices: which of them decode together."""

import itertools
from types import SimpleNamespace

import jax
import pytest

from gpt_jax.analysis import topologies


def slice_of(kind, sides, host_sides):
    """A slice's chips, numbered along its first side first, those of a host before the next's."""
    chips = [c[::-1] for c in itertools.product(*(range(n) for n in reversed(sides)))]
    hosts = sorted({tuple(x // n for x, n in zip(c, host_sides, strict=True)) for c in chips})
    host_of = lambda c: hosts.index(tuple(x // n for x, n in zip(c, host_sides, strict=True)))
    devices = [
        SimpleNamespace(id=i, process_index=host_of(c), coords=c, device_kind=kind)
        for i, c in enumerate(chips)
    ]
    return sorted(devices, key=lambda d: (d.process_index, d.id))


@pytest.mark.parametrize(
    ("kind", "sides", "host_sides", "expected"),
    [
        ("TPU v5 lite", (4, 4, 1), (2, 2, 1), "v5e:2x2"),  # the ids 0, 1, 4, 5
        ("TPU v6 lite", (8, 8, 1), (2, 2, 1), "v6e:2x2"),
        ("TPU v5", (2, 2, 4), (2, 2, 1), "v5p:2x2x1"),
    ],
)
def test_a_host_of_a_described_slice_is_a_slice_of_its_own(
    monkeypatch, kind, sides, host_sides, expected
):
    monkeypatch.setattr(topologies, "topology_devices", lambda name: [name])
    devices = slice_of(kind, sides, host_sides)
    assert topologies.host_devices(devices) == [expected]
    alone = slice_of(kind, host_sides, host_sides)
    assert topologies.host_devices(alone) == alone


def test_real_devices_and_gpus_are_their_own_host():
    real = jax.local_devices()
    assert topologies.host_devices(real) == real
    gpus = [SimpleNamespace(process_index=i // 4, device_kind="NVIDIA H100") for i in range(8)]
    assert topologies.host_devices(gpus) == gpus[:4]

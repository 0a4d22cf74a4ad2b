"""Memory that is kept between training steps goes back afterwards."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from moon_ops.encoder import allocator


def faults_of(rounds: int) -> int:
    """Page faults of touching 16 MiB, and freeing it, so many times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        np.ones(2 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(allocator._glibc() is None, reason="this system's C library is not glibc")
def test_freed_memory_is_kept_within_and_given_back_after() -> None:
    with allocator.memory_kept():
        faults_of(1)
        within = faults_of(20)
    assert within < faults_of(20) / 10


def test_an_error_ends_it_and_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nan"), allocator.memory_kept():
        raise ValueError("nan")
    monkeypatch.setattr("sys.platform", "darwin")
    with allocator.memory_kept():
        assert allocator._glibc() is None

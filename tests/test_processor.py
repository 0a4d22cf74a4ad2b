"""The processor as figures name it, from what Linux says of four kinds and of none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moon_ops.processor import RESTRICTED, Processor, cores, described, processor, quota

ZEN3 = "processor\t: 0\nmodel name\t: AMD EPYC 7003\nflags\t\t: fpu sse4_2 avx avx2 fma\n\nprocessor\t: 1\nmodel name\t: AMD EPYC 7003\n"


def with_flags(*flags: str) -> str:
    return ZEN3.replace("fma", " ".join(("fma", *flags)))


@pytest.mark.parametrize(
    ("flags", "instructions", "bf16"),
    [
        ((), "AVX2", False),
        (("avx512f",), "AVX-512", False),
        (("avx512f", "avx512_bf16"), "AVX-512 BF16", True),
        (("avx512f", "avx512_bf16", "amx_tile", "amx_bf16"), "AMX", True),
    ],
)
def test_the_widest_instructions_are_named(flags: tuple[str, ...], instructions: str, bf16: bool) -> None:
    assert described(with_flags(*flags), {}, 2) == Processor("AMD EPYC 7003", 2, instructions, bf16)


@pytest.mark.parametrize("variable", RESTRICTED)
def test_a_restricted_processor_is_the_smaller_one(variable: str) -> None:
    found = described(with_flags("avx512f", "avx512_bf16", "amx_bf16"), {variable: RESTRICTED[variable]}, 4)
    assert (found.instructions, found.bf16) == ("restricted to AVX2", False)
    assert str(found) == "4 cores of AMD EPYC 7003 (restricted to AVX2)"


def test_another_system_is_named_by_its_architecture() -> None:
    found = described("", {}, 1)
    assert found.name
    assert not found.bf16


def test_this_machine_has_a_name_and_the_cores_it_lends_us() -> None:
    assert processor().cores == cores() <= (os.cpu_count() or 1)


def test_a_benchmark_says_what_it_ran_on() -> None:
    found = Processor("AMD EPYC 7003", 2, "AVX2", bf16=False).beside("float32")
    assert found == {"processor": "AMD EPYC 7003", "cores": 2, "instructions": "AVX2", "precision": "float32"}


V1 = "9:name=systemd:/\n4:memory:/docker/1f\n1:cpu,cpuacct:/docker/1f\n"


@pytest.mark.parametrize(
    ("groups", "files", "share"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),  # a container, in a namespace of its own
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000", "cpu.max": "max 100000"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "max 100000"}, 0.5),
        ("0::/../elsewhere\n", {"cpu.max": "300000 100000"}, 3.0),
        (V1, {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),  # the path is the host's, and not there
        (V1, {"cpu,cpuacct/docker/1f/cpu.cfs_quota_us": "100000", "cpu,cpuacct/docker/1f/cpu.cfs_period_us": "50000"}, 2.0),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        (V1, {"memory/cpu.max": "100000 100000"}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("0::/\n", {"cpu.max": "0 0"}, None),
        ("nonsense", {"cpu.max": "100000 100000"}, None),
        ("", {"cpu.max": "100000 100000"}, None),
    ],
)
def test_a_containers_share_of_time_is_read(groups: str, files: dict[str, str], share: float | None, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert quota(groups, tmp_path) == share


@pytest.mark.parametrize(("share", "count"), [(None, 4), (1.5, 2), (2.0, 2), (0.5, 1), (16.0, 4)])
def test_cores_are_those_that_the_container_has(share: float | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr("moon_ops.processor.quota", lambda *_: share)
    assert cores() == count

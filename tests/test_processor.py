"""The processor as figures name it, from what Linux says of four kinds and of none."""

from __future__ import annotations

import os

import pytest

from moon_ops.processor import RESTRICTED, Processor, cores, described, processor

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

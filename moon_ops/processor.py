"""What this machine multiplies with: its processor, the cores at hand, and the widest instructions that the libraries may use.

Every figure of speed names these. Nothing heavy is imported: a benchmark's header and ``.ci/run`` ask this, too.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RESTRICTED = {  # variables with which torch, oneDNN and MKL are kept to a smaller processor's instructions, and how each names AVX2
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


@dataclass(frozen=True)
class Processor:
    """Name, cores that this process may use, instruction set, and whether it multiplies bfloat16 in hardware."""

    name: str
    cores: int
    instructions: str  # "AMX", "AVX-512 BF16", "AVX-512", "AVX2", or the architecture
    bf16: bool

    def __str__(self) -> str:
        """E.g. ``2 cores of AMD EPYC 7003 (AVX2)``."""
        return f"{self.cores} core{'s' if self.cores > 1 else ''} of {self.name} ({self.instructions})"

    def beside(self, precision: str) -> dict[str, str | int]:
        """What a benchmark writes beside its figures; ``precision``: what they were computed in."""
        return {"processor": self.name, "cores": self.cores, "instructions": self.instructions, "precision": precision}


def processor() -> Processor:
    """This machine's, as far as the environment lets the libraries use it."""
    info = Path("/proc/cpuinfo")
    return described(info.read_text() if info.is_file() else "", os.environ, cores())


def bound() -> int:
    """Cores that this process is bound to, whatever share of their time it has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> int:
    """Cores that this process may use: those that it is bound to, or fewer where its container's share of time is less."""
    groups = Path("/proc/self/cgroup")
    share = quota(groups.read_text() if groups.is_file() else "", Path("/sys/fs/cgroup"))
    return bound() if share is None else max(min(bound(), math.ceil(share)), 1)


def quota(groups: str, mounted: Path) -> float | None:
    """Cores' worth of time that the control groups allow, e.g. 1.5; None where nothing limits it.

    ``groups`` is the content of Linux's ``/proc/self/cgroup``, ``mounted`` where its tree lies. A group has what the least of it and the
    groups around it has; a container sees its own as the root.
    """
    found: list[float] = []
    for fields in (line.split(":", 2) for line in groups.splitlines() if line.count(":") >= 2):
        _, controllers, path = fields
        if controllers and "cpu" not in controllers.split(","):
            continue
        trees = [mounted] if not controllers else [mounted / controllers, mounted / "cpu"]  # version 2, or 1
        for tree in trees:
            place = tree / path.lstrip("/")
            found += [share for at in (place, *place.parents) if at.is_relative_to(tree) and (share := _share(at)) is not None]
    return min(found, default=None)


def _share(group: Path) -> float | None:
    """A group's own limit: ``cpu.max`` of version 2, or the two files of version 1."""
    try:
        if (group / "cpu.max").is_file():
            allowed, period = (group / "cpu.max").read_text().split()
        else:
            allowed, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return int(allowed) / int(period) if int(allowed) > 0 and int(period) > 0 else None
    except (OSError, ValueError):  # not there, not ours to read, or "max"
        return None


def described(info: str, variables: Mapping[str, str], count: int) -> Processor:
    """The processor of ``info``, the content of Linux's ``/proc/cpuinfo``; without one, the architecture's name."""
    lines = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = set(fields.get("flags", "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    restricted = [variable for variable, least in RESTRICTED.items() if variables.get(variable, "").upper() == least.upper()]
    if not restricted:
        for found, instructions in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512 BF16")):
            if found in flags:
                return Processor(name, count, instructions, bf16=True)
        if "avx512f" in flags:
            return Processor(name, count, "AVX-512", bf16=False)
    elif "avx2" in flags:
        return Processor(name, count, "restricted to AVX2", bf16=False)
    return Processor(name, count, "AVX2" if "avx2" in flags else platform.machine(), bf16=False)

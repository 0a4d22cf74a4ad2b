"""What sharding and recomputed blocks save: bytes a process at 1, 2 and 4 processes beside the formula, and what a step keeps in memory.

Processes on one machine (gloo) train the small model of ``encoder_gpu.py`` for three steps in float32 with AdamW. Full sharding: weights,
gradients and two moments, 16 bytes a weight, by the number of processes. Peaks are the kernel's, of the first process, with libraries.
``--processes 1,2,4``; ``--json`` prints one object as the last line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import figures

SCRIPT = Path(__file__).with_name("encoder_gpu.py")


def measured(processes: int, *options: str) -> dict[str, float]:
    """The benchmark's own figures, of the first of so many processes."""
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *many, str(SCRIPT), "--model", "tiny", "--steps", "3", "--json", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def table() -> dict[str, object]:
    """Both halves."""
    out: dict[str, object] = {}
    for processes in map(int, figures.option("processes", "1,2,4").split(",")):
        one = measured(processes, "--sharding", "full")
        parts = {name: one[f"{name}_bytes"] for name in ("weights", "gradients", "optimizer")}
        shown = ", ".join(f"{name} {size / 2**20:.2f}" for name, size in parts.items())
        print(f"{processes} processes: {shown}; {sum(parts.values()) / 2**20:.2f} MiB, by the formula {one['expected_bytes'] / 2**20:.2f}")
        out |= {f"bytes_{processes}": sum(parts.values()), f"formula_{processes}": one["expected_bytes"]}
    for name, options in {"kept": [], "recomputed": ["--recompute"]}.items():
        one = measured(1, "--batch", "256", *options)
        print(f"{name}: peak {one['peak_bytes'] / 2**20:,.0f} MiB, {one['seconds_a_step']:.2f} s a step of 256 pairs")
        out |= {f"peak_{name}_mib": one["peak_bytes"] / 2**20, f"seconds_{name}": one["seconds_a_step"]}
    return out


if __name__ == "__main__":
    figures.main(table)

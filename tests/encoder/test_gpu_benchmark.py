"""The benchmark that waits for a GPU: it refuses without one, and its small model runs anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def measured(*options: str) -> subprocess.CompletedProcess[str]:
    place = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / "encoder_gpu.py"), *options]
    return subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True, timeout=300, check=False)


def test_without_a_gpu_a_large_model_is_refused() -> None:
    done = measured("--model", "2b")
    assert done.returncode == 1
    assert "--model 2b needs a GPU, and there is none here → run it where there is one; --model tiny runs anywhere" in done.stderr


@pytest.mark.slow
def test_the_small_model_runs_anywhere_and_claims_no_share_of_a_gpu() -> None:
    done = measured("--model", "tiny", "--steps", "2", "--batch", "4", "--chunk", "3", "--recompute", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["device"], found["mfu"], found["processes"], found["batch"]) == ("cpu", None, 1, 4)
    assert found["weights_bytes"] == found["gradients_bytes"] == 4 * (found["parameters"] + 1)  # and the temperature
    assert found["operations_a_pair"] > 6 * found["parameters"]
    assert "this was a check of the benchmark on a CPU" in done.stdout

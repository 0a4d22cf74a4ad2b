"""The benchmark that waits for a GPU: it refuses without one, and its small model runs anywhere."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moon_ops.errors import InputError

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("encoder_gpu")


def test_without_a_gpu_a_large_model_is_refused(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for model in ("256m", "2b"):
        monkeypatch.setattr(sys, "argv", ["encoder_gpu.py", "--model", model])
        with pytest.raises(InputError, match=f"--model {model} needs a GPU, and there is none here → .*; --model tiny runs anywhere"):
            benchmark.table()


def test_a_gpu_that_nobody_has_rated_is_refused_by_name(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    names = iter(("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "Some GPU"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: next(names))
    monkeypatch.setattr(sys, "argv", ["encoder_gpu.py"])
    assert [benchmark.peak("2b") for _ in range(2)] == [989e12, 312e12]
    with pytest.raises(InputError, match="nobody has said how much Some GPU computes → give --peak"):
        benchmark.peak("2b")


def test_the_small_model_runs_anywhere_and_claims_no_share_of_a_gpu(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["encoder_gpu.py", "--model", "tiny", "--steps", "2", "--batch", "4", "--chunk", "3", "--recompute"])
    found = benchmark.table()
    assert (found["device"], found["mfu"], found["processes"], found["batch"]) == ("cpu", None, 1, 4)
    assert found["weights_bytes"] == found["gradients_bytes"] == 4 * (found["parameters"] + 1)  # and the temperature
    assert found["operations_a_pair"] > 6 * found["parameters"]
    assert "this was a check of the benchmark on a CPU" in capsys.readouterr().out

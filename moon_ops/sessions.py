"""ONNX Runtime sessions: on the GPU where there is one, without idle threads that spin, and quiet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
ERRORS = 3  # and no warnings: of each graph there are dozens


def has_gpu() -> bool:
    """Whether a CUDA provider would load: the GPU wheel offers it on every machine, and complains where there is no driver."""
    return CUDA in ort.get_available_providers() and any(Path("/dev").glob("nvidia[0-9]*"))


def session(graph: Path, *, threads: int = 0, cuda: Mapping[str, str] | None = None) -> ort.InferenceSession:
    """The graph, ready to run on ``threads`` (0: as many as there are cores), or on the GPU with the options ``cuda``."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would take the decoders' cores
    options.log_severity_level = ERRORS
    gpu: list[Any] = [] if cuda is None else [(CUDA, dict(cuda))]
    return ort.InferenceSession(graph, options, providers=[*gpu, CPU])

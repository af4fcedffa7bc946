"""The towers: ids or pixels to embeddings, by onnxruntime. The only file that imports it.

It neither reads text nor images, and does not know where the files are.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

# Official builds from 1.29 on report each session to Microsoft (onnxruntime/Privacy.md); read when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from numpy.typing import NDArray

from .errors import ModelDirError


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_tower(graph: Path, threads: int) -> onnxruntime.InferenceSession:
    """Open a tower for use from many threads at once, each call taking `threads` of them.

    Raises ModelDirError where onnxruntime cannot read the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # with varying shapes the arena only grows, and never shrinks
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelDirError(f"{graph} cannot be opened by onnxruntime {onnxruntime.__version__}: {error}") from error


def run_text(tower: onnxruntime.InferenceSession, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """ids [n, t] int64, shorter rows filled up with <|endoftext|>, to embeddings [n, embed_dim] float32."""
    return tower.run(["embedding"], {"ids": ids})[0]


def run_image(tower: onnxruntime.InferenceSession, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """pixels [n, 3, side, side] float32 to embeddings [n, embed_dim] float32."""
    return tower.run(["embedding"], {"pixels": pixels})[0]

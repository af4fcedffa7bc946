"""Runs the towers with onnxruntime: ids or pixels to embeddings. The only file that imports it.

It neither reads text nor images, and does not know where the files are.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np

# Official builds from 1.29 on report each session to Microsoft (onnxruntime/Privacy.md); read when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from numpy.typing import NDArray

from .errors import ModelDirError

SPIN_US = "20"
PROBE_WIDTH, PROBE_LEVEL = 64, 127  # the probe's matrix [width, width] has this signed level all over, and scale 1


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def open_tower(graph: Path, threads: int, one_shape: bool = False) -> onnxruntime.InferenceSession:
    """Open a tower for use from many threads at once, each call taking `threads` of them.

    `one_shape` says that all it is ever given is of one shape. Raises ModelDirError where onnxruntime cannot read the
    graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # With varying shapes the arena only grows, and never shrinks. With one shape it saves 5 % of an image's time and,
    # with four images at once, 39 of 210 MB (this and the next on 2 cores, with VNNI and AMX, 2026-11-22).
    options.enable_cpu_mem_arena = one_shape
    # Threads that wait a moment for one another before they sleep: an image of ViT-B/32 alone takes 16.1 ms, 19.1 where
    # they sleep at once and 15.2 where they never do, which costs two images at once a sixth of their speed.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelDirError(f"{graph} cannot be opened by onnxruntime {onnxruntime.__version__}: {error}") from error


@cache
def multiplies_signed(probe: Path) -> bool:
    """True if this processor multiplies signed 8-bit levels exactly. probe: a model directory's graph to test it.

    x86 without VNNI adds two products in 16 bits, where they overflow: of the probe's 8,128 about 4,112 is left.
    """
    ones = np.ones((1, PROBE_WIDTH), np.float32)
    product = run_one(open_tower(probe, threads=1), "x", ones)
    return bool(np.allclose(product, PROBE_LEVEL * PROBE_WIDTH, rtol=1e-3))


def run_text(tower: onnxruntime.InferenceSession, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """ids [n, t] int64 to embeddings [n, embed_dim] float32.

    Texts of several lengths fit into one call only of a CLIP, whose shorter rows are filled up with <|endoftext|>.
    A DistilBERT has no mask of padding. A SigLIP's reader makes all rows equally long.
    """
    return run_one(tower, "ids", ids)


def run_image(tower: onnxruntime.InferenceSession, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """pixels [n, 3, side, side] float32 to embeddings [n, embed_dim] float32."""
    return run_one(tower, "pixels", pixels)


def run_one(graph: onnxruntime.InferenceSession, name: str, given: NDArray) -> NDArray[np.float32]:
    return graph.run(["embedding"], {name: given})[0]

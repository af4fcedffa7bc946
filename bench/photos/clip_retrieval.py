"""Runs `clip-retrieval inference` with the arguments given, in its environment. It imports nothing of this project.

PyPI's torchvision misses operators in torch's CPU build. clip-retrieval takes only transforms of it, so they are
declared first, in each process that it starts too: those import this module again.
"""

import os
import sys

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
try:
    import torchvision  # noqa: F401
except RuntimeError:
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

if __name__ == "__main__":
    from clip_retrieval.cli import main

    sys.argv[1:1] = ["inference"]
    main()

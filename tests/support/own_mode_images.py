"""How images are read as open_clip reads them, and the odd files that it reads too."""

from __future__ import annotations

from PIL import Image

from hostile import small
from llm_clip_onnx.model_dir import Preprocess
from open_clip_pixels import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# A file that Pillow does not open as it is, because of chunks that say nothing of its pixels. We leave them out.
NOT_THEIRS = ("wrong-checksum-", "parameters-of-2mb", "itxt-", "text-after-data", "profile-bomb", "text-bomb")


def processor(side: int, mode: str, interpolation: str = "bicubic", fill: int = 0, library: str = "open_clip"):
    filter_ = FILTERS[interpolation]
    return Preprocess(side, side, filter_, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, 1 / 255, mode, fill, library)


def odd_files() -> dict[str, bytes]:
    """The files of hostile.small, without large TIFFs, that Pillow opens by itself."""
    return {name: blob for name, blob in small().items() if "mp" not in name and not name.startswith(NOT_THEIRS)}

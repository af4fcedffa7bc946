"""Images have the pixels that open_clip's own transform makes of them, in an environment with torch and torchvision."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from conftest import ROOT
from llm_clip_onnx.images.preprocess import to_pixels
from nasty import images
from open_clip_pixels import MODES, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from own_mode_images import FILTERS, odd_files, processor

PYTHON = ROOT / ".venv-open-clip" / "bin" / "python"
TRANSFORM = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from open_clip.transform import PreprocessCfg, image_transform_v2
pixels = {}
for file in sorted(Path(sys.argv[1]).iterdir()):
    for mode in ("shortest", "squash", "longest"):
        for interpolation in ("bicubic", "bilinear"):
            for fill in (0, 200):
                how = PreprocessCfg(size=32, interpolation=interpolation, resize_mode=mode, fill_color=fill)
                try:
                    pixels[f"{file.name}|{mode}|{interpolation}|{fill}"] = image_transform_v2(how, False)(Image.open(file)).numpy()
                except ValueError as error:  # a side of 0 pixels
                    assert mode == "longest" and "must be > 0" in str(error), (file, error)
np.savez(sys.argv[2], **pixels)
"""


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    too_long = ("60000x1.png", "1x60000.png", "20000x1.png", "1x20000.png")  # gigabytes there
    return images() | {name: blob for name, blob in odd_files().items() if name not in too_long}


def test_pixels_are_those_of_open_clip(files, tmp_path):
    if not PYTHON.exists() or subprocess.run([PYTHON, "-c", "import open_clip, torchvision"]).returncode:
        pytest.skip(f"{PYTHON} cannot import open_clip and torchvision: make .venv-open-clip/ready")
    folder, to = tmp_path / "files", tmp_path / "pixels.npz"
    folder.mkdir()
    for name, blob in files.items():
        (folder / name).write_bytes(blob)
    done = subprocess.run([PYTHON, "-c", TRANSFORM, folder, to], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = np.load(to)
    assert len(theirs.files) > len(files) * len(MODES) * len(FILTERS) * 2 * 0.95
    std = np.float32(OPENAI_DATASET_STD)[:, None, None]
    mean = np.float32(OPENAI_DATASET_MEAN)[:, None, None]
    for key in theirs.files:
        name, mode, interpolation, fill = key.split("|")
        found = to_pixels(files[name], processor(32, mode, interpolation, int(fill)))
        np.testing.assert_allclose(found, theirs[key], atol=1e-6, err_msg=key)
        levels = [np.rint((pixels * std + mean) * 255).astype(int) for pixels in (found, theirs[key])]
        np.testing.assert_array_equal(*levels, key)
    print(f"{len(theirs.files)} compared")

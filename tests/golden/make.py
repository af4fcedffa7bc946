"""Writes the goldens beside it, from transformers' CLIP tokenizer and image processor, which llm-clip uses.

    python tests/golden/make.py

ids.json: the ids of every text of tests/support/nasty.py. pixels.npz: the pixels [3, 32, 32] float32 of every image there,
resized and cropped to 32. transformers resizes with Pillow where torchvision is not installed: it must not be.
"""

import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import PIL
import transformers
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))
import nasty  # noqa: E402

if __name__ == "__main__":
    assert importlib.util.find_spec("torchvision") is None, "with torchvision the image processor resizes differently"
    source = f"transformers {transformers.__version__}, Pillow {PIL.__version__}; python tests/golden/make.py"
    tokenizer = transformers.CLIPTokenizer.from_pretrained(HERE.parent.parent / "demo" / "checkpoint")
    ids = {text: tokenizer(text, truncation=True, max_length=77)["input_ids"] for text in nasty.TEXTS}
    (HERE / "ids.json").write_text(json.dumps({"source": source, "ids": ids}, indent=0) + "\n")
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pixels = {
        name: processor(Image.open(io.BytesIO(blob)), return_tensors="np")["pixel_values"][0]
        for name, blob in nasty.images().items()
    }
    np.savez_compressed(HERE / "pixels.npz", source=source, **pixels)
    print(f"{len(ids)} texts, {len(pixels)} images; {source}")

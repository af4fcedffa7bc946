"""Writes what rclip downloads, from a checkpoint instead: its two ONNX towers and its tokenizer's merges.

    python -m bench.photos.rclip_files CHECKPOINT FOLDER     FOLDER is then an RCLIP_DATADIR

The towers are exported as rclip's scripts/convert_model.py exports them: float32, by torch, opset 18, texts of 77 ids,
any batch. Needs torch and transformers.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

CONTEXT_LENGTH = 77
TOWERS = "ViT-B-32-256-datacomp_s34b_b86k"  # the folder that rclip 3.3 reads
MERGES = "tokenizer/bpe_simple_vocab_16e6.txt.gz"


def write_files(checkpoint: Path, to: Path) -> None:
    import torch
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(checkpoint).eval()
    side = model.config.vision_config.image_size

    class Tower(torch.nn.Module):
        def __init__(self, name: str):
            super().__init__()
            self.model, self.name = model, name

        def forward(self, given):
            is_text = self.name == "text"
            output = model.get_text_features(given) if is_text else model.get_image_features(given)
            return getattr(output, "pooler_output", output)

    ids = torch.full((1, CONTEXT_LENGTH), model.config.text_config.eos_token_id)
    given = {"textual": ("text", ids), "visual": ("image", torch.zeros(1, 3, side, side))}
    (to / TOWERS).mkdir(parents=True)
    with torch.inference_mode():
        for name, (tower, example) in given.items():
            torch.onnx.export(
                Tower(tower),
                (example,),
                to / TOWERS / f"{name}.onnx",
                input_names=["input"],
                output_names=["output"],
                dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
                opset_version=18,
                dynamo=False,
            )
    (to / MERGES).parent.mkdir()
    (to / MERGES).write_bytes(gzip.compress((checkpoint / "merges.txt").read_bytes()))


if __name__ == "__main__":
    write_files(*map(Path, sys.argv[1:]))

"""Writes a CLIP checkpoint of any shape with random weights: latency, memory and rounding errors are real, cosines not.

    python tests/support/random_checkpoint.py FOLDER [SHAPE]     one of ViT-B/32's shape, 605 MB, or of SHAPE

It needs numpy but not torch.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from llm_clip_onnx.bake.families.hugging_face import read_config
from llm_clip_onnx.bake.towers.clip import ClipConfig, expected_shapes

TOKENIZER = Path(__file__).parents[2] / "demo" / "checkpoint"
VIT_B_32: dict = {}  # every value is transformers' default
VIT_L_14: dict = {
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "vision": {
        **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        "patch_size": 14,
    },
    "embed_dim": 768,
}
TINYCLIP: dict = {
    "text": {"num_hidden_layers": 6},
    "vision": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
}
SHAPES: dict[str, dict] = {
    "ViT-B-32": {"text": VIT_B_32, "vision": VIT_B_32},
    "ViT-B-32-256": {"text": {"hidden_act": "gelu"}, "vision": {"hidden_act": "gelu", "image_size": 256}},
    "ViT-B-16": {"text": VIT_B_32, "vision": {"patch_size": 16}},
    "ViT-L-14": VIT_L_14,
    "TinyCLIP-40M-32": TINYCLIP,
}
TINY = {
    "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "vision": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
}
MERGES = 300  # of SMALL's tokenizer
START, END = 512 + MERGES, 513 + MERGES  # ids of <|startoftext|> and <|endoftext|>
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL: dict = {
    "text": TOWER | {"vocab_size": END + 21, "eos_token_id": END},
    "vision": TOWER | {"image_size": 32, "patch_size": 16},
    "embed_dim": 16,
    "merges": MERGES,
}


def write_checkpoint(
    folder: Path, text: dict, vision: dict, embed_dim: int = 512, seed: int = 0, change=None, merges: int | None = None
) -> Path:
    """Write a checkpoint in Hugging Face's layout to `folder` and return it; `text` and `vision` override the defaults.

    `change(tensors)` may change the tensors before they are written. With `merges`, its tokenizer knows only the first
    of CLIP's merges, which loads faster.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": embed_dim}
    config |= {"text_config": {"eos_token_id": 49407, **text}, "vision_config": vision}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    if merges is not None:
        cut_tokenizer(folder, merges)
    if length := text.get("max_position_embeddings"):
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": length}))
    side = vision.get("image_size", 224)
    preprocess = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": side}}
    preprocess |= {"crop_size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocess))
    tensors = random_tensors(read_config(folder / "config.json", str(folder)), seed)
    if change:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def cut_tokenizer(folder: Path, merges: int) -> None:
    """Leave the tokenizer the 512 tokens of one byte, the first merges, and the two special tokens, in this order."""
    vocab: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    *tokens, start, end = sorted(vocab, key=lambda token: vocab[token])
    kept = {token: number for number, token in enumerate([*tokens[: 512 + merges], start, end])}
    (folder / "vocab.json").write_text(json.dumps(kept), encoding="utf-8")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")[: 1 + merges]
    (folder / "merges.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


def random_tensors(config: ClipConfig, seed: int) -> dict[str, NDArray[np.float32]]:
    """Matrices of standard deviation 0.03, so that embeddings differ; gains around 1, biases around 0."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_shapes(config):
        values = random.standard_normal(shape, np.float32) * np.float32(0.03)
        if name == "logit_scale":
            values = np.array(4.6052, np.float32)
        elif "norm" in name and name.endswith(".weight"):
            values = values + np.float32(1)
        tensors[name] = values
    return tensors


def halve(tensors: dict[str, NDArray]) -> None:
    """Make float16 of all tensors, in place, as many checkpoints are stored."""
    for name, values in tensors.items():
        tensors[name] = values.astype(np.float16)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", nargs="?", default="ViT-B-32", choices=SHAPES)
    arguments = parser.parse_args()
    print(write_checkpoint(arguments.folder, **SHAPES[arguments.shape]))

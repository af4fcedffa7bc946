"""Writes a checkpoint anew in open_clip's layout, with the names that tests/reference.py gives to its tensors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from llm_clip_onnx.bake.families.hugging_face import read_config
from reference import openai_names


def write_open_clip(
    folder: Path, checkpoint: Path, prefix: str = "", model_cfg: dict | None = None, preprocess_cfg: dict | None = None
) -> Path:
    """Write a checkpoint in Hugging Face's layout anew in open_clip's to `folder`, and return it.

    prefix: "text." as open_clip names the text tower of a model with `custom_text`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = read_config(checkpoint / "config.json", str(checkpoint))
    text, image = config.text, config.image
    tensors = openai_names(load_file(checkpoint / "model.safetensors"))
    tensors["logit_scale"] = np.array(4.6052)
    named = {
        name if name.startswith(("visual.", "logit")) else f"{prefix}{name}": np.ascontiguousarray(tensor, np.float32)
        for name, tensor in tensors.items()
    }
    save_file(named, folder / "open_clip_model.safetensors")
    sizes = {
        "embed_dim": config.embed_dim,
        "quick_gelu": text.activation == "quick_gelu",
        "vision_cfg": {
            **{"width": image.width, "layers": image.layers, "head_width": image.width // image.heads},
            **{"mlp_ratio": image.hidden / image.width, "image_size": config.side, "patch_size": config.patch},
        },
        "text_cfg": {
            **{"width": text.width, "layers": text.layers, "heads": text.heads, "vocab_size": config.vocab_size},
            **{"mlp_ratio": text.hidden / text.width, "context_length": config.context_length},
        },
    }
    content = {"model_cfg": sizes | (model_cfg or {}), "preprocess_cfg": preprocess_cfg or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder

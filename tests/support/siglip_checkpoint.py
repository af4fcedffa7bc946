"""Writes tiny checkpoints of random weights in transformers' layout of SigLIP, with a tokenizer of either kind.

    python tests/support/siglip_checkpoint.py FOLDER 1|2 [B]

Version 1 has T5's kind of tokenizer, pieces with likelihoods (Unigram), version 2 has Gemma's, byte pairs that fall back to
bytes. Both are made here, of words of this project. B gives the sizes of base models (B/16-224, B/32-256), for
measurements.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from llm_clip_onnx.bake.families.siglip import read_config
from llm_clip_onnx.bake.towers.siglip import SiglipConfig, expected_shapes
from many_tokens import filled

EMOJI = Path(__file__).parents[2] / "demo" / "emoji.txt"
LOGIT_SCALE, LOGIT_BIAS = 4.7, -12.9  # about those of the real models
TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SIDES = {1: {"image_size": 64, "patch_size": 16}, 2: {"image_size": 96, "patch_size": 32}}
BASE_SIDES = {1: {"image_size": 224, "patch_size": 16}, 2: {"image_size": 256, "patch_size": 32}}
BASE_WORDS = {1: 32_000, 2: 256_000}  # rows of the token tables


def write_siglip(
    folder: Path, version: int, text: dict | None = None, vision: dict | None = None, seed: int = 0, change=None
) -> Path:
    """Write a checkpoint of SigLIP `version` to `folder` and return it; `text` and `vision` override its sizes.

    The tokenizer of version 2 is filled up to the vocab_size of `text`, if it has one. `change(tensors)` may change the
    tensors before they are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    serialized, named = unigram() if version == 1 else byte_pairs((text or {}).get("vocab_size", 0))
    write_json(folder / "tokenizer.json", serialized)
    write_json(folder / "tokenizer_config.json", named)
    sizes = TOWER | {"vocab_size": len(Tokenizer.from_str(json.dumps(serialized)).get_vocab())}
    config = {"model_type": "siglip", "architectures": ["SiglipModel"], "initializer_factor": 1.0}
    config |= {"text_config": {"model_type": "siglip_text_model", **sizes, **(text or {})}}
    config |= {"vision_config": {"model_type": "siglip_vision_model", **TOWER, **SIDES[version], **(vision or {})}}
    write_json(folder / "config.json", config)
    side = config["vision_config"]["image_size"]
    steps = {name: True for name in ("do_normalize", "do_rescale", "do_resize")}
    steps |= {"do_convert_rgb": None, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255}
    steps |= {"image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor"}
    steps |= {"resample": 3 if version == 1 else 2, "size": {"height": side, "width": side}}
    write_json(folder / "preprocessor_config.json", steps)
    tensors = random_tensors(read_config(folder / "config.json", str(folder)), seed)
    if change:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def random_tensors(config: SiglipConfig, seed: int) -> dict[str, NDArray[np.float32]]:
    """Matrices as torch's Xavier has them, tokens and the probe of standard deviation 1, gains around 1, biases around 0.

    q and k are 1.5 times larger: without attention that chooses, all texts would be alike, because most of their 64
    positions are padding.
    """
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in expected_shapes(config):
        values = random.standard_normal(shape, np.float32)
        if not name.endswith(("token_embedding.weight", "probe")):
            values *= np.float32(shape[-1] ** -0.5 if len(shape) == 2 else 0.03)
        if "norm" in name and name.endswith(".weight"):
            values += 1
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values *= np.float32(1.5)
        tensors[name] = values
    tensors["logit_scale"], tensors["logit_bias"] = (np.array([n], np.float32) for n in (LOGIT_SCALE, LOGIT_BIAS))
    return tensors


def words() -> list[str]:
    lines = EMOJI.read_text(encoding="utf-8").lower().splitlines()
    return [*lines, *(f"a photo of a {line}" for line in lines), "füßgänger naïve café мир 猫の写真"]


@cache
def learned() -> list[str]:
    """Letters and pieces of words, the most frequent first: the same in every run, unlike what UnigramTrainer learns."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learner.train_from_iterator(words(), trainers.BpeTrainer(vocab_size=700, show_progress=False))
    return [token for token, _ in sorted(learner.get_vocab().items(), key=lambda item: item[1])]


@cache
def unigram() -> tuple[dict, dict]:
    """tokenizer.json and tokenizer_config.json as SigLIP's are, with T5's kind of vocabulary."""
    special = ["<pad>", "</s>", "<unk>"]
    pieces = [*((token, 0.0) for token in special), *((token, -3 - n / 100) for n, token in enumerate(learned()))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    named = {"tokenizer_class": "SiglipTokenizer", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return json.loads(tokenizer.to_str()), named | {"model_max_length": 64, "do_lower_case": True}


@cache
def byte_pairs(count: int = 0) -> tuple[dict, dict]:
    """tokenizer.json and tokenizer_config.json as SigLIP 2's are, with Gemma's kind of vocabulary of at least `count` tokens.

    As in files converted from sentencepiece, each way to split a token into two others is a merge.
    """
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *learned()]
    made = filled(tokens, max(count, len(tokens)))[len(tokens) :]
    tokens += made
    vocab = {token: n for n, token in enumerate(tokens)}
    merges = [
        [token[:k], token[k:]]
        for token in [*learned(), *made]
        for k in range(1, len(token))
        if token[:k] in vocab and token[k:] in vocab
    ]
    tokenizer = Tokenizer(
        models.BPE(vocab, [tuple(m) for m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    named = {"tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    named |= {"pad_token": "<pad>", "model_max_length": 64, "do_lower_case": True, "padding_side": "right"}
    return json.loads(tokenizer.to_str()), named | {"add_bos_token": False, "add_eos_token": True}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("version", type=int, choices=(1, 2))
    parser.add_argument("size", nargs="?", choices=("tiny", "B"), default="tiny")
    arguments = parser.parse_args()
    large, v = arguments.size == "B", arguments.version
    text = BASE | {"vocab_size": BASE_WORDS[v]} if large else {}
    print(write_siglip(arguments.folder, v, text, BASE | BASE_SIDES[v] if large else {}))

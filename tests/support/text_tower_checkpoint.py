"""Writes a DistilBERT text tower in sentence-transformers' layout, of any shape, with random weights and a small vocabulary.

Its WordPiece vocabulary is trained on the texts of tests and bakes, so that some words are whole, some in pieces and
some unknown. It needs neither torch nor transformers.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import nasty
from llm_clip_onnx.bake.samples import CALIBRATION_TEXTS, TEXTS
from many_tokens import filled

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = 700
SETTINGS: dict[str, Any] = {
    **{"tokenizer_class": "DistilBertTokenizer", "do_lower_case": False, "model_max_length": 512},
    **{"tokenize_chinese_chars": True, "strip_accents": None},
    **{f"{name}_token": token for name, token in zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL)},
}
MODULES = [
    {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for n, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")))
]
TINY = {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4}
REAL: dict[str, int] = {}  # every value is transformers' default
REAL_WORDS = 119_547  # rows of the token table of clip-ViT-B-32-multilingual-v1


@cache
def vocabulary(cased: bool = True) -> list[str]:
    """Tokens in the order of their ids."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    known = [text for text in nasty.TEXTS if text.encode(errors="replace").decode() == text and "Ⅷ" not in text]
    tokenizer.train_from_iterator([*TEXTS, *CALIBRATION_TEXTS, *known], trainer)
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=lambda token: vocab[token])


def write_text_tower(
    folder: Path, shape: dict[str, int], embed_dim: int = 512, seed: int = 1, change=None, **settings: Any
) -> Path:
    """Write the checkpoint to `folder` and return it. `shape` overrides DistilBERT's, `settings` the tokenizer's.

    Its vocabulary is filled up to the shape's vocab_size, if it has one. `change(tensors)` may change the tensors before
    they are written.
    """
    settings, tokens = SETTINGS | settings, vocabulary(not settings.get("do_lower_case"))
    tokens = filled(tokens, shape.get("vocab_size", len(tokens)))
    config = {"model_type": "distilbert", "architectures": ["DistilBertModel"], "vocab_size": len(tokens), **shape}
    width = config.get("dim", 768)
    tensors = random_tensors(config, seed)
    if change:
        change(tensors)
    for path in ("", "1_Pooling", "2_Dense"):
        (folder / path).mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    random = np.random.default_rng(seed + 1)
    dense = random.standard_normal((embed_dim, width), np.float32) / np.float32(width**0.5)
    save_file({"linear.weight": dense}, folder / "2_Dense/model.safetensors", metadata={"format": "pt"})
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    identity = "torch.nn.modules.linear.Identity"
    files = {
        "modules.json": MODULES, "config.json": config, "tokenizer_config.json": settings,
        "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True,
                                  "pooling_mode_cls_token": False, "pooling_mode_max_tokens": False},
        "2_Dense/config.json": {"in_features": width, "out_features": embed_dim, "bias": False,
                                "activation_function": identity},
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, NDArray[np.float32]]:
    """Tensors by DistilBERT's names: matrices of standard deviation 0.05, gains around 1, biases around 0."""
    width, hidden = config.get("dim", 768), config.get("hidden_dim", 3072)
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config.get("max_position_embeddings", 512), width),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in (f"transformer.layer.{n}" for n in range(config.get("n_layers", 6))):
        linears = {f"attention.{part}_lin": (width, width) for part in ("q", "k", "v", "out")}
        linears |= {"ffn.lin1": (hidden, width), "ffn.lin2": (width, hidden)}
        for part, of_part in linears.items():
            shapes |= {f"{layer}.{part}.weight": of_part, f"{layer}.{part}.bias": of_part[:1]}
        norms += [f"{layer}.sa_layer_norm", f"{layer}.output_layer_norm"]
    shapes |= {f"{name}.{end}": (width,) for name in norms for end in ("weight", "bias")}
    random = np.random.default_rng(seed)
    tensors = {name: random.standard_normal(shape, np.float32) * np.float32(0.05) for name, shape in shapes.items()}
    return {name: t + np.float32("orm.weight" in name.replace("Norm", "norm")) for name, t in tensors.items()}

"""A checkpoint is read by the rules of its own libraries, or refused by name.

Each row writes a small checkpoint in some layout, with some file or key that transformers or sentence-transformers
read. Those libraries load the folder themselves; a bake of it must give the same ids, pixels and vectors, or be refused
with a sentence that names the file or the key.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import nasty
from conftest import quiet
from llm_clip_onnx.bake import bake, open_checkpoint
from llm_clip_onnx.bake import keys as keys_of_a_bake
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.errors import CheckpointError
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.vectors import cosine
from random_checkpoint import END, SMALL, START, write_checkpoint

ADDED = [
    "a photo of a <shoe-7>", "a <SHOE-7> and a <Shoe-7>!", "<shoe-7><shoe-7>", "x<shoe-7>y  <shoe-7> z", "  <shoe-7>  ", "two  words",
    "a new token, two words here", "newtoken", "a newtoken b", "NEWTOKEN Newtokens anewtoken", "a <hat> b", "<HAT>", "cafe\u0301 caf\u00e9",
    "<|ENDOFTEXT|> <|StartOfText|>", "a <|endoftext|><shoe-7>", "hello! wow!!! !", "[PAD] [pad] <pad>", "a <shoe-7> " * 40, "two words " * 80,
    "word " * 12 + "<shoe-7>", "\ufb01 \u00a0<shoe-7>\u3000 b", r'a \ "b" \U0001f984', "<|end|> a <|end|>", "<image>",
]  # fmt: skip
TEXTS = [*nasty.TEXTS, *ADDED]

Edit = Callable[[Path], object]


def keys(name: str, part: str | None = None, **values: Any) -> Edit:
    """An edit that gives keys of a JSON file, or of one object in it, other values; ... takes a key out."""

    def edit(folder: Path) -> None:
        file = folder / name
        content = json.loads(file.read_text()) if file.exists() else {}
        where = content.setdefault(part, {}) if part else content
        where |= values
        for key in [key for key, value in values.items() if value is ...]:
            del where[key]
        file.write_text(json.dumps(content))

    return edit


def written(name: str, content: Any) -> Edit:
    """An edit that writes a file: JSON, or bytes as they are."""
    content = content if isinstance(content, bytes) else json.dumps(content).encode()

    def edit(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content)

    return edit


def without(name: str) -> Edit:
    return lambda folder: (folder / name).unlink()


def renamed(name: str, to: str) -> Edit:
    return lambda folder: (folder / name).rename(folder / to)


def in_bytes(name: str, change: Callable[[bytes], bytes]) -> Edit:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def tokenizer_json(**changes: Any) -> Edit:
    """An edit that puts the tokenizer into tokenizer.json too, with some of its keys changed."""

    def edit(folder: Path) -> None:
        merges = (folder / "merges.txt").read_text().split("\n")[1:-1]
        model = {"type": "BPE", "vocab": json.loads((folder / "vocab.json").read_text()), "merges": merges}
        model |= {"unk_token": "<|endoftext|>", "end_of_word_suffix": "</w>", "continuing_subword_prefix": ""}
        both = [token(START, "<|startoftext|>", special=True), token(END, "<|endoftext|>", special=True)]
        content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": both, "normalizer": None}
        content |= {"pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model} | changes
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return edit


def token(number: int, content: str, **flags: bool) -> dict:
    """An added token as tokenizer.json lists it."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False} | flags
    return {"id": number, "content": content, **flags}


def decoder(*tokens: dict) -> dict:
    """Added tokens as tokenizer_config.json has them, after those of the vocabulary."""
    both = [token(START, "<|startoftext|>", special=True), token(END, "<|endoftext|>", special=True)]
    return {str(one.pop("id")): one for one in [*both, *tokens]}


def tensors(change: Callable[[dict], dict | None]) -> Edit:
    def edit(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        save_file(change(found) or found, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def shards(folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    names = sorted(found)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: found[name] for name in some}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, some in parts.items() for name in some}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def pickled(folder: Path) -> None:
    import torch

    state = {name: torch.from_numpy(values.copy()) for name, values in load_file(folder / "model.safetensors").items()}
    torch.save(state, folder / "pytorch_model.bin")


def resized(rows: int) -> list[Edit]:
    """The token table cut or grown to `rows`, as resize_token_embeddings leaves it."""
    name = "text_model.embeddings.token_embedding.weight"

    def change(found: dict) -> None:
        table = found[name]
        more = np.random.default_rng(1).standard_normal((max(0, rows - len(table)), table.shape[1]), np.float32)
        found[name] = np.concatenate([table, more * np.float32(0.03)])[:rows]

    return [tensors(change), keys("config.json", "text_config", vocab_size=rows)]


def resaved(folder: Path) -> None:
    """The folder as sentence-transformers 6 saves it."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(folder), device="cpu").save(str(folder / "saved"))
    for file in [*folder.iterdir()]:
        if file.is_file():
            file.unlink()
    shutil.copytree(folder / "saved", folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "saved")


def sentence_transformers(kind: str = "sentence_transformers.models.CLIPModel", *more: dict) -> Edit:
    """The folder in sentence-transformers' layout. Edits that follow name files of the CLIP as 0_CLIPModel/NAME."""
    modules = [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": kind}, *more]

    def edit(folder: Path) -> None:
        files = [*folder.iterdir()]
        (folder / "0_CLIPModel").mkdir()
        for file in files:
            file.rename(folder / "0_CLIPModel" / file.name)
        (folder / "modules.json").write_text(json.dumps(modules))

    return edit


BOM = b"\xef\xbb\xbf"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 605247071\n"
SHOE, HAT = token(END + 1, "<shoe-7>"), token(END + 2, "<hat>")
CONFIG, TOKENIZER, IMAGES = "config.json", "tokenizer_config.json", "preprocessor_config.json"
PROCESSOR, MAP, ADDED_JSON = "processor_config.json", "special_tokens_map.json", "added_tokens.json"
ST_CONFIG, ST_MODULE = "config_sentence_transformers.json", "0_CLIPModel/sentence_bert_config.json"
LEGACY = keys(CONFIG, "text_config", eos_token_id=2)
OPENAI_MAP = {
    name: {"content": f"<|{which}oftext|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    for name, which in (("bos_token", "start"), ("eos_token", "end"), ("unk_token", "end"), ("pad_token", "end"))
}
NORMALIZE = {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}
OTHER_STEPS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 2}

# fmt: off
EQUAL: dict[str, list[Edit]] = {
    "as it is": [],
    # Added tokens
    "added_tokens.json": [written(ADDED_JSON, {"<shoe-7>": END + 1, "two words": END + 2})],
    "added_tokens.json in another order": [written(ADDED_JSON, {"<hat>": END + 2, "<shoe-7>": END + 1})],
    "added_tokens.json with ids that leave a gap": [written(ADDED_JSON, {"<shoe-7>": END + 9, "<hat>": END + 5})],
    "added_tokens.json that is special elsewhere": [
        written(ADDED_JSON, {"<shoe-7>": END + 1}),
        written(MAP, {"additional_special_tokens": ["<shoe-7>"]}),
    ],
    "added_tokens.json that names tokens of the vocabulary": [written(ADDED_JSON, {"<|endoftext|>": END, "th": 513})],
    "added_tokens.json beside added_tokens_decoder": [
        written(ADDED_JSON, {"<shoe-7>": END + 1}),
        keys(TOKENIZER, added_tokens_decoder=decoder(dict(HAT))),
    ],
    "tokenizer.json": [tokenizer_json()],
    "tokenizer.json alone": [tokenizer_json(), without("vocab.json"), without("merges.txt")],
    "tokenizer.json with merges as pairs": [
        tokenizer_json(),
        lambda f: keys(
            "tokenizer.json", "model", merges=[m.split(" ") for m in (f / "merges.txt").read_text().split("\n")[1:-1]]
        )(f),
    ],
    "tokenizer.json beside another vocab.json": [
        tokenizer_json(),
        lambda f: written("merges.txt", "\n".join((f / "merges.txt").read_text().split("\n")[:50]).encode())(f),
    ],
    "added_tokens of tokenizer.json": [tokenizer_json(added_tokens=[dict(SHOE), dict(HAT)])],
    "added_tokens of tokenizer.json beside added_tokens_decoder": [
        tokenizer_json(added_tokens=[dict(SHOE)]),
        keys(TOKENIZER, added_tokens_decoder=decoder({**HAT, "id": END + 1})),
    ],
    "added_tokens_decoder": [keys(TOKENIZER, added_tokens_decoder=decoder(dict(SHOE), dict(HAT)))],
    "added_tokens_decoder with lstrip": [
        keys(TOKENIZER, added_tokens_decoder=decoder({**SHOE, "lstrip": True})),
    ],
    "added_tokens_decoder with rstrip": [keys(TOKENIZER, added_tokens_decoder=decoder({**SHOE, "rstrip": True}))],
    "added_tokens_decoder with single_word": [
        keys(TOKENIZER, added_tokens_decoder=decoder(token(END + 1, "newtoken", single_word=True))),
    ],
    "added_tokens_decoder without single_word": [
        keys(TOKENIZER, added_tokens_decoder=decoder(token(END + 1, "newtoken"))),
    ],
    "added_tokens_decoder with normalized": [
        keys(TOKENIZER, added_tokens_decoder=decoder({**SHOE, "normalized": True}, token(END + 2, "café", normalized=True))),
    ],
    "added_tokens_decoder with capitals, normalized": [
        keys(TOKENIZER, added_tokens_decoder=decoder(token(END + 1, "NewToken", normalized=True))),
    ],
    "added_tokens_decoder with capitals": [
        keys(TOKENIZER, added_tokens_decoder=decoder(token(END + 1, "<Shoe-7>"), token(END + 2, "<HAT>", special=True))),
    ],
    "added_tokens_decoder with several words": [
        keys(TOKENIZER, added_tokens_decoder=decoder(token(END + 1, "two words"))),
    ],
    "added_tokens_decoder with normalized start and end": [
        keys(TOKENIZER, added_tokens_decoder=decoder(
            token(0, "!", normalized=True), token(START, "<|startoftext|>", normalized=True, special=True),
            token(END, "<|endoftext|>", normalized=True, special=True),
        )),
    ],
    "extra_special_tokens": [keys(TOKENIZER, extra_special_tokens=["<shoe-7>", "<hat>"])],
    "additional_special_tokens": [keys(TOKENIZER, additional_special_tokens=["<hat>", "<shoe-7>"])],
    "extra_special_tokens by name": [keys(TOKENIZER, extra_special_tokens={"image_token": "<image>"})],
    "a token key of its own": [keys(TOKENIZER, image_token="<image>")],
    "mask_token and sep_token": [keys(TOKENIZER, mask_token="<hat>", sep_token="<shoe-7>")],
    "pad_token of its own": [keys(TOKENIZER, pad_token="[PAD]")],
    "pad_token of the vocabulary": [keys(TOKENIZER, pad_token="!")],
    "special_tokens_map.json of openai": [written(MAP, OPENAI_MAP)],
    "special_tokens_map.json beats tokenizer_config.json": [
        written(MAP, {"pad_token": "!", "extra_special_tokens": ["<shoe-7>", {"content": "<hat>", "lstrip": True}]}),
    ],
    "special_tokens_map.json beside added_tokens_decoder": [
        written(MAP, {"pad_token": "!"}),
        keys(TOKENIZER, added_tokens_decoder=decoder(dict(SHOE))),
    ],
    "tokens of openai in tokenizer_config.json": [
        keys(TOKENIZER, **{name: {"__type": "AddedToken", **value} for name, value in OPENAI_MAP.items()}),
    ],
    "no tokenizer_config.json": [without(TOKENIZER)],
    "an end of its own": [
        written(ADDED_JSON, {"<|end|>": END + 1}),
        keys(TOKENIZER, eos_token="<|end|>"),
        keys(CONFIG, "text_config", eos_token_id=END + 1),
    ],
    "a start of its own": [keys(TOKENIZER, bos_token="<|start|>")],
    "unk_token of its own": [keys(TOKENIZER, unk_token="<unk>")],
    "the early end and an added token": [LEGACY, written(ADDED_JSON, {"<shoe-7>": END + 1})],
    "the early end": [LEGACY],
    "a token table that grew": [*resized(2000), written(ADDED_JSON, {"<shoe-7>": END + 1})],
    "a token table that fits": resized(END + 1),
    "added_tokens_decoder with a token alone": [keys(TOKENIZER, added_tokens_decoder={str(END + 1): {"content": "<hat>"}})],
    "an empty added_tokens_decoder hides added_tokens.json": [
        keys(TOKENIZER, added_tokens_decoder={}), written(ADDED_JSON, {"<shoe-7>": END + 1}),
    ],
    "empty extra_special_tokens": [keys(TOKENIZER, extra_special_tokens=[], additional_special_tokens=["<hat>"])],
    "empty extra_special_tokens by name": [keys(TOKENIZER, extra_special_tokens={}, additional_special_tokens=["<hat>"])],
    "keys of special_tokens_map.json of its own": [written(MAP, {"foo": "<hat>", "foo_token": "<image>", "n_token": 3})],
    # Limits on length
    "model_max_length null": [keys(TOKENIZER, model_max_length=None)],
    "model_max_length 10": [keys(TOKENIZER, model_max_length=10)],
    "truncation of tokenizer.json with a stride": [
        tokenizer_json(truncation={"direction": "Right", "max_length": 77, "strategy": "OnlyFirst", "stride": 5}),
    ],
    "padding of tokenizer.json to the longest": [
        tokenizer_json(padding={"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                                "pad_type_id": 0, "pad_token": "!"}),
    ],
    "model_max_length that is shorter": [keys(TOKENIZER, model_max_length=16)],
    "model_max_length that is odd": [keys(TOKENIZER, model_max_length=9), written(ADDED_JSON, {"two words": END + 1})],
    "model_max_length as no limit": [keys(TOKENIZER, model_max_length=1000000000000000019884624838656)],
    "no model_max_length": [keys(TOKENIZER, model_max_length=...)],
    "max_len": [keys(TOKENIZER, model_max_length=..., max_len=12)],
    "max_len beside model_max_length": [keys(TOKENIZER, max_len=12)],
    "truncation of tokenizer.json that is the model's": [
        tokenizer_json(truncation={"direction": "Right", "max_length": 77, "strategy": "LongestFirst", "stride": 0}),
    ],
    "padding of tokenizer.json to the model's length": [
        tokenizer_json(
            padding={"strategy": {"Fixed": 77}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": END,
                     "pad_type_id": 0, "pad_token": "<|endoftext|>"}
        ),
    ],
    "what older transformers saved": [
        keys(TOKENIZER, max_length=77, stride=0, truncation_side="right", truncation_strategy="longest_first",
             pad_to_multiple_of=None, pad_token_type_id=0, padding_side="right", errors="replace", do_lower_case=True,
             add_prefix_space=False, clean_up_tokenization_spaces=True, name_or_path="x/y", use_fast=True,
             special_tokens_map_file="./special_tokens_map.json", tokenizer_class="CLIPTokenizerFast"),
    ],
    # Parts of tokenizer.json that CLIPTokenizer sets itself
    "normalizer and more of tokenizer.json": [
        tokenizer_json(normalizer={"type": "NFKC"}, pre_tokenizer={"type": "Whitespace"},
                       post_processor={"type": "RobertaProcessing", "sep": ["<|startoftext|>", START],
                                       "cls": ["<|endoftext|>", END], "trim_offsets": True, "add_prefix_space": True}),
    ],
    "model keys of tokenizer.json": [
        tokenizer_json(), keys("tokenizer.json", "model", unk_token="!", fuse_unk=True, end_of_word_suffix=None, dropout=0.5)
    ],
    "keys of a tokenizer that CLIP's ignores": [
        keys(TOKENIZER, do_lower_case=False, add_prefix_space=True, add_bos_token=False, add_eos_token=False,
             unheard_of=[1], auto_map={"AutoTokenizer": ["x.Slow", "x.Fast"]}, clean_up_tokenization_spaces=False),
    ],
    "other steps in tokenizer.json": [
        tokenizer_json(
            normalizer={"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Strip", "strip_left": True, "strip_right": True}]},
            pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            post_processor={"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                            "pair": [{"Sequence": {"id": "A", "type_id": 0}}], "special_tokens": {}},
        ),
    ],
    "ignore_merges and byte_fallback": [tokenizer_json(), keys("tokenizer.json", "model", ignore_merges=True, byte_fallback=True)],
    "names of files in the tokenizer's config": [
        keys(TOKENIZER, vocab_file="none.json", merges_file="none.txt", tokenizer_file="none.json", use_fast=False, tokenizer_class=None),
    ],
    "merges.txt without its version": [in_bytes("merges.txt", lambda b: b.split(b"\n", 1)[1])],
    "merges.txt without a last line end": [in_bytes("merges.txt", lambda b: b.rstrip(b"\n"))],
    "merges.txt with Windows' line ends": [in_bytes("merges.txt", lambda b: b.replace(b"\n", b"\r\n"))],
    # Images
    "nested processor_config.json beats preprocessor_config.json": [
        written(PROCESSOR, {"processor_class": "CLIPProcessor", "image_processor": OTHER_STEPS | {"size": 40, "crop_size": 32}}),
    ],
    "nested processor_config.json alone": [
        without(IMAGES),
        written(PROCESSOR, {"image_processor": {"size": {"shortest_edge": 32}, "crop_size": 32, "image_mean": 0.5}}),
    ],
    "flat processor_config.json is not read": [written(PROCESSOR, {"processor_class": "CLIPProcessor", **OTHER_STEPS})],
    "sizes as numbers": [keys(IMAGES, size=36, crop_size=32)],
    "crop_size as a list": [keys(IMAGES, crop_size=[32, 32])],
    "other mean, std and filter": [keys(IMAGES, **OTHER_STEPS)],
    "mean and std as numbers": [keys(IMAGES, image_mean=0.5, image_std=0.25)],
    "rescale_factor": [keys(IMAGES, rescale_factor=0.01)],
    "keys that are absent": [written(IMAGES, {"size": 32, "crop_size": 32})],
    "feature_extractor_type": [keys(IMAGES, image_processor_type=..., feature_extractor_type="CLIPFeatureExtractor")],
    "CLIPImageProcessorFast": [keys(IMAGES, image_processor_type="CLIPImageProcessorFast")],
    "no image_processor_type": [keys(IMAGES, image_processor_type=...)],
    "keys of images that change nothing": [
        keys(IMAGES, do_pad=False, default_to_square=False, data_format="channels_first", input_data_format=None,
             device=None, disable_grouping=None, return_tensors=None, image_seq_length=7, processor_class="CLIPProcessor",
             unheard_of=1, _valid_processor_keys=["images"], use_square_size=False),
    ],
    "switches as numbers": [keys(IMAGES, do_resize=1, do_center_crop=1, do_rescale=1, do_normalize=1, do_convert_rgb=1)],
    "whole numbers for mean, std and factor": [keys(IMAGES, image_mean=[0, 0, 0], image_std=[1, 1, 1], rescale_factor=1)],
    "nested processor_config.json with a tokenizer": [
        written(PROCESSOR, {"processor_class": "CLIPProcessor", "tokenizer": {"model_max_length": 9}, "image_processor": {
            "image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}}),
    ],
    "resample box": [keys(IMAGES, resample=4)],
    "resample hamming": [keys(IMAGES, resample=5)],
    "resample nearest": [keys(IMAGES, resample=0)],
    "resample lanczos": [keys(IMAGES, resample=1)],
    # The model's config
    "text_config_dict alone": [
        lambda f: keys(CONFIG, text_config_dict=json.loads((f / CONFIG).read_text())["text_config"], text_config=...)(f),
        lambda f: keys(CONFIG, vision_config_dict=json.loads((f / CONFIG).read_text())["vision_config"], vision_config=...)(f),
    ],
    "text_config_dict beats text_config": [
        keys(CONFIG, text_config_dict=SMALL["text"] | {"layer_norm_eps": 0.1}),
        keys(CONFIG, vision_config_dict=SMALL["vision"] | {"hidden_act": "gelu"}),
    ],
    "text_config_dict beats text_config by its defaults too": [
        keys(CONFIG, "text_config", layer_norm_eps=0.5, hidden_act="gelu"),
        keys(CONFIG, text_config_dict=SMALL["text"]),
        keys(CONFIG, "vision_config", layer_norm_eps=0.5, hidden_act="gelu"),
        keys(CONFIG, vision_config_dict=SMALL["vision"]),
    ],
    "text_config_dict that is null": [keys(CONFIG, text_config_dict=None, vision_config_dict=None)],
    "gelu": [keys(CONFIG, "text_config", hidden_act="gelu"), keys(CONFIG, "vision_config", hidden_act="gelu")],
    "layer_norm_eps": [keys(CONFIG, "text_config", layer_norm_eps=0.3), keys(CONFIG, "vision_config", layer_norm_eps=0.2)],
    "projection_dim of the towers": [
        keys(CONFIG, "text_config", projection_dim=99), keys(CONFIG, "vision_config", projection_dim=77)
    ],
    "keys of a config that change nothing": [
        keys(CONFIG, eos_token_id=5, torch_dtype="float32", initializer_factor=3.0, unheard_of=1,
             tie_word_embeddings=False, logit_scale_init_value=9.0, hidden_size=9, auto_map={"AutoModel": "x.Y"}),
        keys(CONFIG, "text_config", attention_dropout=0.5, dropout=0.5, num_beams=3, bos_token_id=0, pad_token_id=1),
    ],
    "what older transformers saved in a config": [
        keys(CONFIG, return_dict=True, output_hidden_states=True, output_attentions=True, use_cache=True, torchscript=False,
             chunk_size_feed_forward=0, pruned_heads={}, architectures=["CLIPTextModelWithProjection"]),
        keys(CONFIG, "text_config", model_type="clip_text_model", use_cache=True, is_decoder=True, architectures=["X"]),
        keys(CONFIG, "vision_config", model_type="clip_vision_model", dtype="float16", output_attentions=True),
    ],
    "sizes of the towers outside them": [keys(CONFIG, num_hidden_layers=9, vocab_size=3, layer_norm_eps=5.0, image_size=7)],
    "dtype float16": [keys(CONFIG, dtype="float16")],
    "dtype bfloat16": [keys(CONFIG, torch_dtype="bfloat16")],
    "chat_template": [keys(TOKENIZER, chat_template="{{ messages }}")],
    "image_processor that is null": [written(PROCESSOR, {"image_processor": None, "image_mean": 0.5})],
    "no vision_config": [
        lambda f: keys(CONFIG, vision_config_dict=json.loads((f / CONFIG).read_text())["vision_config"], vision_config=None)(f),
    ],
    "tokens of every kind": [
        tokenizer_json(added_tokens=[token(END + 1, "<shoe-7>", lstrip=True), token(END + 2, "two words", normalized=True)]),
        written(ADDED_JSON, {"<hat>": END + 3, "<shoe-7>": END + 4}),
        written(MAP, {"additional_special_tokens": ["<image>"], "mask_token": "<hat>", "cls_token": {"content": "wow", "lstrip": True}}),
        keys(TOKENIZER, sep_token="[PAD]", image_token="<|end|>"),
    ],
    "extra tokens in both files": [
        written(MAP, {"extra_special_tokens": ["<hat>", "<image>"], "image_token": "wow"}),
        written(ADDED_JSON, {"<hat>": END + 1}),
        keys(TOKENIZER, extra_special_tokens=["<shoe-7>", "<hat>"], image_token="<|end|>"),
    ],
    "an empty text_config_dict": [
        keys(CONFIG, vision_config_dict=SMALL["vision"] | {"image_size": 32}, text_config_dict=None),
    ],
    "null tokens": [keys(TOKENIZER, pad_token="<hat>", sep_token=None, extra_special_tokens=None)],
    "tokens as objects in tokenizer_config.json": [
        written(ADDED_JSON, {"<shoe-7>": END + 1, "<hat>": END + 2}),
        keys(TOKENIZER, image_token={"__type": "AddedToken", "content": "<image>", "lstrip": True}, extra_special_tokens=[
            {"__type": "AddedToken", "content": "<hat>", "rstrip": True}, "wow"]),
    ],
    "extra tokens by name beside a list": [
        keys(TOKENIZER, extra_special_tokens={"boo_token": "wow", "q": "<hat>"}, additional_special_tokens=["<shoe-7>"]),
    ],
    "backslashes and quotes in a token": [written(ADDED_JSON, {r'a \ "b"': END + 1, "caf\u00e9": END + 2, "\U0001f984": END + 3})],
    "float16 weights": [tensors(lambda found: {name: values.astype(np.float16) for name, values in found.items()})],
    # Weights
    "shards": [shards],
    "float64 weights": [tensors(lambda found: {name: values.astype(np.float64) for name, values in found.items()})],
    "weights without metadata": [lambda f: save_file(load_file(f / "model.safetensors"), f / "model.safetensors")],
    "one file beside its shards": [
        lambda f: shutil.copy(f / "model.safetensors", f / "whole"), shards,
        renamed("whole", "model.safetensors"),
    ],
    "pickle": [pickled, without("model.safetensors")],
    "model.safetensors beats the pickle": [
        pickled, tensors(lambda found: {name: (values * 1.1).astype(np.float32) for name, values in found.items() if values.ndim} | {"logit_scale": found["logit_scale"]}),
    ],
    "a prefix": [tensors(lambda found: {f"clip.{name}": values for name, values in found.items()})],
    "tensors that are not needed": [
        tensors(lambda found: found | {"text_model.embeddings.position_ids": np.arange(77)[None], "x": np.zeros(3)}),
    ],
    # sentence-transformers' layout
    "sentence-transformers": [sentence_transformers()],
    "sentence-transformers 6": [resaved],
    "its newer names": [sentence_transformers("sentence_transformers.sentence_transformer.modules.clip_model.CLIPModel")],
    "do_lower_case beside a token with capitals": [
        keys(TOKENIZER, added_tokens_decoder=decoder(token(END + 1, "<Shoe-7>"), token(END + 2, "<HAT>", special=True))),
        sentence_transformers(), written(ST_MODULE, {"do_lower_case": True}),
    ],
    "a module without a folder of its own": [
        written("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.CLIPModel"}]),
    ],
    "max_seq_length null": [sentence_transformers(), written(ST_MODULE, {"max_seq_length": None})],
    "max_seq_length": [sentence_transformers(), written(ST_MODULE, {"max_seq_length": 11, "do_lower_case": True})],
    "max_seq_length beats model_max_length": [
        keys(TOKENIZER, model_max_length=8), sentence_transformers(), written(ST_MODULE, {"max_seq_length": 30}),
    ],
    "max_seq_length under another name": [
        sentence_transformers(), written("0_CLIPModel/sentence_roberta_config.json", {"max_seq_length": 10}),
    ],
    "prompts that are not used by themselves": [
        sentence_transformers(),
        written(ST_CONFIG, {"prompts": {"query": "find: ", "x": "y"}, "default_prompt_name": None, "similarity_fn_name": "dot"}),
    ],
    "a default prompt that is empty": [
        sentence_transformers(), written(ST_CONFIG, {"prompts": {"query": ""}, "default_prompt_name": "query"}),
    ],
    "its files without its layout": [
        written("sentence_bert_config.json", {"max_seq_length": 10}),
        written(ST_CONFIG, {"prompts": {"q": "find: "}, "default_prompt_name": "q", "truncate_dim": 4}),
    ],
}

# What the libraries refuse, or read by mistake, and a bake reads as it is meant: row -> edits that change nothing.
MEANT: dict[str, list[Edit]] = {
    "a byte order mark": [
        in_bytes(name, lambda content: BOM + content) for name in (CONFIG, TOKENIZER, IMAGES, "vocab.json", "merges.txt")
    ],
    "a byte order mark in tokenizer.json": [tokenizer_json(), in_bytes("tokenizer.json", lambda content: BOM + content)],
    "image_size and patch_size as lists": [keys(CONFIG, "vision_config", image_size=[32, 32], patch_size=[16, 16])],
    "resample by name": [keys(IMAGES, resample="bicubic")],
    "resample by name in capitals": [keys(IMAGES, resample="BICUBIC")],
    "mean of three": [keys(IMAGES, image_mean=[0.48145466, 0.4578275, 0.40821073])],
}

# Row -> edits, and what the refusal names: a file and a key of it, or a file.
REFUSED: dict[str, tuple[list[Edit], str]] = {
    "truncation_side": ([keys(TOKENIZER, truncation_side="left")], 'tokenizer_config.json says truncation_side "left"'),
    "padding_side": ([keys(TOKENIZER, padding_side="left")], 'tokenizer_config.json says padding_side "left"'),
    "split_special_tokens": ([keys(TOKENIZER, split_special_tokens=True)], "tokenizer_config.json says split_special_tokens true"),
    "add_special_tokens": ([keys(TOKENIZER, add_special_tokens=False)], "tokenizer_config.json says add_special_tokens false"),
    "is_split_into_words": ([keys(TOKENIZER, is_split_into_words=True)], "tokenizer_config.json says is_split_into_words true"),
    "pad_to_multiple_of": ([keys(TOKENIZER, pad_to_multiple_of=7)], "tokenizer_config.json says pad_to_multiple_of 7"),
    "_json_truncation": ([keys(TOKENIZER, _json_truncation={"max_length": 5})], "tokenizer_config.json says _json_truncation"),
    "vocab": ([keys(TOKENIZER, vocab={"a": 0})], 'tokenizer_config.json says vocab {"a": 0}'),
    "init_inputs": ([keys(TOKENIZER, init_inputs=["x"])], 'tokenizer_config.json says init_inputs ["x"]'),
    "fast_tokenizer_files": (
        [keys(TOKENIZER, fast_tokenizer_files=["tokenizer.4.0.json"])], "tokenizer_config.json says fast_tokenizer_files",
    ),
    "tokenizer_class": ([keys(TOKENIZER, tokenizer_class="PreTrainedTokenizerFast")], "tokenizer_config.json says tokenizer_class"),
    "tokenizer_class of the config": (
        [keys(TOKENIZER, tokenizer_class=...), keys(CONFIG, tokenizer_class="BertTokenizer")],
        'config.json says tokenizer_class "BertTokenizer"',
    ),
    "a token that is an object": ([keys(TOKENIZER, bos_token={"content": "<|startoftext|>"})], "tokenizer_config.json says bos_token"),
    "images in the tokenizer's config": ([keys(TOKENIZER, image_mean=[0, 0, 0])], "tokenizer_config.json says image_mean [0, 0, 0]"),
    "size in the tokenizer's config": ([keys(TOKENIZER, do_resize=None)], "tokenizer_config.json says do_resize null"),
    "max_length": ([keys(TOKENIZER, max_length=16)], "tokenizer_config.json says max_length 16"),
    "max_length above model_max_length": ([keys(TOKENIZER, max_length=77, model_max_length=16)], "tokenizer_config.json says max_length 77"),
    "truncation of tokenizer.json": (
        [tokenizer_json(truncation={"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0})],
        "tokenizer.json says truncation.max_length 12",
    ),
    "truncation of tokenizer.json on the left": (
        [tokenizer_json(truncation={"direction": "Left", "max_length": 77, "strategy": "LongestFirst", "stride": 0})],
        'tokenizer.json says truncation.direction "Left"',
    ),
    "padding of tokenizer.json": (
        [tokenizer_json(padding={"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": END,
                                 "pad_type_id": 0, "pad_token": "<|endoftext|>"})],
        "tokenizer.json says padding.strategy 20",
    ),
    "another tokenizer": ([tokenizer_json(), keys("tokenizer.json", "model", type="WordPiece")], 'tokenizer.json says model.type "WordPiece"'),
    "merges that do not fit": ([in_bytes("merges.txt", lambda b: b + b"zz zz</w>\n")], "the tokenizer's vocabulary and merges do not fit"),
    "an added token without a row": ([written(ADDED_JSON, {f"<{n}>": END + n for n in range(1, 30)})], f"added_tokens.json has the token '<29>' with id {END + 29}; config.json's text_config says vocab_size"),
    "an end that the model does not know": (
        [written(ADDED_JSON, {"<|end|>": END + 1}), keys(TOKENIZER, eos_token="<|end|>")],
        f"config.json's text_config says eos_token_id {END}; expected <|end|>, {END + 1}",
    ),
    "the early end and a high pad_token": (
        [LEGACY, keys(TOKENIZER, pad_token="[PAD]")], "config.json says eos_token_id 2, which ends a text at its highest id, and tokenizer_config.json a pad_token",
    ),
    "added tokens that are one in lower case": (
        [written(ADDED_JSON, {"newtoken": END + 1, "NewToken": END + 2})], "the added tokens 'newtoken' of added_tokens.json and 'NewToken' of added_tokens.json are the same in lower case",
    ),
    "max_position_embeddings of no tower": ([keys(CONFIG, max_position_embeddings=20)], "config.json says max_position_embeddings 20"),
    "quantization_config": ([keys(CONFIG, quantization_config={"quant_method": "bitsandbytes"})], "config.json says quantization_config"),
    "transformers_weights": ([keys(CONFIG, transformers_weights="other.safetensors")], 'config.json says transformers_weights "other.safetensors"'),
    "configuration_files": ([keys(CONFIG, configuration_files=["config.4.0.json"])], "config.json says configuration_files"),
    "per_layer_config": ([keys(CONFIG, "text_config", per_layer_config={"0": {}})], "config.json's text_config says per_layer_config"),
    "image_size that is no square": ([keys(CONFIG, "vision_config", image_size=[32, 64])], "config.json's vision_config says image_size [32, 64]"),
    "hidden_act": ([keys(CONFIG, "text_config", hidden_act="gelu_new")], "config.json's text_config says hidden_act \"gelu_new\""),
    "do_center_crop": ([keys(IMAGES, do_center_crop=False)], "preprocessor_config.json says do_center_crop false"),
    "do_normalize": ([keys(IMAGES, do_normalize=False)], "preprocessor_config.json says do_normalize false"),
    "do_rescale in processor_config.json": (
        [written(PROCESSOR, {"image_processor": {"size": 32, "crop_size": 32, "do_rescale": False}})], "processor_config.json says do_rescale false",
    ),
    "do_resize null": ([keys(IMAGES, do_resize=None)], "preprocessor_config.json says do_resize null"),
    "do_convert_rgb": ([keys(IMAGES, do_convert_rgb=False)], "preprocessor_config.json says do_convert_rgb false"),
    "resample null": ([keys(IMAGES, resample=None)], "preprocessor_config.json says resample null"),
    "size as height and width": ([keys(IMAGES, size={"height": 32, "width": 32})], "preprocessor_config.json says size"),
    "size as a list": ([keys(IMAGES, size=[32, 32])], "preprocessor_config.json says size [32, 32]"),
    "longest_edge": ([keys(IMAGES, size={"shortest_edge": 32, "longest_edge": 64})], "preprocessor_config.json says size"),
    "default_to_square": ([keys(IMAGES, size=32, default_to_square=True)], "preprocessor_config.json says default_to_square true"),
    "use_square_size": ([keys(IMAGES, use_square_size=True)], "preprocessor_config.json says use_square_size true"),
    "pad_size": ([keys(IMAGES, do_pad=True, pad_size=40)], "preprocessor_config.json says pad_size 40"),
    "crop_size that is no square": ([keys(IMAGES, crop_size={"height": 32, "width": 40})], "preprocessor_config.json has images resized to"),
    "image_processor_type": ([keys(IMAGES, image_processor_type="ViTImageProcessor")], 'preprocessor_config.json says image_processor_type "ViTImageProcessor"'),
    "image_processor_type of the config": (
        [keys(IMAGES, image_processor_type=...), keys(CONFIG, image_processor_type="SiglipImageProcessor")],
        'config.json says image_processor_type "SiglipImageProcessor"',
    ),
    "feature_extractor_type": (
        [keys(IMAGES, image_processor_type=..., feature_extractor_type="ViTFeatureExtractor")],
        'preprocessor_config.json says feature_extractor_type "ViTFeatureExtractor"',
    ),
    "processor_class": ([written(PROCESSOR, {"processor_class": "CLIPSegProcessor"})], 'processor_config.json says processor_class "CLIPSegProcessor"'),
    "no file for images": ([without(IMAGES)], "there is no preprocessor_config.json"),
    "a flat processor_config.json alone": ([renamed(IMAGES, PROCESSOR)], "there is no preprocessor_config.json"),
    "adapter_config.json": ([written("adapter_config.json", {"peft_type": "LORA"})], "adapter_config.json adds an adapter"),
    "open_clip's weights": ([renamed("model.safetensors", "open_clip_model.safetensors")], "found open_clip_model.safetensors, open_clip's own weights"),
    "open_clip's pickle": ([renamed("model.safetensors", "open_clip_pytorch_model.bin")], "found open_clip_pytorch_model.bin, open_clip's"),
    "a variant": ([renamed("model.safetensors", "model.fp16.safetensors")], "found model.fp16.safetensors, a variant"),
    "safetensors by another name": ([renamed("model.safetensors", "clip.safetensors")], "found clip.safetensors, a name"),
    "a pickle in shards": ([renamed("model.safetensors", "pytorch_model.bin.index.json")], "found pytorch_model.bin.index.json, torch's"),
    "onnx": ([renamed("model.safetensors", "model.onnx")], "found model.onnx, a graph"),
    "gguf": ([renamed("model.safetensors", "clip-f16.gguf")], "found clip-f16.gguf, weights for llama.cpp"),
    "tensorflow": ([renamed("model.safetensors", "tf_model.h5")], "found tf_model.h5, TensorFlow's"),
    "a shard that is missing": ([shards, without("model-00002-of-00002.safetensors")], "model.safetensors.index.json names model-00002-of-00002.safetensors, which"),
    "a Git LFS pointer": ([written("model.safetensors", LFS)], f"model.safetensors is a Git LFS pointer of {len(LFS)} bytes"),
    "a shard that is a Git LFS pointer": (
        [shards, written("model-00001-of-00002.safetensors", LFS)], "model-00001-of-00002.safetensors is a Git LFS pointer",
    ),
    "a tokenizer that is a Git LFS pointer": ([written("vocab.json", LFS)], "vocab.json is a Git LFS pointer"),
    "a config that is a list": ([written(TOKENIZER, [])], "tokenizer_config.json holds a JSON list; expected an object"),
    "a config that is not UTF-8": ([written(IMAGES, "{\"size\": 32}".encode("utf-16"))], "preprocessor_config.json is not UTF-8 text"),
    "another module": ([sentence_transformers("custom_st.Transformer")], 'modules.json says type "custom_st.Transformer"'),
    "a Router": ([sentence_transformers("sentence_transformers.models.Router")], 'modules.json says type "sentence_transformers.models.Router"'),
    "Transformer without modalities": ([sentence_transformers("sentence_transformers.models.Transformer")], "sentence_bert_config.json has no modality_config"),
    "Normalize after it": ([sentence_transformers("sentence_transformers.models.CLIPModel", NORMALIZE)], "modules.json lists CLIPModel, Normalize"),
    "a default prompt": (
        [sentence_transformers(), written(ST_CONFIG, {"prompts": {"q": "find: "}, "default_prompt_name": "q"})],
        "config_sentence_transformers.json says default_prompt_name 'q'",
    ),
    "truncate_dim": ([sentence_transformers(), written(ST_CONFIG, {"truncate_dim": 4})], "config_sentence_transformers.json says truncate_dim 4"),
    "model_type": ([sentence_transformers(), written(ST_CONFIG, {"model_type": "SparseEncoder"})], "config_sentence_transformers.json says model_type"),
    "processing_kwargs": (
        [sentence_transformers(), written(ST_MODULE, {"processing_kwargs": {"text": {"max_length": 5}}})],
        "sentence_bert_config.json says processing_kwargs",
    ),
    "tokenizer_args": ([sentence_transformers(), written(ST_MODULE, {"tokenizer_args": {"model_max_length": 5}})], "sentence_bert_config.json says tokenizer_args"),
    "tokenizer_name_or_path": ([sentence_transformers(), written(ST_MODULE, {"tokenizer_name_or_path": "x"})], "sentence_bert_config.json says tokenizer_name_or_path"),
    "modality_config": (
        [sentence_transformers(), written(ST_MODULE, {"modality_config": {"text": {"method": "forward", "method_output_name": "x"}}})],
        "sentence_bert_config.json says modality_config",
    ),
    "max_seq_length that is none": ([sentence_transformers(), written(ST_MODULE, {"max_seq_length": 1})], "sentence_bert_config.json says max_seq_length 1"),
    "truncation of tokenizer.json above max_seq_length": (
        [tokenizer_json(truncation={"direction": "Right", "max_length": 77, "strategy": "LongestFirst", "stride": 0}),
         sentence_transformers(), written(ST_MODULE, {"max_seq_length": 20})],
        "tokenizer.json says truncation.max_length 77",
    ),
}
# fmt: on


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint", **SMALL)


@pytest.fixture
def folder(small, tmp_path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "checkpoint"))


def pictures() -> dict[str, Image.Image]:
    kinds = {
        "photo": nasty.photo(),
        "tall": nasty.photo(40, 130),
        "alpha": nasty.with_alpha(),
        "grey": nasty.photo().convert("L"),
    }
    return kinds | {"palette": nasty.photo().convert("P"), "one pixel": Image.new("RGB", (1, 1), "teal")}


# Every fourth one is tried by `make test`, because each opens the libraries for seconds.
NIGHTLY = [pytest.param(row, marks=pytest.mark.slow) if number % 4 else row for number, row in enumerate(EQUAL)]


@pytest.mark.parametrize("row", NIGHTLY)
def test_ids_pixels_and_vectors_are_those_of_the_libraries(row, folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    for edit in EQUAL[row]:
        edit(folder)
    theirs = SentenceTransformer(str(folder), device="cpu")
    bake(str(folder), tmp_path / "model", "fp32", say=quiet)
    engine = Engine(tmp_path / "model")
    check_ids(engine, theirs)
    check_pixels(engine, theirs)
    texts = [text for text in TEXTS if fits(theirs, text)]
    assert len(texts) > len(TEXTS) // 2
    check_vectors(engine.embed_text(texts), theirs.encode(texts, batch_size=1))
    images = list(pictures().values())
    check_vectors(engine.embed_images(images), theirs.encode(images))


@pytest.mark.parametrize("row", MEANT)
def test_what_only_the_libraries_stumble_over_changes_nothing(row, small, folder):
    for edit in MEANT[row]:
        edit(folder)
    found, expected = (open_checkpoint(str(path)) for path in (folder, small))
    for part in ("embed_dim", "log_logit_scale", "preprocess", "tokenizer", "tokens", "context_length"):
        assert getattr(found, part) == getattr(expected, part)
    assert (found.text.config, found.image.config) == (expected.text.config, expected.image.config)


@pytest.mark.parametrize("row", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(row, folder):
    edits, named = REFUSED[row]
    for edit in edits:
        edit(folder)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(str(folder))
    assert str(raised.value).startswith(f"{folder}: {named}") or f" {named}" in str(raised.value)


def fits(theirs, text: str) -> bool:
    """True if the library itself can embed the text: without a limit on length it fails on a long one."""
    return theirs[0].preprocess([text])["input_ids"].shape[1] <= theirs[0].config.text_config.max_position_embeddings


def check_ids(engine: Engine, theirs) -> None:
    read, _ = engine._text.get()
    for text in filter(lambda text: fits(theirs, text), TEXTS):
        expected = theirs[0].preprocess([text])["input_ids"][0].tolist()
        assert read(text).tolist() == expected, repr(text)


def check_pixels(engine: Engine, theirs) -> None:
    """Within a level and a half of 255: Pillow resizes a part of an image where transformers resizes all of it."""
    how = engine.manifest.preprocess
    for name, image in pictures().items():
        expected = theirs[0].preprocess([image])["pixel_values"][0].numpy()
        levels = (to_pixels(image, how) - expected) * np.array(how.std)[:, None, None] / how.scale
        assert np.abs(levels).max() < 1.5, name


def check_vectors(found: np.ndarray, expected: np.ndarray) -> None:
    assert min(map(cosine, found, expected)) >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.linalg.norm(expected, axis=1), rtol=5e-3)


def keys_popped(*functions) -> set[str]:
    """The keys that these functions take out of their keyword arguments."""
    source = "".join(map(inspect.getsource, functions))
    return {
        *re.findall(r'kwargs(?:\.pop|\.get|\.setdefault)\(\s*"(\w+)"', source),
        *re.findall(r'kwargs\["(\w+)"\]', source),
    }


def keys_read() -> dict[str, set[str]]:
    """File -> the keys that the libraries' classes for a CLIP read from it."""
    from sentence_transformers.base.modules import Transformer
    from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, TokenizersBackend
    from transformers.configuration_utils import PreTrainedConfig
    from transformers.processing_utils import ImagesKwargs, TextKwargs
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    texts, images = set(TextKwargs.__annotations__), set(ImagesKwargs.__annotations__)
    configs = [{field.name for field in dataclasses.fields(c)} for c in (CLIPConfig, CLIPTextConfig, CLIPVisionConfig)]
    tokenizers = keys_popped(PreTrainedTokenizerBase.__init__, TokenizersBackend.__init__)
    return {
        CONFIG: set.union(*configs) - {field.name for field in dataclasses.fields(PreTrainedConfig)},
        TOKENIZER: texts | images | tokenizers | set(PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES),
        IMAGES: images | {"use_square_size", "image_processor_type", "feature_extractor_type"},
        "sentence_bert_config.json": set(inspect.signature(Transformer.__init__).parameters)
        - {"self", "model_name_or_path"},
    }


def test_every_key_that_the_libraries_read_is_in_a_table():
    for file, read in keys_read().items():
        known = {*keys_of_a_bake.FOLLOWED[file], *keys_of_a_bake.REFUSED[file], *keys_of_a_bake.HARMLESS[file]}
        assert read - known == set(), file


def test_no_key_is_both_harmless_and_not():
    for file, harmless in keys_of_a_bake.HARMLESS.items():
        assert not {*harmless} & {*keys_of_a_bake.FOLLOWED[file], *keys_of_a_bake.REFUSED[file]}

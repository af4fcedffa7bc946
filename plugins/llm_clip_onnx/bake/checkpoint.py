"""Reads a checkpoint: config, named tensors, tokenizer, preprocessing.

Everything is checked here, so that the later steps can trust it: anything but a CLIP is refused. Its files are found by
layout.py and fetched by hub.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import CheckpointError
from ..model_dir import Preprocess, Source, sha256_of
from ..tokenizer import END, START
from .layout import (
    CONFIG,
    NOTICE,
    PICKLE,
    PREPROCESS_FILES,
    SAFETENSORS,
    SHARDS,
    TOKENIZER_FILES,
    as_checkpoint_error,
    clip_folder,
    read_json,
    read_shards,
    require_torch,
    weight_files,
)

# The defaults of transformers' CLIPTextConfig, CLIPVisionConfig and CLIPImageProcessor.
TEXT_DEFAULTS = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "vocab_size": 49408, "max_position_embeddings": 77,
    "eos_token_id": 49407,
}  # fmt: skip
IMAGE_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 224, "patch_size": 32, "num_channels": 3,
}  # fmt: skip
PREPROCESS_DEFAULTS = {
    "do_resize": True, "size": 224, "resample": 3, "do_center_crop": True, "crop_size": 224, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of a tower. hidden: width between the two products of a feed-forward layer."""

    width: int
    hidden: int
    layers: int
    heads: int
    activation: str  # "quick_gelu" or "gelu"
    layer_norm_eps: float


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP. side and patch in pixels; end_id as the checkpoint says it."""

    text: TowerConfig
    image: TowerConfig
    embed_dim: int
    vocab_size: int
    context_length: int
    end_id: int
    side: int
    patch: int

    @property
    def end_is_highest_id(self) -> bool:
        """Early checkpoints say eos_token_id 2 and mean the highest id of a text, as openai/CLIP does."""
        return self.end_id == 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be baked. merges: "left right", in order."""

    source: Source
    config: ClipConfig
    tensors: Mapping[str, NDArray[np.float32]]
    preprocess: Preprocess
    vocab: dict[str, int]
    merges: list[str]


def read_checkpoint(root: Path, source: str, commit: str | None) -> Checkpoint:
    """The checkpoint in the folder `root`. Raises CheckpointError."""
    with as_checkpoint_error(source):
        return read_parts(root, source, commit)


def read_parts(root: Path, source: str, commit: str | None) -> Checkpoint:
    folder = root / clip_folder(root, source)
    config = read_config(folder / CONFIG, source)
    tensors, weights = open_tensors(folder, source)
    check_shapes(config, tensors, source)
    vocab, merges = read_tokenizer(folder, source)
    if max(vocab.values()) >= config.vocab_size:
        raise CheckpointError(
            f"{source}: the tokenizer has id {max(vocab.values())}, the token table {config.vocab_size} rows"
        )
    if config.end_id not in (2, vocab[END]):
        raise CheckpointError(
            f"{source}: eos_token_id is {config.end_id}; expected {END}, {vocab[END]}, or the early checkpoints' 2"
        )
    notice = (root / NOTICE).read_text(encoding="utf-8").strip() if (root / NOTICE).is_file() else None
    sha256 = {str(file.relative_to(root)): sha256_of(file) for file in weights}
    return Checkpoint(
        Source(source, commit, sha256, notice), config, tensors, read_preprocess(folder, config, source), vocab, merges
    )


def read_config(file: Path, source: str) -> ClipConfig:
    """The config of a checkpoint. Raises CheckpointError if it is no CLIP, or has a part that cannot be baked."""
    config = read_json(file, source)
    if config.get("model_type") != "clip" or not {"text_config", "vision_config"} <= config.keys():
        kind = config.get("model_type") or ", ".join(config.get("architectures", [])) or "no model_type"
        raise CheckpointError(f"{source}: {CONFIG} says {kind!r}; only 'clip', with both its towers, can be baked")
    text = TEXT_DEFAULTS | given(config["text_config"]) | given(config.get("text_config_dict"))
    image = IMAGE_DEFAULTS | given(config["vision_config"]) | given(config.get("vision_config_dict"))
    if image["num_channels"] != 3:
        raise CheckpointError(f"{source}: images of {image['num_channels']} channels; only 3 can be baked")
    return ClipConfig(
        text=tower_config(text, "text", source),
        image=tower_config(image, "image", source),
        embed_dim=config.get("projection_dim") or 512,
        vocab_size=positive_int(text, "vocab_size"),
        context_length=positive_int(text, "max_position_embeddings"),
        end_id=positive_int(text, "eos_token_id"),
        side=positive_int(image, "image_size"),
        patch=positive_int(image, "patch_size"),
    )


def given(values: dict | None) -> dict:
    """The values that a part of a config gives, without those that are null."""
    return {key: value for key, value in (values or {}).items() if value is not None}


def positive_int(values: dict, key: str) -> int:
    """values[key]. Raises ValueError if it is not a whole number above 0."""
    if not isinstance(values[key], int) or values[key] < 1:
        raise ValueError(f"{key} is {values[key]!r}, expected a whole number above 0")
    return values[key]


def positive_number(values: dict, key: str) -> float:
    """values[key]. Raises ValueError if it is not a number above 0."""
    if not isinstance(values[key], int | float) or not values[key] > 0:
        raise ValueError(f"{key} is {values[key]!r}, expected a number above 0")
    return float(values[key])


def tower_config(values: dict, name: str, source: str) -> TowerConfig:
    width, heads, activation = (
        positive_int(values, "hidden_size"),
        positive_int(values, "num_attention_heads"),
        values["hidden_act"],
    )
    if activation not in ("quick_gelu", "gelu"):
        raise CheckpointError(
            f"{source}: the {name} tower's hidden_act is {activation!r}; expected 'quick_gelu' or 'gelu'"
        )
    if width % heads:
        raise CheckpointError(f"{source}: the {name} tower's width {width} is no multiple of its {heads} heads")
    return TowerConfig(
        width,
        positive_int(values, "intermediate_size"),
        positive_int(values, "num_hidden_layers"),
        heads,
        activation,
        positive_number(values, "layer_norm_eps"),
    )


class SafeTensors(Mapping):
    """Named tensors of safetensors files, each read on access, always as float32."""

    def __init__(self, files: list[Path]):
        import ml_dtypes  # noqa: F401, numpy has bfloat16 from it
        from safetensors import (
            safe_open,  # imported here and in open_tensors, because `llm clip verify` needs no safetensors
        )

        self._handles: dict = {}
        for file in files:
            handle = safe_open(file, framework="np")
            self._handles |= {name: handle for name in handle.keys()}  # noqa: SIM118, it is no dict

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._handles[name].get_tensor(name).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._handles[name].get_slice(name).get_shape())


class PickledTensors(dict):
    """Named tensors of a torch pickle, all in memory, as float32."""

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name].shape


def open_tensors(folder: Path, source: str) -> tuple[SafeTensors | PickledTensors, list[Path]]:
    """The named tensors, and the files that hold them. Raises CheckpointError."""
    names = {file.name for file in folder.iterdir()}
    files = weight_files(names, lambda: read_shards(folder / SHARDS, source))
    if not files:
        raise CheckpointError(f"{source}: no weights; expected {SAFETENSORS}, {SHARDS} or {PICKLE}")
    if missing := [name for name in files if name not in names]:
        raise CheckpointError(f"{source}: {SHARDS} names {missing[0]}, which is not there")
    paths = [folder / name for name in files]
    if files == [PICKLE]:
        return read_pickle(paths[0], source), paths
    from safetensors import SafetensorError

    try:
        return SafeTensors(paths), paths
    except SafetensorError as error:
        raise CheckpointError(f"{source}: the weights cannot be read, a file may be cut short: {error}") from error


def read_pickle(file: Path, source: str) -> PickledTensors:
    """The named tensors of a torch pickle. Raises CheckpointError."""
    require_torch(source)
    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler does
        raise CheckpointError(f"{source}: {PICKLE} cannot be read: {error}") from error
    return PickledTensors({name: tensor.float().numpy() for name, tensor in state.items()})


def expected_shapes(config: ClipConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that a checkpoint of this config has."""
    text, image, d = config.text, config.image, config.embed_dim
    yield "logit_scale", ()
    yield "text_model.embeddings.token_embedding.weight", (config.vocab_size, text.width)
    yield "text_model.embeddings.position_embedding.weight", (config.context_length, text.width)
    yield "text_projection.weight", (d, text.width)
    yield "vision_model.embeddings.class_embedding", (image.width,)
    yield "vision_model.embeddings.patch_embedding.weight", (image.width, 3, config.patch, config.patch)
    yield "vision_model.embeddings.position_embedding.weight", ((config.side // config.patch) ** 2 + 1, image.width)
    yield "visual_projection.weight", (d, image.width)
    norms = [
        ("text_model.final_layer_norm", text),
        ("vision_model.pre_layrnorm", image),
        ("vision_model.post_layernorm", image),
    ]
    for prefix, tower in (("text_model", text), ("vision_model", image)):
        for n in range(tower.layers):
            layer, width, hidden = f"{prefix}.encoder.layers.{n}", tower.width, tower.hidden
            norms += [(f"{layer}.layer_norm{k}", tower) for k in (1, 2)]
            for part, (rows, columns) in {
                **{f"self_attn.{p}_proj": (width, width) for p in ("q", "k", "v", "out")},
                "mlp.fc1": (hidden, width),
                "mlp.fc2": (width, hidden),
            }.items():
                yield f"{layer}.{part}.weight", (rows, columns)
                yield f"{layer}.{part}.bias", (rows,)
    for name, tower in norms:
        yield f"{name}.weight", (tower.width,)
        yield f"{name}.bias", (tower.width,)


def check_shapes(config: ClipConfig, tensors: SafeTensors | PickledTensors, source: str) -> None:
    """Raises CheckpointError for the first tensor that is missing or has another shape than the config says."""
    for name, expected in expected_shapes(config):
        if name not in tensors:
            raise CheckpointError(f"{source}: the weights have no tensor {name}")
        if (found := tensors.shape(name)) != expected:
            raise CheckpointError(f"{source}: tensor {name} is {list(found)}, {CONFIG} makes it {list(expected)}")


def read_tokenizer(folder: Path, source: str) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges, from vocab.json and merges.txt, else from tokenizer.json. Raises CheckpointError."""
    vocab_file, merges_file, tokenizer_file = (folder / name for name in TOKENIZER_FILES)
    if vocab_file.is_file() and merges_file.is_file():
        lines = merges_file.read_text(encoding="utf-8").split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        vocab = read_json(vocab_file, source)
    else:
        model = read_json(tokenizer_file, source).get("model", {})
        if model.get("type") != "BPE" or model.get("end_of_word_suffix") != "</w>":
            raise CheckpointError(
                f"{source}: tokenizer.json holds a {model.get('type')} tokenizer; expected CLIP's BPE"
            )
        vocab, merges = model["vocab"], [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if not {START, END} <= vocab.keys():
        raise CheckpointError(f"{source}: the vocabulary has no <|startoftext|> and <|endoftext|>; expected CLIP's")
    return vocab, merges


def read_preprocess(folder: Path, config: ClipConfig, source: str) -> Preprocess:
    """The steps from an image to pixels. Raises CheckpointError if they are not CLIP's."""
    found: dict = {}
    for name in PREPROCESS_FILES:
        if (folder / name).is_file():
            found = read_json(folder / name, source)
            found = found.get("image_processor", found)
            break
    steps = PREPROCESS_DEFAULTS | given(found)
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not steps[step]:
            raise CheckpointError(
                f"{source}: the image processor says {step} false; only CLIP's own steps can be baked"
            )
    size, crop = steps["size"], steps["crop_size"]
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    crop = crop["height"] if isinstance(crop, dict) and crop.get("height") == crop.get("width") else crop
    if not isinstance(shortest, int) or crop != config.side or shortest < crop:
        raise CheckpointError(
            f"{source}: images resized to {size} and cropped to {crop}; expected the shortest side resized, "
            f"to at least {config.side}, and a crop of {config.side} x {config.side}"
        )
    mean, std = ((float(a), float(b), float(c)) for a, b, c in (steps["image_mean"], steps["image_std"]))
    if min(std) <= 0:
        raise ValueError(f"image_std is {std}, expected numbers above 0")
    return Preprocess(
        shortest, crop, int(Image.Resampling(steps["resample"])), mean, std, float(steps["rescale_factor"])
    )

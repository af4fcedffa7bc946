"""Reads a checkpoint: config, named tensors, tokenizer, preprocessing.

Everything is checked here, so that the later steps can trust it: anything but a CLIP is refused. Its files are found by
layout.py and fetched by hub.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, cited, shortened
from ..model_dir import Preprocess, Source, Tokens, sha256_of
from .image_processor import read_preprocess
from .keys import CONFIG, CONFIG_KEYS, MODULES, TEXT_KEYS, TOKENIZER_CONFIG, VISION_KEYS, check_keys, misfit, unfollowed
from .kinds import NO_LIMIT, Kind
from .layout import (
    NOTICE,
    PICKLE,
    SHARDS,
    as_checkpoint_error,
    check_fetched,
    clip_folder,
    read_modules,
    read_object,
    read_shards,
    read_text,
    require_torch,
    weight_files,
)
from .modules import read_max_length
from .tokenizer_files import CheckpointTokenizer, read_tokenizer

# The defaults of transformers' CLIPTextConfig and CLIPVisionConfig.
TEXT_DEFAULTS = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "vocab_size": 49408, "max_position_embeddings": 77,
    "eos_token_id": 49407,
}  # fmt: skip
IMAGE_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 224, "patch_size": 32, "num_channels": 3,
}  # fmt: skip
FLOATS = ("F16", "BF16", "F32", "F64", "float16", "bfloat16", "float32", "float64")  # of safetensors, and of torch
PREFIX = "clip."  # of the names of a CLIP's tensors inside a larger model


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
    """A checkpoint that can be baked. merges: "left right", in order. context_length: the most ids of a text."""

    source: Source
    config: ClipConfig
    tensors: Mapping[str, NDArray[np.float32]]
    preprocess: Preprocess
    vocab: dict[str, int]
    merges: list[str]
    tokens: Tokens
    context_length: int


def read_checkpoint(root: Path, source: str, commit: str | None) -> Checkpoint:
    """The checkpoint in the folder `root`. Raises CheckpointError."""
    with as_checkpoint_error(source):
        return read_parts(root, source, commit)


def read_parts(root: Path, source: str, commit: str | None) -> Checkpoint:
    folder = root / (path := clip_folder(root, source))
    if path and not os.path.isdir(folder):
        raise misfit(MODULES, "path", path, source, "the folder of a CLIP")
    settings, config = read_object(folder / CONFIG, source), read_config(folder / CONFIG, source)
    tensors, weights = open_tensors(folder, source)
    check_shapes(config, tensors, source)
    tokenizer = read_tokenizer(folder, settings, source)
    check_ends(config, tokenizer, source)
    length = read_context_length(root, folder, settings, config, tokenizer, source)
    preprocess = read_preprocess(folder, settings, config.side, source)
    notice = read_text(root / NOTICE, source).strip() if (root / NOTICE).is_file() else None
    sha256 = {str(file.relative_to(root)): sha256_of(file) for file in weights}
    origin = Source(source, commit, sha256, notice)
    return Checkpoint(origin, config, tensors, preprocess, tokenizer.vocab, tokenizer.merges, tokenizer.tokens, length)


def check_ends(config: ClipConfig, tokenizer: CheckpointTokenizer, source: str) -> None:
    """Raises CheckpointError if the model would not find the end of a text where the tokenizer puts it."""
    end = f"{shortened(tokenizer.tokens.end)}, {tokenizer.end_id}"
    if tokenizer.highest_id >= config.vocab_size:
        raise CheckpointError(
            f"{source}: {tokenizer.highest_file} has the token {cited(tokenizer.highest)} with id "
            f"{tokenizer.highest_id}; {CONFIG}'s text_config says vocab_size {config.vocab_size}, rows of the token "
            "table"
        )
    if config.end_id not in (2, tokenizer.end_id):
        raise CheckpointError(
            f"{source}: {CONFIG}'s text_config says eos_token_id {config.end_id}; expected {end}, or the early "
            "checkpoints' 2"
        )
    if config.end_is_highest_id and tokenizer.pad_id > tokenizer.end_id:
        raise CheckpointError(
            f"{source}: {CONFIG} says eos_token_id 2, which ends a text at its highest id, and {TOKENIZER_CONFIG} a "
            f"pad_token of a higher id than {end}; so a text's vector would depend on its neighbours; expected "
            f"eos_token_id {tokenizer.end_id}"
        )


def read_context_length(
    root: Path, folder: Path, settings: Mapping, config: ClipConfig, tokenizer: CheckpointTokenizer, source: str
) -> int:
    """The most ids of a text. Raises CheckpointError if it depends on how the libraries are called."""
    file, key, limit = TOKENIZER_CONFIG, "model_max_length", tokenizer.max_length
    if module := read_modules(root, source):
        name, own = read_max_length(root, folder, str(module.get("type")), source)
        file, key, limit = (name, "max_seq_length", own) if own else (file, key, limit)
    if limit and config.context_length < limit <= NO_LIMIT:
        raise unfollowed(file, key, limit, source, config.context_length)
    length = min(limit or config.context_length, config.context_length)
    top = settings.get("max_position_embeddings")
    for file, key, value in [(CONFIG, "max_position_embeddings", top), *filter(None, [tokenizer.call_length])]:
        if value is not None and min(value, config.context_length) != length:
            raise unfollowed(file, key, value, source, length)
    return length


def read_config(file: Path, source: str) -> ClipConfig:
    """The config of a checkpoint. Raises CheckpointError if it is no CLIP, or has a part that cannot be baked."""
    config = read_object(file, source)
    if config.get("model_type") != "clip":
        kind, names = config.get("model_type"), config.get("architectures")
        kind = kind or (", ".join(map(str, names)) if isinstance(names, list) else names) or "no model_type"
        raise CheckpointError(f"{source}: {CONFIG} says {cited(kind)}; only 'clip', with both its towers, can be baked")
    check_keys(config, CONFIG, source, kinds=CONFIG_KEYS)
    text = part_of(config, "text_config", TEXT_DEFAULTS, TEXT_KEYS, source)
    image = part_of(config, "vision_config", IMAGE_DEFAULTS, VISION_KEYS, source)
    return ClipConfig(
        text=tower_config(text, "text_config", source),
        image=tower_config(image, "vision_config", source),
        embed_dim=config.get("projection_dim") or 512,
        vocab_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
        end_id=text["eos_token_id"],
        side=image["image_size"],
        patch=image["patch_size"],
    )


def part_of(config: Mapping, name: str, defaults: dict, kinds: Mapping[str, Kind], source: str) -> dict:
    """text_config or vision_config. Where the same name with _dict is there, its values and the defaults win."""
    values = dict(defaults)
    for key in (name, f"{name}_dict"):
        part = config.get(key)
        if part is not None:
            check_keys(part, CONFIG, source, f"{CONFIG}'s {key}", kinds)
            values |= (defaults if key != name else {}) | given(part)
    return values | {key: one_side(values[key]) for key in ("image_size", "patch_size") if key in defaults}


def one_side(size: int | list[int]) -> int:
    """The side of a square that may be given by its height and width."""
    return size[0] if isinstance(size, list) else size


def given(values: dict | None) -> dict:
    """The values that a part of a config gives, without those that are null."""
    return {key: value for key, value in (values or {}).items() if value is not None}


def tower_config(values: dict, part: str, source: str) -> TowerConfig:
    """The sizes of a tower. Raises CheckpointError if its heads do not divide its width."""
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if width % heads:
        raise CheckpointError(
            f"{source}: {CONFIG}'s {part} says hidden_size {width}, no multiple of its num_attention_heads {heads}"
        )
    return TowerConfig(
        width,
        values["intermediate_size"],
        values["num_hidden_layers"],
        heads,
        values["hidden_act"],
        float(values["layer_norm_eps"]),
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
            self._handles |= {name.removeprefix(PREFIX): (handle, name) for name in handle.keys()}  # noqa: SIM118, it is no dict

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        handle, stored_name = self._handles[name]
        return handle.get_tensor(stored_name).astype(np.float32, copy=False)

    def __contains__(self, name: object) -> bool:
        return name in self._handles  # Mapping's own reads the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def shape(self, name: str) -> tuple[int, ...]:
        handle, stored_name = self._handles[name]
        return tuple(handle.get_slice(stored_name).get_shape())

    def numbers(self, name: str) -> str:
        """What the tensor's numbers are stored as: "F16", "I8"..."""
        handle, stored_name = self._handles[name]
        return handle.get_slice(stored_name).get_dtype()


class PickledTensors(dict):
    """Named tensors of a torch pickle, all in memory, as float32; `stored_as` says what their numbers were."""

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]], stored_as: Mapping[str, str]):
        super().__init__(tensors)
        self._stored_as = stored_as

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name].shape

    def numbers(self, name: str) -> str:
        """What the tensor's numbers were stored as: "float16", "int8"..."""
        return self._stored_as[name]


def open_tensors(folder: Path, source: str) -> tuple[SafeTensors | PickledTensors, list[Path]]:
    """The named tensors, and the files that hold them. Raises CheckpointError."""
    names = {file.name for file in folder.iterdir()}
    files = weight_files(names, lambda: read_shards(folder / SHARDS, source), source)
    paths = [folder / name for name in files]
    for path in paths:
        check_fetched(path, source)
    if files == [PICKLE]:
        return read_pickle(paths[0], source), paths
    from safetensors import SafetensorError

    try:
        return SafeTensors(paths), paths
    except SafetensorError as error:
        raise CheckpointError(
            f"{source}: the weights cannot be read, a file may be cut short: {shortened(error)}"
        ) from error


def read_pickle(file: Path, source: str) -> PickledTensors:
    """The named tensors of a torch pickle. Raises CheckpointError."""
    require_torch(source)
    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler does
        raise CheckpointError(f"{source}: {PICKLE} cannot be read: {shortened(error)}") from error
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if torch.is_tensor(tensor)}
    stored_as = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    return PickledTensors({name: tensor.float().numpy() for name, tensor in tensors.items()}, stored_as)


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
    """Raises CheckpointError for the first tensor that is missing, of another shape than in the config, or no float."""
    for name, expected in expected_shapes(config):
        if name not in tensors:
            raise CheckpointError(f"{source}: the weights have no tensor {name}, which {CONFIG} asks for")
        if (numbers := tensors.numbers(name)) not in FLOATS:
            raise CheckpointError(
                f"{source}: tensor {name} is stored as {shortened(numbers)}, so it is quantized or no weight; expected "
                "floats of 16, 32 or 64 bits"
            )
        if (found := tensors.shape(name)) != expected:
            raise CheckpointError(f"{source}: tensor {name} is {list(found)}, {CONFIG} makes it {list(expected)}")

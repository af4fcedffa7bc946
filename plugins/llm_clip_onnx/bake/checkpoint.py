"""Where weights come from: a hub id or folder in, a checkpoint out: config, named tensors, tokenizer, preprocessing.

Both layouts are read, sentence-transformers' (with its 0_CLIPModel) and plain Hugging Face. Everything is checked here,
so that what follows may trust it; what is no CLIP is refused.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import CheckpointError
from ..images.preprocess import Preprocess
from ..model_dir import Source, sha256_of
from ..tokenizer import END, START

CONFIG, MODULES, NOTICE = "config.json", "modules.json", "NOTICE.txt"
SAFETENSORS, SHARDS, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json")
PREPROCESS_FILES = ("preprocessor_config.json", "processor_config.json")
LAYOUTS = "expected a checkpoint in Hugging Face's or sentence-transformers' layout"

# What transformers takes where a config leaves a value out (CLIPTextConfig, CLIPVisionConfig).
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
    width: int
    hidden: int
    layers: int
    heads: int
    activation: str  # "quick_gelu" or "gelu"
    layer_norm_eps: float


@dataclass(frozen=True)
class ClipConfig:
    text: TowerConfig
    image: TowerConfig
    embed_dim: int
    vocab_size: int
    context_length: int
    end_id: int  # as the checkpoint says it
    side: int  # pixels
    patch: int  # pixels

    @property
    def end_is_highest_id(self) -> bool:
        """Early checkpoints say eos_token_id 2 and mean the highest id of a text, as openai/CLIP does."""
        return self.end_id == 2


@dataclass(frozen=True)
class Checkpoint:
    source: Source
    config: ClipConfig
    tensors: Mapping[str, NDArray[np.float32]]
    preprocess: Preprocess
    vocab: dict[str, int]
    merges: list[str]  # "left right", in order


def open_checkpoint(source: str, revision: str | None = None) -> Checkpoint:
    """Fetch or find the checkpoint and check that it is a CLIP that can be baked. Raises CheckpointError."""
    if Path(source).is_dir():
        if revision:
            raise CheckpointError(f"--revision {revision} goes with a hub id; {source} is a folder")
        return read_checkpoint(Path(source), source, None)
    from .hub import fetch

    root, commit = fetch(source, revision)
    return read_checkpoint(root, source, commit)


def read_checkpoint(root: Path, source: str, commit: str | None) -> Checkpoint:
    """The checkpoint in the folder `root`. Raises CheckpointError."""
    with well_formed(source):
        return read_parts(root, source, commit)


@contextmanager
def well_formed(source: str) -> Iterator[None]:
    """Raises CheckpointError where a file of a checkpoint cannot be read, or holds something else than it should."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{source}: {error.filename} cannot be read: {error.strerror or error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{source}: a file of it does not hold what it should ({what}); {LAYOUTS}") from error


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
            f"{source}: eos_token_id is {config.end_id}; expected {END}, {vocab[END]}, or 2 as of old"
        )
    notice = (root / NOTICE).read_text(encoding="utf-8").strip() if (root / NOTICE).is_file() else None
    sha256 = {str(file.relative_to(root)): sha256_of(file) for file in weights}
    return Checkpoint(
        Source(source, commit, sha256, notice), config, tensors, read_preprocess(folder, config, source), vocab, merges
    )


def clip_folder(root: Path, source: str) -> str:
    """Where in `root` the CLIP lies: "" or, in sentence-transformers' layout, the path of the one module there is."""
    if not (root / MODULES).is_file():
        return ""
    modules = read_json(root / MODULES, source)
    modules = modules if isinstance(modules, list) else [modules]
    kinds = ", ".join(str(m.get("type") if isinstance(m, dict) else m).rsplit(".", 1)[-1] for m in modules)
    if len(modules) != 1 or not isinstance(modules[0], dict):
        raise CheckpointError(f"{source}: {MODULES} lists {kinds}; expected CLIPModel alone")
    path = str(modules[0].get("path", ""))
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise CheckpointError(f"{source}: {MODULES} points outside the checkpoint, at {path!r}")
    return path


def read_json(file: Path, source: str):
    if not file.is_file():
        raise CheckpointError(f"{source}: there is no {file.name}; {LAYOUTS}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{source}: {file.name} is not JSON: {error}") from error


def read_config(file: Path, source: str) -> ClipConfig:
    """Raises CheckpointError saying what was found where it is no CLIP, or one with a part that is not known here."""
    found = read_json(file, source)
    if found.get("model_type") != "clip" or not {"text_config", "vision_config"} <= found.keys():
        kind = found.get("model_type") or ", ".join(found.get("architectures", [])) or "no model_type"
        raise CheckpointError(f"{source}: {CONFIG} says {kind!r}; only 'clip', with both its towers, can be baked")
    text = TEXT_DEFAULTS | said(found["text_config"]) | said(found.get("text_config_dict"))
    image = IMAGE_DEFAULTS | said(found["vision_config"]) | said(found.get("vision_config_dict"))
    if image["num_channels"] != 3:
        raise CheckpointError(f"{source}: images of {image['num_channels']} channels; only 3 can be baked")
    return ClipConfig(
        text=tower_config(text, "text", source),
        image=tower_config(image, "image", source),
        embed_dim=found.get("projection_dim") or 512,
        vocab_size=positive(text, "vocab_size"),
        context_length=positive(text, "max_position_embeddings"),
        end_id=positive(text, "eos_token_id"),
        side=positive(image, "image_size"),
        patch=positive(image, "patch_size"),
    )


def said(values: dict | None) -> dict:
    """What a part of a config says, without what it leaves open."""
    return {key: value for key, value in (values or {}).items() if value is not None}


def positive(values: dict, key: str) -> int:
    """Raises ValueError where values[key] is not a whole number above 0."""
    if not isinstance(values[key], int) or values[key] < 1:
        raise ValueError(f"{key} is {values[key]!r}, expected a whole number above 0")
    return values[key]


def positive_number(values: dict, key: str) -> float:
    """Raises ValueError where values[key] is not a number above 0."""
    if not isinstance(values[key], int | float) or not values[key] > 0:
        raise ValueError(f"{key} is {values[key]!r}, expected a number above 0")
    return float(values[key])


def tower_config(values: dict, name: str, source: str) -> TowerConfig:
    width, heads, activation = (
        positive(values, "hidden_size"),
        positive(values, "num_attention_heads"),
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
        positive(values, "intermediate_size"),
        positive(values, "num_hidden_layers"),
        heads,
        activation,
        positive_number(values, "layer_norm_eps"),
    )


class SafeTensors(Mapping):
    """Named tensors of safetensors files, each read when it is asked for, always as float32."""

    def __init__(self, files: list[Path]):
        import ml_dtypes  # noqa: F401, numpy has bfloat16 from it
        from safetensors import safe_open  # here, as in open_tensors: `llm clip verify` does without

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
    def shape(self, name: str) -> tuple[int, ...]:
        return self[name].shape


def weight_files(names: set[str], shards: Callable[[], list[str]]) -> list[str]:
    """Which of the files called `names` hold the weights: safetensors where there are any. `shards` reads SHARDS."""
    if SAFETENSORS in names:
        return [SAFETENSORS]
    if SHARDS in names:
        return shards()
    return [PICKLE] if PICKLE in names else []


def read_shards(file: Path, source: str) -> list[str]:
    index = read_json(file, source)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{source}: {SHARDS} has no weight_map that says which file holds which tensor")
    return sorted(set(shards.values()))


def open_tensors(folder: Path, source: str) -> tuple[SafeTensors | PickledTensors, list[Path]]:
    """The weights, and the files that they are in. Raises CheckpointError."""
    names = {file.name for file in folder.iterdir()}
    files = weight_files(names, lambda: read_shards(folder / SHARDS, source))
    if not files:
        raise CheckpointError(f"{source}: no weights; expected {SAFETENSORS}, {SHARDS} or {PICKLE}")
    if missing := [name for name in files if name not in names]:
        raise CheckpointError(f"{source}: {SHARDS} names {missing[0]}, which is not there")
    paths = [folder / name for name in files]
    if files == [PICKLE]:
        return unpickled(paths[0], source), paths
    from safetensors import SafetensorError

    try:
        return SafeTensors(paths), paths
    except SafetensorError as error:
        raise CheckpointError(f"{source}: the weights cannot be read, a file may be cut short: {error}") from error


def need_torch(source: str) -> None:
    """Raises CheckpointError where torch is not, for weights that only it reads."""
    if importlib.util.find_spec("torch") is None:
        raise CheckpointError(
            f"{source}: the weights are in {PICKLE}, which only torch reads: "
            f"install it, or take a checkpoint with {SAFETENSORS}"
        )


def unpickled(file: Path, source: str) -> PickledTensors:
    need_torch(source)
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
    """What becomes of an image's pixels. Raises CheckpointError for steps other than CLIP's."""
    found: dict = {}
    for name in PREPROCESS_FILES:
        if (folder / name).is_file():
            found = read_json(folder / name, source)
            found = found.get("image_processor", found)
            break
    how = PREPROCESS_DEFAULTS | said(found)
    for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not how[step]:
            raise CheckpointError(
                f"{source}: the image processor says {step} false; only CLIP's own steps can be baked"
            )
    size, crop = how["size"], how["crop_size"]
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    crop = crop["height"] if isinstance(crop, dict) and crop.get("height") == crop.get("width") else crop
    if not isinstance(shortest, int) or crop != config.side or shortest < crop:
        raise CheckpointError(
            f"{source}: images resized to {size} and cropped to {crop}; expected the shortest side resized, "
            f"to at least {config.side}, and a crop of {config.side} x {config.side}"
        )
    mean, std = ((float(a), float(b), float(c)) for a, b, c in (how["image_mean"], how["image_std"]))
    if min(std) <= 0:
        raise ValueError(f"image_std is {std}, expected numbers above 0")
    return Preprocess(shortest, crop, int(Image.Resampling(how["resample"])), mean, std, float(how["rescale_factor"]))

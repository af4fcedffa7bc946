"""Reads a text tower for another checkpoint's images: sentence-transformers' modules Transformer, Pooling and Dense.

sentence-transformers/clip-ViT-B-32-multilingual-v1 has this layout: a DistilBERT, the mean over its tokens, and a Dense
layer into the vectors of OpenAI's ViT-B/32. What sentence-transformers would compute otherwise is refused by name.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from ...errors import CheckpointError, cited, shortened
from ...model_dir import Source, Tokens, sha256_of
from ..checkpoint import check_shapes
from ..keys import CONFIG, MODULE, MODULES, OFF, REFUSED, SENTENCES, check_keys, misfit, unfollowed
from ..kinds import ACTIVATION, SWITCH, TEXT, WHOLE, Kind
from ..layout import (
    MODULE_FILES,
    MODULES_EXPECTED,
    NOTICE,
    PICKLE,
    SAFETENSORS,
    SHARDS,
    read_json,
    read_notice,
    read_object,
    read_shards,
    require_torch,
    weight_files,
)
from ..modules import check_sentences, read_module
from ..tensors import Part, PickledTensors, RenamedTensors, SafeTensors, open_tensors
from ..towers import Tower, TowerConfig, distilbert_text
from ..towers.distilbert_text import PROJECTION, DistilBertConfig
from ..wordpiece_files import TOKENIZER_FILES, read_tokenizer

IMAGES = "sentence-transformers/clip-ViT-B-32"  # whose images clip-ViT-B-32-multilingual-v1 was trained for
KINDS = ("Transformer", "Pooling", "Dense")
LAYER_NORM_EPS = 1e-12  # of transformers' DistilBERT
PREFIX = "distilbert."  # of the tensors' names inside a larger model
DEFAULTS = {  # of transformers' DistilBertConfig
    "vocab_size": 30522, "max_position_embeddings": 512, "n_layers": 6, "n_heads": 12, "dim": 768, "hidden_dim": 3072,
    "activation": "gelu",
}  # fmt: skip
ALIASES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
CONFIG_KEYS: dict[str, Kind] = {
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_layers", "n_heads", "dim", "hidden_dim"), WHOLE),
    **dict.fromkeys(ALIASES, WHOLE),
    "activation": ACTIVATION,
}
TEXT_FEATURES = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
MODULE_REFUSED = REFUSED[MODULE] | {
    "modality_config": (None, TEXT_FEATURES),
    "module_output_name": (None, "token_embeddings"),
    "do_lower_case": OFF,
}
MEAN = "pooling_mode_mean_tokens"
POOLING_KEYS: dict[str, Kind] = {"word_embedding_dimension": WHOLE, "embedding_dimension": WHOLE, MEAN: SWITCH}
POOLING_REFUSED: dict[str, tuple] = {
    "pooling_mode": (None, "mean", ["mean"]),
    MEAN: (None, True),
    **dict.fromkeys(
        (f"pooling_mode_{kind}" for kind in ("cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")),
        OFF,
    ),
    "pooling_mode_lasttoken": OFF,
}
DENSE_KEYS: dict[str, Kind] = {"in_features": WHOLE, "out_features": WHOLE, "bias": SWITCH, "activation_function": TEXT}
DENSE_REFUSED: dict[str, tuple] = {
    "bias": (False,),
    "activation_function": ("torch.nn.modules.linear.Identity",),
    "use_residual": OFF,
    "module_input_name": (None, "sentence_embedding"),
    "module_output_name": (None, "sentence_embedding"),
}


@dataclass(frozen=True)
class TextCheckpoint:
    """A text tower that can be baked with another checkpoint's images."""

    source: Source
    text: Tower
    embed_dim: int
    tokenizer: Mapping[str, str]
    tokens: Tokens
    context_length: int


@dataclass(frozen=True)
class Folders:
    """Paths of the three modules below the checkpoint's root; that of the Transformer may be empty."""

    transformer: str
    pooling: str
    dense: str


def has_several_modules(root: Path, source: str) -> bool:
    """True for a folder whose modules.json lists more than one module."""
    modules = read_json(root / MODULES, source) if (root / MODULES).is_file() else None
    return isinstance(modules, list) and len(modules) > 1


def read_checkpoint(root: Path, source: str, commit: str | None) -> TextCheckpoint:
    """The text tower in the folder `root`. Raises CheckpointError."""
    folders = read_folders(root, source)
    folder, dense = root / folders.transformer, root / folders.dense
    check_sentences(root, source)
    config = read_config(root, folders, source)
    names = {file.name for file in folder.iterdir()}
    weights = [folder / name for name in weight_files(names, lambda: read_shards(folder / SHARDS, source), source)]
    stored, projection = open_tensors(weights, source), dense_weights(dense, folders.dense, source)
    tensors = named(config, stored, CONFIG, source)
    width = config.text.width
    check_shapes([("linear.weight", (config.embed_dim, width))], projection, f"{folders.dense}/{CONFIG}", source)
    tokenizer = read_tokenizer(folder, config.vocab_size, source)
    length = read_context_length(folder, config, tokenizer.max_length, source)
    files = [*weights, dense / dense_file({file.name for file in dense.iterdir()}, folders.dense, source)]
    sha256 = {str(file.relative_to(root)): sha256_of(file) for file in files}
    named_projection = RenamedTensors(projection, {PROJECTION: Part("linear.weight")})
    tower = distilbert_text.tower(config, ChainMap(named_projection, tensors))  # type: ignore[arg-type]  # never written
    origin = Source(source, commit, sha256, read_notice(root, source))
    return TextCheckpoint(origin, tower, config.embed_dim, tokenizer.files, tokenizer.tokens, length)


def read_folders(root: Path, source: str) -> Folders:
    """Where the three modules are. Raises CheckpointError for any others."""
    modules = read_json(root / MODULES, source)
    if not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{source}: {MODULES} holds something else than modules; {MODULES_EXPECTED}")
    for module in modules:
        check_keys(module, MODULES, source)
    types = [str(module.get("type")) for module in modules]
    kinds = [kind.rpartition(".")[2] for kind in types]
    if tuple(kinds) != KINDS or not all(kind.startswith("sentence_transformers.") for kind in types):
        raise CheckpointError(f"{source}: {MODULES} lists {shortened(', '.join(kinds))}; {MODULES_EXPECTED}")
    paths = [module.get("path") or "" for module in modules]
    for path in paths:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise CheckpointError(f"{source}: {MODULES} points outside the checkpoint, at {cited(path)}")
        if not (root / path).is_dir():
            raise misfit(MODULES, "path", path, source, "the folder of a module")
    return Folders(*paths)


def read_config(root: Path, folders: Folders, source: str) -> DistilBertConfig:
    """The sizes of all three modules. Raises CheckpointError naming a key that cannot be followed."""
    config = read_object(root / folders.transformer / CONFIG, source)
    if config.get("model_type") != "distilbert":
        raise CheckpointError(
            f"{source}: {CONFIG} says {cited(config.get('model_type') or 'no model_type')}; of text towers only "
            "'distilbert' can be baked"
        )
    check_keys(config, CONFIG, source, kinds=CONFIG_KEYS)
    sizes = DEFAULTS | {key: value for key, value in config.items() if key in DEFAULTS and value is not None}
    for alias, key in ALIASES.items():
        if config.get(alias) not in (None, sizes[key]):
            raise unfollowed(CONFIG, alias, config[alias], source, sizes[key])
    if sizes["dim"] % sizes["n_heads"]:
        raise CheckpointError(
            f"{source}: {CONFIG} says dim {sizes['dim']}, no multiple of its n_heads {sizes['n_heads']}"
        )
    text = TowerConfig(
        sizes["dim"], sizes["hidden_dim"], sizes["n_layers"], sizes["n_heads"], sizes["activation"], LAYER_NORM_EPS
    )
    check_pooling(root, folders.pooling, text.width, source)
    embed_dim = read_dense(root, folders.dense, text.width, source)
    return DistilBertConfig(text, embed_dim, sizes["vocab_size"], sizes["max_position_embeddings"])


def check_pooling(root: Path, folder: str, width: int, source: str) -> None:
    """Raises CheckpointError unless Pooling takes the mean over the tokens."""
    shown = f"{folder}/{CONFIG}"
    pooling = read_object(root / folder / CONFIG, source)
    check_keys(pooling, CONFIG, source, shown, POOLING_KEYS, POOLING_REFUSED)
    for key in ("word_embedding_dimension", "embedding_dimension"):
        if pooling.get(key) not in (None, width):
            raise unfollowed(shown, key, pooling[key], source, width)


def read_dense(root: Path, folder: str, width: int, source: str) -> int:
    """How many numbers Dense gives. Raises CheckpointError unless it is a matrix for vectors of `width` numbers."""
    shown = f"{folder}/{CONFIG}"
    dense = read_object(root / folder / CONFIG, source)
    for key in DENSE_KEYS:
        if dense.get(key) is None:
            raise misfit(shown, key, None, source, DENSE_KEYS[key].expected)
    check_keys(dense, CONFIG, source, shown, DENSE_KEYS, DENSE_REFUSED)
    if dense["in_features"] != width:
        raise unfollowed(shown, "in_features", dense["in_features"], source, width)
    return dense["out_features"]


def dense_file(names: set[str], folder: str, source: str) -> str:
    for name in (SAFETENSORS, PICKLE):
        if name in names:
            return name
    raise CheckpointError(f"{source}: {folder} has no weights; expected {SAFETENSORS} or {PICKLE}")


def dense_weights(dense: Path, folder: str, source: str) -> SafeTensors | PickledTensors:
    return open_tensors([dense / dense_file({file.name for file in dense.iterdir()}, folder, source)], source)


def named(config: DistilBertConfig, stored: SafeTensors | PickledTensors, file: str, source: str) -> RenamedTensors:
    """The tower's tensors under CLIP's names. Raises CheckpointError for one that is missing or of another shape."""
    prefix = PREFIX if f"{PREFIX}embeddings.word_embeddings.weight" in stored else ""
    names = stored_names(config.text.layers, prefix)
    shapes = {name: shape for name, shape in distilbert_text.expected_shapes(config) if name != PROJECTION}
    check_shapes(((names[name], shape) for name, shape in shapes.items()), stored, file, source)
    return RenamedTensors(stored, {name: Part(names[name]) for name in shapes})


def stored_names(layers: int, prefix: str) -> dict[str, str]:
    """The tower's name of each tensor, and DistilBERT's."""
    tables = {distilbert_text.TOKENS: "word_embeddings", distilbert_text.POSITIONS: "position_embeddings"}
    names = {name: f"{prefix}embeddings.{table}.weight" for name, table in tables.items()}
    parts = {distilbert_text.FIRST_NORM: "embeddings.LayerNorm"}
    for n, layer in enumerate(distilbert_text.layer_names(layers)):
        theirs = f"transformer.layer.{n}"
        for part, other in (("q_proj", "q_lin"), ("k_proj", "k_lin"), ("v_proj", "v_lin"), ("out_proj", "out_lin")):
            parts[f"{layer}.self_attn.{part}"] = f"{theirs}.attention.{other}"
        parts |= {f"{layer}.mlp.fc{k}": f"{theirs}.ffn.lin{k}" for k in (1, 2)}
        parts |= {
            f"{layer}.layer_norm1": f"{theirs}.sa_layer_norm",
            f"{layer}.layer_norm2": f"{theirs}.output_layer_norm",
        }
    ends = ("weight", "bias")
    return names | {f"{name}.{end}": f"{prefix}{theirs}.{end}" for name, theirs in parts.items() for end in ends}


def read_context_length(folder: Path, config: DistilBertConfig, limit: int | None, source: str) -> int:
    """The most ids of a text. Raises CheckpointError if there are fewer positions.

    sentence-transformers' own max_seq_length wins over the tokenizer's limit.
    """
    file, module = read_module(folder, source)
    check_keys(module, MODULE, source, shown=file, refused=MODULE_REFUSED)
    own = module.get("max_seq_length")
    if own is not None and own > config.positions:
        raise unfollowed(file, "max_seq_length", own, source, config.positions)
    return own or min(limit or config.positions, config.positions)


def read_index(get: Callable[[str], Path], path: str, source: str) -> list[str]:
    return read_shards(get(path), source)


def needed_files(root: Path, names: set[str], get: Callable[[str], Path], source: str) -> list[str]:
    """Paths of the files that a bake needs, of a repository's files `names`, of which modules.json is in `root`.

    `get` fetches one; the small ones are checked before the weights are fetched. Raises CheckpointError.
    """
    modules = read_json(root / MODULES, source)
    for module in modules if isinstance(modules, list) else ():
        path = module.get("path") if isinstance(module, dict) else None
        if (config := str(PurePosixPath(path or "") / CONFIG)) in names:
            get(config)
    folders = read_folders(root, source)
    read_config(root, folders, source)
    paths = []
    for folder in map(PurePosixPath, (folders.transformer, folders.dense)):
        there = {path.name for path in map(PurePosixPath, names) if path.parent == folder}
        if folder == PurePosixPath(folders.dense):
            weights = [dense_file(there, folders.dense, source)]
        else:
            weights = weight_files(there, partial(read_index, get, str(folder / SHARDS), source), source)
            paths += [str(folder / name) for name in (*TOKENIZER_FILES, *MODULE_FILES) if name in there]
        if PICKLE in weights:
            require_torch(source, PICKLE)
        paths += [str(folder / name) for name in weights]
    return [name for name in (SENTENCES, NOTICE) if name in names] + paths

"""Finds the files of a checkpoint in the layouts of Hugging Face and of sentence-transformers.

It reads only the small files that say where the others are; checkpoint.py reads the rest, hub.py fetches them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from ..errors import CheckpointError, cited, shortened
from .keys import (
    ADDED_TOKENS,
    CONFIG,
    MODULES,
    PREPROCESSOR,
    PROCESSOR,
    SENTENCES,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    check_keys,
    misfit,
)

NOTICE = "NOTICE.txt"
SAFETENSORS, SHARDS, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
VOCAB, MERGES = "vocab.json", "merges.txt"
TOKENIZER_FILES = (TOKENIZER_CONFIG, TOKENIZER_JSON, VOCAB, MERGES, ADDED_TOKENS, SPECIAL_TOKENS)
MODULE_FILES = tuple(  # of sentence-transformers' module: the first of them that is there and not empty is read
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
ADAPTER = "adapter_config.json"
OTHER_WEIGHTS = {  # a pattern of names -> what such a file is, and what to do
    "open_clip_*": "open_clip's own weights; put their open_clip_config.json beside them, and no config.json",
    "model.*.safetensors": "a variant that transformers reads only on request; rename it to model.safetensors",
    "*.safetensors": "a name that transformers does not read; rename the weights of a CLIP to model.safetensors",
    "pytorch_model*.bin*": "torch's weights in shards or a variant; convert them to model.safetensors",
    "*.onnx": "a graph that was made from a checkpoint; take that checkpoint",
    "*.gguf": "weights for llama.cpp; take the checkpoint that they were made from",
    "*.h5": "TensorFlow's weights; convert them to model.safetensors",
    "*.msgpack": "Flax's weights; convert them to model.safetensors",
    "*.pt": "a file of torch without a config; take a checkpoint that was converted for transformers",
    "*.pth": "a file of torch without a config; take a checkpoint that was converted for transformers",
    "*.ckpt": "a file of torch without a config; take a checkpoint that was converted for transformers",
    "*.bin": "a name that transformers does not read; rename the weights of a CLIP to pytorch_model.bin",
}
MODULES_EXPECTED = "expected CLIPModel alone, or Transformer, Pooling and Dense"
LFS = b"version https://git-lfs.github.com/spec/"
LAYOUTS = "expected a checkpoint in Hugging Face's, sentence-transformers' or open_clip's layout"


@contextmanager
def as_checkpoint_error(source: str) -> Iterator[None]:
    """Turn an exception from reading an unreadable or malformed file into a CheckpointError."""
    try:
        yield
    except OSError as error:
        file = shortened(str(error.filename).removeprefix(f"{source}/"))
        raise CheckpointError(f"{source}: {file} cannot be read: {error.strerror or shortened(error)}") from error
    except (AttributeError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {shortened(error)}"
        raise CheckpointError(f"{source}: a file of it does not hold what it should ({reason}); {LAYOUTS}") from error


def clip_folder(root: Path, source: str) -> str:
    """The folder of the CLIP below `root`: "" or, in sentence-transformers' layout, the path of its only module."""
    path = read_modules(root, source).get("path") or ""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise CheckpointError(f"{source}: {MODULES} points outside the checkpoint, at {cited(path)}")
    return path


def read_modules(root: Path, source: str) -> dict:
    """The only module in sentence-transformers' layout, {} in Hugging Face's. Raises CheckpointError for several."""
    if not (root / MODULES).is_file():
        return {}
    modules = read_json(root / MODULES, source)
    modules = modules if isinstance(modules, list) else [modules]
    kinds = ", ".join(str(m.get("type") if isinstance(m, dict) else m).rsplit(".", 1)[-1] for m in modules)
    if len(modules) != 1 or not isinstance(modules[0], dict):
        raise CheckpointError(f"{source}: {MODULES} lists {shortened(kinds) or 'nothing'}; {MODULES_EXPECTED}")
    check_keys(modules[0], MODULES, source)
    return modules[0]


def read_text(file: Path, source: str) -> str:
    """The content of a text file, without a byte order mark. Raises CheckpointError if it is missing."""
    if not file.is_file():
        raise CheckpointError(f"{source}: there is no {file.name}; {LAYOUTS}")
    check_fetched(file, source)
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{source}: {file.name} is not UTF-8 text: {error}") from error


def read_notice(root: Path, source: str) -> str | None:
    """What a checkpoint's maker says with it, None if nothing."""
    return read_text(root / NOTICE, source).strip() if (root / NOTICE).is_file() else None


def read_json(file: Path, source: str):
    """The content of a JSON file. Raises CheckpointError if it is missing or malformed."""
    text = read_text(file, source)
    try:
        return json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{source}: {file.name} is not JSON: {error}") from error
    except RecursionError as error:
        raise CheckpointError(
            f"{source}: {file.name} is nested too deeply to be read; expected the JSON of a checkpoint"
        ) from error


def read_object(file: Path, source: str) -> dict:
    """The content of a JSON file that holds an object. Raises CheckpointError if it holds anything else."""
    content = read_json(file, source)
    if not isinstance(content, dict):
        raise CheckpointError(f"{source}: {file.name} holds a JSON {type(content).__name__}; expected an object")
    return content


def check_fetched(file: Path, source: str) -> None:
    """Raises CheckpointError if a file is only Git LFS's pointer to it."""
    with file.open("rb") as stream:
        begins_as_pointer = stream.read(len(LFS)) == LFS
    if begins_as_pointer:
        raise CheckpointError(
            f"{source}: {file.name} is a Git LFS pointer of {file.stat().st_size} bytes, not the file itself; "
            "run git lfs pull in its folder"
        )


def weight_files(names: set[str], shards: Callable[[], list[str]], source: str) -> list[str]:
    """Names of the files that hold the weights, safetensors before a pickle. Raises CheckpointError if there are none.

    `shards` reads the names in SHARDS.
    """
    if ADAPTER in names:
        raise CheckpointError(
            f"{source}: {ADAPTER} adds an adapter to the weights, which a bake cannot follow; merge it into them first"
        )
    if SAFETENSORS in names:
        return [SAFETENSORS]
    if SHARDS in names:
        files = shards()
        if missing := [name for name in files if name not in names]:
            raise CheckpointError(f"{source}: {SHARDS} names {shortened(missing[0])}, which is not there")
        return files
    if PICKLE in names:
        return [PICKLE]
    raise CheckpointError(f"{source}: no weights; expected {SAFETENSORS}, {SHARDS} or {PICKLE}{other_weights(names)}")


def other_weights(names: set[str]) -> str:
    """What a sentence adds about a file that looks like weights and cannot be read, if there is one."""
    for pattern, what in OTHER_WEIGHTS.items():
        if found := sorted(name for name in names if fnmatch(name, pattern)):
            return f"; found {shortened(found[0])}, {what}"
    return ""


def read_shards(file: Path, source: str) -> list[str]:
    """Names of the files that a sharded checkpoint's index lists. Raises CheckpointError."""
    index = read_json(file, source)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{source}: {SHARDS} has no weight_map that says which file holds which tensor")
    if wrong := [(name, shard) for name, shard in shards.items() if not isinstance(shard, str)]:
        name, shard = wrong[0]
        raise misfit(SHARDS, f"weight_map.{name}", shard, source, "the name of a file")
    return sorted(set(shards.values()))


def require_torch(source: str, file: str) -> None:
    """Raises CheckpointError if torch is not installed, which alone reads pickled weights."""
    if importlib.util.find_spec("torch") is None:
        raise CheckpointError(
            f"{source}: the weights are in {file}, which only torch reads: install it, or take a checkpoint with "
            "safetensors"
        )


def needed_files(names: set[str], folder: PurePosixPath, get: Callable[[str], Path], source: str) -> list[str]:
    """Paths of the files that a bake needs, of a repository's files `names` with the CLIP in `folder`.

    `get` fetches one. Raises CheckpointError if there are no weights that can be read.
    """
    there = {path.name for path in map(PurePosixPath, names) if path.parent == folder}
    weights = weight_files(there, lambda: read_shards(get(str(folder / SHARDS)), source), source)
    if weights == [PICKLE]:
        require_torch(source, PICKLE)
    wanted = [CONFIG, PREPROCESSOR, PROCESSOR, *TOKENIZER_FILES]
    wanted += weights if SAFETENSORS in there else [SHARDS, *weights]
    if MODULES in names:
        wanted += MODULE_FILES
    top = [name for name in (MODULES, SENTENCES, NOTICE) if name in names]
    return top + [str(folder / name) for name in wanted if name in there]

"""Finds the files of a checkpoint in the layouts of Hugging Face and of sentence-transformers.

It reads only the small files that name the others. hub.py fetches those, and checkpoint.py reads them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..errors import CheckpointError

CONFIG, MODULES, NOTICE = "config.json", "modules.json", "NOTICE.txt"
SAFETENSORS, SHARDS, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json")
PREPROCESS_FILES = ("preprocessor_config.json", "processor_config.json")
LAYOUTS = "expected a checkpoint in Hugging Face's or sentence-transformers' layout"


@contextmanager
def as_checkpoint_error(source: str) -> Iterator[None]:
    """Turn an exception from reading an unreadable or malformed file into a CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{source}: {error.filename} cannot be read: {error.strerror or error}") from error
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{source}: a file of it does not hold what it should ({reason}); {LAYOUTS}") from error


def clip_folder(root: Path, source: str) -> str:
    """The folder of the CLIP below `root`: "" or, in sentence-transformers' layout, the path of its only module."""
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
    """The content of a JSON file. Raises CheckpointError if it is missing or malformed."""
    if not file.is_file():
        raise CheckpointError(f"{source}: there is no {file.name}; {LAYOUTS}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{source}: {file.name} is not JSON: {error}") from error


def weight_files(names: set[str], shards: Callable[[], list[str]]) -> list[str]:
    """Names of the files that hold the weights, safetensors before a pickle; [] if `names` has none.

    `shards` reads the names in SHARDS.
    """
    if SAFETENSORS in names:
        return [SAFETENSORS]
    if SHARDS in names:
        return shards()
    return [PICKLE] if PICKLE in names else []


def read_shards(file: Path, source: str) -> list[str]:
    """Names of the files that a sharded checkpoint's index lists. Raises CheckpointError."""
    index = read_json(file, source)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{source}: {SHARDS} has no weight_map that says which file holds which tensor")
    return sorted(set(shards.values()))


def require_torch(source: str) -> None:
    """Raises CheckpointError if torch is not installed, which alone reads pickled weights."""
    if importlib.util.find_spec("torch") is None:
        raise CheckpointError(
            f"{source}: the weights are in {PICKLE}, which only torch reads: "
            f"install it, or take a checkpoint with {SAFETENSORS}"
        )


def needed_files(names: set[str], folder: PurePosixPath, get: Callable[[str], Path], source: str) -> list[str]:
    """Paths of the files that a bake needs, of a repository's files `names` with the CLIP in `folder`.

    `get` fetches one.
    """
    present = {path.name for path in map(PurePosixPath, names) if path.parent == folder}
    weights = weight_files(present, lambda: read_shards(get(str(folder / SHARDS)), source))
    if weights == [PICKLE]:
        require_torch(source)
    pair, other = TOKENIZER_FILES[:2], TOKENIZER_FILES[2:]
    wanted = [CONFIG, *(pair if present.issuperset(pair) else other)]
    wanted += [name for name in PREPROCESS_FILES if name in present][:1]
    wanted += weights if SAFETENSORS in present else [SHARDS, *weights]
    top = [name for name in (MODULES, NOTICE) if name in names]
    return top + [str(folder / name) for name in wanted if name in present]

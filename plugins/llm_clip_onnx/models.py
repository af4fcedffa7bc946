"""Names the models of this process: the id of each, and the model directory that it is served from.

CLIP_MODEL_DIR is a model directory, whose model is `clip`, or a folder whose sub-folders are model directories. A
manifest is read when its model is first asked for. No tower is opened here, and neither onnxruntime nor numpy is
imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from . import MODEL_ID, model_dir
from .catalogue import CATALOGUE
from .errors import InputError, ModelDirError, cited
from .model_dir import MANIFEST, Manifest, Source

MODELS_BYTES = 400_000_000  # of the files of all open towers: of two models of ViT-B/32's size in 8 bits
open_bytes = MODELS_BYTES
single: set[Path] = set()  # model directories that are no folders of several


def keep_open(models_bytes: int) -> None:
    """Bound the bytes of all towers that this process keeps open. Those of the model that is in use stay open."""
    global open_bytes
    open_bytes = models_bytes


def root() -> Path:
    """The model directory, or the folder of several; where there is nothing if the folder of llm cannot be made."""
    try:
        return model_dir.default_path()
    except ModelDirError:
        return Path(model_dir.DEFAULT_NAME)


def members_of(path: Path) -> list[Path]:
    """The model directories in a folder of several, sorted; [] if `path` is one itself, or has none.

    What was a model directory once is one until the process ends, so that requests need not look again.
    """
    if path in single:
        return []
    if (path / MANIFEST).exists():
        single.add(path)
        return []
    try:
        folders = sorted(folder for folder in path.iterdir() if not folder.name.startswith("."))  # as a bake's own do
        return [folder for folder in folders if (folder / MANIFEST).exists()]
    except OSError:
        return []


def catalogue_id(directory: Path) -> str | None:
    """The id that a model directory's manifest says; None if it says none or cannot be read."""
    file = directory / MANIFEST
    try:
        return id_in(file, file.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=64)
def id_in(file: Path, written_ns: int) -> str | None:
    """The id in a manifest. written_ns: when it was written, so that a new one is read."""
    try:
        id = json.loads(file.read_text(encoding="utf-8")).get("id")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None  # what is wrong is said when the model is called
    return id if isinstance(id, str) and id else None


def directories(path: Path | None = None) -> dict[str, list[Path]]:
    """Model id -> its model directories, of which there is one unless several have that id; `clip` first, then sorted.

    path: the folder to look in. A single model directory is `clip`, also where it cannot be used, and its id in the
    catalogue.
    """
    path = path or root()
    members = members_of(path)
    if not members:
        return {id: [path] for id in (MODEL_ID, catalogue_id(path)) if id}
    found: dict[str, list[Path]] = {}
    for member in members:
        found.setdefault(catalogue_id(member) or member.name, []).append(member)
    return {id: found[id] for id in sorted(found, key=lambda id: (id != MODEL_ID, id))}


def twins(path: Path | None = None) -> list[str]:
    """The sentences about ids that several model directories have."""
    path = path or root()
    found = directories(path) if members_of(path) else {}
    return [twin_sentence(id, paths) for id, paths in found.items() if len(paths) > 1]


def twin_sentence(id: str, paths: Iterable[Path]) -> str:
    return (
        f"{' and '.join(map(str, paths))} have the same model id {cited(id)}, so none of them is served; "
        "leave one in the folder"
    )


def is_here(model_id: str) -> bool:
    """True if a model here has this id. For the one model, this looks at nothing."""
    return (model_id == MODEL_ID and not members_of(root())) or model_id in directories()


def ids(path: Path | None = None) -> list[str]:
    """The ids of the models, those that several directories have left out; `clip` first, then sorted."""
    return [id for id, paths in directories(path).items() if len(paths) == 1]


def choices(path: Path | None = None) -> list[str]:
    """The ids between which a client can choose; [] if there is one model, whatever ids it has."""
    found = directories(path)
    return ids(path) if len({path for paths in found.values() for path in paths}) > 1 else []


def default_id(path: Path | None = None) -> str:
    """The id of the model that is used where none is named: `clip` if there is one, else the first.

    Of a folder in which no id can be served it is `clip`, whose sentence says so.
    """
    path = path or root()
    return MODEL_ID if not members_of(path) else next(iter(ids(path)), MODEL_ID)


def path_of(model_id: str, path: Path | None = None) -> Path:
    """The model directory of a model.

    Raises InputError for an id that no model here has, ModelDirError for one that several directories have, if that is
    so of all ids here, and where the folder of llm cannot be made.
    """
    path = path or model_dir.default_path()
    if model_id == MODEL_ID and not members_of(path):
        return path  # without a look at its manifest
    found = directories(path)
    if model_id not in found and not ids(path):
        raise ModelDirError("; ".join(twins(path)))
    if model_id not in found:
        raise InputError(unknown(model_id, ids(path)))
    if len(found[model_id]) > 1:
        raise ModelDirError(twin_sentence(model_id, found[model_id]))
    return found[model_id][0]


def unknown(model_id: str, known: Iterable[str]) -> str:
    """The sentence about a model that is not here."""
    return f"there is no model {cited(model_id)} here; {listed(known)}"


def listed(known: Iterable[str]) -> str:
    """The words about the models that are here: "there are 'clip', 'datacomp-b32-256'"."""
    ids = [cited(id) for id in known]
    return f"there {'is' if len(ids) == 1 else 'are'} {', '.join(ids)}"


def image_source(manifest: Manifest) -> Source:
    """The checkpoint of a model's image tower."""
    return manifest.images or manifest.source


def exchangeable(manifest: Manifest, other: Manifest) -> bool:
    """True if the vectors of two models can be compared, because their image towers are the same.

    They are if they come from one checkpoint's files, if the bakes wrote the same files of them and read images in the
    same way, or if the catalogue says so.
    """
    if manifest.embed_dim != other.embed_dim:
        return False
    sources = [sorted(image_source(each).weights_sha256.values()) for each in (manifest, other)]
    towers = [(image_sha256(each), each.preprocess) for each in (manifest, other)]
    vectors = [{entry.vectors for entry in CATALOGUE if entry.id == each.id} for each in (manifest, other)]
    return sources[0] == sources[1] or towers[0] == towers[1] or bool(vectors[0] & vectors[1])


def image_sha256(manifest: Manifest) -> dict[str, str]:
    """The sha256 of each file of the baked image tower."""
    return {name: manifest.files[name].sha256 for name in model_dir.tower_files(manifest, "image", signed=False)}

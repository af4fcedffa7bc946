"""The layout of sentence-transformers of a CLIP: where its only module is, and what the files of that module change.

They count only where modules.json is there.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError, cited, shortened
from .keys import MODULE, MODULES, SENTENCES, check_keys, unfollowed
from .layout import MODULE_FILES, read_object

KINDS = ("CLIPModel", "Transformer")


def read_max_length(root: Path, folder: Path, kind: str, source: str) -> tuple[str, int | None]:
    """The most ids of a text by sentence-transformers' own file, None if it sets no limit, and the file's name.

    `kind` is the class in modules.json. Raises CheckpointError naming a key that cannot be followed.
    """
    check_sentences(root, source)
    name, module = read_module(folder, source)
    check_keys(module, MODULE, source, shown=name)
    package, _, class_name = kind.rpartition(".")
    if not package.startswith("sentence_transformers.") or class_name not in KINDS:
        raise unfollowed(MODULES, "type", kind, source, "sentence_transformers.models.CLIPModel")
    if class_name == "Transformer" and "modality_config" not in module:
        raise CheckpointError(
            f"{source}: {MODULES} says {shortened(kind)}, and {name} has no modality_config; a Transformer without one "
            f"embeds no images; expected CLIPModel, or modality_config with get_text_features and get_image_features"
        )
    return name, module.get("max_seq_length")


def check_sentences(root: Path, source: str) -> None:
    """Raises CheckpointError if config_sentence_transformers.json changes vectors."""
    if not (root / SENTENCES).is_file():
        return
    content = read_object(root / SENTENCES, source)
    check_keys(content, SENTENCES, source)
    name = content.get("default_prompt_name")
    prompt = (content.get("prompts") or {}).get(name)
    if prompt:
        raise CheckpointError(
            f"{source}: {SENTENCES} says default_prompt_name {cited(name)}, which puts {cited(prompt)} before each "
            f"text; a bake cannot follow it; expected null"
        )


def read_module(folder: Path, source: str) -> tuple[str, dict]:
    """The file of the module's own config and its content; {} if there is none."""
    for name in MODULE_FILES:
        if (folder / name).is_file() and (content := read_object(folder / name, source)):
            return name, content
    return MODULE, {}

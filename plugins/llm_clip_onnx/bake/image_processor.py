"""The steps from an image to pixels, by the files and defaults of transformers' CLIPImageProcessor.

`image_processor` in processor_config.json wins over preprocessor_config.json. A key that is absent has the
default of CLIP; one that is null has none, so it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from ..errors import CheckpointError
from ..model_dir import Preprocess
from .keys import CONFIG, PREPROCESSOR, PROCESSOR, TOKENIZER_CONFIG, as_json, check_keys, unfollowed
from .layout import read_object

DEFAULTS: dict[str, object] = {
    "size": 224, "resample": 3, "crop_size": 224, "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
KINDS = ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor")


def read_preprocess(folder: Path, config: Mapping, side: int, source: str) -> Preprocess:
    """The steps for images of `side` pixels. Raises CheckpointError naming a file or key that cannot be followed."""
    found, file = image_processor(folder, source)
    check_kind(folder, config, found, file, source)
    check_keys(found, PREPROCESSOR, source, shown=file)
    steps = DEFAULTS | found
    for key in DEFAULTS:
        if steps[key] is None:
            raise unfollowed(file, key, None, source, DEFAULTS[key])
    mean, std = (three_numbers(steps, key) for key in ("image_mean", "image_std"))
    shortest, crop = shortest_side(steps, file, source), crop_side(steps)
    if crop != side or shortest < side:
        raise CheckpointError(
            f"{source}: {file} has images resized to {as_json(steps['size'])} and cropped to "
            f"{as_json(steps['crop_size'])}; expected size to be the shortest side, at least {side}, and crop_size "
            f"{side} x {side}"
        )
    return Preprocess(shortest, crop, resampling(steps["resample"]), mean, std, float(steps["rescale_factor"]))


def image_processor(folder: Path, source: str) -> tuple[dict, str]:
    """The keys of the image processor, and the file that they stand in. Raises CheckpointError if there is none."""
    if (folder / PROCESSOR).is_file():
        nested = read_object(folder / PROCESSOR, source).get("image_processor")
        if nested is not None:
            check_keys({"image_processor": nested}, PROCESSOR, source)
            return nested, PROCESSOR
    return read_object(folder / PREPROCESSOR, source), PREPROCESSOR


def check_kind(folder: Path, config: Mapping, found: Mapping, file: str, source: str) -> None:
    """Raises CheckpointError if the files name another class than CLIP's for images, or for images and texts."""
    others = {name: folder / name for name in (PROCESSOR, TOKENIZER_CONFIG)}
    read = {name: read_object(path, source) if path.is_file() else {} for name, path in others.items()}
    check_first(
        (file, "image_processor_type", found),
        (file, "feature_extractor_type", found),
        (CONFIG, "image_processor_type", config),
        expected=KINDS,
        source=source,
    )
    check_first(
        (PROCESSOR, "processor_class", read[PROCESSOR]),
        (file, "processor_class", found),
        (TOKENIZER_CONFIG, "processor_class", read[TOKENIZER_CONFIG]),
        (CONFIG, "processor_class", config),
        expected=("CLIPProcessor",),
        source=source,
    )


def check_first(*places: tuple[str, str, Mapping], expected: tuple[str, ...], source: str) -> None:
    """Raises CheckpointError if the first of these files that has its key holds none of the expected values."""
    for file, key, content in places:
        if (kind := content.get(key)) is not None:
            if kind not in expected:
                raise unfollowed(file, key, kind, source, expected[0])
            return


def shortest_side(steps: Mapping, file: str, source: str) -> int:
    """The length of an image's shortest side, resized. Raises CheckpointError if `size` means a square."""
    size = steps["size"]
    if isinstance(size, dict) and size.keys() == {"shortest_edge"}:
        size = size["shortest_edge"]
    elif steps.get("default_to_square") and not isinstance(size, dict):
        raise unfollowed(file, "default_to_square", steps["default_to_square"], source, False)
    return size


def crop_side(steps: Mapping) -> object:
    """The side of the crop, where it is a square, else `crop_size` as it is."""
    crop = steps["crop_size"]
    sides = [crop.get("height"), crop.get("width")] if isinstance(crop, dict) else crop
    return sides[0] if isinstance(sides, list) and len(sides) == 2 and sides[0] == sides[1] else sides


def three_numbers(steps: Mapping, key: str) -> tuple[float, float, float]:
    """A number for each channel, where a checkpoint gives three or one for all."""
    value = steps[key]
    red, green, blue = value if isinstance(value, list) else [value] * 3
    return float(red), float(green), float(blue)


def resampling(value: str | int) -> int:
    """Pillow's number of a filter that is given by number, or as "bicubic"."""
    return int(Image.Resampling.BICUBIC) if isinstance(value, str) else value

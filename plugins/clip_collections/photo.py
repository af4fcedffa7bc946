"""Reads what a photo says about itself: when and with which camera it was taken, its size, and its place.

Broken EXIF is as none. Nothing here decodes pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from PIL import ExifTags, Image

from llm_clip_onnx.images.preprocess import exif_orientation

MAX_CAMERA = 80  # characters
TIME = re.compile(r"\s*(\d{4})[:./-](\d\d)[:./-](\d\d)[ T](\d\d):(\d\d)(?::(\d\d))?")
TAKEN = (ExifTags.Base.DateTimeOriginal, ExifTags.Base.DateTimeDigitized)


def photo_facts(image: Image.Image, size: tuple[int, int], places: bool = False) -> dict[str, Any]:
    """taken, camera, width and height of an opened image; also latitude and longitude with `places`.

    taken: local time as the camera's clock had it, ISO 8601. `size` is that of the file; width and height are upright.
    A fact that the photo lacks has no key.
    """
    width, height = size[::-1] if exif_orientation(image) >= 5 else size
    exif = read_exif(image)
    facts: dict[str, Any] = {"taken": time_taken(exif.get("details", {})), "camera": camera(exif.get("main", {}))}
    facts |= {"width": width, "height": height}
    if places:
        facts |= place(exif.get("place", {}))
    return {name: value for name, value in facts.items() if value is not None}


def read_exif(image: Image.Image) -> dict[str, Mapping[int, Any]]:
    """The tags of an image: "main", "details" and "place"; those that are broken or absent are missing."""
    tags: dict[str, Mapping[int, Any]] = {}
    with suppress(Exception):  # Pillow raises many kinds of errors on broken EXIF, and the photo itself can be read
        exif = Image.Image.getexif(image) if image.format == "PNG" else image.getexif()  # PNG's own decodes the image
        tags["main"] = dict(exif)
        tags["details"] = exif.get_ifd(ExifTags.IFD.Exif)
        tags["place"] = exif.get_ifd(ExifTags.IFD.GPSInfo)
    return tags


def text_in(value: object) -> str:
    """A tag's text without control characters, "" if it is none. Pillow has read UTF-8 as latin-1."""
    text = value.decode("latin-1") if isinstance(value, bytes) else value if isinstance(value, str) else ""
    with suppress(UnicodeError):
        text = text.encode("latin-1").decode()
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text.split("\0")[0]).split())


def time_taken(tags: Mapping[int, Any]) -> str | None:
    """When a photo was taken, "2019-07-14T10:30:00"; None if it does not say so, or a time that there is not."""
    for tag in TAKEN:
        if match := TIME.match(text_in(tags.get(tag))):
            try:
                return datetime(*(int(part or 0) for part in match.groups())).isoformat()  # type: ignore[arg-type]
            except ValueError:
                continue
    return None


def camera(tags: Mapping[int, Any]) -> str | None:
    """Make and model, the make once: "Canon EOS 5D", "Apple iPhone 12"; None if there is neither."""
    make, model = text_in(tags.get(ExifTags.Base.Make)), text_in(tags.get(ExifTags.Base.Model))
    if make and model.lower().startswith(make.split()[0].lower()):
        make = ""
    return f"{make} {model}".strip()[:MAX_CAMERA] or None


def place(tags: Mapping[int, Any]) -> dict[str, float]:
    """latitude and longitude in degrees, south and west negative; {} if one of them is missing or not on Earth."""
    gps = ExifTags.GPS
    latitude = degrees(tags.get(gps.GPSLatitude), tags.get(gps.GPSLatitudeRef), "S", 90)
    longitude = degrees(tags.get(gps.GPSLongitude), tags.get(gps.GPSLongitudeRef), "W", 180)
    if latitude is None or longitude is None:
        return {}
    return {"latitude": latitude, "longitude": longitude}


def degrees(parts: Any, reference: object, negative: str, most: float) -> float | None:
    """Degrees, minutes and seconds as degrees, rounded to 0.1 m; None for anything else."""
    try:
        whole, minutes, seconds = (float(part) for part in parts)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    value = whole + minutes / 60 + seconds / 3600
    if not math.isfinite(value) or not 0 <= value <= most:
        return None
    return round(-value if text_in(reference).upper().startswith(negative) else value, 6)

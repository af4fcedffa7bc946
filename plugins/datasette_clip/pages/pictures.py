"""Reads and embeds the pictures that pages show: uploaded files, or pictures kept in hidden fields or in the URL.

A page keeps the JPEG of the square that CLIP looks at, which is small enough for a URL, and its vector. So nothing is
sent or embedded again while the words change, and a link to the picture gives the same answer.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llm_clip_onnx import vectors
from llm_clip_onnx.errors import InputError
from llm_clip_onnx.images.signatures import format_of

from ..api.embed_classify import item_embedding, results_of
from ..config import Config
from ..items import FormFields, Item, base64url, bytes_of, read_item

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine
    from llm_clip_onnx.model_dir import Preprocess

JPEG_BYTES = 40_000  # of a kept picture, so that its base64url fits limits.url_bytes
QUALITIES = (90, 70, 40)


@dataclass
class Picture:
    """A picture of a page. name: of its file. content: an uploaded file. embedding: [embed_dim] float32, once read.

    img: base64url of the JPEG. The page's script does not send it again, and finds it by the vector in the response.
    vector: base64url of the vector blob.
    """

    name: str
    content: bytes | None = None
    img: str = ""
    vector: str = ""
    embedding: NDArray[np.float32] | None = None

    @property
    def data_uri(self) -> str:
        """The JPEG as the source of an <img>."""
        return "data:image/jpeg;base64," + self.img.replace("-", "+").replace("_", "/")

    @property
    def as_item(self) -> Item:
        """The picture as an item to embed: its file, else its vector, else its JPEG."""
        if self.content is not None:
            return Item(self.name, "image", self.content)
        if self.vector:
            return read_item("vector", self.name, self.vector)
        return read_item("image", self.name, self.img)


def pictures_of(fields: FormFields) -> list[Picture]:
    """The pictures in a form's fields, then its uploaded files."""
    kept = zip_longest(*(fields.all(name) for name in ("name", "img", "vector")), fillvalue="")
    pictures = [
        Picture(name or "the picture", None, jpeg_only(img) if vector else img, vector)
        for name, img, vector in kept
        if img or vector
    ]
    return pictures + [Picture(item.name, file_bytes(item)) for item in fields.items]


def jpeg_only(img: str) -> str:
    """A string of a JPEG as base64url; "" for any other string."""
    try:
        blob = bytes_of(img)
    except InputError:
        return ""
    return base64url(blob) if format_of(blob) == "JPEG" else ""


def file_bytes(item: Item) -> bytes:
    """The bytes of an item that is a file."""
    return item.content if isinstance(item.content, bytes) else b""


async def read_pictures(
    request, engine: Engine, config: Config, pictures: list[Picture]
) -> tuple[list[Picture], list[str]]:
    """The readable pictures with img, vector and embedding set, and a sentence for each unreadable one."""
    results = await results_of(
        request, [picture.as_item for picture in pictures], lambda item: picture_fields(engine, config, item)
    )
    for picture, result in zip(pictures, results):
        for name, value in result.get("fields", {}).items():
            setattr(picture, name, value)
    good = [picture for picture in pictures if picture.embedding is not None]
    return good, [result["error"] for result in results if "error" in result]


def picture_fields(engine: Engine, config: Config, item: Item) -> dict:
    """The fields of a Picture to set. Raises InputError and VectorError for one that cannot be read."""
    if item.kind == "vector":
        return {"fields": {"embedding": item_embedding(engine, config, item)}}
    jpeg = jpeg_of(file_bytes(item), engine.manifest.preprocess)
    embedding = engine.embed_item(jpeg)
    vector = base64url(vectors.to_blob(embedding))
    return {"fields": {"embedding": embedding, "content": None, "img": base64url(jpeg), "vector": vector}}


def jpeg_of(blob: bytes, how: Preprocess) -> bytes:
    """The part of an image that CLIP looks at, upright, as a JPEG without EXIF; `blob` itself if it is that already.

    It has at most JPEG_BYTES unless the lowest quality takes more. Raises InputError for an image that cannot be read.
    """
    from llm_clip_onnx.images.preprocess import decode, decode_lock, open_image

    image = open_image(blob)
    is_ready = (image.format, image.size, image.mode) == ("JPEG", (how.crop, how.crop), "RGB")
    if is_ready and len(blob) <= JPEG_BYTES and "exif" not in image.info:
        return blob
    with decode_lock:
        seen = decode(blob, how, "exif")
    for quality in QUALITIES:
        stream = io.BytesIO()
        seen.save(stream, "JPEG", quality=quality)
        if stream.tell() <= JPEG_BYTES:
            break
    return stream.getvalue()

"""Pictures of a form: as files that have just come, or as the page keeps them, in hidden fields or in its URL.

Kept are the JPEG of what CLIP looked at, which is small enough for a URL, and the vector, so that nothing is sent or
embedded twice while words change. The answer is that of the JPEG, so that it is the same wherever that is sent.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from http import HTTPStatus
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from datasette.utils.asgi import Base400
from numpy.typing import NDArray

from llm_clip_onnx import vectors
from llm_clip_onnx.errors import InputError

from .. import image_strings
from .. import items as inputs
from ..api.embed_classify import each, embedding_of
from ..config import Config, Limits
from ..items import Input

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine  # imports onnxruntime, which Datasette's start does not wait for
    from llm_clip_onnx.images.preprocess import Preprocess

JPEG_BYTES = 40_000  # of a kept picture at most, so that base64url of it fits limits.url_bytes
MULTIPART, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
QUALITIES = (90, 70, 40)


class NoForm(Base400):
    """The body of a request to a page is something else than a form."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE.value


class Fields(inputs.Pairs):
    """Names and values of a query string and a form, whatever they are called, and the files."""

    def add(self, name: str, value: str) -> None:
        self.options.setdefault(name, []).append(value)

    def add_input(self, one: Input) -> None:
        self.inputs.append(one)

    def all(self, name: str) -> list[str]:
        return self.options.get(name, [])

    def last(self, name: str, default: str = "") -> str:
        return self.options.get(name, [default])[-1]


def read_fields(query: str, content_type: str, pieces: list[bytes], limits: Limits) -> Fields:
    """Raises NoForm, and InputError for a form that cannot be read."""
    fields = Fields(limits)
    fields.add_query(query)
    kind = content_type.partition(";")[0].strip().lower()
    if kind == MULTIPART:
        inputs.read_multipart(content_type, pieces, fields)
    elif body := b"".join(pieces):
        if kind != URLENCODED or image_strings.is_image(body):
            raise NoForm(f"the body is no form; expected {MULTIPART} with files, or {URLENCODED}")
        fields.add_query(body.decode("utf-8", errors="replace"))
    return fields


@dataclass
class Picture:
    """name: of its file. content: the file, where it has just come. embedding: [embed_dim] float32, once it is read.

    img: base64url of the JPEG; the page's script leaves it out, and finds it again by the vector in the answer.
    vector: base64url of the vector blob.
    """

    name: str
    content: bytes | None = None
    img: str = ""
    vector: str = ""
    embedding: NDArray[np.float32] | None = None

    @property
    def data_uri(self) -> str:
        return "data:image/jpeg;base64," + self.img.replace("-", "+").replace("_", "/")

    @property
    def as_input(self) -> Input:
        if self.content is not None:
            return Input(self.name, "image", self.content)
        if self.vector:
            return inputs.input_of("vector", self.name, self.vector)
        return inputs.input_of("image", self.name, self.img)


def pictures_of(fields: Fields) -> list[Picture]:
    """The pictures that a form has kept, and after them those that have just come."""
    kept = zip_longest(*(fields.all(name) for name in ("name", "img", "vector")), fillvalue="")
    pictures = [
        Picture(name or "the picture", None, jpeg_in(img) if vector else img, vector)
        for name, img, vector in kept
        if img or vector
    ]
    return pictures + [Picture(one.name, as_bytes(one)) for one in fields.inputs]


def jpeg_in(img: str) -> str:
    """base64url of the JPEG that a string holds, "" where it holds none."""
    try:
        blob = image_strings.bytes_of(img)
    except InputError:
        return ""
    return base64url(blob) if blob.startswith(b"\xff\xd8\xff") else ""


def as_bytes(one: Input) -> bytes:
    return one.content if isinstance(one.content, bytes) else b""


async def read_pictures(
    request, engine: Engine, config: Config, pictures: list[Picture]
) -> tuple[list[Picture], list[str]]:
    """Those of the pictures that can be read, with all that is kept of them, and sentences why others cannot."""
    results = await each(request, [one.as_input for one in pictures], lambda one: look(engine, config, one))
    for picture, result in zip(pictures, results):
        for name, value in result.get("kept", {}).items():
            setattr(picture, name, value)
    return [one for one in pictures if one.embedding is not None], [one["error"] for one in results if "error" in one]


def look(engine: Engine, config: Config, one: Input) -> dict:
    """What is kept of a picture. Raises InputError and VectorError where it cannot be read."""
    if one.kind == "vector":
        embedding = embedding_of(engine, config, one, None)
        vectors.cosine(embedding, embedding)  # raises where it has no direction
        return {"kept": {"embedding": embedding}}
    jpeg = jpeg_of(as_bytes(one), engine.manifest.preprocess)
    embedding = engine.embed_item(jpeg)
    vector = base64url(vectors.to_blob(embedding))
    return {"kept": {"embedding": embedding, "content": None, "img": base64url(jpeg), "vector": vector}}


def jpeg_of(blob: bytes, how: Preprocess) -> bytes:
    """What CLIP looks at of an image, upright, as a JPEG without the EXIF; `blob` itself, where it is just that.

    Of at most JPEG_BYTES, where that can be.

    Raises InputError for what is no image that can be read.
    """
    from llm_clip_onnx.images.preprocess import one_at_a_time, open_image, read_bytes

    image = open_image(blob)
    is_seen = (image.format, image.size, image.mode) == ("JPEG", (how.crop, how.crop), "RGB")
    if is_seen and len(blob) <= JPEG_BYTES and not image.getexif():
        return blob
    with one_at_a_time:
        seen = read_bytes(blob, how, "exif")
    for quality in QUALITIES:
        stream = io.BytesIO()
        seen.save(stream, "JPEG", quality=quality)
        if stream.tell() <= JPEG_BYTES:
            break
    return stream.getvalue()


def base64url(blob: bytes) -> str:
    return base64.urlsafe_b64encode(blob).decode().rstrip("=")

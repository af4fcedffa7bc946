"""What a request to the endpoints asks for: texts, images and vectors in their order, and options.

They come in the query string, a form, files, JSON, or the body itself is an image. An item that cannot be read carries
the sentence why, and spoils no other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from python_multipart import create_form_parser
from python_multipart.exceptions import FormParserError

from llm_clip_onnx.errors import InputError

from . import image_strings
from .config import PLUGIN, Limits
from .image_strings import is_image

KINDS = {
    "text": "text", "texts": "text", "img": "image", "image": "image", "images": "image", "vector": "vector",
    "vectors": "vector",
}  # fmt: skip
FORMATS = ("float", "base64", "hex")
TRUE, FALSE = ("1", "true", "on", "yes"), ("0", "false", "off", "no", "")
OPTIONS = ("labels", "templates", "k", "format", "normalize", "orient")
MAX_ESCAPES = 100_000  # of an urlencoded form: parse_qsl takes some 230 bytes of memory for each
OTHER_FIELDS = 100  # of a form, beside items and prompts
MAX_PARTS = 100_000  # of JSON, each of which takes some 80 bytes
IGNORED = {"csrftoken"}  # Datasette's own, in every form


@dataclass(frozen=True)
class Input:
    """A text, image bytes or a vector blob, as `kind` says, or the sentence why it is none; answers call it `name`."""

    name: str
    kind: str
    content: str | bytes = b""
    error: str | None = None


@dataclass
class Asked:
    """inputs: in their order. labels: the name of a set, or labels given with the request. k: of labels to answer.

    templates: prompt templates for labels given. format: of vectors. normalize: to norm 1. orient: see pixels_of.
    """

    inputs: list[Input] = field(default_factory=list)
    labels: str | tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    k: int = 5
    format: str = "float"
    normalize: bool = False
    orient: str | None = None


async def pieces_of(request) -> list[bytes]:
    """The body of a request, whose size the gate bounds, as it arrived."""
    pieces, more = [], True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise InputError("the client left before all of the body had arrived")
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return pieces


def taken(pieces: list[bytes]) -> Iterator[bytes]:
    """The pieces in their order, each let go of once the next is asked for, so that no body is held twice."""
    pieces.reverse()
    while pieces:
        yield pieces.pop()


def read(query: str, content_type: str, pieces: list[bytes], limits: Limits) -> Asked:
    """What a query string, and a body of this content type, ask for; of the body nothing is left in `pieces`.

    Raises InputError where that makes no sense.
    """
    pairs = Pairs(limits)
    pairs.add_query(query)
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        read_multipart(content_type, pieces, pairs)
        return asked_of(pairs.inputs, pairs.options)
    body = b"".join(pieces)
    pieces.clear()
    if not body:
        pass
    elif kind == "application/json":
        return read_json(body, pairs)
    elif kind == "application/x-www-form-urlencoded" and not is_image(body):  # which curl --data-binary says of a photo
        pairs.add_query(body.decode("utf-8", errors="replace"))
    else:
        pairs.add_input(Input("body", "image", body))
    return asked_of(pairs.inputs, pairs.options)


class Pairs:
    """Collects names and values as they come: inputs in their order, and lists of the options' values."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.inputs: list[Input] = []
        self.options: dict[str, Any] = {}

    def add_input(self, one: Input) -> None:
        if len(self.inputs) >= self.limits.items:
            raise InputError(
                f"there are more than {self.limits.items} texts and images; at most so many are accepted in one "
                f"request (plugins.{PLUGIN}.limits.items)"
            )
        self.inputs.append(one)

    @property
    def most_fields(self) -> int:
        return OTHER_FIELDS + self.limits.items + self.limits.prompts

    def add_query(self, query: str) -> None:
        """Take the fields of a query string or a form. Raises InputError where there are too many, reading none."""
        if (fields := query.count("&") + 1) > self.most_fields:
            raise InputError(f"there are {fields} fields; at most {self.most_fields} are read")
        if (escapes := query.count("%")) > MAX_ESCAPES:
            raise InputError(
                f"the form has {escapes} escapes (%); at most {MAX_ESCAPES} are read; use multipart/form-data"
            )
        for name, value in parse_qsl(query, keep_blank_values=True):
            self.add(name, value)

    def add(self, name: str, value: str) -> None:
        if kind := KINDS.get(name):
            position = sum(one.kind == kind for one in self.inputs)
            self.add_input(input_of(kind, f"{kind}s[{position}]", value))
        elif name in OPTIONS:
            self.options.setdefault(name, []).append(value)
        elif name not in IGNORED:
            raise InputError(
                f"{name!r} is not a field of this endpoint; expected text, img, vector, {', '.join(OPTIONS)}"
            )


def input_of(kind: str, name: str, value: object) -> Input:
    """An input of a value as it comes in a field or in JSON: images and vectors are strings that hold bytes."""
    if not isinstance(value, str):
        return Input(name, kind, error=f"{type(value).__name__} is not a string")
    if kind == "text":
        return Input(name, kind, value)
    try:
        return Input(name, kind, image_strings.bytes_of(value))
    except InputError as error:
        return Input(name, kind, error=str(error))


def read_multipart(content_type: str, pieces: list[bytes], pairs: Pairs) -> None:
    """Files are images, whatever their field is called; other fields are as in a query string."""

    def on_file(file) -> None:
        name = (file.file_name or b"").decode("utf-8", errors="replace")
        if name or file.size:  # a form whose file was not chosen sends neither
            pairs.add_input(Input(name or f"images[{len(pairs.inputs)}]", "image", file.file_object.getvalue()))

    def on_field(one) -> None:
        name, value = ((part or b"").decode("utf-8", errors="replace") for part in (one.field_name, one.value))
        pairs.add(name, value)

    # Nothing can be written to a container's disk.
    limits = {"MAX_MEMORY_FILE_SIZE": sum(map(len, pieces)) + 1, "MAX_FIELDS": pairs.most_fields}
    try:
        parser = create_form_parser({"Content-Type": content_type.encode("latin-1")}, on_field, on_file, limits)
        for piece in taken(pieces):
            parser.write(piece)
        parser.finalize()
    except FormParserError as error:
        raise InputError(f"the body is no multipart/form-data that can be read: {error}") from error


def read_json(body: bytes, pairs: Pairs) -> Asked:
    """{"texts": [...], "images": [base64...], "vectors": [...]} and options, which win over the query string's."""
    try:
        if sum(map(body.count, b",[{:")) > MAX_PARTS:
            raise InputError(f"the body is JSON of more than {MAX_PARTS} parts; expected texts and images")
        found = json.loads(body)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f'the body is a JSON {type(found).__name__}; expected {{"texts": [...], "images": [...]}}')
    for name, value in found.items():
        if kind := KINDS.get(name):
            values = value if isinstance(value, list) else [value]
            for position, one in enumerate(values):
                pairs.add_input(input_of(kind, f"{name}[{position}]", one))
        elif name in OPTIONS:
            pairs.options[name] = value if isinstance(value, list) else [value]
            if name == "labels" and isinstance(value, list):
                pairs.options[name] = [json.dumps(value)]  # labels of one's own, though it be one
        else:
            raise InputError(f"{name!r} is not a key of this endpoint; expected texts, images, {', '.join(OPTIONS)}")
    return asked_of(pairs.inputs, pairs.options)


def asked_of(inputs: list[Input], options: dict[str, list]) -> Asked:
    """Raises InputError naming the first option whose value cannot be used."""
    asked = Asked(inputs)
    if labels := options.get("labels"):
        asked.labels = labels[0] if len(labels) == 1 else tuple(labels)
    if templates := options.get("templates"):
        asked.templates = tuple(templates)
    for name in ("k", "format", "normalize", "orient"):
        if options.get(name):
            setattr(asked, name, READERS[name](options[name][-1]))
    return asked


def read_k(value: object) -> int:
    text = "" if isinstance(value, bool) else str(value)
    if not text.isascii() or not text.isdigit() or len(text) > 6 or int(text) < 1:
        raise InputError(f"k is {text[:20]!r}; expected a whole number from 1, of the labels to answer")
    return int(text)


def read_format(value: object) -> str:
    if value not in FORMATS:
        raise InputError(f"format is {value!r}; expected {', '.join(FORMATS)}")
    return str(value)


def read_normalize(value: object) -> bool:
    text = str(value).lower()
    if text not in TRUE + FALSE:
        raise InputError(f"normalize is {value!r}; expected 1 or 0")
    return text in TRUE


def read_orient(value: object) -> str | None:
    if value not in ("", "exif", None):
        raise InputError(f"orient is {value!r}; expected exif, or nothing for llm-clip's reading")
    return "exif" if value else None


READERS = {"k": read_k, "format": read_format, "normalize": read_normalize, "orient": read_orient}

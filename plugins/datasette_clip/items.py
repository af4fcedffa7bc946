"""Reads requests: their texts, images and vectors, in their order, and their options.

They come in the query string, a form, files or JSON, or the body itself is an image. Strings that carry images and
vectors are decoded here, once. An item that cannot be read keeps the sentence why, and the others are answered.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from datasette.utils.asgi import Base400
from python_multipart import create_form_parser
from python_multipart.exceptions import FormParserError

from llm_clip_onnx.errors import InputError, cited, cited_json, shortened
from llm_clip_onnx.images.signatures import BOM, format_of, is_json_object, is_stripped, name_of, sentence_of

from .config import PLUGIN, Config, Limits

KIND_OF_FIELD = {
    "text": "text", "texts": "text", "img": "image", "image": "image", "images": "image", "vector": "vector",
    "vectors": "vector",
}  # fmt: skip
VECTOR_FORMATS = ("float", "base64", "hex")
TRUE_WORDS, FALSE_WORDS = ("1", "true", "on", "yes"), ("0", "false", "off", "no", "")
MULTIPART, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
EMBED_OPTIONS = ("format", "normalize", "orient", "model")
CLASSIFY_OPTIONS = ("labels", "templates", "k", "orient", "model")
JSON_WORDS = {dict: "object", list: "array", str: "string", int: "number", float: "number"}
MAX_ESCAPES = 100_000  # of an urlencoded form: parse_qsl takes some 230 bytes of memory for each
OTHER_FIELDS = 100  # of a form, beside items and prompts
MAX_PARTS = 100_000  # of JSON, each of which takes some 80 bytes
IGNORED = {"csrftoken"}  # Datasette's own, in every form
HEX = re.compile(r"[0-9a-fA-F]+")  # a group of two would take 60 bytes of memory for each
BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
DATA_URI = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
TO_BASE64 = str.maketrans({"-": "+", "_": "/", " ": "+", "\n": None, "\r": None, "\t": None})  # a + in a URL is a space


@dataclass(frozen=True)
class Item:
    """One thing to embed. kind: text, image or vector. content: a str, image bytes or a vector blob.

    name: what responses call it. error: the sentence why it cannot be read, None if it can.
    """

    name: str
    kind: str
    content: str | bytes = b""
    error: str | None = None


@dataclass
class EmbedRequest:
    """A request to embed or classify. labels: the name of a label set, or labels. k: how many labels to answer.

    templates: prompt templates for labels. format: of vectors. normalize: to norm 1. orient: see Engine.embed_images.
    model: its id, "" for the default one.
    """

    items: list[Item] = field(default_factory=list)
    labels: str | tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    k: int = 5
    format: str = "float"
    normalize: bool = False
    orient: str | None = None
    model: str = ""


async def receive_body(request) -> list[bytes]:
    """The body of a request as it arrived, in chunks. The guard bounds its size.

    Raises InputError on a disconnect, and EncodedBody.
    """
    check_encoding(request)
    chunks, more = [], True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise InputError("the client left before all of the body had arrived")
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return chunks


class EncodedBody(Base400):
    """The body of a request is compressed, which Datasette does not undo."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE.value


def check_encoding(request) -> None:
    """Raises EncodedBody for a request whose body is compressed."""
    encoding = request.headers.get("content-encoding", "").strip()
    if encoding.lower() not in ("", "identity"):
        raise EncodedBody(f"the body has Content-Encoding {cited(encoding)}; expected it as it is, without that header")


def is_form(kind: str, body: bytes) -> bool:
    """True if a body is a form, by its media type and its own first bytes.

    curl sends each body as application/x-www-form-urlencoded unless it is told what it is. A form is text. Raises
    InputError for a file that curl -d has damaged.
    """
    if kind != URLENCODED or is_json_object(body):
        return False
    if is_stripped(body):
        raise InputError(f"the body: {sentence_of(body)}")
    return format_of(body) is None and name_of(body) in ("text", "a data URI")


def is_json(kind: str, body: bytes) -> bool:
    """True if a body is JSON by its media type and does not begin as an image, or if it begins as a JSON object."""
    is_named_json = kind == "application/json" or kind.endswith("+json")
    return (is_named_json and format_of(body) is None) or is_json_object(body)


def drain(chunks: list[bytes]) -> Iterator[bytes]:
    """The chunks in their order. The list is emptied meanwhile, so that no body is in memory twice."""
    chunks.reverse()
    while chunks:
        yield chunks.pop()


def bytes_of(text: str) -> bytes:
    """The bytes in a string of base64url, base64, a data URI or hex digits. Raises InputError for any other string.

    Base64 may lack its padding and be folded into lines. A space in it is a + that a form has decoded.
    """
    if not isinstance(text, str):
        raise InputError(f"{type(text).__name__} is not a string; expected base64url, base64, a data URI or hex digits")
    if head := DATA_URI.match(text):
        body = text[head.end() :]
        if not head[0][:-1].lower().endswith(";base64"):
            return unquote_to_bytes(body)
        text = body.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=")
    text = text.strip()
    if len(text) % 2 == 0 and HEX.fullmatch(text):
        return bytes.fromhex(text)
    digits = text.translate(TO_BASE64)
    if not BASE64.fullmatch(digits) or len(digits.rstrip("=")) % 4 == 1:
        raise InputError(
            f"a string of {len(text)} characters is no image; expected base64url, base64, a data URI or hex digits"
        )
    return base64.b64decode(digits.rstrip("=") + "=" * (-len(digits.rstrip("=")) % 4))


def base64url(blob: bytes) -> str:
    """Bytes as base64url without padding, which `bytes_of` reads."""
    return base64.urlsafe_b64encode(blob).decode().rstrip("=")


def is_image(blob: bytes) -> bool:
    """True if bytes begin as an image and can be opened as one. A vector blob may happen to begin as one."""
    from llm_clip_onnx.images.preprocess import open_image  # here: Datasette's start does not wait for Pillow

    if format_of(blob) is None:
        return False
    try:
        open_image(blob)
    except InputError:
        return False
    return True


def check_text(config: Config, item: object) -> None:
    """Raises InputError for a text that is longer than is accepted."""
    if isinstance(item, str) and (size := len(item.encode(errors="replace"))) > config.limits.text_bytes:
        raise InputError(
            f"text of {size} bytes; at most {config.limits.text_bytes} are accepted "
            f"(plugins.{PLUGIN}.limits.text_bytes)"
        )


def media_type(content_type: str) -> str:
    """The media type of a Content-Type header, without its parameters, in small letters."""
    return content_type.partition(";")[0].strip().lower()


def read_embed_request(
    query: str, content_type: str, chunks: list[bytes], limits: Limits, known: Sequence[str]
) -> EmbedRequest:
    """The request to embed or classify in a query string and a body. It empties `chunks`.

    Raises InputError, also for a field that is neither an item nor one of the `known` options.
    """
    fields = RequestFields(limits, known)
    fields.add_query(query)
    kind = media_type(content_type)
    if kind == MULTIPART:
        read_multipart(content_type, chunks, fields)
        return embed_request(fields)
    body = b"".join(chunks)
    chunks.clear()
    if not body:
        pass
    elif is_json(kind, body):
        read_json(body, fields)
    elif is_form(kind, body):
        fields.add_query(body.decode("utf-8", errors="replace"))
    else:
        fields.add_item(Item("body", "image", body))
    return embed_request(fields)


class RequestFields:
    """The fields of a request as they come: items in their order, and lists of the options' values."""

    def __init__(self, limits: Limits, known: Sequence[str] = ()) -> None:
        self.limits, self.known = limits, known
        self.items: list[Item] = []
        self.options: dict[str, Any] = {}

    def add_item(self, item: Item) -> None:
        if len(self.items) >= self.limits.items:
            raise InputError(
                f"there are more than {self.limits.items} texts and images; at most so many are accepted in one "
                f"request (plugins.{PLUGIN}.limits.items)"
            )
        self.items.append(item)

    @property
    def most_fields(self) -> int:
        """How many fields are read."""
        return OTHER_FIELDS + self.limits.items + self.limits.prompts

    def add_query(self, query: str) -> None:
        """Add the fields of a query string or a form. Raises InputError, adding none, if there are too many."""
        if (fields := query.count("&") + 1) > self.most_fields:
            raise InputError(f"there are {fields} fields; at most {self.most_fields} are read")
        if (escapes := query.count("%")) > MAX_ESCAPES:
            raise InputError(
                f"the form has {escapes} escapes (%); at most {MAX_ESCAPES} are read; use multipart/form-data"
            )
        for name, value in parse_qsl(query, keep_blank_values=True):
            self.add(name, value)

    def add(self, name: str, value: str) -> None:
        if kind := KIND_OF_FIELD.get(name):
            position = sum(item.kind == kind for item in self.items)
            self.add_item(read_item(kind, f"{kind}s[{position}]", value))
        elif name in self.known:
            self.options.setdefault(name, []).append(value)
        elif name not in IGNORED and not name.startswith("_"):  # as Datasette and its plugins name theirs: _auth_token
            raise InputError(
                f"{cited(name)} is not a field of this endpoint; expected text, img, vector, {', '.join(self.known)}"
            )


class NoForm(Base400):
    """The body of a request to a page is not a form."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE.value


class FormFields(RequestFields):
    """The fields of a form under any name, and its files."""

    def add(self, name: str, value: str) -> None:
        self.options.setdefault(name, []).append(value)

    def add_item(self, item: Item) -> None:
        self.items.append(item)

    def all(self, name: str) -> list[str]:
        """The values of a field."""
        return self.options.get(name, [])

    def last(self, name: str, default: str = "") -> str:
        """The last value of a field."""
        return self.options.get(name, [default])[-1]


def read_form(query: str, content_type: str, chunks: list[bytes], limits: Limits) -> FormFields:
    """The fields of a query string and a form. Raises NoForm, and InputError for a form that cannot be read."""
    fields = FormFields(limits)
    fields.add_query(query)
    kind = media_type(content_type)
    if kind == MULTIPART:
        read_multipart(content_type, chunks, fields)
    elif body := b"".join(chunks):
        if not is_form(kind, body):
            raise NoForm(f"the body is no form but {name_of(body)}; expected {MULTIPART} with files, or {URLENCODED}")
        fields.add_query(body.decode("utf-8", errors="replace"))
    return fields


def read_item(kind: str, name: str, value: object) -> Item:
    """An item from a field or from JSON, where images and vectors are strings (see `bytes_of`)."""
    if not isinstance(value, str):
        return Item(name, kind, error=f"{cited_json(value)} is not a string")
    if kind == "text":
        return Item(name, kind, value)
    try:
        return Item(name, kind, bytes_of(value))
    except InputError as error:
        return Item(name, kind, error=str(error))


def read_multipart(content_type: str, chunks: list[bytes], fields: RequestFields) -> None:
    """Add the fields of multipart/form-data. Every file is an image, whatever the name of its field."""

    def on_file(file) -> None:
        name = (file.file_name or b"").decode("utf-8", errors="replace")
        if name or file.size:  # a form sends neither if no file was chosen
            fields.add_item(Item(name or f"images[{len(fields.items)}]", "image", file.file_object.getvalue()))

    def on_field(part) -> None:
        name, value = ((text or b"").decode("utf-8", errors="replace") for text in (part.field_name, part.value))
        fields.add(name, value)

    # A container may have no disk to write to, so files stay in memory.
    limits = {"MAX_MEMORY_FILE_SIZE": sum(map(len, chunks)) + 1, "MAX_FIELDS": fields.most_fields}
    try:
        parser = create_form_parser({"Content-Type": content_type.encode("latin-1")}, on_field, on_file, limits)
        for chunk in drain(chunks):
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise InputError(f"the body is no multipart/form-data that can be read: {shortened(error)}") from error


def json_kind(value: object) -> str:
    """What a value is in the words of JSON, such as: a JSON array, a JSON number, JSON null."""
    word = JSON_WORDS.get(type(value))
    return f"a JSON {word}" if word else f"JSON {json.dumps(value)}"


class TooManyParts(InputError):
    """A body of JSON has more than MAX_PARTS parts."""


def json_object(body: bytes, example: str) -> dict:
    """The object in a body of JSON. Raises InputError for anything else; `example` is what was expected."""
    if sum(map(body.count, b",[{:")) > MAX_PARTS:
        raise TooManyParts(f"the body is JSON of more than {MAX_PARTS} parts; expected {example}")
    try:
        content = json.loads(body.removeprefix(BOM))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the body is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"the body is {json_kind(content)}; expected {example}")
    return content


def read_json(body: bytes, fields: RequestFields) -> None:
    """Add {"texts": [...], "images": [base64...], "vectors": [...]} and options, which win over the query string's."""
    for name, value in json_object(body, '{"texts": [...], "images": [...]}').items():
        if kind := KIND_OF_FIELD.get(name):
            values = value if isinstance(value, list) else [value]
            for position, item in enumerate(values):
                fields.add_item(read_item(kind, f"{name}[{position}]", item))
        elif name in fields.known:
            fields.options[name] = value if isinstance(value, list) else [value]
            if name == "labels" and isinstance(value, list):
                fields.options[name] = [json.dumps(value)]  # a list of one label is no name of a label set
        else:
            known = ", ".join(("texts", "images", "vectors", *fields.known))
            raise InputError(f"{cited(name)} is not a key of this endpoint; expected {known}")


def embed_request(fields: RequestFields) -> EmbedRequest:
    """The request in these fields. Raises InputError naming the first option whose value cannot be used."""
    request, options = EmbedRequest(fields.items), fields.options
    if labels := options.get("labels"):
        request.labels = read_label_set(labels[0]) if len(labels) == 1 else tuple(labels)
    if templates := options.get("templates"):
        request.templates = tuple(templates)
    for name in OPTION_READERS:
        if options.get(name):
            setattr(request, name, OPTION_READERS[name](options[name][-1]))
    return request


def read_label_set(value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"labels is {cited_json(value)}; expected the name of a label set or a list of labels")
    return value


def read_k(value: object) -> int:
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not text.isascii() or not text.isdigit() or len(text) > 6 or int(text) < 1:
        raise InputError(f"k is {cited_json(value)}; expected a whole number from 1, of the labels to answer")
    return int(text)


def read_format(value: object) -> str:
    if value not in VECTOR_FORMATS:
        raise InputError(f"format is {cited_json(value)}; expected {', '.join(VECTOR_FORMATS)}")
    return str(value)


def read_normalize(value: object) -> bool:
    text = str(value).lower()
    if text not in TRUE_WORDS + FALSE_WORDS:
        raise InputError(f"normalize is {cited_json(value)}; expected 1 or 0")
    return text in TRUE_WORDS


def read_orient(value: object) -> str | None:
    if value not in ("", "exif", None):
        raise InputError(f"orient is {cited_json(value)}; expected exif, or nothing for llm-clip's reading")
    return "exif" if value else None


def read_model(value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"model is {cited_json(value)}; expected the id of a model")
    return value


OPTION_READERS: dict[str, Callable[[object], Any]] = {
    "k": read_k,
    "format": read_format,
    "normalize": read_normalize,
    "orient": read_orient,
    "model": read_model,
}

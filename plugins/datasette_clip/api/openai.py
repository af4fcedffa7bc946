"""Answers POST /v1/embeddings and GET /v1/models in OpenAI's form: its clients need nothing but another base URL.

A vector is llm_embed's, scaled to norm 1 as OpenAI's are. OpenAI's API takes no images; /-/clip/embed.json does.
Source: the reference of OpenAI's API, and what its SDKs, LangChain and LlamaIndex send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np
from datasette.utils.asgi import Response

from datasette_guard import CORS_HEADERS, collect_soon
from llm_clip_onnx import models, vectors
from llm_clip_onnx.errors import InputError, cited, cited_json

from ..config import PLUGIN, Config, config_of
from ..failures import WITH_SENTENCE, refused, status_of
from ..items import Item, TooManyParts, check_text, drain, json_object, read_model, receive_body
from ..model import default_model, embedding_queue, get_engine, in_thread, manifest_of, manifests_of, own_models
from .embed_classify import AnswerItem, format_embedding, results_of

if TYPE_CHECKING:
    from llm_clip_onnx.model_dir import Manifest

KEYS = ("input", "model", "encoding_format", "dimensions", "user")
FORMATS = ("float", "base64")
EXAMPLE = '{"input": "a text", "model": "clip"}'
TOKENS = (
    "input has the ids of another model's tokens; expected texts. LangChain sends texts with "
    "OpenAIEmbeddings(check_embedding_ctx_length=False)"
)
CODES: dict[int, str] = {HTTPStatus.UNAUTHORIZED: "invalid_api_key", HTTPStatus.NOT_FOUND: "model_not_found"}


class NoModel(InputError):
    """A request names a model that is not here."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(f"there is no model {cited(name)} here; expected one of: {', '.join(known) or 'none'}")


def failure(sentence: str, status: int) -> dict:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    return {"error": {"message": sentence, "type": kind, "param": None, "code": CODES.get(status)}}


def failure_response(datasette, error: Exception) -> Response:
    """The response to an exception of WITH_SENTENCE."""
    status = HTTPStatus.NOT_FOUND if isinstance(error, NoModel) else status_of(error)
    return respond(datasette, failure(str(error), status), status)


def respond(datasette, content: dict, status: int = HTTPStatus.OK) -> Response:
    return Response.json(content, status=int(status), headers=CORS_HEADERS if datasette.cors else {})


async def embeddings(datasette, request) -> Response:
    """The embeddings of one text or of several, in their order. If one text fails, there are none."""
    if response := await refused(datasette, request, ("POST",), failure):
        return response
    try:
        chunks = await receive_body(request)
        with embedding_queue(datasette).slot():
            model_id, items, answer_item = await in_thread(prepare, config_of(datasette), chunks)
            results = await results_of(request, items, answer_item)
    except WITH_SENTENCE as error:
        return failure_response(datasette, error)
    finally:
        collect_soon()  # the body is large
    if sentence := next((result["error"] for result in results if "error" in result), None):
        return failure_response(datasette, InputError(sentence))
    ids = sum(result["ids"] for result in results)
    data = [
        {"object": "embedding", "index": position, "embedding": result["embedding"]}
        for position, result in enumerate(results)
    ]
    usage = {"prompt_tokens": ids, "total_tokens": ids}
    return respond(datasette, {"object": "list", "data": data, "model": model_id, "usage": usage})


def prepare(config: Config, chunks: list[bytes]) -> tuple[str, list[Item], AnswerItem]:
    """The id of a request's model, its texts, and the function that embeds one of them: {"embedding", "ids"}.

    It empties `chunks`. Raises InputError and ModelDirError.
    """
    try:
        content = json_object(b"".join(drain(chunks)), EXAMPLE)
    except TooManyParts as error:
        raise InputError(TOKENS) from error
    items = read_items(content, config)
    model_id = read_model(content.get("model", default_model(config)))
    if model_id not in (known := own_models(config)):
        raise NoModel(model_id, known)
    engine, vector_format = get_engine(model_id), read_encoding(content)
    check_dimensions(content, engine.manifest.embed_dim)

    def answer_item(item: Item) -> dict:
        embedding, ids = engine.embed_counted(str(item.content))
        unit = vectors.unit(embedding.astype(np.float64)).astype(np.float32)
        return {"embedding": format_embedding(unit, vector_format), "ids": ids}

    return model_id, items, answer_item


def read_items(content: dict, config: Config) -> list[Item]:
    """The texts of a request. Raises InputError, also for ids of tokens, which are another model's."""
    if unknown := [name for name in content if name not in KEYS]:
        raise InputError(f"{cited(unknown[0])} is not a key of this endpoint; expected {', '.join(KEYS)}")
    if "input" not in content:
        raise InputError("there is no input; expected a text or a list of texts")
    texts = [content["input"]] if isinstance(content["input"], str) else content["input"]
    if not isinstance(texts, list) or not texts:
        raise InputError(f"input is {cited_json(content['input'])}; expected a text or a list of texts")
    if are_ids(texts) or all(isinstance(text, list) and are_ids(text) for text in texts):
        raise InputError(TOKENS)
    if len(texts) > config.limits.inputs:
        raise InputError(
            f"there are {len(texts)} texts; at most {config.limits.inputs} are accepted in one request "
            f"(plugins.{PLUGIN}.limits.inputs). LangChain calls their number chunk_size, LlamaIndex embed_batch_size"
        )
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"input[{position}] is {cited_json(text)}; expected a text")
        try:
            check_text(config, text)
        except InputError as error:
            raise InputError(f"input[{position}]: {error}") from error
    return [Item(f"input[{position}]", "text", text) for position, text in enumerate(texts)]


def are_ids(numbers: list) -> bool:
    """True for a list of whole numbers, also for an empty one."""
    return all(type(number) is int for number in numbers)


def read_encoding(content: dict) -> str:
    """How vectors are written. Raises InputError."""
    encoding = content.get("encoding_format", "float")
    if encoding not in FORMATS:
        raise InputError(f"encoding_format is {cited_json(encoding)}; expected float or base64")
    return encoding


def check_dimensions(content: dict, embed_dim: int) -> None:
    """Raises InputError for another number of dimensions than the model's."""
    dimensions = content.get("dimensions", embed_dim)
    if dimensions != embed_dim or isinstance(dimensions, bool):
        raise InputError(
            f"dimensions is {cited_json(dimensions)}; the vectors of this model have {embed_dim}, and it was not "
            "trained for fewer"
        )


async def list_models(datasette, request) -> Response:
    """The models that clients may name, without those that cannot be read; or the one that the path names."""
    if response := await refused(datasette, request, ("GET", "HEAD"), failure):
        return response
    known, name = own_models(config_of(datasette)), request.url_vars.get("model")
    try:
        if name is None:
            manifests = await asyncio.to_thread(manifests_of, known)
            listed = [model_json(id, manifest) for id, manifest in manifests.items()]
            return respond(datasette, {"object": "list", "data": listed})
        if unquote(name) not in known:
            raise NoModel(unquote(name), known)
        manifest = await asyncio.to_thread(lambda: manifest_of(models.path_of(unquote(name))))
    except WITH_SENTENCE as error:
        return failure_response(datasette, error)
    return respond(datasette, model_json(unquote(name), manifest))


def model_json(model_id: str, manifest: Manifest) -> dict:
    """A model as OpenAI lists it; its owner is the hub id of the weights, or "local" for those of a folder."""
    created = int(datetime.fromisoformat(manifest.baked_at).timestamp())
    owner = manifest.source.id if manifest.source.revision else "local"
    return {"id": model_id, "object": "model", "created": created, "owned_by": owner}

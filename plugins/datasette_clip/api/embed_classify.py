"""Answers /-/clip/embed.json and /-/clip/classify.json, by POST and GET, with --cors from any origin.

They embed in threads of their own (see model.py), so that neither the event loop nor SQL waits.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

import numpy as np
from datasette.utils.asgi import Response
from numpy.typing import NDArray

from datasette_guard import CORS_HEADERS, collect_soon
from llm_clip_onnx import vectors, zero_shot
from llm_clip_onnx.errors import InputError, VectorError, shortened

from .. import labels
from ..config import Config, config_of
from ..failures import WITH_SENTENCE, failure_json, failure_of, refused
from ..items import (
    CLASSIFY_OPTIONS,
    EMBED_OPTIONS,
    EmbedRequest,
    Item,
    base64url,
    check_text,
    read_embed_request,
    receive_body,
)
from ..model import default_model, embedding_queue, in_thread, permitted_engine

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine

AnswerItem = Callable[[Item], dict]  # an item's own part of the response
Endpoint = Callable[["Engine", Config, EmbedRequest], tuple[dict, AnswerItem]]  # the common part, and the items'


async def embed_json(datasette, request) -> Response:
    """The embeddings of all texts and images of a request, in their order."""
    return await respond(datasette, request, embed)


async def classify_json(datasette, request) -> Response:
    """The labels that fit each image or vector of a request best."""
    return await respond(datasette, request, classify)


async def respond(datasette, request, endpoint: Endpoint) -> Response:
    """The JSON response of an endpoint to a request, or an error in JSON."""
    if response := await refused(datasette, request):
        return response
    content = await embed_response(datasette, request, endpoint)
    headers = CORS_HEADERS if datasette.cors else {}
    return Response.json(content, status=content.get("status", HTTPStatus.OK), headers=headers)


async def embed_response(datasette, request, endpoint: Endpoint) -> dict:
    """The content of the response: one result per item. It is a failure if no item has an answer."""
    config, query, content_type = config_of(datasette), request.query_string, request.headers.get("content-type", "")
    try:
        chunks = await receive_body(request)
        with embedding_queue(datasette).slot():
            begun_s = time.perf_counter()
            items, common, answer_item = await in_thread(prepare, endpoint, config, query, content_type, chunks)
            results = await results_of(request, items, answer_item)
            common |= {"results": results, "ms": round((time.perf_counter() - begun_s) * 1000, 1)}
    except WITH_SENTENCE as error:
        return failure_of(error)
    finally:
        collect_soon()  # the body and the decoded images are large
    if all("error" in result for result in results):
        return failure_json(results[0]["error"], HTTPStatus.BAD_REQUEST) | common
    return {"ok": True} | common


def prepare(
    endpoint: Endpoint, config: Config, query: str, content_type: str, chunks: list[bytes]
) -> tuple[list[Item], dict, AnswerItem]:
    """The items of a request, the common part of the response, and a function for the items'. Raises ClipError."""
    embed_request = read_embed_request(query, content_type, chunks, config.limits, OPTIONS[endpoint])
    embed_request.model = embed_request.model or default_model(config)
    engine = permitted_engine(config, embed_request.model)
    if not embed_request.items:
        raise InputError("there is nothing to embed; expected an image as the body, files, text=, img=, or JSON")
    return embed_request.items, *endpoint(engine, config, embed_request)


async def results_of(request, items: list[Item], answer_item: AnswerItem) -> list[dict]:
    """The results of items, in their order. They are made one by one, so that requests take turns.

    Raises InputError once the client has disconnected.
    """
    disconnect = asyncio.ensure_future(request.receive())
    try:
        results: list[dict] = []
        for item in items:
            if disconnect.done():
                raise InputError("the client has left")
            results.append(await in_thread(result_of, item, answer_item, for_images=item.kind == "image"))
        return results
    finally:
        disconnect.cancel()


def result_of(item: Item, answer_item: AnswerItem) -> dict:
    """The result of an item: its answer, or the sentence why there is none."""
    heading = {"input": item.name, "kind": item.kind}
    try:
        if item.error:
            raise InputError(item.error)
        return heading | answer_item(item)
    except (InputError, VectorError) as error:
        return heading | {"error": f"{shortened(item.name)}: {error}"}


def embed(engine: Engine, config: Config, request: EmbedRequest) -> tuple[dict, AnswerItem]:
    """Endpoint: an item's answer is {"embedding"}, a list of embed_dim numbers or a vector blob as base64 or hex."""

    def answer_item(item: Item) -> dict:
        embedding = item_embedding(engine, config, item, request.orient)
        if request.normalize:
            embedding = vectors.unit(embedding.astype(np.float64)).astype(np.float32)
        return {"embedding": format_embedding(embedding, request.format)}

    common = {"model": request.model, "embed_dim": engine.manifest.embed_dim}
    return common | {"format": request.format, "normalized": request.normalize}, answer_item


def classify(engine: Engine, config: Config, request: EmbedRequest) -> tuple[dict, AnswerItem]:
    """Endpoint: an item's answer is {"matches", "none_of_these", "vector"}. A later request may send that vector."""
    classifier = labels.classifier_of(engine, config.limits, request.labels, request.templates)
    scores = engine.manifest.scores

    def answer_item(item: Item) -> dict:
        embedding = item_embedding(engine, config, item, request.orient)
        matches = engine.classify(classifier, embedding, request.k)
        return {
            "matches": labels.matches_json(matches, scores),
            "none_of_these": zero_shot.is_none_of_these(classifier, matches[0]),
            "vector": base64url(vectors.to_blob(embedding)),
        }

    common = {"model": request.model, "labels": len(classifier.labels), "unrelated_cosine": classifier.unrelated_cosine}
    return common | ({"scores": scores} if scores == "sigmoid" else {}), answer_item


OPTIONS: dict[Endpoint, tuple[str, ...]] = {embed: EMBED_OPTIONS, classify: CLASSIFY_OPTIONS}


def item_embedding(engine: Engine, config: Config, item: Item, orient: str | None = None) -> NDArray[np.float32]:
    """The embedding [embed_dim] of an item. Raises InputError and VectorError for content that cannot be read."""
    if item.kind == "vector" and isinstance(item.content, bytes):
        embedding = vectors.from_blob(item.content, engine.manifest.embed_dim)
        vectors.check_direction(embedding)
        return embedding
    check_text(config, item.content)
    return engine.embed_item(item.content, orient=orient)


def format_embedding(embedding: NDArray[np.float32], vector_format: str) -> list[float] | str:
    """An embedding as numbers that read back to the same float32, or its vector blob in base64 or hex."""
    if vector_format == "float":
        return [float(str(number)) for number in embedding]
    blob = vectors.to_blob(embedding)
    return blob.hex() if vector_format == "hex" else base64.b64encode(blob).decode()

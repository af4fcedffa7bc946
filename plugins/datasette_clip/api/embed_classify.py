"""The JSON endpoints /-/clip/embed.json and /-/clip/classify.json: by POST and by GET, from any origin with --cors.

They embed in threads of their own (inference.py), so that neither the event loop nor SQL waits.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

import numpy as np
from datasette.utils.asgi import Base400, Response
from numpy.typing import NDArray

from datasette_guard import memory as collecting
from datasette_guard.access import may
from datasette_guard.cors import HEADERS
from llm_clip_onnx import MODEL_ID, vectors, zero_shot
from llm_clip_onnx.errors import ClipError, InputError, ModelDirError, VectorError

from .. import items as inputs
from .. import labels
from ..config import Config, config_of
from ..inference import in_thread, inference_of
from ..items import Asked, Input
from ..sql.functions import check_model, check_text

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine  # imports onnxruntime, which Datasette's start does not wait for

METHODS = ("GET", "HEAD", "POST")
Work = Callable[["Engine", Config, Asked], tuple[dict, Callable[[Input], dict]]]


async def embed_json(datasette, request) -> Response:
    """The embeddings of all texts and images of a request, in their order."""
    return await respond(datasette, request, embed)


async def classify_json(datasette, request) -> Response:
    """The labels that fit each image or vector of a request best."""
    return await respond(datasette, request, classify)


async def respond(datasette, request, work: Work) -> Response:
    """What `work` makes of a request, as JSON; or the sentence why not, in the one shape of all errors."""
    if not await may(datasette, request.actor, "view-instance"):
        content = failure("this instance is private; expected a token that it knows (Authorization: Bearer ...)", 403)
    elif request.method in METHODS:
        content = await answer_of(datasette, request, work)
    else:
        content = failure(f"{request.method} is not a method of this endpoint; expected GET or POST", 405)
    headers = HEADERS if datasette.cors else {}
    return Response.json(content, status=content.get("status", HTTPStatus.OK), headers=headers)


def failure(sentence: str, status: int) -> dict:
    return {"ok": False, "error": sentence, "status": int(status)}


async def answer_of(datasette, request, work: Work) -> dict:
    """What `work` makes of what a request asks for, or a failure."""
    config, query, kind = config_of(datasette), request.query_string, request.headers.get("content-type", "")
    try:
        pieces = await inputs.pieces_of(request)
        with inference_of(datasette).place():
            begun_s = time.perf_counter()
            inputs_, known, answer = await in_thread(begin, work, config, query, kind, pieces)
            results = await each(request, inputs_, answer)
            known |= {"results": results, "ms": round((time.perf_counter() - begun_s) * 1000, 1)}
    except Base400 as error:  # too large, or too much at once
        return failure(str(error), error.status)
    except ClipError as error:
        return failure(str(error), HTTPStatus.SERVICE_UNAVAILABLE if isinstance(error, ModelDirError) else 400)
    finally:
        collecting.soon.set()  # what was sent, and what images took, is to be given back
    if all("error" in result for result in results):
        return failure(results[0]["error"], HTTPStatus.BAD_REQUEST) | known
    return {"ok": True} | known


def begin(
    work: Work, config: Config, query: str, kind: str, pieces: list[bytes]
) -> tuple[list[Input], dict, Callable[[Input], dict]]:
    """The inputs of a request, what is known of all answers, and what answers one input. Raises ClipError."""
    from llm_clip_onnx.engine import default_engine

    check_model(config, MODEL_ID)
    asked = inputs.read(query, kind, pieces, config.limits)
    if not asked.inputs:
        raise InputError("there is nothing to embed; expected an image as the body, files, text=, img=, or JSON")
    return asked.inputs, *work(default_engine(), config, asked)


async def each(request, inputs_: list[Input], answer: Callable[[Input], dict]) -> list[dict]:
    """The results of inputs in their order, one after the other, so that requests take turns, until nobody waits."""
    leaving = asyncio.ensure_future(request.receive())
    try:
        results: list[dict] = []
        for one in inputs_:
            if leaving.done():
                raise InputError("the client has left")
            results.append(await in_thread(result_of, one, answer, of_images=one.kind == "image"))
        return results
    finally:
        leaving.cancel()


def result_of(one: Input, answer: Callable[[Input], dict]) -> dict:
    """An input's answer, or the sentence why there is none."""
    named = {"input": one.name, "kind": one.kind}
    try:
        if one.error:
            raise InputError(one.error)
        return named | answer(one)
    except (InputError, VectorError) as error:
        return named | {"error": f"{one.name}: {error}"}


def embed(engine: Engine, config: Config, asked: Asked) -> tuple[dict, Callable[[Input], dict]]:
    """Answers an input with {"embedding"}: a list of embed_dim numbers, or its vector blob as base64 or hex."""

    def answer(one: Input) -> dict:
        embedding = embedding_of(engine, config, one, asked.orient)
        if asked.normalize:
            embedding = vectors.unit(embedding.astype(np.float64)).astype(np.float32)
        return {"embedding": written(embedding, asked.format)}

    known = {"model": MODEL_ID, "embed_dim": engine.manifest.embed_dim}
    return known | {"format": asked.format, "normalized": asked.normalize}, answer


def classify(engine: Engine, config: Config, asked: Asked) -> tuple[dict, Callable[[Input], dict]]:
    """Answers an input with {"matches", "none_of_these", "vector"}, which the next request may send in its place."""
    classifier = labels.classifier_of(engine, config.limits, asked.labels, asked.templates)

    def answer(one: Input) -> dict:
        embedding = embedding_of(engine, config, one, asked.orient)
        matches = zero_shot.classify(classifier, embedding, engine.manifest.logit_scale, asked.k)
        return {
            "matches": labels.matches_as_json(matches),
            "none_of_these": zero_shot.is_none_of_these(classifier, matches[0]),
            "vector": base64.urlsafe_b64encode(vectors.to_blob(embedding)).decode().rstrip("="),
        }

    known = {"model": MODEL_ID, "labels": len(classifier.labels), "unrelated_cosine": classifier.unrelated_cosine}
    return known, answer


def embedding_of(engine: Engine, config: Config, one: Input, orient: str | None) -> NDArray[np.float32]:
    """The embedding [embed_dim] of an input. Raises InputError and VectorError where it cannot be read."""
    if one.kind == "vector" and isinstance(one.content, bytes):
        embedding = vectors.from_blob(one.content)
        if embedding.shape != (engine.manifest.embed_dim,):
            raise VectorError(f"{embedding.size} dimensions; vectors of this model have {engine.manifest.embed_dim}")
        vectors.cosine(embedding, embedding)  # raises where it has no direction
        return embedding
    check_text(config, one.content)
    return engine.embed_item(one.content, orient=orient)


def written(embedding: NDArray[np.float32], form: str) -> list[float] | str:
    """An embedding as numbers that give the same float32 when read, or its vector blob in base64 or hex."""
    if form == "float":
        return [float(str(number)) for number in embedding]
    blob = vectors.to_blob(embedding)
    return blob.hex() if form == "hex" else base64.b64encode(blob).decode()

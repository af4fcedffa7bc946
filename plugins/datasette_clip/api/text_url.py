"""Answers /-/clip/v/SHA256/text.json, .npy and .f32: the embedding of a text, at a URL that caches may keep for good.

SHA256 is that of a model (Manifest.sha256), so a browser or a CDN can give the answer while this server sleeps. An ETag
is known before anything is embedded: a client that has the answer costs no embedding.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from http import HTTPStatus

import numpy as np
from datasette.utils.asgi import Response
from numpy.typing import NDArray

from datasette_guard import CORS_HEADERS
from llm_clip_onnx.errors import InputError, ModelDirError, cited

from ..config import Config, config_of
from ..failures import WITH_SENTENCE, failure_json, failure_of, refused
from ..items import check_text
from ..model import embedding_queue, get_engine, in_thread, manifests_of, own_models
from ..static_files import FOREVER
from .embed_classify import format_embedding


async def text_at_url(datasette, request) -> Response:
    """The embedding of `q` [embed_dim] float32, as llm_embed gives it: JSON, a file of numpy, or its numbers alone."""
    if response := await refused(datasette, request, ("GET", "HEAD")):
        return response
    config, sha256 = config_of(datasette), request.url_vars["sha256"]
    models = await asyncio.to_thread(models_by_sha256, config)
    try:
        if sha256 in models:
            return await respond(datasette, request, config, models[sha256])
        sentence = f"there is no model of this sha256 here; expected one of: {', '.join(models) or 'none'}"
        content = failure_json(sentence, HTTPStatus.NOT_FOUND)
    except WITH_SENTENCE as error:
        content = failure_of(error)
    return Response.json(content, status=content["status"], headers=CORS_HEADERS if datasette.cors else {})


def models_by_sha256(config: Config) -> dict[str, str]:
    """The id of each model that clients may call. Of two ids of one directory either will do."""
    return {manifest.sha256: id for id, manifest in manifests_of(own_models(config)).items()}


async def respond(datasette, request, config: Config, model_id: str) -> Response:
    """The embedding, or 304 for a client that has it. Raises InputError, ModelDirError and Crowded."""
    text, sha256, form = read_text(request, config), request.url_vars["sha256"], request.url_vars["form"]
    digest = hashlib.sha256(f"{sha256} {form} {text}".encode(errors="surrogatepass")).hexdigest()
    tag = f'"{digest[:20]}"'
    headers = {
        "Cache-Control": FOREVER,  # Datasette makes it `private, no-store` for a request with a token or a cookie
        "ETag": f"W/{tag}",  # weak: another processor may round differently
        "X-Content-Type-Options": "nosniff",
        **(CORS_HEADERS if datasette.cors else {}),
    }
    if tag in request.headers.get("if-none-match", ""):
        return Response("", status=304, headers=headers)
    with embedding_queue(datasette).slot():
        embedding = await in_thread(embed, model_id, sha256, text)
    if form == "json":
        content = {"ok": True, "embed_dim": len(embedding), "embedding": format_embedding(embedding, "float")}
        return Response.json(content, headers=headers)
    return Response(bytes_as(form, embedding), headers=headers, content_type="application/octet-stream")


def embed(model_id: str, sha256: str, text: str) -> NDArray[np.float32]:
    """The embedding by the model of this sha256, [embed_dim]. Raises ModelDirError if another one is open."""
    engine = get_engine(model_id)
    if engine.manifest.sha256 != sha256:
        raise ModelDirError(f"{engine.path} was baked again since this process began: restart it")
    return engine.embed_item(text)


def read_text(request, config: Config) -> str:
    """The text of a request. Raises InputError for any other field, so that caches keep each text once."""
    if unknown := [name for name in request.args if name != "q"]:
        raise InputError(f"{cited(unknown[0])} is not a field of this path; expected q")
    texts = request.args.getlist("q")
    if len(texts) != 1:
        raise InputError(f"there are {len(texts)} texts; expected one as ?q=")
    check_text(config, texts[0])
    return texts[0]


def bytes_as(form: str, embedding: NDArray[np.float32]) -> bytes:
    """The numbers in little-endian order, for "npy" behind numpy's header."""
    numbers = embedding.astype("<f4")
    if form == "f32":
        return numbers.tobytes()
    file = io.BytesIO()
    np.save(file, numbers)
    return file.getvalue()

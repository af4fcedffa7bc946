"""/-/clip/v/SHA256/text: the embedding of a text at a URL that caches may keep for good."""

from __future__ import annotations

import asyncio
import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
from datasette.app import Datasette

from llm_clip_onnx import model_dir

TEXT = "a red heart & 猫"


def ask(datasette: Datasette, form: str, sha256: str, method: str = "GET", headers=None, **fields):
    async def send():
        await datasette.invoke_startup()
        url = f"/-/clip/v/{sha256}/text.{form}"
        return await datasette.client.request(method, url, params=fields or {"q": TEXT}, headers=headers or {})

    return asyncio.run(send())


@pytest.fixture(scope="module")
def sha256(demo_dir) -> str:
    return model_dir.read_manifest(demo_dir).sha256


def test_each_form_has_llm_embeds_numbers(datasette, sha256, demo_engine):
    expected = demo_engine.embed_item(TEXT)
    content = ask(datasette, "json", sha256).json()
    assert content.keys() == {"ok", "embed_dim", "embedding"}
    assert (content["ok"], content["embed_dim"]) == (True, len(expected))
    assert np.array_equal(np.array(content["embedding"], np.float32), expected)
    raw = ask(datasette, "f32", sha256)
    assert np.array_equal(np.frombuffer(raw.content, "<f4"), expected)
    array = np.load(io.BytesIO(ask(datasette, "npy", sha256).content))
    assert (array.dtype, np.array_equal(array, expected)) == (np.float32, True)
    assert raw.headers["content-type"] == "application/octet-stream"


def test_a_public_answer_may_be_kept_for_good_and_a_private_one_by_nobody(demo_dir, sha256, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    public = ask(Datasette(memory=True, cors=True), "f32", sha256)
    assert public.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert public.headers["access-control-allow-origin"] == "*"
    forbidden = Datasette(memory=True, metadata={"allow": {"id": "root"}})
    assert ask(forbidden, "f32", sha256).status_code == 403
    monkeypatch.setenv("CLIP_TOKEN", "secret")
    private = Datasette(memory=True)
    refused = ask(private, "f32", sha256)
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert "cache-control" not in refused.headers
    answer = ask(private, "f32", sha256, headers={"Authorization": "Bearer secret"})
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "private, no-store")  # Datasette's own


def test_a_client_that_has_the_answer_costs_no_embedding(datasette, sha256, monkeypatch):
    tags = {form: ask(datasette, form, sha256).headers["etag"] for form in ("json", "npy", "f32")}
    tags["other text"] = ask(datasette, "f32", sha256, q="another").headers["etag"]
    assert len({*tags.values()}) == 4
    monkeypatch.setattr("datasette_clip.api.text_url.get_engine", lambda model_id: pytest.fail("it was embedded"))
    for sent in (tags["f32"], tags["f32"].removeprefix("W/"), f'"x", {tags["f32"]}'):
        answer = ask(datasette, "f32", sha256, headers={"If-None-Match": sent})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tags["f32"])
        assert "immutable" in answer.headers["cache-control"]


def test_the_sha256_is_that_of_what_an_embedding_depends_on(demo_dir, datasette):
    manifest = model_dir.read_manifest(demo_dir)
    assert replace(manifest, baked_at="2001-01-01T00:00:00Z", id="x").sha256 == manifest.sha256
    text, graph = manifest.files["text.onnx"], replace(manifest.files["text.onnx"], sha256="0" * 64)
    assert text != graph
    for other in (
        replace(manifest, files=manifest.files | {"text.onnx": graph}),
        replace(manifest, context_length=manifest.context_length - 1),
        replace(manifest, preprocess=replace(manifest.preprocess, crop=manifest.preprocess.crop - 1)),
    ):
        assert other.sha256 != manifest.sha256

    async def about():
        await datasette.invoke_startup()
        return (await datasette.client.get("/-/clip.json")).json()

    assert asyncio.run(about())["sha256"] == manifest.sha256


@pytest.mark.parametrize(
    ("fields", "status", "sentence"),
    [
        ({"a": "b"}, 400, "'a' is not a field of this path; expected q"),
        ({"q": ["a", "b"]}, 400, "there are 2 texts; expected one as ?q="),
        ({"q": "a", "_x": "a"}, 400, "'_x' is not a field of this path; expected q"),
        ({"q": []}, 400, "there are 0 texts; expected one as ?q="),
    ],
)
def test_bad_input(datasette, sha256, fields, status, sentence):
    answer = ask(datasette, "json", sha256, **fields)
    assert (answer.status_code, answer.json()) == (status, {"ok": False, "error": sentence, "status": status})
    assert "cache-control" not in answer.headers


def test_another_model_another_method_and_another_form(datasette, sha256):
    missing = ask(datasette, "json", "0" * 64)
    assert (missing.status_code, missing.json()["error"]) == (
        404,
        f"there is no model of this sha256 here; expected one of: {sha256}",
    )
    posted = ask(datasette, "json", sha256, "POST")
    assert (posted.status_code, posted.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert ask(datasette, "json", sha256, "OPTIONS").headers["allow"] == "GET, HEAD, OPTIONS"
    assert ask(datasette, "npz", sha256).status_code == 404
    assert ask(datasette, "f32", sha256, "HEAD").status_code == 200


def test_a_model_that_was_baked_again_meanwhile_is_not_kept_for_good(demo_dir, tmp_path, monkeypatch):
    copy = shutil.copytree(demo_dir, tmp_path / "model")
    monkeypatch.setenv("CLIP_MODEL_DIR", str(copy))
    datasette = Datasette(memory=True)
    known = model_dir.read_manifest(copy)
    assert ask(datasette, "f32", known.sha256).status_code == 200
    again = replace(known, context_length=known.context_length - 1)
    (copy / "manifest.json").write_text(again.to_json())
    refused = ask(datasette, "f32", again.sha256)
    assert (refused.status_code, "cache-control" in refused.headers) == (503, False)
    assert refused.json()["error"] == f"{copy} was baked again since this process began: restart it"


def test_a_text_that_is_too_long_is_refused(demo_dir, sha256, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette(memory=True, metadata={"plugins": {"datasette-clip": {"limits": {"text_bytes": 10}}}})
    assert ask(datasette, "f32", sha256, q="a" * 10).status_code == 200
    assert ask(datasette, "f32", sha256, q="a" * 11).json()["error"].startswith("text of 11 bytes; at most 10")

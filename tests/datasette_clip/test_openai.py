"""/v1/embeddings and /v1/models have OpenAI's form: the vectors are llm_embed's at norm 1, and errors are sentences."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3

import numpy as np
import pytest
from datasette.app import Datasette

from datasette_clip.model import embedding_queue
from datasette_guard.gate import takes_a_turn
from llm_clip_onnx.vectors import unit

EMBEDDINGS, MODELS = "/v1/embeddings", "/v1/models"
TEXTS = ["red heart", "", "猫の写真", "red heart"]


def ask(datasette: Datasette, method: str, path: str, **sent):
    async def send():
        await datasette.invoke_startup()
        return await datasette.client.request(method, path, **sent)

    return asyncio.run(send())


def embed(datasette: Datasette, **content):
    return ask(datasette, "POST", EMBEDDINGS, json=content)


def refused(response) -> tuple[int, str]:
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return response.status_code, error["message"]


@pytest.mark.parametrize("vector_format", [None, "float", "base64"])
def test_the_vectors_are_those_of_llm_embed_at_norm_1(datasette, demo_engine, vector_format):
    more = {"encoding_format": vector_format} if vector_format else {}
    answer = embed(datasette, input=TEXTS, model="clip", **more).json()
    assert (answer["object"], answer["model"]) == ("list", "clip")
    assert [(one["object"], one["index"]) for one in answer["data"]] == [("embedding", n) for n in range(4)]
    found = [one["embedding"] for one in answer["data"]]
    if vector_format == "base64":
        found = [np.frombuffer(base64.b64decode(text), "<f4") for text in found]
    expected = unit(demo_engine.embed_text(TEXTS).astype(np.float64)).astype(np.float32)
    assert np.array_equal(np.array(found, np.float32), expected)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)


def test_usage_counts_ids(datasette, demo_engine):
    most = demo_engine.manifest.context_length
    for texts, ids in ((["", ""], 4), (["red " * 500, ""], most + 2)):  # <|startoftext|> and <|endoftext|> of each
        for _ in range(2):  # the second answer is from the cache
            assert embed(datasette, input=texts).json()["usage"] == {"prompt_tokens": ids, "total_tokens": ids}


def test_one_text_and_no_model_are_enough(datasette):
    answer = embed(datasette, input="red heart").json()
    assert (len(answer["data"]), answer["model"]) == (1, "clip")
    assert embed(datasette, input="red heart", user="me").json() == answer


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "there is no input; expected a text or a list of texts"),
        ({"input": []}, "input is []; expected a text or a list of texts"),
        ({"input": None}, "input is null; expected a text or a list of texts"),
        ({"input": {"a": 1}}, 'input is {"a": 1}; expected a text or a list of texts'),
        ({"input": ["a", 3]}, "input[1] is 3; expected a text"),
        ({"input": [True]}, "input[0] is true; expected a text"),
        ({"input": [["a text"]]}, 'input[0] is ["a text"]; expected a text'),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format is 'hex'; expected float or base64"),
        ({"input": "a", "encoding_format": None}, "encoding_format is null; expected float or base64"),
        ({"input": "a", "model": 3}, "model is 3; expected the id of a model"),
        (
            {"input": "a", "image": "b"},
            "'image' is not a key of this endpoint; expected input, model, encoding_format, dimensions, user",
        ),
        (
            {"input": ["a"] * 129},
            "there are 129 texts; at most 128 are accepted in one request (plugins.datasette-clip.limits.inputs). "
            "LangChain calls their number chunk_size, LlamaIndex embed_batch_size",
        ),
        (
            {"input": ["a", "b" * 1_000_001]},
            "input[1]: text of 1000001 bytes; at most 1000000 are accepted (plugins.datasette-clip.limits.text_bytes)",
        ),
    ],
)
def test_a_request_that_cannot_be_answered_gets_a_sentence(datasette, content, sentence):
    assert refused(embed(datasette, **content)) == (400, sentence)


@pytest.mark.parametrize("tokens", [[320, 1125], [[320, 1125], [320]], [[]]])
def test_ids_of_tokens_are_refused_with_the_setting_that_sends_texts(datasette, tokens):
    status, sentence = refused(embed(datasette, input=tokens))
    assert status == 400
    assert "check_embedding_ctx_length=False" in sentence


def test_dimensions_may_be_the_models_own(datasette, demo_engine):
    own = demo_engine.manifest.embed_dim
    assert embed(datasette, input="a", dimensions=own).status_code == 200
    for other in (own - 1, 0, True, "512", None):
        status, sentence = refused(embed(datasette, input="a", dimensions=other))
        shown = {True: "true", None: "null", "512": "'512'"}.get(other, other)
        assert (status, sentence.startswith(f"dimensions is {shown}; the vectors of this model have {own},")) == (
            400,
            True,
        )


def test_a_body_that_is_no_object_gets_a_sentence(datasette):
    for body, sentence in [
        (b"[1]", 'the body is a JSON array; expected {"input": "a text", "model": "clip"}'),
        (b"{", "the body is no JSON: "),
        (b"", "the body is no JSON: "),
        (b"input=a", "the body is no JSON: "),
        (b"[" * 100_000, "the body is no JSON: "),
        (b'{"input": [' + b"1," * 200_000, "input has the ids of another model's tokens; "),  # as LangChain sends
    ]:
        status, found = refused(ask(datasette, "POST", EMBEDDINGS, content=body))
        assert (status, found.startswith(sentence)) == (400, True), found
    encoded = ask(datasette, "POST", EMBEDDINGS, content=b"x", headers={"content-encoding": "gzip"})
    assert refused(encoded)[0] == 415


def test_an_unknown_model_is_404_and_names_those_that_are_here(datasette):
    for response in (embed(datasette, input="a", model="ada"), ask(datasette, "GET", f"{MODELS}/ada")):
        assert refused(response) == (404, "there is no model 'ada' here; expected one of: clip")
        assert response.json()["error"]["code"] == "model_not_found"


def test_models_are_listed_without_the_name_of_a_folder(datasette, demo_dir):
    listed = ask(datasette, "GET", MODELS).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("clip", "model", "local")
    assert model["created"] > 1_700_000_000
    assert ask(datasette, "GET", f"{MODELS}/clip").json() == model


def test_methods(datasette):
    for path, methods, others in (
        (EMBEDDINGS, "POST, OPTIONS", ("GET", "HEAD", "PUT", "DELETE")),
        (MODELS, "GET, HEAD, OPTIONS", ("POST", "DELETE")),
        (f"{MODELS}/clip", "GET, HEAD, OPTIONS", ("POST", "DELETE")),
    ):
        options = ask(datasette, "OPTIONS", path)
        assert (options.status_code, options.headers["allow"]) == (204, methods)
        for method in others:
            response = ask(datasette, method, path)
            assert (response.status_code, response.headers["allow"]) == (405, methods), (method, path)
    assert ask(datasette, "HEAD", MODELS).status_code == 200


def test_a_public_instance_takes_any_key_and_a_private_one_its_token(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    key = {"Authorization": "Bearer sk-anything"}
    assert ask(Datasette(memory=True), "POST", EMBEDDINGS, json={"input": "a"}, headers=key).status_code == 200
    monkeypatch.setenv("CLIP_TOKEN", "secret")
    private = Datasette(memory=True, cors=True)
    for path, method in ((EMBEDDINGS, "POST"), (MODELS, "GET"), (f"{MODELS}/clip", "GET")):
        for headers in ({}, key):
            response = ask(private, method, path, json={"input": "a"}, headers=headers)
            status, sentence = refused(response)
            assert (status, sentence.startswith("this instance is private")) == (401, True)
            assert (response.headers["www-authenticate"], response.json()["error"]["code"]) == (
                "Bearer",
                "invalid_api_key",
            )
            assert response.headers["access-control-allow-origin"] == "*"
        token = {"Authorization": "Bearer secret"}
        assert ask(private, method, path, json={"input": "a"}, headers=token).status_code == 200


def test_what_the_guard_refuses_has_openais_form_too(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    limits = {
        "plugins": {"datasette-guard": {"limits": {"body_bytes": 1000, "url_bytes": 500, "sending_bytes": 20_000}}}
    }
    for base_url in ("/", "/clip/"):  # the client puts it before each path
        datasette = Datasette(memory=True, metadata=limits, settings={"base_url": base_url})
        status, sentence = refused(embed(datasette, input="a" * 2000))
        assert (status, "plugins.datasette-guard.limits.body_bytes" in sentence) == (413, True)
        assert refused(ask(datasette, "GET", f"{MODELS}?{'a' * 600}"))[0] == 414
        crawler = ask(datasette, "GET", MODELS, headers={"user-agent": "GPTBot/1.0"})
        assert refused(crawler)[0] == 403
        too_much = embed(datasette, input=[f"number {n}" for n in range(20)])
        status, sentence = refused(too_much)
        assert (status, "plugins.datasette-guard.limits.sending_bytes" in sentence) == (400, True)


def test_a_crowd_gets_503_in_openais_form(datasette):
    queue = embedding_queue(datasette)
    queue.count = queue.limit
    try:
        response = embed(datasette, input="a")
    finally:
        queue.count = 0
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["type"] == "server_error"


def test_a_bug_is_500_in_openais_form_with_its_traceback_in_the_log(datasette, monkeypatch, caplog):
    monkeypatch.setattr("datasette_clip.api.openai.read_items", lambda *_: 1 / 0)
    response = embed(datasette, input="a")
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    assert "division" not in response.text
    assert "ZeroDivisionError" in caplog.text


def test_a_database_v1_keeps_all_other_paths(demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    with sqlite3.connect(tmp_path / "v1.db") as conn:
        conn.executescript("create table embeddings (id integer primary key); insert into embeddings values (1)")
    datasette = Datasette([str(tmp_path / "v1.db")])
    assert ask(datasette, "GET", "/v1/embeddings.json?_shape=array").json() == [{"id": 1}]
    assert ask(datasette, "GET", "/v1/embeddings/1.json?_shape=array").status_code == 200
    for path in ("/v1/embeddings.json", "/v1/embeddings/1", "/v1/models_2024", "/v1/models/a/b", "/v1"):
        assert takes_a_turn(datasette, "GET", path), path
    for path in (EMBEDDINGS, MODELS, f"{MODELS}/clip"):
        assert not takes_a_turn(datasette, "GET", path), path
        assert not takes_a_turn(datasette, "POST", path), path


def test_a_list_that_clients_may_call_bounds_the_models(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette(memory=True, metadata={"plugins": {"datasette-clip": {"models": ["x"]}}})
    assert embed(datasette, input="a", model="clip").status_code == 404
    assert ask(datasette, "GET", MODELS).json()["data"] == []
    assert refused(embed(datasette, input="a"))[1] == "there is no model 'clip' here; expected one of: none"


def test_no_model_directory_is_503_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path / "none"))
    response = embed(Datasette(memory=True), input="a")
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "server_error"
    assert json.dumps(str(tmp_path / "none"))[1:-1] in response.json()["error"]["message"]

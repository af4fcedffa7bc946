"""The JSON endpoints over HTTP: every way to send an image gives the engine's embedding, and errors are sentences."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import httpx
import numpy as np
import psutil
import pytest
from datasette.app import Datasette

from datasette_clip.model import embedding_queue
from hostile import hostile, readable
from llm_clip_onnx.vectors import unit
from nasty import photo, saved, turned
from patience import PATIENCE_S, until
from serving import environment, serving

JPEG = saved(photo(224, 224), "JPEG")
PNG = saved(photo(61, 97), "PNG")
BASE64 = base64.b64encode(JPEG).decode()
BASE64URL = base64.urlsafe_b64encode(JPEG).decode().rstrip("=")
LIMITS = {"items": 5, "prompts": 10, "embedding": 2}
GUARD = {"limits": {"body_bytes": 2_000_000, "receiving_bytes": 3_000_000}}
EMBED, CLASSIFY = "/-/clip/embed.json", "/-/clip/classify.json"


@pytest.fixture(scope="module")
def server(demo_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "metadata.json").write_text(
        json.dumps({"plugins": {"datasette-clip": {"limits": LIMITS}, "datasette-guard": GUARD}})
    )
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving("--memory", "--cors", "-m", str(folder / "metadata.json"), env=env, log=folder / "log") as url:
        yield url


def embeddings_in(answer: dict) -> list[np.ndarray]:
    return [np.array(result["embedding"], np.float32) for result in answer["results"]]


def form(**fields) -> dict:
    return {"data": fields}


def body(content: bytes, kind: str | None) -> dict:
    return {"content": content, "headers": {"content-type": kind} if kind else {}}


@pytest.mark.parametrize(
    ("method", "sent"),
    [
        ("POST", body(JPEG, "image/jpeg")),
        ("POST", body(JPEG, "application/octet-stream")),
        ("POST", body(JPEG, None)),
        ("POST", body(JPEG, "application/x-www-form-urlencoded")),  # curl --data-binary @photo.jpg
        ("POST", {"files": {"image": ("a.jpg", JPEG)}}),
        ("POST", {"files": {"anything": ("a", JPEG, "text/plain")}}),
        ("POST", {"json": {"images": [BASE64]}}),
        ("POST", {"json": {"images": [f"data:image/jpeg;base64,{BASE64}"]}}),
        ("POST", {"json": {"images": [JPEG.hex()]}}),
        ("POST", form(img=BASE64URL)),
        ("GET", {"params": {"img": BASE64URL}}),
        ("GET", {"params": {"img": BASE64}}),
        ("GET", {"params": {"img": JPEG.hex().upper()}}),
        ("GET", {"params": {"img": f"data:image/jpeg;base64,{BASE64}"}}),
    ],
)
def test_whichever_way_an_image_is_sent_its_embedding_is_the_engines(method, sent, server, demo_engine):
    response = httpx.request(method, server + EMBED, **sent)
    assert response.status_code == 200, response.text
    [embedding] = embeddings_in(response.json())
    np.testing.assert_array_equal(embedding, demo_engine.embed_item(JPEG))


def test_a_plus_that_a_url_makes_a_space_is_base64_still(server, demo_engine):
    assert "+" in BASE64
    [embedding] = embeddings_in(httpx.get(f"{server}{EMBED}?img={BASE64.replace('=', '%3D')}").json())
    np.testing.assert_array_equal(embedding, demo_engine.embed_item(JPEG))


def test_embeddings_come_in_the_order_of_the_inputs(server, demo_engine):
    sent = {"texts": ["red", "cat"], "images": [base64.b64encode(PNG).decode(), BASE64]}
    answer = httpx.post(server + EMBED, json=sent).json()
    assert [result["input"] for result in answer["results"]] == ["texts[0]", "texts[1]", "images[0]", "images[1]"]
    for found, item in zip(embeddings_in(answer), ("red", "cat", PNG, JPEG)):
        np.testing.assert_array_equal(found, demo_engine.embed_item(item))


def test_files_and_fields_come_in_the_order_of_their_parts(server, demo_engine):
    parts = [("b", ("b.png", PNG)), ("text", (None, "cat")), ("a", ("a.jpg", JPEG)), ("format", (None, "hex"))]
    answer = httpx.post(server + EMBED, files=parts).json()
    assert [result["input"] for result in answer["results"]] == ["b.png", "texts[0]", "a.jpg"]
    expected = [demo_engine.embed_item(item).tobytes().hex() for item in (PNG, "cat", JPEG)]
    assert [result["embedding"] for result in answer["results"]] == expected


@pytest.mark.parametrize("normalize", ["0", "1"])
def test_the_formats_hold_the_same_vector(normalize, server, demo_engine):
    expected = demo_engine.embed_item("cat")
    expected = unit(expected.astype(np.float64)).astype(np.float32) if normalize == "1" else expected
    found = {}
    for form_ in ("float", "base64", "hex"):
        answer = httpx.get(server + EMBED, params={"text": "cat", "format": form_, "normalize": normalize}).json()
        assert (answer["format"], answer["normalized"]) == (form_, normalize == "1")
        found[form_] = answer["results"][0]["embedding"]
    np.testing.assert_array_equal(np.array(found["float"], np.float32), expected)
    assert base64.b64decode(found["base64"]) == bytes.fromhex(found["hex"]) == expected.astype("<f4").tobytes()


def test_an_item_that_cannot_be_read_is_named_and_spoils_no_other(server, demo_engine):
    sent = {"texts": ["cat", 3], "images": ["?", BASE64, "YWJj"]}
    response = httpx.post(server + EMBED, json=sent)
    results = response.json()["results"]
    assert (response.status_code, response.json()["ok"]) == (200, True)
    assert [result.get("error") for result in results] == [
        None,
        "texts[1]: 3 is not a string",
        "images[0]: a string of 1 characters is no image; expected base64url, base64, a data URI or hex digits",
        None,
        "images[2]: not an image but text (3 bytes); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF",
    ]
    np.testing.assert_array_equal(np.array(results[3]["embedding"], np.float32), demo_engine.embed_item(JPEG))


def test_where_no_item_can_be_read_it_is_a_400(server):
    response = httpx.post(server + EMBED, files={"f": ("notes.txt", b"abc")})
    assert response.status_code == 400
    assert response.json()["error"] == (
        "notes.txt: not an image but text (3 bytes); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF"
    )
    assert (response.json()["ok"], response.json()["status"]) == (False, 400)


def expected_matches(engine, embedding, labels, templates=("a photo of a {}.",)):
    """Labels with probability and cosine, by CLIP's own recipe in plain numpy."""
    vectors = []
    for label in labels:
        own = label.startswith(("a ", "the "))  # its own article takes the place of the template's
        plain = [template.replace("a {}", "{}").replace("the {}", "{}") if own else template for template in templates]
        prompts = [template.replace("{}", label) for template in plain]
        prompts = engine.embed_text(prompts).astype(np.float64)
        vectors.append((prompts / np.linalg.norm(prompts, axis=1, keepdims=True)).mean(0))
    vectors = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ (embedding / np.linalg.norm(embedding.astype(np.float64)))
    powers = np.exp(engine.manifest.logit_scale * (cosines - cosines.max()))
    ranked = sorted(zip(powers / powers.sum(), cosines, labels), reverse=True)
    return [(label, pytest.approx(p, abs=1e-4), pytest.approx(c, abs=1e-5)) for p, c, label in ranked]  # float32


def matches(answer: dict, position: int = 0) -> list[tuple]:
    found = answer["results"][position]["matches"]
    return [(match["label"], match["probability"], match["cosine"]) for match in found]


OWN = ["cat", "red heart", "blue", "a green vegetable"]


@pytest.mark.parametrize(
    ("method", "sent"),
    [
        ("POST", body(JPEG, "image/jpeg") | {"params": {"labels": OWN}}),
        ("POST", {"files": [("f", ("a.jpg", JPEG))] + [("labels", (None, label)) for label in OWN]}),
        ("POST", {"json": {"images": [BASE64], "labels": OWN}}),
        ("GET", {"params": {"img": BASE64URL, "labels": OWN}}),
        ("GET", {"params": {"img": BASE64URL, "labels": json.dumps(OWN)}}),
    ],
)
def test_labels_given_with_a_request_are_ranked_as_clip_does(method, sent, server, demo_engine):
    answer = httpx.request(method, server + CLASSIFY, **sent).json()
    assert matches(answer) == expected_matches(demo_engine, demo_engine.embed_item(JPEG), OWN)
    assert answer["labels"] == 4


def test_one_label_in_a_json_list_is_a_label_not_a_set(server):
    answer = httpx.post(server + CLASSIFY, json={"images": [BASE64], "labels": ["cat"]}).json()
    assert [match[:2] for match in matches(answer)] == [("cat", 1.0)]


def test_templates_given_with_a_request_are_ensembled(server, demo_engine):
    templates = ["the {}", "many {}, {} and {}"]
    params = {"img": BASE64URL, "labels": OWN, "templates": templates}
    found = matches(httpx.get(server + CLASSIFY, params=params).json())
    assert found == expected_matches(demo_engine, demo_engine.embed_item(JPEG), OWN, templates)


@pytest.mark.parametrize(("k", "count"), [({}, 5), ({"k": "3"}, 3), ({"k": 9999}, 1456)])
def test_a_label_set_is_ranked_and_k_come(k, count, server, demo_engine):
    answer = httpx.get(server + CLASSIFY, params={"img": BASE64URL, "labels": "emoji"} | k).json()
    classifier = demo_engine.label_set("emoji")
    cosines = classifier.vectors @ unit(demo_engine.embed_item(JPEG))
    found = matches(answer)
    assert len(found) == count
    assert answer["labels"] == len(classifier.labels) == 1456
    assert found[0][0] == classifier.labels[int(cosines.argmax())]
    assert found[0][2] == pytest.approx(cosines.max(), abs=1e-5)
    best = answer["results"][0]
    assert best["none_of_these"] == (best["matches"][0]["cosine"] < answer["unrelated_cosine"])


def test_without_labels_the_models_own_set_is_taken(server):
    with_name, without = (
        httpx.post(server + CLASSIFY, content=JPEG, params=params).json() for params in ({"labels": "emoji"}, {})
    )
    assert matches(without) == matches(with_name)


def test_the_vector_of_an_answer_is_ranked_again_without_the_image(server):
    first = httpx.post(server + CLASSIFY, content=JPEG, params={"labels": OWN}).json()
    vector = first["results"][0]["vector"]
    again = httpx.get(server + CLASSIFY, params={"vector": vector, "labels": OWN}).json()
    assert matches(again) == matches(first)
    assert again["results"][0]["vector"] == vector


def test_orient_exif_reads_an_image_upright(server, demo_engine):
    from PIL import Image, ImageOps

    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(turned())))
    plain, oriented = (
        embeddings_in(httpx.post(server + EMBED, content=turned(), params=params).json())[0]
        for params in ({}, {"orient": "exif"})
    )
    np.testing.assert_array_equal(plain, demo_engine.embed_item(turned()))
    expected = demo_engine.embed_images([upright])[0]  # turned before it is resized, so single levels differ
    assert unit(oriented) @ unit(expected) > 0.999 > unit(plain) @ unit(expected)


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "sentence"),
    [
        (
            "GET",
            EMBED,
            {},
            400,
            "there is nothing to embed; expected an image as the body, files, text=, img=, or JSON",
        ),
        ("POST", EMBED, body(b"{", "application/json"), 400, "the body is no JSON: Expecting property name"),
        ("POST", EMBED, body(b"[1]", "application/json"), 400, "the body is a JSON array; expected {"),
        ("POST", EMBED, body(b"[" * 100_000, "application/json"), 400, "the body is no JSON: "),
        ("POST", EMBED, body(b"{}", "application/json"), 400, "there is nothing to embed; expected an image"),
        ("POST", EMBED, {"json": {"text": "a", "lables": ["b"]}}, 400, "'lables' is not a key of this endpoint"),
        ("GET", EMBED, {"params": {"q": "a"}}, 400, "'q' is not a field of this endpoint; expected text, img, vector,"),
        (
            "POST",
            EMBED,
            body(b"abc", "multipart/form-data"),
            400,
            "the body is no multipart/form-data that can be read: ",
        ),
        (
            "POST",
            EMBED,
            body(b"abc", "multipart/form-data; boundary=x"),
            400,
            "the body is no multipart/form-data that can be read: ",
        ),
        ("GET", EMBED, {"params": {"text": "a", "format": "xml"}}, 400, "format is 'xml'; expected float, base64, hex"),
        ("GET", EMBED, {"params": {"text": "a", "normalize": "maybe"}}, 400, "normalize is 'maybe'; expected 1 or 0"),
        ("GET", EMBED, {"params": {"text": "a", "orient": "up"}}, 400, "orient is 'up'; expected exif, or nothing for"),
        (
            "GET",
            EMBED,
            {"params": {"text": ["a"] * 6}},
            400,
            "there are more than 5 texts and images; at most so many are accepted in one request (plugins.datasette-clip.limits.items)",
        ),
        ("GET", EMBED, {"params": {"vector": "00"}}, 400, "vectors[0]: a BLOB of 1 byte is not a vector blob"),
        (
            "GET",
            EMBED,
            {"params": {"vector": "0000803f"}},
            400,
            "vectors[0]: 1 dimensions; vectors of this model have 512",
        ),
        ("GET", EMBED, {"params": {"text": "x" * 70_000}}, 414, "query string of 70005 bytes; at most 60000 are"),
        ("POST", EMBED, body(bytes(2_000_001), "image/png"), 413, "body of 2000001 bytes; at most 2000000 are"),
        ("PUT", EMBED, body(JPEG, "image/jpeg"), 405, "PUT is not a method of this endpoint; expected GET or POST"),
        (
            "GET",
            CLASSIFY,
            {"params": {"img": BASE64URL, "labels": "animals"}},
            400,
            "there is no label set 'animals'; there are emoji; llm clip labels bake makes one",
        ),
        ("GET", CLASSIFY, {"params": {"img": BASE64URL, "labels": "../x"}}, 400, "there is no label set '../x'; "),
        ("GET", CLASSIFY, {"params": {"img": BASE64URL, "labels": "[1"}}, 400, "labels begins as a JSON list and is"),
        ("GET", CLASSIFY, {"params": {"img": BASE64URL, "labels": "[]"}}, 400, "there are no labels; expected at least"),
        ("GET", CLASSIFY, {"params": {"img": BASE64URL, "labels": ["a", " "]}}, 400, "labels[1] is ' '; expected a text"),
        (
            "GET",
            CLASSIFY,
            {"params": {"img": BASE64URL, "labels": ["a", "b"], "templates": "photo"}},
            400,
            "templates[0] is 'photo'; expected {} where the label goes",
        ),
        (
            "GET",
            CLASSIFY,
            {"params": {"img": BASE64URL, "labels": "emoji", "templates": "a {}"}},
            400,
            "label set 'emoji' has its own templates; templates go with labels given one by one",
        ),
        (
            "GET",
            CLASSIFY,
            {"params": {"img": BASE64URL, "labels": ["a"] * 11}},
            400,
            "11 labels in 1 templates are 11 prompts; at most 10 are embedded for a request (plugins.datasette-clip.limits.prompts): bake a label set of them",
        ),
        ("GET", CLASSIFY, {"params": {"img": BASE64URL, "k": "9" * 5000}}, 400, f"k is '{'9' * 56}...; expected a"),
        ("POST", EMBED, {"json": {"texts": ["a"], "format": "x"}}, 400, "format is 'x'; expected float, base64, hex"),
        ("GET", CLASSIFY, {"params": {"img": BASE64URL, "labels": ["a", "b" * 301]}}, 400, "labels[1] has 301 characters; at"),
        ("GET", CLASSIFY, {"params": {"img": BASE64URL, "labels": json.dumps(["a" * 300] * 21)}}, 400, "labels is a JSON list of 6384 characters; at most 6000 are read"),
        ("GET", EMBED, {"params": {"vector": (b"\0\0\xc0\x7f" * 512).hex()}}, 400, "vectors[0]: a vector of zeros, infin"),
        ("GET", CLASSIFY, {"params": {"img": BASE64URL, "k": "0"}}, 400, "k is '0'; expected a whole number from 1"),
        ("GET", CLASSIFY, {"params": {"img": BASE64URL, "k": "²"}}, 400, "k is '²'; expected a whole number from 1"),
        (
            "GET",
            CLASSIFY,
            {"params": {"vector": bytes(2048).hex()}},
            400,
            "vectors[0]: a vector of zeros, infinities or NaN has no direction, so no cosine",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_gets_its_sentence(method, path, sent, status, sentence, server):
    if "x" * 70_000 in str(sent):  # more than httpx sends
        answer = raw_response(
            server, f"GET {path}?text={'x' * 70_000} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        found_status, found = int(answer.split()[1]), json.loads(answer[answer.index(b"{") : answer.rindex(b"}") + 1])
    else:
        response = httpx.request(method, server + path, **sent)
        found_status, found = response.status_code, response.json()
    assert found_status == status, found
    assert found["error"].startswith(sentence)
    assert (found["ok"], found["status"]) == (False, status)


def raw_response(server: str, request: bytes) -> bytes:
    """The raw response to a raw request, which must ask to close the connection."""
    url = httpx.URL(server)
    with socket.create_connection((url.host, url.port), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def test_options_without_a_value_are_not_given(server):
    sent = {"texts": ["cat"], "format": [], "normalize": [], "orient": []}
    assert httpx.post(server + EMBED, json=sent).json()["format"] == "float"
    sent = {"images": [BASE64], "k": [], "templates": [], "orient": []}
    assert len(matches(httpx.post(server + CLASSIFY, json=sent).json())) == 5


def test_vectors_of_huge_numbers_are_normalised_too(server):
    vector = np.full(512, 3e38, "<f4").tobytes().hex()
    [found] = embeddings_in(httpx.get(server + EMBED, params={"vector": vector, "normalize": "1"}).json())
    np.testing.assert_allclose(found, 512**-0.5, rtol=1e-6)


def test_a_preflight_is_answered_for_any_origin(server):
    asking = {"Origin": "https://example.com", "Access-Control-Request-Method": "POST"}
    response = httpx.options(server + CLASSIFY, headers=asking)
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "*"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-headers"] == "Authorization, Content-Type, *"
    for answer in (httpx.post(server + EMBED, content=JPEG), httpx.post(server + EMBED, content=b"abc")):
        assert answer.headers["access-control-allow-origin"] == "*"


def ask(datasette: Datasette, method: str, path: str, **sent):
    async def request() -> httpx.Response:
        return await datasette.client.request(method, path, **sent)

    return asyncio.run(request())


def test_without_cors_there_is_nothing_for_other_origins(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette(memory=True)
    asking = {"Access-Control-Request-Method": "POST"}
    for response in (
        ask(datasette, "OPTIONS", EMBED, headers=asking),
        ask(datasette, "POST", EMBED, content=JPEG),
    ):
        assert "access-control-allow-origin" not in response.headers


def test_a_private_instance_answers_preflights_and_clients_with_the_token(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.setenv("CLIP_TOKEN", "secret")
    datasette = Datasette(memory=True, cors=True)
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert ask(datasette, "OPTIONS", EMBED, headers=asking).status_code == 204
    refused = ask(datasette, "POST", EMBED, content=JPEG)
    assert (refused.status_code, refused.json()["ok"], refused.headers["www-authenticate"]) == (401, False, "Bearer")
    assert refused.headers["access-control-allow-origin"] == "*"
    with_token = {"Authorization": "Bearer secret"}
    assert ask(datasette, "POST", EMBED, content=JPEG, headers=with_token).status_code == 200


def test_a_model_that_is_not_on_the_list_is_refused(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette(memory=True, metadata={"plugins": {"datasette-clip": {"models": ["x"]}}})
    response = ask(datasette, "POST", EMBED, content=JPEG)
    assert response.status_code == 400
    assert response.json()["error"].startswith("model 'clip' is not on the list plugins.datasette-clip.models")


def test_without_a_model_it_is_a_503_that_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path / "none"))
    response = ask(Datasette(memory=True), "POST", EMBED, content=JPEG)
    assert response.status_code == 503
    assert "make one with `llm clip bake" in response.json()["error"]


def test_beyond_the_queue_it_is_503_and_retry_after_and_others_are_answered(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    limits = {"limits": {"embedding": 2}}
    datasette = Datasette(memory=True, metadata={"plugins": {"datasette-clip": limits}})
    with embedding_queue(datasette).slot(), embedding_queue(datasette).slot():
        refused = ask(datasette, "POST", EMBED, content=JPEG)
        assert ask(datasette, "GET", "/_memory.json?sql=select+1+as+one&_shape=array").json() == [{"one": 1}]
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"] == (
        "this server is answering as much as it may at once (plugins.datasette-clip.limits.embedding)"
    )
    assert ask(datasette, "POST", EMBED, content=JPEG).status_code == 200


def test_many_clients_at_once_are_answered_or_told_to_come_back(server):
    with ThreadPoolExecutor(8) as pool:
        posted = pool.map(lambda _: httpx.post(server + EMBED, json={"images": [BASE64] * 5}), range(40))
        answers = [(answer.status_code, answer.headers.get("retry-after")) for answer in posted]
    assert set(answers) <= {(200, None), (503, "1")}
    assert (200, None) in answers
    assert httpx.post(server + EMBED, content=JPEG).status_code == 200


def test_bodies_are_bounded_in_sum_and_the_room_comes_back(server):
    url = httpx.URL(server)
    head = f"POST {EMBED} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: 1900000\r\n\r\n".encode()
    large = JPEG + bytes(1_500_000)
    with socket.create_connection((url.host, url.port), timeout=PATIENCE_S) as slow:
        slow.sendall(head)
        # An announced body takes no room before it arrives.
        assert httpx.post(server + EMBED, content=large).status_code == 200
        slow.sendall(bytes(1_800_000))
        refused = None
        while refused is None or refused.status_code == 200:  # until the server has read those bytes
            refused = httpx.post(server + EMBED, content=large)
        assert refused.status_code == 503
        assert refused.json()["error"].endswith("(plugins.datasette-guard.limits.receiving_bytes)")
        assert refused.headers["retry-after"] == "1"
        assert httpx.post(server + EMBED, content=JPEG).status_code == 200  # there is room for a small one
    until(lambda: httpx.post(server + EMBED, content=large).status_code == 200)


FORM = "application/x-www-form-urlencoded"
BODY_BYTES = 2_000_000  # bytes of a body, the limit of this server


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (b"img=" + b"f" * (BODY_BYTES - 4), FORM, "images[0]: not an image"),
        (b"img=" + b"%41" * (BODY_BYTES // 3 - 2), FORM, "the form has 666664 escapes (%); at most 100000 are read; use multipart"),
        (b"kk&" * (BODY_BYTES // 3), FORM, "there are 666667 fields; at most 115 are read"),
        (b'{"texts":[' + b"[]," * (BODY_BYTES // 3 - 8) + b"[]]}", "application/json", "the body is JSON of more than 100000 parts"),
        (b'{"labels":[' + b'{"":{}},' * (BODY_BYTES // 8 - 8) + b"[]]}", "application/json", "the body is JSON of more than 100000"),
        (b'{"images":["' + b"A" * (BODY_BYTES - 20) + b'"]}', "application/json", "images[0]: not an image"),
    ],
)  # fmt: skip
def test_no_body_takes_many_times_its_own_memory(content, kind, sentence, server):
    port = httpx.URL(server).port
    pid = next(c.pid for c in psutil.net_connections() if c.laddr and c.laddr.port == port and c.status == "LISTEN")

    def kilobytes(key: str) -> int:
        return int(re.search(rf"{key}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])

    httpx.post(server + EMBED, content=JPEG)
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM
    before = kilobytes("VmRSS")
    response = httpx.post(server + EMBED, content=content, headers={"content-type": kind})
    assert response.status_code == 400
    assert response.json()["error"].startswith(sentence)
    assert kilobytes("VmHWM") - before < 20_000  # the body and the values in it are 3,000 each


def test_every_hostile_file_gets_a_vector_or_a_sentence_and_the_server_stays_well(open_server):
    assert len(hostile()) >= 40
    for name, content in hostile().items():  # each goes one way, because all of them take long
        path, orient = [(EMBED, ""), (CLASSIFY, "exif")][crc32(name.encode()) % 2]
        response = httpx.post(open_server + path, params={"orient": orient}, files={"image": (name, content)})
        [result] = response.json()["results"]
        if name in readable():
            assert response.status_code == 200, (name, result)
            assert ("embedding" in result) or result["matches"]
        else:
            assert response.status_code == 400, name
            assert result["error"].startswith(f"{name}: ")
            assert response.json()["error"] == result["error"]
    assert httpx.get(f"{open_server}/-/clip/health").status_code == 200


@pytest.fixture(scope="module")
def open_server(demo_dir, tmp_path_factory):
    """A server with the default limits."""
    folder = tmp_path_factory.mktemp("open-server")
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving("--memory", "--cors", env=env, log=folder / "log") as url:
        yield url


def chunks():
    for _ in range(40):
        yield bytes(100_000)


def test_a_body_of_unannounced_length_is_bounded_too(server):
    assert httpx.post(server + EMBED, content=chunks()).status_code == 413

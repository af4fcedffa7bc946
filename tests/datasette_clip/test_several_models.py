"""A server with a folder of models answers with the one that is asked, in SQL, JSON and pages, and keeps within its bytes."""

from __future__ import annotations

import asyncio
import base64
import html
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from datasette.app import Datasette

from datasette_clip.model import get_engine, text_opening
from datasette_clip.pages import search
from datasette_clip.pages.search import languages_of
from llm_clip_onnx.engine import Engine, engines_of_process
from llm_clip_onnx.vectors import unit
from nasty import photo, saved
from serving import DATASETTES_LIMIT, environment, serving

TABLES = """
create table collections (id integer primary key, name text, model text);
create table embeddings (collection_id integer, id text, embedding blob, primary key (collection_id, id));
insert into collections values (1, 'words', 'clip'), (2, 'noise', 'tiny'), (3, 'lost', 'ada-002');
"""
WORDS = ("red", "green", "blue", "a heart")
PNG = saved(photo(24, 24), "PNG")
IMG = base64.urlsafe_b64encode(PNG).decode()


@pytest.fixture(scope="module")
def folder(demo_dir, demo_float32_dir, tiny_dir, tmp_path_factory) -> Path:
    """A folder of models: `clip`, `float32` of the same checkpoint, another, `tiny`, a damaged one, and twins."""
    models = tmp_path_factory.mktemp("several") / "models"
    for name, directory in (("clip", demo_dir), ("float32", demo_float32_dir), ("tiny", tiny_dir)):
        shutil.copytree(directory, models / name)
    shutil.copytree(tiny_dir, models / "damaged")
    (models / "damaged" / "text.bin").unlink()
    for name in ("one", "two"):
        (models / name).mkdir()
        (models / name / "manifest.json").write_text('{"id": "twin"}')
    return models


@pytest.fixture(scope="module")
def engines(demo_dir, demo_float32_dir, tiny_dir) -> dict[str, Engine]:
    return {"clip": Engine(demo_dir), "float32": Engine(demo_float32_dir), "tiny": Engine(tiny_dir)}


@pytest.fixture(scope="module")
def database(engines, folder) -> Path:
    file = folder.parent / "words.db"
    with sqlite3.connect(file) as connection:
        connection.executescript(TABLES)
        for number, engine in ((1, engines["clip"]), (2, engines["tiny"]), (3, engines["clip"])):
            values = [(number, word, engine.embed_item(word).tobytes()) for word in WORDS]
            connection.executemany("insert into embeddings values (?, ?, ?)", values)
    return file


@pytest.fixture(scope="module")
def server(folder, database) -> Iterator[httpx.Client]:
    """A client of a real server whose towers are all closed at first but one, and where one model at most stays open."""
    settings = folder.parent / "metadata.json"
    settings.write_text(json.dumps({"plugins": {"datasette-clip": {"limits": {"models_bytes": 1}}}}))
    env, log = environment(folder.parent / "llm", CLIP_MODEL_DIR=str(folder)), folder.parent / "log"
    with serving(str(database), "-m", str(settings), *DATASETTES_LIMIT, env=env, log=log) as address:
        yield httpx.Client(base_url=address)


def sql(server: httpx.Client, query: str, **parameters) -> httpx.Response:
    return server.get("/words.json", params={"sql": f"select {query}", "_shape": "arrays", **parameters})


def value(server: httpx.Client, query: str, **parameters):
    response = sql(server, query, **parameters)
    assert response.status_code == 200, response.text
    return response.json()["rows"][0][0]


@pytest.mark.parametrize("model", ["clip", "float32", "tiny"])
def test_each_model_embeds_in_sql_and_json_whichever_is_open(model, server, engines):
    text, image = engines[model].embed_item("red"), engines[model].embed_item(PNG)
    hex_ = value(server, "hex(llm_embed(:model, 'red') || llm_embed(:model, clip_image(:img)))", model=model, img=IMG)
    assert bytes.fromhex(hex_) == text.tobytes() + image.tobytes()
    answer = server.post(f"/-/clip/embed.json?text=red&model={model}", content=PNG).json()
    assert (answer["model"], answer["embed_dim"]) == (model, 512)
    np.testing.assert_array_equal(np.float32([result["embedding"] for result in answer["results"]]), [text, image])
    in_json = server.post("/-/clip/embed.json", json={"texts": ["red"], "model": model}).json()
    assert (in_json["model"], in_json["results"][0]["embedding"]) == (model, answer["results"][0]["embedding"])


def test_where_no_model_is_named_it_is_clip(server, engines):
    answer = server.get("/-/clip/embed.json?text=red").json()
    assert answer["model"] == "clip"
    np.testing.assert_array_equal(np.float32(answer["results"][0]["embedding"]), engines["clip"].embed_item("red"))


def test_openais_form_and_urls_for_caches_have_each_model(server, engines):
    listed = [model["id"] for model in server.get("/v1/models").json()["data"]]
    assert {"clip", "float32", "tiny"} <= {*listed}
    assert {"one", "two", "twin"}.isdisjoint(listed)
    for model in ("clip", "float32", "tiny"):
        expected = unit(engines[model].embed_item("red").astype(np.float64)).astype(np.float32)
        answer = server.post("/v1/embeddings", json={"input": "red", "model": model}).json()
        assert answer["model"] == model
        np.testing.assert_array_equal(np.float32(answer["data"][0]["embedding"]), expected)
        numbers = server.get(f"/-/clip/v/{engines[model].manifest.sha256}/text.f32?q=red").content
        assert numbers == engines[model].embed_item("red").tobytes()
        assert server.get(f"/v1/models/{model}").json()["id"] == model
    unknown = server.post("/v1/embeddings", json={"input": "red", "model": "ada-002"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    damaged = server.post("/v1/embeddings", json={"input": "red", "model": "damaged"})
    assert (damaged.status_code, damaged.json()["error"]["type"]) == (503, "server_error")


def test_a_model_whose_folder_has_a_space_is_found_by_its_name_in_a_url(tiny_dir, tmp_path, monkeypatch):
    for name in ("my model", "猫"):
        shutil.copytree(tiny_dir, tmp_path / name)
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path))

    async def ask() -> list[str]:
        datasette = Datasette(memory=True)
        listed = (await datasette.client.get("/v1/models")).json()["data"]
        paths = [f"/v1/models/{quote(model['id'])}" for model in listed]
        return [(await datasette.client.get(path)).json()["id"] for path in paths]

    assert sorted(asyncio.run(ask())) == ["my model", "猫"]


def test_one_query_may_use_two_models_of_which_one_stays_open(server, engines):
    query = "llm_embed('clip', 'a new text') = llm_embed('tiny', 'a new text')"
    assert value(server, query) == 0


def test_classify_and_compare_in_sql_take_a_model(server, engines):
    labels = '["red", "blue"]'
    for model in ("clip", "tiny"):
        vector = engines[model].embed_item("red").tobytes().hex()
        [best] = json.loads(value(server, f"clip_classify(x'{vector}', '{labels}', 1, '{model}')"))
        answer = server.get(
            "/-/clip/classify.json", params={"img": IMG, "labels": labels, "k": 1, "model": model}
        ).json()
        assert answer["model"] == model
        assert set(best) == {"label", "probability", "cosine"}
        assert value(server, f"clip_similarity('red', x'{vector}', '{model}')") == pytest.approx(1, abs=1e-6)
    assert value(server, "clip_similarity('red', 'red', null)") is None


def test_a_collection_is_searched_with_its_model(server, engines):
    for collection, model in (("words", "clip"), ("noise", "tiny")):
        answer = server.get(f"/-/clip/search/words/{collection}.json?q=blue").json()
        assert (answer["model"], answer["results"][0]["id"]) == (model, "blue")
        assert answer["results"][0]["score"] == pytest.approx(1, abs=1e-6)
        [best] = json.loads(value(server, f"clip_search('{collection}', 'blue', 1)"))
        assert (best["id"], best["score"]) == ("blue", pytest.approx(1, abs=1e-6))


def test_a_model_with_exchangeable_vectors_may_search_it(server, engines):
    answer = server.get("/-/clip/search/words/words.json?q=blue&model=float32&k=2").json()
    query, stored = engines["float32"].embed_item("blue"), engines["clip"].embed_item("blue")
    cosine = query @ stored / np.linalg.norm(query) / np.linalg.norm(stored)
    assert (answer["model"], answer["results"][0]["id"]) == ("float32", "blue")
    assert answer["results"][0]["score"] == pytest.approx(float(cosine), abs=1e-6) != 1
    assert "model=float32" in answer["next_url"]
    [best] = json.loads(value(server, "clip_search('words', 'blue', 1, 'float32')"))
    assert best["score"] == answer["results"][0]["score"]


def test_table_pages_are_filtered_by_a_model_whose_vectors_can_be_compared(server):
    fields = {"_like": "blue", "_like_k": "1", "collection_id": "1"}
    filtered = server.get("/words/embeddings.json", params=fields | {"_shape": "array", "_like_model": "float32"})
    assert [row["id"] for row in filtered.json()] == ["blue"]
    page = html.unescape(server.get("/words/embeddings", params=fields | {"_like_model": "float32"}).text)
    assert 'href="/-/clip/search/words/words?q=blue&model=float32">Rank by likeness to blue</a>' in page
    refused = server.get("/words/embeddings.json", params=fields | {"_like_model": "tiny"})
    assert (refused.status_code, refused.json()["error"]) == (400, REFUSED["another model's vectors"][1])


def chosen(page: str) -> list[str]:
    """The models that a page's select offers, the chosen one with a star."""
    options = re.findall(r'<option value="[^"]*"( selected)?>([\w-]+)</option>', page.partition('id="clip-model"')[2])
    return [f"{id}{'*' * bool(selected)}" for selected, id in options]


def test_the_pages_with_a_form_offer_the_models_and_embed_by_the_chosen_one(server, engines):
    for model in ("clip", "tiny"):
        form = {"labels": "", "own": "red, blue", "model": model, "vectors_of": model}
        page = html.unescape(server.post("/-/clip/classify", data=form, files={"image": ("a.png", PNG)}).text)
        assert [id.rstrip("*") for id in chosen(page)[:4]] == ["clip", "damaged", "float32", "tiny"]
        assert f"{model}*" in chosen(page)
        sql_ = re.search(r"select clip_classify\(clip_image\(:img\), .*\)", page)[0].replace(":img", f"'{IMG}'")
        assert sql_.endswith(f", 5, '{model}')")
        assert f"-F model={model} " in page
        assert f"&model={model}" in re.search(r'clip-permalink" href="([^"]+)"', page)[1]
        compared = html.unescape(
            server.post("/-/clip/compare", data={"texts": "red", "model": model}, files={"image": ("a.png", PNG)}).text
        )
        [cosine] = re.findall(r"<strong>(-?[\d.]+)</strong>", compared)
        img = re.search(r'name="img" value="([^"]+)"', compared)[1]
        expected = value(server, "clip_similarity('red', clip_image(:img), :model)", img=img, model=model)
        assert float(cosine) == pytest.approx(expected, abs=1e-3)


def test_a_kept_picture_is_embedded_again_by_another_model(server, engines):
    first = server.post("/-/clip/compare", data={"texts": "red", "model": "clip"}, files={"image": ("a.png", PNG)}).text
    img, vector = (re.search(rf'name="{name}" value="([^"]+)"', first)[1] for name in ("img", "vector"))
    form = {"texts": "red", "model": "tiny", "vectors_of": "clip", "name": "a.png", "img": img, "vector": vector}
    again = server.post("/-/clip/compare", data=form).text
    embedded = re.search(r'name="vector" value="([^"]+)"', again)[1]
    jpeg = base64.urlsafe_b64decode(img + "==")
    assert base64.urlsafe_b64decode(embedded + "==") == engines["tiny"].embed_item(jpeg).tobytes()
    refused = server.post("/-/clip/compare", data=form | {"img": ""})
    assert refused.status_code == 400
    assert "of a.png only the vector is here, of the model 'clip'" in html.unescape(refused.text)


def test_a_page_with_an_error_still_says_whose_vectors_it_keeps(server, engines):
    """What it says is sent a second time, and answered as before; the model of the vectors still answers."""
    vector = base64.urlsafe_b64encode(engines["clip"].embed_item("red").tobytes()).decode()
    for path, texts in (("/-/clip/classify", {"labels": "", "own": "red"}), ("/-/clip/compare", {"texts": "red"})):
        page = server.get(path, params=texts | {"name": "a", "vector": vector, "model": "clip"}).text
        for model, status in (("tiny", 400), ("tiny", 400), ("clip", 200)):
            kept = dict(re.findall(r'form="clip-form" name="(vectors_of|name|img|vector)" value="([^"]*)"', page))
            assert kept["vectors_of"] == "clip"
            response = server.post(path, data=texts | kept | {"model": model})
            assert response.status_code == status, response.text
            page = response.text


def test_a_label_set_that_another_model_has_is_replaced_and_the_page_says_so(server, engines):
    form = {"labels": "emoji", "model": "clip"}
    assert "clip-bars" in server.post("/-/clip/classify", data=form, files={"image": ("a.png", PNG)}).text
    form |= {"model": "tiny", "vectors_of": "clip"}
    missing = "the model 'tiny' has no label set 'emoji' that can be used"
    own = server.post("/-/clip/classify", data=form | {"own": "a, b", "shown": "a, b"}, files={"image": ("a.png", PNG)})
    assert own.status_code == 200
    assert f"{missing}; these are your own labels" in html.unescape(own.text)
    assert '<option value="" selected>' in own.text
    assert "All 2 labels" in own.text
    none = server.post("/-/clip/classify", data=form, files={"image": ("a.png", PNG)})
    assert none.status_code == 400
    assert f"{missing}, and no other one; expected labels of your own" in html.unescape(none.text)
    other = server.post(
        "/-/clip/classify", data={"labels": "imagenet", "model": "clip"}, files={"image": ("a.png", PNG)}
    )
    assert other.status_code == 200
    assert "'clip' has no label set 'imagenet' that can be used; these are of its set emoji" in html.unescape(
        other.text
    )
    assert '<option value="emoji" selected>' in other.text


def test_the_search_page_offers_the_models_whose_vectors_can_be_compared(server):
    page = server.get("/-/clip/search/words/words?q=blue").text
    assert chosen(page) == ["clip", "float32"]
    assert "has the facts of the model <code>clip</code>, whose vectors these are" in page
    assert 'id="clip-model"' not in server.get("/-/clip/search/words/noise?q=blue").text
    page = html.unescape(server.get("/-/clip/search/words/words?q=blue&model=float32").text)
    assert chosen(page) == ["clip", "float32*"]
    assert "clip_search('words', :q, 24, 'float32')" in page
    likes = re.findall(r'class="clip-like" href="([^"]+)"', page)
    assert len(likes) == len(WORDS)
    assert all(link.endswith("&model=float32") for link in likes)
    refused = server.get("/-/clip/search/words/words?q=blue&model=tiny")
    assert refused.status_code == 400
    assert REFUSED["another model's vectors"][1] in html.unescape(refused.text)


def test_a_search_without_a_query_refuses_a_model_too_and_its_page_forgets_it(server):
    for collection in ("words", "noise"):
        for model in ("nonsense", {"words": "tiny", "noise": "clip"}[collection]):
            path = f"/-/clip/search/words/{collection}"
            assert server.get(f"{path}.json", params={"model": model}).status_code == 400
            for query in ({}, {"q": "blue"}):
                page = server.get(path, params=query | {"model": model})
                assert page.status_code == 400
                assert "message-error" in page.text
                assert f'value="{model}"' not in page.text
                assert f"model={model}" not in page.text
    assert server.get("/-/clip/search/words/words.json?model=float32").json()["model"] == "float32"
    assert server.get("/-/clip/search/words/lost.json").status_code == 200


def test_pages_about_models_leave_the_order_of_their_engines(folder, database, monkeypatch):
    """The engine that was used least recently is closed first; each page asks once which models may search."""
    monkeypatch.setenv("CLIP_MODEL_DIR", str(folder))
    monkeypatch.setattr("llm_clip_onnx.engine._engines", {})
    datasette, asked = Datasette([str(database)]), []
    genuine = search.exchangeable_models
    monkeypatch.setattr(search, "exchangeable_models", lambda *about: asked.append(about) or genuine(*about))

    async def pages():
        await datasette.client.get("/words.json?sql=select+1")  # the towers that start with Datasette are open
        for id in ("float32", "tiny", "clip"):
            get_engine(id)
        used = [engine.path.name for engine in engines_of_process()]
        paths = ("/-/clip/search/words/words", "/-/clip/search/words/noise", "/-/clip.json")
        answers = [await datasette.client.get(path) for path in paths]
        return used, [engine.path.name for engine in engines_of_process()], answers

    before, after, (words, _, facts) = asyncio.run(pages())
    assert after == before == ["float32", "tiny", "clip"]
    assert chosen(words.text) == ["clip", "float32"]
    assert len(asked) == 2
    assert [model["exchangeable_with"] for model in facts.json()["served"] if model["id"] == "float32"] == [["clip"]]


def test_health_neither_uses_nor_opens_a_model_whose_towers_were_closed(folder, database, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(folder))
    monkeypatch.setattr("llm_clip_onnx.engine._engines", {})
    datasette = Datasette([str(database)])

    async def ask():
        await datasette.client.get("/words.json?sql=select+1")  # the tower that starts with Datasette is open
        first = await datasette.client.get("/-/clip/health")
        monkeypatch.setattr("llm_clip_onnx.models.open_bytes", 1)
        get_engine("tiny").open_text()
        again = [await datasette.client.get(path) for path in ("/-/clip/health", "/-/clip.json", "/-/clip")]
        return [first, *again], [(engine.path.name, engine.open_towers) for engine in engines_of_process()]

    answers, engines = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200]
    assert answers[2].json()["ready"]
    assert engines == [("clip", []), ("tiny", ["text"])]


def test_health_says_why_a_model_that_was_closed_cannot_be_opened_again(demo_dir, tmp_path, monkeypatch):
    model = shutil.copytree(demo_dir, tmp_path / "model")
    monkeypatch.setenv("CLIP_MODEL_DIR", str(model))
    datasette, weights, kept = Datasette(memory=True), model / "text.bin", (model / "text.bin").read_bytes()
    text_opening.cache_clear()

    async def health() -> tuple[int, bool]:
        answer = await datasette.client.get("/-/clip/health")
        return answer.status_code, "text.bin" in answer.text

    async def ask():
        await datasette.client.get("/_memory.json?sql=select+1")  # the tower that starts with Datasette is open
        await asyncio.to_thread(text_opening().result)
        yield await health()
        get_engine("clip").close()
        weights.unlink()
        yield await health()
        weights.write_bytes(kept)
        yield await health()

    async def answers():
        return [answer async for answer in ask()]

    assert asyncio.run(answers()) == [(200, False), (503, True), (200, False)]
    text_opening.cache_clear()


def test_a_choice_says_the_languages_of_a_model_of_the_catalogue(demo_dir, tmp_path, monkeypatch):
    for id in ("clip", "multilingual"):
        shutil.copytree(demo_dir, tmp_path / id)
        facts = json.loads((tmp_path / id / "manifest.json").read_text())
        (tmp_path / id / "manifest.json").write_text(json.dumps(facts | {"id": id}))
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path))
    assert [languages_of(id) for id in ("clip", "multilingual", "none")] == ["English", "50 languages", ""]


def test_the_lists_name_models(server):
    page = server.get("/-/clip/search").text
    assert re.findall(r">(\w+)</a> in .*vectors of <code>(\w+)</code>", page) == [("noise", "tiny"), ("words", "clip")]
    facts = server.get("/-/clip.json").json()
    assert (facts["model"], facts["models"], facts["twins"]) == (
        "clip",
        ["clip", "damaged", "float32", "tiny"],
        facts["twins"],
    )
    served = {model["id"]: model for model in facts["served"]}
    assert served["clip"]["exchangeable_with"] == ["float32"]
    assert served["tiny"]["exchangeable_with"] == []
    assert "text.bin cannot be read" in served["damaged"]["error"]
    page = html.unescape(server.get("/-/clip").text)
    assert served["damaged"]["error"] in page
    assert served["tiny"]["source"] in page


LISTED = "['clip', 'damaged', 'float32', 'tiny']"
REFUSED = {
    "an unknown model": (
        "/-/clip/embed.json?text=red&model=siglip",
        f"model 'siglip' is not on the list plugins.datasette-clip.models, {LISTED}",
    ),
    "another model's vectors": (
        "/-/clip/search/words/words.json?q=red&model=tiny",
        "collection 'words' holds vectors of model 'clip', and 'tiny' is asked, whose vectors cannot be compared with them",
    ),
    "an unknown model in a search": (
        "/-/clip/search/words/words.json?q=red&model=siglip",
        f"model 'siglip' is not on the list plugins.datasette-clip.models, {LISTED}",
    ),
    "a collection whose model is not here": (
        "/-/clip/search/words/lost.json?q=red",
        "collection 'lost' holds vectors of model 'ada-002', which is not here; there are 'clip', 'damaged', 'float32', 'tiny'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_model_can_answer_gets_its_sentence(name, server):
    path, sentence = REFUSED[name]
    response = server.get(path)
    assert (response.status_code, response.json()["error"]) == (400, sentence)


def test_the_sentences_reach_sql_too(server):
    for query, (_, sentence) in (
        ("llm_embed('siglip', 'red')", REFUSED["an unknown model"]),
        ("clip_similarity('a', 'b', 'siglip')", REFUSED["an unknown model"]),
        ("clip_search('words', 'red', 1, 'tiny')", REFUSED["another model's vectors"]),
        ("clip_search('lost', 'red')", REFUSED["a collection whose model is not here"]),
    ):
        response = sql(server, query)
        assert response.status_code == 400
        assert response.json()["error"].partition(": ")[2] == sentence


def test_two_models_of_one_id_are_refused_named_and_logged(server, folder):
    sentence = f"{folder}/one and {folder}/two have the same model id 'twin', so none of them is served; leave one in the folder"
    response = server.get("/-/clip/embed.json?text=red&model=twin")
    assert (response.status_code, response.json()["error"]) == (503, sentence)
    assert server.get("/-/clip.json").json()["twins"] == [sentence]
    assert sentence in html.unescape(server.get("/-/clip").text)
    assert (folder.parent / "log").read_text().count(sentence) == 1


def test_a_damaged_model_says_so_and_the_others_go_on(server, folder):
    response = server.get("/-/clip/embed.json?text=red&model=damaged")
    assert response.status_code == 503
    assert response.json()["error"].startswith(f"{folder}/damaged/text.bin cannot be read (No such file or directory)")
    assert sql(server, "llm_embed('damaged', 'red')").status_code == 400
    assert server.get("/-/clip/health").status_code == 200
    assert server.get("/-/clip/embed.json?text=red").status_code == 200

"""No URL of ours shows a stranger what Datasette forbids, also where --crossdb attaches the file to another database."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sqlite3

import httpx
import pytest
from datasette.app import Datasette

from clip_collections.collection import open_collection
from clip_collections.index.build import index
from clip_collections.thumbnails import rows_without_thumbnail, write_thumbnails
from datasette_clip import paths
from nasty import photo, saved
from serving import BIN, environment, serving
from stored import llms_database

ROOT_ONLY = {"id": "root"}
PRIVATE = {
    "database": {"databases": {"ids": {"allow": ROOT_ONLY}}, "allow_sql": ROOT_ONLY},
    "table": {"databases": {"ids": {"tables": {"embeddings": {"allow": ROOT_ONLY}}}}, "allow_sql": ROOT_ONLY},
    "names": {"databases": {"ids": {"tables": {"collections": {"allow": ROOT_ONLY}}}}, "allow_sql": ROOT_ONLY},
    "instance": {"allow": ROOT_ONLY},
}
OF_A_COLLECTION = tuple(f"{at}/" for at in (paths.SEARCH, paths.THUMBNAIL, paths.VIEWER, paths.ORIGINAL))
SECRET, LABEL = "secret-name", "secret-label"  # the collection's name, which begins each id, and each row's metadata

OF_ROW = ("THUMBNAIL", "VIEWER", "ORIGINAL")  # paths of one row


@pytest.fixture(autouse=True)
def model(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))


@pytest.fixture(scope="module")
def file(demo_engine, tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("strangers") / "ids.db")
    image = saved(photo(40, 40), "JPEG")
    conn = llms_database(path, **{SECRET: {f"{SECRET}-{n}": demo_engine.embed_item(f"text {n}") for n in range(5)}})
    conn.execute("update embeddings set content_blob = ?, metadata = ?", [image, json.dumps({"label": LABEL})])
    conn.execute("update embeddings set content_blob = ? where id = ?", [image + bytes(200_000), f"{SECRET}-0"])
    conn.commit()
    collection = open_collection(conn, SECRET)
    index(conn, collection)
    write_thumbnails(conn, collection, rows_without_thumbnail(conn, collection))
    conn.commit()
    conn.close()
    return path


def urls() -> list[str]:
    """Every URL of ours. A new one in `paths` must be added here."""
    known = {"ABOUT", "HEALTH", "EMBED", "CLASSIFY", "COMPARE", "SEARCH", "THUMBNAIL", "VIEWER", "ORIGINAL", "STATIC"}
    known |= {"EMBEDDINGS", "MODELS", "TEXT_URL"}
    assert {name for name in vars(paths) if name.isupper()} == known | {"COLLECTION", "READ_ONLY"}
    plain = [paths.ABOUT, paths.HEALTH, paths.COMPARE, paths.CLASSIFY, paths.SEARCH, f"{paths.ABOUT}.json"]
    plain += [f"{paths.TEXT_URL}/{'0' * 64}/text.json?q=red"]
    plain += [paths.EMBEDDINGS, paths.MODELS, f"{paths.MODELS}/clip"]
    plain += [f"{paths.EMBED}.json?text=red", f"{paths.CLASSIFY}.json?text=red&labels=a&labels=b"]
    for database in ("ids", "_memory"):
        found = f"{paths.SEARCH}/{database}/{SECRET}"
        for query in ("q=red", f"id={SECRET}-1", f"q=id:{SECRET}-1", "q=red&where=1"):
            plain += [f"{found}?{query}", f"{found}.json?{query}"]
        plain += [f"{found}?meta.label={LABEL}", f"{found}.json?meta.label={LABEL}"]
        plain += [f"{at}/{database}/{SECRET}?id={SECRET}-1" for at in (paths.THUMBNAIL, paths.VIEWER, paths.ORIGINAL)]
        plain.append(f"{paths.CLASSIFY}?sample={database}/{SECRET}/{SECRET}-1&labels=a%0Ab")
    tables = ["/ids/embeddings", "/ids/embeddings?_like=red", f"/ids/embeddings.json?_like_id={SECRET}-1"]
    return [*plain, "/", "/_memory", "/ids", *tables]


@pytest.fixture(scope="module", params=["0.65", "1.0a"])
def serve(request, file, demo_dir, tmp_path_factory):
    """Starts a server of a version of Datasette with the metadata of a name in PRIVATE."""
    bin = BIN if request.param == "0.65" else request.getfixturevalue("alpha_bin")

    def start(metadata: dict):
        folder = tmp_path_factory.mktemp("server")
        (folder / "metadata.json").write_text(json.dumps(metadata))
        arguments = [file, "--memory", "--crossdb", "-m", str(folder / "metadata.json")]
        arguments += ["-c", str(folder / "metadata.json")] if request.param == "1.0a" else []
        env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
        return serving(*arguments, env=env, log=folder / "log", bin=bin)

    return start


def written(file: str) -> list[str]:
    """How the stored vectors would begin in an answer, in hex digits and in base64."""
    with sqlite3.connect(file) as conn:
        blobs = [blob[:48] for (blob,) in conn.execute("select embedding from embeddings")]
    texts = [(blob.hex(), blob.hex().upper(), base64.b64encode(blob).decode()) for blob in blobs]
    return [*sum(texts, ()), *(base64.urlsafe_b64encode(blob).decode() for blob in blobs)]


@pytest.mark.parametrize("private", PRIVATE)
def test_a_stranger_sees_nothing_of_a_private_collection(private, serve, file):
    """No id but the one in the URL, no label, no picture, no vector and no score. A search is not answered at all."""
    found, vectors = [], written(file)
    with serve(PRIVATE[private]) as address:
        for url in urls():
            response = httpx.get(address + url, follow_redirects=True)
            is_ours = url.startswith(OF_A_COLLECTION)
            is_answered = is_ours and response.status_code not in (403, 404)
            is_asked = is_ours or private != "names"
            shows = is_asked and re.search(rf"{SECRET}-[02-4]|{LABEL}|\"score\"", response.text)
            shows = shows or (is_asked and any(vector in response.text for vector in vectors))
            is_picture = response.headers["content-type"].startswith("image/")
            if is_answered or shows or is_picture:
                found.append(url)
            if is_ours and ".json?" in url:
                assert response.json()["ok"] is False  # an error there is JSON, not a page
    assert found == []


def test_a_stranger_embeds_nothing_on_a_private_instance(serve, demo_engine):
    with serve(PRIVATE["instance"]) as address:
        text_url = f"{address}{paths.TEXT_URL}/{demo_engine.manifest.sha256}/text.json?q=red"
        asked = [httpx.get(url) for url in (text_url, address + paths.MODELS, f"{address}{paths.MODELS}/clip")]
        asked += [httpx.post(address + paths.EMBEDDINGS, json={"input": "red"})]
        asked += [
            httpx.post(f"{address}{path}.json", json={"texts": ["red"]}) for path in (paths.EMBED, paths.CLASSIFY)
        ]
        for response in asked:
            assert (response.status_code, "you may not see" in response.text) == (403, True), response.url
            assert "[" not in response.text  # no list, of numbers or of models


def test_thumbnails_that_are_private_are_not_shown(serve):
    """A stranger may search the collection, but gets no picture that is only in clip_thumbnails."""
    large, small = (f"{paths.THUMBNAIL}/ids/{SECRET}?id={SECRET}-{n}" for n in (0, 1))
    with serve({"databases": {"ids": {"tables": {"clip_thumbnails": {"allow": ROOT_ONLY}}}}}) as address:
        refused = httpx.get(address + large)
        assert (refused.status_code, "has no small picture that you may see" in refused.text) == (404, True)
        assert httpx.get(address + small).status_code == 200  # the stored image itself
        rows = httpx.get(f"{address}{paths.SEARCH}/ids/{SECRET}.json?q=red").json()["results"]
        assert [row["id"] for row in rows if not row["image"]] == [f"{SECRET}-0"]
    with serve({}) as address:
        assert httpx.get(address + large).headers["content-type"] == "image/webp"


@pytest.mark.parametrize("private", ["table", "names"])
def test_a_stranger_cannot_tell_which_names_exist(private, file):
    datasette = Datasette([file], memory=True, metadata=PRIVATE[private])

    async def statuses() -> set[int]:
        found = [f"{at}/ids/{name}" for at in (paths.SEARCH, paths.THUMBNAIL) for name in (SECRET, "no-such-name")]
        return {(await datasette.client.get(f"{url}?id=1")).status_code for url in found}

    assert asyncio.run(statuses()) == {403}


def test_a_canned_query_names_no_other_collection(file):
    queries = {"find": {"sql": "select clip_search(:name, 'red')"}}
    metadata = {"allow_sql": ROOT_ONLY, "databases": {"ids": {"queries": queries}}}
    datasette = Datasette([file], metadata=metadata)
    response = asyncio.run(datasette.client.get("/ids/find.json?name=nope"))
    assert (response.status_code, SECRET in response.text) == (400, False)
    assert "there is no collection 'nope'" in response.json()["error"]


def test_root_finds_the_rows(file):
    datasette = Datasette([file], memory=True, crossdb=True, metadata=PRIVATE["database"])
    cookie = {"ds_actor": datasette.sign({"a": ROOT_ONLY}, "actor")}
    response = asyncio.run(datasette.client.get(f"{paths.SEARCH}/ids/{SECRET}.json?q=red", cookies=cookie))
    assert [row["id"].startswith(SECRET) for row in response.json()["results"]] == [True] * 5
    response = asyncio.run(datasette.client.get(f"{paths.THUMBNAIL}/ids/{SECRET}?id={SECRET}-1", cookies=cookie))
    assert response.headers["content-type"] == "image/webp"

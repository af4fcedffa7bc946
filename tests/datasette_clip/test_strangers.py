"""No URL of ours shows a stranger what Datasette forbids, also where --crossdb attaches the file to another database."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from datasette.app import Datasette

from clip_collections.collection import open_collection
from clip_collections.index.build import index
from datasette_clip import paths
from nasty import photo, saved
from stored import llms_database

ROOT_ONLY = {"id": "root"}
PRIVATE = {
    "database": {"databases": {"ids": {"allow": ROOT_ONLY}}, "allow_sql": ROOT_ONLY},
    "table": {"databases": {"ids": {"tables": {"embeddings": {"allow": ROOT_ONLY}}}}, "allow_sql": ROOT_ONLY},
    "names": {"databases": {"ids": {"tables": {"collections": {"allow": ROOT_ONLY}}}}, "allow_sql": ROOT_ONLY},
    "instance": {"allow": ROOT_ONLY},
}
SECRET = "secret-name"  # in the id, the content and the metadata of each row, and the collection's name


@pytest.fixture(autouse=True)
def model(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))


@pytest.fixture(scope="module")
def file(demo_engine, tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("strangers") / "ids.db")
    image = saved(photo(40, 40), "JPEG")
    conn = llms_database(path, **{SECRET: {f"{SECRET}-{n}": demo_engine.embed_item(f"text {n}") for n in range(5)}})
    conn.execute("update embeddings set content_blob = ?, metadata = ?", [image, json.dumps({"label": SECRET})])
    conn.commit()
    index(conn, open_collection(conn, SECRET))
    conn.commit()
    conn.close()
    return path


def urls() -> list[str]:
    """Every URL of ours. A new one in `paths` must be added here."""
    known = {"ABOUT", "HEALTH", "EMBED", "CLASSIFY", "COMPARE", "SEARCH", "THUMBNAIL", "COLLECTION", "READ_ONLY"}
    assert {name for name in vars(paths) if name.isupper()} == known
    plain = [paths.ABOUT, paths.HEALTH, paths.COMPARE, paths.CLASSIFY, paths.SEARCH, f"{paths.ABOUT}.json"]
    plain += [f"{paths.EMBED}.json?text=red", f"{paths.CLASSIFY}.json?text=red&labels=a&labels=b"]
    for database in ("ids", "_memory"):
        found = f"{paths.SEARCH}/{database}/{SECRET}"
        for query in ("q=red", f"id={SECRET}-1", f"q=id:{SECRET}-1", "q=red&where=1"):
            plain += [f"{found}?{query}", f"{found}.json?{query}"]
        plain.append(f"{paths.THUMBNAIL}/{database}/{SECRET}?id={SECRET}-1")
    return [*plain, "/", "/_memory", "/ids", "/ids/embeddings"]


@pytest.mark.parametrize("private", PRIVATE)
def test_a_stranger_sees_nothing_of_a_private_collection(private, file):
    """What the URL itself names may stand in an answer, so that is taken out of it first."""
    datasette = Datasette([file], memory=True, crossdb=True, metadata=PRIVATE[private])

    async def leaks() -> list[str]:
        found = []
        for url in urls():
            response = await datasette.client.get(url)
            text = re.sub(rf"{SECRET}-1\b", "", response.text) if url.count(SECRET) else response.text
            shown = re.search(rf"{SECRET}-[0-9]|label.{{0,9}}{SECRET}", text)
            is_picture = response.headers.get("content-type", "").startswith("image/")
            if ((shown or is_picture) and private != "names") or (
                url.startswith(paths.SEARCH + "/") and response.status_code == 200
            ):
                found.append(url)
        return found

    assert asyncio.run(leaks()) == []


def test_root_finds_the_rows(file):
    datasette = Datasette([file], memory=True, crossdb=True, metadata=PRIVATE["database"])
    cookie = {"ds_actor": datasette.sign({"a": ROOT_ONLY}, "actor")}
    response = asyncio.run(datasette.client.get(f"{paths.SEARCH}/ids/{SECRET}.json?q=red", cookies=cookie))
    assert [row["id"].startswith(SECRET) for row in response.json()["results"]] == [True] * 5
    response = asyncio.run(datasette.client.get(f"{paths.THUMBNAIL}/ids/{SECRET}?id={SECRET}-1", cookies=cookie))
    assert response.headers["content-type"] == "image/jpeg"

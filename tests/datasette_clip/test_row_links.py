"""Every link of a row on the search page answers, whatever its id, vector and image are."""

from __future__ import annotations

import asyncio
import html
import re

import numpy as np
import pytest
from datasette.app import Datasette

from llm_clip_onnx.vectors import to_blob
from nasty import photo, saved
from stored import llms_database

GOOD = np.linspace(1, 2, 512, dtype=np.float32)
VECTORS = {
    "good": GOOD,
    "null": None,
    "text": "no vector",
    "empty": b"",
    "short": to_blob(GOOD[:4]),
    "odd": b"abc",
    "zeros": np.zeros(512, np.float32),
    "nan": np.full(512, np.nan, np.float32),
    "inf": np.full(512, np.inf, np.float32),
}
IMAGES = {
    "good": saved(photo(40, 40), "JPEG"),
    "null": b"no image",
    "text": "a text",
    "short": saved(photo(9, 9), "PNG"),
}


@pytest.fixture
def datasette(demo_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    conn = llms_database(str(tmp_path / "p.db"), photos=VECTORS)
    conn.executemany(
        "update embeddings set content_blob = ? where id = ?", [(image, id_) for id_, image in IMAGES.items()]
    )
    conn.execute("insert into embeddings (collection_id, id, embedding) values (1, null, ?)", [to_blob(GOOD)])
    conn.execute("insert into embeddings (collection_id, id, embedding) values (1, x'00ff', ?)", [to_blob(GOOD)])
    conn.commit()
    conn.close()
    return Datasette([str(tmp_path / "p.db")])


def test_every_link_of_a_row_answers(datasette):
    async def links() -> dict[str, int]:
        page = await datasette.client.get("/-/clip/search/p/photos")
        grid = page.text.split('id="clip-grid"')[1].split("</ol>")[0]
        found = {html.unescape(link) for link in re.findall(r'(?:href|src)="([^"]*)"', grid)}
        return {link: (await datasette.client.get(link)).status_code for link in found if "/-/clip/" in link}

    statuses = asyncio.run(links())
    assert {link: status for link, status in statuses.items() if status != 200} == {}
    views = {link for link in statuses if link.startswith("/-/clip/view/")}
    assert len(views) == len(VECTORS) + 2
    assert (
        len(statuses.keys() - views) == 4
    )  # of the one good row like and more, which are the same, and less; two pictures


def test_json_says_which_rows_have_no_vector(datasette):
    results = asyncio.run(datasette.client.get("/-/clip/search/p/photos.json")).json()["results"]
    assert [row["id"] for row in results if row.get("has_vector", True)] == ["good"]

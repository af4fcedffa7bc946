"""The folder that `llm clip serve --publish` writes is built as it stands, and its image searches the photos."""

from __future__ import annotations

import pytest

from building import build, why_not
from containers import started
from drawings import FILES
from serving import environment, run_llm

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

PHOTOS = "Holiday"  # the name of the folder, of its database and of its collection


def test_a_published_folder_is_an_image_that_searches_its_photos(demo_dir, tmp_path):
    (tmp_path / PHOTOS).mkdir()
    for name, content in FILES:
        (tmp_path / PHOTOS / name).write_bytes(content)
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    run_llm("clip", "serve", str(tmp_path / PHOTOS), "--publish", str(tmp_path / "public"), env=env)
    image = "localhost/datasette-clip:published"
    build(image, tmp_path / "public")  # without arguments: those of its Dockerfile bake the model that embedded
    with started(image, "--memory", "400m", "--memory-swap", "400m") as container:
        container.ready()
        answer = container.get(f"/-/clip/search/{PHOTOS}/{PHOTOS}.json", q="a red heart").json()
        assert answer["results"][0]["id"] == "heart.png"
        assert len(answer["results"]) == len(FILES)
        assert "floor" in answer
        picture = container.get(f"/-/clip/thumbnail/{PHOTOS}/{PHOTOS}", id="heart.png")
        assert (picture.status_code, picture.headers["content-type"]) == (200, "image/webp")
        assert container.get(f"/-/clip/original/{PHOTOS}/{PHOTOS}", id="heart.png").status_code == 404
        page = container.get(f"/-/clip/search/{PHOTOS}/{PHOTOS}", q="a red heart").text
        assert f"/-/clip/view/{PHOTOS}/{PHOTOS}?id=heart.png" in page

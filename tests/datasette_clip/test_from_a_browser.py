"""The manual's snippet for notebooks, static/clip.js and preflighted requests, in Chromium on a page of another origin."""

from __future__ import annotations

import base64
import io
import json
import re

import httpx
import numpy as np
import pytest
from PIL import Image

from browser import chromium
from conftest import ROOT
from llm_clip_onnx import vectors
from llm_clip_onnx.images.preprocess import decode
from nasty import photo, saved, with_alpha
from serving import BIN, another_origin, environment, serving

PHOTO = saved(photo(900, 600), "JPEG", quality=95)
MODULE = "/-/static-plugins/datasette-clip/clip.js"


def snippet() -> str:
    page = (ROOT / "docs/javascript.md").read_text().split("\n## ")[0]
    [script] = re.findall(r"```javascript\n(.*?)```", page, re.DOTALL)
    return script


@pytest.fixture(scope="module", params=["0.65", "1.0 alpha"])
def server(request, demo_dir, tmp_path_factory):
    """A server on each version of Datasette, because they treat pages of other origins differently."""
    folder = tmp_path_factory.mktemp("server")
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    bin_ = BIN if request.param == "0.65" else request.getfixturevalue("alpha_bin")
    with serving("--memory", "--cors", env=env, log=folder / "log", bin=bin_) as url:
        version = httpx.get(f"{url}/-/versions.json").json()["datasette"]["version"]
        assert version.startswith(request.param.removesuffix(" alpha"))
        yield url


@pytest.fixture(scope="module")
def elsewhere():
    """The address of an empty page of another origin, with a photo beside it."""

    with another_origin(b"<!doctype html><title>a notebook elsewhere</title>", PHOTO) as url:
        yield url


@pytest.fixture
def run(browser_page, elsewhere, server):
    """A function that runs a script in the page of another origin and returns its result.

    The script has the constants `server`, the address of the server, and `clip`, its module clip.js.
    """
    browser_page.goto(elsewhere)

    def run_it(script: str, argument=None):
        module = f'const clip = await import("{server}{MODULE}");'
        return browser_page.evaluate(f"async argument => {{ const server = '{server}'; {module} {script} }}", argument)

    return run_it


@chromium
def test_the_snippet_of_readme_runs_on_a_page_of_another_origin(browser_page, elsewhere, server, demo_engine):
    script = snippet().replace("https://YOUR-HOST", server)
    browser_page.goto(elsewhere)
    found = browser_page.evaluate(
        f"async () => {{ {script} return {{matches, again: again.matches, text: [...text], image: [...image],"
        "jpeg: btoa(Array.from(new Uint8Array(await (await clip.shrink(photo)).arrayBuffer()),"
        "byte => String.fromCharCode(byte)).join(''))} }"
    )
    np.testing.assert_array_equal(np.float32(found["text"]), demo_engine.embed_item("purple and gold"))
    embedding = demo_engine.embed_item(base64.b64decode(found["jpeg"]))
    np.testing.assert_allclose(found["image"], vectors.unit(embedding), atol=1e-6)  # float32
    for key, labels in (("matches", ["a bunny", "a red heart"]), ("again", ["red", "green"])):
        cosines = demo_engine.classifier(labels).vectors @ vectors.unit(embedding)
        assert found[key][0]["label"] == labels[cosines.argmax()]
        assert found[key][0]["cosine"] == pytest.approx(cosines.max(), abs=2e-6)  # the answer has six digits
    assert (len(found["matches"]), len(found["again"])) == (2, 1)


@chromium
def test_a_page_of_another_origin_may_post_json_which_asks_first(browser_page, elsewhere, server, demo_engine):
    asked: list[tuple[str, int]] = []
    session = browser_page.context.new_cdp_session(browser_page)
    session.send("Network.enable")
    session.on("Network.requestWillBeSent", lambda event: asked.append(event["request"]["method"]))
    browser_page.goto(elsewhere)
    found = browser_page.evaluate(
        """async ([server, image]) => {
        const headers = {"Content-Type": "application/json"};
        const body = JSON.stringify({texts: ["purple and gold"], images: [image]});
        const response = await fetch(`${server}/-/clip/embed.json`, {method: "POST", headers, body});
        return (await response.json()).results.map(result => result.embedding); }""",
        [server, base64.b64encode(PHOTO).decode()],
    )
    wanted = [demo_engine.embed_item("purple and gold"), demo_engine.embed_item(PHOTO)]
    np.testing.assert_array_equal(np.float32(found), wanted)
    assert "OPTIONS" in asked


@chromium
def test_a_token_is_sent_to_a_private_instance(browser_page, elsewhere, demo_dir, demo_engine, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir), CLIP_TOKEN="a-secret")
    script = """async ([server, module, token]) => {
        const clip = await import(server + module);
        const photo = await (await fetch("photo.jpg")).blob();
        const calls = [clip.embed(server, "cat", { token }), clip.classify(server, photo, { labels: ["a", "b"], token })];
        const [text, classes] = await Promise.all(calls.map(call => call.catch(error => error.message)));
        return [Array.isArray(classes.matches) ? classes.matches.length : classes, [...text]]; }"""
    with serving("--memory", "--cors", env=env, log=tmp_path / "log") as url:
        browser_page.goto(elsewhere)
        count, embedding = browser_page.evaluate(script, [url, MODULE, "a-secret"])
        refused, _ = browser_page.evaluate(script, [url, MODULE, ""])
    np.testing.assert_array_equal(np.float32(embedding), demo_engine.embed_item("cat"))
    assert count == 2
    assert refused.startswith("this instance is private")


def test_without_cors_no_other_origin_may_import_the_module(demo_dir, server, tmp_path):
    assert httpx.get(server + MODULE).headers["access-control-allow-origin"] == "*"
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving("--memory", env=env, log=tmp_path / "log") as url:
        response = httpx.get(url + MODULE)
    assert response.status_code == 200
    assert "javascript" in response.headers["content-type"]
    assert "access-control-allow-origin" not in response.headers


WHOLE = ("squash", "longest")
AS_DATA = """const shrunk = async (...how) => {
    const reader = new FileReader();
    reader.readAsDataURL(await clip.shrink(...how));
    await new Promise(done => reader.onload = done);
    return reader.result;
};
const blob = await (await fetch(argument)).blob();
"""


def as_image(data_uri: str) -> Image.Image:
    assert data_uri.startswith("data:image/jpeg;base64,")
    return Image.open(io.BytesIO(base64.b64decode(data_uri.partition(",")[2])))


def data_uri(blob: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(blob).decode()}"


@chromium
@pytest.mark.parametrize("size", [(3000, 2000), (2000, 3001), (224, 224), (500, 225), (40, 90)])
def test_shrink_makes_what_clip_looks_at(size, run, demo_engine):
    """The mean difference over all pixels is below 6 levels of 255: JPEG and another filter on smooth waves."""
    picture = saved(photo(60, 60).resize(size, Image.Resampling.BICUBIC), "PNG")
    found = as_image(run(AS_DATA + "return shrunk(blob)", data_uri(picture, "png")))
    assert found.size == (224, 224)
    wanted = decode(picture, demo_engine.manifest.preprocess, None)
    difference = np.abs(np.asarray(found, np.float32) - np.asarray(wanted, np.float32))
    assert difference.mean() < 6


@chromium
@pytest.mark.parametrize("size", [(3000, 500), (200, 301), (40, 90), (900, 2000)])
def test_shrink_makes_all_of_an_image_what_a_model_looks_at_that_reads_it_whole(size, run):
    """As the test above, of both other ways to resize."""
    picture = photo(60, 60).resize(size, Image.Resampling.BICUBIC)
    uri = data_uri(saved(picture, "PNG"), "png")
    squashed, longest = (as_image(run(AS_DATA + f"return shrunk(blob, 224, '{how}')", uri)) for how in WHOLE)
    longer = max(size)
    shape = tuple(round(224 * length / longer) for length in size)
    for found, wanted in ((squashed, (224, 224)), (longest, shape)):
        assert found.size == wanted
        expected = np.asarray(picture.resize(wanted, Image.Resampling.BICUBIC), np.float32)
        assert np.abs(np.asarray(found, np.float32) - expected).mean() < 6


@chromium
def test_embed_shrinks_as_it_is_told(run, demo_engine):
    """By squash the ends of a wide picture change its embedding; the central square has none of them."""
    ends = Image.new("RGB", (1500, 500), "red")
    ends.paste("blue", (400, 0, 1100, 500))
    script = """const blob = await (await fetch(argument)).blob();
        const ways = [{}, { side: 224, resize: "squash" }];
        return Promise.all(ways.map(async way => [...await clip.embed(server, blob, way)]))"""
    plain, squashed = np.float32(run(script, data_uri(saved(ends, "PNG"), "png")))
    wanted = demo_engine.embed_item(saved(ends.resize((224, 224), Image.Resampling.BICUBIC), "PNG"))
    assert vectors.cosine(squashed, wanted) > 0.98 > vectors.cosine(plain, wanted)


@chromium
def test_shrink_averages_every_pixel(run):
    """The mean of 8 x 8 random black or white pixels has a deviation of 255 / 2 / 8 = 16, of 2 x 2 pixels 64."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 2, (1792, 1792), dtype=np.uint8) * 255)
    found = as_image(run(AS_DATA + "return shrunk(blob)", data_uri(saved(noise, "PNG"), "png")))
    assert np.asarray(found.convert("L")).std() < 20


@chromium
def test_shrink_turns_upright_lies_on_white_and_takes_all_kinds_of_images(run):
    exif = Image.Exif()
    exif[0x0112] = 6  # the left half becomes the upper one
    halves = Image.new("RGB", (600, 600), "red")
    halves.paste("blue", (300, 0, 600, 600))
    turned = as_image(
        run(AS_DATA + "return shrunk(blob)", data_uri(saved(halves, "JPEG", exif=exif.tobytes()), "jpeg"))
    )
    assert [turned.getpixel((112, y))[0] > 200 for y in (20, 200)] == [True, False]
    assert [turned.getpixel((x, 20))[0] > 200 for x in (20, 200)] == [True, True]
    clear = as_image(run(AS_DATA + "return shrunk(blob)", data_uri(saved(with_alpha(), "PNG"), "png")))
    assert min(clear.getpixel((0, 0))) > 200
    others = """const bitmap = await createImageBitmap(blob);
    const element = Object.assign(new Image(), {src: argument});
    await element.decode();
    const canvas = Object.assign(document.createElement("canvas"), {width: bitmap.width, height: bitmap.height});
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    return Promise.all([blob, bitmap, element, canvas].map(image => shrunk(image, 64)))"""
    kinds = [as_image(one) for one in run(AS_DATA + others, data_uri(saved(photo(), "PNG"), "png"))]
    assert {kind.size for kind in kinds} == {(64, 64)}
    for kind in kinds[1:]:  # levels of 255: browsers smooth different kinds a little differently
        assert np.abs(np.asarray(kind, np.float32) - np.asarray(kinds[0], np.float32)).mean() < 2


@chromium
def test_noise_too_fits_a_url(run):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 2, (224, 224, 3), dtype=np.uint8) * 255)
    script = AS_DATA + "return (await clip.classify(server, blob, {labels: 'emoji'})).matches.length"
    assert run(script, data_uri(saved(noise, "PNG"), "png")) == 5


@chromium
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_get_and_post_send_the_same_options_and_get_the_same_answer(method, run, demo_engine):
    options = {"labels": ["red", "green", "blue"], "templates": ["the colour {}", "{}"], "k": 2, "method": method}
    script = AS_DATA + f"return clip.classify(server + '/', blob, {json.dumps(options)})"
    answer = run(script, data_uri(saved(Image.new("RGB", (300, 300), "red"), "PNG"), "png"))
    blob = base64.urlsafe_b64decode(answer["vector"] + "==")
    cosines = demo_engine.classifier(options["labels"], options["templates"]).vectors @ vectors.unit(
        vectors.from_blob(blob)
    )
    assert [m["label"] for m in answer["matches"]] == [options["labels"][at] for at in np.argsort(-cosines)[:2]]
    assert answer["matches"][0]["cosine"] == pytest.approx(cosines.max(), abs=2e-6)  # the answer has six digits
    assert answer["unrelated_cosine"] > 0


@chromium
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_refusal_is_an_error_with_its_sentence(method, run):
    script = "return clip.classify(server, 'zzzz', {labels: 'animals', method: argument}).catch(error => [error.name, error.message])"
    assert run(script, method) == [
        "Error",
        "there is no label set 'animals'; there are emoji; llm clip labels bake makes one",
    ]

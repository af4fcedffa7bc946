"""/-/clip/classify as a plain form, over HTTP and without a script."""

from __future__ import annotations

import html
import io
import json
import re
import threading
from urllib.parse import urlencode

import numpy as np
import pytest
from datasette.app import Datasette
from PIL import Image, ImageOps

from datasette_clip.items import FormFields, base64url
from datasette_clip.model import embedding_queue
from datasette_clip.pages import classify
from datasette_clip.paths import CLASSIFY
from drawings import LABELS, drawing
from nasty import photo, saved, turned
from page_forms import LONG, TOO_LONG, bars_in, errors_in, expected_bars, get, hidden_fields_in, jpegs_in, link_in, post

# For the same reason as in test_sql_functions.py.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_a_picture_is_answered_with_the_labels_of_the_engine(datasette, demo_engine):
    response = post(datasette, CLASSIFY, [("heart.png", drawing("heart"))], labels="emoji", k="7")
    assert response.status_code == 200
    [jpeg] = jpegs_in(response.text)
    assert Image.open(io.BytesIO(jpeg)).size == (224, 224)
    assert bars_in(response.text) == expected_bars(demo_engine, demo_engine.label_set("emoji"), jpeg, 7)
    assert 'alt="heart.png, as CLIP looks at it' in response.text
    assert f"The best 7 of {len(demo_engine.label_set('emoji').labels):,} labels" in response.text


def test_labels_are_changed_without_the_file_and_without_embedding_it_again(datasette, demo_engine, monkeypatch):
    first = post(datasette, CLASSIFY, [("heart.png", drawing("heart"))], labels="emoji")
    [jpeg] = jpegs_in(first.text)
    monkeypatch.setattr("datasette_clip.pages.pictures.jpeg_of", None)  # would raise
    again = post(datasette, CLASSIFY, **hidden_fields_in(first.text), labels="emoji", own="\r\n".join(LABELS))
    assert bars_in(again.text) == expected_bars(demo_engine, demo_engine.classifier(LABELS), jpeg)
    assert hidden_fields_in(again.text)["vector"] == hidden_fields_in(first.text)["vector"]
    assert jpegs_in(again.text) == [jpeg]
    assert '<option value="" selected>' in again.text


def test_a_bad_file_leaves_the_picture_that_was_kept_and_says_why(datasette):
    first = post(datasette, CLASSIFY, [("heart.png", drawing("heart"))], labels="emoji")
    second = post(datasette, CLASSIFY, [("notes.txt", b"abc")], **hidden_fields_in(first.text), labels="emoji")
    assert errors_in(second.text)[0].startswith("notes.txt: not an image")
    assert bars_in(second.text) == bars_in(first.text)
    assert hidden_fields_in(second.text) == hidden_fields_in(first.text)
    assert second.text.count('class="clip-picture"') == 1


def test_a_new_file_takes_the_place_of_the_picture_that_was_kept(datasette):
    first = post(datasette, CLASSIFY, [("heart.png", drawing("heart"))], labels="emoji")
    second = post(datasette, CLASSIFY, [("face.png", drawing("face"))], **hidden_fields_in(first.text), labels="emoji")
    alone = post(datasette, CLASSIFY, [("face.png", drawing("face"))], labels="emoji")
    assert bars_in(second.text) == bars_in(alone.text) != bars_in(first.text)
    assert hidden_fields_in(second.text)["name"] == ["face.png"]


@pytest.mark.parametrize(
    ("fields", "chosen", "own"),
    [
        ({}, None, ""),
        ({"labels": ["emoji"]}, "emoji", ""),
        ({"labels": ["emoji"], "own": ["cat"], "shown": [""]}, "", "cat"),  # labels typed after a set was chosen
        (
            {"labels": ["emoji"], "own": ["cat"], "shown": ["cat"]},
            "emoji",
            "cat",
        ),  # a set chosen after labels were typed
        ({"labels": ["emoji"], "own": ["cat\r\ndog"], "shown": ["cat"]}, "", "cat\r\ndog"),
        ({"labels": ["emoji"], "own": ["cat\r\ndog "], "shown": ["cat\ndog"]}, "emoji", "cat\r\ndog "),
        ({"labels": ["emoji"], "own": ["cat\ndog"], "shown": ["cat dog"]}, "", "cat\ndog"),
        ({"labels": [""], "own": ["cat"], "shown": ["cat"]}, "", "cat"),
        ({"labels": ["emoji"], "own": [" \n"]}, "emoji", " \n"),
        ({"labels": ['["cat", "a, b"]']}, "", 'cat\n"a, b"'),  # a permalink
        ({"labels": ["cat", "dog"]}, "", "cat\ndog"),  # as the JSON endpoint takes them
        ({"labels": [""], "own": [" \n"], "shown": ["cat"]}, None, " \n"),  # the typed labels were deleted
    ],
)
def test_the_last_labels_chosen_or_typed_count(fields, chosen, own):
    collected = FormFields(None)
    collected.options = fields
    assert classify.chosen_labels(collected) == {"chosen": chosen, "own": own}


def test_a_refused_request_also_asks_for_garbage_collection(datasette, monkeypatch):
    monkeypatch.setattr("datasette_guard.memory.soon", soon := threading.Event())
    assert post(datasette, CLASSIFY, [("face.png", drawing("face"))], labels="[").status_code == 400
    assert soon.is_set()


def test_as_many_labels_are_shown_as_are_asked_for(datasette):
    page = get(datasette, CLASSIFY + "?k=2000").text
    assert 'value="2000" min="1"' in page
    assert not re.search(r'name="k"[^>]*max=', page)


@pytest.mark.parametrize("labels", ['["cat", "a\\ndog"]', ["cat", "a\ndog"]])
def test_a_label_of_two_lines_is_refused_where_labels_are_lines(labels, datasette):
    page = get(datasette, f"{CLASSIFY}?{urlencode({'labels': labels, 'k': 7, 'own': 'bird'}, doseq=True)}")
    assert page.status_code == 400
    assert errors_in(page.text) == ["label 1 is 'a\\ndog'; on this page a label is a line"]
    assert 'name="k" value="7"' in page.text
    assert "bird</textarea>" in page.text


@pytest.mark.parametrize(
    ("typed", "labels"),
    [
        ("cat, dog", ["cat", "dog"]),
        ("cat,dog\r\nbird\n , ,fish,", ["cat", "dog", "bird", "fish"]),
        ('"Paris, Texas", "cat"\n"a, b"', ["Paris, Texas", "cat", "a, b"]),
        ('the "best" cat, 5" screen', ['the "best" cat', '5" screen']),
        ('"cat, dog', ['"cat', "dog"]),
        ('"a" and "b"', ['"a" and "b"']),
        (" \n,,\n", []),
        (" " * 500_000 + "," * 500_000, []),
        ('"' * 500_000, ['"' * 500_000]),
    ],
)
def test_labels_stand_between_commas_and_lines(typed, labels):
    assert classify.labels_of(typed, 256) == labels


def test_more_labels_than_are_accepted_are_not_all_read():
    assert len(classify.labels_of("a," * 1000, 256)) == 257


@pytest.mark.parametrize("label", ['a "b", c', '"quoted"'])
def test_a_label_that_cannot_be_typed_is_refused(label, datasette):
    page = get(datasette, f"{CLASSIFY}?{urlencode({'labels': json.dumps(['cat', label])})}")
    assert page.status_code == 400
    assert errors_in(page.text) == [f"label 1 is {label!r}; on this page quotation marks are around commas"]


def test_the_prompt_that_is_used_is_shown(datasette, demo_dir):
    heart = [("heart.png", drawing("heart"))]

    def prompt_on(**fields) -> str:
        page = post(datasette, CLASSIFY, heart, **fields).text
        return html.unescape(re.search(r'id="clip-prompt">(.*?)</p>', page)[1])

    assert prompt_on(own="a red heart") == "Each label is read in a prompt: “a photo of a red heart.”"
    assert prompt_on(own="heart, heart") == "Each label is read in a prompt: “a photo of a heart.”"
    templates = json.loads((demo_dir / "labels/emoji.json").read_text())["templates"]
    if len(templates) == 1:
        assert prompt_on() == f"Each label is read in a prompt: “{templates[0].replace('{}', 'red heart')}”"


def test_a_link_holds_the_vector_and_gives_the_same_answer(datasette):
    first = post(datasette, CLASSIFY, [("heart.png", drawing("heart"))], own="\n".join(LABELS), k="2").text
    again = get(datasette, link_in(first, CLASSIFY + r"\?"))
    assert again.status_code == 200
    assert bars_in(again.text) == bars_in(first)
    assert len(bars_in(first)) == 2
    assert len(link_in(first, CLASSIFY + r"\?")) < 4000
    assert hidden_fields_in(again.text)["vector"] == hidden_fields_in(first)["vector"]
    assert jpegs_in(again.text) == [b""]
    assert "Of heart.png only the vector is here." in again.text
    assert "\n".join(LABELS) in again.text


@pytest.mark.parametrize("own", ["", "it's a heart\nit's a face"])
def test_the_sql_of_the_page_gives_the_same_answer(datasette, own):
    page = post(datasette, CLASSIFY, [("heart.png", drawing("heart"))], own=own).text
    link = link_in(page, r"/_memory[^\"]*\?").replace("/_memory?", "/_memory.json?")
    [row] = get(datasette, link + "&_shape=array").json()
    [matches] = (json.loads(value) for value in row.values())
    assert [(m["label"], f"{m['cosine']:.3f}") for m in matches] == [(row[0], row[2]) for row in bars_in(page)]
    sql = html.unescape(re.search(r"<h3>SQL</h3>\n<pre[^>]*>(.*?)</pre>", page, re.DOTALL)[1])
    assert urlencode({"sql": sql}) in link


@pytest.mark.parametrize("metadata", [{"allow_sql": False}, {"databases": {"_memory": {"allow_sql": False}}}])
def test_an_actor_who_may_not_run_sql_gets_no_link_to_it(metadata, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    page = post(Datasette(memory=True, metadata=metadata), CLASSIFY, [("heart.png", drawing("heart"))]).text
    assert bars_in(page)
    assert "sql=" not in page


def test_a_photo_of_a_telephone_is_turned_upright_and_loses_its_exif(datasette):
    [jpeg] = jpegs_in(post(datasette, CLASSIFY, [("turned.jpg", turned())]).text)
    upright = saved(ImageOps.exif_transpose(Image.open(io.BytesIO(turned()))), "PNG")
    [same] = jpegs_in(post(datasette, CLASSIFY, [("upright.png", upright)]).text)
    pixels = [np.asarray(Image.open(io.BytesIO(file)), np.float32) for file in (jpeg, same)]
    # Not 0 levels of 255, because the two are resized along different axes first.
    assert np.abs(pixels[0] - pixels[1]).mean() < 1
    assert not Image.open(io.BytesIO(jpeg)).getexif()


def test_a_jpeg_of_just_what_clip_looks_at_is_kept_as_it_is(datasette, demo_engine):
    side = demo_engine.manifest.preprocess.crop
    sent = saved(photo(side, side), "JPEG", quality=60)
    assert jpegs_in(post(datasette, CLASSIFY, [("small.jpg", sent)]).text) == [sent]
    exif = Image.Exif()
    exif[0x010E] = "at home"
    [kept] = jpegs_in(
        post(datasette, CLASSIFY, [("a.jpg", saved(photo(side, side), "JPEG", exif=exif.tobytes()))]).text
    )
    assert b"at home" not in kept


def test_every_kept_picture_fits_a_url(datasette, demo_engine):
    noise = np.random.default_rng(0).integers(0, 2, (224, 224, 3), dtype=np.uint8) * 255
    as_it_is = saved(Image.fromarray(noise), "JPEG", quality=100)
    assert len(as_it_is) > 100_000
    for name, content in (("noise.png", saved(Image.fromarray(noise), "PNG")), ("noise.jpg", as_it_is)):
        [kept] = hidden_fields_in(post(datasette, CLASSIFY, [(name, content)]).text)["img"]
        assert len(kept) < 55_000  # limits.url_bytes is 60,000


@pytest.mark.long
def test_no_link_is_longer_than_what_is_read_of_one(datasette):
    def page_of(labels: str) -> str:
        return post(datasette, CLASSIFY, [("heart.png", drawing("heart"))], own=labels).text

    assert f'<p class="clip-hint">{TOO_LONG}' not in page_of(LONG)
    assert get(datasette, link_in(page_of(LONG), CLASSIFY + r"\?")).status_code == 200
    long = page_of("\n".join(f"{'ö' * 50}{n}" for n in range(250)))
    assert bars_in(long)
    assert long.count(f'<p class="clip-hint">{TOO_LONG}') == 2
    assert f'href="{CLASSIFY}?' not in long
    assert "sql=" not in long


@pytest.mark.parametrize(
    ("files", "fields", "sentence"),
    [
        ([], {}, "there is no picture yet; choose, drop or paste one"),
        (
            [("notes.txt", b"abc")],
            {},
            "notes.txt: not an image but text (3 bytes); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF",
        ),
        (
            [("empty.png", b"")],
            {},
            "empty.png: not an image (0 bytes); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF",
        ),
        (
            [("a.png", drawing("face"))],
            {"labels": "animals"},
            "there is no label set 'animals'; there are emoji; llm clip labels bake makes one",
        ),
        (
            [("a.png", drawing("face"))],
            {"own": "\n".join(f"label {n}" for n in range(300))},
            "there are more than 256 labels; at most so many are embedded for a request (plugins.datasette-clip.limits.prompts): bake a label set of them",
        ),
        (
            [("a.png", drawing("face"))],
            {"k": "many"},
            "k is 'many'; expected a whole number from 1, of the labels to answer",
        ),
        (
            [],
            {"vector": "zzzz", "img": ""},
            "the picture: a BLOB of 3 bytes is not a vector blob: expected 4 bytes per dimension",
        ),
    ],
)
def test_a_refusal_is_a_sentence_on_the_page_and_nothing_typed_is_lost(files, fields, sentence, datasette):
    typed = {"labels": "emoji", "own": "", "k": "3"} | fields
    response = post(datasette, CLASSIFY, files, **typed)
    assert response.status_code == 400
    assert errors_in(response.text) == [sentence]
    assert f'name="k" value="{typed["k"]}"' in response.text
    assert f">\n{typed['own']}</textarea>" in response.text
    if files and drawing("face") in files[0]:
        assert hidden_fields_in(response.text)["vector"]  # the picture itself was accepted


def test_a_crowded_server_says_so_on_the_page_and_keeps_the_picture(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    metadata = {"plugins": {"datasette-clip": {"limits": {"embedding": 1}}}}
    datasette = Datasette(memory=True, metadata=metadata)
    kept = hidden_fields_in(post(datasette, CLASSIFY, [("heart.png", drawing("heart"))]).text)
    with embedding_queue(datasette).slot():
        response = post(datasette, CLASSIFY, **kept, own="a heart")
        empty = get(datasette, CLASSIFY)
    assert (response.status_code, empty.status_code) == (503, 200)
    assert response.headers["retry-after"] == "1"
    [sentence] = errors_in(response.text)
    assert sentence.endswith("(plugins.datasette-clip.limits.embedding)")
    assert {name: hidden_fields_in(response.text)[name] for name in ("img", "vector")} == {
        n: kept[n] for n in ("img", "vector")
    }
    assert "a heart</textarea>" in response.text
    assert bars_in(post(datasette, CLASSIFY, **kept, own="a heart").text)


@pytest.mark.long
def test_a_model_without_label_sets_takes_labels_of_ones_own(tiny_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tiny_dir))
    datasette = Datasette(memory=True)
    assert '<option value="" selected>' in get(datasette, CLASSIFY).text
    page = post(datasette, CLASSIFY, [("heart.png", drawing("heart"))], labels="", own="a\nb").text
    assert sorted(row[0] for row in bars_in(page)) == ["a", "b"]


def test_none_of_these_is_said_with_what_it_means(datasette, demo_engine):
    """A blue circle fits no label about a yellow face."""
    blue, label = drawing("circle"), "a laughing yellow face with tears of joy"
    page = post(datasette, CLASSIFY, [("blue.png", blue)], own=label).text
    unrelated = demo_engine.classifier([label]).unrelated_cosine
    assert float(bars_in(page)[0][2]) < unrelated
    said = " ".join(re.search(r'id="clip-none">\n<p>(.*?)</p>', page, re.DOTALL)[1].split())
    assert said.startswith(f"<strong>None of these.</strong> The best label's cosine is {bars_in(page)[0][2]}, below ")
    assert f"below {unrelated:.3f}, which is what the best of these labels reaches" in said
    fitting = post(datasette, CLASSIFY, [("heart.png", drawing("heart"))], own="red heart").text
    assert 'id="clip-none"' not in fitting


def test_only_a_jpeg_in_the_hidden_fields_is_shown_again(datasette):
    kept = hidden_fields_in(post(datasette, CLASSIFY, [("heart.png", drawing("heart"))]).text)
    for img in ("zzzz", '"><img src=x>', base64url(drawing("face")), base64url(b"\xff\xd8\xff"), "~0~"):
        page = post(datasette, CLASSIFY, **kept | {"img": img}).text
        assert bars_in(page)
        assert hidden_fields_in(page)["img"] == [img if img == base64url(b"\xff\xd8\xff") else ""]


def test_below_another_path_all_links_stay_below_it(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette(memory=True, settings={"base_url": "/below/"})
    page = post(datasette, CLASSIFY, [("face.png", drawing("face"))]).text
    links = re.findall(r'(?:href|src|action)="(/[^"]*)"', page.split("<footer")[0])
    assert len(links) > 8
    assert all(link.startswith("/below/") for link in links)

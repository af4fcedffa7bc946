"""/-/clip/compare as a plain form, over HTTP and without a script."""

from __future__ import annotations

import csv
import html
import io
import re

import numpy as np
import pytest

from datasette_clip.pages import compare
from datasette_clip.paths import COMPARE
from datasette_clip.static_files import static_files
from drawings import FILES, LABELS
from page_forms import cells_in, cosines, errors_in, get, hidden_fields_in, jpegs_in, link_in, post


def test_a_heat_map_has_the_cosines_of_numpy_and_its_extremes_the_ends_of_the_scale(datasette, demo_engine):
    response = post(datasette, COMPARE, FILES, texts="\r\n".join(LABELS) + "\r\n\r\n")
    assert response.status_code == 200
    wanted = cosines(demo_engine, jpegs_in(response.text), LABELS)
    np.testing.assert_allclose(cells_in(response.text), wanted, atol=0.00051)  # three digits are shown
    shades = re.findall(r"clip-shade-(\d+)[^>]*>(?:<strong>)?(-?[\d.]+)", response.text)
    by_cosine = sorted(shades, key=lambda shade: float(shade[1]))
    assert (by_cosine[0][0], by_cosine[-1][0]) == ("0", "20")
    headers = re.findall(r'<th scope="col">(.*?)</th>', response.text)
    assert headers == ["image", *LABELS]
    assert re.findall(r'<img [^>]*alt="([^"]*)"', response.text) == [name for name, _ in FILES]


def test_texts_are_changed_and_images_added_and_removed_without_sending_any_again(datasette, demo_engine, monkeypatch):
    first = post(datasette, COMPARE, FILES[:2], texts="\n".join(LABELS)).text
    second = post(datasette, COMPARE, FILES[2:], **hidden_fields_in(first), texts="a face").text
    assert hidden_fields_in(second)["name"] == [name for name, _ in FILES]
    assert cells_in(second) == cells_in(post(datasette, COMPARE, FILES, texts="a face").text)
    monkeypatch.setattr("datasette_clip.pages.pictures.jpeg_of", None)  # would raise
    third = post(datasette, COMPARE, **hidden_fields_in(second), texts="a face", remove="1").text
    assert hidden_fields_in(third)["name"] == ["face.png", "circle.png"]
    assert cells_in(third) == [cells_in(second)[0], cells_in(second)[2]]


def test_an_image_that_cannot_be_read_spoils_no_other(datasette):
    response = post(datasette, COMPARE, [FILES[0], ("notes.txt", b"abc"), FILES[1]], texts="a face")
    assert response.status_code == 200
    [sentence] = errors_in(response.text)
    assert sentence.startswith("notes.txt: not an image")
    assert len(cells_in(response.text)) == 2


@pytest.mark.parametrize(
    ("files", "texts", "sentence"),
    [
        ([], "a face", "there is no picture yet; choose, drop or paste some"),
        (
            [("a", b"abc")],
            "a face",
            "a: not an image but text (3 bytes); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF",
        ),
        (
            FILES,
            "\n".join("abcdefghij" * 7),
            "there are more than 64 texts and pictures; at most so many are compared (plugins.datasette-clip.limits.items)",
        ),
        (
            FILES[:1],
            "a\n" + "b" * 1_000_001,
            "line 2: text of 1000001 bytes; at most 1000000 are accepted (plugins.datasette-clip.limits.text_bytes)",
        ),
    ],
)
def test_a_refusal_is_a_sentence_and_no_text_is_lost(files, texts, sentence, datasette):
    response = post(datasette, COMPARE, files, texts=texts)
    assert response.status_code == 400
    assert errors_in(response.text) == [sentence]
    assert f">\n{texts}</textarea>" in response.text


def test_images_may_come_before_texts(datasette):
    response = post(datasette, COMPARE, FILES)
    assert response.status_code == 200
    assert len(hidden_fields_in(response.text)["vector"]) == 3
    assert errors_in(response.text) == []


def luminance(colour: str) -> float:
    """The relative luminance of "#rrggbb", "black" or "white". Source: WCAG 2.2."""
    rgb = np.array(list(bytes.fromhex({"black": "#000000", "white": "#ffffff"}.get(colour, colour)[1:]))) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("shade", range(compare.SHADES))
def test_every_number_of_the_heat_map_can_be_read(shade):
    """WCAG 2.2 requires a contrast of 4.5 for text."""
    css = static_files().contents["clip.css"].decode()
    [(background, ink)] = re.findall(rf"\.clip-shade-{shade} {{ background: (#\w+); color: (\w+); }}", css)
    darker, lighter = sorted(map(luminance, (background, ink)))
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def test_one_image_and_one_text_make_a_table_too(datasette):
    assert len(cells_in(post(datasette, COMPARE, FILES[:1], texts="a face").text)) == 1


def test_a_link_restores_the_table_without_the_pictures(datasette):
    first = post(datasette, COMPARE, FILES, texts="\n".join(LABELS)).text
    link = link_in(first, COMPARE + r"\?")
    assert len(link) < 3 * 3000 + 200
    again = get(datasette, link).text
    assert cells_in(again) == cells_in(first)
    assert hidden_fields_in(again)["vector"] == hidden_fields_in(first)["vector"]
    assert re.findall(r"<span data-without[^>]*>(.*?)</span>", again) == [name for name, _ in FILES]
    assert "data-without" not in first


def test_a_table_that_is_too_long_for_a_link_says_so(datasette):
    page = post(datasette, COMPARE, FILES * 10, texts="a face").text
    assert len(cells_in(page)) == 30
    assert f'href="{COMPARE}?' not in page
    assert "So many pictures are too long for a link." in page


def test_the_table_is_csv_too(datasette, demo_engine):
    texts = ["a face", 'a "red", heart']
    page = post(datasette, COMPARE, FILES, texts="\n".join(texts)).text
    text = html.unescape(re.search(r'<pre id="clip-csv"[^>]*>(.*?)</pre>', page, re.DOTALL)[1])
    header, *rows = csv.reader(io.StringIO(text))
    assert header == ["image", *texts]
    assert [row[0] for row in rows] == [name for name, _ in FILES]
    found = [[float(cell) for cell in row[1:]] for row in rows]
    np.testing.assert_allclose(found, cosines(demo_engine, jpegs_in(page), texts), atol=1e-6)

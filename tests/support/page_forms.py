"""Sends the forms of the pages as a browser without a script does, and reads the pages that come back.

Browser tests read their pages with the same functions.
"""

from __future__ import annotations

import asyncio
import base64
import html
import re

import httpx
import numpy as np
from datasette.app import Datasette

from llm_clip_onnx import zero_shot

TOO_LONG = "These labels with this picture are too long for a link."
LONG = "\n".join(f"{'long ' * 10}{n}" for n in range(250))  # 15,000 of the 60,000 bytes of a URL


def call(datasette: Datasette, method: str, path: str, **options) -> httpx.Response:
    async def request() -> httpx.Response:
        return await datasette.client.request(method, path, **options)

    return asyncio.run(request())


def get(datasette: Datasette, path: str, **options) -> httpx.Response:
    return call(datasette, "GET", path, **options)


def post(datasette: Datasette, path: str, files=(), **fields) -> httpx.Response:
    """The response to a form that a browser without a script sends. `files` are (name, bytes)."""
    parts = [("image", (name, content)) for name, content in files] or [("image", ("", b""))]
    return call(datasette, "POST", path, data=fields, files=parts)


# Read from the HTML of a page


def bars_in(page: str) -> list[tuple[str, str, str]]:
    """Label, probability and cosine of each bar, as the page prints them."""
    rows = re.findall(
        r'<tr><th scope="row">(.*?)</th><td class="clip-bar".*?</td>'
        r'<td class="clip-number">(.*?)</td><td class="clip-number">(.*?)</td></tr>',
        page,
    )
    return [tuple(html.unescape(cell) for cell in row) for row in rows]


def cells_in(page: str) -> list[list[float]]:
    """The cosines of a heat map, row by row."""
    body = page.split("<tbody>")[1].split("</tbody>")[0]
    return [
        [float(cell) for cell in re.findall(r"<td[^>]*>(?:<strong>)?(-?[\d.]+)", row)]
        for row in body.split("</tr>")[:-1]
    ]


def hidden_fields_in(page: str) -> dict[str, list[str]]:
    """The values of each hidden field of the form, by name."""
    fields: dict[str, list[str]] = {}
    for name, value in re.findall(r'<input type="hidden" form="clip-form" name="(\w+)" value="([^"]*)">', page):
        fields.setdefault(name, []).append(html.unescape(value))
    return fields


def errors_in(page: str) -> list[str]:
    return [
        html.unescape(sentence) for sentence in re.findall(r'<p class="message-error" role="alert">(.*?)</p>', page)
    ]


def link_in(page: str, pattern: str) -> str:
    """The first link of the page that begins with a pattern."""
    return html.unescape(re.search(rf'href="({pattern}[^"]*)"', page)[1])


def jpegs_in(page: str) -> list[bytes]:
    """The small JPEGs that the form carries."""
    return [base64.urlsafe_b64decode(img + "=" * (-len(img) % 4)) for img in hidden_fields_in(page)["img"]]


# Expected from the engine


def expected_bars(engine, classifier, jpeg: bytes, k: int = 5) -> list[tuple[str, str, str]]:
    """The bars that the page must show for a JPEG."""
    facts = engine.manifest
    matches = zero_shot.classify(classifier, engine.embed_item(jpeg), facts.logit_scale, k, facts.logit_bias)
    percent = [f"{100 * m.probability:.1f} %" if m.probability >= 0.0005 else "< 0.1 %" for m in matches]
    return [(m.label, p, f"{m.cosine:.3f}") for m, p in zip(matches, percent)]


def cosines(engine, jpegs: list[bytes], texts: list[str]) -> np.ndarray:
    """Cosines by plain numpy: [images, texts] float64."""
    images = np.stack([engine.embed_item(jpeg) for jpeg in jpegs]).astype(np.float64)
    words = engine.embed_text(texts).astype(np.float64)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    return images @ words.T

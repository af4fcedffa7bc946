"""Image bytes in a string, so that a GET can carry an image: base64url, base64, a data URI, hexadecimal digits."""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote_to_bytes

from llm_clip_onnx.errors import InputError

HEX = re.compile(r"[0-9a-fA-F]+")  # a group of two would take 60 bytes of memory for each
BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
DATA_URI = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"BM")
UNFOLDED = str.maketrans({"-": "+", "_": "/", " ": "+", "\n": None, "\r": None, "\t": None})  # a + in a URL is a space


def bytes_of(text: str) -> bytes:
    """The bytes that a string holds, of an image or whatever. Raises InputError where it is none of the four.

    Base64 may lack its padding and be folded into lines, and a + that a form made a space counts as one.
    """
    if not isinstance(text, str):
        raise InputError(f"{type(text).__name__} is not a string; expected base64url, base64, a data URI or hex digits")
    if head := DATA_URI.match(text):
        body = text[head.end() :]
        if not head[0][:-1].lower().endswith(";base64"):
            return unquote_to_bytes(body)
        text = body.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=")
    text = text.strip()
    if len(text) % 2 == 0 and HEX.fullmatch(text):
        return bytes.fromhex(text)
    digits = text.translate(UNFOLDED)
    if not BASE64.fullmatch(digits) or len(digits.rstrip("=")) % 4 == 1:
        raise InputError(
            f"a string of {len(text)} characters is no image; expected base64url, base64, a data URI or hex digits"
        )
    return base64.b64decode(digits.rstrip("=") + "=" * (-len(digits.rstrip("=")) % 4))


def is_image(blob: bytes) -> bool:
    """Whether bytes begin as an image and can be opened as one: a vector blob may happen to do the first."""
    from llm_clip_onnx.images.preprocess import open_image  # here: Datasette's start does not wait for Pillow

    if not blob.startswith(SIGNATURES) and blob[4:8] != b"ftyp":
        return False
    try:
        open_image(blob)
    except InputError:
        return False
    return True

"""Inputs that have broken other CLIP servers: texts, and images made in code."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

TEXTS = [
    "", " ", "Hello World!", "hello world", "a photo of a cat", "purple and gold", "UPPER lower MiXeD", "  spaces \t\n tabs  ",
    "&amp;amp; &lt;b&gt; &quot;", "<|endoftext|>", "a <|endoftext|> b", "<|startoftext|><|startoftext|>", "can't won't they'll I'd we've",
    "🦄", "👩‍👩‍👧‍👦 family", "🇨🇭 flag", "猫の写真", "Füßgänger naïve café", "nai\u0308ve combining", "ﬁ ligature ½ ² №", "Ⅷ ① ٣",
    "İstanbul ISTANBUL ı", "zero\u200bwidth\u00a0nbsp\u3000ideographic", "a\x00b\x01c", "tab\x0bvertical\x0cfeed\x85next", "...!!!???",
    "1234567890", "x" * 300, "word " * 200, "antidisestablishmentarianism", "e\u0301\u0301\u0301", "\ufeffbom", "\ufffd replacement",
    "مرحبا بالعالم", "नमस्ते", "שלום", "ไทย", "𝕞𝕒𝕥𝕙 𝓼𝓬𝓻𝓲𝓹𝓽", "'s 't 're", "don''t", "a" * 76, "a " * 75, "a " * 76, "a " * 77, "\u2028line\u2029para",
]  # fmt: skip


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(width: int = 90, height: int = 60) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(x / 7) * np.cos(y / 5), np.sin((x + y) / 9), np.cos(x * y / 400)]
    return Image.fromarray((np.stack(waves, -1) * 127 + 128).astype(np.uint8))


def deep_grey() -> Image.Image:
    """16-bit grey, most of it above 255."""
    return Image.fromarray((np.mgrid[0:50, 0:70].sum(0) * 500).astype(np.uint16))


def with_alpha() -> Image.Image:
    image = photo().convert("RGBA")
    image.putalpha(Image.fromarray((np.mgrid[0:60, 0:90][1] * 255 // 89).astype(np.uint8)))
    return image


def animation() -> bytes:
    frames = [photo(), Image.new("RGB", (90, 60), "red")]
    return saved(frames[0].convert("P"), "GIF", save_all=True, append_images=[f.convert("P") for f in frames[1:]])


def turned() -> bytes:
    """A JPEG whose EXIF says to turn it by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(photo(), "JPEG", exif=exif.tobytes(), quality=95)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, packed: bytes, *chunks: bytes, interlaced=0) -> bytes:
    """A PNG of compressed image data and chunks. Colour types: 0 (grey), 2 (RGB), 3 (palette), 4 (LA) and 6 (RGBA)."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *chunks, chunk(b"IDAT", packed), chunk(b"IEND", b"")])


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims this size."""
    return png(width, height, 8, 2, zlib.compress(b"\0" * 100))


def images() -> dict[str, bytes]:
    """Images that must be accepted and decoded as llm-clip decodes them."""
    palette = photo().convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    return {
        "1x1": saved(Image.new("RGB", (1, 1), "teal"), "PNG"),
        "2x3": saved(photo(2, 3), "PNG"),
        "rgb": saved(photo(), "PNG"),
        "upright": saved(photo(61, 97), "PNG"),
        "as small as the crop": saved(photo(32, 32), "PNG"),
        "one pixel more": saved(photo(33, 32), "PNG"),
        "wide": saved(photo(400, 40), "PNG"),
        "palette": saved(palette, "PNG"),
        "palette with transparency": saved(palette, "PNG", transparency=3),
        "rgba": saved(with_alpha(), "PNG"),
        "grey": saved(photo().convert("L"), "PNG"),
        "grey and alpha": saved(with_alpha().convert("LA"), "PNG"),
        "one bit": saved(photo().convert("1"), "PNG"),
        "16-bit grey": saved(deep_grey(), "PNG"),
        "cmyk": saved(photo().convert("CMYK"), "JPEG", quality=95),
        "turned by exif": turned(),
        "animation": animation(),
        "webp": saved(photo(), "WEBP", lossless=True),
        "bmp": saved(photo(), "BMP"),
    }


def broken() -> dict[str, bytes]:
    """Bytes that are not a readable image, or exceed the limits. Each must be refused with a sentence."""
    png, jpeg = saved(photo(), "PNG"), saved(photo(300, 200), "JPEG")
    return {
        "no bytes": b"",
        "three bytes": b"abc",
        "text": b"<html>this is no image</html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "postscript, which Pillow gives to another program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
        "pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
        "only a signature": png[:8],
        "truncated png": png[: len(png) // 2],
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "damaged png": png[:60] + bytes(40) + png[100:],
        "12000 x 12000": png_claiming(12_000, 12_000),
        "1 x 2,000,000,000": png_claiming(1, 2_000_000_000),
        "0 x 10": png_claiming(0, 10),
        "a header and no data": png_claiming(100, 100),
    }

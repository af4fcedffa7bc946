"""Image files meant to break a server, made in code: `python tests/support/hostile.py FOLDER` writes them to a folder.

The files of `readable` must give an embedding, those of `refused` one sentence, all in little memory and time.
"""

from __future__ import annotations

import functools
import io
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image, ImageCms

import tiffs
from nasty import animation, chunk, deep_grey, photo, png, png_claiming, saved, with_alpha

SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by a PNG's colour type


def packed(row: bytes, height: int) -> bytes:
    """Compressed image data of a PNG whose rows are all the same, made without the memory for all of them."""
    packing, hundred = zlib.compressobj(1), row * 100
    parts = [packing.compress(hundred) for _ in range(height // 100)] + [packing.compress(row * (height % 100))]
    return b"".join(parts) + packing.flush()


def big_png(side: int, depth: int, colour: int, kind: int = 4) -> bytes:
    """A square PNG whose rows have the filter type `kind`: 0 is none, 4 is the slowest to undo."""
    size = (side * SAMPLES[colour] * depth + 7) // 8
    palette = [chunk(b"PLTE", bytes(range(6)))] if colour == 3 else []
    row = bytes([kind]) + (bytes(range(0, 100, 3)) * (size // 34 + 1))[:size]
    if colour == 3:
        row = bytes(size + 1)
    return png(side, side, depth, colour, packed(row, side), *palette)


def big_photo(side: int) -> Image.Image:
    tile, image = photo(500, 500), Image.new("RGB", (side, side))
    for at in range((side + 499) // 500 * ((side + 499) // 500)):
        image.paste(tile, (at % ((side + 499) // 500) * 500, at // ((side + 499) // 500) * 500))
    return image


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, len(mode))
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def random_filter_types(size: int) -> bytes:
    """Random bytes from 0 to 4: valid image data of any PNG, because a row's filter type is 0 to 4."""
    return np.random.default_rng(0).integers(0, 5, size, np.uint8).tobytes()


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def frames(kind: str, **options) -> bytes:
    return saved(photo(), kind, save_all=True, append_images=[Image.new("RGB", (90, 60), "red")] * 3, **options)


def ycck() -> bytes:
    """A CMYK JPEG whose Adobe marker says that its first three channels are YCbCr."""
    jpeg = saved(photo().convert("CMYK"), "JPEG")
    at = jpeg.index(b"Adobe") + 11
    return jpeg[:at] + b"\2" + jpeg[at + 1 :]


def run_length_bmp(width: int, height: int, codes: bytes) -> bytes:
    """A BMP of 8 bits a pixel in a palette of two colours, run-length coded."""
    palette = bytes([0, 0, 0, 0, 200, 100, 50, 0])
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(codes), 0, 0, 2, 0) + palette
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(codes), 0, 0, 14 + len(header)) + header + codes


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.txt", "a" * 1000)
    return stream.getvalue()


def many_scans() -> bytes:
    """A progressive JPEG with its last scan two thousand times more."""
    jpeg = saved(photo(60, 40), "JPEG", progressive=True)
    return jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * 2000 + jpeg[-2:]


def split(png_: bytes, size: int) -> bytes:
    """The same PNG with its image data in chunks of `size` bytes."""
    start = png_.index(b"IDAT")
    length = int.from_bytes(png_[start - 4 : start], "big")
    content = png_[start + 4 : start + 4 + length]
    parts = [chunk(b"IDAT", content[at : at + size]) for at in range(0, length, size)]
    return png_[: start - 4] + b"".join(parts) + png_[start + 8 + length :]


def heic(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=40, enc_params={"preset": "ultrafast"}, **options)
    return stream.getvalue()


def two_heics() -> bytes:
    stream, file = io.BytesIO(), pillow_heif.from_pillow(photo(300, 200))
    file.add_from_pillow(Image.new("RGB", (300, 200), "red"))
    file.save(stream)
    return stream.getvalue()


def before_data(png_: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks before its image data."""
    at = png_.index(b"IDAT") - 4
    return png_[:at] + b"".join(chunks) + png_[at:]


def wrong(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG with a wrong checksum."""
    return chunk(kind, content)[:-4] + b"oops"


def ancillary() -> dict[str, bytes]:
    """Images whose pixels are well, with something wrong or too much of something beside them."""
    png_, jpeg, gif = saved(photo(), "PNG"), saved(photo(300, 200), "JPEG"), saved(photo().convert("P"), "GIF")
    bomb, inflates = zlib.compress(bytes(100_000_000)), zlib.compress(b"a" * 2_000_000)
    many_tags = (
        b"MM\0*\0\0\0\x08"
        + struct.pack(">H", 5000)
        + b"".join(struct.pack(">HHII", 0x1000 + n, 7, 50_000, 8) for n in range(5000))
    )
    exif = b"Exif\0\0" + many_tags.ljust(65_000, b"\0")
    warned = {
        f"wrong-checksum-{kind.decode()}.png": before_data(png_, wrong(kind, content))
        for kind, content in (
            (b"tEXt", b"parameters\0steps"),
            (b"zTXt", b"a\0\0" + inflates),
            (b"iTXt", b"a\0\0\0\0\0b"),
            (b"iCCP", b"a\0\0" + inflates),
            (b"eXIf", exif_of(6)[6:]),
            (b"gAMA", bytes(4)),
            (b"pHYs", bytes(9)),
            (b"tIME", bytes(7)),
            (b"prVt", b"private"),
        )
    }
    return warned | {
        "parameters-of-2mb.png": before_data(png_, chunk(b"zTXt", b"parameters\0\0" + inflates)),
        "itxt-of-2mb.png": before_data(png_, chunk(b"iTXt", b"prompt\0\1\0\0\0" + inflates)),
        "itxt-bomb.png": before_data(png_, chunk(b"iTXt", b"prompt\0\1\0\0\0" + bomb)),
        "private-9mb.png": before_data(png_, chunk(b"prVt", bytes(9_000_000))),
        "text-after-data.png": png_[:-12] + wrong(b"zTXt", b"a\0\0" + inflates) + png_[-12:],
        "exif-9mb.png": before_data(png_, chunk(b"eXIf", many_tags.ljust(9_000_000, b"\0"))),
        "exif-of-many-tags.jpg": saved(photo(), "JPEG", exif=exif),
        "icc-cut.jpg": jpeg[:2] + b"\xff\xe2\0\x20ICC_PROFILE\0\1\5" + bytes(16) + jpeg[2:],
        "app13-9mb.jpg": jpeg[:2] + (b"\xff\xed\xff\xff" + b"Photoshop 3.0\0".ljust(65_533, b"\0")) * 137 + jpeg[2:],
        "two-pictures.jpg": saved(photo(300, 200), "MPO", save_all=True, append_images=[photo(300, 200)]),
        "xmp.webp": saved(photo(), "WEBP", xmp=bytes(3_000_000)),
        "comment.gif": gif[:13 + 768] + b"\x21\xfe\xff" + bytes(255) + b"\0" + gif[13 + 768:],
        "data-after-the-end.jpg": jpeg + bytes(5_000_000),
        "data-after-the-end.gif": gif + bytes(100_000),
    }  # fmt: skip


def heics() -> dict[str, bytes]:
    """HEICs that are read on a server."""
    return {
        "11mp-tiled.heic": heic(big_photo(3360), tile_size=512),
        "11mp.heic": heic(big_photo(3330)),
        "8mp-alpha.heic": heic(big_photo(2800).convert("RGBA")),
        "two.heic": two_heics(),
        "turned.heic": heic(photo(300, 200), exif=exif_of(6)),
    }


@functools.cache
def readable() -> dict[str, bytes]:
    """Odd, large and long files that are valid images within the limits."""
    return small() | large()


@functools.cache
def small() -> dict[str, bytes]:
    """The files of `readable` that take little time to make."""
    rgb, jpeg, gif = saved(photo(), "PNG"), saved(photo(300, 200), "JPEG"), saved(photo().convert("P"), "GIF")
    palette = photo().convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    start, profile = rgb.index(b"IDAT") - 4, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    bomb = zlib.compress(bytes(100_000_000))
    files = {f"{width}x{height}.png": saved(Image.new("RGB", (width, height), "red"), "PNG")
             for width, height in ((1, 1), (1, 5000), (5000, 1), (1, 20_000), (20_000, 1), (1, 60_000), (60_000, 1))}  # fmt: skip
    files |= {f"turned-{n}.jpg": saved(photo(), "JPEG", exif=exif_of(n)) for n in (3, 5, 6, 8, 99)}
    return files | ancillary() | tiffs.readable() | {
        "run-length.bmp": run_length_bmp(900, 900, b"\xff\1\xff\0\xff\1\x87\1\0\0" * 900 + b"\0\1"),
        "palette.png": saved(palette, "PNG"),
        "palette-transparency.png": saved(palette, "PNG", transparency=3),
        "rgba.png": saved(with_alpha(), "PNG"),
        "16-bit-grey.png": saved(deep_grey(), "PNG"),
        "16-bit-rgb.png": png(40, 30, 16, 2, zlib.compress((b"\4" + bytes(range(240))) * 30)),
        "1-bit.png": saved(photo().convert("1"), "PNG"),
        "cmyk.jpg": saved(photo().convert("CMYK"), "JPEG"),
        "ycck.jpg": ycck(),
        "animation.gif": animation(),
        "animation.webp": frames("WEBP"),
        "animation.png": frames("PNG"),
        "exif-broken.jpg": saved(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        "profile.jpg": saved(photo(), "JPEG", icc_profile=profile),
        "profile-broken.jpg": saved(photo(), "JPEG", icc_profile=b"this is none"),
        "profile-broken.png": rgb[:start] + chunk(b"iCCP", b"a\0\0not zlib") + rgb[start:],
        "profile-bomb.png": rgb[:start] + chunk(b"iCCP", b"a\0\0" + bomb) + rgb[start:],
        "text-bomb.png": rgb[:start] + chunk(b"zTXt", b"a\0\0" + bomb) + rgb[start:],
        "text-bombs.png": rgb[:start] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000))) * 60 + rgb[start:],
        "text-9mb.png": rgb[:start] + chunk(b"tEXt", b"a\0" + b"b" * 9_000_000) + rgb[start:],
        "comments-9mb.jpg": jpeg[:2] + (b"\xff\xfe\xff\xff" + bytes(65_533)) * 137 + jpeg[2:],
        "data-after-the-end.png": rgb + bytes(5_000_000),
        "too-much-image-data.png": png(90, 60, 8, 2, zlib.compress(bytes(60 * 271) + bytes(100_000_000))),
        "chunks-of-1-byte.png": split(saved(photo(), "PNG"), 1),
        "wrong-checksum.png": rgb[:-16] + b"abcd" + rgb[-12:],
        "jpeg-and-zip.jpg": jpeg + zipped(),
        "jpeg-holding-pdf.jpg": jpeg[:2] + b"\xff\xfe\0\x0b%PDF-1.4\n" + jpeg[2:],
        "gif-and-script.gif": gif + b"*/=1;alert(1)//",
        "really-a-jpeg.png": jpeg,
    }  # fmt: skip


def large() -> dict[str, bytes]:
    """The files of `readable` that take 15 s to make: large ones, and HEICs."""
    files = {f"25mp-{name}.png": big_png(5000, depth, colour) for name, depth, colour in (
        ("rgb", 8, 2), ("grey-alpha", 8, 4), ("grey", 8, 0), ("palette", 8, 3), ("1-bit", 1, 0),
        ("1-bit-palette", 1, 3), ("16-bit-grey", 16, 0), ("16-bit-rgb", 16, 2))}  # fmt: skip
    return files | heics() | {
        "18mp-rgba.png": big_png(4240, 8, 6),
        "18mp-16-bit-rgba.png": big_png(4240, 16, 6),
        "18mp-rgba-solid.png": saved(Image.new("RGBA", (4240, 4240), "teal"), "PNG", compress_level=1),
        "25mp-rgb-solid.png": saved(Image.new("RGB", (5000, 5000), "teal"), "PNG", compress_level=1),
        "25mp-wide.png": png(100_000, 250, 8, 2, packed(b"\4" + bytes(300_000), 250)),
        "25mp-tall.png": png(250, 100_000, 8, 2, packed(b"\4" + bytes(range(75)) * 10, 100_000)),
        "25mp.jpg": saved(big_photo(5000), "JPEG"),
        "25mp-cmyk.jpg": saved(Image.new("CMYK", (5000, 5000)), "JPEG"),
        "25mp-long.jpg": saved(Image.new("RGB", (65_500, 381)), "JPEG"),
        "13mp-progressive.jpg": saved(big_photo(3610), "JPEG", progressive=True),
        "25mp.gif": saved(Image.new("P", (5000, 5000)), "GIF"),
        "7mp-noise.gif": saved(noise(2650, 2650).convert("L"), "GIF"),
        "7mp-interlaced.png": png(2730, 2730, 8, 2, zlib.compress(random_filter_types(8191 * 2740), 1), interlaced=1),
        "10mp.bmp": saved(Image.new("P", (3100, 3100)), "BMP"),
        "1mp-noise.webp": saved(noise(1000, 990, "RGBA"), "WEBP", lossless=True, method=0),
        "2mp-lossless.webp": saved(big_photo(1448), "WEBP", lossless=True, method=0),
        "2mp-lossy.webp": saved(big_photo(1448), "WEBP", method=0),
        "2mp-exif.webp": saved(big_photo(1448), "WEBP", method=0, exif=bytes(3_300_000)),
        "2mp.avif": saved(big_photo(1448).convert("RGBA"), "AVIF", speed=10, subsampling="4:4:4"),
    }  # fmt: skip


@functools.cache
def refused() -> dict[str, bytes]:
    """Files that are not an image, only part of one, or an image above the limits."""
    whole, jpeg = saved(photo(300, 200), "PNG"), saved(photo(300, 200), "JPEG")
    gif = saved(photo().convert("P"), "GIF")
    files = {f"cut-{n}.png": whole[: len(whole) * n // 10] for n in range(1, 10)}
    files |= {f"cut-{n}.jpg": jpeg[: len(jpeg) * n // 10] for n in range(1, 10)}
    return files | tiffs.refused() | {
        "12mp-in-one-piece.heic": heic(big_photo(3492)),
        "12mp-tiled.heic": heic(big_photo(3492), tile_size=512),
        "24mp.heic": heic(big_photo(4900), tile_size=512),
        "12mp-alpha.heic": heic(big_photo(3492).convert("RGBA")),
        "cut.heic": heic(photo(300, 200))[:600],
        "only-a-brand.heic": b"\0\0\0\x18ftypheic" + bytes(3000),
        "nothing.png": b"",
        "garbage.jpg": bytes(range(256)) * 40,
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        "page.html": b"<!doctype html><script>alert(1)</script>",
        "script.gif": b"GIF89a=1;alert(1)",
        "pdf-and-jpeg.pdf": b"%PDF-1.4\n" + jpeg,
        "archive.zip": zipped(),
        "drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
        "12000x12000.png": png(12_000, 12_000, 8, 2, packed(bytes(36_001), 12_000)),
        "claims-25mp.png": png_claiming(5000, 5000),
        "claims-2-billion.png": png_claiming(1, 2_000_000_000),
        "claims-nothing.png": png_claiming(0, 10),
        "25mp-rgba.png": big_png(5000, 8, 6),
        "25mp-cut.png": big_png(5000, 8, 2)[:300_000],
        "25mp-no-such-filter.png": big_png(5000, 8, 2, kind=9),
        "25mp-not-zlib.png": png(5000, 5000, 8, 2, bytes(range(256)) * 100),
        "25mp-interlaced.png": png(5000, 5000, 8, 2, packed(bytes(15_001), 5010), interlaced=1),
        "25mp-long.png": png(250_000, 100, 8, 2, packed(bytes(750_001), 100)),
        "25mp-progressive.jpg": saved(Image.new("RGB", (5000, 5000)), "JPEG", progressive=True),
        "25mp-noise-cut.jpg": saved(noise(5000, 5000), "JPEG", quality=20)[:3_000_000],
        "25mp.webp": saved(Image.new("RGB", (5000, 5000)), "WEBP", lossless=True, method=0),
        "2mp-noise.webp": saved(noise(1448, 1448, "RGBA"), "WEBP", lossless=True, method=0),
        "25mp.avif": saved(Image.new("RGB", (5000, 5000)), "AVIF", speed=10),
        "25mp-run-length.bmp": run_length_bmp(5000, 5000, b"\0\0" * 5000),
        "run-length-standing-still.bmp": run_length_bmp(900, 900, b"\xff\1" * 4_000_000),
        "scans.jpg": many_scans(),
        "segments.jpg": jpeg[:2] + b"\xff\xfe\0\2" * 2_000_000 + jpeg[2:],
        "stray-bytes.jpg": jpeg[:2] + b"\xff\xe0\0\2" + bytes(9_000_000) + jpeg[2:],
        "comments.gif": gif[:13] + b"\x21\xfe" + (b"\xff" + bytes(255)) * 35_000 + b"\0" + gif[13:],
        "chunks.png": whole[:33] + chunk(b"IDAT", b"") * 700_000 + whole[33:],
    }  # fmt: skip


def hostile() -> dict[str, bytes]:
    """The files of `readable` and `refused`, by name."""
    return readable() | refused()


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in hostile().items():
        (folder / name).write_bytes(content)


if __name__ == "__main__":
    write(Path(sys.argv[1]))

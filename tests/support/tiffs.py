"""TIFFs made in code, by Pillow and by hand: every compression, tiles, planes, deep samples, and claims without end."""

from __future__ import annotations

import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

from nasty import deep_grey, photo, saved

SHORT, LONG, LONG8 = 3, 4, 16
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, SAMPLES, ROWS, SIZES, PLANAR = (
    256, 257, 258, 259, 262, 273, 277, 278, 279, 284)  # fmt: skip
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_SIZES = 322, 323, 324, 325
DEFLATE, RAW = 8, 1


def tiff(
    tags: dict[int, tuple[int, list[int]]], parts: list[bytes], offsets: int = OFFSETS, big: bool = False
) -> bytes:
    """A TIFF of one page by hand. tags: number -> type and values. The places of `parts` go into the tag `offsets`."""
    head = b"II+\0\x08\0\0\0" if big else b"II*\0"
    start = len(head) + (8 if big else 4)
    places = [start + sum(map(len, parts[:n])) for n in range(len(parts))]
    tags = tags | {offsets: (LONG, places), offsets + (1 if offsets == TILE_OFFSETS else 6): (LONG, [*map(len, parts)])}
    data = b"".join(parts)
    values_at = start + len(data)
    values, entries = b"", b""
    for number, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == SHORT else 'I'}", *numbers)
        room = 8 if big else 4
        if len(packed) > room:
            entry, values = struct.pack("<Q" if big else "<I", values_at + len(values)), values + packed
        else:
            entry = packed.ljust(room, b"\0")
        entries += struct.pack("<HHQ" if big else "<HHI", number, kind, len(numbers)) + entry
    directory = struct.pack("<Q" if big else "<H", len(tags)) + entries + bytes(8 if big else 4)
    return head + struct.pack("<Q" if big else "<I", values_at + len(values)) + data + values + directory


def page(
    width: int, height: int, samples: int = 3, bits: int = 8, **more: list[int]
) -> dict[int, tuple[int, list[int]]]:
    """The tags of a page in deflate, but for where its parts are."""
    return {
        WIDTH: (LONG, [width]), LENGTH: (LONG, [height]), BITS: (SHORT, [bits] * samples), COMPRESSION: (SHORT, [DEFLATE]),
        PHOTOMETRIC: (SHORT, [2 if samples == 3 else 1]), SAMPLES: (SHORT, [samples]), ROWS: (LONG, [height]),
    }  # fmt: skip


def tiled(side: int, tile: int) -> bytes:
    tags = page(side, side) | {TILE_WIDTH: (LONG, [tile]), TILE_LENGTH: (LONG, [tile])}
    del tags[ROWS]
    across = -(-side // tile)
    return tiff(tags, [zlib.compress(bytes(range(0, 192, 2)) * (tile * tile // 32), 1)] * across**2, TILE_OFFSETS)


def planar(side: int) -> bytes:
    return tiff(
        page(side, side) | {PLANAR: (SHORT, [2])}, [zlib.compress(bytes([n]) * side**2, 1) for n in (10, 90, 200)]
    )


def grey_strips(width: int, height: int, rows: int) -> bytes:
    strip = zlib.compress(bytes(range(250)) * (width * rows // 250), 1)
    tags = page(width, height, 1) | {ROWS: (LONG, [rows])}
    return tiff(tags, [strip] * (height // rows))


def colour_strips(width: int, height: int, rows: int) -> bytes:
    strip = zlib.compress(bytes(range(250)) * (3 * width * rows // 250), 1)
    tags = page(width, height) | {ROWS: (LONG, [rows])}
    return tiff(tags, [strip] * (height // rows))


def pages(count: int) -> bytes:
    others = [Image.new("RGB", (90, 60), "red")] * (count - 1)
    return saved(photo(), "TIFF", save_all=True, append_images=others, compression="tiff_lzw")


@cache
def readable() -> dict[str, bytes]:
    """TIFFs of which the first page is read on a server."""
    colour, grey, ink = photo(300, 200), photo(300, 200).convert("L"), photo(300, 200).convert("1")
    files = {f"{name}.tif": saved(colour, "TIFF", compression=name) for name in
             ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")}  # fmt: skip
    files |= {f"{name}.tif": saved(ink, "TIFF", compression=name) for name in ("group3", "group4", "tiff_ccitt")}
    return files | {
        "3mp-raw.tif": saved(Image.new("RGB", (1800, 1800), "teal"), "TIFF"),
        "12mp-colour-strips.tif": colour_strips(3500, 3500, 50),
        "8mp-colour-one-strip.tif": colour_strips(2700, 2700, 2700),
        "12mp-tiled.tif": tiled(3500, 256),
        "9mp-planar.tif": planar(3000),
        "25mp-grey.tif": grey_strips(5000, 5000, 50),
        "25mp-group4.tif": saved(Image.new("1", (5000, 5000)), "TIFF", compression="group4"),
        "6mp-jpeg.tif": saved(photo(500, 500).resize((2450, 2450)), "TIFF", compression="jpeg", quality=80),
        "9mp-lzw.tif": saved(Image.new("RGB", (3000, 3000), "teal"), "TIFF", compression="tiff_lzw"),
        "16-bit.tif": saved(deep_grey(), "TIFF"),
        "16-bit-lzw.tif": saved(deep_grey(), "TIFF", compression="tiff_lzw"),
        "16-bit-colour.tif": tiff(page(40, 30, 3, 16), [zlib.compress(bytes(range(240)) * 30)]),
        "float.tif": saved(Image.fromarray(np.mgrid[0:50, 0:70].sum(0).astype(np.float32)), "TIFF"),
        "palette.tif": saved(colour.convert("P", palette=Image.Palette.ADAPTIVE), "TIFF"),
        "grey.tif": saved(grey, "TIFF"),
        "cmyk.tif": saved(colour.convert("CMYK"), "TIFF", compression="tiff_lzw"),
        "alpha.tif": saved(colour.convert("RGBA"), "TIFF", compression="tiff_lzw"),
        "pages.tif": pages(5),
        "turned.tif": saved(colour, "TIFF", tiffinfo={274: 6}, compression="tiff_lzw"),
        "big-endian.tif": saved(Image.frombytes("I;16B", (40, 30), bytes(range(240)) * 10), "TIFF"),
        "bigtiff.tif": saved(colour, "TIFF", big_tiff=True),
        "bigtiff-by-hand.tif": tiff(page(40, 30), [zlib.compress(bytes(range(120)) * 30)], big=True),
        "next-page-is-this-page.tif": endless(),
    }  # fmt: skip


def endless() -> bytes:
    """A TIFF whose next page is its first one."""
    one = saved(photo(), "TIFF")
    at = int.from_bytes(one[4:8], "little")
    end = at + 2 + 12 * int.from_bytes(one[at : at + 2], "little")
    return one[:end] + one[4:8] + one[end + 4 :]


def refused() -> dict[str, bytes]:
    """TIFFs that a server does not read."""
    small, whole = [zlib.compress(bytes(3600))], saved(photo(300, 200), "TIFF")
    tile = page(40, 30) | {TILE_WIDTH: (LONG, [40_000]), TILE_LENGTH: (LONG, [40_000])}
    del tile[ROWS]
    many = page(40, 30, 1) | {ROWS: (LONG, [1])}
    return {
        "tile-of-5-gb.tif": tiff(tile, small, TILE_OFFSETS),
        "tile-of-10mp.tif": tiff(tile | {TILE_WIDTH: (LONG, [4000]), TILE_LENGTH: (LONG, [4000])}, small, TILE_OFFSETS),
        "25mp-colour.tif": colour_strips(5000, 5000, 50),
        "12mp-colour-one-strip.tif": colour_strips(3500, 3500, 3500),
        "12000x12000.tif": tiff(page(12_000, 12_000), small),
        "claims-2-billion.tif": tiff(page(1, 2_000_000_000), small),
        "claims-nothing.tif": tiff(page(0, 10), small),
        "two-million-strips.tif": tiff(many | {700: (LONG, [0] * 1_000_000)}, small),
        "many-samples.tif": tiff(page(40, 30) | {SAMPLES: (SHORT, [60_000])}, small),
        "another-compression.tif": tiff(page(40, 30) | {COMPRESSION: (SHORT, [34925])}, small),
        "no-compression-known.tif": tiff(page(40, 30) | {COMPRESSION: (SHORT, [4711])}, small),
        "claims-data.tif": tiff(page(3000, 3000), small),
        "only-a-header.tif": b"II*\0\x08\0\0\0",
        "directory-beyond-the-end.tif": b"MM\0*\xff\xff\xff\xff",
        "cut.tif": whole[: len(whole) // 2],
        "no-tags.tif": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
    }

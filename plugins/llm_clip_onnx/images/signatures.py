"""The image formats that are read, with their first bytes, suffixes and content types: the one judge of a format.

It looks at the first bytes only, so that no image library is imported; a file may begin well and still be broken.
"""

from __future__ import annotations

from dataclasses import dataclass

FTYP_BYTES = 256  # of a file, searched for the brands of its ftyp box; usual are 24 to 40
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # their sizes, in bytes
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class ImageFormat:
    """A format by the name that people know it by, the suffixes of its files and its content type.

    `plugin` names the package that Pillow needs to read it, None if it needs none.
    """

    name: str
    suffixes: tuple[str, ...]
    content_type: str
    plugin: str | None = None


# By Pillow's names. Pillow reads more formats, some of them by starting other programs.
FORMATS = {
    "JPEG": ImageFormat("JPEG", (".jpg", ".jpeg"), "image/jpeg"),
    "PNG": ImageFormat("PNG", (".png",), "image/png"),
    "WEBP": ImageFormat("WebP", (".webp",), "image/webp"),
    "GIF": ImageFormat("GIF", (".gif",), "image/gif"),
    "BMP": ImageFormat("BMP", (".bmp",), "image/bmp"),
    "AVIF": ImageFormat("AVIF", (".avif",), "image/avif"),
    "HEIF": ImageFormat("HEIC", (".heic", ".heif"), "image/heic", plugin="pillow-heif"),
}
SUFFIXES = frozenset(suffix for known in FORMATS.values() for suffix in known.suffixes)
BUILT_IN = tuple(name for name, known in FORMATS.items() if known.plugin is None)
*_FIRST, _LAST = (FORMATS[name].name for name in BUILT_IN)
EXPECTED = f"{', '.join(_FIRST)} or {_LAST}"  # for messages: "JPEG, PNG, WebP, GIF, BMP or AVIF"

AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}


def format_of(blob: bytes) -> str | None:
    """The format that bytes begin as, a key of FORMATS; None if they begin as none of them.

    Source: the _accept functions of Pillow's readers; for AVIF and HEIC the ftyp box of ISO/IEC 14496-12.
    """
    if blob.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if blob.startswith(PNG_SIGNATURE):
        return "PNG"
    if blob.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if blob.startswith(b"RIFF") and blob[8:12] == b"WEBP":
        return "WEBP"
    if blob.startswith(b"BM") and int.from_bytes(blob[14:18], "little") in BMP_HEADERS:  # a text may begin so
        return "BMP"
    return _format_of_ftyp(blob) if blob[4:8] == b"ftyp" else None


def _format_of_ftyp(blob: bytes) -> str | None:
    end = min(int.from_bytes(blob[:4], "big"), FTYP_BYTES)
    brands = {blob[8:12], *(blob[at : at + 4] for at in range(16, end, 4))}  # the major one, then compatible ones
    if brands & AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & HEIF_BRANDS else None


def content_type_of(blob: bytes) -> str | None:
    """The content type of an image by its first bytes, None if they begin as no image."""
    name = format_of(blob)
    return FORMATS[name].content_type if name else None

"""What a file is by its first bytes: the image formats that are read, and what people send in their place.

The one judge of a format. It looks at the first bytes only, so that no image library is imported; a file may begin well
and still be broken.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import counted

FTYP_BYTES = 256  # of a file, searched for the brands of its ftyp box; usual are 24 to 40
BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # their sizes, in bytes
LOOKED_AT = 1024  # bytes of a file, searched for what it begins as
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
STRIPPED = b"\0\r\n"  # what curl -d removes from a file
BOM = b"\xef\xbb\xbf"
BLANK = b" \t\r\n"


@dataclass(frozen=True)
class ImageFormat:
    """A format by the name that people know it by, the suffixes of its files and its content type.

    `opener` names the module that Pillow opens it with. `extra` names the extra of datasette-clip that has this module,
    None if Pillow has it.
    """

    name: str
    suffixes: tuple[str, ...]
    content_type: str
    opener: str
    extra: str | None = None


# By Pillow's names. Pillow reads more formats, some of them by starting other programs.
FORMATS = {
    "JPEG": ImageFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), "image/jpeg", "PIL.JpegImagePlugin"),
    "PNG": ImageFormat("PNG", (".png", ".apng"), "image/png", "PIL.PngImagePlugin"),
    "WEBP": ImageFormat("WebP", (".webp",), "image/webp", "PIL.WebPImagePlugin"),
    "GIF": ImageFormat("GIF", (".gif",), "image/gif", "PIL.GifImagePlugin"),
    "BMP": ImageFormat("BMP", (".bmp",), "image/bmp", "PIL.BmpImagePlugin"),
    "AVIF": ImageFormat("AVIF", (".avif", ".avifs"), "image/avif", "PIL.AvifImagePlugin"),
    "TIFF": ImageFormat("TIFF", (".tif", ".tiff"), "image/tiff", "PIL.TiffImagePlugin"),
    "HEIF": ImageFormat("HEIC", (".heic", ".heif"), "image/heic", "pillow_heif", extra="photos"),
}
SUFFIXES = frozenset(suffix for known in FORMATS.values() for suffix in known.suffixes)
BUILT_IN = tuple(name for name, known in FORMATS.items() if known.extra is None)
*_FIRST, _LAST = (FORMATS[name].name for name in BUILT_IN)
EXPECTED = f"{', '.join(_FIRST)} or {_LAST}"  # for messages: "JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF"

AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}
BRANDS = {  # of other files with an ftyp box, in the order they are looked for
    "a Canon raw photo": {b"crx "},
    "JPEG XL": {b"jxl "},
    "JPEG 2000": {b"jp2 ", b"jpx ", b"jpm ", b"mjp2", b"jph "},
    "a QuickTime film": {b"qt  "},
}

FOUND = {  # what else people send: the name of it -> its first bytes
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "a PDF": (b"%PDF-",),
    "PostScript": (b"%!PS", b"\xc5\xd0\xd3\xc6"),
    "a Photoshop file": (b"8BPS",),
    "a ZIP archive": (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"),
    "gzip": (b"\x1f\x8b",),
    "Zstandard": (b"\x28\xb5\x2f\xfd",),
    "bzip2": (b"BZh",),
    "xz": (b"\xfd7zXZ\0",),
    "a 7-Zip archive": (b"7z\xbc\xaf\x27\x1c",),
    "a RAR archive": (b"Rar!\x1a\x07",),
    "a SQLite file": (b"SQLite format 3\0",),
    "an icon": (b"\0\0\x01\0",),
    "a Matroska or WebM film": (b"\x1a\x45\xdf\xa3",),
    "an Ogg file": (b"OggS",),
    "a Flash film": (b"FLV\x01",),
    "an MP3 file": (b"ID3",),
    "a RIFF file": (b"RIFF",),
    "an OpenEXR image": (b"\x76\x2f\x31\x01",),
    "a Radiance image": (b"#?RADIANCE", b"#?RGBE"),
    "a DDS image": (b"DDS ",),
    "a Fujifilm raw photo": (b"FUJIFILMCCD-RAW",),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/",),
    "a numpy array": (b"\x93NUMPY",),
    "a program": (b"\x7fELF", b"MZ"),
}
PAGE_BEGINNINGS = ("<!doctype html", "<html", "<head", "<body", "<script", "<meta", "<title")
ADVICE = {  # what to do about what was found
    "a Git LFS pointer": "git lfs pull fetches the file",
    "an HTML page": "the address may need a login, or be that of a page and not of its image",
    "an SVG drawing": "export it as PNG",
    "a PDF": "export its page as PNG",
    "PostScript": "export it as PNG",
    "JPEG XL": "convert it to PNG or JPEG",
    "JPEG 2000": "convert it to PNG or JPEG",
    "JSON": 'send an object, {"texts": [...], "images": [...]}',
    "a data URI": "send it in a field or in JSON, where it is read",
    "gzip": "send what is in it",
    "a ZIP archive": "send the images in it, one by one",
}


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
    if blob[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # + is BigTIFF
        return "TIFF"
    return _format_of_brands(brands_of(blob)) if blob[4:8] == b"ftyp" else None


def brands_of(blob: bytes) -> set[bytes]:
    """The brands in the ftyp box that bytes begin with, empty if they begin with none."""
    if blob[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(blob[:4], "big"), FTYP_BYTES)
    return {blob[8:12], *(blob[at : at + 4] for at in range(16, end, 4))}  # the major one, then compatible ones


def _format_of_brands(brands: set[bytes]) -> str | None:
    if brands & AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & HEIF_BRANDS else None


def content_type_of(blob: bytes) -> str | None:
    """The content type of an image by its first bytes, None if they begin as no image."""
    name = format_of(blob)
    return FORMATS[name].content_type if name else None


def name_of(blob: bytes) -> str:
    """What bytes are, by their first ones, for messages: "TIFF", "a PDF", "an HTML page", "text", "binary data"..."""
    if name := format_of(blob):
        return FORMATS[name].name
    for name, beginnings in FOUND.items():
        if blob.startswith(beginnings):
            return name
    if brands := brands_of(blob):
        return next((name for name, known in BRANDS.items() if brands & known), "an MP4 film")
    return _name_of_text(blob[:LOOKED_AT]) or "binary data"


def _name_of_text(head: bytes) -> str | None:
    """What text is, by its beginning; None if it is no text."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text in UTF-16"
    text = head.removeprefix(BOM).decode("utf-8", errors="replace").removesuffix("\ufffd").strip()
    if "\ufffd" in text or any(ord(letter) < 32 and letter not in "\t\r\n\f" for letter in text):
        return None
    small = text.lower()
    if "<svg" in small and small.startswith(("<svg", "<?xml", "<!doctype svg", "<!--")):
        return "an SVG drawing"
    if small.startswith(PAGE_BEGINNINGS):
        return "an HTML page"
    if small.startswith("<?xml"):
        return "XML"
    if small.startswith("data:"):
        return "a data URI"
    return "JSON" if small.startswith(("{", "[")) else "text"


def is_json_object(blob: bytes) -> bool:
    """True if bytes begin as a JSON object: with a { after blanks or a byte order mark. No image begins so."""
    return blob[:LOOKED_AT].removeprefix(BOM).lstrip(BLANK).startswith(b"{")


def is_stripped(blob: bytes) -> bool:
    """True if bytes were a binary file, and curl -d has removed its line ends and zeros."""
    if any(byte in blob[:100_000] for byte in STRIPPED):
        return False
    begins = [PNG_SIGNATURE, b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", *sum(FOUND.values(), ())]
    if blob.startswith(tuple(begin.translate(None, STRIPPED) for begin in begins)):
        return _name_of_text(blob[:LOOKED_AT]) is None
    return b"ftyp" in blob[:8]


def sentence_of(blob: bytes) -> str:
    """Why bytes are no image that is read: what they begin as, what is expected, and what to do."""
    found = name_of(blob)
    if not blob:
        return f"not an image (0 bytes); expected {EXPECTED}"
    if is_stripped(blob) and found not in FOUND:
        return "not an image any more: curl -d has removed its line ends and zeros; use --data-binary"
    advice = f"; {ADVICE[found]}" if found in ADVICE else ""
    return f"not an image but {found} ({counted(len(blob), 'byte')}); expected {EXPECTED}{advice}"

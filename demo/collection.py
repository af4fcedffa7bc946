"""The demo collection's pictures: one art style of demo/data as the table `emoji` of a small SQLite file.

    python demo/emoji.py && python demo/collection.py [--to demo/emoji.db]

The style is noto, of which every emoji has a picture and whose licence is this project's; twemoji, which training
never saw, stays what is searched with. A picture is a WebP of 80 x 80 pixels without loss, transparent where nothing
is drawn.
The file holds no embeddings: `make demo` makes them, in a copy.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sqlite3
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emoji import NAMES, PACKAGES

STYLE = "noto"
SPOKEN = {"#": "hash", "*": "asterisk"}
TABLES = """
pragma page_size = 1024;  -- a picture takes whole pages: 3.9 MB instead of 4.8
create table emoji (id text primary key, label text, "group" text, subgroup text, hexcode text, image blob);
create table credits (what text, source text, "by" text, licence text, url text, made_with text)
"""
CREDITS = [
    (
        f"image: {STYLE.title()} Emoji, drawn at 80 x 80 pixels",
        PACKAGES[STYLE],
        "Google",
        "Apache 2.0",
        "https://github.com/googlefonts/noto-emoji",
        "python demo/collection.py",
    ),
    (
        "label, group, subgroup, hexcode",
        NAMES["emojibase"],
        "Miles Johnson",
        "MIT",
        "https://github.com/milesj/emojibase",
        "python demo/collection.py",
    ),
]


def id_of(label: str) -> str:
    """A label as an id, which reads like a shortcode: `keycap: #` -> `keycap_hash`, `piñata` -> `piñata`."""
    spoken = "".join(SPOKEN.get(letter, letter) for letter in label)
    return re.sub(r"\W+", "_", spoken).strip("_")


def webp(picture: NDArray[np.uint8]) -> bytes:
    """A picture [80, 80, 4] with premultiplied alpha as a WebP file without loss."""
    alpha = picture[..., 3:].astype(np.float64)
    straight = np.divide(picture[..., :3] * 255.0, alpha, out=np.zeros((*picture.shape[:2], 3)), where=alpha > 0)
    rgba = np.concatenate([straight.round().clip(0, 255), alpha], 2).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "WEBP", lossless=True)
    return file.getvalue()


def rows(data: Path) -> list[tuple[str, str, str, str, str, bytes]]:
    """The rows of the table `emoji`, in Unicode's order."""
    stored = json.loads((data / "emoji.json").read_text())
    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    number_of = {emoji: number for number, (emoji, style) in enumerate(stored["pictures"]) if style == STYLE}
    return [
        (id_of(e["label"]), e["label"], e["group"], e["subgroup"], e["codepoints"], webp(pictures[number_of[number]]))
        for number, e in enumerate(stored["emoji"])
        if number in number_of
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent / "emoji.db")
    args = parser.parse_args()
    args.to.unlink(missing_ok=True)
    database = sqlite3.connect(args.to)
    with database:
        database.executescript(TABLES)
        database.executemany("insert into emoji values (?, ?, ?, ?, ?, ?)", rows(args.data))
        database.executemany("insert into credits values (?, ?, ?, ?, ?, ?)", CREDITS)
    database.execute("vacuum")
    [count] = database.execute("select count(*) from emoji").fetchone()
    database.close()
    print(f"{args.to}: {count:,} pictures, {args.to.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

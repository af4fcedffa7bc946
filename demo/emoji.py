"""Emoji art and names: npm packages of SVGs in, square pictures and what is known of each emoji out.

    python demo/emoji.py [--data demo/data]

fetches the pinned packages with `npm pack` (no scripts are run), and writes `pictures.npy`
([n, 80, 80, 4] uint8, RGBA with premultiplied alpha) and `emoji.json` beside it, and the labels alone, one a line, to
demo/emoji.txt. It trains nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

import numpy as np

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "fluent": "@iconify-json/fluent-emoji@1.2.7",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "emojione": "@iconify-json/emojione@1.2.3",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "twemoji": "@iconify-json/twemoji@1.2.5",
}
NAMES = {"emojibase": "emojibase-data@17.0.0", "emojilib": "emojilib@4.0.3"}
HELD_OUT = "twemoji"  # the art style that training never sees
SIDE = 80  # pixels of a stored picture
SHORTCODES = ("github", "iamcal", "emojibase", "joypixels", "cldr", "emojibase-legacy")


def fetch(data: Path) -> None:
    """Download and unpack every package into `data`/NAME, skipping what is there."""
    for name, package in (PACKAGES | NAMES).items():
        folder = data / name
        if folder.exists():
            continue
        print(f"fetching {package}", flush=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=data, check=True, capture_output=True, text=True
        ).stdout.split()[-1]
        with tarfile.open(data / packed) as archive:
            archive.extractall(folder, filter="data")
        (data / packed).unlink()


def read_json(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def plain_hex(codepoints: str) -> str:
    """`1F9E1-FE0F` -> `1f9e1`: the same emoji whether or not its presentation selector is written."""
    return "-".join(part for part in codepoints.lower().split("-") if part != "fe0f")


def plain_text(text: str) -> str:
    return re.sub(r"\s+", " ", text.lower().replace("_", " ").replace("’", "'")).strip()


def read_shortcodes(folder: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for source in SHORTCODES:
        for codepoints, codes in read_json(folder / f"package/en/shortcodes/{source}.json").items():
            found.setdefault(plain_hex(codepoints), set()).update([codes] if isinstance(codes, str) else codes)
    return found


def is_variant(codepoints: str, subgroup: str) -> bool:
    """A gendered form of an emoji that also has a plain one, or one of the many families."""
    return (
        codepoints.endswith(("-200d-2640", "-200d-2642"))
        or (
            re.match(r"^1f46[89]-200d-", codepoints) is not None
            and subgroup in ("person-role", "person", "person-activity")
        )
        or (subgroup == "family" and "200d" in codepoints)
    )


def read_emoji(data: Path) -> list[dict]:
    """Every base emoji (no flags, skin tones or gendered variants) with its label, names, tags, group and subgroup."""
    base = data / "emojibase"
    messages = read_json(base / "package/en/messages.json")
    groups = read_json(base / "package/meta/groups.json")
    group_names = {g["key"]: g["message"] for g in messages["groups"]}
    subgroup_names = {g["key"]: g["message"] for g in messages["subgroups"]}
    shortcodes = read_shortcodes(base)
    keywords = {
        "-".join(f"{ord(c):x}" for c in emoji if ord(c) != 0xFE0F): words[1:]
        for emoji, words in read_json(data / "emojilib/package/dist/emoji-en-US.json").items()
    }
    found = []
    for entry in read_json(base / "package/en/data.json"):
        if entry.get("group") is None:
            continue
        group, subgroup = groups["groups"][str(entry["group"])], groups["subgroups"][str(entry["subgroup"])]
        codepoints = plain_hex(entry["hexcode"])
        if group in ("component", "flags") or is_variant(codepoints, subgroup):
            continue
        label = plain_text(entry["label"])
        names = {plain_text(code.replace("-", " ")) for code in shortcodes.get(codepoints, ())}
        names = {name for name in names if re.search("[a-z]{3}", name) and not re.search(r"\d", name)}
        tags = {plain_text(tag) for tag in [*entry.get("tags", []), *keywords.get(codepoints, [])]}
        found.append(
            {
                "codepoints": codepoints,
                "label": label,
                "names": sorted(names | {label}),
                "tags": sorted(tag for tag in tags if re.search("[a-z]{2}", tag) and len(tag) < 30),
                "group": group_names[group],
                "subgroup": subgroup_names[subgroup],
                "shortcodes": sorted(shortcodes.get(codepoints, ())),
            }
        )
    return found


def squash(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def icon_names(data: Path, emoji: list[dict]) -> dict[str, dict[int, str]]:
    """Per style, which icon shows which emoji; styles without a codepoint table are matched by name."""
    number = {e["codepoints"]: i for i, e in enumerate(emoji)}
    tables = {s: {plain_hex(k): v for k, v in read_json(data / s / "package/chars.json").items()} for s in PACKAGES}
    known: dict[str, int] = {}
    for i, e in enumerate(emoji):
        known.setdefault(squash(e["label"]), i)
    for table in tables.values():
        for codepoints, name in table.items():
            if codepoints in number:
                known.setdefault(squash(name), number[codepoints])
    for i, e in enumerate(emoji):
        for code in e["shortcodes"]:
            known.setdefault(squash(code), i)
    found: dict[str, dict[int, str]] = {}
    for style, table in tables.items():
        icons = read_json(data / style / "package/icons.json")
        matched = found.setdefault(style, {})
        for codepoints, name in table.items():
            if codepoints in number:
                matched.setdefault(number[codepoints], name)
        if not table:
            for name in [*icons["icons"], *icons.get("aliases", {})]:
                if (i := known.get(squash(name))) is not None:
                    matched.setdefault(i, name)
    return found


def svg_of(icons: dict, name: str) -> str | None:
    """The icon as a square SVG document, or None where it is missing or a transformed alias."""
    alias = icons.get("aliases", {}).get(name)
    if alias and {"rotate", "hFlip", "vFlip"} & alias.keys():
        return None
    icon = icons["icons"].get(alias["parent"] if alias else name)
    if icon is None:
        return None
    width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
    side = max(width, height)
    left, top = icon.get("left", 0) - (side - width) / 2, icon.get("top", 0) - (side - height) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {side} {side}" width="{2 * SIDE}" height="{2 * SIDE}">{icon["body"]}</svg>'
    )


def render(svg: str) -> np.ndarray:
    """[80, 80, 4] uint8, RGBA with premultiplied alpha: drawn at twice the size, then 2x2 means."""
    import resvg_py
    from PIL import Image

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE))
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), np.float32)
    rgba[..., :3] *= rgba[..., 3:] / 255
    return rgba.reshape(SIDE, 2, SIDE, 2, 4).mean((1, 3)).round().astype(np.uint8)


def render_all(data: Path, emoji: list[dict]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Every picture that can be drawn and is not blank, with its (emoji number, style)."""
    pictures, of = [], []
    for style, matched in icon_names(data, emoji).items():
        icons = read_json(data / style / "package/icons.json")
        before = len(of)
        for i, name in sorted(matched.items()):
            svg = svg_of(icons, name)
            picture = render(svg) if svg else None
            if picture is not None and picture[..., 3].max() >= 50:
                pictures.append(picture)
                of.append((i, style))
        print(f"{style}: {len(of) - before} pictures", flush=True)
    return np.stack(pictures), of


def write_labels(emoji: list[dict]) -> None:
    """The labels that the demo model's label set `emoji` is baked from, in the order of `emoji`."""
    (Path(__file__).parent / "emoji.txt").write_text("".join(f"{e['label']}\n" for e in emoji), encoding="utf-8")


def prepare(data: Path) -> None:
    """Fetch the packages to the folder `data`, draw every picture and write all files."""
    data.mkdir(parents=True, exist_ok=True)
    fetch(data)
    emoji = read_emoji(data)
    pictures, of = render_all(data, emoji)
    np.save(data / "pictures.npy", pictures)
    (data / "emoji.json").write_text(json.dumps({"emoji": emoji, "pictures": of}))
    write_labels(emoji)
    print(f"{len(emoji)} emoji, {len(of)} pictures, {sum(s != HELD_OUT for _, s in of)} of them to train on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    prepare(parser.parse_args().data)


if __name__ == "__main__":
    main()

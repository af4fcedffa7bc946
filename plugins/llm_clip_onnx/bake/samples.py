"""Defines the fixed inputs that towers are fitted to and judged by: texts of many kinds, and images made in code.

Fidelity is measured on TEXTS and made_images(); 8-bit towers are fitted to CALIBRATION_TEXTS and calibration_images().
The two sets have nothing in common.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

TEXTS = (
    "", "a", "hello world", "Hello World!", "purple and gold", "a photo of a cat", "a photo of a dog", "a diagram",
    "two dogs playing in the snow", "a red car parked beside a wall", "brushed brass bathroom faucet", "matte black tap",
    "sad face", "winter sport", "an x-ray of a broken bone", "a satellite image of farmland", "the number seven",
    "a blurry photo of many bicycles", "a bad photo of the hard to see tench.", "itap of my pet snake.", "art of a violin",
    "portrait of an old man with a beard, oil on canvas", "black and white", "not a bird", "she smiled, with pain",
    "Ünïcödé wörds öf mäny kïnds", "猫の写真", "一只熊猫在吃竹子", "фотография собаки", "صورة قطة", "φωτογραφία", "🦄🌈 unicorn",
    "👩‍👩‍👧‍👦", "C++ && Rust || Go", "SELECT * FROM cats WHERE id = 1;", "<p>hello &amp;amp; goodbye</p>", "https://example.com/?q=1",
    "3.14159 26535 89793", "$99.99 (was £120)", "don't can't won't it's we've they'll", "UPPERCASE SHOUTING", "  spaces \t\n tabs  ",
    "supercalifragilisticexpialidocious", "xkcd qwrtp zzz", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "!!!???...", "e = mc²",
    "a man riding a wave on top of a surfboard", "a plate of pasta with tomato sauce and basil leaves on a wooden table",
    "a crowded street market at night with neon signs", "mountains reflected in a still lake at dawn", "a close-up of an eye",
    "logo of a technology company, flat design, blue", "screenshot of a web page with a login form", "a map of the underground",
    "steam train crossing a viaduct", "handwritten letter", "a bowl of green apples", "children building a sand castle",
    "an astronaut on a horse", "low poly 3d render of an island", "pixel art sword", "sushi", "brutalist architecture",
    "the quick brown fox jumps over the lazy dog " * 3, "one two three four five six seven eight nine ten " * 20,
)  # fmt: skip

CALIBRATION_TEXTS = (
    "hi", "a photo of a giraffe", "blue kitchen tap with two handles", "an old map of europe", "who is this?", "12 eggs",
    "a watercolor painting of a fox in the forest", "children playing football near the river on a sunny afternoon",
    "train station interior, black and white photograph", "red shoes", "itap of a lighthouse.", "a sketch of a tiger",
    "DSC_0042.JPG", "un chat noir sur le toit", "ein rotes Fahrrad", "東京の夜", "🍕🔥", "happy birthday!!!", "chess board",
    "a rendering of a spaceship", "$5 bill", "a tattoo of a rose", "weather map of france", "nothing", "microscope",
    "graffiti of the word love", "the cover of a book about the history of mathematics, published in 1954, second edition",
)  # fmt: skip


def made_images() -> dict[str, Image.Image]:
    """Sixteen pictures by name, the same on every machine: flat colours, gradients, stripes, noise, shapes."""
    y, x = np.mgrid[0:256, 0:320].astype(np.float32) / 256
    random = np.random.Generator(np.random.PCG64(7))
    coarse = random.integers(0, 256, (8, 10, 3), np.uint8)
    arrays = {
        "black": np.zeros((256, 320, 3)),
        "white": np.full((256, 320, 3), 255),
        "purple": np.full((256, 320, 3), (128, 0, 160)),
        "gradient across": np.stack([x, 1 - x, y], -1) * 204,
        "gradient down": np.stack([y, y, 1 - y], -1) * 255,
        "rings": np.stack([np.sin(40 * np.hypot(x - 0.6, y - 0.5))] * 3, -1) * 127 + 128,
        "stripes": np.stack([(x * 16 % 1 > 0.5) * 220.0, (x * 16 % 1 > 0.5) * 180.0, x * 20], -1),
        "chequers": np.stack([((x * 12).astype(int) + (y * 12).astype(int)) % 2 * 255] * 3, -1),
        "fine noise": random.integers(0, 256, (256, 320, 3)),
        "coarse noise": coarse.repeat(32, 0).repeat(32, 1),
    }
    images = {name: Image.fromarray(array.astype(np.uint8)) for name, array in arrays.items()}
    return images | {name: drawn(name) for name in ("sun", "house", "face", "lines", "tall", "wide")}


def drawn(name: str) -> Image.Image:
    size = {"tall": (120, 480), "wide": (640, 200)}.get(name, (300, 300))
    image = Image.new("RGB", size, {"sun": "skyblue", "face": "white"}.get(name, "ivory"))
    draw, (width, height) = ImageDraw.Draw(image), size
    if name == "sun":
        draw.ellipse((80, 80, 220, 220), fill="gold")
        draw.rectangle((0, 250, 300, 300), fill="seagreen")
    elif name == "house":
        draw.rectangle((70, 140, 230, 280), fill="firebrick")
        draw.polygon([(50, 140), (150, 50), (250, 140)], fill="saddlebrown")
    elif name == "face":
        draw.ellipse((40, 40, 260, 260), fill="yellow", outline="black", width=6)
        draw.ellipse((100, 110, 125, 140), fill="black")
        draw.ellipse((175, 110, 200, 140), fill="black")
        draw.arc((95, 120, 205, 210), 20, 160, fill="black", width=8)
    else:
        for k in range(0, max(size), 24):
            draw.line((k, 0, width - k, height), fill=("navy", "crimson", "darkgreen")[k // 24 % 3], width=5)
    return image


def calibration_images() -> list[Image.Image]:
    """Eight more: flat, clouds of three sizes, grey grain, a spot in the dark, bars, and discs."""
    y, x = np.mgrid[0:224, 0:224].astype(np.float32) / 224
    random = np.random.Generator(np.random.PCG64(11))

    def cloud(blobs: int) -> Image.Image:
        coarse = Image.fromarray(random.integers(0, 256, (blobs, blobs, 3), np.uint8))
        return coarse.resize((224, 224), Image.Resampling.BICUBIC)

    discs = Image.new("RGB", (224, 224), "beige")
    for left, top, side in random.integers(10, 190, (12, 3)).tolist():
        colour = tuple(random.integers(0, 256, 3).tolist())
        ImageDraw.Draw(discs).ellipse((left, top, left + side / 3, top + side / 3), fill=colour)
    grain = random.normal(128, 40, (224, 224, 1)).clip(0, 255).repeat(3, 2)
    spot = np.exp(-60 * ((x - 0.3) ** 2 + (y - 0.6) ** 2))[..., None] * np.array([255, 240, 200])
    bars = np.stack([(y * 9 % 1 > 0.3) * 200.0, y * 90 + 60, x * 130], -1)
    made = [Image.fromarray(array.astype(np.uint8)) for array in (grain, spot, bars)]
    return [Image.new("RGB", (224, 224), "darkorange"), *map(cloud, (3, 7, 28)), *made, discs]

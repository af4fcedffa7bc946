"""Three simple pictures that the demo model recognises, and labels for them."""

from __future__ import annotations

from PIL import Image, ImageDraw

from nasty import saved

LABELS = ["a red heart", "a yellow face", "a blue circle"]


def drawing(shape: str, width: int = 400, height: int = 300) -> bytes:
    """A PNG of a yellow face, a red heart or a blue circle on white."""
    image = Image.new("RGB", (width, height), "white")
    draw, middle = ImageDraw.Draw(image), width // 2
    if shape == "face":
        draw.ellipse((middle - 130, 20, middle + 130, 280), "#ffcc22", "#cc8800", 4)
        draw.ellipse((middle - 70, 100, middle - 40, 140), "black")
        draw.ellipse((middle + 40, 100, middle + 70, 140), "black")
        draw.arc((middle - 80, 100, middle + 80, 230), 20, 160, "black", 12)
    elif shape == "heart":
        draw.pieslice((middle - 120, 30, middle, 150), 150, 360, "#dd2233")
        draw.pieslice((middle, 30, middle + 120, 150), 180, 390, "#dd2233")
        draw.polygon([(middle - 118, 100), (middle + 118, 100), (middle, 270)], "#dd2233")
    else:
        draw.ellipse((middle - 120, 30, middle + 120, 270), "#2266dd")
    return saved(image, "PNG")


FILES = [(f"{shape}.png", drawing(shape)) for shape in ("face", "heart", "circle")]

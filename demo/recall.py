"""How well a baked demo model finds emoji: recall on the art style that training never saw, through the engine itself.

    python demo/emoji.py && python demo/recall.py MODEL_DIR [--style twemoji]

Each picture is laid on white and asked for among all emoji labels, and each label among all pictures of the style.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emoji import HELD_OUT
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.vectors import unit

QUERIES = [
    "purple heart", "red fruit", "sad face", "animal that lives in water", "purple and gold", "green vegetable",
    "flying vehicle", "something to drink when it is cold", "scary monster",
    "musical instrument with strings", "wild cat",
    "birthday party", "bad weather", "king", "money", "a yellow bird", "rescue vehicle", "winter sport",
]  # fmt: skip


def on_white(picture: NDArray[np.uint8]) -> Image.Image:
    """A picture [80, 80, 4] with premultiplied alpha as an RGB image on white."""
    return Image.fromarray(picture[..., :3] + (255 - picture[..., 3:]))


def pictures_of(data: Path, style: str) -> tuple[list[Image.Image], NDArray[np.int64], list[str]]:
    """The pictures of an art style, on white, the number of each one's label, and all labels."""
    stored = json.loads((data / "emoji.json").read_text())
    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    of_style = [k for k, (_, one) in enumerate(stored["pictures"]) if one == style]
    shown = np.array([stored["pictures"][k][0] for k in of_style])
    return [on_white(pictures[k]) for k in of_style], shown, [e["label"] for e in stored["emoji"]]


def recall(similarities: NDArray[np.float32], right: NDArray[np.int64]) -> str:
    """Percent of rows whose right column is among the first 1, 5, 10; a tie counts against it."""
    own = np.take_along_axis(similarities, right[:, None], 1)
    rank = (similarities >= own).sum(1)
    return " / ".join(f"{100 * (rank <= k).mean():.1f}" for k in (1, 5, 10))


def options(doc: str | None) -> argparse.Namespace:
    """The options of this script and its neighbours: model_dir (a list), data, style."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--style", default=HELD_OUT)
    return parser.parse_args()


def precisions_of(engine: Engine) -> str:
    return ", ".join(f"{name} {tower.precision}" for name, tower in engine.manifest.towers.items())


def main() -> None:
    args = options(__doc__)
    pictures, shown, labels = pictures_of(args.data, args.style)
    for path in args.model_dir:
        print_recall(Engine(path), args.style, pictures, shown, labels)


def print_recall(
    engine: Engine, style: str, pictures: list[Image.Image], shown: NDArray[np.int64], labels: list[str]
) -> None:
    images = unit(engine.embed_images(pictures))
    similarities = images @ unit(engine.embed_text(labels)).T  # [pictures, emoji]
    print(f"{style}: {len(images)} pictures of {len(labels)} emoji; {precisions_of(engine)}")
    print("top-1 / top-5 / top-10 %")
    print("image to text", recall(similarities, shown))
    print("text to image", recall(similarities.T[shown], np.arange(len(shown))))
    for query, row in zip(QUERIES, unit(engine.embed_text(QUERIES)) @ images.T):
        print(f"{query}: {', '.join(labels[shown[k]] for k in np.argsort(-row)[:5])}")


if __name__ == "__main__":
    main()

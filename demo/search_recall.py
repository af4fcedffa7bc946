"""How well search finds the demo collection's pictures: by their names, and by pictures of a style never seen.

    python demo/emoji.py && python demo/search_recall.py MODEL_DIR... [--style twemoji]

Each name, and each picture of the style, is asked for among all pictures of demo/emoji.db, where one is right. The
lists of ten of several model directories are compared with those of the last.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_clip_onnx.engine import Engine
from llm_clip_onnx.vectors import unit
from recall import options, pictures_of, precisions_of, recall

COLLECTION = Path(__file__).parent / "emoji.db"
QUERIES = ["purple heart", "red fruit", "sad face", "green vegetable", "a yellow bird", "flying vehicle", "bad weather"]


def collection(file: Path = COLLECTION) -> tuple[list[str], list[bytes]]:
    """Labels and pictures of the demo collection, in the order of demo/emoji.txt."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as database:
        rows = database.execute("select label, image from emoji order by rowid").fetchall()
    return [label for label, _ in rows], [image for _, image in rows]


def first_ten(similarities: NDArray[np.float32]) -> NDArray[np.int64]:
    """The numbers of the ten pictures that each query finds first: [queries, 10]."""
    return np.argsort(-similarities, axis=1, kind="stable")[:, :10]


def overlap(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Percent of the lists' members that both have, on average."""
    return 100 * float(np.mean([len(set(x) & set(y)) / len(x) for x, y in zip(a.tolist(), b.tolist())]))


def main() -> None:
    args = options(__doc__)
    labels, images = collection()
    pictures, shown, _ = pictures_of(args.data, args.style)
    lists: dict[str, dict[str, NDArray[np.int64]]] = {}
    for path in args.model_dir:
        engine = Engine(path)
        found = unit(engine.embed_images(images)).T  # [embed_dim, pictures of the collection]
        by_text, by_image = unit(engine.embed_text(labels)) @ found, unit(engine.embed_images(pictures)) @ found
        precisions = precisions_of(engine)
        print(
            f"{precisions}: {len(labels)} names and {len(pictures)} pictures of {args.style}; top-1 / top-5 / top-10 %"
        )
        print("by text", recall(by_text, np.arange(len(labels))))
        print("by image", recall(by_image, shown))
        for query, row in zip(QUERIES, first_ten(unit(engine.embed_text(QUERIES)) @ found)):
            print(f"{query}: {', '.join(labels[k] for k in row[:5])}")
        lists[precisions] = {"by text": first_ten(by_text), "by image": first_ten(by_image)}
    *others, last = lists
    for one in others:
        shares = ", ".join(f"{how} {overlap(lists[one][how], lists[last][how]):.1f} %" for how in lists[one])
        print(f"of the first ten, {one} and {last} have in common: {shares}")


if __name__ == "__main__":
    main()

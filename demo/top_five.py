"""How well a baked demo model classifies emoji art by its label set `emoji`, and how often it says none of these.

    python demo/emoji.py && python demo/top_five.py MODEL_DIR... [--style twemoji]

Each picture of the style that training never saw is classified among all labels, as served; and once more with its own
label taken out, when none of these is the right answer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llm_clip_onnx.engine import Engine
from llm_clip_onnx.vectors import unit
from llm_clip_onnx.zero_shot import classify, is_none_of_these
from recall import options, pictures_of, precisions_of

LABEL_SET = "emoji"


class Score(NamedTuple):
    """In percent: right first, right among five, none of these said, and said where the right label is taken out."""

    first: float
    among_five: float
    none_said: float
    none_said_without: float


def score(engine: Engine, pictures: list[Image.Image], shown: NDArray[np.int64]) -> Score:
    """How the label set of `engine` does on pictures that show the labels numbered `shown`."""
    classifier, scale = engine.label_set(LABEL_SET), engine.manifest.logit_scale
    unrelated = unit(engine.made_images) @ classifier.vectors.T  # [made images, labels]
    rows = []
    for embedding, label in zip(engine.embed_images(pictures), shown):
        found = classify(classifier, embedding, scale)
        right = [match.label == classifier.labels[label] for match in found]
        without = replace(classifier, unrelated_cosine=float(np.median(np.delete(unrelated, label, 1).max(1))))
        best = found[right.index(False)]  # what would come first
        rows.append((right[0], any(right), is_none_of_these(classifier, found[0]), is_none_of_these(without, best)))
    return Score(*(round(100 * float(share), 1) for share in np.mean(rows, 0)))


def main() -> None:
    args = options(__doc__)
    pictures, shown, _ = pictures_of(args.data, args.style)
    print(
        f"{args.style}: {len(pictures)} pictures; top-1 / top-5 / none of these / the same without the right label, %"
    )
    for path in args.model_dir:
        engine = Engine(path)
        print(f"{precisions_of(engine)}: {' / '.join(map(str, score(engine, pictures, shown)))}")


if __name__ == "__main__":
    main()

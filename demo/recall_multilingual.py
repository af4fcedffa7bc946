"""How well the demo's multilingual text tower finds emoji by names that it never read, in an art style never shown.

    python demo/emoji.py && python demo/recall_multilingual.py MODEL_DIR [--style twemoji]

Each held-out name of each language is asked for among all pictures of the style, through the engine itself.
"""

from __future__ import annotations

import json

import numpy as np

from languages import LANGUAGES, Names
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.vectors import unit
from recall import options, pictures_of, precisions_of, recall

QUERIES = [
    "coeur violet", "лиловое сердце", "紫のハート", "rotes Auto", "gato negro", "perro", "cachorro", "lód", "snømann",
    "गुलाब", "หมา", "눈사람", "雨伞", "трактор", "trái tim tím", "kalp",
]  # fmt: skip


def main() -> None:
    args = options(__doc__)
    pictures, shown, labels = pictures_of(args.data, args.style)
    codepoints = [e["codepoints"] for e in json.loads((args.data / "emoji.json").read_text())["emoji"]]
    held_out = Names(args.data, codepoints).held_out
    picture_of = {int(emoji): row for row, emoji in enumerate(shown)}
    for path in args.model_dir:
        engine = Engine(path)
        images = unit(engine.embed_images(pictures))
        print(f"{args.style}: {len(images)} pictures; {precisions_of(engine)}")
        print("language, held-out names, top-1 / top-5 / top-10 %")
        everything = []
        for language in LANGUAGES:
            asked = {name: picture_of[i] for name, i in held_out[language].items() if i in picture_of}
            similarities = unit(engine.embed_text([*asked])) @ images.T
            everything.append((similarities, np.array([*asked.values()])))
            print(f"{language}, {len(asked)}, {recall(*everything[-1])}")
        print(f"all, {sum(len(right) for _, right in everything)}, {recall(*map(np.concatenate, zip(*everything)))}")
        for query, row in zip(QUERIES, unit(engine.embed_text(QUERIES)) @ images.T):
            print(f"{query}: {', '.join(labels[shown[k]] for k in np.argsort(-row)[:5])}")


if __name__ == "__main__":
    main()

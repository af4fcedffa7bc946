"""How often the floor of the demo collection is right: what is weak that should not be, and the other way round.

    python demo/floor.py MODEL_DIR...

The floor is measured as `llm clip index` does it (clip_collections/floor.py). Queries that fit are the names of the
collection's pictures, and of its groups and subgroups, which fit many pictures each; queries that do not fit are of
things that no picture shows.
"""

from __future__ import annotations

import argparse
import sqlite3
from pathlib import Path

import numpy as np

from clip_collections.floor import SHARE, TEXTS
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.vectors import unit
from search_recall import COLLECTION, collection

UNRELATED = (
    *("a lease agreement", "the gold standard", "antitrust law", "a leading question", "gerunds and participles"),
    *("the cost of living", "a late fee", "an ethics committee", "a margin of error", "conflict of interest"),
    *("deferred maintenance", "the uncertainty principle", "a priori knowledge", "exit interviews", "overtime pay"),
    *("an act of parliament", "the long s in old print", "backward compatibility", "a race condition", "unit tests"),
    *("nostalgia for the eighties", "a bad reputation", "small talk", "stage fright", "a change of plans"),
    *("how to renew a passport", "lowest common denominator", "a rounding error", "the law of large numbers"),
    *("an early retirement", "customer satisfaction", "a declined payment", "the black market", "jet lag"),
    *("meeting cancelled", "a rhetorical question", "utilitarianism", "a conditional probability", "free will"),
    *("the tragedy of the commons", "quantitative easing", "a typographical error", "the subordinate clause"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, nargs="+")
    args = parser.parse_args()
    labels, images = collection()
    with sqlite3.connect(f"file:{COLLECTION}?mode=ro", uri=True) as database:
        groups = [text for (text,) in database.execute('select "group" from emoji union select subgroup from emoji')]
    for path in args.model_dir:
        engine = Engine(path)
        rows = unit(engine.embed_images(images)).T  # [embed_dim, pictures]
        queries = {"base": TEXTS, "names": labels, "groups": groups, "unrelated": UNRELATED}
        embeddings = {name: unit(engine.embed_text(list(texts))) for name, texts in queries.items()}
        best = {name: (texts @ rows).max(1) for name, texts in embeddings.items()}
        above = {name: best[name] - texts @ rows.mean(1) for name, texts in embeddings.items()}
        floor, margin = (float(np.quantile(scores["base"], SHARE)) for scores in (best, above))
        weak = {name: 100 * np.mean((best[name] < floor) & (above[name] < margin)) for name in queries}
        print(f"{path}: floor {floor:.3f}, margin {margin:.3f}, of {len(TEXTS)} texts over {len(images)} pictures")
        for name in ("names", "groups", "unrelated"):
            print(f"  {name}: of {len(queries[name])}, {weak[name]:.1f} % have weak matches only")


if __name__ == "__main__":
    main()

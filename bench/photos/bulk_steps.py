"""Prints where the CPU time of a photo goes in `llm clip embed`, as JSON: step -> milliseconds a photo.

    python -m bench.photos.bulk_steps PHOTOS DATABASE     the model directory is $CLIP_MODEL_DIR

The command itself runs in this process on one core, where no thread waits for another and each step runs in one thread.
The functions of the steps are wrapped to note the CPU time of their thread; a step within another one, such as the
decoding of an image while it is resized, does not count for the outer one. `rest` is all else of the process from the
first photo to the last: reading, hashing, the queue.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any


class Steps:
    """CPU seconds by step, of functions that are wrapped. The wrapping stays."""

    def __init__(self) -> None:
        self.spent_s: Counter[str] = Counter()
        self.thread = threading.local()
        self.lock = threading.Lock()

    def time(self, owner: Any, name: str, step: str) -> None:
        """Wrap the function `name` of a module or class."""
        genuine = getattr(owner, name)

        @functools.wraps(genuine)
        def timed(*arguments: Any, **more: Any) -> Any:
            begun_s, outer_s = time.thread_time(), getattr(self.thread, "inner_s", 0.0)
            self.thread.inner_s = 0.0
            try:
                return genuine(*arguments, **more)
            finally:
                took_s = time.thread_time() - begun_s
                with self.lock:
                    self.spent_s[step] += took_s - self.thread.inner_s
                self.thread.inner_s = outer_s + took_s

        setattr(owner, name, timed)


def main(photos: Path, database: Path) -> dict[str, float]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before onnxruntime counts the cores
    from PIL import ImageFile

    from clip_collections import commands, fill, thumbnails, writer
    from llm_clip_onnx import engine

    steps, count = Steps(), len(list(photos.iterdir()))
    steps.time(ImageFile.ImageFile, "load", "decode")
    steps.time(engine, "to_pixels", "resize")
    steps.time(engine.towers, "run_image", "tower")
    steps.time(thumbnails.Look, "encode", "thumbnail")
    steps.time(writer.CollectionWriter, "_write", "write")
    steps.time(engine.Engine, "_open_image", "open")
    genuine, whole_s = fill.Fill.run, []

    def run(self: fill.Fill) -> Any:
        begun_s = time.process_time()
        yield from genuine(self)
        whole_s.append(time.process_time() - begun_s)

    fill.Fill.run = run  # type: ignore[method-assign]
    commands.embed.main([str(photos), "-d", str(database), "-c", "photos"], standalone_mode=False)
    spent_s = dict(steps.spent_s)
    rest_s = whole_s[0] - sum(spent_s.values())
    del spent_s["open"]  # once, whatever the number of photos
    return {step: 1000 * taken_s / count for step, taken_s in {**spent_s, "rest": rest_s}.items()}


if __name__ == "__main__":
    print(json.dumps(main(*map(Path, sys.argv[1:]))))

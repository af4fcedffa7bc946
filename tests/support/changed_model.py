"""Makes a model directory that reads images in another way than the one it is copied from."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path


def with_preprocess(model: Path, to: Path, **steps) -> Path:
    """A copy of a model directory whose manifest has these steps of preprocessing; the other files are the same."""
    shutil.copytree(model, to, copy_function=os.link)
    facts = json.loads((to / "manifest.json").read_text())
    (to / "manifest.json").unlink()  # a link
    (to / "manifest.json").write_text(json.dumps(facts | {"preprocess": facts["preprocess"] | steps}))
    return to

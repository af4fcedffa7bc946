"""Writes a checkpoint in Hugging Face's layout anew in open_clip's layout.

python -m bench.harness.open_clip_files CHECKPOINT FOLDER     writes FOLDER/open_clip_model.safetensors and its config
"""

import sys
from pathlib import Path

from bench.harness import ROOT

sys.path.append(str(ROOT / "tests"))  # for tests/reference.py, which knows the names

if __name__ == "__main__":
    from open_clip_checkpoint import write_open_clip

    checkpoint, folder = map(Path, sys.argv[1:])
    write_open_clip(folder, checkpoint)

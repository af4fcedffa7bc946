"""Links the checkpoint that a model directory was baked from to FOLDER, for llm-clip, which knows one name only.

    python link_checkpoint.py MODEL_DIR FOLDER

SentenceTransformer('clip-ViT-B-32') takes a folder of that name in the working directory before it asks a hub.
"""

import json
import sys
from pathlib import Path

from huggingface_hub import snapshot_download

model_dir, folder = map(Path, sys.argv[1:])
source = json.loads((model_dir / "manifest.json").read_text())["source"]
if Path(source["id"]).is_dir():
    checkpoint = Path(source["id"]).resolve()
else:
    checkpoint = Path(snapshot_download(source["id"], revision=source["revision"], local_files_only=True))
folder.symlink_to(checkpoint)

"""Classifies images with torch over HTTP, as people write such a server: POST an image, get its 5 best labels as JSON.

    python torch_server.py PORT CHECKPOINT CLASS_VECTORS per-request|kept

per-request   as CLIP on Heroku did it: the model is loaded for each image, the image squashed to 224 x 224
kept          sentence-transformers, loaded once

classify.py compares ours with it. It runs in .venv-recipe and imports nothing of this project.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
from numpy.typing import NDArray
from PIL import Image

K = 5


def per_request(checkpoint: str) -> Callable[[bytes], NDArray[np.float32]]:
    import torch
    from transformers import CLIPImageProcessor, CLIPModel

    def embed(image: bytes) -> NDArray[np.float32]:
        model = CLIPModel.from_pretrained(checkpoint).eval()
        squashed = Image.open(io.BytesIO(image)).convert("RGB").resize((224, 224))
        pixels = CLIPImageProcessor.from_pretrained(checkpoint)(squashed, return_tensors="pt")
        with torch.no_grad():
            features = model.get_image_features(**pixels)
        return getattr(features, "pooler_output", features)[0].numpy()

    return embed


def kept(checkpoint: str) -> Callable[[bytes], NDArray[np.float32]]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(checkpoint, device="cpu")
    return lambda image: model.encode(Image.open(io.BytesIO(image)), show_progress_bar=False)


def serve(port: int, checkpoint: str, class_vectors: str, how: str) -> None:
    embed, vectors = {"per-request": per_request, "kept": kept}[how](checkpoint), np.load(class_vectors)  # [c, d]

    class Classify(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            embedding = embed(self.rfile.read(int(self.headers["Content-Length"])))
            cosines = vectors @ embedding / np.linalg.norm(embedding)
            powers = np.exp(100 * (cosines - cosines.max()))
            best = np.argsort(-cosines)[:K]
            matches = [{"label": int(k), "probability": float(powers[k] / powers.sum())} for k in best]
            body = json.dumps({"matches": matches, "embedding": embedding.tolist()}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    HTTPServer(("127.0.0.1", port), Classify).serve_forever()


if __name__ == "__main__":
    serve(int(sys.argv[1]), *sys.argv[2:])

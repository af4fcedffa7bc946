"""Ranks texts by the cosine of their embeddings with the first one's: python examples/closest.py TEXT TEXT..."""

import os
import sys

import httpx

URL = os.environ.get("CLIP_URL", "http://127.0.0.1:8001")


def cosines(texts: list[str]) -> list[float]:
    """The cosine of each text with the first one, in their order."""
    answer = httpx.post(f"{URL}/-/clip/embed.json", json={"texts": texts, "normalize": True})
    embeddings = [result["embedding"] for result in answer.raise_for_status().json()["results"]]
    return [sum(a * b for a, b in zip(embeddings[0], embedding)) for embedding in embeddings]


if __name__ == "__main__":
    texts = sys.argv[1:]
    for cosine, text in sorted(list(zip(cosines(texts), texts))[1:], reverse=True):
        print(f"{cosine:.3f}  {text}")

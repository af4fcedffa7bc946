"""Random tokens in every file that names tokens: our ids are those of transformers, which loads the same folder.

The rules for which file wins have many branches; test_reading.py has a row for each that was thought of.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from llm_clip_onnx.bake.tokenizer_files import read_tokenizer
from llm_clip_onnx.errors import CheckpointError
from llm_clip_onnx.tokenizer import open_tokenizer, tokenize
from random_checkpoint import TOKENIZER, cut_tokenizer

MERGES, CASES = 300, 60
START, END = 512 + MERGES, 513 + MERGES
CONTENTS = [
    "<shoe-7>", "<Shoe-7>", "<hat>", "two words", "newtoken", "wow", "!", "<image>", "[PAD]", "<|end|>", "th",
    "<|endoftext|>", "<|startoftext|>", "café", " a", "b ",
]  # fmt: skip
NAMES = ["bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "cls_token", "sep_token", "image_token"]
TEXTS = [
    "a photo of a <shoe-7>", "a <SHOE-7> and a <Shoe-7>!", "x<shoe-7>y <hat>", "two words, newtoken anewtoken", "wow!!! !",
    "café cafe\u0301 <|ENDOFTEXT|> <|endoftext|> [PAD] [pad]", "the th b  a <image><|end|>", "two words " * 80, "",
]  # fmt: skip
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Files:
    """Random content for the files of one checkpoint."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def flags(self) -> dict[str, bool]:
        return {flag: self.random.random() < 0.4 for flag in FLAGS}

    def some(self, of: list[str], most: int) -> list[str]:
        return self.random.sample(of, self.random.randrange(most))

    def token(self, content: str, **more: str) -> str | dict:
        return content if self.random.random() < 0.6 else {**more, "content": content, **self.flags()}

    def listed(self) -> list[dict]:
        contents = self.some(CONTENTS, 4)
        return [{"id": END + 1 + n, "content": text, **self.flags()} for n, text in enumerate(contents)]

    def write(self, folder: Path) -> None:
        vocab = json.loads((folder / "vocab.json").read_text())
        merges = (folder / "merges.txt").read_text().split("\n")[1:-1]
        tokenizer = {
            "version": "1.0",
            "added_tokens": self.listed(),
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        }
        added = {text: END + 1 + n for n, text in enumerate(self.some(CONTENTS, 4))}
        for name, content in (
            ("tokenizer.json", tokenizer),
            ("added_tokens.json", added),
            ("special_tokens_map.json", self.special_tokens()),
            ("tokenizer_config.json", self.config()),
        ):
            if self.random.random() < 0.6:
                (folder / name).write_text(json.dumps(content))

    def special_tokens(self) -> dict:
        said: dict = {name: self.token(self.random.choice(CONTENTS)) for name in self.some(NAMES, 4)}
        if self.random.random() < 0.4:
            said["additional_special_tokens"] = self.some(CONTENTS, 3)
        if self.random.random() < 0.3:
            said["extra_special_tokens"] = self.some(CONTENTS, 3)
        return said

    def config(self) -> dict:
        typed = {"__type": "AddedToken"}
        config: dict = {name: self.token(self.random.choice(CONTENTS), **typed) for name in self.some(NAMES, 4)}
        for key in ("additional_special_tokens", "extra_special_tokens"):
            if self.random.random() < 0.3:
                config[key] = [self.token(text, **typed) for text in self.some(CONTENTS, 3)]
        if self.random.random() < 0.1:
            config["extra_special_tokens"] = {"boo_token": "wow", "q": "<hat>"}
        if self.random.random() < 0.3:
            config["added_tokens_decoder"] = {str(token.pop("id")): token for token in self.listed()}
        return config


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, bytes]:
    """The files of a small tokenizer without anything added."""
    folder = tmp_path_factory.mktemp("plain")
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((TOKENIZER / name).read_bytes())
    cut_tokenizer(folder, MERGES)
    return {file.name: file.read_bytes() for file in folder.iterdir()} | {"config.json": b'{"model_type": "clip"}'}


@pytest.mark.parametrize("seed", range(4))
def test_ids_of_random_tokens_are_those_of_transformers(seed, plain, tmp_path):
    compared = sum(compare(CASES * seed + case, plain, tmp_path / str(case)) for case in range(CASES))
    assert compared > CASES // 2


def compare(seed: int, plain: dict[str, bytes], folder: Path) -> bool:
    """True if transformers loads the folder, and ours gave its ids. False if both refuse it, or chance decides."""
    from transformers import AutoTokenizer

    folder.mkdir()
    for name, content in plain.items():
        (folder / name).write_bytes(content)
    Files(seed).write(folder)
    try:
        theirs = AutoTokenizer.from_pretrained(str(folder))
    except Exception:  # it raises of many kinds for tokens that it cannot read
        return False
    try:
        found = read_tokenizer(folder, {}, "x")
    except CheckpointError as error:
        if "are the same in lower case" not in str(error):
            raise
        return False
    (folder / "vocab").write_text(json.dumps(found.vocab))
    (folder / "merges").write_text("\n".join(["#version: 0.2", *found.merges, ""]))
    bpe = open_tokenizer(folder / "vocab", folder / "merges", 77, found.tokens)
    assert (found.end_id, found.pad_id) == (theirs.eos_token_id, theirs.pad_token_id), seed
    for text in TEXTS:
        assert tokenize(bpe, text).tolist() == theirs(text, truncation=True, max_length=77)["input_ids"], (seed, text)
    return True

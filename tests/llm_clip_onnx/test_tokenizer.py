"""Ids equal those of transformers' CLIP tokenizer, which llm-clip uses, on inputs that have broken other tokenizers."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import DEMO_CHECKPOINT, ROOT
from llm_clip_onnx.errors import InputError, ModelDirError
from llm_clip_onnx.model_dir import Tokens
from llm_clip_onnx.text_readers import open_reader
from llm_clip_onnx.tokenizer import END, START, first_words, open_tokenizer, tokenize
from nasty import TEXTS

GOLDEN = json.loads((ROOT / "tests/golden/ids.json").read_text())["ids"]


@pytest.fixture(scope="module")
def bpe():
    return open_tokenizer(DEMO_CHECKPOINT / "vocab.json", DEMO_CHECKPOINT / "merges.txt", 77)


def test_hello_world_has_the_ids_of_openai_clip(bpe):
    assert tokenize(bpe, "Hello World!").tolist() == [49406, 3306, 1002, 256, 49407]


def test_there_is_a_golden_for_every_nasty_text():
    assert GOLDEN.keys() == set(TEXTS)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_goldens(bpe, text):
    assert tokenize(bpe, text).tolist() == GOLDEN[text]


@pytest.mark.long
def test_ids_are_those_of_transformers_itself(bpe):
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(DEMO_CHECKPOINT)
    for text in TEXTS:
        assert tokenize(bpe, text).tolist() == theirs(text, truncation=True, max_length=77)["input_ids"], repr(text)


def test_a_long_text_is_cut_to_the_context_and_keeps_its_end(bpe):
    ids = tokenize(bpe, "word " * 200)
    assert ids.dtype == np.int64
    assert (len(ids), ids[0], ids[-1]) == (77, 49406, 49407)
    assert set(ids[1:-1]) == {2653}


def test_half_of_a_surrogate_pair_is_refused(bpe):
    with pytest.raises(InputError, match="a lone surrogate is not text; expected Unicode that UTF-8 can hold"):
        tokenize(bpe, "a \ud800 b")


def test_only_the_words_that_can_count_are_read(bpe):
    """Reading the whole text would take 12 s and block all other threads."""
    long = "7+ " * 2_000_000
    assert first_words(long, 77) == ("7+ " * 77).strip()
    assert tokenize(bpe, long).tolist() == tokenize(bpe, "7+ " * 100).tolist()
    assert tokenize(bpe, "cat" + " " * 1_000_000 + "dog").tolist() == tokenize(bpe, "cat dog").tolist()


SHORT = open_tokenizer(DEMO_CHECKPOINT / "vocab.json", DEMO_CHECKPOINT / "merges.txt", 16)


@given(st.text(st.sampled_from("aé7+ \t\n\u3000'!<\u0301"), max_size=400))
def test_leaving_out_what_cannot_count_changes_no_id(text):
    assert tokenize(SHORT, text, 16).tolist() == SHORT.encode(text).ids


def test_a_text_with_too_much_before_a_space_is_refused(bpe):
    with pytest.raises(InputError) as raised:
        tokenize(bpe, "7+" * 1_000_000)
    assert str(raised.value) == "text of 2,000,000 characters almost without spaces; at most 50,000 are read"


def test_without_ftfy_the_text_tower_of_an_open_clip_model_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ModelDirError, match=r"needs ftfy to read texts: pip install 'datasette-clip\[open-clip\]'"):
        open_reader(DEMO_CHECKPOINT, 77, Tokens(START, END, END, (), "open_clip"))


def test_a_text_of_an_open_clip_model_is_cut_and_refused_as_any_other():
    read = open_reader(DEMO_CHECKPOINT, 16, Tokens(START, END, END, (), "open_clip"))
    assert read("word " * 100_000).tolist() == [49406, *[2653] * 14, 49407]
    assert read("&amp;amp; Caf&eacute;").tolist() == read("& café").tolist()
    assert read("a \ud800 b").tolist() == read("a \ufffd b").tolist()
    with pytest.raises(InputError, match="a data URI or an image in base64"):
        read("data:image/png;base64,AAAA")

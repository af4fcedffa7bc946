"""Mapped merges give the ids of the `tokenizers` library, for any vocabulary and any word."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

import nasty
from llm_clip_onnx import byte_pairs, siglip_tokenizer
from llm_clip_onnx.bake.families.siglip_files import is_gemma, pairs_of
from llm_clip_onnx.bake.samples import TEXTS
from llm_clip_onnx.byte_pairs import NONE, BytePairs, tables
from siglip_checkpoint import byte_pairs as gemma

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def opened(folder, vocab, merges, named=()) -> BytePairs:
    pairs, characters = tables(vocab, merges, named)
    np.save(folder / "pairs.npy", pairs)
    (folder / "characters.json").write_text(json.dumps(characters), encoding="utf-8")
    return BytePairs(folder / "pairs.npy", folder / "characters.json")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[BytePairs, Tokenizer]:
    """Gemma's kind of vocabulary, mapped and in the library."""
    serialized, _ = gemma()
    vocab = serialized["model"]["vocab"]
    folder = tmp_path_factory.mktemp("pairs")
    return opened(folder, vocab, pairs_of(serialized), ["<eos>"]), Tokenizer.from_str(json.dumps(serialized))


def test_words_have_the_librarys_ids(both):
    ours, theirs = both
    for text in map(
        siglip_tokenizer.canonical, [*TEXTS, *nasty.TEXTS, "a" * 2000, "smiling" * 200, "\U0001f9ff\ufffd"]
    ):
        found = [id for word in text.replace(" ", " ▁").split(" ") for id in ours.ids_of(word)]
        assert found == theirs.encode(text, add_special_tokens=False).ids, repr(text)
    assert ours.named == {"<eos>": 1}


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="<>[]"), max_size=60))
def test_any_text_has_the_librarys_ids(both, text):
    ours, theirs = both
    text = siglip_tokenizer.canonical(text)
    found = [id for word in text.replace(" ", " ▁").split(" ") for id in ours.ids_of(word)]
    assert found == theirs.encode(text, add_special_tokens=False).ids


@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), max_size=14),
    st.text("abc", min_size=1, max_size=30),
)
def test_any_merges_in_any_order_give_the_librarys_ids(tmp_path_factory, choices, word):
    """Tokens are made of earlier ones, so several merges may give one token, and their ranks are in any order."""
    tokens, merges = [*"abc"], []
    for left, right in choices:
        pair = tokens[left % len(tokens)], tokens[right % len(tokens)]
        if pair not in merges:
            merges.insert(sum(choices[0]) % (len(merges) + 1), pair)
        tokens += [] if "".join(pair) in tokens else ["".join(pair)]
    vocab = {token: n for n, token in enumerate([*BYTES, *tokens])}
    library = Tokenizer(models.BPE(vocab, merges, byte_fallback=True))
    ours = opened(tmp_path_factory.mktemp("merges"), vocab, merges)
    assert ours.ids_of(word) == library.encode(word).ids


def test_of_equal_ranks_the_leftmost_goes_first():
    value = 7  # rank 0, id 7
    assert byte_pairs.merged([1, 1, 1], lambda left, right: value if (left, right) == (1, 1) else NONE) == [7, 1]


def test_a_vocabulary_without_merges_is_its_characters(tmp_path):
    pairs = opened(tmp_path, {token: n for n, token in enumerate([*BYTES, "a"])}, [])
    assert pairs.ids_of("aé") == [256, 0xC3, 0xA9]
    assert pairs.ids_of("") == []


def test_a_merge_of_what_is_no_token_is_refused():
    with pytest.raises(KeyError):
        tables({token: n for n, token in enumerate(BYTES)}, [("a", "b")], [])


def changed(part: str, value) -> dict:
    serialized = json.loads(json.dumps(gemma()[0]))
    place, *rest = part.split(".")
    if rest:
        serialized[place][rest[0]] = value
    else:
        serialized[place] = value
    return serialized


def test_gemmas_kind_is_mapped():
    assert is_gemma(gemma()[0])


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", {"type": "Lowercase"}),
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("model.ignore_merges", True),
        ("model.end_of_word_suffix", "</w>"),
        ("model.merges", [["a", "▁"]]),
        ("added_tokens", [{"content": "heart"}]),
    ],
)
def test_a_tokenizer_of_another_kind_is_not_mapped(part, value):
    """It keeps its tokenizer.json, which the library reads."""
    assert not is_gemma(changed(part, value))

"""Whatever stands in a checkpoint's JSON files, one short sentence names the file, the key and what is expected."""

from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from llm_clip_onnx.bake import keys, open_checkpoint
from llm_clip_onnx.errors import QUOTED_CHARACTERS, CheckpointError
from random_checkpoint import END, SMALL, write_checkpoint

CONFIG, TOKENIZER, IMAGES = "config.json", "tokenizer_config.json", "preprocessor_config.json"
SERIALIZED, MAP, ADDED, PROCESSOR = (
    *("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "processor_config.json"),
)
MODULES, MODULE, SENTENCES = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"
SHARDS = "model.safetensors.index.json"
NAN, LONG = float("nan"), "x" * 5000
WHOLE, POSITIVE, SQUARE = "a whole number above 0", "a number above 0", "a whole number above 0, or two equal ones"
LENGTH = "a whole number above 1, or one above 1e20 for no limit"
SIZE = 'a whole number above 0, or it as {"shortest_edge": 224}'
CROP = "a whole number above 0, or two of them as height and width"
FILTER = 'the number of a filter, 0 to 5, or "bicubic"'
MEANS = "three numbers, or one for all channels"
DEVIATIONS = "three numbers above 0, or one for all channels"
ACTIVATION = '"quick_gelu" or "gelu"'
FLAGS = "expected its content as text, and true or false for single_word, lstrip, rstrip, normalized, special"
AN_ID = "expected text and a whole number"

# File, the object in it, key, values, and what the sentence says is expected.
MISFITS = [
    (CONFIG, "text_config", "hidden_size", [0, -1, 32.0, "32", True, [32], 10**12, NAN], WHOLE),
    (CONFIG, "text_config", "eos_token_id", [[END], "2", -1], WHOLE),
    (CONFIG, "text_config", "num_attention_heads", [0, 2.0, {}], WHOLE),
    (CONFIG, "text_config", "max_position_embeddings", [0, 77.5, "77"], WHOLE),
    (CONFIG, "text_config", "layer_norm_eps", [0, -1, "1e-5", NAN, float("inf"), True, []], POSITIVE),
    (CONFIG, "text_config", "hidden_act", ["gelu_new", 1, ["gelu"], {}], ACTIVATION),
    (CONFIG, "vision_config", "image_size", [[224, 192], [32], 32.0, {"height": 32}, 0, "32"], SQUARE),
    (CONFIG, "vision_config", "patch_size", [[16, 8], 0, 16.5], SQUARE),
    (CONFIG, "vision_config", "num_channels", [1, 4, "3", [3]], "3"),
    (CONFIG, "", "projection_dim", [0, -1, 16.0, "16", [16], True], WHOLE),
    (CONFIG, "", "text_config", ["x", [], 3], "an object"),
    (CONFIG, "", "vision_config_dict", ["x", [], 3], "an object"),
    (CONFIG, "", "max_position_embeddings", ["77", 77.5, []], WHOLE),
    (TOKENIZER, "", "model_max_length", [NAN, float("inf"), 0, 1, -1, 77.5, 10.0, "77", True, [77], 10**10], LENGTH),
    (TOKENIZER, "", "max_length", ["77", 0, [77], 77.5], WHOLE),
    (TOKENIZER, "", "added_tokens_decoder", ["x", [], 3], "an object"),
    (IMAGES, "", "size", [224.0, "224", 0, [32], {"shortest_edge": 32.0}, {"height": 32, "width": 32}, {}], SIZE),
    (IMAGES, "", "crop_size", [224.0, 32.0, "32", [32], {"height": 32.0, "width": 32.0}, {"height": 32}, {}], CROP),
    (IMAGES, "", "resample", [9, -1, 3.0, "lanczos", "3", "", True, [3], NAN], FILTER),
    (IMAGES, "", "image_mean", [[0.5], [0.5] * 4, [0.5, 0.4], [], "0.5", ["0.5"] * 3, True, NAN, [NAN] * 3], MEANS),
    (IMAGES, "", "image_std", [0, -1, [0, 1, 1], [0.5], [0.5] * 4, "0.5", NAN, {}], DEVIATIONS),
    (IMAGES, "", "rescale_factor", [0, -1, "0.1", True, NAN, float("inf"), []], POSITIVE),
    (IMAGES, "", "default_to_square", ["no", 2, []], "true or false"),
    (PROCESSOR, "", "image_processor", ["x", [], 3], "an object"),
    (SERIALIZED, "", "model", ["x", [], 3], "an object"),
    (SERIALIZED, "", "added_tokens", ["x", {}, 3], "a list"),
    (SERIALIZED, "", "truncation", ["x", [1], 3], "an object"),
    (SERIALIZED, "", "padding", ["x", [1], 3], "an object"),
    (MODULES, "", "path", [3, [], {}], "text"),
    (MODULES, "", "type", [3, [], {}], "text"),
    (MODULE, "", "max_seq_length", ["77", 1, 0, 20.5, True, NAN], LENGTH),
    (SENTENCES, "", "prompts", ["x", [1], 3], "an object"),
    (SENTENCES, "", "default_prompt_name", [["x"], 3], "text"),
]

BPE = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
DECODER = "added_tokens_decoder"
# File and its content (keys that are added to it), and the sentence after the checkpoint's name.
SENTENCES_OF_TOKENS: list[tuple[str, dict, str]] = [
    (TOKENIZER, {DECODER: {"9": {"content": "<hat>", "lstrip": "yes"}}}, f"{TOKENIZER} says {DECODER}.9 {{\"content\": \"<hat>\", \"lstrip\": \"yes\"}}, for the token '<hat>'; {FLAGS}"),
    (TOKENIZER, {DECODER: {"9": {"content": "<hat>", "left": True}}}, f"{TOKENIZER} says {DECODER}.9 {{\"content\": \"<hat>\", \"left\": true}}, for the token '<hat>'; {FLAGS}"),
    (TOKENIZER, {DECODER: {"9": {"lstrip": True}}}, f"{TOKENIZER} says {DECODER}.9 {{\"lstrip\": true}}, for the token None; {FLAGS}"),
    (TOKENIZER, {DECODER: {"9": "<hat>"}}, f"{TOKENIZER} says {DECODER}.9 \"<hat>\", for the token '<hat>'; {FLAGS}"),
    (TOKENIZER, {DECODER: {"nine": {"content": "<hat>"}}}, f'{TOKENIZER} says {DECODER}.nine {{"content": "<hat>"}}; expected an id before each token'),
    (TOKENIZER, {DECODER: {"-1": {"content": "<hat>"}}}, f'{TOKENIZER} says {DECODER}.-1 {{"content": "<hat>"}}; expected an id before each token'),
    (TOKENIZER, {DECODER: None}, f"{TOKENIZER} says {DECODER} null; expected an object of ids and tokens"),
    (TOKENIZER, {DECODER: {"9": {"content": "\ud800"}}}, f"{TOKENIZER} says {DECODER}.9 {{\"content\": \"\ufffd\"}}, for the token '\\ud800'; {FLAGS}"),
    (TOKENIZER, {"bos_token": 3}, f"{TOKENIZER} says bos_token 3, which a bake cannot follow"),
    (MAP, {"bos_token": 3}, f"{MAP} says bos_token 3, which a bake cannot follow"),
    (MAP, {"pad_token": {"content": "<hat>", "lstrip": 1}}, f"{MAP} says pad_token {{\"content\": \"<hat>\", \"lstrip\": 1, \"special\": true}}, for the token '<hat>'; {FLAGS}"),
    (ADDED, {"<hat>": "9"}, f"{ADDED} gives the added token '<hat>' the id \"9\"; {AN_ID}"),
    (ADDED, {"<hat>": -1}, f"{ADDED} gives the added token '<hat>' the id -1; {AN_ID}"),
    (ADDED, {"<hat>": 1.5}, f"{ADDED} gives the added token '<hat>' the id 1.5; {AN_ID}"),
    (ADDED, {"\ud800": 9}, f"{ADDED} gives the added token '\\ud800' the id 9; {AN_ID}"),
    (ADDED, {f"<{n}>": END + n for n in range(1, 30)}, f"{ADDED} has the token '<29>' with id {END + 29}; {CONFIG}'s text_config says vocab_size {END + 21}, rows of the token table"),
    (ADDED, {"newtoken": END + 1, "NewToken": END + 2}, f"the added tokens 'newtoken' of {ADDED} and 'NewToken' of {ADDED} are the same in lower case"),
    (SERIALIZED, {"model": BPE, "added_tokens": [{"content": "<hat>"}]}, f"{SERIALIZED} gives the added token '<hat>' the id null; {AN_ID}"),
    (SERIALIZED, {"model": BPE, "added_tokens": ["<hat>"]}, f"{SERIALIZED} says added_tokens \"<hat>\", for the token '<hat>'; {FLAGS}"),
    (SERIALIZED, {"model": BPE, "added_tokens": [{"id": 1, "content": 7}]}, f"{SERIALIZED} says added_tokens {{\"content\": 7}}, for the token 7; {FLAGS}"),
    (SERIALIZED, {"model": BPE | {"vocab": []}}, f"{SERIALIZED} says model.vocab []; expected an object"),
    (SERIALIZED, {"model": BPE | {"merges": {}}}, f"{SERIALIZED} says model.merges {{}}; expected a list"),
    (SERIALIZED, {"model": BPE | {"merges": [["a"]]}}, f'{SERIALIZED} says model.merges ["a"]; expected two tokens each'),
    (SERIALIZED, {"model": BPE | {"vocab": {"a": "0"}}}, f"{SERIALIZED}'s model gives the token 'a' the id \"0\"; expected a whole number"),
    (SERIALIZED, {"model": BPE | {"merges": ["q r"]}}, "the tokenizer's vocabulary and merges do not fit: Error while initializing BPE: Token `q` out of vocabulary; expected those of a CLIP in tokenizer.json"),
    ("vocab.json", {"th": -1}, "vocab.json gives the token 'th' the id -1; expected a whole number"),
    ("vocab.json", {"th": None}, "vocab.json gives the token 'th' the id null; expected a whole number"),
    (SERIALIZED, {"model": BPE, "truncation": {"max_length": "77"}}, f'{SERIALIZED} says truncation.max_length "77"; expected a whole number above 0'),
]  # fmt: skip

# A model_max_length that the libraries let pass and at which the model then fails.
TOO_LONG = [
    (TOKENIZER, {"model_max_length": 512}, f"{TOKENIZER} says model_max_length 512, which a bake cannot follow"),
    (TOKENIZER, {"model_max_length": 78}, f"{TOKENIZER} says model_max_length 78, which a bake cannot follow"),
    (MODULE, {"max_seq_length": 100}, f"{MODULE} says max_seq_length 100, which a bake cannot follow"),
]
EXPECTED_FILES = [
    CONFIG,
    TOKENIZER,
    IMAGES,
    SERIALIZED,
    MAP,
    ADDED,
    PROCESSOR,
    MODULES,
    MODULE,
    SENTENCES,
    "vocab.json",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint", **SMALL)


@pytest.fixture
def folder(small, tmp_path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "checkpoint"))


def sentence_with(folder: Path, name: str, content: str) -> str:
    """What opening the checkpoint says, after its name, where a file holds this; "" if it opens. Then the file is reset."""
    before = {path: path.read_bytes() if path.is_file() else None for path in (folder / name, folder / MODULES)}
    if name in (MODULE, SENTENCES):
        module = {"path": "", "type": "sentence_transformers.models.CLIPModel"}
        (folder / MODULES).write_text(json.dumps([module]))
    (folder / name).write_text(content)
    try:
        said = sentence_of(folder)
    finally:
        for path, bytes_ in before.items():
            path.unlink(missing_ok=True) if bytes_ is None else path.write_bytes(bytes_)
    assert not said or said.startswith(f"{folder}: ")
    return said.removeprefix(f"{folder}: ")


def sentence_of(folder: Path) -> str:
    """The sentence that refuses the checkpoint, "" if it opens."""
    try:
        open_checkpoint(str(folder))
    except CheckpointError as error:
        return str(error)
    return ""


def with_keys(folder: Path, name: str, part: str, values: dict) -> str:
    """The JSON of a file with these keys added to it, or to the object `part` in it."""
    content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    where = content.setdefault(part, {}) if part else content
    where |= values
    return json.dumps(content)


@pytest.mark.parametrize(("name", "part", "key", "values", "expected"), MISFITS)
def test_a_value_of_a_wrong_type_or_range_is_named(name, part, key, values, expected, folder):
    shown = f"{name}'s {part}" if part else name
    for value in values:
        said = sentence_with(folder, name, with_keys(folder, name, part, {key: value}))
        assert said == f"{shown} says {key} {keys.as_json(value)}; expected {expected}"


@pytest.mark.parametrize(("name", "values", "sentence"), [*SENTENCES_OF_TOKENS, *TOO_LONG])
def test_a_token_that_cannot_be_read_is_named_with_its_file(name, values, sentence, folder):
    assert sentence_with(folder, name, with_keys(folder, name, "", values)).startswith(sentence)


@pytest.mark.parametrize("name", EXPECTED_FILES)
def test_json_that_is_nested_deeply_is_a_sentence_about_its_file(name, folder):
    for deep in (
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a": ' + "[" * 5000 + "]" * 5000 + "}",
    ):
        said = sentence_with(folder, name, deep)
        assert said.startswith(name)
        assert len(said) < 300


def test_an_index_of_shards_is_read_as_carefully(folder):
    (folder / "model.safetensors").unlink()
    for content, sentence in (
        ("[" * 100_000, f"{SHARDS} is nested too deeply to be read; expected the JSON of a checkpoint"),
        ('{"weight_map": {"a": 3}}', f"{SHARDS} says weight_map.a 3; expected the name of a file"),
        (json.dumps({"weight_map": {LONG: [LONG]}}), f"{SHARDS} says "),
        (json.dumps({"weight_map": {"a": LONG}}), f"{SHARDS} names "),
    ):
        said = sentence_with(folder, SHARDS, content)
        assert said.startswith(sentence)
        assert longest_run(said) <= QUOTED_CHARACTERS


@pytest.mark.parametrize("kind", ["I8", "U8", "I64", "BOOL", "F8_E4M3", "F8_E5M2"])
def test_weights_that_are_no_floats_are_named(kind, folder):
    file = folder / "model.safetensors"
    shapes = {name: values.shape for name, values in load_file(file).items()}
    file.write_bytes(safetensors_of(kind, 8 if kind == "I64" else 1, shapes))
    said = sentence_of(folder).removeprefix(f"{folder}: ")
    assert said.startswith(f"tensor logit_scale is stored as {kind}, so it is quantized or no weight; expected")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("NOTICE.txt", b"\xff\xfe\0", "NOTICE.txt is not UTF-8 text: "),
        (MODULES, b"[]", "modules.json lists nothing; expected CLIPModel alone"),
        (MODULES, b'[{"path": "elsewhere"}]', 'modules.json says path "elsewhere"; expected the folder of a CLIP'),
        (TOKENIZER, b'{"eos_token": ""}', f'{TOKENIZER} says eos_token ""; expected text that is not empty'),
        (MAP, b'{"unk_token": ""}', f'{MAP} says unk_token ""; expected text that is not empty'),
    ],
)
def test_other_files_and_empty_ones_are_named_too(name, content, sentence, folder):
    (folder / name).write_bytes(content)
    assert sentence_of(folder).removeprefix(f"{folder}: ").startswith(sentence)


def safetensors_of(kind: str, size: int, shapes: dict[str, tuple[int, ...]]) -> bytes:
    """A safetensors file of tensors of zeros, of numbers of `size` bytes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + bytes(end)


def longest_run(said: str) -> int:
    """How many x stand in a row."""
    return max(len(run) for run in "".join(letter if letter == "x" else " " for letter in said).split(" "))


HOSTILE: list[Any] = [
    *(LONG, [LONG], {LONG: LONG}, [LONG] * 3, {"content": LONG}, {"__type": "AddedToken", "content": LONG, "lstrip": LONG}),
    *(int("7" * 4000), -5, 0.5, NAN, True, None, [], {}, "", "\ud800", "\x1b[31m\n\u202e\x9b", [[]], {"": {}}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, "") for name in keys.FOLLOWED),
        (CONFIG, "text_config"),
        (CONFIG, "vision_config"),
        (SERIALIZED, "model"),
    ],
)
def test_whatever_stands_in_a_key_the_sentence_is_short_and_names_the_file(name, part, folder):
    parts = {"model": {"type", "vocab", "merges"}}
    known = {*keys.FOLLOWED[name], *keys.REFUSED.get(name, {}), *keys.HARMLESS.get(name, ()), LONG, "image_token"}
    for key in parts.get(part, known):
        for value in HOSTILE:
            said = sentence_with(folder, name, with_keys(folder, name, part, {key: value}))
            assert longest_run(said.replace("vocab_size", "")) <= QUOTED_CHARACTERS, (key, value)
            assert "7" * (QUOTED_CHARACTERS + 1) not in said
            assert len(said) < 500, said
            assert said.isprintable(), said
            assert not said or ".json" in said or "merges" in said, said
            assert "does not hold what it should" not in said, (key, value, said)

"""A checkpoint's tokenizer, put together as transformers' CLIPTokenizer does.

tokenizer.json wins over vocab.json and merges.txt. Of it only vocabulary, merges, added tokens and limits on length
count, because CLIPTokenizer makes the other parts itself. Added tokens come from added_tokens_decoder in
tokenizer_config.json alone or, where that is absent, from added_tokens.json and tokenizer.json; only then
special_tokens_map.json counts too. They get their ids in the order in which they are added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from .. import model_dir
from ..errors import CheckpointError, cited, shortened
from ..model_dir import Tokens
from ..tokenizer import END, START, add_tokens, normalizer
from .keys import (
    ADDED_TOKENS,
    CONFIG,
    SPECIAL_TOKENS,
    TOKEN_KEYS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    as_json,
    check_keys,
    misfit,
    unfollowed,
)
from .kinds import NO_LIMIT, is_whole
from .layout import LAYOUTS, MERGES, VOCAB, read_object, read_text

EXTRA, OLD_EXTRA, DECODER = "extra_special_tokens", "additional_special_tokens", "added_tokens_decoder"
DEFAULTS: Mapping[str, AddedToken | str] = {"unk_token": END, "bos_token": START, "eos_token": END, "pad_token": END}
CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class CheckpointTokenizer:
    """merges: "left right", in order. max_length: the most ids of a text, None if no file sets a limit.

    highest: the token with the highest id, in the file highest_file.
    call_length: a limit that transformers' processor follows and its tokenizer does not, with its file and key.
    """

    vocab: dict[str, int]
    merges: list[str]
    tokens: Tokens
    max_length: int | None
    call_length: tuple[str, str, int] | None
    end_id: int
    pad_id: int
    highest: str
    highest_id: int
    highest_file: str


def read_tokenizer(folder: Path, config: Mapping, source: str) -> CheckpointTokenizer:
    """The tokenizer in `folder`. Raises CheckpointError naming a file or key that cannot be followed."""
    settings = read_object(folder / TOKENIZER_CONFIG, source) if (folder / TOKENIZER_CONFIG).is_file() else {}
    serialized = read_object(folder / TOKENIZER_JSON, source) if (folder / TOKENIZER_JSON).is_file() else {}
    check_class(settings, config, source)
    check_keys(settings, TOKENIZER_CONFIG, source)
    check_keys(serialized, TOKENIZER_JSON, source)
    check_sides(settings, serialized, source)
    vocab, merges = read_vocab(folder, serialized, source)
    named, added = read_tokens(folder, settings, serialized, source)
    tokens = Tokens(str(named["bos_token"]), str(named["eos_token"]), str(named["unk_token"]), added)
    files = files_with_tokens(folder, settings, serialized, source)
    for key in DEFAULTS:
        if not str(named[key]):
            raise misfit(file_of("", files) or TOKENIZER_CONFIG, key, "", source, "text that is not empty")
    check_distinct(added, files, source)
    bpe = build(vocab, merges, tokens, TOKENIZER_JSON if serialized else f"{VOCAB} and {MERGES}", source)
    end, pad = (bpe.token_to_id(str(named[key])) or 0 for key in ("eos_token", "pad_token"))
    limit, call_length = read_limit(settings), read_call_length(settings, serialized, source)
    highest, highest_id = max(bpe.get_vocab(True).items(), key=lambda item: item[1])
    highest_file = file_of(highest, files) or (TOKENIZER_JSON if serialized else VOCAB)
    return CheckpointTokenizer(vocab, merges, tokens, limit, call_length, end, pad, highest, highest_id, highest_file)


def bpe_files(vocab: Mapping[str, int], merges: Iterable[str]) -> dict[str, str]:
    """The files of a byte-pair tokenizer in a model directory: name -> content."""
    return {
        model_dir.VOCAB: json.dumps(vocab, ensure_ascii=False, separators=(",", ":")),
        model_dir.MERGES: "\n".join(["#version: 0.2", *merges, ""]),
    }


def files_with_tokens(folder: Path, settings: Mapping, serialized: Mapping, source: str) -> dict[str, object]:
    """The files that name added tokens, in the order in which they win, and what is in them."""
    files: dict[str, object] = {TOKENIZER_CONFIG: settings}
    if DECODER not in settings:
        older = (name for name in (SPECIAL_TOKENS, ADDED_TOKENS) if (folder / name).is_file())
        files |= {name: read_object(folder / name, source) for name in older}
        files[TOKENIZER_JSON] = serialized.get("added_tokens")
    return files


def file_of(token: str, files: Mapping[str, object]) -> str | None:
    """The first of these files that names a token, None if none does."""
    return next((name for name, content in files.items() if json.dumps(token) in json.dumps(content)), None)


def check_class(settings: Mapping, config: Mapping, source: str) -> None:
    """Raises CheckpointError if the files name another tokenizer than CLIP's."""
    for file, content in ((TOKENIZER_CONFIG, settings), (CONFIG, config)):
        if kind := content.get("tokenizer_class"):
            if kind not in CLASSES:
                raise unfollowed(file, "tokenizer_class", kind, source, *CLASSES)
            return


def read_vocab(folder: Path, serialized: Mapping, source: str) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges, from tokenizer.json, else from vocab.json and merges.txt."""
    if not serialized:
        if not (folder / VOCAB).is_file() or not (folder / MERGES).is_file():
            raise CheckpointError(f"{source}: there is no {TOKENIZER_JSON}, and no {VOCAB} with {MERGES}; {LAYOUTS}")
        lines = read_text(folder / MERGES, source).split("\n")
        merges = [line for line in lines if line and not line.startswith("#version")]
        return checked_vocab(read_object(folder / VOCAB, source), VOCAB, source), merges
    model = serialized.get("model") or {}
    if model.get("type") != "BPE":
        raise misfit(TOKENIZER_JSON, "model.type", model.get("type"), source, '"BPE", as CLIP has it')
    for key, type_, expected in (("vocab", dict, "an object"), ("merges", list, "a list")):
        if not isinstance(model.get(key), type_):
            raise misfit(TOKENIZER_JSON, f"model.{key}", model.get(key), source, expected)
    vocab = checked_vocab(model["vocab"], f"{TOKENIZER_JSON}'s model", source)
    return vocab, [checked_merge(merge, source) for merge in model["merges"]]


def checked_vocab(vocab: dict[str, int], file: str, source: str) -> dict[str, int]:
    """The vocabulary. Raises CheckpointError naming its first token that has no id."""
    wrong = next((token for token, number in vocab.items() if not is_whole(number, 0)), None)
    if wrong is not None:
        raise CheckpointError(
            f"{source}: {file} gives the token {cited(wrong)} the id {as_json(vocab[wrong])}; expected a whole number"
        )
    return vocab


def checked_merge(merge: object, source: str) -> str:
    """A merge of tokenizer.json, "left right". Raises CheckpointError if it is neither that nor a pair."""
    if isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge):
        return " ".join(merge)
    if not isinstance(merge, str):
        raise misfit(TOKENIZER_JSON, "model.merges", merge, source, 'two tokens each, ["a", "b"] or "a b"')
    return merge


Named = dict[str, AddedToken | str]  # tokens by their keys


def read_tokens(
    folder: Path,
    settings: Mapping,
    serialized: Mapping,
    source: str,
    defaults: Mapping[str, AddedToken | str] = DEFAULTS,
) -> tuple[Named, tuple[model_dir.AddedToken, ...]]:
    """The named tokens, by their keys, and all added tokens in the order in which they are added.

    defaults: the tokenizer's own named tokens, where no file says others.

    The steps, and their order, are those of transformers' PreTrainedTokenizerBase._from_pretrained.
    """
    found, said = dict(settings), {}
    if OLD_EXTRA in found and not found.get(EXTRA):
        found[EXTRA] = found.pop(OLD_EXTRA)
    own = {key: found.pop(key) for key in [*found] if is_own_name(key) and isinstance(found[key], str)}
    own |= pop_named_extra(found)
    if DECODER in settings:
        added = decoder_tokens(settings[DECODER], source)
    else:
        if (folder / SPECIAL_TOKENS).is_file():
            said = read_object(folder / SPECIAL_TOKENS, source)
            check_keys(said, SPECIAL_TOKENS, source)
            add_special_tokens(found, said, source)
            own |= pop_named_extra(found)
        added = older_added_tokens(folder, special_contents(found), serialized, source)

    def file_of_key(key: str) -> str:
        return SPECIAL_TOKENS if key in said else TOKENIZER_CONFIG

    by_content = {str(token): token for _, token in added}  # also one whose id another token took
    named = {
        key: as_token(key, found[key], file_of_key(key), source) for key in TOKEN_KEYS if found.get(key) is not None
    }
    named = {**defaults, **{key: by_content.get(str(token), token) for key, token in named.items()}}
    others = {key: value for key, value in found.items() if is_own_name(key) and is_token(value)} | own
    extra = found[EXTRA] if EXTRA in found else found.get(OLD_EXTRA)
    named |= {key: as_token(key, value, file_of_key(key), source) for key, value in others.items()}
    return named, in_order(
        dict(added), named, [as_token(EXTRA, token, file_of_key(EXTRA), source) for token in extra or []]
    )


def is_own_name(key: str) -> bool:
    """True for the name of a token that not every tokenizer has, such as image_token."""
    return key.endswith("_token") and key not in TOKEN_KEYS


def is_token(value: object) -> bool:
    return isinstance(value, str | AddedToken) or (isinstance(value, dict) and value.get("__type") == "AddedToken")


def pop_named_extra(found: dict) -> dict:
    """The extra tokens, if they are given by names; they are then no longer in `found`."""
    return found.pop(EXTRA) if isinstance(found.get(EXTRA), dict) else {}


def add_special_tokens(found: dict, said: Mapping, source: str) -> None:
    """Put what special_tokens_map.json says over what was found; its extra tokens come after those found."""
    for key, value in said.items():
        if isinstance(value, dict) and key != EXTRA:
            value = as_special(value, key, source)
        elif key == EXTRA and isinstance(value, list):
            before = list(found.get(EXTRA) or [])
            new = [as_special(token, key, source) if isinstance(token, dict) else token for token in value]
            value = before + [token for token in new if token not in before]
        found[key] = value


def decoder_tokens(decoder: object, source: str) -> list[tuple[int, AddedToken]]:
    """The tokens of added_tokens_decoder with their ids. Raises CheckpointError naming one that cannot be read."""
    if not isinstance(decoder, dict):
        raise misfit(TOKENIZER_CONFIG, DECODER, decoder, source, "an object of ids and tokens")
    for number in decoder:
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise misfit(TOKENIZER_CONFIG, f"{DECODER}.{number}", decoder[number], source, "an id before each token")
    return [
        (int(number), token_of(token, TOKENIZER_CONFIG, f"{DECODER}.{number}", source))
        for number, token in decoder.items()
    ]


def token_of(fields: object, file: str, key: str, source: str) -> AddedToken:
    """An added token by its fields in a file. Raises CheckpointError naming file, key and token if one is wrong."""
    content = fields.get("content") if isinstance(fields, dict) else fields
    if isinstance(fields, dict) and isinstance(content, str) and is_text(content) and has_flags(fields):
        return AddedToken(**fields)
    raise CheckpointError(
        f"{source}: {file} says {shortened(key)} {as_json(fields)}, for the token {cited(content)}; expected its "
        f"content as text, and true or false for {', '.join(FLAGS)}"
    )


def has_flags(fields: Mapping) -> bool:
    """True if all but the content of a token's fields are flags that are true or false."""
    flags = {key: value for key, value in fields.items() if key != "content"}
    return flags.keys() <= set(FLAGS) and all(isinstance(value, bool) for value in flags.values())


def is_text(content: str) -> bool:
    """True if UTF-8 can hold it; a lone surrogate is no text."""
    return content == content.encode(errors="replace").decode()


def as_special(value: Mapping, key: str, source: str) -> AddedToken:
    return token_of({**value, "special": True}, SPECIAL_TOKENS, key, source)


def special_contents(found: Mapping) -> set[str]:
    """The tokens that are special if added_tokens.json names them. One that is still an object is not."""
    return {str(found[key]) for key in TOKEN_KEYS if found.get(key)} | {str(token) for token in found.get(EXTRA) or []}


def older_added_tokens(
    folder: Path, special: set[str], serialized: Mapping, source: str
) -> list[tuple[int, AddedToken]]:
    """The added tokens with their ids, of added_tokens.json and then of tokenizer.json, which wins."""
    added: list[tuple[int, AddedToken]] = []
    if (folder / ADDED_TOKENS).is_file():
        for content, number in read_object(folder / ADDED_TOKENS, source).items():
            check_id(content, number, ADDED_TOKENS, source)
            is_special = content in special
            added.append((number, AddedToken(content, normalized=not is_special, special=is_special)))
    for token in serialized.get("added_tokens") or []:
        fields = {key: value for key, value in token.items() if key != "id"} if isinstance(token, dict) else token
        found = token_of(fields, TOKENIZER_JSON, "added_tokens", source)
        check_id(found.content, token.get("id"), TOKENIZER_JSON, source)
        added.append((token["id"], found))
    return added


def check_id(content: str, number: object, file: str, source: str) -> None:
    """Raises CheckpointError if an added token has no id that a token may have, or is no text."""
    if not is_whole(number, 0) or not is_text(content):
        raise CheckpointError(
            f"{source}: {file} gives the added token {cited(content)} the id {as_json(number)}; expected text and a "
            "whole number"
        )


def as_token(key: str, value: object, file: str, source: str) -> AddedToken | str:
    """A token that a file gives as text, or as an object with flags. Raises CheckpointError for anything else."""
    if isinstance(value, AddedToken) or (isinstance(value, str) and is_text(value)):
        return value
    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        return token_of({flag: value[flag] for flag in ("content", *FLAGS) if flag in value}, file, key, source)
    raise unfollowed(file, shortened(key), value, source, END)


def in_order(
    added: Mapping[int, AddedToken], named: Mapping[str, AddedToken | str], extra: list[AddedToken | str]
) -> tuple[model_dir.AddedToken, ...]:
    """All tokens in the order in which CLIPTokenizer adds them: by id, then the named ones, then the extra ones."""
    tokens: list[AddedToken | str] = [added[number] for number in sorted(added)]
    known = {str(token) for token in tokens}
    keys = [*TOKEN_KEYS, *(key for key in named if key not in TOKEN_KEYS)]
    for token in [*(named[key] for key in keys if key in named), *extra]:
        if str(token) not in known and token not in tokens:
            tokens.append(token)
    names = {str(token) for token in named.values()}
    return tuple(flags_of(token, names) for token in tokens)


def flags_of(token: AddedToken | str, named: set[str]) -> model_dir.AddedToken:
    """The token with its flags. One given as text is special, as is one that has a name."""
    token = AddedToken(token, special=True) if isinstance(token, str) else token
    flags = {flag: getattr(token, flag) for flag in FLAGS}
    return model_dir.AddedToken(token.content, **flags | {"special": token.special or token.content in named})


def check_distinct(added: Iterable[model_dir.AddedToken], files: Mapping[str, object], source: str) -> None:
    """Raises CheckpointError if two tokens are the same once normalized: `tokenizers` then finds either, at random."""
    seen: dict[str, str] = {}
    for token in added:
        if token.normalized:
            before = seen.setdefault(normalizer().normalize_str(token.content), token.content)
            if before != token.content:
                raise CheckpointError(
                    f"{source}: the added tokens {cited(before)} of {file_of(before, files)} and "
                    f"{cited(token.content)} of {file_of(token.content, files)} are the same in lower case, so which "
                    "of them a text gets is left to chance; expected one of them, or normalized false"
                )


def build(vocab: dict[str, int], merges: list[str], tokens: Tokens, file: str, source: str) -> Tokenizer:
    """The vocabulary, merges and added tokens as one tokenizer. Raises CheckpointError where they do not fit."""
    try:
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
        bpe = Tokenizer(BPE(vocab, pairs, unk_token=tokens.unknown, end_of_word_suffix="</w>"))
        add_tokens(bpe, tokens)
    except Exception as error:  # tokenizers raises Exception itself
        raise CheckpointError(
            f"{source}: the tokenizer's vocabulary and merges do not fit: {shortened(error)}; expected those of a CLIP "
            f"in {file}"
        ) from error
    return bpe


def read_limit(settings: Mapping) -> int | None:
    """The most ids of a text by model_max_length, None if there is no limit."""
    limit = settings.get("model_max_length", settings.get("max_len"))
    return None if limit is None or limit > NO_LIMIT else limit


def read_call_length(settings: Mapping, serialized: Mapping, source: str) -> tuple[str, str, int] | None:
    """File, key and value of the limit that transformers' processor passes to its tokenizer, None if there is none."""
    if "max_length" in settings:
        found = TOKENIZER_CONFIG, "max_length", settings["max_length"]
    elif truncation := serialized.get("truncation"):
        found = TOKENIZER_JSON, "truncation.max_length", truncation.get("max_length")
    else:
        strategy = (serialized.get("padding") or {}).get("strategy")
        found = TOKENIZER_JSON, "padding.strategy", strategy.get("Fixed") if isinstance(strategy, dict) else None
    file, key, value = found
    if value is not None and not is_whole(value):
        raise misfit(file, key, value, source, "a whole number above 0")
    return None if value is None else found


def check_sides(settings: Mapping, serialized: Mapping, source: str) -> None:
    """Raises CheckpointError if tokenizer.json cuts or pads on the left, or pads to a multiple."""
    for part, key, own, value in (
        ("truncation", "direction", "truncation_side", "Right"),
        ("padding", "direction", "padding_side", "Right"),
        ("padding", "pad_to_multiple_of", "pad_to_multiple_of", None),
    ):
        found = (serialized.get(part) or {}).get(key, value)
        if found != value and own not in settings:
            raise unfollowed(TOKENIZER_JSON, f"{part}.{key}", found, source, value)

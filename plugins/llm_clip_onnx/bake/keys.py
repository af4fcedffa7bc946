"""The keys of a checkpoint's JSON files, config.json, tokenizer_config.json and others: followed, refused, harmless.

The rules are those of transformers 5 and sentence-transformers 6. A key that changes ids, pixels or vectors there, and
that a bake does not follow, is refused by name unless it has a value that changes nothing. A key that is in no table is
one that these libraries ignore, and so does a bake.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..errors import QUOTED_CHARACTERS, CheckpointError, printable, shortened
from .kinds import (
    ACTIVATION,
    ANYTHING,
    CROP,
    DEVIATIONS,
    FILTER,
    LENGTH,
    LIST,
    MEANS,
    OBJECT,
    POSITIVE,
    SIZE,
    SQUARE,
    SWITCH,
    TEXT,
    THREE_CHANNELS,
    TOKENS,
    WHOLE,
    Kind,
)

CONFIG, PREPROCESSOR, PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
TOKENIZER_CONFIG, TOKENIZER_JSON = "tokenizer_config.json", "tokenizer.json"
ADDED_TOKENS, SPECIAL_TOKENS = "added_tokens.json", "special_tokens_map.json"
MODULES, SENTENCES, MODULE = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"

OFF = (None, False)
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
CLIP_FEATURES = {
    name: {"method": f"get_{name}_features", "method_output_name": "pooler_output"} for name in ("text", "image")
}

TEXT_KEYS = {  # of text_config
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), WHOLE),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "eos_token_id"), WHOLE),
    **{"hidden_act": ACTIVATION, "layer_norm_eps": POSITIVE},
}
VISION_KEYS = {  # of vision_config
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), WHOLE),
    **{"hidden_act": ACTIVATION, "layer_norm_eps": POSITIVE, "num_channels": THREE_CHANNELS},
    **dict.fromkeys(("image_size", "patch_size"), SQUARE),
}
CONFIG_KEYS = {
    **dict.fromkeys(("text_config", "text_config_dict", "vision_config", "vision_config_dict"), OBJECT),
    **dict.fromkeys(("projection_dim", "max_position_embeddings"), WHOLE),
    **dict.fromkeys(("model_type", "tokenizer_class", "image_processor_type", "processor_class"), ANYTHING),
}

# File -> key -> what its value must be.
FOLLOWED: dict[str, dict[str, Kind]] = {
    CONFIG: TEXT_KEYS | VISION_KEYS | CONFIG_KEYS,
    TOKENIZER_CONFIG: {
        **dict.fromkeys((*TOKEN_KEYS, "tokenizer_class", "processor_class"), ANYTHING),
        **{"model_max_length": LENGTH, "max_len": LENGTH, "max_length": WHOLE, "added_tokens_decoder": OBJECT},
        **dict.fromkeys(("extra_special_tokens", "additional_special_tokens"), TOKENS),
    },
    TOKENIZER_JSON: {"model": OBJECT, "added_tokens": LIST, "truncation": OBJECT, "padding": OBJECT},
    ADDED_TOKENS: {},
    SPECIAL_TOKENS: {
        **dict.fromkeys(TOKEN_KEYS, ANYTHING),
        **{"extra_special_tokens": TOKENS, "additional_special_tokens": LIST},
    },
    PREPROCESSOR: {
        **{"size": SIZE, "default_to_square": SWITCH, "crop_size": CROP, "resample": FILTER},
        **{"rescale_factor": POSITIVE, "image_mean": MEANS, "image_std": DEVIATIONS},
        **dict.fromkeys(("image_processor_type", "feature_extractor_type", "processor_class"), ANYTHING),
    },
    PROCESSOR: {"image_processor": OBJECT, "processor_class": ANYTHING},
    MODULES: {"type": TEXT, "path": TEXT},
    MODULE: {"max_seq_length": LENGTH, "modality_config": ANYTHING},
    SENTENCES: {"prompts": OBJECT, "default_prompt_name": TEXT},
}

IMAGE_KEYS = (  # what transformers takes from a tokenizer's config for images too
    *STEPS,
    *("do_convert_rgb", "size", "default_to_square", "crop_size", "resample", "rescale_factor", "image_mean"),
    *("image_std", "do_pad", "pad_size"),
)

# File -> key -> the values that change nothing. () refuses the key whatever it holds.
REFUSED: dict[str, dict[str, tuple]] = {
    CONFIG: {
        "quantization_config": (None,),
        "transformers_weights": (None,),
        "configuration_files": (),
        "per_layer_config": (None,),
    },
    TOKENIZER_CONFIG: {
        "truncation_side": ("right",),
        "padding_side": ("right",),
        "split_special_tokens": OFF,
        "add_special_tokens": (True,),
        "is_split_into_words": OFF,
        "pad_to_multiple_of": (None,),
        "return_overflowing_tokens": OFF,
        "return_mm_token_type_ids": OFF,
        "return_text_replacement_offsets": OFF,
        "sanitize_control_tokens": OFF,
        "text_pair": (None,),
        "text_target": (None,),
        "text_pair_target": (None,),
        "vocab": (),
        "merges": (),
        "init_inputs": ([],),
        "fast_tokenizer_files": ([TOKENIZER_JSON],),
        "model_specific_special_tokens": (None, {}),
        "tokenizer_object": (None,),
        "tokenizer_truncation": (None,),
        "tokenizer_padding": (None,),
        "_json_truncation": (None,),
        "_json_padding": (None,),
        "gguf_file": (None,),
        "post_processor": (None,),
        **dict.fromkeys(IMAGE_KEYS, ()),
    },
    PREPROCESSOR: {
        **dict.fromkeys((*STEPS, "do_convert_rgb"), (True,)),
        "pad_size": (None,),
        "use_square_size": OFF,
    },
    MODULE: {
        "transformer_task": ("feature-extraction",),
        "modality_config": (CLIP_FEATURES,),
        "module_output_name": ("sentence_embedding",),
        "processing_kwargs": (None, {}),
        "tokenizer_name_or_path": (None,),
        "processor_name": (None,),
        "model_kwargs": (None, {}),
        "model_args": (None, {}),
        "processor_kwargs": (None, {}),
        "tokenizer_args": (None, {}),
        "config_kwargs": (None, {}),
        "config_args": (None, {}),
        "backend": (),
    },
    SENTENCES: {"truncate_dim": (None,), "model_type": ("SentenceTransformer",)},
}

# Keys that the libraries read, and that change no id, pixel or vector of one text or image.
HARMLESS: dict[str, tuple[str, ...]] = {
    CONFIG: (
        *("logit_scale_init_value", "initializer_factor", "initializer_range", "attention_dropout", "pad_token_id"),
        *("bos_token_id", "dtype", "torch_dtype", "architectures", "transformers_version"),
    ),
    TOKENIZER_CONFIG: (
        *("padding", "truncation", "truncation_strategy", "stride", "verbose", "return_tensors", "return_length"),
        *("return_token_type_ids", "return_attention_mask", "return_special_tokens_mask", "return_offsets_mapping"),
        *("clean_up_tokenization_spaces", "model_input_names", "add_prefix_space", "add_bos_token", "add_eos_token"),
        *("data_format", "input_data_format", "device", "disable_grouping", "image_seq_length", "chat_template"),
        *("response_template", "response_schema", "chat_control_tokens", "backend", "files_loaded", "name_or_path"),
        *("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", "vocab_file", "tokenizer_file"),
        *("pad_token_type_id", "auto_map", "fix_mistral_regex", "unk_id", "tokenizer", "legacy"),
        "_spm_precompiled_charsmap",
    ),
    PREPROCESSOR: (
        *("data_format", "input_data_format", "device", "return_tensors", "disable_grouping", "image_seq_length"),
        *("do_pad", "auto_map"),
    ),
    MODULE: ("do_lower_case", "unpad_inputs", "query_length", "document_length", "query_expansion"),
    SENTENCES: ("similarity_fn_name", "__version__", "requirements"),
}


def check_keys(
    content: Mapping,
    file: str,
    source: str,
    shown: str = "",
    kinds: Mapping[str, Kind] | None = None,
    refused: Mapping[str, tuple] | None = None,
) -> None:
    """Raises CheckpointError naming the first key of `content`, read from `file`, that a bake cannot follow.

    It has a value of another kind, or changes results. `shown` is the file's path, where that is another than `file`;
    `kinds` are those of its keys and `refused` the values that change nothing, where they are not all that `file` has.
    """
    for key, values in (REFUSED.get(file, {}) if refused is None else refused).items():
        if key in content and not any(content[key] is value or content[key] == value for value in values):
            raise unfollowed(shown or file, key, content[key], source, *values)
    for key, kind in (FOLLOWED[file] if kinds is None else kinds).items():
        if content.get(key) is not None and not kind.holds(content[key]):
            raise misfit(shown or file, key, content[key], source, kind.expected)


def unfollowed(file: str, key: str, value: object, source: str, *expected: object) -> CheckpointError:
    """The refusal of a key: its file, its value, and the values that can be baked."""
    allowed = " or ".join(map(as_json, expected)) or "no such key"
    return CheckpointError(
        f"{source}: {file} says {key} {as_json(value)}, which a bake cannot follow; it would give other results than "
        f"the checkpoint's own libraries; expected {allowed}"
    )


def misfit(file: str, key: str, value: object, source: str, expected: str) -> CheckpointError:
    """The refusal of a value of a wrong type or range: its file, its key, and what is expected."""
    return CheckpointError(f"{source}: {file} says {shortened(key)} {as_json(value)}; expected {expected}")


def as_json(value: object) -> str:
    """`value` as JSON, cut after 60 characters."""
    try:
        text = printable(json.dumps(value, ensure_ascii=False)[: 2 * QUOTED_CHARACTERS])
    except RecursionError:
        text = f"a {type(value).__name__} that is nested deeply"
    return text if len(text) <= QUOTED_CHARACTERS else f"{text[: QUOTED_CHARACTERS - 1]}…"

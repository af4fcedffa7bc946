"""Reads a checkpoint in open_clip's layout: its config, its tensors, the steps of its images, CLIP's tokenizer.

It follows what open_clip 3.3 does with a folder (`local-dir:`) or a repository (`hf-hub:`), and refuses what a bake
cannot follow: towers of other libraries, other ways to pool, custom blocks.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from PIL import Image

from ...errors import CheckpointError, shortened
from ...model_dir import Preprocess, Source, Tokens, sha256_of
from ..checkpoint import Checkpoint, check_shapes, clip_checkpoint
from ..image_processor import three_numbers
from ..keys import misfit, unfollowed
from ..kinds import DEVIATIONS, MEANS, OBJECT, POSITIVE, SQUARE, SWITCH, TEXT, WHOLE, Kind, is_whole
from ..layout import MERGES, NOTICE, other_weights, read_notice, read_object, read_text, require_torch
from ..tensors import Part, RenamedTensors, open_tensors
from ..tokenizer_files import bpe_files
from ..towers import TowerConfig
from ..towers.clip import ClipConfig, expected_shapes

CONFIG = "open_clip_config.json"
SAFETENSORS, PICKLE = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
PACKAGE = "open-clip-torch"
MERGES_SHA256 = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"  # of CLIP's merges
START, END = "<start_of_text>", "<end_of_text>"
END_OF_WORD = "</w>"
TOKENS = Tokens(START, END, END, (), "open_clip")
LAYER_NORM_EPS = 1e-5  # torch.nn.LayerNorm's
HIGHEST_ID = 2  # the eos_token_id that means the highest id of a text, which open_clip's argmax reads
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZES = ("shortest", "squash", "longest")
DEFAULTS: dict[str, dict] = {  # of open_clip's CLIPVisionCfg, CLIPTextCfg and PreprocessCfg
    "vision_cfg": {
        "layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224,
    },
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0,
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0,
    },
}  # fmt: skip
LEVEL = Kind("a level from 0 to 255", lambda value: is_whole(value, 0) and value < 256)
FOLLOWED: dict[str, dict[str, Kind]] = {  # part -> key -> what its value must be
    "model_cfg": {"embed_dim": WHOLE, "vision_cfg": OBJECT, "text_cfg": OBJECT, "quick_gelu": SWITCH},
    "vision_cfg": {
        **dict.fromkeys(("layers", "width", "head_width"), WHOLE),
        **{"mlp_ratio": POSITIVE, "image_size": SQUARE, "patch_size": SQUARE},
    },
    "text_cfg": {
        **dict.fromkeys(("context_length", "vocab_size", "width", "heads", "layers"), WHOLE),
        "mlp_ratio": POSITIVE,
    },
    "preprocess_cfg": {
        **{"mean": MEANS, "std": DEVIATIONS, "size": SQUARE, "interpolation": TEXT, "resize_mode": TEXT},
        "fill_color": LEVEL,
    },
}
OFF = (None, False)
BLOCKS = {  # of both towers
    "block_type": (None, "default"),
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), OFF
    ),
    **{"ls_init_value": (None,), "final_ln_after_pool": OFF, "output_tokens": OFF, "act_kwargs": (None, {})},
    "norm_kwargs": (None, {}),
}
REFUSED: dict[str, dict[str, tuple]] = {  # part -> key -> the values that change nothing
    "model_cfg": {"init_logit_bias": (None,), "multimodal_cfg": (), "nonscalar_logit_scale": OFF},
    "vision_cfg": BLOCKS
    | {"timm_model_name": (None,), "attentional_pool": OFF, "no_ln_pre": OFF, "pos_embed_type": ("learnable",)}
    | {"pool_type": ("tok",)},
    "text_cfg": BLOCKS
    | {
        "hf_model_name": (None,),
        "hf_tokenizer_name": (None,),
        "tokenizer_mode": (None,),
        "tokenizer_kwargs": (None, {}),
    }
    | {"embed_cls": OFF, "no_causal_mask": OFF, "pool_type": ("argmax",), "proj_type": ("linear",), "proj_bias": OFF},
    "preprocess_cfg": {"mode": ("RGB",)},
}
HARMLESS: dict[str, tuple[str, ...]] = {  # read by open_clip, and without effect on these towers
    "model_cfg": ("custom_text", "init_logit_scale", "output_dict", "cast_dtype"),
    "vision_cfg": (
        *("patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool"),
        *("timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"),
    ),
    "text_cfg": ("pad_id", "eos_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
}
IGNORED_TENSORS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # of models that torch has traced


def read_checkpoint(root: Path, source: str, commit: str | None) -> Checkpoint:
    """The checkpoint in the folder `root`. Raises CheckpointError."""
    content = read_object(root / CONFIG, source)
    config = read_config(root / CONFIG, source)
    file = root / weights_name({file.name for file in root.iterdir()}, source)
    tensors = rename(config, open_tensors([file], source), file.name, source)
    check_shapes(expected_shapes(config), tensors, CONFIG, source)
    vocab, merges = read_vocab(root, source)
    if len(vocab) > config.vocab_size:
        raise misfit(CONFIG, "text_cfg.vocab_size", config.vocab_size, source, f"at least CLIP's {len(vocab)}")
    preprocess = read_preprocess(content, config.side, source)
    origin = Source(source, commit, {file.name: sha256_of(file)}, read_notice(root, source))
    files = bpe_files(vocab, merges)
    return clip_checkpoint(origin, config, tensors, preprocess, files, TOKENS, config.context_length)


def needed_files(names: set[str], config: Path, source: str) -> list[str]:
    """Names of the files that a bake needs, of a repository's files `names`. Raises CheckpointError as read_config."""
    read_config(config, source)
    weights = weights_name(names, source)
    if weights == PICKLE:
        require_torch(source, PICKLE)
    return [weights, *(name for name in (MERGES, NOTICE) if name in names)]


def weights_name(names: set[str], source: str) -> str:
    """The name of the file that holds the weights. Raises CheckpointError if there is none."""
    for name in (SAFETENSORS, PICKLE):
        if name in names:
            return name
    raise CheckpointError(f"{source}: no weights; expected {SAFETENSORS} or {PICKLE}{other_weights(names)}")


def read_config(file: Path, source: str) -> ClipConfig:
    """The config of a checkpoint. Raises CheckpointError naming a part that cannot be baked."""
    content = read_object(file, source)
    model = content.get("model_cfg")
    if not isinstance(model, dict):
        raise misfit(CONFIG, "model_cfg", model, source, "an object, as open_clip's push_to_hf_hub writes it")
    check_part("model_cfg", model, source)
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if model.get(key) is None:
            raise misfit(CONFIG, f"model_cfg.{key}", None, source, FOLLOWED["model_cfg"][key].expected)
    image, text = (part_of(model, name, source) for name in ("vision_cfg", "text_cfg"))
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return ClipConfig(
        text=tower_config(text, text["heads"], activation, "text_cfg", source),
        image=tower_config(image, image["width"] // image["head_width"], activation, "vision_cfg", source),
        embed_dim=model["embed_dim"],
        vocab_size=text["vocab_size"],
        context_length=text["context_length"],
        end_id=HIGHEST_ID,
        side=one_side(image["image_size"]),
        patch=one_side(image["patch_size"]),
    )


def part_of(content: Mapping, name: str, source: str) -> dict:
    """A part of the config with open_clip's defaults. Raises CheckpointError naming a key that cannot be followed."""
    part = content.get(name) or {}
    check_part(name, part, source)
    return DEFAULTS[name] | {key: value for key, value in part.items() if value is not None}


def check_part(name: str, part: Mapping, source: str) -> None:
    """Raises CheckpointError naming the first key of a part of the config that a bake cannot follow."""
    for key, value in part.items():
        if key in REFUSED[name]:
            if value not in REFUSED[name][key]:
                raise unfollowed(CONFIG, f"{name}.{key}", value, source, *REFUSED[name][key])
        elif kind := FOLLOWED[name].get(key):
            if value is not None and not kind.holds(value):
                raise misfit(CONFIG, f"{name}.{shortened(key)}", value, source, kind.expected)
        elif name != "preprocess_cfg" and key not in HARMLESS[name]:
            raise unfollowed(CONFIG, f"{name}.{shortened(key)}", value, source)


def one_side(size: int | list[int]) -> int:
    return size[0] if isinstance(size, list) else size


def tower_config(part: Mapping, heads: int, activation: str, name: str, source: str) -> TowerConfig:
    """The sizes of a tower. Raises CheckpointError if its heads do not divide its width."""
    width = part["width"]
    if not heads or width % heads:
        raise CheckpointError(f"{source}: {CONFIG}'s {name} says width {width}, no multiple of its {heads} heads")
    return TowerConfig(width, int(width * part["mlp_ratio"]), part["layers"], heads, activation, LAYER_NORM_EPS)


def read_preprocess(content: Mapping, side: int, source: str) -> Preprocess:
    """The steps for images of `side` pixels. Raises CheckpointError naming a key that cannot be followed."""
    if not isinstance(content.get("preprocess_cfg") or {}, dict):
        raise misfit(CONFIG, "preprocess_cfg", content["preprocess_cfg"], source, "an object")
    steps = part_of(content, "preprocess_cfg", source)
    for key, known in (("interpolation", FILTERS), ("resize_mode", RESIZES)):
        if steps[key] not in known:
            raise unfollowed(CONFIG, f"preprocess_cfg.{key}", steps[key], source, *known)
    mean, std = (three_numbers(steps, key) for key in ("mean", "std"))
    resample, resize = int(FILTERS[steps["interpolation"]]), steps["resize_mode"]
    return Preprocess(side, side, resample, mean, std, 1 / 255, resize, int(steps["fill_color"]), "open_clip")


def rename(config: ClipConfig, stored, file: str, source: str) -> RenamedTensors:
    """The tensors under transformers' names. Raises CheckpointError for one that these towers do not have."""
    text = "" if "text_projection" in stored or "positional_embedding" in stored else "text."
    parts = dict(parts_of(config, text))
    known = {part.stored for part in parts.values()}
    other = next((name for name in stored if name not in known and name not in IGNORED_TENSORS), None)
    if other is not None:
        raise CheckpointError(
            f"{source}: {file} has the tensor {shortened(other)}, which a CLIP of {CONFIG} does not have; a "
            "bake cannot follow what it is for"
        )
    return RenamedTensors(stored, parts)


def parts_of(config: ClipConfig, text: str) -> Iterator[tuple[str, Part]]:
    """transformers' name of each tensor, and where open_clip has it. text: the prefix of the text tower's tensors."""
    yield "logit_scale", Part("logit_scale")
    yield "text_model.embeddings.token_embedding.weight", Part(f"{text}token_embedding.weight")
    yield "text_model.embeddings.position_embedding.weight", Part(f"{text}positional_embedding")
    yield "text_projection.weight", Part(f"{text}text_projection", transposed=True)
    yield "vision_model.embeddings.class_embedding", Part("visual.class_embedding")
    yield "vision_model.embeddings.patch_embedding.weight", Part("visual.conv1.weight")
    yield "vision_model.embeddings.position_embedding.weight", Part("visual.positional_embedding")
    yield "visual_projection.weight", Part("visual.proj", transposed=True)
    names = {
        "text_model.final_layer_norm": f"{text}ln_final",
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
    }
    for theirs, ours, tower in (("text_model", f"{text}transformer", config.text),
                                ("vision_model", "visual.transformer", config.image)):  # fmt: skip
        for n in range(tower.layers):
            layer, block = f"{theirs}.encoder.layers.{n}", f"{ours}.resblocks.{n}"
            names |= {
                f"{layer}.layer_norm1": f"{block}.ln_1",
                f"{layer}.layer_norm2": f"{block}.ln_2",
                f"{layer}.self_attn.out_proj": f"{block}.attn.out_proj",
                f"{layer}.mlp.fc1": f"{block}.mlp.c_fc",
                f"{layer}.mlp.fc2": f"{block}.mlp.c_proj",
            }
            for third, part in enumerate("qkv"):
                for kind in ("weight", "bias"):
                    yield f"{layer}.self_attn.{part}_proj.{kind}", Part(f"{block}.attn.in_proj_{kind}", third)
    for name, stored in names.items():
        for kind in ("weight", "bias"):
            yield f"{name}.{kind}", Part(f"{stored}.{kind}")


def read_vocab(root: Path, source: str) -> tuple[dict[str, int], list[str]]:
    """CLIP's vocabulary and merges, from the folder's merges.txt or else from open_clip's package.

    Raises CheckpointError if neither has them, and for a merges.txt that is not CLIP's, whose sha256 is known.
    """
    there = {MERGES} if (root / MERGES).is_file() else set()
    require_merges(there, source)
    merges = merges_of_folder(root, source) if there else merges_of_package()
    if hashlib.sha256("\n".join(merges).encode()).hexdigest() != MERGES_SHA256:
        raise CheckpointError(
            f"{source}: {MERGES} has other merges than CLIP's, which open_clip takes in any case; expected CLIP's, or "
            "no such file if the weights were trained with CLIP's"
        )
    bytes_ = list(byte_characters())
    words = [*bytes_, *(f"{character}{END_OF_WORD}" for character in bytes_), *(m.replace(" ", "") for m in merges)]
    return {word: number for number, word in enumerate([*words, START, END])}, merges


def require_merges(names: set[str], source: str) -> None:
    """Raises CheckpointError if neither a checkpoint's files `names` nor open_clip's package has CLIP's merges."""
    if MERGES not in names and not merges_of_package():
        raise CheckpointError(
            f"{source}: CLIP's {MERGES} is needed, which open_clip has in itself: pip install --no-deps {PACKAGE}, or "
            "put it into the folder"
        )


def merges_of_package() -> list[str]:
    """The merges of open_clip's own file, none if that package is not installed."""
    try:
        file = distribution(PACKAGE).locate_file("open_clip/bpe_simple_vocab_16e6.txt.gz")
        lines = gzip.decompress(Path(str(file)).read_bytes()).decode().split("\n")
    except (PackageNotFoundError, OSError):
        return []
    return lines[1:48895]  # as SimpleTokenizer reads it


def merges_of_folder(root: Path, source: str) -> list[str]:
    return [line for line in read_text(root / MERGES, source).split("\n") if line and not line.startswith("#version")]


def byte_characters() -> Iterator[str]:
    """The characters that stand for the 256 bytes in a vocabulary: printable ones first. Source: bytes_to_unicode."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from map(chr, printable)
    yield from (chr(256 + n) for n in range(256 - len(printable)))

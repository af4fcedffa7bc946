"""THE CONTRACT between the bake and the server: what is in a model directory, and what its manifest says.

    manifest.json   the facts below, written last: a directory without one was never finished
    text.onnx       graph of the text tower,  its weights in text.bin
    image.onnx      graph of the image tower, its weights in image.bin
    probe.onnx      one 8-bit product, by which a server sees whether its processor multiplies signed levels exactly
    vocab.json      tokens to ids
    merges.txt      the byte-pair merges, in order; for another tokenizer than CLIP's, instead of these two
    tokenizer.json  the `tokenizers` library's file, without a limit on length
    pairs.npy       instead of these, with characters.json, of a SigLIP 2: its merges, mapped, see byte_pairs.py
    text.npy        the reference's embeddings of the bake's fixed texts, float32, for `llm clip verify`
    image.npy       the same of its fixed images
    labels/         label sets, baked later or not at all, with facts of their own: label_sets.py

An 8-bit tower has its 8-bit matrices twice, and of the two only one is ever opened:

    text.uint8.bin  for text.onnx: unsigned levels, exact on every processor
    text.int8.bin   for text.int8.onnx: signed levels, faster where they are exact too

It opens no tower and reads no image, and imports neither onnxruntime nor Pillow nor numpy.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

from .errors import ModelDirError, cited, shortened

FORMAT = 2
MANIFEST = "manifest.json"
TEXT_TOWER, TEXT_WEIGHTS = "text.onnx", "text.bin"
IMAGE_TOWER, IMAGE_WEIGHTS = "image.onnx", "image.bin"
PROBE = "probe.onnx"
UNSIGNED_SUFFIX, SIGNED_SUFFIX = ".uint8.bin", ".int8.bin"  # of files with 8-bit matrices
SIGNED_TOWER_SUFFIX = ".int8.onnx"
SIGN_BIT = 0x80  # flipping this bit turns an unsigned level into the same level minus 128 as int8
VOCAB, MERGES = "vocab.json", "merges.txt"
TEXT_REFERENCE, IMAGE_REFERENCE = "text.npy", "image.npy"
LABELS = "labels"
DEFAULT_NAME = "clip-model"  # beside the files of llm
PIECE_BYTES = 8_000_000
FILES = (TEXT_TOWER, TEXT_WEIGHTS, IMAGE_TOWER, IMAGE_WEIGHTS, PROBE, TEXT_REFERENCE, IMAGE_REFERENCE)  # of all
TOKENIZER = "tokenizer.json"
PAIRS, CHARACTERS = "pairs.npy", "characters.json"
BYTE_PAIRS = (VOCAB, MERGES)  # the tokenizer's files, but for those of Tokens.library
TOKENIZER_FILES = {"big_vision": (TOKENIZER,), "gemma": (PAIRS, CHARACTERS), "wordpiece": (TOKENIZER,)}
READ: dict[str, tuple[str, ...]] = {  # keys of manifest.json -> the values that this version can follow
    "preprocess.resize": ("shortest", "squash", "longest"),
    "preprocess.library": ("transformers", "open_clip"),
    "tokens.library": ("transformers", "open_clip", *TOKENIZER_FILES),
}
EIGHT_BIT_SUFFIXES = (UNSIGNED_SUFFIX, SIGNED_SUFFIX, SIGNED_TOWER_SUFFIX)  # of files beside FILES


@dataclass(frozen=True)
class Preprocess:
    """How the checkpoint's images become pixels: resized, cropped to crop x crop, scaled and normalised.

    resize: "shortest" makes the shortest side `shortest_side` and crops the centre, "squash" makes crop x crop of any
    shape, "longest" makes the longest side `crop` and lays the image in the centre of a canvas of the level `fill`.
    library: how the image is read. "transformers" makes RGB of it first, with transparency on white; "open_clip"
    resizes it in its own Pillow mode and drops alpha afterwards, and `fill` too is a level of that mode.
    """

    shortest_side: int  # pixels
    crop: int  # pixels; the image tower reads [3, crop, crop]
    resample: int  # Pillow's number of the filter
    mean: tuple[float, float, float]  # per channel, after scaling
    std: tuple[float, float, float]
    scale: float  # a level, 0 to 255, times this
    resize: str = "shortest"  # these three are not in manifest.json where they have their defaults
    fill: int = 0
    library: str = "transformers"

    def to_dict(self) -> dict:
        """The steps as manifest.json has them."""
        defaults = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in asdict(self).items() if value != defaults[key]}


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text before its words, with the flags of the `tokenizers` library."""

    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


@dataclass(frozen=True)
class Tokens:
    """The tokens that begin and end a text and stand for unknown characters, and all added ones, in order.

    library: whose rules clean a text and find its words: "transformers", "open_clip", "big_vision", of a SigLIP, or
    "wordpiece", which is BERT's. "gemma" is big_vision's with mapped merges.
    pad: fills up a text, for a tower that reads all its positions; `start` and `added` are then empty.
    """

    start: str
    end: str
    unknown: str
    added: tuple[AddedToken, ...]
    library: str = "transformers"  # these two are not in manifest.json where they have their defaults
    pad: str | None = None

    def to_dict(self) -> dict:
        """The tokens as manifest.json has them."""
        defaults = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in asdict(self).items() if value != defaults[key]}

    @classmethod
    def from_dict(cls, facts: dict) -> Tokens:
        return cls(**facts | {"added": tuple(AddedToken(**token) for token in facts["added"])})


@dataclass(frozen=True)
class Source:
    """Where the weights came from: hub id or folder, its commit there, and sha256 by file name."""

    id: str
    revision: str | None
    weights_sha256: dict[str, str]
    notice: str | None  # the checkpoint's NOTICE.txt, shown with the facts


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Agreement:
    """Cosines of two sets of embeddings of the same inputs, plain, and with the reference's mean off both sides.

    `neighbours`: of the inputs that are nearest to an input by the reference, the share that are by the other set too.
    """

    inputs: int
    worst: float
    mean: float
    worst_centred: float
    mean_centred: float
    neighbours: float
    worst_input: str


@dataclass(frozen=True)
class Matrix:
    """How a matrix of an 8-bit tower was baked: a linear layer's, or the token table.

    Errors are those of a layer's product in 8 bits on the bake's calibration inputs, and of the table's rows: root mean
    square, relative to what varies in it. `strength` says how much of the range of what goes into a layer was moved
    into its matrix, None that it was left as it was (bake/smooth.py).
    """

    precision: str  # "fp32" where 8 bits were too coarse, else "int8"
    bytes: int  # when it is opened
    strength: float | None
    error: float
    error_as_it_was: float


@dataclass(frozen=True)
class Tower:
    """How a tower was baked. `fidelity`: what was compared with what -> how far they agree."""

    precision: str  # "fp32", or "int8": its matrices are in 8 bits, but for those that say otherwise
    fidelity: dict[str, Agreement]
    matrices: dict[str, Matrix]  # of an 8-bit tower, in order

    @property
    def kept_float32(self) -> list[str]:
        """The matrices of an 8-bit tower that stayed float32."""
        return [name for name, matrix in self.matrices.items() if matrix.precision == "fp32"]

    @property
    def kept_float32_bytes(self) -> int:
        """Bytes that the float32 matrices add to the opened tower."""
        return sum(self.matrices[name].bytes * 3 // 4 for name in self.kept_float32)

    @property
    def summary(self) -> str:
        """One line: the tower's precision and how many matrices stay float32."""
        if not self.kept_float32:
            return self.precision
        return (
            f"{self.precision}, {len(self.kept_float32)} of {len(self.matrices)} matrices float32, "
            f"{self.kept_float32_bytes / 1e6:.1f} MB more"
        )


READING = 1  # raise it with each change of how a text or an image is read
OPTIONAL = ("tokens", "id", "logit_bias", "images")  # keys that manifest.json has only where they are not null


@dataclass(frozen=True)
class Manifest:
    """The facts of a model directory."""

    format: int
    source: Source
    embed_dim: int
    context_length: int
    log_logit_scale: float
    preprocess: Preprocess
    towers: dict[str, Tower]  # "text", "image"
    files: dict[str, File]
    versions: dict[str, str]
    baked_at: str  # UTC, ISO 8601
    tokens: Tokens | None = None  # None, and no key of manifest.json, if they are CLIP's own
    id: str | None = None  # in the catalogue; None, and no key of manifest.json, for a checkpoint outside it
    logit_bias: float | None = None  # of a model that answers yes or no to each label; None, and no key, for a softmax
    images: Source | None = None  # of the image tower, where it is another checkpoint's; else None, and no key

    @property
    def logit_scale(self) -> float:
        """The exponential of log_logit_scale: what cosines are multiplied by to be logits."""
        return math.exp(self.log_logit_scale)

    @property
    def scores(self) -> str:
        """What makes probabilities of logits: "sigmoid", of each label on its own, or "softmax", among all labels."""
        return "softmax" if self.logit_bias is None else "sigmoid"

    @property
    def even_cosine(self) -> float | None:
        """The cosine at which a sigmoid's probability is 0.5; None for a softmax."""
        return None if self.logit_bias is None else -self.logit_bias / self.logit_scale

    @cached_property
    def sha256(self) -> str:
        """A digest of all that an embedding depends on: the files, and how they are given texts and images."""
        tokens, files = self.tokens and self.tokens.to_dict(), {name: file.sha256 for name, file in self.files.items()}
        facts = [READING, self.context_length, self.preprocess.to_dict(), tokens, sorted(files.items())]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict:
        """The facts as manifest.json has them."""
        facts = asdict(self) | {"preprocess": self.preprocess.to_dict()}
        if self.tokens:
            facts["tokens"] = self.tokens.to_dict()
        return {key: value for key, value in facts.items() if value is not None or key not in OPTIONAL}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, facts: dict) -> Manifest:
        """Raises KeyError, TypeError or ValueError where a fact is missing or of another kind."""
        towers = {
            name: Tower(
                tower["precision"],
                {k: Agreement(**v) for k, v in tower["fidelity"].items()},
                {k: Matrix(**v) for k, v in tower["matrices"].items()},
            )
            for name, tower in facts["towers"].items()
        }
        how = facts["preprocess"]
        return cls(
            **facts
            | {
                "source": Source(**facts["source"]),
                "images": Source(**facts["images"]) if facts.get("images") else None,
                "preprocess": Preprocess(**how | {"mean": tuple(how["mean"]), "std": tuple(how["std"])}),
                "towers": {name: towers[name] for name in ("text", "image")},
                "files": {name: File(**file) for name, file in facts["files"].items()},
                "tokens": Tokens.from_dict(facts["tokens"]) if facts.get("tokens") else None,
            }
        )


def default_path() -> Path:
    """$CLIP_MODEL_DIR, else `clip-model` in the folder where `llm` keeps its things. Raises ModelDirError."""
    if path := os.environ.get("CLIP_MODEL_DIR"):
        return Path(path)
    import llm

    try:
        return llm.user_dir() / DEFAULT_NAME
    except OSError as error:
        raise ModelDirError(
            f"the folder of llm, {error.filename}, cannot be made ({error.strerror}); "
            "set LLM_USER_PATH or CLIP_MODEL_DIR"
        ) from error


def bake_hint(path: Path) -> str:
    """A sentence that says how to get a model directory at `path`."""
    return f"make one with `llm clip bake --to {path}`, or set CLIP_MODEL_DIR to one"


def rebake_hint(path: Path, manifest: Manifest | None = None) -> str:
    """A sentence that says how to replace the unusable model directory at `path`."""
    source = f"{manifest.source.id}{revision_option(manifest.source, '--revision')}" if manifest else "SOURCE"
    if manifest and manifest.images:
        source += f" --images {manifest.images.id}{revision_option(manifest.images, '--images-revision')}"
    return f"bake again with llm clip bake {source} --to {path} --force"


def revision_option(source: Source, option: str) -> str:
    """The words of a command that name the revision of a checkpoint, "" for a folder, which has none."""
    return f" {option} {source.revision}" if source.revision else ""


def read_manifest(path: Path) -> Manifest:
    """The manifest of the model directory at `path`, after a check that each file exists and has its full size.

    Raises ModelDirError saying what is wrong and what to run.
    """
    file = path / MANIFEST
    try:
        if not os.path.lexists(path):
            raise ModelDirError(f"{path}: there is no model directory; {bake_hint(path)}")
        os.listdir(path)
        if not file.is_file():
            raise ModelDirError(
                f"{path} has no {MANIFEST}, so it is no model directory that a bake finished; {bake_hint(path)}"
            )
    except OSError as error:
        raise ModelDirError(
            f"{path} cannot be read as a model directory ({error.strerror}); {bake_hint(path)}"
        ) from error
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        version = facts["format"]
        manifest = Manifest.from_dict(facts) if version == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {shortened(error)}"
        raise ModelDirError(f"{file} cannot be read ({reason}): {rebake_hint(path)}") from error
    if manifest is None:
        raise ModelDirError(
            f"{file} says format {shortened(version)}, this version reads {FORMAT}: {rebake_hint(path)}"
        )
    check_followed(path, manifest)
    for name in (*FILES, *tokenizer_files(manifest.tokens), *eight_bit_files(manifest)):
        check_size(path, manifest, name)
    return manifest


def tokenizer_files(tokens: Tokens | None) -> tuple[str, ...]:
    """Names of the files that turn a text into ids, by the tokens of a manifest."""
    return TOKENIZER_FILES.get(tokens.library, BYTE_PAIRS) if tokens else BYTE_PAIRS


def check_followed(path: Path, manifest: Manifest) -> None:
    """Raises ModelDirError naming the first key whose value this version cannot follow."""
    for key, known in READ.items():
        part, fact = key.split(".")
        value = getattr(getattr(manifest, part), fact, known[0])  # tokens is None if they are CLIP's own
        if value not in known:
            raise ModelDirError(
                f"{path / MANIFEST} says {key} {cited(value)}, this version reads {', '.join(known)}: update "
                f"datasette-clip, or {rebake_hint(path, manifest)}"
            )


def eight_bit_files(manifest: Manifest) -> list[str]:
    """Names of the files that only the 8-bit towers of this model directory have."""
    towers = [name for name, tower in manifest.towers.items() if tower.precision == "int8"]
    return [f"{name}{suffix}" for name in towers for suffix in EIGHT_BIT_SUFFIXES]


def tower_files(manifest: Manifest, tower: str, signed: bool) -> tuple[str, ...]:
    """The files of the tower "text" or "image", its graph first; those of signed levels where it has any."""
    if manifest.towers[tower].precision == "fp32":
        return f"{tower}.onnx", f"{tower}.bin"
    if signed:
        return f"{tower}{SIGNED_TOWER_SUFFIX}", f"{tower}{SIGNED_SUFFIX}", f"{tower}.bin"
    return f"{tower}.onnx", f"{tower}{UNSIGNED_SUFFIX}", f"{tower}.bin"


def check_size(path: Path, manifest: Manifest, name: str) -> None:
    """Raises ModelDirError if this file is not in the manifest, is missing or has another size."""
    if name not in manifest.files:
        raise ModelDirError(f"{path / MANIFEST} does not list {name}: {rebake_hint(path, manifest)}")
    expected = manifest.files[name].bytes
    try:
        size = (path / name).stat().st_size
    except OSError as error:
        raise ModelDirError(
            f"{path / name} cannot be read ({error.strerror}): {rebake_hint(path, manifest)}"
        ) from error
    if size != expected:
        raise ModelDirError(
            f"{path / name} has {size:,} bytes, its manifest says {expected:,}: {rebake_hint(path, manifest)}"
        )


def check_sha256(path: Path, manifest: Manifest, names: tuple[str, ...]) -> None:
    """Raises ModelDirError naming the first of these files whose sha256 is not the manifest's."""
    for name in names:
        try:
            sha256 = sha256_of(path / name)
        except OSError as error:
            raise ModelDirError(
                f"{path / name} cannot be read ({error.strerror}): {rebake_hint(path, manifest)}"
            ) from error
        if sha256 != manifest.files[name].sha256:
            raise ModelDirError(
                f"{path / name} has sha256 {sha256[:12]}..., its manifest says {manifest.files[name].sha256[:12]}...: "
                f"the file is damaged; {rebake_hint(path, manifest)}"
            )


def sha256_of(file: Path) -> str:
    """The sha256 of a file, read in few pieces, because each piece waits for the GIL.

    hashlib.file_digest, with pieces of 262,144 bytes, takes 0.11 s for 65 MB while another thread imports modules and
    0.56 s while one computes; this takes 0.06 and 0.14 (2 cores, 2026-11-22), and both take 0.05 alone.
    """
    digest, buffer = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()

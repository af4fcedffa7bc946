"""Bakes a label set: labels and prompt templates in, labels/NAME.npy and labels/NAME.json of a model directory out.

The directory's own text tower embeds every prompt, one at a time, as a server does. OpenAI's names and templates of
ImageNet are read from a file of an installed package that is never imported, because it would import torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from runpy import run_path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import label_sets, model_dir
from ..engine import Engine
from ..errors import FidelityError, InputError, ModelDirError, cited
from ..label_sets import IMAGENET, LabelSet
from ..towers import available_cores
from ..zero_shot import DEFAULT_TEMPLATES, PLACEHOLDER, check_labels, ensemble_prompts, prompts_of, unrelated_cosine
from . import fidelity
from .install import utc_now
from .tower_plan import Say

PACKAGE = "open-clip-torch"
SAY_EVERY_S = 5.0


class LabelSource(NamedTuple):
    """Labels and prompt templates of a label set to bake. source: where the labels come from."""

    labels: tuple[str, ...]
    templates: tuple[str, ...]
    source: str


def bake_labels(
    path: Path,
    name: str,
    labels: Path | None = None,
    templates: Path | None = None,
    force: bool = False,
    say: Say = print,
) -> LabelSet:
    """Bake the label set `name` into the model directory at `path`, and return its facts.

    labels, templates: files with one a line, or None, see choose_labels. `say` hears each step as a line.
    Raises InputError for a name, file or set that cannot be used, ModelDirError, or FidelityError if OpenAI's weights
    give another vector than the published one; nothing is written then.
    """
    label_sets.check_name(name)
    engine = Engine(path)
    file = path / model_dir.LABELS / f"{name}.json"
    if file.exists() and not force:
        raise InputError(f"{file} is there already; --force replaces it")
    chosen = choose_labels(path, name, labels, templates)
    check_labels(chosen.labels, chosen.templates)
    model_dir.check_sha256(path, engine.manifest, (model_dir.TEXT_REFERENCE,))
    is_openai = fidelity.is_openai(engine.manifest, np.load(path / model_dir.TEXT_REFERENCE))
    made_images = engine.made_image_embeddings
    say(f"{name}: {len(chosen.labels):,} labels of {chosen.source}, templates: {len(chosen.templates):,}")
    vectors = class_vectors(engine, chosen.labels, chosen.templates, lambda line: say(f"{name}: {line}"))
    if is_openai:
        check_published(engine.manifest.towers["text"].precision, chosen.labels, chosen.templates, vectors)
    facts = LabelSet(
        format=label_sets.FORMAT,
        name=name,
        labels=chosen.labels,
        templates=chosen.templates,
        unrelated_cosine=unrelated_cosine(vectors, made_images),
        source=chosen.source,
        weights_sha256=engine.manifest.source.weights_sha256,
        vectors_sha256="",  # label_sets.write knows it
        baked_at=utc_now(),
    )
    try:
        label_sets.write(path, facts, vectors)
    except OSError as error:
        raise ModelDirError(f"{error.filename or file} cannot be written: {error.strerror or error}") from error
    say(f"{file} is ready, {vectors.nbytes / 1e6:.1f} MB of vectors")
    return label_sets.read_facts(path, engine.manifest, name)


def choose_labels(path: Path, name: str, labels: Path | None, templates: Path | None) -> LabelSource:
    """The labels and templates of the files, or those of the existing label set `name`, or OpenAI's for `imagenet`.

    Labels from a file without templates get the default one. Raises InputError if there are no labels, or a file cannot
    be read.
    """
    chosen = (
        LabelSource(read_lines(labels, "labels"), DEFAULT_TEMPLATES, utf8_name(labels))
        if labels
        else stored_labels(path, name)
    )
    if chosen is None and name == IMAGENET:
        chosen = openai_imagenet()
    if chosen is None:
        raise InputError(
            f"{path} has no label set {cited(name)} whose labels could be baked again; "
            "--labels names a file of labels, one a line"
        )
    return chosen._replace(templates=read_lines(templates, "templates")) if templates else chosen


def utf8_name(file: Path) -> str:
    """The name of a file, with ? for bytes that are no UTF-8."""
    return file.name.encode(errors="replace").decode()


def read_lines(file: Path, what: str) -> tuple[str, ...]:
    """The lines of a text file, stripped, without empty ones. Raises InputError naming the file."""
    expected = f"expected {what}, one a line, in UTF-8"
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").split("\n")]
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); {expected}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 from byte {error.start} on; {expected}") from error
    if not any(lines):
        raise InputError(f"{file} is empty; {expected}")
    return tuple(filter(None, lines))


def stored_labels(path: Path, name: str) -> LabelSource | None:
    """Labels and templates of the existing label set `name`, whatever weights baked it; None if it cannot be read."""
    try:
        facts = label_sets.stored_facts(path, name)
    except (InputError, ModelDirError):
        return None
    return LabelSource(facts.labels, facts.templates, facts.source)


def openai_imagenet() -> LabelSource:
    """The 1000 names and 80 templates of OpenAI's notebook, as the package open-clip-torch has them.

    Its file is run by itself, because importing the package would import torch. Raises InputError if it is missing.
    Source: openai/CLIP notebooks/Prompt_Engineering_for_ImageNet.ipynb.
    """
    try:
        package = distribution(PACKAGE)
        metadata = run_path(str(package.locate_file("open_clip/zero_shot_metadata.py")))
    except (PackageNotFoundError, OSError) as error:
        raise InputError(
            f"the names and templates of {IMAGENET} are in the package {PACKAGE}, which is not installed: "
            f"pip install --no-deps {PACKAGE}"
        ) from error
    templates = tuple(template(PLACEHOLDER) for template in metadata["OPENAI_IMAGENET_TEMPLATES"])
    return LabelSource(tuple(metadata["IMAGENET_CLASSNAMES"]), templates, f"{PACKAGE} {package.version}")


def class_vectors(engine: Engine, labels: Sequence[str], templates: Sequence[str], say: Say) -> NDArray[np.float32]:
    """zero_shot.class_vectors on all cores, a label each: [c, embed_dim] float32. `say` hears the progress."""

    def vector_of(label: str) -> NDArray[np.float32]:
        return ensemble_prompts(engine.embed_text(prompts_of(label, templates)))

    pool = ThreadPoolExecutor(available_cores())
    try:
        return np.stack(list(with_progress(pool.map(vector_of, labels), len(labels), len(templates), say)))
    finally:
        pool.shutdown(cancel_futures=True)


def with_progress(vectors: Iterator, labels: int, prompts_each: int, say: Say) -> Iterator:
    """`vectors` unchanged; every few seconds `say` hears how many prompts are done, how fast, and the time left."""
    begun_s = said_s = time.monotonic()
    for done, vector in enumerate(vectors, 1):
        now_s = time.monotonic()
        if now_s - said_s >= SAY_EVERY_S and done < labels:
            said_s, rate = now_s, done * prompts_each / (now_s - begun_s)
            all_, left_s = labels * prompts_each, (labels - done) * prompts_each / rate
            say(f"{done * prompts_each:,} of {all_:,} prompts, {rate:,.0f} a second, {left_s:.0f} s left")
        yield vector


def check_published(
    precision: str, labels: Sequence[str], templates: Sequence[str], vectors: NDArray[np.float32]
) -> None:
    """Raises FidelityError if a class vector differs from the one published for OpenAI's weights."""
    off, allowed = fidelity.published_class_difference(labels, templates, vectors), fidelity.CLASS_TOLERANCE[precision]
    if off is not None and not off <= allowed:
        golden = fidelity.PUBLISHED_CLASS
        raise FidelityError(
            f"the class vector of {cited(golden['label'])} is off by {off:.4f} from the one published in "
            f"{golden['source']}, {allowed} is allowed for {precision}: the text tower is not that of "
            f"{' or '.join(fidelity.PUBLISHED_FOR)}; bake the model directory again"
        )

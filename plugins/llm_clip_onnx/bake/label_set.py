"""BUILDING a label set: labels and prompt templates in, labels/NAME.npy and labels/NAME.json of a model directory out.

The directory's own text tower embeds every prompt, one at a time as it does when it serves. No torch: OpenAI's names
and templates of ImageNet are read from the file of an installed package that is never imported.
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
from ..errors import FidelityError, InputError, ModelDirError
from ..label_sets import IMAGENET, LabelSet
from ..towers import available_cores
from ..zero_shot import DEFAULT_TEMPLATES, PLACE, check_labels, ensembled, prompts_of, unrelated
from . import Say, fidelity, now

PACKAGE = "open-clip-torch"
SAY_EVERY_S = 5.0


class Recipe(NamedTuple):
    """What a label set is made from. source: where the labels come from."""

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

    `labels` and `templates` are files with one a line; where they are None, see recipe_of. `say` hears what is being
    done, a line at a time. Raises InputError for a name, file or set that cannot be used, ModelDirError, or
    FidelityError where OpenAI's weights give another vector than the published one; nothing is written then.
    """
    label_sets.check_name(name)
    engine = Engine(path)
    file = path / model_dir.LABELS / f"{name}.json"
    if file.exists() and not force:
        raise InputError(f"{file} is there already; --force replaces it")
    recipe = recipe_of(path, name, labels, templates)
    check_labels(recipe.labels, recipe.templates)
    model_dir.check_sha256(path, engine.manifest, (model_dir.TEXT_REFERENCE,))
    openais = fidelity.are_openais(engine.manifest, np.load(path / model_dir.TEXT_REFERENCE))
    made_images = engine.made_images
    say(f"{name}: {len(recipe.labels):,} labels of {recipe.source}, templates: {len(recipe.templates):,}")
    vectors = class_vectors(engine, recipe.labels, recipe.templates, lambda line: say(f"{name}: {line}"))
    if openais:
        check_published(engine.manifest.towers["text"].precision, recipe.labels, recipe.templates, vectors)
    facts = LabelSet(
        format=label_sets.FORMAT,
        name=name,
        labels=recipe.labels,
        templates=recipe.templates,
        unrelated_cosine=unrelated(vectors, made_images),
        source=recipe.source,
        weights_sha256=engine.manifest.source.weights_sha256,
        vectors_sha256="",  # label_sets.write knows it
        baked_at=now(),
    )
    try:
        label_sets.write(path, facts, vectors)
    except OSError as error:
        raise ModelDirError(f"{error.filename or file} cannot be written: {error.strerror or error}") from error
    say(f"{file} is ready, {vectors.nbytes / 1e6:.1f} MB of vectors")
    return label_sets.read_facts(path, engine.manifest, name)


def recipe_of(path: Path, name: str, labels: Path | None, templates: Path | None) -> Recipe:
    """The labels and templates of the files; without a file of labels those of the set `name` that is there already.

    Where there is none, `imagenet` has OpenAI's names and templates; other labels without templates have the default
    one. Raises InputError where labels or templates cannot be had.
    """
    found = Recipe(read_lines(labels, "labels"), DEFAULT_TEMPLATES, named(labels)) if labels else stored(path, name)
    if found is None and name == IMAGENET:
        found = openai_imagenet()
    if found is None:
        raise InputError(
            f"{path} has no label set {name!r} whose labels could be baked again; "
            "--labels names a file of labels, one a line"
        )
    return found._replace(templates=read_lines(templates, "templates")) if templates else found


def named(file: Path) -> str:
    """The name of a file, with ? for what is no UTF-8."""
    return file.name.encode(errors="replace").decode()


def read_lines(file: Path, what: str) -> tuple[str, ...]:
    """The lines of a text file, without the empty ones and the space around. Raises InputError naming the file."""
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


def stored(path: Path, name: str) -> Recipe | None:
    """What the label set `name` at `path` was made from, by whatever weights; None where that cannot be read."""
    try:
        facts = label_sets.stored_facts(path, name)
    except (InputError, ModelDirError):
        return None
    return Recipe(facts.labels, facts.templates, facts.source)


def openai_imagenet() -> Recipe:
    """The 1000 names and 80 templates of OpenAI's notebook, as the package open-clip-torch has them.

    Its file is run by itself, for to import the package would import torch. Raises InputError where it is not there.
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
    templates = tuple(template(PLACE) for template in metadata["OPENAI_IMAGENET_TEMPLATES"])
    return Recipe(tuple(metadata["IMAGENET_CLASSNAMES"]), templates, f"{PACKAGE} {package.version}")


def class_vectors(engine: Engine, labels: Sequence[str], templates: Sequence[str], say: Say) -> NDArray[np.float32]:
    """As zero_shot.class_vectors, on all cores, for a prompt takes one; `say` hears how far it is."""

    def vector_of(label: str) -> NDArray[np.float32]:
        return ensembled(engine.embed_text(prompts_of(label, templates)))

    pool = ThreadPoolExecutor(available_cores())
    try:
        return np.stack(list(told(pool.map(vector_of, labels), len(labels), len(templates), say)))
    finally:
        pool.shutdown(cancel_futures=True)


def told(vectors: Iterator, labels: int, prompts_each: int, say: Say) -> Iterator:
    """`vectors` as they come; every few seconds `say` hears how many prompts are done, how fast, and the time left."""
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
    """Raises FidelityError where a class vector is not the one that others published of OpenAI's weights."""
    off, allowed = fidelity.published_class_difference(labels, templates, vectors), fidelity.CLASS_TOLERANCE[precision]
    if off is not None and not off <= allowed:
        golden = fidelity.PUBLISHED_CLASS
        raise FidelityError(
            f"the class vector of {golden['label']!r} is off by {off:.4f} from the one published in "
            f"{golden['source']}, {allowed} is allowed for {precision}: the text tower is not that of "
            f"{' or '.join(fidelity.PUBLISHED_FOR)}; bake the model directory again"
        )

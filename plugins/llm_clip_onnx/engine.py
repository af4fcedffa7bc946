"""Embeds texts and images with a model directory's towers, and closes those of the least used model beyond a bound.

It keeps opened towers, the embeddings of recent texts and recent classifiers. The towers of all engines of a process
together stay below models.open_bytes, and models with the same image tower share it.
"""

from __future__ import annotations

import os
import threading
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray
from PIL import Image

from . import label_sets, model_dir, models, towers, zero_shot
from .errors import InputError, ModelDirError
from .images.limits import SERVER, ImageLimits
from .images.preprocess import Render, to_pixels
from .lazy import Lazy
from .text_readers import open_reader
from .tokenizer import CLIP_TOKENS
from .zero_shot import Classifier, Match

CACHE_BYTES = 8_000_000  # about 3,700 texts with 512 dimensions
ENTRY_BYTES = 300  # of Python objects, for each cached text, beside its characters and numbers
MAX_CACHED_CHARACTERS = 10_000  # of one text; longer ones are rarely sent twice
CLASSIFIERS_BYTES = 4_000_000  # of classifiers of labels that came with requests


class Engine:
    """Embeds by the model directory at `path`. Raises ModelDirError where that is not one.

    `bounds` says how large images may be: SERVER, or OWN_MACHINE for a command, which has more memory and time.
    image_threads: how many an image takes in its tower, None for one on each core. A command that embeds as many
    images at once as there are cores gives each 1: the embeddings are the same, and no thread waits for another.
    """

    def __init__(self, path: Path, bounds: ImageLimits = SERVER, image_threads: int | None = None):
        self.path, self.bounds, self.image_threads = path, bounds, image_threads or towers.available_cores()
        self.manifest = model_dir.read_manifest(path)
        self._text, self._image = Lazy(self._open_text), Lazy(self._open_image)
        self._cache: LRUCache[str, tuple[int, NDArray[np.float32], int]] = LRUCache(
            CACHE_BYTES, getsizeof=lambda entry: entry[0]
        )
        self._cache_lock = threading.Lock()
        self.levels: str | None = None  # "signed" or "unsigned", once an 8-bit tower was opened
        self.held: dict[str, tuple[str, ...]] = {}  # files of the towers that are open or being opened
        self._label_sets: dict[str, Classifier] = {}
        self._classifiers: LRUCache[tuple, Classifier] = LRUCache(
            CLASSIFIERS_BYTES, getsizeof=lambda classifier: classifier.vectors.nbytes + 200 * len(classifier.labels)
        )
        self._classifiers_lock = threading.Lock()

    def _check(self, names: tuple[str, ...]) -> None:
        try:
            model_dir.check_sha256(self.path, self.manifest, names)
        except ModelDirError:
            if model_dir.read_manifest(self.path) != self.manifest:
                raise ModelDirError(f"{self.path} was baked again since this process began: restart it") from None
            raise

    def tower_files(self, tower: str) -> tuple[str, ...]:
        """The files of a tower as this processor is served it, its graph first. Raises ModelDirError.

        An 8-bit tower is that of signed levels where they are multiplied exactly.
        """
        if self.manifest.towers[tower].precision == "fp32":
            return model_dir.tower_files(self.manifest, tower, signed=False)
        self._check((model_dir.PROBE,))
        signed = towers.multiplies_signed(self.path / model_dir.PROBE)
        self.levels = "signed" if signed else "unsigned"
        return model_dir.tower_files(self.manifest, tower, signed)

    def _open_text(self):
        graph, *weights = self.tower_files("text")
        self._check((graph, *weights, *model_dir.tokenizer_files(self.manifest.tokens)))
        # The tokenizer holds the GIL all the while it opens. onnxruntime releases it, once it has it: so it goes first.
        with (
            room_for(self, "text", (graph, *weights)),
            ThreadPoolExecutor(1, thread_name_prefix="clip-tower") as beside,
        ):
            tower = beside.submit(towers.open_tower, self.path / graph, threads=1)
            read = open_reader(self.path, self.manifest.context_length, self.manifest.tokens or CLIP_TOKENS)
            return read, tower.result()

    def _open_image(self):
        names = self.tower_files("image")
        self._check(names)
        key = self.image_threads, *self.sha256_of(names)
        with room_for(self, "image", names), _image_towers_lock:
            tower = _image_towers.get(key)
            if tower is None:
                tower = towers.open_tower(self.path / names[0], threads=self.image_threads, one_shape=True)
                _image_towers[key] = tower
            return tower

    def sha256_of(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The sha256 of files, as the manifest says them."""
        return tuple(self.manifest.files[name].sha256 for name in names)

    def open_text(self) -> None:
        """Open the text tower now, if it is not open. Raises ModelDirError where a file is damaged."""
        self._text.get()

    def open_image(self) -> None:
        """Open the image tower now, if it is not open. Raises ModelDirError where a file is damaged."""
        self._image.get()

    def close(self) -> None:
        """Close both towers; the next call opens them again. A call that is using one keeps it until it ends."""
        self._text.close()
        self._image.close()
        self.held.clear()

    @property
    def is_opening(self) -> bool:
        """True while a tower is being opened."""
        return not self.held.keys() <= {*self.open_towers}

    def held_bytes(self) -> dict[tuple, int]:
        """The sizes of `held`, an image tower by the sha256 of its files, which other engines may have open too."""
        return {
            (self.sha256_of(names) if tower == "image" else (self, tower)): self._size(names)
            for tower, names in self.held.items()
        }

    def _size(self, names: tuple[str, ...]) -> int:
        return sum(self.manifest.files[name].bytes for name in names)

    @property
    def open_towers(self) -> list[str]:
        """Which of "text" and "image" are open."""
        return [name for name, tower in (("text", self._text), ("image", self._image)) if tower.is_open]

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts with the text tower: [n, embed_dim] float32, in the order of `texts`, not normalised.

        No texts give [0, embed_dim]. A text of more than context_length ids is cut and keeps <|endoftext|> last.
        Raises InputError naming the position of the first item that is not a str, and ModelDirError.
        Source: encode_text, openai/CLIP clip/model.py.
        """
        return self._embed_each(self._embed_one_text, texts, "texts")

    def embed_images(self, images: Sequence[bytes | Image.Image], orient: str | None = None) -> NDArray[np.float32]:
        """Embed images (bytes or PIL images) with the image tower: [n, embed_dim] float32, in order, not normalised.

        No images give [0, embed_dim]. `orient` None reads them as llm-clip does, "exif" upright and grey of 16 bits
        in full. Raises InputError naming the position of the first item that is not an image that can be read, and
        ModelDirError.
        Source: encode_image, openai/CLIP clip/model.py.
        """
        return self._embed_each(lambda image: self._embed_one_image(image, orient), images, "images")

    def embed_item(
        self, item: str | bytes, orient: str | None = None, render: Render | None = None
    ) -> NDArray[np.float32]:
        """Embed one str as text or one bytes as an image: [embed_dim] float32, not normalised.

        `orient` is as in embed_images, `render` as in to_pixels. Raises InputError for anything else, and
        ModelDirError.
        """
        if isinstance(item, str):
            return self._embed_one_text(item)
        if isinstance(item, bytes):
            return self._embed_one_image(item, orient, render)
        raise InputError(f"{type(item).__name__} is neither text nor image bytes; expected str or bytes")

    def embed_counted(self, text: str) -> tuple[NDArray[np.float32], int]:
        """The embedding of a text as of embed_item, and how many ids the tower was given, its padding among them."""
        if not isinstance(text, str):
            raise InputError(f"{type(text).__name__} is not text; expected a str")
        with self._cache_lock:
            known = self._cache.get(text)
        if known is not None:
            return known[1:]
        read, tower = self._text.get()
        ids = read(text)
        embedding = towers.run_text(tower, ids[None])[0]
        embedding.setflags(write=False)
        if len(text) <= MAX_CACHED_CHARACTERS:
            with self._cache_lock:
                self._cache[text] = (embedding.nbytes + 4 * len(text) + ENTRY_BYTES, embedding, len(ids))
        return embedding, len(ids)

    def label_set(self, name: str) -> Classifier:
        """The classifier of a label set that was baked, read once. No text tower is needed.

        Raises InputError where there is none of that name, ModelDirError where it cannot be used.
        """
        if name not in self._label_sets:
            self._label_sets[name] = label_sets.read_classifier(self.path, self.manifest, name)
        return self._label_sets[name]

    def classifier(self, labels: Sequence[str], templates: Sequence[str] = zero_shot.DEFAULT_TEMPLATES) -> Classifier:
        """The classifier of labels given now, each in every prompt template; the most recent ones are kept.

        Raises InputError naming the first label or template that cannot be used, and ModelDirError.
        """
        zero_shot.check_labels(labels, templates)
        key = (tuple(labels), tuple(templates))
        with self._classifiers_lock:
            known = self._classifiers.get(key)
        if known is None:
            known = self._make_classifier(*key)
            if known.vectors.nbytes <= CLASSIFIERS_BYTES // 4:
                with self._classifiers_lock:
                    self._classifiers[key] = known
        return known

    def _make_classifier(self, labels: tuple[str, ...], templates: tuple[str, ...]) -> Classifier:
        vectors = zero_shot.class_vectors(self.embed_text, labels, templates)
        unrelated_cosine = zero_shot.unrelated_cosine(vectors, self.made_image_embeddings)
        return Classifier(labels, vectors, unrelated_cosine, templates)

    def classify(self, classifier: Classifier, embedding: NDArray[np.float32], k: int = 5) -> list[Match]:
        """The k labels that fit an embedding best, by this model's scale and bias. Raises as zero_shot.classify."""
        facts = self.manifest
        return zero_shot.classify(classifier, embedding, facts.logit_scale, k, facts.logit_bias)

    @property
    def made_image_embeddings(self) -> NDArray[np.float32]:
        """The reference's embeddings of samples.made_images, which show no object: [n, embed_dim] float32."""
        self._check((model_dir.IMAGE_REFERENCE,))
        return np.load(self.path / model_dir.IMAGE_REFERENCE)

    def _embed_each(self, embed_one: Callable, items: Sequence, name: str) -> NDArray[np.float32]:
        # One item a call: an 8-bit tower scales its activations over everything in a call, so only items that go alone
        # always get the same embedding.
        embeddings = np.empty((len(items), self.manifest.embed_dim), np.float32)
        for position, item in enumerate(items):
            try:
                embeddings[position] = embed_one(item)
            except InputError as error:
                raise InputError(f"{name}[{position}]: {error}") from error
        return embeddings

    def _embed_one_text(self, text: str) -> NDArray[np.float32]:
        return self.embed_counted(text)[0]

    def _embed_one_image(
        self, image: bytes | Image.Image, orient: str | None, render: Render | None = None
    ) -> NDArray[np.float32]:
        pixels = to_pixels(image, self.manifest.preprocess, orient, self.bounds, render)
        return towers.run_image(self._image.get(), pixels[None])[0]


_engines: dict[tuple, Engine] = {}  # the most recently used one last
_engines_lock = threading.RLock()  # also of what engines hold
_image_towers: WeakValueDictionary[tuple, Any] = WeakValueDictionary()  # by threads and sha256 of files
_image_towers_lock = threading.Lock()  # two engines with the same tower open it once


def engine_for(path: Path, bounds: ImageLimits = SERVER, image_threads: int | None = None) -> Engine:
    """The one Engine of this process for the model directory at `path`, with these limits and threads of images.

    Raises ModelDirError where that is not one.
    """
    key = Path(os.path.realpath(path)), bounds, image_threads  # unlike Path.resolve, also of a loop of links
    with _engines_lock:
        engine = _engines.pop(key) if key in _engines else Engine(*key)
        _engines[key] = engine  # the last one now
        if len(_engines) > 1:
            make_room(engine)  # for what was being opened when it was last made
        return engine


def engine_if_known(path: Path) -> Engine | None:
    """What engine_for(path) gives, if there is one already, which stays as recently used as it was."""
    return _engines.get((Path(os.path.realpath(path)), SERVER, None))


@contextmanager
def room_for(engine: Engine, tower: str, names: tuple[str, ...]) -> Iterator[None]:
    """A context in which a tower is opened; others are closed before, so that it fits. If it fails, nothing is held."""
    with _engines_lock:
        engine.held[tower] = names
        make_room(engine)
    try:
        yield
    except BaseException:
        with _engines_lock:
            engine.held.pop(tower, None)
        raise


def make_room(used: Engine) -> None:
    """Close the towers of the least recently used engines, until all that are held fit; those of `used` stay open.

    A tower that several engines share counts once. One that is being opened counts, and is not closed.
    """
    with _engines_lock:
        held = [used, *(engine for engine in _engines.values() if engine is not used and engine.held)]
        for engine in held[1:]:
            if bytes_of(held) <= models.open_bytes:
                break
            if not engine.is_opening:
                engine.close()


def bytes_of(engines: Iterable[Engine]) -> int:
    """The bytes of the towers that engines hold."""
    return sum(ChainMap(*(engine.held_bytes() for engine in engines)).values())


def engines_of_process() -> list[Engine]:
    """The engines that this process has, without a look at the environment or a disk."""
    return list(_engines.values())


def engine_of(model_id: str, bounds: ImageLimits = SERVER) -> Engine:
    """The engine of the model with this id. Raises InputError if there is none, ModelDirError if it cannot be used."""
    return engine_for(models.path_of(model_id), bounds)


def default_engine(bounds: ImageLimits = SERVER) -> Engine:
    """The engine of the model that is used where none is named. Raises ModelDirError where it cannot be used."""
    return engine_of(models.default_id(), bounds)

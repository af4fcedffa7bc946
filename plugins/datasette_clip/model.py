"""The one way to the engines: opens their towers, checks who may use them, and embeds in threads of its own.

The clock of Datasette's one-second limit runs on while an SQL function works, so towers are opened outside SQL: the
text tower of the default model while Datasette starts, any other when an SQL function needs it and it is closed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

from datasette.utils.asgi import Base400

from datasette_guard import path_below, per_datasette, runs_sql
from llm_clip_onnx import MODEL_ID, model_dir, models
from llm_clip_onnx.errors import ClipError, InputError, cited

from .config import PLUGIN, Config, config_of
from .paths import is_read_only

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine
    from llm_clip_onnx.model_dir import Manifest

T = TypeVar("T")
log = logging.getLogger("datasette_clip")


def get_engine(model_id: str) -> Engine:
    """The engine of one of our models.

    Raises InputError for any other id, ModelDirError, and ImportError if onnxruntime cannot be imported.
    """
    from llm_clip_onnx.engine import engine_of  # here: Datasette's start does not wait for onnxruntime

    return engine_of(model_id)


def permitted_engine(config: Config, model_id: str) -> Engine:
    """The engine of one of our models. Raises InputError if clients may not call it, and as get_engine."""
    check_model(config, model_id)
    return get_engine(model_id)


def check_model(config: Config, model_id: str) -> None:
    """Raises InputError for a model that clients may not call."""
    if config.models is None and (model_id == MODEL_ID or model_id in models.directories()):
        return  # get_engine says if it cannot be served
    if model_id not in (permitted := permitted_models(config)):
        raise InputError(f"model {cited(model_id)} is not on the list plugins.{PLUGIN}.models, {permitted}")


def permitted_models(config: Config) -> list[str]:
    """The ids of the models that clients may call: those of the configuration, else all of ours."""
    return models.ids() if config.models is None else list(config.models)


def own_models(config: Config) -> list[str]:
    """The ids of our models that clients may call."""
    return [id for id in models.ids() if config.models is None or id in config.models]


def model_choices(config: Config) -> list[str]:
    """The ids of our models between which clients may choose; [] if there is one."""
    permitted = own_models(config) if models.choices() else []
    return permitted if len(permitted) > 1 else []


def default_model(config: Config) -> str:
    """The id of the model where a client names none: `clip`, else the first that it may call."""
    default = models.default_id()
    if config.models is None or default in config.models:
        return default
    return next(iter(own_models(config)), default)


def manifest_of(directory: Path) -> Manifest:
    """The manifest of a model directory, read again if it was written since. Raises ModelDirError.

    This asks no engine, so that pages about models do not change which engine was used last.
    """
    try:
        written_ns = (directory / model_dir.MANIFEST).stat().st_mtime_ns
    except OSError:
        written_ns = 0  # what is wrong is said by the reading
    return read_once(directory, written_ns)


@lru_cache(maxsize=64)
def read_once(directory: Path, written_ns: int) -> Manifest:
    """As manifest_of. written_ns: when the manifest was written."""
    return model_dir.read_manifest(directory)


def manifests_of(ids: Iterable[str]) -> dict[str, Manifest]:
    """The manifests of our models by id, without those that cannot be read. The folder of models is read once."""
    directories, manifests = models.directories(), {}
    for id in ids:
        with suppress(ClipError, LookupError):
            manifests[id] = manifest_of(directories[id][0])
    return manifests


def log_twins() -> None:
    """Log the sentences about model ids that several directories have."""
    for sentence in models.twins():
        log.warning("%s", sentence)


# Opening the text tower

was_open: WeakSet[Engine] = WeakSet()  # engines whose text tower open_text has opened, also if it was closed since


@cache
def text_opening() -> Future[str | None]:
    """Start opening the text tower, once: a future of None, or of the sentence that says why it cannot be opened.

    It is that of the model which is the default without a configuration, because none is read yet.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="clip-opening")
    future = executor.submit(lambda: open_text(models.default_id()))
    executor.shutdown(wait=False)
    return future


def open_text(model_id: str) -> str | None:
    """Open the text tower of a model if it is closed: None, or the sentence that says why it cannot be."""
    try:
        engine = get_engine(model_id)
        engine.open_text()
        was_open.add(engine)
        unopenable["text"].discard(engine)
    except ClipError as error:
        return str(error)
    except Exception as error:  # any: the server starts and says why on its pages
        return f"{type(error).__name__}: {error}"
    return None


# Opening towers outside SQL


class TowerClosed(Exception):
    """An SQL function needs a tower that is closed: it is opened outside SQL, then the request runs again."""


unopenable: dict[str, WeakSet[Engine]] = {"text": WeakSet(), "image": WeakSet()}  # that could not be opened outside SQL
repeatable = 0  # requests in flight that will run again after TowerClosed; the event loop counts them
raised_ids = itertools.count(1)
last_raised = 0  # SQL's threads write it, the event loop compares it
needed: deque[tuple[int, Engine, str]] = deque(maxlen=64)  # what was raised last: its number, and the closed tower
RUNS = 3  # of a request; its last one opens towers inside SQL


def need_tower(engine: Engine, tower: str) -> None:
    """Call this inside SQL before a text or an image is embedded. Raises TowerClosed if it is to be opened first.

    SQL's threads do not know their request, so while the tower is closed and a repeatable request is in flight, SQL of
    another plugin's own task can meet the exception too. Otherwise the tower is opened inside SQL there.
    """
    global last_raised
    if repeatable and is_closed(engine, tower):
        last_raised = next(raised_ids)
        needed.append((last_raised, engine, tower))
        raise TowerClosed(f"the {tower} tower is closed; once it is open the request runs again")


def is_closed(engine: Engine, tower: str) -> bool:
    """True if a tower is closed and was not found to be unopenable."""
    return tower not in engine.open_towers and engine not in unopenable[tower]


def open_tower(engine: Engine, tower: str) -> None:
    """Open a tower if it is closed. If that fails, the next SQL function that needs it raises the reason."""
    try:
        (engine.open_text if tower == "text" else engine.open_image)()
        unopenable[tower].discard(engine)
    except Exception:  # any: SQL functions try again and raise it where its sentence reaches the log
        unopenable[tower].add(engine)


def open_needed(raised_before: int) -> None:
    """Open the towers that were needed after the raise with this number."""
    for number, engine, tower in list(needed):
        if number > raised_before:
            open_tower(engine, tower)


def may_meet_closed_tower() -> bool:
    """True if SQL may need a tower that is closed; always where there are several models. False if there is none."""
    from llm_clip_onnx.engine import engines_of_process  # here: as in get_engine

    if models.members_of(models.root()):
        return True
    try:
        engines = engines_of_process() or [get_engine(MODEL_ID)]  # the latter looks for the model directory, every time
    except Exception:  # any: there is nothing to open
        return False
    return any(is_closed(engine, "image") for engine in engines)


def open_default_image(config: Config) -> None:
    """Open the image tower of the default model, if there is one."""
    with suppress(ClipError, ImportError):
        open_tower(get_engine(default_model(config)), "image")


class Recorder:
    """`receive` that keeps its messages and gives them again after `rewind`, until `forget`."""

    def __init__(self, receive) -> None:
        self.receive, self.keeps, self.position = receive, True, 0
        self.messages: deque[dict] = deque()

    async def __call__(self) -> dict:
        if not self.keeps and self.messages:
            return self.messages.popleft()
        if self.position == len(self.messages):
            message = await self.receive()
            if not self.keeps:
                return message
            self.messages.append(message)
        self.position += 1
        return self.messages[self.position - 1]

    def rewind(self) -> None:
        self.position = 0

    def forget(self) -> None:
        """Keep no more messages, and of those that are kept only the ones that are still to be given."""
        self.keeps = False
        for _ in range(self.position):
            self.messages.popleft()
        self.position = 0


class Withheld:
    """`send` that holds a response's start until its body begins, and drops both if the request is to run again.

    If it is not, the request's body is forgotten.
    """

    def __init__(self, send, recorder: Recorder) -> None:
        self.send, self.recorder, self.raised_before = send, recorder, last_raised
        self.start: dict | None = None
        self.passes: bool | None = None  # None until the body begins

    @property
    def may_have_failed(self) -> bool:
        """True for an error, and for CSV, whose response starts with 200 before its SQL runs."""
        if self.start is None:
            return False
        content_type = dict(self.start.get("headers", ())).get(b"content-type", b"")
        return self.start["status"] >= HTTPStatus.BAD_REQUEST or content_type.startswith((b"text/csv", b"text/plain"))

    async def __call__(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            self.start = message
            return
        if message["type"] != "http.response.body":
            return await self.send(message)
        if self.passes is None:
            self.passes = last_raised == self.raised_before or not self.may_have_failed
            if self.passes:
                self.recorder.forget()
        if not self.passes:
            return
        if self.start:  # another one comes if sending the body raised
            start, self.start = self.start, None
            await self.send(start)
        await self.send(message)


async def run_repeatable(app, scope: dict, receive, send) -> None:
    """Run a request. If it fails and TowerClosed was raised meanwhile, open the tower and run it again.

    The raise may have been another request's: then this one fails again, with the same response.
    """
    global repeatable
    recorder = Recorder(receive)
    for _ in range(RUNS - 1):
        withheld = Withheld(send, recorder)
        repeatable += 1
        try:
            await app(scope, recorder, withheld)
        finally:
            repeatable -= 1
        if withheld.passes is not False:
            return
        await asyncio.to_thread(open_needed, withheld.raised_before)
        recorder.rewind()
    recorder.forget()
    await app(scope, recorder, send)


def open_towers_outside_sql(datasette):
    """An ASGI wrapper in which requests that may run SQL wait for the default model's text tower, and others they need.

    A request that changes nothing runs again after a tower was opened. For any other the default model's image tower is
    opened first, and others are opened inside SQL: for what writes Datasette 0.65 has no time limit, 1.0a41 one of 2 s.
    A stream whose later rows are the first to need a tower ends with an error, because its start is sent.
    """

    def wrap(app):
        async def with_towers(scope, receive, send):
            if scope["type"] != "http" or not runs_sql(path := path_below(datasette.setting("base_url"), scope)):
                return await app(scope, receive, send)
            if not text_opening().done():
                await asyncio.shield(asyncio.wrap_future(text_opening()))
            if not may_meet_closed_tower():
                return await app(scope, receive, send)
            if scope["method"] in ("GET", "HEAD") or is_read_only(path):
                return await run_repeatable(app, scope, receive, send)
            await asyncio.to_thread(open_default_image, config_of(datasette))
            await app(scope, receive, send)

        return with_towers

    return wrap


# Embedding for endpoints and pages: neither the event loop nor SQL waits for it


class Crowded(Base400):
    """More requests are to be embedded than plugins.datasette-clip.limits.embedding. The client may try again."""

    status = HTTPStatus.SERVICE_UNAVAILABLE.value


class EmbeddingQueue:
    """Counts the requests that are being embedded or wait for it."""

    def __init__(self, limit: int) -> None:
        self.limit, self.count = limit, 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A context for the work of one request. Raises Crowded if the queue is full."""
        if self.count >= self.limit:
            raise Crowded(f"this server is answering as much as it may at once (plugins.{PLUGIN}.limits.embedding)")
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1


@per_datasette
def embedding_queue(datasette) -> EmbeddingQueue:
    """The queue of this Datasette."""
    return EmbeddingQueue(config_of(datasette).limits.embedding)


@cache
def executor(for_images: bool) -> ThreadPoolExecutor:
    """Two threads for images, and one for everything else, so that texts do not wait for photographs."""
    return ThreadPoolExecutor(2 if for_images else 1, thread_name_prefix="clip-images" if for_images else "clip-words")


async def in_thread(function: Callable[..., T], *arguments, for_images: bool = False) -> T:
    """What `function(*arguments)` returns or raises, run in one of the threads for embedding."""
    return await asyncio.get_running_loop().run_in_executor(executor(for_images), function, *arguments)

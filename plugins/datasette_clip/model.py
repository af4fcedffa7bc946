"""The one way to the engine: opens its towers, checks who may use it, and embeds in threads of its own.

The clock of Datasette's one-second limit runs on while an SQL function works, so both towers are opened outside SQL:
the text tower while Datasette starts, the image tower when an SQL function first needs it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

from datasette.utils.asgi import Base400

from datasette_guard import path_below, per_datasette, runs_sql
from llm_clip_onnx import MODEL_ID, models
from llm_clip_onnx.errors import ClipError, InputError, cited

from .config import PLUGIN, Config, config_of
from .paths import is_read_only

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine

T = TypeVar("T")
log = logging.getLogger("datasette_clip")


def get_engine() -> Engine:
    """The engine of this process. Raises ModelDirError, and ImportError if onnxruntime cannot be imported."""
    from llm_clip_onnx.engine import default_engine  # here: Datasette's start does not wait for onnxruntime

    return default_engine()


def permitted_engine(config: Config) -> Engine:
    """The engine. Raises InputError if clients may not call our model, and as get_engine."""
    check_model(config, MODEL_ID)
    return get_engine()


def check_model(config: Config, model_id: str) -> None:
    """Raises InputError for a model that clients may not call."""
    if model_id not in config.models:
        raise InputError(f"model {cited(model_id)} is not on the list plugins.{PLUGIN}.models, {list(config.models)}")


def log_twins() -> None:
    """Log the sentences about model ids that several directories have."""
    with suppress(ClipError):  # without the folder of llm there is no model, as the pages say
        for sentence in models.twins():
            log.warning("%s", sentence)


# Opening the text tower


@cache
def text_opening() -> Future[str | None]:
    """Start opening the text tower, once: a future of None, or of the sentence that says why it cannot be opened."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="clip-opening")
    future = executor.submit(open_text)
    executor.shutdown(wait=False)
    return future


def open_text() -> str | None:
    """Open the text tower if it is closed: None, or the sentence that says why it cannot be opened."""
    try:
        get_engine().open_text()
    except ClipError as error:
        return str(error)
    except Exception as error:  # any: the server starts and says why on its pages
        return f"{type(error).__name__}: {error}"
    return None


# Opening the image tower


class ImageTowerClosed(Exception):
    """An SQL function needs the image tower: it is opened outside SQL, then the request runs again."""


settled: WeakSet[Engine] = WeakSet()  # engines whose image tower is open, or could not be opened outside SQL
repeatable = 0  # requests in flight that will run again after ImageTowerClosed; the event loop counts them
raised_ids = itertools.count(1)
last_raised = 0  # SQL's threads write it, the event loop compares it


def need_image_tower(engine: Engine) -> None:
    """Call this inside SQL before an image is embedded. Raises ImageTowerClosed if that tower is to be opened first.

    SQL's threads do not know their request, so while the tower is closed and a repeatable request is in flight, SQL of
    another plugin's own task can meet the exception too. Otherwise the tower is opened inside SQL there.
    """
    global last_raised
    if repeatable and is_image_tower_unsettled(engine):
        last_raised = next(raised_ids)
        raise ImageTowerClosed("the image tower is closed; once it is open the request runs again")


def is_image_tower_unsettled(engine: Engine) -> bool:
    return engine not in settled and "image" not in engine.open_towers


def open_image(engine: Engine) -> None:
    """Open the image tower if it is closed. If that fails, the next SQL function that needs it raises the reason."""
    try:
        engine.open_image()
    except Exception:  # any: SQL functions try again and raise it where its sentence reaches the log
        pass
    finally:
        settled.add(engine)


def unsettled_engine() -> Engine | None:
    """An engine whose image tower was not opened yet, None if it was or if there is no engine."""
    from llm_clip_onnx.engine import engines_of_process  # here: as in get_engine

    try:
        engines = engines_of_process() or [get_engine()]  # the latter looks for the model directory, every time
    except Exception:  # any: there is nothing to open
        return None
    return next(filter(is_image_tower_unsettled, engines), None)


class Recorder:
    """`receive` that keeps its messages for `again`, which gives each once more, until `forget`."""

    def __init__(self, receive) -> None:
        self.receive, self.keeps = receive, True
        self.messages: deque[dict] = deque()

    async def __call__(self) -> dict:
        message = await self.receive()
        if self.keeps:
            self.messages.append(message)
        return message

    async def again(self) -> dict:
        return self.messages.popleft() if self.messages else await self.receive()

    def forget(self) -> None:
        self.keeps = False
        self.messages.clear()


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


async def run_repeatable(app, scope: dict, receive, send, engine: Engine) -> None:
    """Run a request. If it fails and ImageTowerClosed was raised meanwhile, open the tower and run it again.

    The raise may have been another request's: then this one fails a second time, with the same response.
    """
    global repeatable
    recorder = Recorder(receive)
    withheld = Withheld(send, recorder)
    repeatable += 1
    try:
        await app(scope, recorder, withheld)
    finally:
        repeatable -= 1
    if withheld.passes is False:
        await asyncio.to_thread(open_image, engine)
        await app(scope, recorder.again, send)


def open_towers_outside_sql(base_url: str):
    """An ASGI wrapper in which requests that may run SQL wait for the text tower, and for the image tower if needed.

    A request that changes nothing runs again after the image tower was opened. For any other the tower is opened first.
    A stream whose later rows are the first to need the tower ends with an error, because its start is sent.
    """

    def wrap(app):
        async def with_towers(scope, receive, send):
            if scope["type"] != "http" or not runs_sql(path := path_below(base_url, scope)):
                return await app(scope, receive, send)
            if not text_opening().done():
                await asyncio.shield(asyncio.wrap_future(text_opening()))
            if (engine := unsettled_engine()) is None:
                return await app(scope, receive, send)
            if scope["method"] in ("GET", "HEAD") or is_read_only(path):
                return await run_repeatable(app, scope, receive, send, engine)
            await asyncio.to_thread(open_image, engine)
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

"""Serves folders of photos on 127.0.0.1 while it embeds what is new in them: what `llm clip serve` does."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

import click

from llm_clip_onnx.errors import ClipError, InputError, ModelDirError
from llm_clip_onnx.llm_model import model_of
from llm_clip_onnx.model_dir import default_path, read_manifest

from .local_server import LocalServer, database_names, free_port, tilde_encode
from .model_choice import chosen_model
from .origin import model_key
from .photo_folders import PhotoFolder, create, folders_of, home, only_writer, photo_folder, remember

if TYPE_CHECKING:
    from .writer import Embedder

CLONE, DEMO = Path(__file__).parents[2], Path("demo/checkpoint")
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
SQLITE = b"SQLite format 3\0"  # the first bytes of a database
LEAST_PAUSE_S = 5.0  # between two looks at the folders
PAUSE_SHARE = 20  # a pause is so many times as long as the look before it
CHECK_S = 0.5  # so often it is looked if Datasette still runs

DEMO_HINT = (
    ". Where the model hub is out of reach, `make photos DIR=FOLDER MODEL=demo` in this clone takes the demo model, "
    "which knows emoji and drawings but no photos"
)


@dataclass(frozen=True)
class Options:
    """Options of `llm clip serve`."""

    database: Path | None = None
    collection: str | None = None
    model_dir: Path | None = None
    exclude: tuple[str, ...] = ()
    force: bool = False
    port: int | None = None
    opens: bool = True
    watch: bool = False
    publish: Path | None = None
    with_originals: bool = False


def serve(paths: Sequence[Path], options: Options) -> None:
    """Serve folders and database files until a signal. Raises ClipError, also if Datasette ends or a disk is full."""
    try:
        serve_until_signal(paths, options)
    except OSError as error:
        raise InputError(f"{error.filename or 'a file'} cannot be read or written: {error.strerror}") from error


def serve_until_signal(paths: Sequence[Path], options: Options) -> None:
    """Serve folders and database files. Raises ClipError, InputError if Datasette ends, and OSError."""
    folders, files = [path for path in paths if path.is_dir()], [path for path in paths if not path.is_dir()]
    for file in files:
        check_sqlite(file)
    if options.collection is not None and len(folders) > 1:
        raise InputError("-c names the collection of one folder, and there are several")
    model_dir = checked_model_dir(options.model_dir)
    if options.publish is not None:
        check_publishing(options.publish, folders, files, options.with_originals)
    with stop_by_signal() as stop, ExitStack() as stack:
        photos = [prepare(folder, model_dir, options) for folder in folders]
        databases = unique([*(one.database for one in photos), *files])
        if options.publish is not None:
            return publish_photos(databases, photos, model_dir, options, stop)
        server = start(databases, photos, model_dir, options)
        stack.callback(server.end)
        from .filling import has_rows  # here, as in Follower: Datasette starts before what fills is imported

        announcement = Announcement(server, first_page(photos, databases), options.opens, stop)
        if not photos or any(map(has_rows, photos)):
            announcement.begin()
        lower_priority()
        follower = Follower(only_ours(stack, photos), model_dir, options, stop)
        follower.look(announcement.begin)
        if len(folders) == len(paths) and not (options.watch or stop.is_set() or any(map(has_rows, photos))):
            raise InputError("there is nothing to search: no photo has been embedded")
        announcement.begin()
        if options.watch:
            follower.watch(server)
        wait(server, stop)


def check_sqlite(file: Path) -> None:
    """Raises InputError if a file does not begin as SQLite's files do, and OSError."""
    first = b""
    if file.is_file():  # a pipe may never end
        with file.open("rb") as stream:
            first = stream.read(len(SQLITE))
    if first != SQLITE:
        raise InputError(f"{file} is neither a folder of photos nor a SQLite file")


def check_publishing(to: Path, folders: Sequence[Path], files: Sequence[Path], with_originals: bool) -> None:
    """Raises InputError if something cannot be published. Nothing is embedded before this."""
    from .publish import check_destination, folders_to_show

    check_destination(to, [*folders, *(folder for file in files for folder in folders_of(file).values())])
    for file in files if with_originals else []:
        folders_to_show(file)


def publish_photos(
    databases: list[Path], photos: list[PhotoFolder], model_dir: Path, options: Options, stop: Event
) -> None:
    """Embed and index what is new, and write the folder to deploy. Raises ClipError."""
    from .publish import publish
    from .published_models import needed_models

    assert options.publish
    served = needed_models(databases, model_dir)
    with ExitStack() as stack:
        Follower(only_ours(stack, photos), model_dir, options, stop).look(lambda: None)
        if not stop.is_set():
            publish(databases, photos, served, options.publish, options.with_originals)


def prepare(folder: Path, model_dir: Path, options: Options) -> PhotoFolder:
    """A folder with its database and its collection, which exist from now on."""
    photos = photo_folder(folder, options.database, options.collection)
    create(photos, model_of(chosen_model(model_dir, photos.database, photos.collection)[0]))
    remember(photos)
    return photos


def checked_model_dir(model_dir: Path | None) -> Path:
    """The model directory, whose manifest can be read, or a folder of several. Raises ModelDirError."""
    path = (model_dir or default_path()).resolve()
    try:
        read_manifest(chosen_model(path)[1])
    except ModelDirError as error:
        raise ModelDirError(f"{error}{DEMO_HINT if (CLONE / DEMO).is_dir() else ''}") from error
    return path


def open_model(model_dir: Path, photos: PhotoFolder) -> Embedder:
    """The model of a collection, whose towers are opened when they are needed. Raises ModelDirError."""
    from llm_clip_onnx.engine import engine_for  # here: Datasette starts before onnxruntime is imported
    from llm_clip_onnx.images.limits import OWN_MACHINE
    from llm_clip_onnx.towers import available_cores

    from .writer import Embedder

    model_id, path = chosen_model(model_dir, photos.database, photos.collection)
    engine = engine_for(path, OWN_MACHINE, image_threads=1)  # because available_cores() photos are embedded at once
    embed, sha256 = engine.embed_item, model_key(engine.manifest)
    return Embedder(model_of(model_id), engine.manifest.embed_dim, embed, available_cores(), embed, sha256)


@contextmanager
def stop_by_signal() -> Iterator[Event]:
    """An event that is set by Ctrl-C and by signals that end a process; the second one interrupts."""
    stop = Event()

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    except KeyboardInterrupt:
        click.echo("Stopped at once; what was embedded last is embedded again next time", err=True)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def unique(paths: Iterable[Path]) -> list[Path]:
    return list({path.resolve(): None for path in paths})


def start(databases: list[Path], photos: list[PhotoFolder], model_dir: Path, options: Options) -> LocalServer:
    """Datasette over these databases, which knows the folders of the photos. No database has them."""
    names, originals = database_names(databases), dict[str, dict[str, str]]()
    for one in photos:
        originals.setdefault(names[one.database], {})[one.collection] = str(one.folder)
    environment = {"CLIP_MODEL_DIR": str(model_dir), "CLIP_ORIGINALS": json.dumps(originals)}
    port = free_port(options.port)
    title = ", ".join(one.collection for one in photos) or "Photos"
    return LocalServer(databases, port, environment, title, home() / f"serve-{port}.log")


def first_page(photos: list[PhotoFolder], databases: list[Path]) -> str:
    """The path of the page to open: the search in the only collection, or the home page."""
    if len(photos) != 1 or len(databases) != 1:
        return ""
    [name] = database_names(databases).values()
    return f"-/clip/search/{tilde_encode(name)}/{tilde_encode(photos[0].collection)}"


class Announcement:
    """Says where the server is, and opens the browser there, once it listens."""

    def __init__(self, server: LocalServer, path: str, opens: bool, stop: Event):
        self.server, self.url, self.opens, self.stop = server, server.url + path, opens, stop
        self.thread: Thread | None = None

    def begin(self) -> None:
        if self.thread is None:
            self.thread = Thread(target=self.announce, daemon=True)
            self.thread.start()

    def announce(self) -> None:
        with suppress(InputError):  # the main thread raises it
            self.server.wait_until_it_listens()
            if not self.stop.is_set():
                click.echo(f"Search at {self.url} (Ctrl-C ends it)", err=True)
                if self.opens and has_desktop():
                    webbrowser.open(self.url)


def has_desktop() -> bool:
    """True if a browser opens in a window: in a terminal it would take the place of what is printed."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")))


def lower_priority() -> None:
    """Let searches go before the embedding of photos."""
    if hasattr(os, "nice"):
        os.nice(10)


class Follower:
    """Keeps collections up to date with their folders, where no other `llm clip serve` does it already."""

    def __init__(self, photos: Sequence[PhotoFolder], model_dir: Path, options: Options, stop: Event):
        self.photos, self.model_dir, self.stop = photos, model_dir, stop
        self.exclude, self.watches, self.force = options.exclude, options.watch, options.force
        self.states: dict[PhotoFolder, list[tuple] | None] = {}  # at the last look

    def look(self, begin: Callable[[], object]) -> None:
        """Embed and index what has changed since the last look. What goes wrong is said, and the others go on."""
        from .filling import say_fault

        for photos in self.photos:
            try:
                if not self.stop.is_set():
                    self.follow(photos, begin)
            except (ClipError, sqlite3.Error) as error:
                say_fault(photos, error)
        self.force = False  # everything has been embedded again

    def follow(self, photos: PhotoFolder, begin: Callable[[], object]) -> None:
        """Embed and index one folder. Raises ClipError and sqlite3.Error."""
        from .filling import fill, index_photos, state_of

        state = state_of(photos, self.exclude) if self.watches else None
        if state is not None and state == self.states.get(photos):
            return
        self.states[photos] = state
        embedder = open_model(self.model_dir, photos)
        fill(photos, embedder, self.exclude, self.force, self.stop, begin)
        if not self.stop.is_set():
            index_photos(photos, embedder)

    def watch(self, server: LocalServer) -> None:
        """Look again and again until the end."""
        while not self.stop.is_set():
            begun_s = time.monotonic()
            self.look(lambda: None)
            wait(server, self.stop, max(LEAST_PAUSE_S, PAUSE_SHARE * (time.monotonic() - begun_s)))


def only_ours(stack: ExitStack, photos: Sequence[PhotoFolder]) -> list[PhotoFolder]:
    """The folders of databases that no other `llm clip serve` embeds into. The others are named."""
    locks = {database: stack.enter_context(only_writer(database)) for database in {one.database for one in photos}}
    for one in photos:
        if not locks[one.database]:
            click.echo(f"{one.collection}: another `llm clip serve` embeds it; this one only serves it", err=True)
    return [one for one in photos if locks[one.database]]


def wait(server: LocalServer, stop: Event, seconds: float = float("inf")) -> None:
    """Wait for `stop`, at most so long. Raises InputError if Datasette ends."""
    end_s = time.monotonic() + seconds
    while not stop.wait(CHECK_S) and time.monotonic() < end_s:
        server.check()

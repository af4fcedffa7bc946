"""Lists every URL of ours, below base_url: for hooks, pages, templates and tests."""

from __future__ import annotations

from functools import lru_cache

from datasette.utils import tilde_encode

ABOUT, HEALTH = "/-/clip", "/-/clip/health"
EMBED, CLASSIFY, COMPARE = "/-/clip/embed", "/-/clip/classify", "/-/clip/compare"
SEARCH, THUMBNAIL = "/-/clip/search", "/-/clip/thumbnail"  # SEARCH itself lists the collections
VIEWER, ORIGINAL = "/-/clip/view", "/-/clip/original"  # of one row, by ?id=
TEXT_URL = "/-/clip/v"  # below it the sha256 of a model, then text.json and others
EMBEDDINGS, MODELS = "/v1/embeddings", "/v1/models"  # what OpenAI's clients call
STATIC = "/-/clip/static"  # below it the hash of all static files, then a file's name
COLLECTION = "/(?P<database>[^/.]+)/(?P<collection>[^/.]+)"  # each tilde-encoded, as in Datasette's own URLs
READ_ONLY = {EMBEDDINGS, f"{EMBED}.json", f"{CLASSIFY}.json", CLASSIFY, COMPARE}  # a POST changes nothing


def is_read_only(path: str) -> bool:
    """True if a POST to this path (see datasette_guard.path_below) changes nothing."""
    return path in READ_ONLY or path.startswith(f"{SEARCH}/")


def search_path(datasette, database: str, collection: str) -> str:
    """The path of a collection's search page, with base_url."""
    return collection_path(datasette, SEARCH, database, collection)


def thumbnail_path(datasette, database: str, collection: str) -> str:
    """The path of a collection's thumbnails, with base_url."""
    return collection_path(datasette, THUMBNAIL, database, collection)


def viewer_path(datasette, database: str, collection: str) -> str:
    """The path of the page that shows one row of a collection large, with base_url."""
    return collection_path(datasette, VIEWER, database, collection)


def original_path(datasette, database: str, collection: str) -> str:
    """The path of a collection's original pictures, with base_url."""
    return collection_path(datasette, ORIGINAL, database, collection)


def collection_path(datasette, begins: str, database: str, collection: str) -> str:
    """A path of ours that names a collection, with base_url."""
    return datasette.urls.path(below(begins, database, collection))


@lru_cache(100)  # a table page asks twice for each row
def below(begins: str, database: str, collection: str) -> str:
    """A path of ours that names a collection, without base_url."""
    return f"{begins}/{tilde_encode(database)}/{tilde_encode(collection)}"


def is_openai(path: str) -> bool:
    """True if a path (see datasette_guard.path_below) is one of OpenAI's form; a database `v1` keeps all others."""
    return path in (EMBEDDINGS, MODELS) or (path.startswith(f"{MODELS}/") and path.count("/") == 3)


def is_ours(path: str) -> bool:
    """True if a path (see datasette_guard.path_below) is one of this plugin's."""
    return path == ABOUT or path.startswith((f"{ABOUT}/", f"{ABOUT}.")) or is_openai(path)

"""The plugin's configuration, `plugins.datasette-clip` in metadata.json, checked once when Datasette starts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any

import click

from llm_clip_onnx.errors import ConfigError

from .crawlers import REFUSED, TAGS

PLUGIN = "datasette-clip"


@dataclass(frozen=True)
class Limits:
    """What visitors can ask of a small machine, sizes in bytes.

    requests: in flight at once, before 503. queries: those of them that run SQL at once, before the others wait.
    embedding: those that wait for, or are in, the endpoints' own embedding, before 503.
    url_bytes: query string. fields: in the query string. sql_bytes: its `sql` or a `_where`. body_bytes: of a request.
    receiving_bytes: bodies of all requests in flight, before 503. items: texts and images in one request. prompts:
    labels times prompt templates given with one. text_bytes: one text. value_bytes: any one value in SQL, an image
    included. result_bytes: memory of all rows that a query gives. sqlite_bytes: all that SQLite holds in memory at
    once, 0 for as much as there is.
    sending_bytes: answers being sent, before 503. stalled_s: seconds in which a client neither sends nor reads.
    """

    requests: int = 64
    queries: int = 4
    embedding: int = 16
    url_bytes: int = 60_000
    fields: int = 100
    sql_bytes: int = 20_000
    body_bytes: int = 10_000_000
    receiving_bytes: int = 50_000_000
    items: int = 64
    prompts: int = 256
    text_bytes: int = 1_000_000
    value_bytes: int = 10_000_000
    result_bytes: int = 50_000_000
    sqlite_bytes: int = 0
    sending_bytes: int = 100_000_000
    stalled_s: int = 30


@dataclass(frozen=True)
class Config:
    """models: ids of the `llm` embedding models that SQL may call. keys: datasette-llm-embed's keys, by model id.

    refuse_crawlers: tags of crawlers that get 403. suspend: whether, or by which socket, an idle Fly machine is asked
    to be suspended. collections: database -> name -> what collection.configured takes. limits: see Limits.
    """

    models: tuple[str, ...] = ("clip",)
    refuse_crawlers: tuple[str, ...] = REFUSED
    suspend: bool | str = False
    collections: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    keys: dict[str, str] = field(default_factory=dict, repr=False)


def config_of(datasette) -> Config:
    """The configuration of this Datasette, read once. Raises ClickException, which `datasette serve` ends with."""
    if not hasattr(datasette, "_clip_config"):
        keys = datasette.plugin_config("datasette-llm-embed")
        try:
            datasette._clip_config = read_config(datasette.plugin_config(PLUGIN), read_keys(keys))
        except ConfigError as error:
            raise click.ClickException(str(error)) from error
    return datasette._clip_config


def read_keys(found: object) -> dict[str, str]:
    """The keys that datasette-llm-embed is configured with, by model id. Raises ConfigError."""
    found = {} if found is None else found
    keys = (found.get("keys") or {}) if isinstance(found, dict) else None
    if not isinstance(keys, dict):
        raise ConfigError("plugins.datasette-llm-embed.keys is no object; expected model ids and their keys")
    for model_id, key in keys.items():
        if not isinstance(key, str | None):
            raise ConfigError(
                f"plugins.datasette-llm-embed.keys.{model_id} is no string; expected the key of that model"
            )
    return {model_id: key for model_id, key in keys.items() if key}  # null: an environment variable that is not set


def read_config(found: object, keys: dict[str, str]) -> Config:
    """The configuration in what metadata.json says, or the defaults where it says nothing.

    Raises ConfigError naming the key that is unknown or has a value that cannot be used.
    """
    known: dict[str, Any] = {
        name: READERS[name](value) for name, value in read_object(PLUGIN, found, READERS.keys()).items()
    }
    return Config(keys=keys, **known)


def read_object(place: str, found: object, known: Collection[str]) -> dict:
    """An object with no other keys than those known. Raises ConfigError."""
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"plugins.{place} is {type(found).__name__}; expected an object with {', '.join(known)}")
    if unknown := sorted(map(str, found.keys() - known)):
        raise ConfigError(f"plugins.{place}.{unknown[0]} is not a key of this plugin; expected {', '.join(known)}")
    return found


def read_models(models: object) -> tuple[str, ...]:
    if not isinstance(models, list) or not models or not all(isinstance(m, str) and m for m in models):
        raise ConfigError(f'plugins.{PLUGIN}.models is {models!r}; expected a list of model ids such as ["clip"]')
    return tuple(models)


def read_refuse_crawlers(tags: object) -> tuple[str, ...]:
    if not isinstance(tags, list) or not all(tag in TAGS for tag in tags):
        raise ConfigError(
            f"plugins.{PLUGIN}.refuse_crawlers is {tags!r}; expected a list, empty to refuse none, of {', '.join(TAGS)}"
        )
    return tuple(tags)


def read_suspend(suspend: object) -> bool | str:
    if not isinstance(suspend, bool | str):
        raise ConfigError(f"plugins.{PLUGIN}.suspend is {suspend!r}; expected true, false or the path of a socket")
    return suspend


def read_collections(found: object) -> dict[str, dict[str, dict[str, str]]]:
    place = f"plugins.{PLUGIN}.collections"
    if not isinstance(found, dict):
        raise ConfigError(f"{place} is {found!r}; expected an object of databases and their collections")
    for database, collections in found.items():
        if not isinstance(collections, dict):
            raise ConfigError(f"{place}.{database} is {collections!r}; expected an object of names and collections")
        for name, settings in collections.items():
            if not isinstance(settings, dict):
                raise ConfigError(
                    f"{place}.{database}.{name} is {settings!r}; expected an object with table and vector"
                )
    return found


def read_limits(found: object) -> Limits:
    found = read_object(f"{PLUGIN}.limits", found, [limit.name for limit in fields(Limits)])
    for name, value in found.items():
        least = min(1, getattr(Limits, name))  # 0 where that is the default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise ConfigError(
                f"plugins.{PLUGIN}.limits.{name} is {value!r}; expected a whole number from {least} to 2147483647"
            )
    return Limits(**found)


READERS: dict[str, Callable[[object], Any]] = {
    "models": read_models,
    "refuse_crawlers": read_refuse_crawlers,
    "suspend": read_suspend,
    "collections": read_collections,
    "limits": read_limits,
}

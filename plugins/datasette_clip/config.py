"""The configuration of the doors, `plugins.datasette-clip` in metadata.json, checked once when Datasette starts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any

import click

from llm_clip_onnx.errors import ConfigError

PLUGIN = "datasette-clip"
GUARD = "datasette-guard"
MOVED = ("refuse_crawlers", "suspend")  # to the guard's configuration, in version 0.2
MOVED_LIMITS = (
    "requests", "queries", "url_bytes", "fields", "sql_bytes", "body_bytes", "receiving_bytes", "value_bytes",
    "result_bytes", "sqlite_bytes", "sending_bytes", "stalled_s",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What clients can ask of the model, sizes in bytes.

    embedding: requests that wait for, or are in, the endpoints' own embedding, before 503. items: texts and images in
    one request. prompts: labels times prompt templates given with one request. text_bytes: one text.
    """

    embedding: int = 16
    items: int = 64
    prompts: int = 256
    text_bytes: int = 1_000_000


@dataclass(frozen=True)
class Config:
    """models: ids of the `llm` embedding models that SQL may call. keys: datasette-llm-embed's keys, by model id.

    collections: database -> name -> settings of collection.configured. limits: see Limits.
    """

    models: tuple[str, ...] = ("clip",)
    collections: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    keys: dict[str, str] = field(default_factory=dict, repr=False)


def config_of(datasette) -> Config:
    """The configuration of this Datasette, read once. Raises ClickException, which ends `datasette serve`."""
    if not hasattr(datasette, "_clip_config"):
        keys = datasette.plugin_config("datasette-llm-embed")
        try:
            datasette._clip_config = read_config(datasette.plugin_config(PLUGIN), read_keys(keys))
        except ConfigError as error:
            raise click.ClickException(str(error)) from error
    return datasette._clip_config


def read_keys(settings: object) -> dict[str, str]:
    """The keys that datasette-llm-embed is configured with, by model id. Raises ConfigError."""
    settings = {} if settings is None else settings
    keys = (settings.get("keys") or {}) if isinstance(settings, dict) else None
    if not isinstance(keys, dict):
        raise ConfigError("plugins.datasette-llm-embed.keys is no object; expected model ids and their keys")
    for model_id, key in keys.items():
        if not isinstance(key, str | None):
            raise ConfigError(
                f"plugins.datasette-llm-embed.keys.{model_id} is no string; expected the key of that model"
            )
    return {model_id: key for model_id, key in keys.items() if key}  # null: an environment variable that is not set


def read_config(settings: object, keys: dict[str, str]) -> Config:
    """The configuration in metadata.json's object, with defaults for what it does not say.

    Raises ConfigError naming the key that is unknown, has moved to the guard or has a value that cannot be used.
    """
    check_moved(PLUGIN, settings, MOVED)
    known: dict[str, Any] = {
        name: READERS[name](value) for name, value in read_object(PLUGIN, settings, READERS.keys()).items()
    }
    return Config(keys=keys, **known)


def check_moved(place: str, settings: object, moved: Collection[str]) -> None:
    """Raises ConfigError for the first key that lives in the guard's configuration now."""
    for name in settings if isinstance(settings, dict) else ():
        if name in moved:
            new_place = place.replace(PLUGIN, GUARD)
            raise ConfigError(f"plugins.{place}.{name} has moved: write it as plugins.{new_place}.{name}")


def read_object(place: str, settings: object, known: Collection[str]) -> dict:
    """An object with no other keys than those known. Raises ConfigError."""
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"plugins.{place} is {type(settings).__name__}; expected an object with {', '.join(known)}")
    if unknown := sorted(map(str, settings.keys() - known)):
        raise ConfigError(f"plugins.{place}.{unknown[0]} is not a key of this plugin; expected {', '.join(known)}")
    return settings


def read_models(models: object) -> tuple[str, ...]:
    if not isinstance(models, list) or not models or not all(isinstance(m, str) and m for m in models):
        raise ConfigError(f'plugins.{PLUGIN}.models is {models!r}; expected a list of model ids such as ["clip"]')
    return tuple(models)


def read_collections(settings: object) -> dict[str, dict[str, dict[str, str]]]:
    place = f"plugins.{PLUGIN}.collections"
    if not isinstance(settings, dict):
        raise ConfigError(f"{place} is {settings!r}; expected an object of databases and their collections")
    for database, collections in settings.items():
        if not isinstance(collections, dict):
            raise ConfigError(f"{place}.{database} is {collections!r}; expected an object of names and collections")
        for name, one in collections.items():
            if not isinstance(one, dict):
                raise ConfigError(f"{place}.{database}.{name} is {one!r}; expected an object with table and vector")
    return settings


def read_limits(settings: object) -> Limits:
    check_moved(f"{PLUGIN}.limits", settings, MOVED_LIMITS)
    settings = read_object(f"{PLUGIN}.limits", settings, [limit.name for limit in fields(Limits)])
    for name, value in settings.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
            raise ConfigError(
                f"plugins.{PLUGIN}.limits.{name} is {value!r}; expected a whole number from 1 to 2147483647"
            )
    return Limits(**settings)


READERS: dict[str, Callable[[object], Any]] = {
    "models": read_models,
    "collections": read_collections,
    "limits": read_limits,
}

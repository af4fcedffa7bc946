"""Reads the doors' configuration, `plugins.datasette-clip` in metadata.json, checked once when Datasette starts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from datasette_guard import ConfigError, per_datasette, read_limits, read_object
from llm_clip_onnx.errors import cited, shortened
from llm_clip_onnx.models import MODELS_BYTES

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

    embedding: requests to endpoints and pages that are being embedded or wait for that, before 503. items: texts
    and images in one request. inputs: texts in one request to /v1/embeddings. prompts: labels times prompt templates
    given with one request. text_bytes: one text. models_bytes: files of open towers of several models, before those of
    the least used one are closed.
    """

    embedding: int = 16
    items: int = 64
    inputs: int = 128
    prompts: int = 256
    text_bytes: int = 1_000_000
    models_bytes: int = MODELS_BYTES


@dataclass(frozen=True)
class Config:
    """models: ids of the models that clients may call, others of `llm` among them; None: all of ours.

    keys: datasette-llm-embed's keys, by model id.

    collections: database -> name -> settings of collection.configured. limits: see Limits.
    """

    models: tuple[str, ...] | None = None
    collections: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    keys: dict[str, str] = field(default_factory=dict, repr=False)


@per_datasette
def config_of(datasette) -> Config:
    """The configuration of this Datasette, read once. Raises ConfigError, which ends `datasette serve`."""
    return read_config(datasette.plugin_config(PLUGIN), read_keys(datasette.plugin_config("datasette-llm-embed")))


def read_keys(settings: object) -> dict[str, str]:
    """The keys that datasette-llm-embed is configured with, by model id. Raises ConfigError."""
    settings = {} if settings is None else settings
    keys = (settings.get("keys") or {}) if isinstance(settings, dict) else None
    if not isinstance(keys, dict):
        raise ConfigError("plugins.datasette-llm-embed.keys is no object; expected model ids and their keys")
    for model_id, key in keys.items():
        if not isinstance(key, str | None):
            raise ConfigError(
                f"plugins.datasette-llm-embed.keys.{shortened(model_id)} is no string; expected the key of that model"
            )
    return {model_id: key for model_id, key in keys.items() if key}  # null: an environment variable that is not set


def read_config(settings: object, keys: dict[str, str]) -> Config:
    """The configuration in metadata.json's object, with defaults for keys it does not have.

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


def read_models(models: object) -> tuple[str, ...]:
    if not isinstance(models, list) or not models or not all(isinstance(m, str) and m for m in models):
        raise ConfigError(f'plugins.{PLUGIN}.models is {cited(models)}; expected a list of model ids such as ["clip"]')
    return tuple(models)


def read_collections(settings: object) -> dict[str, dict[str, dict[str, str]]]:
    place = f"plugins.{PLUGIN}.collections"
    if not isinstance(settings, dict):
        raise ConfigError(f"{place} is {cited(settings)}; expected an object of databases and their collections")
    for database, collections in settings.items():
        if not isinstance(collections, dict):
            raise ConfigError(
                f"{place}.{shortened(database)} is {cited(collections)}; expected an object of names and collections"
            )
        for name, collection in collections.items():
            if not isinstance(collection, dict):
                raise ConfigError(
                    f"{place}.{shortened(database)}.{shortened(name)} is {cited(collection)}; expected an object with"
                    " table and vector"
                )
    return settings


def read_clip_limits(settings: object) -> Limits:
    check_moved(f"{PLUGIN}.limits", settings, MOVED_LIMITS)
    return read_limits(f"{PLUGIN}.limits", settings, Limits)


READERS: dict[str, Callable[[object], Any]] = {
    "models": read_models,
    "collections": read_collections,
    "limits": read_clip_limits,
}

"""The guard's configuration, `plugins.datasette-guard` in metadata.json, checked once when Datasette starts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import Any

import click

from .crawlers import REFUSED, TAGS

PLUGIN = "datasette-guard"


class ConfigError(ValueError):
    """A configuration key has a value that cannot be used."""


@dataclass(frozen=True)
class Limits:
    """What clients can ask of a small machine, sizes in bytes.

    requests: in flight at once, before 503. queries: those of them that run SQL at once, before the others wait.
    url_bytes: query string. fields: in the query string. sql_bytes: its `sql` or a `_where`. body_bytes: of a request.
    receiving_bytes: bodies of all requests in flight, before 503. value_bytes: any one value in SQL, an image included.
    result_bytes: memory of all rows of a query. sqlite_bytes: all that SQLite holds in memory at once, 0 for no bound.
    sending_bytes: responses being sent, before 503. stalled_s: seconds in which a client neither sends nor reads.
    """

    requests: int = 64
    queries: int = 4
    url_bytes: int = 60_000
    fields: int = 100
    sql_bytes: int = 20_000
    body_bytes: int = 10_000_000
    receiving_bytes: int = 50_000_000
    value_bytes: int = 10_000_000
    result_bytes: int = 50_000_000
    sqlite_bytes: int = 0
    sending_bytes: int = 100_000_000
    stalled_s: int = 30


@dataclass(frozen=True)
class Config:
    """limits: see Limits. refuse_crawlers: tags of crawlers that get 403.

    suspend: True, or the path of a socket, to ask Fly to suspend an idle machine instead of exiting.
    """

    limits: Limits = field(default_factory=Limits)
    refuse_crawlers: tuple[str, ...] = REFUSED
    suspend: bool | str = False


def config_of(datasette) -> Config:
    """The guard's configuration of this Datasette, read once. Raises ClickException, which ends `datasette serve`."""
    if not hasattr(datasette, "_guard_config"):
        try:
            datasette._guard_config = read_config(datasette.plugin_config(PLUGIN))
        except ConfigError as error:
            raise click.ClickException(str(error)) from error
    return datasette._guard_config


def read_config(settings: object) -> Config:
    """The configuration in metadata.json's object, with defaults for what it does not say.

    Raises ConfigError naming the key that is unknown or has a value that cannot be used.
    """
    known: dict[str, Any] = {
        name: READERS[name](value) for name, value in read_object(PLUGIN, settings, READERS.keys()).items()
    }
    return Config(**known)


def read_object(place: str, settings: object, known: Collection[str]) -> dict:
    """An object with no other keys than those known. Raises ConfigError."""
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"plugins.{place} is {type(settings).__name__}; expected an object with {', '.join(known)}")
    if unknown := sorted(map(str, settings.keys() - known)):
        raise ConfigError(f"plugins.{place}.{unknown[0]} is not a key of this plugin; expected {', '.join(known)}")
    return settings


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


def read_limits(settings: object) -> Limits:
    settings = read_object(f"{PLUGIN}.limits", settings, [limit.name for limit in fields(Limits)])
    for name, value in settings.items():
        least = min(1, getattr(Limits, name))  # 0 where that is the default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise ConfigError(
                f"plugins.{PLUGIN}.limits.{name} is {value!r}; expected a whole number from {least} to 2147483647"
            )
    return Limits(**settings)


READERS: dict[str, Callable[[object], Any]] = {
    "limits": read_limits,
    "refuse_crawlers": read_refuse_crawlers,
    "suspend": read_suspend,
}

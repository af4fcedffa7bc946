"""Reads the guard's configuration, `plugins.datasette-guard` in metadata.json, checked once when Datasette starts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .crawlers import REFUSED, TAGS
from .quoting import cited, shortened
from .upstream import per_datasette

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

L = TypeVar("L", bound="DataclassInstance")

PLUGIN = "datasette-guard"


class ConfigError(click.ClickException):
    """A configuration key has a value that cannot be used. Its sentence ends `datasette serve`."""


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
    """limits: see Limits. refuse_crawlers: tags of crawlers that get 403. hosts: names of this server; None: any.

    suspend: True, or the path of a socket, to ask Fly to suspend an idle machine instead of exiting. token: what a
    client must send to see anything; None for a public instance.
    """

    limits: Limits = field(default_factory=Limits)
    refuse_crawlers: tuple[str, ...] = REFUSED
    hosts: tuple[str, ...] | None = None
    suspend: bool | str = False
    token: str | None = field(default=None, repr=False)


@per_datasette
def config_of(datasette) -> Config:
    """The guard's configuration of this Datasette, read once. Raises ConfigError."""
    return read_config(datasette.plugin_config(PLUGIN))


def limits_of(datasette) -> Limits:
    """The guard's limits of this Datasette."""
    return config_of(datasette).limits


def read_config(settings: object) -> Config:
    """The configuration in metadata.json's object, with defaults for the keys it does not have.

    Raises ConfigError naming the key that is unknown or has a value that cannot be used.
    """
    known: dict[str, Any] = {
        name: READERS[name](value) for name, value in read_object(PLUGIN, settings, READERS.keys()).items()
    }
    return Config(**known)


def read_object(place: str, settings: object, known: Collection[str]) -> dict:
    """The settings at a place below `plugins`: an object without unknown keys, empty for None. Raises ConfigError."""
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"plugins.{place} is {type(settings).__name__}; expected an object with {', '.join(known)}")
    if unknown := sorted(map(str, settings.keys() - known)):
        raise ConfigError(
            f"plugins.{place}.{shortened(unknown[0])} is not a key of this plugin; expected {', '.join(known)}"
        )
    return settings


def read_refuse_crawlers(tags: object) -> tuple[str, ...]:
    if not isinstance(tags, list) or not all(tag in TAGS for tag in tags):
        raise ConfigError(
            f"plugins.{PLUGIN}.refuse_crawlers is {cited(tags)}; expected a list, empty to refuse none, of "
            + ", ".join(TAGS)
        )
    return tuple(tags)


def read_hosts(hosts: object) -> tuple[str, ...]:
    if not isinstance(hosts, list) or not hosts or not all(isinstance(host, str) and host for host in hosts):
        raise ConfigError(
            f"plugins.{PLUGIN}.hosts is {cited(hosts)}; expected a list of names without ports, "
            'such as ["127.0.0.1", "localhost"]'
        )
    return tuple(host.lower() for host in hosts)


def read_suspend(suspend: object) -> bool | str:
    if not isinstance(suspend, bool | str):
        raise ConfigError(f"plugins.{PLUGIN}.suspend is {cited(suspend)}; expected true, false or the path of a socket")
    return suspend


def read_token(token: object, place: str, remedy: str) -> str:
    """A token that protects. An empty one is an error, because an unset variable must not open a private instance."""
    if not isinstance(token, str) or not token.strip():
        found = type(token).__name__ if token and not isinstance(token, str) else repr(token)
        raise ConfigError(f"{place} is {found}; expected a string that is not empty: {remedy}")
    return token.strip()


def read_limits(place: str, settings: object, kind: type[L]) -> L:
    """A dataclass of whole numbers from an object, with the dataclass's defaults for numbers it does not have.

    A number may be 0 where that is its default. Raises ConfigError.
    """
    defaults: dict[str, Any] = {limit.name: limit.default for limit in fields(kind)}
    settings = read_object(place, settings, defaults.keys())
    for name, value in settings.items():
        least = min(1, defaults[name])
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise ConfigError(
                f"plugins.{place}.{name} is {cited(value)}; expected a whole number from {least} to 2147483647"
            )
    return kind(**settings)


READERS: dict[str, Callable[[object], Any]] = {
    "limits": lambda settings: read_limits(f"{PLUGIN}.limits", settings, Limits),
    "refuse_crawlers": read_refuse_crawlers,
    "hosts": read_hosts,
    "suspend": read_suspend,
    "token": lambda token: read_token(
        token,
        f"plugins.{PLUGIN}.token",
        "set the variable that it names, or leave the key out for a public instance",
    ),
}

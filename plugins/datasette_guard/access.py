"""Answers what an actor may do: by the token of a private instance, and by permissions of Datasette 0.65 and of 1.0."""

from __future__ import annotations

import os
import secrets

import click
from datasette.utils.asgi import Forbidden

from .config import PLUGIN, config_of, read_token
from .upstream import local_metadata, per_datasette

NO_RESOURCES = "SELECT NULL AS parent, NULL AS child WHERE 0"
ACTOR = {"id": "clip-token"}
VARIABLE = "CLIP_TOKEN"
UNSET = "give the variable a value, or unset it for a public instance"


@per_datasette
def token_of(datasette) -> str | None:
    """The token that a client must send, of CLIP_TOKEN in the environment or else of the configuration; None: none.

    Raises ConfigError for a CLIP_TOKEN that is set to nothing.
    """
    token = os.environ.get(VARIABLE)
    return config_of(datasette).token if token is None else read_token(token, VARIABLE, UNSET)


def is_private(datasette) -> bool:
    """True if clients need the token of this instance."""
    return token_of(datasette) is not None


def actor_of(datasette, authorization: str | None) -> dict | None:
    """The actor of an Authorization header with the token in UTF-8, or None."""
    scheme, _, sent = (authorization or "").partition(" ")
    is_bearer = scheme.lower() == "bearer" and is_token(datasette, sent.encode("latin-1"))
    return ACTOR if is_bearer else None


def is_token(datasette, sent: str | bytes) -> bool:
    """True if this instance has a token and it was sent, as a text or in UTF-8."""
    token, sent = token_of(datasette), sent.encode() if isinstance(sent, str) else sent
    return bool(token) and secrets.compare_digest(sent, (token or "").encode())


def permission(datasette, actor: dict | None) -> bool | None:
    """False for every action of an anonymous client if there is a token; None, which is no opinion, otherwise."""
    return False if token_of(datasette) and not actor else None


def is_1(datasette) -> bool:
    """True if this is Datasette 1.0 or an alpha of it."""
    return hasattr(datasette, "allowed")


async def may(datasette, actor: dict | None, action: str, database: str | None = None) -> bool:
    """True if an actor (None: anonymous) may do an action that Datasette allows by default, such as execute-sql."""
    if not is_1(datasette):
        return await datasette.permission_allowed(actor, action, resource=database, default=True)
    from datasette.resources import DatabaseResource

    resource = None if database is None else DatabaseResource(database)
    return await datasette.allowed(action=action, resource=resource, actor=actor)


async def may_view_table(datasette, actor: dict | None, database: str, table: str) -> bool:
    """True if an actor (None: anonymous) may see a table, its database and the instance."""
    if not is_1(datasette):
        try:
            every = [("view-table", (database, table)), ("view-database", database), "view-instance"]
            await datasette.ensure_permissions(actor, every)
        except Forbidden:
            return False
        return True
    from datasette.resources import TableResource

    return await datasette.allowed(action="view-table", resource=TableResource(database, table), actor=actor)


async def ensure_instance(datasette, request) -> None:
    """Raise Forbidden, which Datasette answers with 403, if the client may not see this instance."""
    if not await may(datasette, request.actor, "view-instance"):
        raise Forbidden("view-instance")


def allowed_resources(datasette, actor: dict | None):
    """The answer to Datasette 1.0's hook permission_resources_sql: no resource for a client without the token."""
    if permission(datasette, actor) is not False:
        return None
    from datasette.permissions import PermissionSQL

    return PermissionSQL(restriction_sql=NO_RESOURCES)


async def refuse_to_be_public(datasette) -> None:
    """Raise ClickException, which ends `datasette serve`, if a setting that closes something would have no effect."""
    if token_of(datasette) and await may(datasette, None, "view-instance"):
        name = VARIABLE if VARIABLE in os.environ else f"plugins.{PLUGIN}.token"
        raise click.ClickException(
            f"{name} is set, but this version of Datasette lets everybody in: no plugin is asked for permission"
        )
    if is_1(datasette) and (place := ignored_allow_sql(datasette)):
        raise click.ClickException(
            f"{place} is in the metadata, where Datasette 1.0 does not look for it: give the file with -c too"
        )


def ignored_allow_sql(datasette) -> str | None:
    """The first allow_sql that is in the metadata but not in the configuration, which alone 1.0 reads."""
    metadata, config = local_metadata(datasette), datasette.config or {}
    if "allow_sql" in metadata and "allow_sql" not in config:
        return "allow_sql"
    for name, database in (metadata.get("databases") or {}).items():
        if "allow_sql" in database and "allow_sql" not in (config.get("databases") or {}).get(name, {}):
            return f"databases.{name}.allow_sql"
    return None

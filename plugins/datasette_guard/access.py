"""Who may do what, asked and answered in the words of Datasette 0.65 and in those of 1.0, which share none."""

from __future__ import annotations

import os
import secrets

import click
from datasette.utils.asgi import Forbidden

NOBODY = "SELECT NULL AS parent, NULL AS child WHERE 0"  # the resources that are left, whatever other rules allow
ACTOR = {"id": "clip-token"}


def token() -> str | None:
    return os.environ.get("CLIP_TOKEN") or None


def actor_of(authorization: str | None) -> dict | None:
    """The actor of an Authorization header that carries the token, as UTF-8, or None."""
    scheme, _, found = (authorization or "").partition(" ")
    expected = token()
    if expected and scheme.lower() == "bearer" and secrets.compare_digest(found.encode("latin-1"), expected.encode()):
        return ACTOR
    return None


def permission(actor: dict | None) -> bool | None:
    """False, whatever the action, for nobody in particular where there is a token; None, which is no opinion, else."""
    return False if token() and not actor else None


def is_1(datasette) -> bool:
    """Whether this is Datasette 1.0, or an alpha of it."""
    return hasattr(datasette, "allowed")


async def may(datasette, actor: dict | None, action: str, database: str | None = None) -> bool:
    """Whether an actor may do what everybody may where nothing says otherwise: view-instance, execute-sql..."""
    if not is_1(datasette):
        return await datasette.permission_allowed(actor, action, resource=database, default=True)
    from datasette.resources import DatabaseResource

    resource = None if database is None else DatabaseResource(database)
    return await datasette.allowed(action=action, resource=resource, actor=actor)


async def may_view_table(datasette, actor: dict | None, database: str, table: str) -> bool:
    """Whether an actor may see a table, which is to be allowed in its database and its instance too."""
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
    """Raise Forbidden, which is answered with 403, for whoever may not see this instance."""
    if not await may(datasette, request.actor, "view-instance"):
        raise Forbidden("view-instance")


def resources_left(actor: dict | None):
    """What 1.0's hook permission_resources_sql answers, for any action: none is left where the token is missing."""
    if permission(actor) is not False:
        return None
    from datasette.permissions import PermissionSQL

    return PermissionSQL(restriction_sql=NOBODY)


async def refuse_to_be_public(datasette) -> None:
    """Raise ClickException, which ends `datasette serve`, where what is to be closed would be open."""
    if token() and await may(datasette, None, "view-instance"):
        raise click.ClickException(
            "CLIP_TOKEN is set, but this version of Datasette lets everybody in: no plugin is asked for permission"
        )
    if is_1(datasette) and (place := ignored_allow_sql(datasette)):
        raise click.ClickException(
            f"{place} is in the metadata, where Datasette 1.0 does not look for it: give the file with -c too"
        )


def ignored_allow_sql(datasette) -> str | None:
    """The first allow_sql of the metadata that the configuration lacks, heeded by 0.65 and not by 1.0."""
    found, heeded = datasette._metadata_local, datasette.config or {}
    if "allow_sql" in found and "allow_sql" not in heeded:
        return "allow_sql"
    for name, database in (found.get("databases") or {}).items():
        if "allow_sql" in database and "allow_sql" not in (heeded.get("databases") or {}).get(name, {}):
            return f"databases.{name}.allow_sql"
    return None

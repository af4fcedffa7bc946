"""The token of a private instance: with CLIP_TOKEN in the environment, whatever Datasette guards needs an actor.

Actors of other plugins (datasette-auth-tokens...) and Datasette's own signed tokens do as well.
"""

from __future__ import annotations

import os
import secrets

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

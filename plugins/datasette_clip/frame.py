"""What all our pages share: the variables of _clip_base.html, and the Content-Security-Policy of their responses.

A page gets a Content-Security-Policy if its template has asked for the nonce, which _clip_base.html does. So
Datasette's own pages get none, nor does an index.html of the instance's own.
"""

from __future__ import annotations

import secrets
from functools import cached_property, lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from datasette_guard import SIGN_OUT
from llm_clip_onnx import model_dir, models
from llm_clip_onnx.errors import ClipError

from .config import Config, config_of
from .model import default_model
from .static_files import static_path

SCOPE_KEY = "clip_policy"  # in the ASGI scope of a request


class Policy:
    """The nonce of a response, which is made when a template first asks for it."""

    def __init__(self) -> None:
        self.is_used = False

    @cached_property
    def nonce(self) -> str:
        self.is_used = True
        return secrets.token_urlsafe(16)

    def header(self, config: Config) -> bytes:
        """The value of Content-Security-Policy."""
        images = " ".join(["'self' data: blob:", *image_hosts(config)])
        return (
            f"default-src 'self'; script-src 'self' 'nonce-{self.nonce}'; img-src {images}; "
            f"style-src 'self' 'nonce-{self.nonce}'; base-uri 'none'"
        ).encode()


def image_hosts(config: Config) -> list[str]:
    """The hosts of configured image_url templates as sources of a policy; a scheme where a column gives the host."""
    sources: set[str] = set()
    for collections in config.collections.values():
        for collection in collections.values():
            url = str(collection.get("image_url", ""))
            scheme, host, *_ = urlsplit(url.replace("{", "").replace("}", ""))
            if url.startswith("{"):
                sources |= {"https:", "http:"}
            elif scheme in ("https", "http"):
                is_fixed = "{" not in url.split("://", 1)[-1].split("/", 1)[0]
                sources.add(f"{scheme}://{host}" if is_fixed else f"{scheme}:")
    return sorted(sources)


class Frame:
    """`clip_page` in templates: the nonce of the page, URLs of static files, and the notice of the model."""

    def __init__(self, datasette, request) -> None:
        self.datasette = datasette
        self.policy: Policy = (request.scope.get(SCOPE_KEY) if request else None) or Policy()

    @property
    def nonce(self) -> str:
        return self.policy.nonce

    def static(self, name: str) -> str:
        """The path of a static file of ours."""
        return static_path(self.datasette, name)

    @property
    def sign_out(self) -> str:
        """The path that signs out of a private instance by a POST; the menu has a link to it."""
        return self.datasette.urls.path(SIGN_OUT)

    @property
    def notice(self) -> str:
        """What the checkpoint's maker says about it, "" if nothing, or if there is no model."""
        try:
            path = models.path_of(default_model(config_of(self.datasette)))
            return notice_in(path, (path / model_dir.MANIFEST).stat().st_mtime_ns)
        except (ClipError, OSError):
            return ""


@lru_cache(maxsize=1)
def notice_in(path: Path, written_ns: int) -> str:
    """The notice in a model directory. written_ns: when its manifest was written, so that a new one is read."""
    return model_dir.read_manifest(path).source.notice or ""


def with_policy(datasette, app):
    """An ASGI app that sends the responses of `app`, those that our base template has made with a policy."""

    async def respond(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        policy = Policy()

        async def send_with_policy(message):
            if message["type"] == "http.response.start" and policy.is_used:
                header = (b"content-security-policy", policy.header(config_of(datasette)))
                message = message | {"headers": [*message.get("headers", ()), header]}
            await send(message)

        await app(scope | {SCOPE_KEY: policy}, receive, send_with_policy)

    return respond

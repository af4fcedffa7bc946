"""Signs a browser in to a private instance: a page takes the token, and a cookie stands for the token for 30 days.

The cookie is signed with a key made from the token. So it outlives a restart, and ends when the token changes.
"""

from __future__ import annotations

import hashlib
import secrets

from datasette.utils.asgi import NotFound, Response
from itsdangerous import BadSignature, URLSafeTimedSerializer

from .access import ACTOR, is_token, token_of

SIGN_IN, SIGN_OUT = "/-/guard/sign-in", "/-/guard/sign-out"
COOKIE = "guard_session"
LASTS_S = 30 * 24 * 60 * 60
POLICY = "default-src 'none'; style-src 'nonce-{}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
NOT_THE_TOKEN = "That is not the token of this instance."


def actor_of(datasette, cookies: dict[str, str]) -> dict | None:
    """The actor of a request with a valid cookie, else None."""
    token, sent = token_of(datasette), cookies.get(COOKIE)
    if not token or not sent:
        return None
    try:
        signer(token).loads(sent, max_age=LASTS_S)
    except BadSignature:  # forged, too old, or signed for another token
        return None
    return ACTOR


def signer(token: str) -> URLSafeTimedSerializer:
    """The signer of cookies that stand for a token. It writes when a cookie was made into it."""
    key = hashlib.sha256(b"datasette-guard sign-in " + token.encode()).hexdigest()
    return URLSafeTimedSerializer(key, salt=COOKIE, signer_kwargs={"digest_method": hashlib.sha256})


async def sign_in(datasette, request) -> Response:
    """The page that asks for the token. A POST of the right one leads on with a cookie.

    Raises NotFound for an instance without a token.
    """
    token = needed_token(datasette)
    if request.method != "POST":
        to = local_path(datasette, request.args.get("next"))
        return Response.redirect(to) if request.actor else await form(datasette, request, to, status=200)
    fields = await request.post_vars()
    to = local_path(datasette, fields.get("next"))
    if not is_token(datasette, fields.get("token", "").strip()):
        return await form(datasette, request, to, NOT_THE_TOKEN)
    response = Response.redirect(to)
    set_cookie(datasette, request, response, signer(token).dumps("in"), LASTS_S)
    return response


async def sign_out(datasette, request) -> Response:
    """The page with the button that signs out. A POST deletes the cookie. Raises NotFound as `sign_in`."""
    needed_token(datasette)
    if request.method != "POST":
        return await form(datasette, request, datasette.urls.instance(), status=200, leaving=True)
    response = Response.redirect(datasette.urls.path(SIGN_IN))
    set_cookie(datasette, request, response, "", 0)
    return response


def needed_token(datasette) -> str:
    """The token of this instance. Raises NotFound for a public one."""
    token = token_of(datasette)
    if not token:
        raise NotFound("this instance is public, so there is nothing to sign in to")
    return token


def forbidden_page(datasette, request):
    """A function of the sign-in page for a browser that lacks the token, to be awaited; None for other requests."""
    is_browser = "text/html" in request.headers.get("accept", "") and not request.path.endswith((".json", ".csv"))
    if not token_of(datasette) or request.actor or not is_browser:
        return None
    to = request.full_path if request.method == "GET" else request.path
    return lambda: form(datasette, request, local_path(datasette, to))


async def form(datasette, request, to: str, error: str = "", status: int = 403, *, leaving: bool = False) -> Response:
    """The page itself, which loads nothing and tells nothing of the instance."""
    page = {"to": to, "error": error, "leaving": leaving, "nonce": secrets.token_urlsafe(16)}
    page |= {"sign_in": datasette.urls.path(SIGN_IN), "sign_out": datasette.urls.path(SIGN_OUT)}
    html = await datasette.render_template("guard_sign_in.html", page, request=request)
    headers = {"Content-Security-Policy": POLICY.format(page["nonce"]), "Cache-Control": "no-store"}
    return Response.html(html, status=status, headers=headers | {"Referrer-Policy": "no-referrer"})


def local_path(datasette, path: str | None) -> str:
    """A path of this instance; its home page for anything that could lead a browser elsewhere."""
    is_local = path and path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if path and is_local else datasette.urls.instance()


def set_cookie(datasette, request, response: Response, value: str, max_age_s: int) -> None:
    """Set the cookie, which scripts cannot read and other sites' requests do not carry."""
    forwarded = request.headers.get("x-forwarded-proto", "")
    is_secure = "https" in (request.scheme, forwarded) or datasette.setting("force_https_urls")
    path = datasette.setting("base_url")
    response.set_cookie(COOKIE, value, max_age=max_age_s, path=path, secure=bool(is_secure), httponly=True)


def menu(datasette, actor: dict | None) -> list[dict[str, str]]:
    """The link to sign out, for a client with the token."""
    return [{"href": datasette.urls.path(SIGN_OUT), "label": "Sign out"}] if actor == ACTOR else []

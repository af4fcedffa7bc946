"""Refuses requests under a name that is not this server's, which a page gets by rebinding its own name to it.

A stranger's page could otherwise read a server on 127.0.0.1: after a moment the page's own name leads to 127.0.0.1, and
the browser takes both for one origin.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from .quoting import cited

NAME = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")  # of a Host header: an IPv6 address in brackets, or a name
DATASETTES_OWN = "localhost"  # datasette.client sends it; no page has that name


def refuse_host(hosts: Collection[str] | None, host: bytes | None) -> str | None:
    """The sentence that refuses a request with this Host header, or None.

    hosts: the server's names; None allows all. host: None if there is no header, which every browser sends.
    """
    if hosts is None or host is None:
        return None
    name = NAME.fullmatch(host.decode("latin-1").strip().lower())
    if name and name[1] in (*hosts, DATASETTES_OWN):
        return None
    return (
        f"this server is not called {cited(host.decode('latin-1'))}; expected {' or '.join(hosts)} "
        "(plugins.datasette-guard.hosts)"
    )

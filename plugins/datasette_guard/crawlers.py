"""Recognises crawlers and AI bots by their User-Agent header, with the list crawler-user-agents; gate.py refuses them.

A crawler that pretends to be a browser is not recognised.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache

TAGS = (
    "academic",
    "advertising",
    "ai-crawler",
    "archiver",
    "browser-automation",
    "feed-reader",
    "http-library",  # curl and Python among them: the very callers of this server
    "monitoring",
    "scanner",
    "search-engine",
    "seo",
    "social-preview",  # a link pasted in a chat
)
REFUSED = ("academic", "advertising", "ai-crawler", "archiver", "scanner", "search-engine", "seo")
CHARACTERS = 512  # of a header that are searched, and remembered


def is_crawler(user_agent: str, tags: tuple[str, ...]) -> bool:
    """True if a User-Agent header is that of a crawler with one of these tags."""
    return matches(user_agent[:CHARACTERS], tags)


@lru_cache(1024)
def matches(user_agent: str, tags: tuple[str, ...]) -> bool:
    return any(pattern.search(user_agent) for pattern in patterns_of(tags))


@cache
def patterns_of(tags: tuple[str, ...]) -> list[re.Pattern[str]]:
    """The list's patterns of crawlers with one of these tags."""
    if not tags:
        return []
    from crawleruseragents import CRAWLER_USER_AGENTS_DATA  # here: the start does not wait for its 0.5 MB

    return [re.compile(item["pattern"]) for item in CRAWLER_USER_AGENTS_DATA if set(tags) & set(item.get("tags", ()))]

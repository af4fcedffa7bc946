"""Which user agents are crawlers' and AI bots': those of the maintained list crawler-user-agents, chosen by its tags.

Only what says of itself that it is a crawler is found.
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
CHARACTERS = 512  # of a header that are looked at, and remembered
TOGETHER = 25  # patterns in one regular expression, as the library has it: more are slower, by their common prefixes


def is_refused(user_agent: str, tags: tuple[str, ...]) -> bool:
    """Whether a User-Agent header is that of a crawler with one of these tags."""
    return matches(user_agent[:CHARACTERS], tags)


@lru_cache(1024)
def matches(user_agent: str, tags: tuple[str, ...]) -> bool:
    return any(pattern.search(user_agent) for pattern in patterns_of(tags))


@cache
def patterns_of(tags: tuple[str, ...]) -> list[re.Pattern[str]]:
    if not tags:
        return []
    from crawleruseragents import CRAWLER_USER_AGENTS_DATA  # here: reading its 0.5 MB is not for the start

    patterns = [f"(?:{one['pattern']})" for one in CRAWLER_USER_AGENTS_DATA if set(tags) & set(one.get("tags", ()))]
    return [re.compile("|".join(patterns[i : i + TOGETHER])) for i in range(0, len(patterns), TOGETHER)]

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
PLAIN = re.compile(r"(?:[^\\^$.|?*+()\[\]{}]|\\\W)*")  # a pattern without operators, though some characters are escaped


def is_refused(user_agent: str, tags: tuple[str, ...]) -> bool:
    """Whether a User-Agent header is that of a crawler with one of these tags."""
    return matches(user_agent[:CHARACTERS], tags)


@lru_cache(1024)
def matches(user_agent: str, tags: tuple[str, ...]) -> bool:
    texts, expressions = patterns_of(tags)
    return any(text in user_agent for text in texts) or any(one.search(user_agent) for one in expressions)


@cache
def patterns_of(tags: tuple[str, ...]) -> tuple[list[str], list[re.Pattern[str]]]:
    """What is looked for: texts, and regular expressions for the patterns that are no plain text.

    By REFUSED those are 19 of 1071, by TAGS 36 of 1504. To compile all 1071 took each start 16 ms of CPU, at its first
    request; this takes 4.
    """
    if not tags:
        return [], []
    from crawleruseragents import CRAWLER_USER_AGENTS_DATA  # here: reading its 0.5 MB is not for the start

    patterns = [one["pattern"] for one in CRAWLER_USER_AGENTS_DATA if set(tags) & set(one.get("tags", ()))]
    texts = [re.sub(r"\\(.)", r"\1", pattern) for pattern in patterns if PLAIN.fullmatch(pattern)]
    return texts, [re.compile(pattern) for pattern in patterns if not PLAIN.fullmatch(pattern)]

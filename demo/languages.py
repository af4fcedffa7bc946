"""What emoji are called in 28 languages and varieties, by emojibase: names and keywords to train on, names held out.

Of each language one name in twelve is held out, and with it the same text in any other language and among the keywords.
"""

from __future__ import annotations

import hashlib
import random
import unicodedata
from pathlib import Path

from captions import TEMPLATES
from emoji import plain_hex, plain_text, read_json

LANGUAGES = (
    *("bn", "da", "de", "en", "en-gb", "es", "es-mx", "et", "fi", "fr", "hi", "hu", "it", "ja", "ko", "lt", "ms", "nb"),
    *("nl", "pl", "pt", "ru", "sv", "th", "uk", "vi", "zh", "zh-hant"),
)
HELD_OUT_SHARE = 12  # one name in so many is never read, by language
SYNONYMS = {  # stems of colours as emojibase has them -> others that mean the same
    "ru": {"фиолетов": ("лилов", "сиренев")},
    "uk": {"пурпуров": ("фіолетов", "лілов")},
    "fr": {"violet": ("mauve", "pourpre")},
    "es": {"morado": ("violeta", "lila")},
    "pt": {"roxo": ("lilás", "violeta")},
    "it": {"viola": ("lilla",)},
    "nl": {"paars": ("lila",)},
    "pl": {"fioletow": ("liliow",)},
}


def folded(text: str) -> str:
    """The text as it is compared with others: without case."""
    return plain_text(text).casefold()


def is_held_out(language: str, codepoints: str) -> bool:
    digest = hashlib.sha256(f"{language.split('-')[0]} {codepoints}".encode()).digest()
    return digest[0] % HELD_OUT_SHARE == 0


class Names:
    """What emoji are called: names to train on, keywords with all their emoji, and names that are held out."""

    def __init__(self, data: Path, codepoints: list[str]):
        number = {one: i for i, one in enumerate(codepoints)}
        self.held_out: dict[str, dict[str, int]] = {}  # language -> name -> emoji
        self.names: list[tuple[str, str, int]] = []  # language, name, emoji
        keywords: dict[tuple[str, str], set[int]] = {}
        entries = [
            (language, number[found], entry)
            for language in LANGUAGES
            for entry in read_json(data / f"emojibase/package/{language}/data.json")
            if (found := plain_hex(entry["hexcode"])) in number
        ]
        for language, i, entry in entries:
            if is_held_out(language, codepoints[i]):
                self.held_out.setdefault(language, {})[plain_text(entry["label"])] = i
        never = {folded(name) for names in self.held_out.values() for name in names}
        for language, i, entry in entries:
            if folded(entry["label"]) not in never:
                self.names.append((language, plain_text(entry["label"]), i))
            for tag in entry.get("tags", ()):
                if folded(tag) not in never:
                    keywords.setdefault((language, plain_text(tag)), set()).add(i)
        self.keywords = [(language, tag, sorted(of)) for (language, tag), of in sorted(keywords.items())]

    def texts(self) -> list[str]:
        """All texts that the vocabulary is made from."""
        own = [text for _, text, _ in [*self.names, *self.keywords]]
        return [
            *own,
            *map(plain, own),
            *TEMPLATES,
            *(s for stems in SYNONYMS.values() for k in stems.values() for s in k),
        ]

    def some(self, n: int) -> tuple[list[str], list[list[int]]]:
        """n texts, two thirds of them names, and the emoji that each may mean."""
        texts, of = [], []
        for _ in range(n):
            if random.random() < 0.66:
                language, text, i = random.choice(self.names)
                texts.append(varied(language, text))
                of.append([i])
            else:
                language, text, emoji = random.choice(self.keywords)
                texts.append(varied(language, text))
                of.append(emoji)
        return texts, of


def plain(text: str) -> str:
    """Latin letters without their marks, as people type them: `cœur` -> `coeur`."""
    text = text.replace("œ", "oe").replace("æ", "ae").replace("ß", "ss").replace("ø", "o").replace("ł", "l")
    parts = [unicodedata.normalize("NFD", letter) for letter in text]
    return "".join(part[0] if part[:1].isascii() else letter for part, letter in zip(parts, text))


def varied(language: str, text: str) -> str:
    """The text as somebody else might write it: another word for a colour, no accents, in a sentence."""
    for stem, others in SYNONYMS.get(language, {}).items():
        if stem in text and random.random() < 0.4:
            text = text.replace(stem, random.choice(others))
    if random.random() < 0.15:
        text = plain(text)
    if language.startswith("en") and random.random() < 0.3:
        text = random.choice(TEMPLATES).format(text)
    return text

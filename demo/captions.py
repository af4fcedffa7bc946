"""Captions for emoji pictures, written on the fly, each with the attributes that a picture must have to fit it.

An attribute is a fact that can be checked on every picture: which emoji it shows, its subgroup, a tag, a colour
measured from its pixels. A caption such as "red animal" thus fits the ladybird, the crab and the lobster alike, and each
of them counts as right in training. A few captions are never written, so that they can test what was learnt.
"""

from __future__ import annotations

import random
import re

import numpy as np

COLOURS = {
    "red": ["red"],
    "orange": ["orange"],
    "yellow": ["yellow", "yellow", "golden", "gold"],
    "green": ["green"],
    "blue": ["blue"],
    "purple": ["purple", "purple", "violet"],
    "pink": ["pink"],
    "brown": ["brown"],
    "black": ["black"],
    "white": ["white"],
    "gray": ["gray", "grey", "silver"],
}
HUES = [
    (0, "red"),
    (14, "orange"),
    (38, "yellow"),
    (66, "green"),
    (170, "blue"),
    (252, "purple"),
    (300, "pink"),
    (340, "red"),
]
NEVER = {  # queries of demo/README.md that ask for understanding rather than for a name
    "red fruit", "sad face", "animal that lives in water", "purple and gold", "green vegetable", "flying vehicle",
    "scary monster", "wild cat", "birthday party", "bad weather", "yellow bird", "rescue vehicle", "winter sport",
}  # fmt: skip
TEMPLATES = [
    "a {}", "the {}", "{}.", "a {}.", "{} emoji", "{} icon", "{} clipart", "emoji: {}",
    "an emoji of {}", "an emoji of a {}", "an emoji of a {}.", "a picture of {}", "a picture of a {}.", "an image of a {}",
    "a photo of {}", "a photo of a {}", "a photo of a {}.", "a photo of the {}.", "a good photo of a {}.", "a bad photo of a {}.",
    "a close-up photo of a {}.", "a cropped photo of the {}.", "a bright photo of a {}.", "a blurry photo of the {}.",
    "a photo of a small {}.", "a photo of the large {}.", "a photo of one {}.", "a photo of my {}.", "a photo of the cool {}.",
    "a drawing of {}", "a drawing of a {}.", "a cartoon {}.", "a cartoon of the {}", "a rendering of a {}.", "a painting of the {}.",
    "a sketch of a {}", "art of the {}.", "itap of a {}.", "the toy {}.", "a plushie {}.", "this is a {}", "this is a picture of {}",
    "here is a {}", "there is a {}", "show me {}", "find {}", "i am looking for a {}", "something like {}", "a symbol for {}",
    "a small icon that shows {}", "a sticker with a {} on it", "an illustration of {}, on a plain background", "{}, flat design",
]  # fmt: skip
PAIRS = ["{} and {}", "something {} and {}", "{} {}", "{} with {}", "a {} and {} thing", "{} and {} colors"]
SINGLES = ["{}", "something {}", "a {} thing", "{} colour", "{} color"]
SUBGROUP_NOUNS = {
    "marine life": ["sea animal", "sea creature", "marine life"],
    "vegetables": ["vegetable", "vegetables"],
    "birds": ["bird", "birds"],
    "bugs": ["bug", "insect"],
    "mammals": ["mammal", "animal"],
    "reptiles": ["reptile", "animal"],
    "flowers": ["flower"],
    "other plants": ["plant"],
    "drink": ["drink", "beverage", "something to drink"],
    "sweets & candy": ["sweet", "dessert", "candy"],
    "asian": ["asian food"],
    "cooked / prepared": ["meal", "prepared food"],
    "ground transportation": ["vehicle", "transport on land"],
    "water transportation": ["boat", "ship"],
    "air transportation": ["aircraft", "air transport"],
    "weather": ["weather", "sky and weather"],
    "musical instruments": ["musical instrument"],
    "clothing": ["clothing", "clothes"],
    "sports": ["sport", "sports"],
    "tools": ["tool"],
    "hearts": ["heart"],
    "zodiac signs": ["zodiac sign"],
    "arrows": ["arrow"],
    "time": ["clock", "time"],
    "buildings": ["building"],
    "religious buildings": ["religious building"],
    "cat faces": ["cat face"],
    "monkey faces": ["monkey face"],
    "smiling": ["smiling face", "happy face"],
    "concerned": ["worried face", "unhappy face"],
    "affectionate": ["loving face"],
    "sleepy": ["sleepy face"],
    "unwell": ["sick face"],
    "with tongue": ["face with tongue"],
    "negative": ["negative face", "angry face"],
    "costumed & creatures": ["creature face"],
    "shapes & colors": ["shape", "coloured shape"],
    "religious symbols": ["religious symbol"],
    "athletics": ["athlete", "person doing sport"],
    "fantasy": ["fantasy being"],
    "roles & careers": ["person with a job"],
    "family": ["family", "couple"],
    "holidays": ["holiday"],
    "games & hobbies": ["game"],
    "books & paper": ["book", "paper"],
    "computer": ["computer"],
    "phone": ["phone"],
    "office supplies": ["office supply"],
    "medical": ["medical item"],
    "household items": ["household item"],
    "light, film & video": ["light or film"],
    "warning symbols": ["warning sign"],
    "currencies": ["currency"],
}
GROUP_NOUNS = {
    "smileys & emotion": ["emotion", "face"],
    "people & body": ["person", "people", "body"],
    "animals & nature": ["nature", "animals and nature"],
    "food & drink": ["food", "food and drink"],
    "travel & places": ["travel", "place"],
    "activities": ["activity"],
    "objects": ["object", "thing"],
    "symbols": ["symbol", "sign"],
}
SMALL_WORDS = set(["with", "and", "of", "the", "in", "on", "a", "an", "for", "to", "no", "or"])


def colour_shares(picture: np.ndarray) -> np.ndarray:
    """Share of the opaque pixels that people would call each of COLOURS: [11] float. `picture` is premultiplied RGBA."""
    names = list(COLOURS)
    opaque = picture[..., 3] > 128
    if opaque.sum() < 20:
        return np.zeros(len(names))
    rgb = np.clip(picture[opaque][:, :3] / picture[opaque][:, 3:].astype(np.float32), 0, 1)
    value, low = rgb.max(1), rgb.min(1)
    chroma = value - low
    saturation = chroma / np.maximum(value, 1e-6)
    r, g, b = rgb.T
    c = np.maximum(chroma, 1e-6)
    hue = 60 * np.where(value == r, ((g - b) / c) % 6, np.where(value == g, (b - r) / c + 2, (r - g) / c + 4))
    starts, hue_names = zip(*HUES)
    named = np.array([names.index(n) for n in hue_names])[np.searchsorted(starts, hue, side="right") - 1]
    named[((hue < 14) | (hue >= 335)) & (saturation < 0.55) & (value > 0.75)] = names.index("pink")
    named[(hue >= 8) & (hue < 42) & ((value < 0.72) | ((value < 0.85) & (saturation < 0.6)))] = names.index("brown")
    named[value < 0.2] = names.index("black")
    grey = saturation < 0.16
    named[grey] = names.index("gray")
    named[grey & (value > 0.85)] = names.index("white")
    named[grey & (value < 0.3)] = names.index("black")
    return np.bincount(named, minlength=len(names)) / len(named)


def dressed(text: str) -> str:
    """`text` bare, three times in ten, or in one of TEMPLATES."""
    return text if random.random() < 0.3 else random.choice(TEMPLATES).format(text)


class Captions:
    """Writes captions for pictures and knows which picture fits which."""

    def __init__(self, emoji: list[dict], pictures: np.ndarray, of: list[tuple[int, str]]):
        self.emoji, self.of, self._numbers = emoji, of, {}
        facts = [self._facts_of(e) for e in emoji]
        colours = [self._colours_of(p) for p in pictures]
        self.colours = [[list(COLOURS)[c] for c in row] for row in colours]
        for colour in COLOURS:
            self._number(("colour", colour))
        self.fits = np.zeros((len(of), len(self._numbers)), bool)  # [pictures, attributes]
        for k, (i, _) in enumerate(of):
            self.fits[k, sorted(facts[i])] = True
            self.fits[k, [self._number(("colour", c)) for c in self.colours[k]]] = True

    def _number(self, attribute: tuple[str, str]) -> int:
        return self._numbers.setdefault(attribute, len(self._numbers))

    def _facts_of(self, e: dict) -> set[int]:
        words = {w for w in re.findall(r"[a-z']+", e["label"]) if w not in SMALL_WORDS and len(w) > 2}
        e["tags"] = sorted(set(e["tags"]) | words)
        nouns = SUBGROUP_NOUNS.get(e["subgroup"], []) + GROUP_NOUNS[e["group"]]
        facts = {self._number(("tag", t)) for t in e["tags"] + nouns}
        return facts | {self._number(("emoji", e["codepoints"])), self._number(("subgroup", e["subgroup"]))}

    @staticmethod
    def _colours_of(picture: np.ndarray) -> list[int]:
        shares = colour_shares(picture)
        return sorted(np.flatnonzero(shares >= 0.15), key=lambda c: -shares[c])

    def write(self, k: int) -> tuple[str, list[int]]:
        """A caption that is true of picture `k`, and the numbers of the attributes that make it true."""
        while True:
            text, attributes = random.choices(
                [self._by_name, self._by_tags, self._by_kind, self._by_colours], [0.5, 0.28, 0.14, 0.08]
            )[0](k)
            if not any(never in text for never in NEVER):
                return text, [self._number(a) for a in attributes]

    def _coloured(self, k: int, text: str, attributes: list) -> tuple[str, list]:
        colour = random.choice(self.colours[k][:2])
        return f"{random.choice(COLOURS[colour])} {text}", [*attributes, ("colour", colour)]

    def _by_name(self, k: int) -> tuple[str, list]:
        e = self.emoji[self.of[k][0]]
        text = e["label"] if random.random() < 0.75 else random.choice(e["names"])
        attributes, dice = [("emoji", e["codepoints"])], random.random()
        if dice < 0.12 and self.colours[k]:
            text, attributes = self._coloured(k, text, attributes)
        elif dice < 0.25 and e["tags"]:
            text = random.choice(["{}, {}", "{} ({})", "{} {}"]).format(text, random.choice(e["tags"]))
        return dressed(text), attributes

    def _by_tags(self, k: int) -> tuple[str, list]:
        e = self.emoji[self.of[k][0]]
        if not e["tags"]:
            return self._by_name(k)
        tags = random.sample(e["tags"], min(len(e["tags"]), random.choice([1, 1, 2, 2, 3])))
        text, attributes = random.choice([" ", " ", ", ", " and ", " with "]).join(tags), [("tag", t) for t in tags]
        if self.colours[k] and random.random() < 0.25:
            text, attributes = self._coloured(k, text, attributes)
        return dressed(text), attributes

    def _by_kind(self, k: int) -> tuple[str, list]:
        e = self.emoji[self.of[k][0]]
        if random.random() < 0.25:
            text = random.choice(GROUP_NOUNS[e["group"]])
            attributes = [("tag", text)]
        elif e["subgroup"] in SUBGROUP_NOUNS:
            text = random.choice(SUBGROUP_NOUNS[e["subgroup"]])
            attributes = [("tag", text)]
        else:
            text, attributes = e["subgroup"], [("subgroup", e["subgroup"])]
        dice = random.random()
        if dice < 0.35 and self.colours[k]:
            text, attributes = self._coloured(k, text, attributes)
        elif dice < 0.7 and e["tags"]:
            tag = random.choice(e["tags"])
            form = random.choice(
                ["{tag} {text}", "{text} {tag}", "{text} that is {tag}", "{text} with {tag}", "{text}, {tag}"]
            )
            text, attributes = form.format(tag=tag, text=text), [*attributes, ("tag", tag)]
        return dressed(text), attributes

    def _by_colours(self, k: int) -> tuple[str, list]:
        colours = self.colours[k][:3]
        if not colours:
            return self._by_name(k)
        chosen = random.sample(colours, min(2, len(colours)))
        form = random.choice(PAIRS if len(chosen) == 2 else SINGLES)
        return form.format(*(random.choice(COLOURS[c]) for c in chosen)), [("colour", c) for c in chosen]

    def vocabulary(self) -> set[str]:
        """Every piece of text that a caption can be made of: what decides which rows of the token table are trained."""
        texts = {t for e in self.emoji for t in [*e["names"], *e["tags"], e["subgroup"]]}
        texts |= {n for nouns in [*SUBGROUP_NOUNS.values(), *GROUP_NOUNS.values(), *COLOURS.values()] for n in nouns}
        texts |= {form.format(*"xx") for form in TEMPLATES + PAIRS + SINGLES}
        return (
            texts
            | {f"({t})" for t in texts}
            | {f"{t}, {t}" for t in texts}
            | {f"{t}." for t in texts}
            | {"that is", "with", "and"}
        )

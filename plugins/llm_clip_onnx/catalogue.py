"""THE CATALOGUE: the models that `llm clip bake` knows by an id, with their licence and published figures.

What they take here is in measured.py. A checkpoint outside it bakes too if its layout is read. An entry is added once
its family bakes; models whose licence forbids commercial use are left out. It opens nothing but that, and imports
nothing heavy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from . import measured
from .errors import CheckpointError, cited

OPEN_CLIP = "openclip_results.csv and openclip_retrieval_results.csv in open_clip's docs"
TINY_CLIP = "the README of TinyCLIP in microsoft/Cream"
BIG_VISION = "README_siglip2 of google-research/big_vision"
ENGLISH, MANY = "English", "36 measured"
APACHE = "Apache-2.0"


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue. Its figures are percentages, as `published` has them; None where it has none."""

    id: str
    source: str  # hub id of the checkpoint, of its text tower where `images` is given
    family: str
    licence: str
    imagenet: float | None = None  # zero-shot, the first label of 1000
    coco_image: float | None = None  # recall@1 from a caption to its picture
    coco_text: float | None = None  # recall@1 from a picture to one of its captions
    published: str | None = None
    languages: str = ENGLISH
    images: str | None = None  # hub id of the image tower's checkpoint, if it is another one
    exchangeable: str | None = None  # the id of the entry that gives the same vectors for images; None: no other

    @property
    def vectors(self) -> str:
        """The id of the entry whose vectors these are: its own, or the one that it is exchangeable with."""
        return self.exchangeable or self.id

    def to_dict(self) -> dict:
        """The facts as `llm clip models --json` has them."""
        found = measured.figures().get(self.id)
        return asdict(self) | {"vectors": self.vectors, "measured": found and asdict(found)}

    def cells(self) -> dict[str, str]:
        """Title -> cell, of the table that `llm clip models` and the manual show."""
        coco = f"{self.coco_image} / {self.coco_text}" if self.coco_image else ""
        found = measured.figures().get(self.id)
        return {
            "id": self.id,
            "family": self.family,
            "licence": self.licence,
            "languages": self.languages,
            "ImageNet": f"{self.imagenet}" if self.imagenet else "",
            "COCO": coco,
            "ms": f"{found.text_ms:.1f} / {found.image_ms:.1f}" if found else "",
            "MB": f"{found.text_mb:.0f} / {found.peak_mb:.0f}" if found else "",
            "vectors": self.vectors,
            "hub id": " + ".join(filter(None, [self.source, self.images])),
        }


CATALOGUE = (
    Entry("clip", "sentence-transformers/clip-ViT-B-32", "CLIP", "MIT", 63.3, 30.4, 50.1, OPEN_CLIP),
    Entry("laion2b-b32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "CLIP", "MIT", 66.6, 39.3, 56.3, OPEN_CLIP),
    Entry("datacomp-b32", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", "CLIP", "MIT", 69.2, 37.1, 53.5, OPEN_CLIP),
    Entry(
        "datacomp-b32-256", "laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K", "CLIP", "MIT", 72.8, 39.9, 57.9, OPEN_CLIP
    ),
    Entry("clip-b16", "openai/clip-vit-base-patch16", "CLIP", "MIT", 68.3, 33.1, 52.4, OPEN_CLIP),
    Entry("datacomp-b16", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", "CLIP", "MIT", 73.5, 40.2, 57.4, OPEN_CLIP),
    Entry("clip-l14", "openai/clip-vit-large-patch14", "CLIP", "MIT", 75.5, 36.5, 56.3, OPEN_CLIP),
    Entry("datacomp-l14", "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K", "CLIP", "MIT", 79.2, 45.7, 63.3, OPEN_CLIP),
    Entry("tinyclip-40m-32", "wkcn/TinyCLIP-ViT-40M-32-Text-19M-LAION400M", "CLIP", "MIT", 59.8, None, None, TINY_CLIP),
    Entry(
        id="multilingual",
        source="sentence-transformers/clip-ViT-B-32-multilingual-v1",
        family="DistilBERT text",
        licence=APACHE,
        languages="50",
        images="sentence-transformers/clip-ViT-B-32",
        exchangeable="clip",
    ),
    Entry("siglip2-b32-256", "google/siglip2-base-patch32-256", "SigLIP 2", APACHE, 74.0, 47.2, 63.7, BIG_VISION, MANY),
    Entry("siglip2-b16-224", "google/siglip2-base-patch16-224", "SigLIP 2", APACHE, 78.2, 52.1, 68.9, BIG_VISION, MANY),
)
SOURCES = tuple(dict.fromkeys(entry.published for entry in CATALOGUE if entry.published))


def entry_of(source: str) -> Entry | None:
    """The entry that `source` names by its id, or by its hub id where no folder has that path; None for any other.

    Raises CheckpointError, with the list of ids, if `source` is no id, no folder and no hub id such as owner/name.
    """
    by_id = {entry.id: entry for entry in CATALOGUE}
    if source in by_id or Path(source).is_dir():
        return by_id.get(source)
    if "/" not in source:
        raise CheckpointError(
            f"{cited(source)} is no model of the catalogue, no folder that is there, and no hub id such as owner/name; "
            f"the catalogue has {', '.join(by_id)}"
        )
    return next((entry for entry in CATALOGUE if entry.source == source), None)


def published_lines() -> list[str]:
    """What the columns of figures mean, and where they were published."""
    sources = {published: [e.id for e in CATALOGUE if e.published == published] for published in SOURCES}
    return [
        "ImageNet: zero-shot, the first of 1000 labels, %.",
        "COCO: recall@1, from a caption to its picture / from a picture to a caption, %.",
        "ms: a text / an image on 2 cores, by random weights of that shape; empty where not measured yet.",
        "MB: the most memory of a server with that model alone, after texts / after images too.",
        *(f"Published in {published}: {', '.join(ids)}." for published, ids in sources.items()),
    ]

"""Plans the bake of a tower: its tensors, its fixed inputs, and the reference's embeddings that it is judged by.

The plans of both towers are made here, so that the steps after this one need not know which tower they bake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import FidelityError, cited
from ..images.preprocess import to_pixels
from ..text_readers import open_reader
from ..towers import available_cores, open_tower, run_image, run_text
from . import fidelity
from .checkpoint import Checkpoint
from .samples import CALIBRATION_TEXTS, TEXTS, calibration_images, made_images
from .towers import Names, Tensors, Tower, Watch

Say = Callable[[str], None]  # called with a line for each step of the bake


@dataclass(frozen=True)
class TowerPlan:
    """What to bake and how to judge it. `inputs` names the fixed inputs, `reference` embeds them."""

    name: str  # "text" or "image"
    tower: Tower
    inputs: Sequence[str]
    reference: NDArray[np.float32]  # [n, embed_dim]
    embed: Callable[[Path], NDArray[np.float32]]  # graph -> its embeddings of the inputs, [n, embed_dim]
    calibrate: Callable[[Watch], object]  # the reference's forward pass over the calibration inputs

    def write_and_embed(self, folder: Path, tensors: Tensors, eight_bit: Names) -> NDArray[np.float32]:
        """Write the tower to `folder`, open it and embed the inputs: [n, embed_dim] float32."""
        folder.mkdir(exist_ok=True)
        graph = folder / f"{self.name}.onnx"
        self.tower.write(tensors, eight_bit, graph)
        return self.embed(graph)


def plan_text(work: Path, checkpoint: Checkpoint, say: Say) -> TowerPlan:
    """The plan of the text tower. Raises FidelityError if weights that claim to be OpenAI's are not."""
    tower = checkpoint.text
    read = open_reader(work, checkpoint.context_length, checkpoint.tokens)
    ids, calibration = ([*map(read, texts)] for texts in (TEXTS, CALIBRATION_TEXTS))

    def embed(graph: Path) -> NDArray[np.float32]:
        opened = open_tower(graph, threads=available_cores())
        return np.concatenate([run_text(opened, text_ids[None]) for text_ids in ids])

    say(f"text tower: reference embeddings of {len(ids)} texts, in plain numpy")
    reference = tower.embed(tower.tensors, ids, None)
    if checkpoint.source.id in fidelity.PUBLISHED_FOR:
        say("text tower: comparing with published embeddings")
        check_published(reference)
    calibrate = partial(tower.embed, tower.tensors, calibration)
    return TowerPlan("text", tower, TEXTS, reference, embed, calibrate)


def plan_image(_work: Path, checkpoint: Checkpoint, say: Say) -> TowerPlan:
    """The plan of the image tower."""
    tower, images = checkpoint.image, made_images()
    pixels, calibration = (
        [to_pixels(image, checkpoint.preprocess) for image in pictures]
        for pictures in (images.values(), calibration_images())
    )

    def embed(graph: Path) -> NDArray[np.float32]:
        opened = open_tower(graph, threads=available_cores())
        return np.concatenate([run_image(opened, image[None]) for image in pixels])

    say(f"image tower: reference embeddings of {len(images)} images, in plain numpy")
    reference = tower.embed(tower.tensors, pixels, None)
    calibrate = partial(tower.embed, tower.tensors, calibration)
    return TowerPlan("image", tower, list(images), reference, embed, calibrate)


def check_published(reference: NDArray[np.float32]) -> None:
    """Raises FidelityError if the embeddings of TEXTS differ from those published for OpenAI's weights."""
    differences = fidelity.published_differences(TEXTS, reference)
    if max(differences) > fidelity.PUBLISHED_TOLERANCE:
        worst = fidelity.PUBLISHED[int(np.argmax(differences))]
        raise FidelityError(
            f"the embedding of {cited(worst['text'])} is off by {max(differences):.4f} from the one published in "
            f"{worst['source']}: these are not the weights of {' or '.join(fidelity.PUBLISHED_FOR)}"
        )

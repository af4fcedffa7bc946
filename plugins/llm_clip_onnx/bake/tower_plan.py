"""Plans the bake of a tower: its tensors, its fixed inputs, and the reference's embeddings that it is judged by.

The plans of both towers are made here, so that the steps after this one need not know which tower they bake.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import model_dir
from ..errors import FidelityError, cited
from ..images.preprocess import to_pixels
from ..text_readers import open_reader
from ..towers import available_cores, open_tower, run_image, run_text
from . import fidelity, forward
from .checkpoint import Checkpoint, TowerConfig
from .samples import CALIBRATION_TEXTS, TEXTS, calibration_images, made_images

Say = Callable[[str], None]  # called with a line for each step of the bake
Tensors = Mapping[str, NDArray]


@dataclass(frozen=True)
class TowerPlan:
    """What to bake and how to judge it. `inputs` names the fixed inputs, `reference` embeds them."""

    name: str  # "text" or "image"
    prefix: str  # of its tensors
    config: TowerConfig
    tensors: Tensors
    inputs: Sequence[str]
    reference: NDArray[np.float32]  # [n, embed_dim]
    write: Callable[[Tensors, Collection[str], Path], None]  # tensors, names of 8-bit matrices, graph
    embed: Callable[[Path], NDArray[np.float32]]  # graph -> its embeddings of the inputs, [n, embed_dim]
    calibrate: Callable[[forward.Watch], object]  # the reference's forward pass over the calibration inputs

    def write_and_embed(self, folder: Path, tensors: Tensors, eight_bit: Collection[str]) -> NDArray[np.float32]:
        """Write the tower to `folder`, open it and embed the inputs: [n, embed_dim] float32."""
        folder.mkdir(exist_ok=True)
        graph = folder / f"{self.name}.onnx"
        self.write(tensors, eight_bit, graph)
        return self.embed(graph)


def plan_text(work: Path, checkpoint: Checkpoint, say: Say) -> TowerPlan:
    """The plan of the text tower. Raises FidelityError if weights that claim to be OpenAI's are not."""
    from .graph import write_text_tower  # imports onnx, which `llm clip verify` does without

    config, tensors = checkpoint.config, checkpoint.tensors
    length = checkpoint.context_length
    read = open_reader(work / model_dir.VOCAB, work / model_dir.MERGES, length, checkpoint.tokens)
    ids, calibration = ([*map(read, texts)] for texts in (TEXTS, CALIBRATION_TEXTS))

    def embed(graph: Path) -> NDArray[np.float32]:
        tower = open_tower(graph, threads=available_cores())
        return np.concatenate([run_text(tower, text_ids[None]) for text_ids in ids])

    say(f"text tower: reference embeddings of {len(ids)} texts, in plain numpy")
    reference = forward.embed_text(config, tensors, ids)
    if checkpoint.source.id in fidelity.PUBLISHED_FOR:
        say("text tower: comparing with published embeddings")
        check_published(reference)
    write = partial(write_text_tower, config)
    calibrate = partial(forward.embed_text, config, tensors, calibration)
    return TowerPlan("text", "text_model", config.text, tensors, TEXTS, reference, write, embed, calibrate)


def plan_image(_work: Path, checkpoint: Checkpoint, say: Say) -> TowerPlan:
    """The plan of the image tower."""
    from .graph import write_image_tower

    config, tensors, images = checkpoint.config, checkpoint.tensors, made_images()
    pixels, calibration = (
        np.stack([to_pixels(image, checkpoint.preprocess) for image in pictures])
        for pictures in (images.values(), calibration_images())
    )

    def embed(graph: Path) -> NDArray[np.float32]:
        tower = open_tower(graph, threads=available_cores())
        return np.concatenate([run_image(tower, image[None]) for image in pixels])

    say(f"image tower: reference embeddings of {len(images)} images, in plain numpy")
    reference = forward.embed_images(config, tensors, pixels)
    write = partial(write_image_tower, config)
    calibrate = partial(forward.embed_images, config, tensors, calibration)
    return TowerPlan("image", "vision_model", config.image, tensors, list(images), reference, write, embed, calibrate)


def check_published(reference: NDArray[np.float32]) -> None:
    """Raises FidelityError if the embeddings of TEXTS differ from those published for OpenAI's weights."""
    differences = fidelity.published_differences(TEXTS, reference)
    if max(differences) > fidelity.PUBLISHED_TOLERANCE:
        worst = fidelity.PUBLISHED[int(np.argmax(differences))]
        raise FidelityError(
            f"the embedding of {cited(worst['text'])} is off by {max(differences):.4f} from the one published in "
            f"{worst['source']}: these are not the weights of {' or '.join(fidelity.PUBLISHED_FOR)}"
        )

"""Bakes a tower in 8 bits, and finds the matrices that must stay float32 for it to agree with the float32 tower.

smooth.py says how a layer is rewritten first, quantize.py how a matrix becomes 8-bit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import model_dir
from ..errors import FidelityError
from ..model_dir import Agreement, Matrix
from ..towers import multiplies_signed
from . import fidelity, smooth
from .quantize import rows_error
from .tower_plan import Say, TowerPlan
from .towers import Tensors


def bake_8_bit_tower(
    plan: TowerPlan, folder: Path, float32: NDArray[np.float32], say: Say
) -> tuple[dict[str, Matrix], Agreement]:
    """Write the tower in 8 bits to `folder`: how each matrix was baked, and how far it agrees with `float32`.

    float32: the float32 tower's embeddings of the plan's inputs, [n, embed_dim]. If the tower does not agree with
    every matrix in 8 bits, the matrices that it needs for that stay float32.
    """
    say(f"{plan.name} tower: fitting its linear layers to 8 bits")
    tensors, choices = smooth.smooth_tensors(plan.tower.tensors, plan.tower.linears, calibration_inputs(plan))
    matrices = matrix_facts(plan, tensors, choices)

    @cache
    def write(kept: frozenset[str]) -> Agreement:
        embeddings = plan.write_and_embed(folder, tensors, matrices.keys() - kept)
        result = fidelity.agreement(embeddings, float32, plan.inputs)
        but_for = f" but for {', '.join(sorted(name.split('layers.')[-1] for name in kept))}" if kept else ""
        say(f"{plan.name} tower: int8{but_for}, {fidelity.summary(result)} with fp32")
        return result

    kept: frozenset[str] = frozenset()
    if not fidelity.int8_agrees(plan.name, write(kept)):
        say(f"{plan.name} tower: looking for the matrices that must stay float32")
        sizes = {name: matrix.bytes for name, matrix in matrices.items()}
        kept = choose_float32(sizes, write, lambda result: fidelity.int8_agrees(plan.name, result))
        plan.write_and_embed(folder, tensors, matrices.keys() - kept)  # the last attempt may have written another
    facts = {
        name: replace(matrix, precision="fp32", bytes=4 * matrix.bytes)
        for name, matrix in matrices.items()
        if name in kept
    }
    return matrices | facts, write(kept)


def choose_float32(
    sizes: Mapping[str, int], write: Callable[[frozenset[str]], Agreement], agrees: Callable[[Agreement], bool]
) -> frozenset[str]:
    """Names of the matrices that must stay float32 for a tower to agree; none if it would need all of them.

    sizes: bytes of each matrix. Each is tried alone first. Those that help most are taken until the tower agrees, then
    each that the tower agrees without is given back, the largest first.
    """

    def agreement_alone(name: str) -> tuple[float, float]:
        result = write(frozenset([name]))
        return result.worst_centred, result.mean_centred

    order = sorted(sizes, key=agreement_alone, reverse=True)
    # More float32 matrices agree no worse, but for chance, so bisection finds how many the tower needs.
    enough = bisect_left(range(1, len(order)), True, key=lambda count: agrees(write(frozenset(order[:count])))) + 1
    if enough == len(order):
        return frozenset()
    kept = frozenset(order[:enough])
    for name in sorted(kept, key=lambda name: -sizes[name]):
        if len(kept) > 1 and agrees(write(kept - {name})):
            kept -= {name}
    return kept


def check_signed(plan: TowerPlan, folder: Path, probe: Path, say: Say) -> None:
    """Raises FidelityError if the tower of signed levels and that of unsigned levels embed the inputs differently.

    Both add up the same whole numbers, so they may not differ at all. Only a processor that multiplies signed levels
    exactly can tell; on others `say` hears that it was not tried, and `llm clip verify` compares the levels themselves.
    """
    if not multiplies_signed(probe):
        return say(f"{plan.name} tower: signed levels overflow on this processor, and were not tried")
    unsigned, signed = (plan.embed(folder / f"{plan.name}{end}") for end in (".onnx", model_dir.SIGNED_TOWER_SUFFIX))
    if not np.array_equal(unsigned, signed):
        raise FidelityError(f"the {plan.name} towers of signed and of unsigned levels differ, which they never may")


def calibration_inputs(plan: TowerPlan) -> smooth.Inputs:
    """The inputs of each linear layer while the reference embeds the calibration inputs, [t, in] each.

    Of images, every third row is kept, from the first, that of the class token, because all rows would take too long:
    the worst centred cosine by random weights was 0.9962 either way. Of the texts of towers that fill them up, it is
    every third one back from the last, where SigLIP reads.
    """
    inputs: dict[str, list[NDArray[np.float32]]] = {}
    step = 3 if plan.name == "image" else -3 if plan.tower.padded else 1
    plan.calibrate(lambda name, x: inputs.setdefault(name, []).extend(x[:, ::step].copy()))
    return inputs


def matrix_facts(plan: TowerPlan, tensors: Tensors, choices: Mapping[str, smooth.Choice]) -> dict[str, Matrix]:
    """The manifest's facts of each matrix, all of them in 8 bits; for texts, the token table comes last."""
    from .graph import TOKEN_TABLE

    def fact(size: int, strength: float | None, error: float, as_it_was: float) -> Matrix:
        return Matrix("int8", size, strength, round(error, 6), round(as_it_was, 6))

    sizes = {
        linear.name: sum(tensors[f"{name}.weight"].size for name in linear.tensors) for linear in plan.tower.linears
    }
    facts = {
        name: fact(sizes[name], choice.strength, choice.error, choice.error_as_it_was)
        for name, choice in choices.items()
    }
    if plan.tower.token_table:
        table = tensors[plan.tower.token_table]
        error = rows_error(table)
        facts[TOKEN_TABLE] = fact(table.size, None, error, error)
    return facts

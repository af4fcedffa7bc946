"""Opens the named tensors of a checkpoint, from safetensors or a torch pickle, and says what they are stored as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, shortened
from .layout import check_fetched, require_torch

PICKLE_SUFFIX = ".bin"
MAPPED_BYTES = 256_000_000  # read of the files before they are opened again, which takes 9 ms
PREFIX = "clip."  # of the names of a CLIP's tensors inside a larger model


class SafeTensors(Mapping):
    """Named tensors of safetensors files, each read on access, always as float32.

    The library maps a file, and what was read of it counts as memory of this process until it is closed: so it is
    opened again now and then.
    """

    def __init__(self, files: list[Path]):
        import ml_dtypes  # noqa: F401, numpy has bfloat16 from it

        self._files = files
        self._open()

    def _open(self) -> None:
        from safetensors import (
            safe_open,  # imported here and in open_tensors, because `llm clip verify` needs no safetensors
        )

        self._read_bytes = 0
        self._handles: dict = {}
        for file in self._files:
            handle = safe_open(file, framework="np")
            self._handles |= {name.removeprefix(PREFIX): (handle, name) for name in handle.keys()}  # noqa: SIM118, it is no dict

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        handle, stored_name = self._handles[name]
        tensor = handle.get_tensor(stored_name)
        self._read_bytes += tensor.nbytes
        if self._read_bytes > MAPPED_BYTES:
            self._open()
        return tensor.astype(np.float32, copy=False)

    def __contains__(self, name: object) -> bool:
        return name in self._handles  # Mapping's own reads the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def shape(self, name: str) -> tuple[int, ...]:
        handle, stored_name = self._handles[name]
        return tuple(handle.get_slice(stored_name).get_shape())

    def numbers(self, name: str) -> str:
        """What the tensor's numbers are stored as: "F16", "I8"..."""
        handle, stored_name = self._handles[name]
        return handle.get_slice(stored_name).get_dtype()


class PickledTensors(dict):
    """Named tensors of a torch pickle, all in memory, as float32; `stored_as` says what their numbers were."""

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]], stored_as: Mapping[str, str]):
        super().__init__(tensors)
        self._stored_as = stored_as

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name].shape

    def numbers(self, name: str) -> str:
        """What the tensor's numbers were stored as: "float16", "int8"..."""
        return self._stored_as[name]


@dataclass(frozen=True)
class Part:
    """A tensor as a part of a stored one: all of it, or one of three blocks of rows (0, 1, 2), transposed or not."""

    stored: str
    third: int | None = None
    transposed: bool = False


class RenamedTensors(Mapping):
    """Named tensors that are parts of those of another layout."""

    def __init__(self, stored: SafeTensors | PickledTensors, parts: Mapping[str, Part]):
        self._stored, self._parts = stored, {name: part for name, part in parts.items() if part.stored in stored}

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        part = self._parts[name]
        tensor = self._stored[part.stored]
        if part.third is not None:
            rows = len(tensor) // 3
            tensor = tensor[part.third * rows : (part.third + 1) * rows]
        return tensor.T if part.transposed else tensor.reshape(self.shape(name))

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        part = self._parts[name]
        shape = self._stored.shape(part.stored)
        if part.third is not None:
            shape = (shape[0] // 3, *shape[1:]) if shape and shape[0] % 3 == 0 else shape
        return shape[::-1] if part.transposed else () if name == "logit_scale" and shape == (1,) else shape

    def numbers(self, name: str) -> str:
        return self._stored.numbers(self._parts[name].stored)


Tensors = SafeTensors | PickledTensors | RenamedTensors


def open_tensors(paths: list[Path], source: str) -> SafeTensors | PickledTensors:
    """The named tensors in safetensors files, or in one pickle of torch. Raises CheckpointError."""
    for path in paths:
        check_fetched(path, source)
    if paths[0].suffix == PICKLE_SUFFIX:
        return read_pickle(paths[0], source)
    from safetensors import SafetensorError

    try:
        return SafeTensors(paths)
    except SafetensorError as error:
        raise CheckpointError(
            f"{source}: the weights cannot be read, a file may be cut short: {shortened(error)}"
        ) from error


def read_pickle(file: Path, source: str) -> PickledTensors:
    """The named tensors of a torch pickle. Raises CheckpointError."""
    require_torch(source, file.name)
    import torch

    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its unpickler does
        raise CheckpointError(f"{source}: {file.name} cannot be read: {shortened(error)}") from error
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if torch.is_tensor(tensor)}
    stored_as = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    return PickledTensors({name: tensor.float().numpy() for name, tensor in tensors.items()}, stored_as)

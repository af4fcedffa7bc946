"""Defines the exceptions of the model and the collections. A message says what was found, expected, and what to do.

ClipError
├── InputError          an item to embed is neither text nor a readable image
├── VectorError         a vector blob, or a pair of them, has no usable numbers or sizes
├── ModelDirError       the model directory is absent, incomplete, damaged or of another format
├── CheckpointError     the source of a bake cannot be fetched or read, or is no CLIP
├── FidelityError       a baked tower does not agree with its reference
└── ConfigError         a configuration key has a value that cannot be used
"""


class ClipError(Exception):
    """Anything that datasette-clip refuses to do, with the sentence that says why."""


class InputError(ClipError, ValueError):
    """An item to embed is neither text nor a readable image."""


class VectorError(ClipError, ValueError):
    """A vector blob, or a pair of them, has no usable numbers or sizes."""


class ModelDirError(ClipError):
    """The model directory is absent, incomplete, damaged or of another format."""


class CheckpointError(ClipError):
    """The source of a bake cannot be fetched or read, or is no CLIP."""


class FidelityError(ClipError):
    """A baked tower does not agree with its reference."""


class ConfigError(ClipError, ValueError):
    """A configuration key has a value that cannot be used."""

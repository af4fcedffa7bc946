"""The exceptions of this package, as a tree; each message is a sentence for the person who has to act on it.

ClipError
├── InputError          what was to be embedded is not text or an image that can be read
├── VectorError         a vector blob, or a pair of them, that cannot be computed with
├── ModelDirError       the model directory is absent, incomplete, damaged or of another format
├── CheckpointError     the source of a bake cannot be fetched, read or is no CLIP
├── FidelityError       a baked tower does not agree with its reference
└── ConfigError         a configuration key has a value that cannot be used
"""


class ClipError(Exception):
    """Anything that datasette-clip refuses to do, with the sentence that says why."""


class InputError(ClipError, ValueError):
    """What was to be embedded is not text or an image that can be read."""


class VectorError(ClipError, ValueError):
    """A vector blob, or a pair of them, cannot be computed with."""


class ModelDirError(ClipError):
    """The model directory is absent, incomplete, damaged or of another format."""


class CheckpointError(ClipError):
    """The source of a bake cannot be fetched or read, or is no CLIP."""


class FidelityError(ClipError):
    """A baked tower does not agree with its reference."""


class ConfigError(ClipError, ValueError):
    """A configuration key has a value that cannot be used."""

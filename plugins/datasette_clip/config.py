"""The plugin's configuration, `plugins.datasette-clip` in metadata.json, checked once when Datasette starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from llm_clip_onnx.errors import ConfigError

PLUGIN = "datasette-clip"


@dataclass(frozen=True)
class Config:
    """models: ids of the `llm` embedding models that SQL may call. keys: datasette-llm-embed's keys, by model id."""

    models: tuple[str, ...] = ("clip",)
    keys: dict[str, str] = field(default_factory=dict, repr=False)


def of(datasette) -> Config:
    """The configuration of this Datasette, read once. Raises ConfigError."""
    if not hasattr(datasette, "_clip_config"):
        keys = (datasette.plugin_config("datasette-llm-embed") or {}).get("keys") or {}
        datasette._clip_config = read_config(datasette.plugin_config(PLUGIN), keys)
    return datasette._clip_config


def read_config(found: object, keys: dict[str, str]) -> Config:
    """The configuration in what metadata.json says, or the defaults where it says nothing.

    Raises ConfigError naming the key that is unknown or has a value that cannot be used.
    """
    if found is None:
        return Config(keys=keys)
    if not isinstance(found, dict):
        raise ConfigError(f"plugins.{PLUGIN} is {type(found).__name__}; expected an object with the key models")
    if unknown := sorted(found.keys() - {"models"}):
        raise ConfigError(f"plugins.{PLUGIN}.{unknown[0]} is not a key of this plugin; expected models")
    models = found.get("models", ["clip"])
    if not isinstance(models, list) or not models or not all(isinstance(m, str) and m for m in models):
        raise ConfigError(f'plugins.{PLUGIN}.models is {models!r}; expected a list of model ids such as ["clip"]')
    return Config(tuple(models), keys)

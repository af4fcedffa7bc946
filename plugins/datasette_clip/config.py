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


def config_of(datasette) -> Config:
    """The configuration of this Datasette, read once. Raises ConfigError."""
    if not hasattr(datasette, "_clip_config"):
        config = read_config(datasette.plugin_config(PLUGIN), read_keys(datasette.plugin_config("datasette-llm-embed")))
        datasette._clip_config = config
    return datasette._clip_config


def read_keys(found: object) -> dict[str, str]:
    """The keys that datasette-llm-embed is configured with, by model id. Raises ConfigError."""
    found = {} if found is None else found
    keys = (found.get("keys") or {}) if isinstance(found, dict) else None
    if not isinstance(keys, dict):
        raise ConfigError("plugins.datasette-llm-embed.keys is no object; expected model ids and their keys")
    for model_id, key in keys.items():
        if not isinstance(key, str | None):
            raise ConfigError(
                f"plugins.datasette-llm-embed.keys.{model_id} is no string; expected the key of that model"
            )
    return {model_id: key for model_id, key in keys.items() if key}  # null: an environment variable that is not set


def read_config(found: object, keys: dict[str, str]) -> Config:
    """The configuration in what metadata.json says, or the defaults where it says nothing.

    Raises ConfigError naming the key that is unknown or has a value that cannot be used.
    """
    if found is None:
        return Config(keys=keys)
    if not isinstance(found, dict):
        raise ConfigError(f"plugins.{PLUGIN} is {type(found).__name__}; expected an object with the key models")
    if unknown := sorted(map(str, found.keys() - {"models"})):
        raise ConfigError(f"plugins.{PLUGIN}.{unknown[0]} is not a key of this plugin; expected models")
    models = found.get("models", ["clip"])
    if not isinstance(models, list) or not models or not all(isinstance(m, str) and m for m in models):
        raise ConfigError(f'plugins.{PLUGIN}.models is {models!r}; expected a list of model ids such as ["clip"]')
    return Config(tuple(models), keys)

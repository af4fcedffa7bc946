"""THE MODEL: an `llm` plugin with the model `clip`, or several, and the commands bake, info, models, verify, labels.

It needs no torch. The commands `llm clip embed` and `llm clip index` are in clip_collections/commands.py.

Importing this imports neither onnxruntime nor numpy, so that other `llm` commands stay fast, nor `llm`, which takes
0.1 s of CPU at Datasette's start.
"""

from __future__ import annotations

from pluggy import HookimplMarker

__version__ = "0.1"  # of the distribution; pyproject.toml reads it here, and a bake needs no other file
MODEL_ID = "clip"
hookimpl = HookimplMarker("llm")  # as llm.hookimpl is


@hookimpl(trylast=True)  # the last to register an id has it, so `clip` is ours where llm-clip is installed too
def register_embedding_models(register):
    from .llm_model import reference_model, registered_models

    for model in registered_models():
        register(model)
    if reference := reference_model():
        register(reference)


@hookimpl
def register_commands(cli):
    from .commands import clip

    cli.add_command(clip)

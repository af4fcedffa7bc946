"""THE COLLECTIONS: fills, indexes and searches `llm`'s tables. No HTTP, no Datasette, no onnxruntime; any `llm` model.

Importing this imports nothing else, so that every other `llm` command stays fast.
"""

from __future__ import annotations

from pluggy import HookimplMarker

hookimpl = HookimplMarker("llm")  # as llm.hookimpl is


@hookimpl
def register_commands(cli):
    from llm_clip_onnx.commands import clip

    from .commands import convert, embed, forget, index
    from .photo_commands import search, serve

    for command in (convert, embed, forget, index, search, serve):
        clip.add_command(command)

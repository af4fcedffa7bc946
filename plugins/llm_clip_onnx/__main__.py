"""Runs the commands of `llm clip` as `python -m llm_clip_onnx`, from source, as the Dockerfile's bake stage does."""

from .commands import clip

clip(prog_name="python -m llm_clip_onnx")

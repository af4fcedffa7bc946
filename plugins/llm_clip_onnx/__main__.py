"""Runs the commands of `llm clip` as `python -m llm_clip_onnx`, with nothing installed: the Dockerfile bakes so."""

from .commands import clip

clip(prog_name="python -m llm_clip_onnx")

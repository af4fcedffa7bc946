"""The commands `llm clip serve` and `llm clip search`: their options and what they print."""

from __future__ import annotations

from pathlib import Path

import click

from llm_clip_onnx.commands import ClipCommand

from .commands import check_name


@click.command(cls=ClipCommand)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-d",
    "--database",
    type=click.Path(dir_okay=False, path_type=Path),
    help="SQLite file [default: one for the folder, in llm's user folder]",
)
@click.option("-c", "--collection", callback=check_name, help="Collection to embed into [default: the folder's name]")
@click.option("--model-dir", type=click.Path(path_type=Path), help="Model directory [default: $CLIP_MODEL_DIR, ...]")
@click.option("--exclude", multiple=True, help="Pattern of files and folders to leave out; may be given again")
@click.option("-p", "--port", type=click.IntRange(0, 65535), help="Port [default: 8001, or the next one that is free]")
@click.option("--no-open", is_flag=True, help="Do not open the browser")
@click.option("--watch", is_flag=True, help="Go on looking for new photos")
def serve(
    paths: tuple[Path, ...],
    database: Path | None,
    collection: str | None,
    model_dir: Path | None,
    exclude: tuple[str, ...],
    port: int | None,
    no_open: bool,
    watch: bool,
):
    """Search your photos in the browser

    PATH is a folder of photos, or a database that `llm clip embed` has written. New photos are embedded while the
    others can be searched already. Nothing is written into the folder, and only this machine can open the pages.
    """
    from .serve import Options
    from .serve import serve as serve_paths

    serve_paths(paths, Options(database, collection, model_dir, exclude, port, not no_open, watch))

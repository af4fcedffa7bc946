"""Sphinx's configuration of this manual: MyST Markdown, the theme Furo, a button that copies a fence."""

import re
from importlib.metadata import version as version_of
from pathlib import Path

project = "datasette-clip"
version = release = version_of(project)
author = copyright = "datasette-clip contributors"
extensions = ["myst_parser", "sphinx_copybutton"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
highlight_language = "none"  # of a block that is indented, which is a shell command
suppress_warnings = ["misc.highlighting_failure"]  # a JSON fence may shorten a long list with "..."
html_theme = "furo"
html_title = project


def show_pictures(app, page: str, source: list[str]) -> None:
    """Show the pictures that a page names in comments, and what it says of them, if docs/photo_pictures.py made them.

    In the repository and where there is no Chromium the page reads well without.
    """
    folder = Path(__file__).parent / "_pictures"

    def picture(match: re.Match) -> str:
        return f"![{match[2]}](_pictures/{match[1]})" if (folder / match[1]).exists() else ""

    with_pictures = re.sub(r"<!-- picture (\S+): (.*) -->", picture, source[0])
    said = r"\1" if folder.exists() else ""
    source[0] = re.sub(r"<!-- with pictures: (.*) -->", said, with_pictures)


def setup(app) -> None:
    app.connect("source-read", show_pictures)

"""Sphinx's configuration of this manual: MyST Markdown, the theme Furo, a button that copies a fence."""

from importlib.metadata import version as version_of

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

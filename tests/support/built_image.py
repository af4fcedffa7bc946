"""Fixtures of the image that container tests share: the Dockerfile's, with the demo model, built once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from building import QUICK_DEMO, build, copy_context


@pytest.fixture(scope="session")
def build_context(tmp_path_factory) -> Path:
    """A folder with the files of the project, as a build reads them. Not to be changed."""
    return copy_context(tmp_path_factory.mktemp("context"))


@pytest.fixture(scope="session")
def demo_image(build_context) -> str:
    """The name of the image that serves the demo model."""
    name = "localhost/datasette-clip:test"
    build(name, build_context, **QUICK_DEMO)
    return name

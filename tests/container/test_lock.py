"""The lock files that the Dockerfile installs: all dependencies of pyproject.toml, with hashes, and no package host."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
SERVING = PROJECT["dependencies"] + EXTRAS["open-clip"]
LOCKS = {
    "requirements.txt": SERVING,
    "requirements-bake.txt": SERVING + EXTRAS["bake"] + EXTRAS["labels"],
    "requirements-reference.txt": SERVING + EXTRAS["bake"] + EXTRAS["reference"],
}
UNLOCKED = {"datasette-clip", "torch", "torchvision"}  # this project's extras, and packages from PyTorch's own index


@pytest.mark.parametrize("name", LOCKS)
def test_every_dependency_is_locked_and_every_package_has_hashes(name):
    text = (ROOT / "deploy" / name).read_text()
    packages = re.split(r"\n(?=[a-z])", text.split("make lock\n")[1].strip())
    assert all(re.match(r"[a-z0-9-]+==\S+ .*\n    --hash=sha256:[0-9a-f]{64}", package) for package in packages)
    locked = [(re.split(r"==|\s", package)[:2]) for package in packages]
    for wanted in map(Requirement, LOCKS[name]):
        if wanted.name not in UNLOCKED:
            versions = [version for found, version in locked if found == canonicalize_name(wanted.name)]
            assert versions, f"{wanted.name} is not in {name}: make lock"
            assert all(version in wanted.specifier for version in versions), f"{wanted} is not met by {name}: make lock"


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_the_command_that_makes_it_and_no_host(name):
    text = (ROOT / "deploy" / name).read_text()
    assert text.splitlines()[1] == "#    make lock"
    assert not re.search(r"://|index-url|find-links|file:", text)

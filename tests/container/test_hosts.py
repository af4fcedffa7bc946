"""The configuration files for hosts agree with the Dockerfile: port, build arguments and metadata."""

from __future__ import annotations

import json
import re
import tomllib

import yaml

from conftest import ROOT
from datasette_guard.config import Limits

DOCKERFILE = (ROOT / "Dockerfile").read_text()
ARGUMENTS = dict(re.findall(r'^ARG (\w+)="?([^"\n]*)', DOCKERFILE.split("\nFROM")[0], re.M))
FLY = tomllib.loads((ROOT / "fly.toml").read_text())
HEROKU = yaml.safe_load((ROOT / "heroku.yml").read_text())


def test_hosts_give_build_arguments_that_the_dockerfile_has():
    assert FLY["build"]["args"].items() <= ARGUMENTS.items()  # the defaults, repeated where a deployer looks for them
    assert HEROKU["build"]["docker"] == {"web": "Dockerfile"}
    assert HEROKU["build"]["config"].keys() <= ARGUMENTS.keys()


def test_the_port_is_the_same_everywhere():
    assert set(re.findall(r"\$\{PORT:-(\d+)\}|^EXPOSE (\d+)", DOCKERFILE, re.M)) == {("8080", ""), ("", "8080")}
    assert FLY["http_service"]["internal_port"] == 8080
    assert FLY["http_service"]["concurrency"]["hard_limit"] == Limits().requests


def test_every_stage_that_serves_starts_the_same_server():
    commands = re.findall(r"^CMD (.*)$", DOCKERFILE, re.M)
    assert len(commands) == 2
    assert len(set(commands)) == 1
    assert json.loads(commands[0])[-1].startswith("exec datasette serve /srv --memory ")


def test_the_demos_metadata_has_the_canned_query_of_the_shipped_one():
    ours, demos = (
        json.loads((ROOT / name).read_text())["databases"] for name in ("metadata.json", "demo/metadata.json")
    )
    assert demos["_memory"] == ours["_memory"]

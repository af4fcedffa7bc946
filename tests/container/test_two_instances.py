"""Instances hold no state: of two behind a proxy one is stopped and started, and nobody notices."""

from __future__ import annotations

import shutil

import pytest

from load import HAPROXY, stopped_and_started

pytestmark = pytest.mark.skipif(
    shutil.which(HAPROXY) is None, reason="SKIPPED: no haproxy installed (Debian: apt install haproxy)"
)


def test_no_request_fails_while_one_of_two_instances_is_stopped_and_started(demo_dir):
    found = stopped_and_started(demo_dir, seconds=15).summary()
    assert (found["errors"], found["first_error"]) == (0, None)
    assert found["answers"] > 25

"""The Dockerfile's stages with torch: the build compares the model with llm-clip, and reference-serve is the recipe."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from building import DEMO, build, copy_context, pip_settings, run, why_not
from conftest import DEMO_CHECKPOINT, ROOT, quiet
from containers import run_once, started
from hub_standin import HubStandIn, Refusal
from llm_clip_onnx.bake import bake
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.vectors import cosine
from random_checkpoint import TINY, write_checkpoint
from siglip_checkpoint import write_siglip

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

PYTHON = "3.11"  # of the image and usually of these tests, so that pip's folder of wheels has torch for it
TMP = ("--tmpfs", "/tmp")  # importing torch needs a writable folder
VERIFY = 'RUN test "$VERIFY" = 0 || find /model'


def torch_to_install() -> str:
    """The requirement of torch for the build: a wheel in a folder of pip's find-links, or else the Dockerfile's own.

    Skips the test if pip has neither. A wheel comes without torchvision, which would have to be of the same build.
    """
    for folder in map(Path, pip_settings().get("find-links", [])):
        for wheel in folder.glob(f"torch-*-cp{PYTHON.replace('.', '')}-*.whl"):
            return f"torch=={wheel.name.split('-')[1]}"
    dockerfile = re.search(r'^ARG TORCH="(.*)"', (ROOT / "Dockerfile").read_text(), re.M)[1]
    ask = [
        "install",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        "--python-version",
        PYTHON,
        "--only-binary",
        ":all:",
    ]
    answer = subprocess.run(
        [sys.executable, "-m", "pip", *ask, "--target", "unused", "--retries", "0", *dockerfile.split()],
        capture_output=True,
    )
    if answer.returncode:
        pytest.skip(
            f"THE STAGES WITH TORCH ARE NOT TESTED: no wheel in pip's find-links, and no answer to {dockerfile}"
        )
    return dockerfile


@pytest.fixture(scope="module")
def arguments() -> dict[str, str]:
    return {"python": PYTHON, **DEMO, "TORCH": torch_to_install()}


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Path:
    return copy_context(tmp_path_factory.mktemp("context"))


@pytest.fixture(scope="module")
def reference(context, arguments) -> str:
    """The image whose build compared the model with llm-clip. The build fails if they differ."""
    build("localhost/datasette-clip:reference", context, target="reference", **arguments)
    return "localhost/datasette-clip:reference"


def test_the_comparison_that_the_build_makes_is_with_llm_clip_itself(reference):
    compared = run_once(
        reference, "python", "-m", "llm_clip_onnx", "verify", "/model", "--reference", "llm-clip", options=TMP
    )
    assert compared.returncode == 0, compared.stdout
    assert re.findall(r"^(\w+) +(\w+) tower \(int8\) with llm-clip", compared.stdout, re.M) == [
        ("ok", "text"),
        ("ok", "image"),
    ]


def test_a_model_that_differs_from_llm_clips_fails_the_build(reference, context, arguments, tmp_path, monkeypatch):
    """The other model is valid and its manifest names this checkpoint. It is copied in just before the comparison."""
    write_checkpoint(tmp_path / "demo" / "checkpoint", **TINY)
    monkeypatch.chdir(tmp_path)
    bake("demo/checkpoint", context / "deploy" / "reference" / "other", "fp32", say=quiet)
    dockerfile = (context / "Dockerfile").read_text()
    assert dockerfile.count(VERIFY) == 1
    (context / "Dockerfile").write_text(dockerfile.replace(VERIFY, f"COPY deploy/reference/other /model\n{VERIFY}"))
    run("podman", "rmi", "--force", "localhost/datasette-clip:other", ok=False)  # in case an earlier run built it
    try:
        failed = build("localhost/datasette-clip:other", context, **arguments, ok=False)
    finally:
        (context / "Dockerfile").write_text(dockerfile)
        shutil.rmtree(context / "deploy" / "reference" / "other")
    assert failed.returncode
    assert re.findall(r"^(\w+) +(\w+) tower \(fp32\) with llm-clip", failed.stdout, re.M) == [
        ("FAILED", "text"),
        ("FAILED", "image"),
    ]
    assert run("podman", "image", "exists", "localhost/datasette-clip:other", ok=False).returncode


def test_siglips_of_both_versions_are_compared_with_transformers(reference, context, arguments):
    """Each from a folder, in the same stage. `reference` comes first because it makes the layers with torch."""
    for version in (1, 2):
        write_siglip(context / f"deploy/checkpoints/siglip{version}", version)
    models = "deploy/checkpoints/siglip1 deploy/checkpoints/siglip2"
    own = {"CLIP_MODEL": "", "CLIP_MODELS": models, "CLIP_PRECISION": "fp32", "LABELS": ""}
    built = build("localhost/datasette-clip:siglip", context, target="reference", **arguments | own)
    compared = re.findall(r"^(\w+) +(.*) with transformers", built.stdout, re.M)
    one = ["text tower (fp32)", "image tower (fp32)", "probabilities"]
    assert compared == [("ok", name) for name in one * 2]


@pytest.fixture(scope="module")
def recipe(reference, context, arguments):
    """A new container of the stack that this project replaces."""
    build("localhost/datasette-clip:recipe", context, target="reference-serve", **arguments)
    with started("localhost/datasette-clip:recipe", *TMP) as container:
        yield container


@pytest.fixture(scope="module")
def engine(reference, tmp_path_factory) -> Engine:
    """Our engine with the model of the same build."""
    with started(reference) as container:
        return Engine(container.copy_out("/model", tmp_path_factory.mktemp("model")))


def test_reference_serve_answers_the_recipes_urls_with_the_same_vectors(recipe, engine):
    texts = ["purple and gold", "a red heart"]
    found = [recipe.first_embedding(texts[0]), recipe.embed(texts[1])]
    assert min(map(cosine, found, engine.embed_text(texts))) >= 0.99
    canned = recipe.get("/_memory/embed.json", text=texts[0], _shape="array").json()
    np.testing.assert_allclose(np.frombuffer(bytes.fromhex(canned[0]["x"]), "<f4"), found[0], atol=1e-4)


def test_reference_serve_is_llm_clip_and_torch_and_none_of_ours_and_loads_the_model_once(recipe):
    recipe.first_embedding("again")
    plugins = {plugin["name"] for plugin in recipe.get("/-/plugins.json").json()}
    assert {"datasette-llm-embed", "load_once.py"} <= plugins
    assert "datasette-clip" not in plugins
    mapped = Path(f"/proc/{recipe.pid}/maps").read_text()
    assert ("libtorch_cpu" in mapped, "onnxruntime" in mapped) == (True, False)
    assert recipe.logs().count("llm makes the model clip") == 1


def test_a_checkpoint_of_a_hub_is_compared_there_and_then_served_without_the_hub(context, arguments, engine, tmp_path):
    """The checkpoint has sentence-transformers' layout, like the Dockerfile's default."""
    shutil.copytree(DEMO_CHECKPOINT, tmp_path / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    image = "localhost/datasette-clip:hub"
    with HubStandIn(tmp_path, "owner/emoji") as hub:
        # transformers asks for an optional folder. The stand-in knows only files.
        hub.refusals["/api/models/owner/emoji/tree/"] = Refusal(404, "EntryNotFound", "no such folder")
        own = {"CLIP_MODEL": "owner/emoji", "CLIP_REVISION": "main", "HF_ENDPOINT": hub.url}
        built = build(image, context, target="reference-serve", **arguments | own)
    assert re.findall(r"^(\w+) +(\w+) tower \(int8\) with llm-clip", built.stdout, re.M) == [
        ("ok", "text"),
        ("ok", "image"),
    ]
    with started(image, *TMP) as container:
        assert cosine(container.first_embedding("a bunny"), engine.embed_text(["a bunny"])[0]) >= 0.99

"""The clients that people have call /v1 with nothing changed but the base URL: OpenAI's two SDKs, LangChain, LlamaIndex."""

from __future__ import annotations

import json
import re
import subprocess

import numpy as np
import pytest

from conftest import ROOT
from llm_clip_onnx.vectors import unit
from patience import PATIENCE_S
from serving import environment, serving

SDK = ROOT / ".venv-sdk"
MODULE = SDK / "node_modules/openai/index.mjs"
SUPPORT = ROOT / "tests/support"
TEXTS = ["a red heart", "猫の写真", *(f"number {n}" for n in range(110))]  # more than LlamaIndex sends at once
CLIENTS = ("openai", "langchain", "llama_index", "node")
pytestmark = pytest.mark.skipif(not (SDK / "ready").exists(), reason="THE SDKS ARE NOT TESTED: make .venv-sdk/ready")


def call(client: str, url: str, key: str = "sk-none", texts: list[str] = TEXTS) -> dict:
    """What a client prints, see sdks.py."""
    given = [f"{url}/v1", key, json.dumps(texts)]
    if client == "node":
        command = [SDK / "bin/node", SUPPORT / "sdk.mjs", MODULE, *given]
    else:
        command = [SDK / "bin/python", SUPPORT / "sdks.py", client, *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def serve(demo_dir, tmp_path_factory):
    def start(**more: str):
        folder = tmp_path_factory.mktemp("server")
        env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir), **more)
        return serving("--memory", env=env, log=folder / "log")

    return start


@pytest.fixture(scope="module")
def url(serve):
    with serve() as url:
        yield url


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_gets_llm_embeds_vectors_at_norm_1(client, url, demo_engine):
    found = call(client, url)
    assert "error" not in found
    expected = unit(demo_engine.embed_text(TEXTS).astype(np.float64)).astype(np.float32)
    assert np.array_equal(np.array(found["vectors"], np.float32), expected)
    if client in ("openai", "node"):
        assert np.array_equal(np.array(found["numbers"], np.float32), expected)
        assert found["tokens"] == sum(demo_engine.embed_counted(text)[1] for text in TEXTS)
        assert (found["models"], found["one"]) == (["clip"], "clip")
    else:
        assert np.array_equal(np.array(found["query"], np.float32), expected[0])


EXAMPLES = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs/openai.md").read_text(), re.DOTALL)
PRINTED = {  # what an example is asked for
    "javascript": "console.log(JSON.stringify([answer.data[0].embedding]));",
    "OpenAI(": "import json; print(json.dumps(vectors[:1]))",
    "Embedding": "import json; print(json.dumps([embeddings.{}('purple and gold')]))",
}


@pytest.mark.parametrize(("language", "example"), EXAMPLES)
def test_the_examples_of_the_manual_run(language, example, url, demo_engine, tmp_path):
    example = example.replace("https://YOUR-HOST", url)
    if language == "javascript":
        file, node = tmp_path / "example.mjs", SDK / "bin/node"
        file.write_text(example.replace('"openai"', json.dumps(str(MODULE))) + PRINTED[language])
        command = [node, file]
    else:
        printed = PRINTED["OpenAI(" if " OpenAI(" in example else "Embedding"]
        asked = "get_query_embedding" if "llama_index" in example else "embed_query"
        command = [SDK / "bin/python", "-c", example + printed.format(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    expected = unit(demo_engine.embed_item("purple and gold").astype(np.float64)).astype(np.float32)
    assert np.array_equal(np.array(json.loads(done.stdout), np.float32), [expected])


def test_langchains_default_is_refused_with_the_setting_that_it_needs(url):
    assert "check_embedding_ctx_length=False" in call("langchain", url, texts=["a red heart"])["as_it_is"]


@pytest.mark.parametrize("client", ["openai", "langchain", "node"])  # LlamaIndex sends 100 at once
def test_a_client_shows_the_sentence_of_a_refusal(client, url):
    assert "at most 128 are accepted in one request" in call(client, url, texts=["a"] * 1000)["error"]


@pytest.mark.parametrize("client", CLIENTS)
def test_the_api_key_is_the_token_of_a_private_instance(client, serve):
    with serve(CLIP_TOKEN="secret") as private:
        refused = call(client, private, texts=["a"])["error"]
        assert ("AuthenticationError" in refused, "this instance is private" in refused) == (True, True)
        assert "error" not in call(client, private, key="secret", texts=["a"])

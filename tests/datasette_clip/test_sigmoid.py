"""A model with a logit_bias says yes or no to each label on its own: in JSON, in SQL and on the pages.

It is the demo model with a bias in its manifest, so its probabilities are those that a bias makes of its cosines.
"""

from __future__ import annotations

import base64
import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from datasette.app import Datasette

from datasette_clip.paths import ABOUT, CLASSIFY, COMPARE
from drawings import LABELS, drawing
from llm_clip_onnx.engine import Engine, engine_for
from page_forms import bars_in, expected_bars, get, jpegs_in, post

# For the same reason as in test_sql_functions.py.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

BIAS = -26.5
HEART = drawing("heart")
IMG = base64.urlsafe_b64encode(HEART).decode()


@pytest.fixture(scope="module")
def biased_dir(demo_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("biased") / "model"
    shutil.copytree(demo_dir, folder)
    facts = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(facts | {"logit_bias": BIAS}))
    return folder


@pytest.fixture
def engine(biased_dir) -> Engine:
    return engine_for(biased_dir)


@pytest.fixture
def biased(biased_dir, monkeypatch) -> Datasette:
    monkeypatch.setenv("CLIP_MODEL_DIR", str(biased_dir))
    return Datasette(memory=True)


def expected(engine: Engine, labels: list[str]) -> list[dict]:
    """The matches of the heart by plain numpy, the best first."""
    classes = engine.embed_text([f"a photo of {label}." for label in labels]).astype(np.float64)
    image = engine.embed_item(HEART).astype(np.float64)
    cosines = classes @ image / np.linalg.norm(classes, axis=1) / np.linalg.norm(image)
    likely = 1 / (1 + np.exp(-(engine.manifest.logit_scale * cosines + BIAS)))
    return [
        {
            "label": labels[k],
            "probability": pytest.approx(likely[k], rel=1e-3),  # the engine's cosines are float32, times 100
            "cosine": pytest.approx(cosines[k], abs=1e-5),
        }
        for k in np.argsort(-cosines)
    ]


def test_json_says_sigmoid_and_each_probability_is_of_its_label_alone(biased, engine):
    answer = get(biased, f"{CLASSIFY}.json", params={"img": IMG, "labels": json.dumps(LABELS)}).json()
    assert answer["scores"] == "sigmoid"
    [result] = answer["results"]
    assert result["matches"] == expected(engine, LABELS)
    best = result["matches"][0]
    alone = get(biased, f"{CLASSIFY}.json", params={"img": IMG, "labels": json.dumps([best["label"]])}).json()[
        "results"
    ][0]
    assert alone["matches"] == [best]


def test_json_of_a_softmax_says_nothing_new(datasette):
    answer = get(datasette, f"{CLASSIFY}.json", params={"img": IMG, "labels": json.dumps(LABELS)}).json()
    assert [*answer] == ["ok", "model", "labels", "unrelated_cosine", "results", "ms"]
    probabilities = [match["probability"] for match in answer["results"][0]["matches"]]
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)  # of 6 digits
    assert probabilities == [round(p, 6) for p in probabilities]


def test_no_probability_of_a_label_set_is_zero(biased, engine):
    count = len(engine.label_set("emoji").labels)
    sql = f"select clip_classify(clip_image(:img), 'emoji', {count}) as found"
    [row] = get(biased, "/_memory.json", params={"sql": sql, "img": IMG, "_shape": "array"}).json()
    found = json.loads(row["found"])
    assert len(found) == count
    assert 0 < found[-1]["probability"] < 1e-6
    assert [match["cosine"] for match in found] == sorted((match["cosine"] for match in found), reverse=True)


def test_the_page_says_yes_or_no_in_place_of_shares(biased, engine):
    page = post(biased, CLASSIFY, [("heart.png", HEART)], own="\n".join(LABELS)).text
    [jpeg] = jpegs_in(page)
    assert bars_in(page) == expected_bars(engine, engine.classifier(LABELS), jpeg)
    assert '<th scope="col" class="clip-number">yes</th>' in page
    assert "says yes or no to each label on its own" in page
    assert "shares among these labels" not in page
    even = -BIAS / engine.manifest.logit_scale
    assert f"at a cosine of {even:.3f} between a text and an image" in page


def test_the_other_pages_know_the_bias(biased, engine):
    compared = post(biased, COMPARE, [("heart.png", HEART)], texts="a face").text
    assert f"at a cosine of {-BIAS / engine.manifest.logit_scale:.3f} between a text and an image" in compared
    assert "0.3 is a good match" not in compared
    assert f'<tr><th scope="row">logit_bias</th><td>{BIAS}</td></tr>' in get(biased, ABOUT).text
    assert get(biased, f"{ABOUT}.json").json()["logit_bias"] == BIAS


def test_the_command_line_tells_the_bias(biased_dir):
    from llm.cli import cli

    told = CliRunner().invoke(cli, ["clip", "info", str(biased_dir)])
    assert re.search(rf"^logit_bias +{BIAS:.2f}$", told.output, re.MULTILINE)

"""Zero-shot classification agrees with results computed by hand, and with CLIP's own recipe in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from llm_clip_onnx import zero_shot
from llm_clip_onnx.errors import InputError, VectorError
from llm_clip_onnx.zero_shot import Classifier, Match


def classifier(labels=("cat", "dog"), vectors=((1, 0), (0, 1)), unrelated_cosine=0.5) -> Classifier:
    return Classifier(tuple(labels), np.array(vectors, np.float32), unrelated_cosine, ("{}",))


def test_a_class_vector_is_the_unit_mean_of_its_prompts_unit_embeddings(demo_engine):
    templates = ("a photo of a {}.", "the {}", "a {} and a {}")
    found = zero_shot.class_vectors(demo_engine.embed_text, ["cat", "red heart"], templates)
    for label, vector in zip(("cat", "red heart"), found):
        prompts = [f"a photo of a {label}.", f"the {label}", f"a {label} and a {label}"]
        embeddings = demo_engine.embed_text(prompts).astype(np.float64)
        mean = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).mean(0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)  # float32


def test_probabilities_are_the_softmax_of_scaled_cosines():
    cosines = np.array([0.3, 0.2, 0.1])
    powers = np.exp(100 * cosines)
    np.testing.assert_allclose(zero_shot.probabilities(cosines, 100), powers / powers.sum())
    assert zero_shot.probabilities(np.array([1.0, -1.0]), 1e6).tolist() == [1, 0]  # no overflow


def test_with_a_bias_probabilities_are_the_sigmoid_of_each_logit_on_its_own():
    cosines = np.array([0.3, 0.2, 0.1])
    expected = 1 / (1 + np.exp(-(100 * cosines - 20)))
    np.testing.assert_allclose(zero_shot.probabilities(cosines, 100, -20), expected)
    alone = [float(zero_shot.probabilities(cosines[[n]], 100, -20)[0]) for n in range(3)]
    np.testing.assert_array_equal(alone, zero_shot.probabilities(cosines, 100, -20))


def test_with_a_bias_no_probability_is_zero():
    """As in transformers issue 38175, where float16 made zeros of them."""
    unlikely, likely = zero_shot.probabilities(np.array([-1.0, 1.0]), 118, -17)
    assert unlikely == pytest.approx(np.exp(-135.0))
    assert likely == 1  # nearer to it than float64 can say


def test_with_a_bias_labels_of_one_name_have_the_best_probability():
    thrice = classifier(("missile", "dog", "missile"), ((1, 0), (0.8, 0.6), (0.6, 0.8)))
    found = zero_shot.classify(thrice, np.array([1, 0], np.float32), logit_scale=2, logit_bias=-2)
    assert [(match.label, round(match.probability, 6)) for match in found] == [("missile", 0.5), ("dog", 0.401312)]


def test_a_bias_ranks_labels_as_their_cosines_do():
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    many = classifier([f"{n}" for n in range(50)], vectors)
    by_share, alone = (zero_shot.classify(many, vectors[0] + vectors[1], 100, 50, bias) for bias in (None, -12.0))
    assert [match.label for match in by_share] == [match.label for match in alone]


def test_the_best_come_first_with_probability_and_cosine():
    found = zero_shot.classify(classifier(), np.array([3, 4], np.float32), logit_scale=10)
    dog = 1 / (1 + np.exp(-2))
    assert [match.label for match in found] == ["dog", "cat"]
    assert [match.cosine for match in found] == pytest.approx([0.8, 0.6])
    assert [match.probability for match in found] == pytest.approx([dog, 1 - dog])


def test_only_k_come_and_probabilities_are_those_among_all():
    found = zero_shot.classify(classifier(), np.array([3, 4], np.float32), 10, k=1)
    assert [match.label for match in found] == ["dog"]
    assert found[0].probability == pytest.approx(1 / (1 + np.exp(-2)))


def test_labels_of_one_name_are_one_with_their_probabilities_added():
    thrice = classifier(("missile", "dog", "missile"), ((1, 0), (0.8, 0.6), (0.6, 0.8)))
    found = zero_shot.classify(thrice, np.array([1, 0], np.float32), logit_scale=1)
    powers = np.exp([1, 0.8, 0.6])
    assert [match.label for match in found] == ["missile", "dog"]
    assert found[0].probability == pytest.approx((powers[0] + powers[2]) / powers.sum())
    assert found[0].cosine == pytest.approx(1)
    assert sum(match.probability for match in found) == pytest.approx(1)


@pytest.mark.parametrize(
    ("embedding", "k", "error", "sentence"),
    [
        ([1, 2, 3], 5, VectorError, "3 and 2 dimensions; both vectors must come from one model"),
        ([0, 0], 5, VectorError, "a vector of zeros, infinities or NaN has no direction, so no cosine"),
        ([np.nan, 0], 5, VectorError, "a vector of zeros, infinities or NaN has no direction, so no cosine"),
        ([1, 2], 0, InputError, "k is 0; expected a whole number from 1, of the labels to answer"),
    ],
)
def test_what_cannot_be_classified_raises(embedding, k, error, sentence):
    with pytest.raises(error) as raised:
        zero_shot.classify(classifier(), np.array(embedding, np.float32), 10, k)
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("labels", "templates", "sentence"),
    [
        ([], ["{}"], "there are no labels; expected at least one"),
        (["a"], [], "there are no templates; expected at least one"),
        (["a", " "], ["{}"], "labels[1] is ' '; expected a text that is not empty"),
        (["a", 3], ["{}"], "labels[1] is 3; expected a text that is not empty"),
        (["a"], ["{}", "a photo"], "templates[1] is 'a photo'; expected {} where the label goes"),
    ],
)
def test_labels_and_templates_that_cannot_be_used_are_named(labels, templates, sentence, demo_engine):
    with pytest.raises(InputError) as raised:
        demo_engine.classifier(labels, templates)
    assert str(raised.value) == sentence


def test_unrelated_is_the_median_of_what_the_best_label_reaches():
    vectors, images = np.eye(2, dtype=np.float32), np.array([[2, 0], [1, 1], [-3, 0]], np.float32)
    assert zero_shot.unrelated_cosine(vectors, images) == pytest.approx(np.sqrt(0.5), abs=1e-6)


@pytest.mark.parametrize(("cosine", "none"), [(0.49, True), (0.5, False)])
def test_none_of_these_is_a_best_label_that_fits_no_better_than_an_unrelated_one(cosine, none):
    assert zero_shot.is_none_of_these(classifier(), Match("cat", 0.99, cosine)) is none


def test_the_engine_makes_a_classifier_once(demo_engine):
    first = demo_engine.classifier(["cat", "dog"])
    assert demo_engine.classifier(["cat", "dog"]) is first
    assert demo_engine.classifier(["dog", "cat"]) is not first
    images = np.load(demo_engine.path / "image.npy")
    assert first.unrelated_cosine == zero_shot.unrelated_cosine(first.vectors, images)


@pytest.mark.parametrize(
    ("label", "prompts"),
    [
        ("red heart", ["a photo of a red heart.", "the red heart", "a red heart and the red heart", "red heart"]),
        ("a red heart", ["a photo of a red heart.", "a red heart", "a red heart and a red heart", "a red heart"]),
        ("An apple", ["a photo of An apple.", "An apple", "An apple and An apple", "An apple"]),
        ("the moon", ["a photo of the moon.", "the moon", "the moon and the moon", "the moon"]),
        ("theatre", ["a photo of a theatre.", "the theatre", "a theatre and the theatre", "theatre"]),
        ("a", ["a photo of a a.", "the a", "a a and the a", "a"]),
    ],
)
def test_a_labels_own_article_takes_the_place_of_the_templates(label, prompts):
    templates = ("a photo of a {}.", "the {}", "a {} and the {}", "{}")
    assert zero_shot.prompts_of(label, templates) == prompts


def test_an_article_within_a_word_is_none():
    assert zero_shot.prompts_of("a cat", ("pizza {}", "a {}")) == ["pizza a cat", "a cat"]

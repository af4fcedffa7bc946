"""Label sets are baked from files and from OpenAI's names, checked when they are read, and refused if they do not fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import DEMO_CHECKPOINT, EMOJI, quiet
from llm_clip_onnx import label_sets, model_dir, zero_shot
from llm_clip_onnx.bake import bake, fidelity
from llm_clip_onnx.bake import label_set as labels
from llm_clip_onnx.bake.label_set import bake_labels, openai_imagenet
from llm_clip_onnx.bake.samples import TEXTS
from llm_clip_onnx.bake.verify import verify
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.errors import FidelityError, InputError, ModelDirError
from patience import PATIENCE_S
from serving import environment, run_llm

TEMPLATES = ("a drawing of {}", "{}, {}")
TENCH = fidelity.PUBLISHED_CLASS["values"]


@pytest.fixture
def path(tiny_dir, tmp_path) -> Path:
    """A model directory of random weights that a test may change."""
    return Path(shutil.copytree(tiny_dir, tmp_path / "model"))


@pytest.fixture
def pets(tmp_path) -> Path:
    """A file of labels as an editor on Windows may save it."""
    file = tmp_path / "my pets.txt"
    file.write_bytes("\ufeffcat\r\n\r\n  Dackel mit Öhrchen \r\ncat".encode())
    return file


def bake_pets(path: Path, pets: Path, **more) -> label_sets.LabelSet:
    return bake_labels(path, "pets", pets, say=quiet, **more)


def test_a_file_of_labels_is_a_set_that_classifies_as_labels_given_now_do(path, pets):
    facts = bake_pets(path, pets)
    assert (facts.labels, facts.templates) == (("cat", "Dackel mit Öhrchen", "cat"), ("a photo of a {}.",))
    assert (facts.name, facts.source) == ("pets", "my pets.txt")
    engine = Engine(path)
    baked, given = engine.label_set("pets"), engine.classifier(facts.labels)
    np.testing.assert_array_equal(baked.vectors, given.vectors)
    assert baked.unrelated_cosine == given.unrelated_cosine == facts.unrelated_cosine
    assert sorted(os.listdir(path / "labels")) == ["pets.json", "pets.npy"]


def test_a_set_needs_no_text_tower_to_classify(demo_dir):
    engine = Engine(demo_dir)
    picture = engine.embed_item("a red heart")
    again = Engine(demo_dir)
    best = zero_shot.classify(again.label_set("emoji"), picture, again.manifest.logit_scale)[0]
    assert "heart" in best.label
    assert again.open_towers == []


def test_templates_of_a_file_are_ensembled(path, pets, tmp_path):
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))
    facts = bake_pets(path, pets, templates=tmp_path / "templates.txt")
    assert facts.templates == TEMPLATES
    engine = Engine(path)
    units = [zero_shot.unit(engine.embed_text([text])[0]) for text in ("a drawing of cat", "cat, cat")]
    expected = (units[0] + units[1]) / np.linalg.norm(units[0] + units[1])
    np.testing.assert_allclose(engine.label_set("pets").vectors[0], expected, atol=1e-6)


def test_a_set_that_is_there_stays_without_force_and_is_baked_again_of_its_own_labels_with_it(path, pets, tmp_path):
    (tmp_path / "templates.txt").write_text("\n".join(TEMPLATES))
    before = bake_pets(path, pets, templates=tmp_path / "templates.txt")
    with pytest.raises(InputError, match=r"labels/pets.json is there already; --force replaces it"):
        bake_pets(path, pets)
    after = bake_labels(path, "pets", force=True, say=quiet)
    assert (after.labels, after.templates, after.source) == (before.labels, TEMPLATES, "my pets.txt")
    assert after.vectors_sha256 == before.vectors_sha256
    assert bake_pets(path, pets, force=True).templates == zero_shot.DEFAULT_TEMPLATES


def test_imagenet_is_the_1000_names_and_80_templates_of_openais_notebook(path):
    names, templates, source = openai_imagenet()
    assert (len(names), len(set(names)), len(set(templates))) == (1000, 998, 80)
    assert (names[0], names[-1]) == ("tench", "toilet paper")
    assert (templates[0], templates[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")
    assert source.startswith("open-clip-torch 3.")
    # Told from others by their sum, which says whether published vectors are of them.
    assert fidelity.published_class_difference(names, templates, np.zeros((1000, 8))) == max(map(abs, TENCH))


@pytest.fixture(scope="session")
def imagenet_dir(tiny_dir, tmp_path_factory) -> Path:
    """Random weights with the label set `imagenet` of four templates, the first three and the last. Tests must not change it."""
    path = Path(shutil.copytree(tiny_dir, tmp_path_factory.mktemp("imagenet") / "model"))
    templates = path.parent / "templates.txt"
    templates.write_text("\n".join(openai_imagenet().templates[::27]))
    bake_labels(path, "imagenet", templates=templates, say=quiet)
    return path


def test_names_that_occur_twice_stay_two_in_the_set_and_are_one_in_an_answer(imagenet_dir):
    engine = Engine(imagenet_dir)
    classifier = engine.label_set("imagenet")
    assert (len(classifier.labels), classifier.vectors.shape) == (1000, (1000, 512))
    found = zero_shot.classify(classifier, classifier.vectors[0], engine.manifest.logit_scale, k=2000)
    assert (len(found), found[0].label) == (998, "tench")
    assert sum(match.probability for match in found) == pytest.approx(1)


IMPORTS_NO_TORCH = """
import sys
from pathlib import Path
from llm_clip_onnx.bake.label_set import bake_labels
bake_labels(Path(sys.argv[1]), "imagenet", templates=Path(sys.argv[2]))
assert not {"torch", "open_clip", "onnx"} & sys.modules.keys()
"""


def test_imagenet_is_baked_without_torch_and_says_how_far_it_is(path, tmp_path):
    (tmp_path / "template.txt").write_text("{}")
    command = [sys.executable, "-c", IMPORTS_NO_TORCH, str(path), str(tmp_path / "template.txt")]
    done = subprocess.run(
        command, env=environment(tmp_path / "llm"), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert label_sets.list_names(path) == ["imagenet"]


def test_without_the_package_the_sentence_says_what_to_install(path, monkeypatch):
    monkeypatch.setattr(labels, "PACKAGE", "open-clip-that-nobody-has")
    with pytest.raises(InputError) as raised:
        bake_labels(path, "imagenet", say=quiet)
    assert str(raised.value) == (
        "the names and templates of imagenet are in the package open-clip-that-nobody-has, which is not installed: "
        "pip install --no-deps open-clip-that-nobody-has"
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "{file} cannot be read (No such file or directory); expected labels, one a line, in UTF-8"),
        (b"", "{file} is empty; expected labels, one a line, in UTF-8"),
        (b"\xef\xbb\xbf\n \r\n", "{file} is empty; expected labels, one a line, in UTF-8"),
        ("Öhrchen".encode("latin-1"), "{file} is not UTF-8 from byte 0 on; expected labels, one a line, in UTF-8"),
        ("cat\n".encode("utf-16"), "{file} is not UTF-8 from byte 0 on; expected labels, one a line, in UTF-8"),
    ],
)
def test_a_file_that_holds_no_labels_is_named(content, sentence, path, tmp_path):
    file = tmp_path / "labels.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as raised:
        bake_labels(path, "pets", file, say=quiet)
    assert str(raised.value) == sentence.format(file=file)
    assert not (path / "labels").exists()


@pytest.mark.parametrize("name", ["", "Pets", "my pets", "../pets", ".pets", "pets/cat", "-pets", "x" * 65, "pets\n"])
def test_a_name_that_is_none_is_refused(name, path, pets):
    with pytest.raises(InputError, match="is no name of a label set; expected small letters, digits, - and _, at most"):
        bake_labels(path, name, pets, say=quiet)


def test_what_else_cannot_be_baked_has_its_sentence(path, pets, tmp_path):
    with pytest.raises(InputError, match=r"model has no label set 'pets' whose labels could be baked again; --labels"):
        bake_labels(path, "pets", say=quiet)
    (tmp_path / "templates.txt").write_text("a photo of a {}.\na photo")
    with pytest.raises(InputError, match=r"templates\[1\] is 'a photo'; expected {} where the label goes"):
        bake_pets(path, pets, templates=tmp_path / "templates.txt")
    (path / "labels").write_text("in the way")
    with pytest.raises(ModelDirError, match=r"model/labels cannot be written: File exists"):
        bake_pets(path, pets)
    with pytest.raises(ModelDirError, match="there is no model directory"):
        bake_pets(path / "elsewhere", pets)


def told(path: Path, name: str, **facts) -> None:
    file = path / "labels" / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


AGAIN = "bake it again with llm clip labels bake pets {path} --force"
OTHER = "label set 'pets' was made with another checkpoint's weights: " + AGAIN


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (
            lambda p: flip_a_bit(p / "labels/pets.npy"),
            "{path}/labels/pets.npy is damaged, its sha256 is another: " + AGAIN,
        ),
        (
            lambda p: os.truncate(p / "labels/pets.npy", 99),
            "{path}/labels/pets.npy is damaged, its sha256 is another: " + AGAIN,
        ),
        (
            lambda p: (p / "labels/pets.npy").unlink(),
            "{path}/labels/pets.npy cannot be read (No such file or directory): " + AGAIN,
        ),
        (
            lambda p: told(p, "pets", labels=["cat"]),
            "{path}/labels/pets.npy has vectors of shape (3, 512), expected (1, 512): " + AGAIN,
        ),
        (lambda p: told(p, "pets", weights_sha256={"model.safetensors": "0"}), OTHER),
    ],
)
def test_a_set_that_is_not_right_is_refused_and_the_sentence_mends_it(break_it, sentence, path, pets):
    bake_pets(path, pets)
    break_it(path)
    with pytest.raises(ModelDirError) as raised:
        Engine(path).label_set("pets")
    assert str(raised.value) == sentence.format(path=path)
    [check] = [check for check in verify(path) if "label set" in check.name]
    assert (check.ok, check.found) == (False, str(raised.value))
    bake_labels(path, "pets", force=True, say=quiet)
    assert Engine(path).label_set("pets").labels[0] == "cat"


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda f: f.write_text("{"), "{file} cannot be read (JSONDecodeError: "),
        (lambda f: f.write_text("[]"), "{file} cannot be read (TypeError: "),
        (lambda f: f.write_text("[" * 100_000), "{file} cannot be read (RecursionError: "),
        (lambda f: f.write_text('{"format": 1}'), "{file} cannot be read (KeyError: "),
        (lambda f: f.write_text('{"format": 7}'), "{file} says format 7, this version reads 1: "),
    ],
)
def test_where_the_labels_are_lost_the_sentence_asks_for_them(break_it, sentence, path, pets):
    bake_pets(path, pets)
    break_it(path / "labels/pets.json")
    with pytest.raises(ModelDirError) as raised:
        Engine(path).label_set("pets")
    assert str(raised.value).startswith(sentence.format(file=path / "labels/pets.json"))
    assert str(raised.value).endswith(f"{AGAIN.format(path=path)} --labels FILE")
    with pytest.raises(InputError, match="no label set 'pets' whose labels could be baked again"):
        bake_labels(path, "pets", force=True, say=quiet)
    bake_pets(path, pets, force=True)
    assert label_sets.rebake_lost_set_hint(path, "imagenet").endswith("--force")  # its labels are not lost


def test_a_name_that_is_not_there_is_answered_with_those_that_are(demo_dir, tiny_dir):
    with pytest.raises(InputError) as raised:
        Engine(demo_dir).label_set("pets")
    assert str(raised.value) == "there is no label set 'pets'; there are emoji; llm clip labels bake makes one"
    with pytest.raises(InputError, match="there is no label set 'pets'; there are none; llm clip labels bake makes"):
        Engine(tiny_dir).label_set("pets")


BAKE_AND_END = """
import os, signal, sys
from pathlib import Path
from llm_clip_onnx.bake import label_set
def say(line):
    if "prompts" in line:  # some are embedded, and some are not
        os.kill(os.getpid(), signal.SIGKILL)
label_set.SAY_EVERY_S = 0
label_set.bake_labels(Path(sys.argv[1]), "emoji", Path(sys.argv[2]), force=True, say=say)
"""


@pytest.mark.parametrize("replacing", [False, True])
def test_killed_midway_it_leaves_no_set_that_is_not_whole(replacing, path, tmp_path):
    if replacing:
        (tmp_path / "few.txt").write_text("cat")
        bake_labels(path, "emoji", tmp_path / "few.txt", say=quiet)
    env = environment(tmp_path / "llm")
    killed = subprocess.run([sys.executable, "-c", BAKE_AND_END, str(path), str(EMOJI)], env=env)
    assert killed.returncode == -signal.SIGKILL
    if replacing:
        assert Engine(path).label_set("emoji").labels == ("cat",)
    else:
        assert label_sets.list_names(path) == []


@pytest.mark.parametrize("nth", [1, 2])
def test_interrupted_at_a_rename_no_half_replaced_set_opens(nth, path, pets, tmp_path, monkeypatch):
    (tmp_path / "few.txt").write_text("dog")
    bake_labels(path, "pets", tmp_path / "few.txt", say=quiet)
    genuine, seen = os.replace, []

    def replace(source, target):
        seen.append(target)
        if len(seen) == nth:
            raise KeyboardInterrupt
        genuine(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        bake_pets(path, pets, force=True)
    assert sorted(os.listdir(path / "labels")) == ["pets.json", "pets.npy"]
    if nth == 1:
        assert Engine(path).label_set("pets").labels == ("dog",)
    else:
        with pytest.raises(ModelDirError, match=r"pets.npy is damaged"):
            Engine(path).label_set("pets")


def test_a_bake_keeps_label_sets_and_names_those_to_bake_again(path, pets, tiny_checkpoint):
    bake_pets(path, pets)
    (path / "labels" / ".emoji.part").write_text("of a bake that was killed")
    lines: list[str] = []
    bake(str(tiny_checkpoint), path, "fp32", force=True, say=lines.append)  # the same weights
    assert Engine(path).label_set("pets").labels[0] == "cat"
    assert not [line for line in lines if "label set" in line]
    bake(str(DEMO_CHECKPOINT), path, "fp32", force=True, say=lines.append)
    assert lines[-1] == OTHER.format(path=path)
    assert sorted(os.listdir(path / "labels")) == ["pets.json", "pets.npy"]
    with pytest.raises(ModelDirError, match="was made with another checkpoint's weights"):
        Engine(path).label_set("pets")
    bake_labels(path, "pets", force=True, say=quiet)
    assert Engine(path).label_set("pets").labels[0] == "cat"


def test_an_interrupted_bake_leaves_the_label_sets_where_they_were(path, pets, tiny_checkpoint, monkeypatch):
    bake_pets(path, pets)
    genuine = Path.rename

    def rename(self: Path, target: Path):
        if self.name.endswith(".part"):
            raise KeyboardInterrupt
        return genuine(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        bake(str(tiny_checkpoint), path, "fp32", force=True, say=quiet)
    monkeypatch.undo()
    assert Engine(path).label_set("pets").labels[0] == "cat"


def test_verify_makes_some_vectors_again(path, pets):
    bake_pets(path, pets)
    assert [(c.ok, c.found) for c in verify(path) if c.name == "label set pets"] == [
        (True, "3 labels, worst cosine 1.000000 of 3 made again")
    ]
    told(path, "pets", labels=["cat", "dog", "cat"])  # as many, and all of their sums are right
    [check] = [check for check in verify(path) if check.name == "label set pets"]
    assert not check.ok


def test_info_and_list_show_label_sets_and_why_one_cannot_be_used(path, pets, tmp_path):
    env = environment(tmp_path / "llm")
    listed = run_llm("clip", "labels", "list", str(path), env=env)
    assert (listed.stdout, listed.stderr) == ("", f"{path} has no label sets; llm clip labels bake makes one\n")
    baked = run_llm("clip", "labels", "bake", "pets", str(path), "--labels", str(pets), env=env)
    assert "pets: 3 labels of my pets.txt, templates: 1" in baked.stderr
    assert f"{path}/labels/pets.json is ready" in baked.stderr
    bake_labels(path, "other", pets, say=quiet)
    told(path, "other", weights_sha256={})
    lines = run_llm("clip", "labels", "list", str(path), env=env).stdout.splitlines()
    why = OTHER.format(path=path).replace("pets", "other", 1).replace("bake pets", "bake other")
    assert lines[0] == f"other  cannot be used: {why}"
    assert lines[1].startswith("pets   3 labels of my pets.txt, 'a photo of a {}.', unrelated cosine ")
    shown = run_llm("clip", "info", str(path), env=env).stdout
    assert [line.split("  ")[0] for line in shown.splitlines() if "label set" in line.split("  ")[0]] == [
        "label set other",
        "label set pets",
    ]
    refused = run_llm("clip", "labels", "bake", "pets", str(path), env=env, ok=False)
    assert refused.stderr == f"Error: {path}/labels/pets.json is there already; --force replaces it\n"


def test_progress_is_told_every_few_seconds_and_not_more(monkeypatch):
    """The clock advances by a second a label."""
    lines: list[str] = []
    clock = iter(range(1000))
    monkeypatch.setattr(labels.time, "monotonic", lambda: next(clock))
    assert list(labels.with_progress(iter(range(12)), 12, 80, lines.append)) == list(range(12))
    assert lines == ["400 of 960 prompts, 80 a second, 7 s left", "800 of 960 prompts, 80 a second, 2 s left"]


def test_interrupted_it_does_not_first_embed_all_the_rest(tiny_dir, monkeypatch):
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(labels, "SAY_EVERY_S", 0)
    engine, names = Engine(tiny_dir), EMOJI.read_text().splitlines()
    with pytest.raises(KeyboardInterrupt):
        labels.class_vectors(engine, names, ("{}",), interrupt)
    assert len(engine._cache) < len(names) / 2


def pretend_openais(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["source"]["id"] = fidelity.PUBLISHED_FOR[1]
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def with_openais_templates(imagenet_dir, monkeypatch):
    """Uses three templates in place of all 80, so that a set is baked in seconds."""
    import hashlib

    templates = label_sets.stored_facts(imagenet_dir, "imagenet").templates
    of_these = hashlib.sha256("\n".join(templates).encode()).hexdigest()
    monkeypatch.setitem(fidelity.PUBLISHED_CLASS, "templates_sha256", of_these)


def test_a_set_that_openais_weights_do_not_give_is_refused_and_not_written(
    imagenet_dir, with_openais_templates, tmp_path
):
    path = Path(shutil.copytree(imagenet_dir, tmp_path / "model"))
    bake_labels(path, "imagenet", force=True, say=quiet)  # of weights that are not said to be OpenAI's
    assert not [check for check in verify(path) if "as published in" in check.name]
    pretend_openais(path)
    before = (path / "labels/imagenet.npy").read_bytes()
    with pytest.raises(FidelityError) as raised:
        bake_labels(path, "imagenet", force=True, say=quiet)
    assert str(raised.value).startswith("the class vector of 'tench' is off by 0.")
    assert "from the one published in woctezuma/heroku-clip, 0.001 is allowed for fp32: the text" in str(raised.value)
    assert (path / "labels/imagenet.npy").read_bytes() == before
    (tmp_path / "own.txt").write_text("tench")
    bake_labels(path, "own", tmp_path / "own.txt", say=quiet)  # in other templates it has another vector
    found = {c.name: c.ok for c in verify(path) if "imagenet" in c.name or "own" in c.name}
    assert found == {
        "label set imagenet": True,
        "class vector of 'tench' in imagenet as published in woctezuma/heroku-clip": False,
        "label set own": True,
    }


@pytest.mark.parametrize(
    ("precision", "off", "ok"),
    [
        ("fp32", 0.0009, True),
        ("fp32", 0.0011, False),
        ("fp32", np.nan, False),
        ("int8", 0.0011, True),
        ("int8", 0.02, False),
    ],
)
def test_the_published_vector_may_be_off_by_so_much(precision, off, ok):
    names, templates, _ = openai_imagenet()
    vectors = np.zeros((1000, 512), np.float32)
    vectors[0, :5] = TENCH
    vectors[0, 3] += off
    if ok:
        labels.check_published(precision, names, templates, vectors)
    else:
        with pytest.raises(FidelityError):
            labels.check_published(precision, names, templates, vectors)


def test_openais_weights_are_recognised_by_what_they_give(tiny_dir):
    manifest, reference = model_dir.read_manifest(tiny_dir), np.load(tiny_dir / "text.npy")
    assert not fidelity.is_openai(manifest, reference)
    for golden in fidelity.PUBLISHED:
        row = reference[TEXTS.index(golden["text"])]
        row[golden["at"]] = np.array(golden["values"]) * (np.linalg.norm(row) if golden["unit"] else 1)
    assert fidelity.is_openai(manifest, reference)


@pytest.mark.parametrize(
    "wrong", [{"unrelated_cosine": None}, {"unrelated_cosine": 2}, {"labels": [1]}, {"labels": []}]
)
def test_facts_of_another_kind_are_refused(wrong, tiny_dir, tmp_path):
    path = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    (tmp_path / "ok.txt").write_text("cat\ndog\n")
    bake_labels(path, "ok", tmp_path / "ok.txt", say=quiet)
    file = path / "labels" / "ok.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    with pytest.raises(
        ModelDirError, match=r"cannot be read \(ValueError: a fact is of another kind than it should be"
    ):
        label_sets.stored_facts(path, "ok")


def test_a_file_whose_name_is_no_utf_8_is_baked_too(tiny_dir, tmp_path):
    path = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    file = tmp_path / "f\udcff.txt"
    file.write_text("cat\n")
    bake_labels(path, "odd", file, say=quiet)
    assert label_sets.stored_facts(path, "odd").source == "f?.txt"
    assert sorted(one.name for one in (path / "labels").iterdir()) == ["odd.json", "odd.npy"]

"""The engine keeps the order of items, opens each tower once, caches embeddings, and serves many threads."""

from __future__ import annotations

import base64
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from llm_clip_onnx import engine as engine_module
from llm_clip_onnx import model_dir, towers
from llm_clip_onnx.engine import Engine, engine_for
from llm_clip_onnx.errors import InputError
from llm_clip_onnx.lazy import Lazy
from nasty import TEXTS, images, photo, saved
from patience import PATIENCE_S


def test_embeddings_come_in_the_order_of_the_texts_whatever_the_company(demo_engine):
    alone = np.stack([demo_engine.embed_text([text])[0] for text in TEXTS])
    fresh = Engine(demo_engine.path)
    np.testing.assert_array_equal(fresh.embed_text(TEXTS[::-1])[::-1], alone)


def test_embeddings_come_in_the_order_of_the_images_as_bytes_or_pil(demo_engine):
    blobs = list(images().values())
    found = demo_engine.embed_images(blobs)
    assert (found.shape, found.dtype) == ((len(blobs), 512), np.float32)
    np.testing.assert_array_equal(demo_engine.embed_images(blobs[::-1])[::-1], found)
    np.testing.assert_array_equal(
        demo_engine.embed_images([photo()]), demo_engine.embed_images([saved(photo(), "PNG")])
    )


def test_nothing_gives_an_empty_array_of_the_right_width(demo_engine):
    assert demo_engine.embed_text([]).shape == (0, 512)
    assert demo_engine.embed_images([]).shape == (0, 512)


PNG_BASE64 = base64.b64encode(saved(photo(20, 20), "PNG")).decode()


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{PNG_BASE64}",
        f"\n DATA:;base64,{PNG_BASE64}",
        "data:image/svg+xml,%3Csvg/%3E",
        "data:image/png;charset=x;base64,",
        PNG_BASE64,
        base64.encodebytes(saved(photo(60, 40), "JPEG")).decode(),
        base64.urlsafe_b64encode(saved(photo(60, 40), "GIF")).decode(),
    ],
)
def test_an_image_in_a_text_is_refused(text, demo_engine):
    with pytest.raises(InputError, match=r"^the text is a data URI or an image in base64; send it as an image"):
        demo_engine.embed_item(text)


@pytest.mark.parametrize(
    "text", ["data: the new oil", "data:", "data: a, b", "x" * 100, "BM" + "9" * 100, "iVBORw0KGgo"]
)
def test_other_texts_that_look_like_it_are_texts(text, demo_engine):
    assert demo_engine.embed_item(text).shape == (512,)


def test_embeddings_are_not_normalised(demo_engine):
    assert np.linalg.norm(demo_engine.embed_text(["purple and gold"])[0]) > 2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda e: e.embed_text(["a", "b", 3]), "texts[2]: int is not text; expected a str"),
        (lambda e: e.embed_text(["a", b"b"]), "texts[1]: bytes is not text; expected a str"),
        (
            lambda e: e.embed_text(["\ud800"]),
            "texts[0]: a lone surrogate is not text; expected Unicode that UTF-8 can hold",
        ),
        (
            lambda e: e.embed_images([saved(photo(), "PNG"), b"abc"]),
            "images[1]: not an image but text (3 bytes); expected",
        ),
        (lambda e: e.embed_images(["cat.jpg"]), "images[0]: str is not an image; expected bytes or a PIL image"),
        (lambda e: e.embed_item(3.5), "float is neither text nor image bytes; expected str or bytes"),
    ],
)
def test_bad_input_is_refused_by_its_position(demo_engine, call, sentence):
    with pytest.raises(InputError) as raised:
        call(demo_engine)
    assert str(raised.value).startswith(sentence)


def test_a_text_asked_for_again_does_not_run_the_tower(demo_dir, monkeypatch):
    engine, runs = Engine(demo_dir), []
    genuine = towers.run_text
    monkeypatch.setattr(towers, "run_text", lambda *a: runs.append(1) or genuine(*a))
    first, again = engine.embed_text(["purple"]), engine.embed_text(["purple", "purple"])
    np.testing.assert_array_equal(again, np.concatenate([first, first]))
    assert len(runs) == 1


def test_what_is_remembered_is_bounded_in_bytes_and_cannot_be_changed(demo_dir, monkeypatch):
    monkeypatch.setattr(engine_module, "CACHE_BYTES", 30_000)
    engine = Engine(demo_dir)
    for n in range(40):
        engine.embed_text([f"text {n}", "long " * 100])
    assert engine._cache.currsize <= 30_000
    assert 5 <= len(engine._cache) <= 13  # 2,048 bytes of numbers each, at least
    engine.embed_text(["purple"])[0, 0] = 77
    assert engine.embed_text(["purple"])[0, 0] != 77
    with pytest.raises(ValueError, match="read-only"):
        engine.embed_item("purple")[0] = 77


def test_a_very_long_text_is_not_remembered(demo_dir):
    engine = Engine(demo_dir)
    engine.embed_text(["a", "long " * 3_000])
    assert list(engine._cache) == ["a"]


def test_many_threads_get_what_one_gets_and_each_tower_opens_once(demo_dir, no_image_tower, monkeypatch):
    opened = []
    genuine = towers.open_tower
    monkeypatch.setattr(
        towers,
        "open_tower",
        lambda graph, threads, **more: opened.append((graph.name, threads)) or genuine(graph, threads, **more),
    )
    engine = Engine(demo_dir)
    texts, blobs = [f"{n % 23} {TEXTS[n % len(TEXTS)]}" for n in range(200)], list(images().values()) * 2
    with ThreadPoolExecutor(16) as pool:
        found_texts = list(pool.map(lambda t: engine.embed_text([t])[0], texts))
        found_images = list(pool.map(lambda b: engine.embed_images([b])[0], blobs))
    alone = Engine(demo_dir)
    np.testing.assert_array_equal(found_texts, alone.embed_text(texts))
    np.testing.assert_array_equal(found_images, alone.embed_images(blobs))
    opened = [(name.split(".")[0], threads) for name, threads in opened if name != model_dir.PROBE]
    assert opened[:2] == [("text", 1), ("image", towers.available_cores())]
    assert len(opened) == 3  # the other engine has the same image tower


def test_an_image_tower_of_one_thread_gives_the_embeddings_of_one_that_takes_every_core(demo_dir, no_image_tower):
    blobs = list(images().values())
    alone, together = Engine(demo_dir, image_threads=1), Engine(demo_dir, image_threads=2)
    np.testing.assert_array_equal(alone.embed_images(blobs), together.embed_images(blobs))
    threads = [e._image.get().get_session_options().intra_op_num_threads for e in (alone, together, Engine(demo_dir))]
    assert threads == [1, 2, towers.available_cores()]


def test_the_tokenizer_opens_beside_the_tower_once_the_files_are_checked(demo_dir, monkeypatch):
    """The tokenizer takes as long to open as the tower, and holds the GIL; the tower does not."""
    checked, tower_begun, tokenizer_begun = threading.Event(), threading.Event(), threading.Event()

    def open_one(*arguments, **more):
        assert checked.is_set()
        tower_begun.set()
        assert tokenizer_begun.wait(PATIENCE_S)
        return open_tower(*arguments, **more)

    def open_other(*arguments):
        assert checked.is_set()
        tokenizer_begun.set()
        assert tower_begun.wait(PATIENCE_S)
        return open_tokenizer(*arguments)

    check, open_tower, open_tokenizer = model_dir.check_sha256, towers.open_tower, engine_module.open_reader

    def check_one(path, manifest, names):
        check(path, manifest, names)
        if model_dir.VOCAB in names:
            checked.set()

    monkeypatch.setattr(towers, "multiplies_signed", lambda probe: True)
    monkeypatch.setattr(model_dir, "check_sha256", check_one)
    monkeypatch.setattr(towers, "open_tower", open_one)
    monkeypatch.setattr(engine_module, "open_reader", open_other)
    Engine(demo_dir).open_text()


def test_towers_open_when_they_are_first_needed(demo_dir):
    engine = Engine(demo_dir)
    assert engine.open_towers == []
    engine.embed_text(["a"])
    assert engine.open_towers == ["text"]
    engine.embed_images([Image.new("RGB", (9, 9))])
    assert engine.open_towers == ["text", "image"]


def test_one_engine_per_directory_and_process(demo_dir, tiny_dir, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(demo_dir)
    with ThreadPoolExecutor(8) as pool:
        engines = set(pool.map(lambda _: engine_for(demo_dir), range(8)))
    assert engines == {engine_for(link)}
    assert engine_for(tiny_dir) not in engines


def test_what_fails_to_open_is_tried_again_and_what_is_open_needs_no_lock():
    attempts = []

    def open_it():
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("not yet")
        return "open"

    lazy = Lazy(open_it)
    with pytest.raises(OSError, match="not yet"):
        lazy.get()
    assert lazy.get() == "open"
    with lazy._lock:  # somebody holds it, and nobody has to wait
        thread = threading.Thread(target=lazy.get)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert len(attempts) == 2


def test_those_who_come_while_it_opens_wait_for_the_first(monkeypatch):
    opened = []
    lazy = Lazy(lambda: time.sleep(0.1) or opened.append(1) or object())
    with ThreadPoolExecutor(8) as pool:
        assert len({id(thing) for thing in pool.map(lambda _: lazy.get(), range(8))}) == 1
    assert opened == [1]

"""`llm clip serve` shows a folder of photos while it embeds it, to this machine alone, and ends cleanly."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
from contextlib import closing, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from made_photos import fill_folder, picture
from patience import PATIENCE_S, has_ended, until
from running_serve import Running, serve
from serving import BIN, environment, run_llm


@pytest.fixture
def env(demo_dir, tmp_path):
    return environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))


@pytest.fixture
def photos(tmp_path) -> Path:
    return fill_folder(tmp_path / "Meine Fotos é写")


def photos_limit() -> None:
    """No file of this process and its children may grow beyond 400 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))


def databases(env: dict[str, str]) -> list[Path]:
    return sorted(Path(env["LLM_USER_PATH"], "clip").glob("*.db"))


def tree(folder: Path) -> list[tuple]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_command_makes_a_folder_searchable_and_a_signal_ends_it(number, photos, env, tmp_path):
    before = tree(photos)
    with serve(photos, env=env, output=tmp_path / "out") as running:
        running.prints("3 photos can be searched")
        assert running.ids() == {"0.jpg", "1.jpg", "2.jpg"}
        assert running.search("red heart")["collection"] == "Meine Fotos é写"
        assert running.end(number) == 0
    assert tree(photos) == before
    [database] = databases(env)
    assert re.fullmatch(r"Meine-Fotos-é写-[0-9a-f]{8}\.db", database.name)
    with sqlite3.connect(database) as conn:
        assert conn.execute("select count(*) from embeddings").fetchone() == (3,)
        assert conn.execute("select count(*) from clip_filling").fetchone() == (0,)
    assert str(photos) not in "".join(conn.iterdump())


def test_ctrl_c_which_reaches_both_processes_ends_both(photos, env, tmp_path):
    with serve(photos, env=env, output=tmp_path / "out") as running:
        running.prints("3 photos can be searched")
        running.prints("Search at")
        [server] = psutil.Process(running.process.pid).children()
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.process.wait(PATIENCE_S) == 0
        assert has_ended(server)
    assert "Error" not in running.text
    assert "Traceback" not in running.text


def test_a_disk_that_is_full_is_said_and_what_was_embedded_stays(env, tmp_path):
    folder = fill_folder(tmp_path / "photos", 400)
    with serve(folder, env=env, output=tmp_path / "out", limit=photos_limit) as running:
        running.prints("photos: .*photos-.*db cannot be written: .*; what was embedded before is kept")
        kept = running.ids()
        assert kept
        assert running.end() == 0
    assert "Traceback" not in running.text
    with serve(folder, env=env, output=tmp_path / "out") as running:
        assert running.prints("400 photos can be searched")
        assert f"{len(kept)} there already" in running.text


def test_names_in_any_alphabet_are_searched_and_a_name_that_is_no_text_is_named(env, tmp_path):
    folder = tmp_path / "фото"
    names = ["写真.jpg", "é è.jpg", "ħ#%?&+.jpg", "🐱.jpg", "line\nbreak.jpg", "-n.jpg", "~tilde'\".jpg"]
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(number))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")).write_bytes(picture(99))
    with serve(folder, env=env, output=tmp_path / "out") as running:
        running.prints(f"{len(names)} photos can be searched")
        assert running.ids() == set(names)
        assert "�.jpg: its name or text is not UTF-8, so SQLite cannot hold it; rename it" in running.text
        assert running.end() == 0


def test_force_embeds_everything_again(photos, env, demo_float32_dir, tmp_path):
    with serve(photos, env=env, output=tmp_path / "out") as running:
        running.prints("3 photos can be searched")
    before = sqlite3.connect(databases(env)[0]).execute("select embedding from embeddings").fetchall()
    other = ["--model-dir", demo_float32_dir, "--force"]
    with serve(photos, *other, env=env, output=tmp_path / "out") as running:
        running.prints("3 photos embedded")
        running.prints("3 photos can be searched")
    assert sqlite3.connect(databases(env)[0]).execute("select embedding from embeddings").fetchall() != before


def test_a_second_start_serves_at_once_and_embeds_only_what_is_new(photos, env, tmp_path):
    with serve(photos, env=env, output=tmp_path / "out") as running:
        running.prints("3 photos can be searched")
    (photos / "new.jpg").write_bytes(picture(7))
    with serve(photos, env=env, output=tmp_path / "out") as running:
        assert running.prints("4 photos: ([0-9]+) embedded")[1] == "1"
        running.prints("4 photos can be searched")
        assert "new.jpg" in running.ids()


def test_datasette_serves_this_machine_alone_and_no_other_origin(photos, env, tmp_path):
    with serve(photos, env=env, output=tmp_path / "out") as running:
        port = httpx.URL(running.url).port
        foreign = httpx.get(running.url, headers={"host": "evil.example"})
        assert (foreign.status_code, "evil.example" in foreign.text) == (421, True)
        own = httpx.get(f"{running.url}.json", headers={"origin": "http://evil.example"})
        assert own.status_code == 200
        assert "access-control-allow-origin" not in own.headers
        assert {c.laddr.ip for c in psutil.net_connections() if c.laddr.port == port and c.status == "LISTEN"} == {
            "127.0.0.1"
        }


def test_it_opens_the_browser_unless_it_is_told_not_to(photos, env, tmp_path):
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened.new && mv {tmp_path}/opened.new {tmp_path}/opened\n')
    browser.chmod(0o755)
    command = [str(BIN / "llm"), "clip", "serve", str(photos), "-p", "0"]
    with (tmp_path / "out").open("w") as stream:
        process = subprocess.Popen(
            command, env=env | {"BROWSER": str(browser)}, stdout=stream, stderr=subprocess.STDOUT
        )
    running = Running(process, tmp_path / "out")
    try:
        until((tmp_path / "opened").exists)
        assert (tmp_path / "opened").read_text() == f"{running.url}\n"
    finally:
        assert running.end() == 0


def test_the_port_that_is_given_must_be_free(photos, env, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_llm("clip", "serve", str(photos), "--no-open", "-p", str(port), env=env, ok=False)
    assert f"port {port} is taken by another program; -p names another port" in done.stderr


def test_two_folders_of_one_name_have_names_of_their_own(env, tmp_path):
    folders = [fill_folder(tmp_path / name / "photos") for name in ("a", "b")]
    with serve(*folders, env=env, output=tmp_path / "out") as running:
        running.prints("b/photos: 3 photos can be searched")
        listed = httpx.get(f"{running.url}-/clip/search").text
        assert "photos: 3 photos can be searched" in running.text
        assert len({*re.findall(r'/-/clip/search/([^/"]+/[^/"?]+)"', listed)}) == 2
    assert len(databases(env)) == 2


def test_a_collection_of_another_folder_is_not_filled(env, tmp_path):
    one, other = fill_folder(tmp_path / "a"), fill_folder(tmp_path / "b")
    named = ["-d", str(tmp_path / "photos.db"), "-c", "photos"]
    with serve(one, *named, env=env, output=tmp_path / "out") as running:
        running.prints("3 photos can be searched")
    done = run_llm("clip", "serve", str(other), "--no-open", *named, env=env, ok=False)
    assert f"the collection 'photos' of {tmp_path}/photos.db is of the folder {one}" in done.stderr


def test_of_two_runs_at_once_the_second_one_serves_and_does_not_embed(photos, env, tmp_path):
    with serve(photos, env=env, output=tmp_path / "out") as first:
        first.prints("3 photos can be searched")
        (photos / "new.jpg").write_bytes(picture(7))
        with serve(photos, env=env, output=tmp_path / "second") as second:
            second.prints("Meine Fotos é写: another `llm clip serve` embeds it; this one only serves it")
            assert second.ids() == {"0.jpg", "1.jpg", "2.jpg"}
            assert second.end() == 0
        assert first.ids() == {"0.jpg", "1.jpg", "2.jpg"}


def test_without_a_model_it_says_how_to_make_one(photos, env, tmp_path):
    env = env | {"CLIP_MODEL_DIR": str(tmp_path / "none")}
    done = run_llm("clip", "serve", str(photos), "--no-open", env=env, ok=False)
    assert f"llm clip bake --to {tmp_path}/none" in done.stderr
    assert "make photos DIR=" in done.stderr
    assert not databases(env)


def test_what_is_gone_leaves_and_what_moved_keeps_its_vector(photos, env, tmp_path):
    with serve(photos, env=env, output=tmp_path / "out") as running:
        running.prints("3 photos can be searched")
    (photos / "0.jpg").unlink()
    (photos / "1.jpg").rename(photos / "moved.jpg")
    with serve(photos, env=env, output=tmp_path / "out") as running:
        running.prints("2 photos can be searched")
        assert running.ids() == {"2.jpg", "moved.jpg"}
        assert running.prints("2 photos: 1 moved")


def test_a_folder_that_lost_its_photos_keeps_its_collection(photos, env, tmp_path):
    with serve(photos, env=env, output=tmp_path / "out") as running:
        running.prints("3 photos can be searched")
    photos.rename(tmp_path / "elsewhere")
    photos.mkdir()  # as a mount point whose disk is not there
    with serve(photos, env=env, output=tmp_path / "out") as running:
        running.prints(f"there are no photos in {photos}; what is in the collection stays")
        assert running.ids() == {"0.jpg", "1.jpg", "2.jpg"}


def test_without_a_photo_it_ends_with_a_sentence(env, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("a note")
    done = run_llm("clip", "serve", str(tmp_path / "none"), "--no-open", "-p", "0", env=env, ok=False)
    assert f"none: there are no photos in {tmp_path}/none (1 file not looked at: 1 .txt)" in done.stderr
    assert "there is nothing to search: no photo has been embedded" in done.stderr
    assert "Search at" not in done.stderr


def test_watching_follows_the_folder(env, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    with serve(folder, "--watch", env=env, output=tmp_path / "out") as running:
        running.prints("there are no photos")
        fill_folder(tmp_path / "made")
        (tmp_path / "made").rename(folder / "new")  # all at once, so that no look at the folder meets a part of them
        running.prints("3 photos can be searched")
        assert running.ids() == {"new/0.jpg", "new/1.jpg", "new/2.jpg"}
        (folder / "new" / "0.jpg").unlink()
        running.prints("2 photos can be searched")
        assert running.ids() == {"new/1.jpg", "new/2.jpg"}
        assert running.end() == 0


def test_databases_are_served_beside_folders_and_are_not_written(photos, env, tmp_path):
    other = tmp_path / "other.db"
    run_llm("clip", "embed", str(photos), "-d", str(other), "-c", "others", env=env)
    before = other.read_bytes()
    with serve(other, photos, env=env, output=tmp_path / "out") as running:
        running.prints("3 photos can be searched")
        named = {database["name"] for database in httpx.get(f"{running.url}-/databases.json").json()}
        assert {"other", databases(env)[0].stem} <= named
    assert other.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"SQLite", b"\xff\xd8\xff\xe0" * 9])
def test_a_file_that_is_no_database_is_said_before_anything_starts(content, photos, env, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(content)
    done = run_llm("clip", "serve", str(photos), str(tmp_path / "photo.jpg"), "--no-open", env=env, ok=False)
    assert done.stderr == f"Error: {tmp_path}/photo.jpg is neither a folder of photos nor a SQLite file\n"
    assert not databases(env)


def first_id(database: Path) -> str | None:
    """The id of the row that was written first, None if there is none yet."""
    with closing(sqlite3.connect(database)) as conn, suppress(sqlite3.OperationalError):
        return next((id for (id,) in conn.execute("select id from embeddings order by rowid limit 1")), None)
    return None


def url_of_server(running: Running, database: Path) -> str:
    """The URL of a search in a database's photos, once Datasette listens: also while the command itself is stopped."""
    [server] = psutil.Process(running.process.pid).children()
    command = server.cmdline()
    port = command[command.index("-p") + 1]

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(port))) == 0

    until(listens)
    return f"http://127.0.0.1:{port}/-/clip/search/{database.stem}/photos.json?q=red+heart&k=500"


def test_the_newest_photos_are_searched_while_older_ones_are_embedded(env, tmp_path):
    """The progress is in the database until the end, and a signal keeps what was embedded."""
    folder = fill_folder(tmp_path / "photos", 400)
    for number in range(400):
        os.utime(folder / f"{number}.jpg", (number, number))
    with serve(folder, env=env, output=tmp_path / "out") as running:
        [database] = until(lambda: databases(env))
        first = until(lambda: first_id(database))
        running.process.send_signal(signal.SIGSTOP)  # the command alone; Datasette goes on
        with closing(sqlite3.connect(database)) as conn:
            [(name, done, total, bad)] = conn.execute("select collection, done, total, bad from clip_filling")
            [(rows,)] = conn.execute("select count(*) from embeddings")
        found = {row["id"] for row in httpx.get(url_of_server(running, database)).json()["results"]}
        assert (first, name, total, bad) == ("399.jpg", "photos", 400, 0)
        assert 0 <= done < 400
        assert len(found) == rows < 400
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGCONT)
        assert running.process.wait(PATIENCE_S) == 0
        with closing(sqlite3.connect(database)) as conn:
            kept = {id for (id,) in conn.execute("select id from embeddings")}
            assert conn.execute("select count(*) from clip_filling").fetchone() == (0,)
    assert found <= kept
    assert "0.jpg" not in kept  # it was ended midway
    with serve(folder, env=env, output=tmp_path / "out") as running:
        running.prints("400 photos can be searched")


def test_the_server_knows_the_folders_and_the_database_does_not(photos, env, tmp_path):
    with serve(photos, env=env, output=tmp_path / "out") as running:
        running.prints("3 photos can be searched")
        [server] = psutil.Process(running.process.pid).children()
        originals = json.loads(server.environ()["CLIP_ORIGINALS"])
        [database] = databases(env)
        assert originals == {database.stem: {"Meine Fotos é写": str(photos)}}
        assert "--cors" not in server.cmdline()

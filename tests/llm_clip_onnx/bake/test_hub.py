"""`llm clip bake owner/name` fetches from a stand-in of the hub the files it needs, and reports why it cannot."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tomllib
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from conftest import ROOT
from hub_standin import COMMIT, Cut, HubStandIn, Refusal, Request
from llm_clip_onnx.bake import families, layout
from llm_clip_onnx.bake.hub import reason
from llm_clip_onnx.bake.layout import needed_files
from llm_clip_onnx.errors import CheckpointError, ModelDirError
from llm_clip_onnx.model_dir import Source, read_manifest, rebake_hint
from llm_clip_onnx.open_clip_tokenizer import EXTRA
from open_clip_checkpoint import write_open_clip
from patience import PATIENCE_S
from random_checkpoint import TINY, write_checkpoint
from siglip_checkpoint import write_siglip
from text_tower_checkpoint import TINY as TINY_TEXT
from text_tower_checkpoint import write_text_tower

ID = "owner/name"
CLIP_FILES = {
    *("config.json", "vocab.json", "merges.txt", "tokenizer_config.json", "preprocessor_config.json"),
    "model.safetensors",
}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
DECOYS = (
    "pytorch_model.bin",
    "tf_model.h5",
    "flax_model.msgpack",
    "onnx/model.onnx",
    "README.md",
    "1_Dense/config.json",
)
CHUNK_BYTES = 10 * 1024 * 1024  # huggingface_hub writes a file in such pieces


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Path:
    """A tiny checkpoint, for images of 64 pixels, which bake a second faster than 224."""
    small = TINY | {"vision": TINY["vision"] | {"image_size": 64}}
    return with_decoys(write_checkpoint(tmp_path_factory.mktemp("plain") / "repository", **small))


@pytest.fixture(scope="session")
def sentence_transformers(plain, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sentence-transformers") / "repository"
    shutil.copytree(plain, folder / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([module]))
    return with_decoys(folder)


@pytest.fixture(scope="session")
def open_clip(plain, tmp_path_factory) -> Path:
    folder = write_open_clip(tmp_path_factory.mktemp("open-clip") / "repository", plain)
    shutil.copy(plain / "merges.txt", folder)
    (folder / "config.json").write_text('{"architecture": "vit_base_patch32_clip_224"}')  # timm's: no model_type
    return with_decoys(folder)


@pytest.fixture(scope="session")
def sharded(plain, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "repository"
    shutil.copytree(plain, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: SHARDS[name.startswith("vision")] for name in tensors}
    for shard in SHARDS:
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def with_decoys(folder: Path) -> Path:
    for name in DECOYS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not needed")
    return folder


@pytest.fixture
def hub(plain):
    with HubStandIn(plain) as hub:
        yield hub


def bake(
    home: Path, endpoint: str, *args: str, limit_bytes: int | None = None, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess:
    """Run `llm clip bake` as users do, with its files under `home` and only our plugin loaded."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "LLM_", "CLIP_"))}
    own |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    own |= {"LLM_USER_PATH": str(home), "LLM_LOAD_PLUGINS": "datasette-clip", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "llm", "clip", "bake", "--precision", "fp32", "--to", str(home / "out" / "model")]

    def limit() -> None:
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    how = {"preexec_fn": limit, "capture_output": True, "text": True, "timeout": PATIENCE_S}
    return subprocess.run([*command, *args], env=own | env, cwd=cwd, **how)


def check_refused(result: subprocess.CompletedProcess, home: Path, sentence: str) -> None:
    """Asserts that the command ended with 1 and only this message, and left nothing at the target or beside it."""
    lines = result.stderr.splitlines()
    assert (result.returncode, lines[-1]) == (1, f"Error: {sentence}"), result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (home / "out").exists() or list((home / "out").iterdir()) == []


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("layout", "needed", "weights"),
    [
        ("plain", CLIP_FILES, ["model.safetensors"]),
        (
            "sentence_transformers",
            {"modules.json"} | {f"0_CLIPModel/{name}" for name in CLIP_FILES},
            ["0_CLIPModel/model.safetensors"],
        ),
        (
            "open_clip",
            {"config.json", "open_clip_config.json", "open_clip_model.safetensors", "merges.txt"},
            ["open_clip_model.safetensors"],
        ),
        ("sharded", CLIP_FILES - {"model.safetensors"} | {"model.safetensors.index.json", *SHARDS}, SHARDS),
    ],
)
def test_a_bake_fetches_what_it_needs_and_says_what_it_got(layout, needed, weights, request, tmp_path):
    folder = request.getfixturevalue(layout)
    with HubStandIn(folder) as hub:
        result = bake(tmp_path, hub.url, ID, HF_TOKEN="hf_secret")
    assert result.returncode == 0, result.stderr
    assert sorted(hub.asked("GET")) == sorted(hub.asked("HEAD")) == sorted(needed)  # each once
    assert hub.requests[0] == Request("GET", f"/api/models/{ID}", None, "Bearer hf_secret")
    assert {request.authorization for request in hub.requests} == {"Bearer hf_secret"}
    expected = Source(ID, COMMIT, {name: sha256(folder / name) for name in weights}, None)
    assert read_manifest(tmp_path / "out" / "model").source == expected


TEXT_TOWER_FILES = {
    *("modules.json", "config.json", "sentence_bert_config.json", "tokenizer_config.json", "vocab.txt"),
    *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "model.safetensors"),
}


def test_of_a_text_tower_the_three_modules_are_fetched(plain, tmp_path):
    folder = with_decoys(write_text_tower(tmp_path / "repository", TINY_TEXT))
    with HubStandIn(folder) as hub:
        result = bake(tmp_path, hub.url, ID, "--images", str(plain))
    assert result.returncode == 0, result.stderr
    assert sorted(hub.asked("GET")) == sorted(TEXT_TOWER_FILES)  # each once
    manifest = read_manifest(tmp_path / "out" / "model")
    weights = ("model.safetensors", "2_Dense/model.safetensors")
    assert manifest.source == Source(ID, COMMIT, {name: sha256(folder / name) for name in weights}, None)
    assert manifest.images == Source(str(plain), None, {weights[0]: sha256(plain / weights[0])}, None)


def test_the_images_of_a_text_tower_have_a_revision_of_their_own_which_is_kept(hub, plain, tmp_path):
    text = str(write_text_tower(tmp_path / "text", TINY_TEXT))
    result = bake(tmp_path, hub.url, text, "--images", ID, "--images-revision", "main")
    assert result.returncode == 0, result.stderr
    assert hub.requests[0].path == f"/api/models/{ID}/revision/main"
    path = tmp_path / "out" / "model"
    manifest = read_manifest(path)
    expected = Source(ID, COMMIT, {"model.safetensors": sha256(hub.folder / "model.safetensors")}, None)
    assert manifest.images == expected
    assert rebake_hint(path, manifest) == (
        f"bake again with llm clip bake {text} --images {ID} --images-revision {COMMIT} --to {path} --force"
    )
    both = replace(manifest, source=Source("owner/text", "0123", {}, None))
    assert "llm clip bake owner/text --revision 0123 --images " in rebake_hint(path, both)
    folder = bake(tmp_path, hub.url, text, "--images", str(plain), "--images-revision", "main", "--force")
    assert f"--images-revision main goes with a hub id; {plain} is a folder" in folder.stderr
    alone = bake(tmp_path, hub.url, str(plain), "--images-revision", "main", "--force")
    assert f"--images-revision main goes with a text tower alone; {plain} has an image tower" in alone.stderr


def test_a_text_tower_that_cannot_be_baked_is_refused_before_its_weights_are_fetched(plain, tmp_path):
    folder = write_text_tower(tmp_path / "repository", TINY_TEXT)
    pooling = folder / "1_Pooling/config.json"
    pooling.write_text(json.dumps({"pooling_mode": "cls"}))
    with HubStandIn(folder) as hub:
        result = bake(tmp_path, hub.url, ID, "--images", str(plain))
    assert "1_Pooling/config.json says pooling_mode" in result.stderr
    assert not [path for path in hub.asked("GET") if path.endswith(".safetensors")]


def test_a_download_whose_connection_closes_goes_on_where_it_was(hub, tmp_path):
    hub.cuts["model.safetensors"] = Cut(after_bytes=CHUNK_BYTES + 1000)
    result = bake(tmp_path, hub.url, ID, "--revision", "main")
    assert result.returncode == 0, result.stderr
    assert hub.requests[0].path == f"/api/models/{ID}/revision/main"
    weights = [r.range for r in hub.requests if r.method == "GET" and r.path.endswith("model.safetensors")]
    assert weights == [None, f"bytes={CHUNK_BYTES}-"]
    expected = Source(ID, COMMIT, {"model.safetensors": sha256(hub.folder / "model.safetensors")}, None)
    assert read_manifest(tmp_path / "out" / "model").source == expected


def test_a_download_whose_connection_is_reset_is_made_again_by_the_next_run(hub, tmp_path):
    hub.cuts["model.safetensors"] = Cut(after_bytes=CHUNK_BYTES, reset=True)
    result = bake(tmp_path, hub.url, ID)
    check_refused(
        result,
        tmp_path,
        f"{ID}: the connection to {hub.url} failed, [Errno 104] Connection reset by peer; try again, or give a folder",
    )
    hub.requests.clear()
    assert bake(tmp_path, hub.url, ID).returncode == 0
    assert hub.asked("GET") == ["model.safetensors"]  # the other files stayed in the cache
    assert read_manifest(tmp_path / "out" / "model").source.revision == COMMIT


@pytest.mark.parametrize(
    ("start", "refusal", "sentence"),
    [
        (
            f"/api/models/{ID}",
            Refusal(401, message="Invalid credentials in Authorization header"),
            f"{ID}: the hub answered 401, Invalid credentials in Authorization header; check HF_TOKEN",
        ),
        (
            f"/api/models/{ID}",
            Refusal(401, "RepoNotFound", "Invalid username or password."),
            f"{ID}: the hub has no such model, or shows it only to some; check the id, or set HF_TOKEN",
        ),
        (
            f"/{ID}/resolve/{COMMIT}/config.json",  # of a gated repository anyone may see what is in it
            Refusal(401, "GatedRepo", f"Access to model {ID} is restricted."),
            f"{ID}: the hub asks for permission to read it; accept its terms there and set HF_TOKEN",
        ),
        (
            f"/{ID}/resolve/{COMMIT}/config.json",
            Refusal(403, "GatedRepo", f"Access to model {ID} is restricted and you are not in the authorized list."),
            f"{ID}: the hub asks for permission to read it; accept its terms there and set HF_TOKEN",
        ),
        (
            f"/api/models/{ID}",
            Refusal(503),
            f"{ID}: the hub answered 503, Service Unavailable; try again later",
        ),
        (
            "/",
            Refusal(200),  # a page of something else
            "{id}: what answers at {url} is no hub; check HF_ENDPOINT",
        ),
    ],
    ids=lambda value: f"{value.status} {value.code}" if isinstance(value, Refusal) else "",
)
def test_a_refusal_of_the_hub_is_a_sentence(start, refusal, sentence, hub, tmp_path):
    hub.refusals[start] = refusal
    check_refused(bake(tmp_path, hub.url, ID), tmp_path, sentence.format(id=ID, url=hub.url))


@pytest.mark.parametrize(
    ("args", "env", "sentence"),
    [
        (
            ["owner/other"],
            {},
            "owner/other: the hub has no such model, or shows it only to some; check the id, or set HF_TOKEN",
        ),
        (
            [ID, "--revision", "v9/x"],
            {},
            f"{ID}: the hub has no revision 'v9/x' of it; expected a branch, a tag or a commit",
        ),
        (["no/such/id"], {}, "no/such/id: neither a folder that is there nor a hub id such as owner/name"),
        (
            [ID],
            {"HF_HUB_OFFLINE": "1"},
            f"{ID}: HF_HUB_OFFLINE is set, so the hub is not asked; unset it, or give a folder",
        ),
    ],
    ids=["404 repository", "404 revision", "invalid id", "HF_HUB_OFFLINE"],
)
def test_what_was_asked_for_in_vain_is_a_sentence(args, env, sentence, hub, tmp_path):
    check_refused(bake(tmp_path, hub.url, *args, **env), tmp_path, sentence)
    assert hub.asked("GET") == []


def test_no_hub_at_the_endpoint_is_a_sentence_at_once(tmp_path):
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    check_refused(
        bake(tmp_path, url, ID),
        tmp_path,
        f"{ID}: the connection to {url} failed, [Errno 111] Connection refused; try again, or give a folder",
    )


def test_a_hub_that_never_answers_is_given_up(hub, tmp_path):
    hub.answering.clear()
    result = bake(tmp_path, hub.url, ID, HF_HUB_ETAG_TIMEOUT="1")  # s; 10 by default
    check_refused(result, tmp_path, f"{ID}: the connection to {hub.url} failed, timed out; try again, or give a folder")


def test_a_file_that_arrives_short_is_a_sentence_and_fetched_again_by_the_next_run(hub, tmp_path):
    content = (hub.folder / "model.safetensors").read_bytes()
    hub.sent["model.safetensors"] = content[:-1000]
    sentence = "{}: model.safetensors arrived damaged, {:,} bytes where the hub says {:,}; try again"
    refused = sentence.format(ID, len(content) - 1000, len(content))
    check_refused(bake(tmp_path, hub.url, ID), tmp_path, refused)
    hub.sent.clear()
    assert bake(tmp_path, hub.url, ID).returncode == 0
    assert hub.asked("GET").count("model.safetensors") == 2


def test_a_file_with_a_bit_flipped_is_a_sentence_and_gone_from_the_cache(hub, tmp_path):
    content = (hub.folder / "model.safetensors").read_bytes()
    hub.sent["model.safetensors"] = damaged = content[:-1] + bytes([content[-1] ^ 1])
    found, expected = (hashlib.sha256(these).hexdigest()[:12] for these in (damaged, content))
    check_refused(
        bake(tmp_path, hub.url, ID),
        tmp_path,
        f"{ID}: model.safetensors arrived damaged, sha256 {found}... where the hub says {expected}...; try again",
    )
    assert list((tmp_path / "hf" / "hub").rglob("model.safetensors")) == []
    assert [blob for blob in (tmp_path / "hf" / "hub").rglob("blobs/*") if blob.stat().st_size == len(content)] == []


@pytest.mark.parametrize("source", ["tinyclip-40m-32", "wkcn/TinyCLIP-ViT-40M-32-Text-19M-LAION400M"])
def test_a_model_of_the_catalogue_is_fetched_by_its_id_or_hub_id_and_the_manifest_has_its_id(source, hub, tmp_path):
    (tmp_path / "tinyclip-40m-32").mkdir()  # a folder of that name is not what the id means
    hub.id = "wkcn/TinyCLIP-ViT-40M-32-Text-19M-LAION400M"
    result = bake(tmp_path, hub.url, source, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    told = "tinyclip-40m-32 is the catalogue's; the folder of that name is ./tinyclip-40m-32"
    assert (told in result.stderr) == (source == "tinyclip-40m-32")
    manifest = read_manifest(tmp_path / "out" / "model")
    assert (manifest.id, manifest.source.id, manifest.source.revision) == ("tinyclip-40m-32", hub.id, COMMIT)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("blip", "config.json says 'blip'; only 'clip' and 'siglip', with both their towers, can be baked"),
        (
            "siglip2",
            "config.json says model_type siglip2, which reads images of any shape (NaFlex); a bake reads one size; "
            "expected a SigLIP 2 with its size in its name, such as google/siglip2-base-patch32-256",
        ),
    ],
)
def test_what_is_no_clip_is_refused_before_its_weights_are_fetched(kind, sentence, plain, tmp_path):
    shutil.copytree(plain, tmp_path / "repository")
    (tmp_path / "repository" / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    with HubStandIn(tmp_path / "repository") as hub:
        result = bake(tmp_path, hub.url, ID)
    check_refused(result, tmp_path, f"{ID}: {sentence}")
    assert hub.asked("GET") == ["config.json"]


def test_a_repository_without_a_config_is_refused(tmp_path):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "README.md").write_text("nothing here")
    with HubStandIn(tmp_path / "repository") as hub:
        result = bake(tmp_path, hub.url, ID)
    check_refused(
        result,
        tmp_path,
        f"{ID}: the hub has no config.json in it; "
        "expected a checkpoint in Hugging Face's, sentence-transformers' or open_clip's layout",
    )


def test_a_full_disk_is_a_sentence_when_the_cache_is_written(hub, tmp_path):
    """RLIMIT_FSIZE makes a real write fail as a full disk does, with EFBIG for ENOSPC."""
    cache = tmp_path / "hf" / "hub"
    check_refused(
        bake(tmp_path, hub.url, ID, limit_bytes=2_000_000),
        tmp_path,
        f"{ID}: the hub's cache {cache} cannot be written, File too large; make room, or set HF_HOME to another folder",
    )


def test_a_full_disk_is_a_sentence_when_the_model_directory_is_written(plain, tmp_path):
    result = bake(tmp_path, "http://127.0.0.1:9", str(plain), limit_bytes=2_000_000)
    check_refused(
        result,
        tmp_path,
        f"{tmp_path}/out/model cannot be written: File too large; make room, or choose another folder with --to",
    )


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (  # after 23 s of retries
            caused(LocalEntryNotFoundError("An error happened while trying to locate"), HTTPError("timed out")),
            f"the connection to {ENDPOINT} failed, timed out; try again, or give a folder",
        ),
        (  # hf_xet's, of which the stand-in has nothing
            RuntimeError("Data processing error: CAS service error\n\nCaused by: ..."),
            "fetching it failed, Data processing error: CAS service error; try again",
        ),
    ],
    ids=["no answer about a file", "xet"],
)
def test_reasons_that_take_long_to_bring_about(error, sentence):
    assert reason(error, revision=None) == sentence


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        (
            {*CLIP_FILES, "processor_config.json", "pytorch_model.bin", "NOTICE.txt", "sentence_bert_config.json"},
            {*CLIP_FILES, "processor_config.json", "NOTICE.txt"},
        ),
        (
            {"config.json", "tokenizer.json", "added_tokens.json", "special_tokens_map.json", "model.safetensors"},
            {"config.json", "tokenizer.json", "added_tokens.json", "special_tokens_map.json", "model.safetensors"},
        ),
        (
            {*CLIP_FILES, "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"},
            {*CLIP_FILES, "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"},
        ),
    ],
)
def test_needed_files(names, needed):
    assert set(needed_files(names, PurePosixPath(""), get=None, source=ID)) == needed


def test_weights_that_cannot_be_read_are_named_before_anything_is_fetched():
    names = {"config.json", "other/model.safetensors", "open_clip_model.safetensors"}
    with pytest.raises(
        CheckpointError, match=r"^owner/name: no weights; .*; found open_clip_model.safetensors, open_clip"
    ):
        needed_files(names, PurePosixPath(""), get=None, source=ID)


def test_pickled_weights_are_not_fetched_where_torch_is_not(monkeypatch):
    monkeypatch.setattr(layout.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"the weights are in pytorch_model.bin, which only torch reads"):
        needed_files({"config.json", "pytorch_model.bin"}, PurePosixPath(""), get=None, source=ID)


def test_what_open_clips_layout_needs_here_is_missed_before_its_weights_are_fetched(open_clip, monkeypatch):
    """The files are named before they are fetched, so what is raised here is raised before."""
    names, config = {"open_clip_config.json", "open_clip_model.safetensors"}, open_clip / "open_clip_config.json"
    monkeypatch.setattr(families.open_clip, "merges_of_package", lambda: [])
    with pytest.raises(
        CheckpointError, match=r"^owner/name: CLIP's merges.txt is needed, which open_clip has in itself"
    ):
        families.open_clip.needed_files(names, config, "owner/name")
    wanted = families.open_clip.needed_files(names | {"merges.txt"}, config, "owner/name")
    assert wanted == ["open_clip_model.safetensors", "merges.txt"]
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ModelDirError, match=r"needs ftfy to read texts: pip install 'datasette-clip\[open-clip\]'$"):
        families.open_clip.needed_files(names | {"merges.txt"}, config, "owner/name")


def test_the_extra_bake_brings_what_open_clips_layout_needs():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"datasette-clip[{EXTRA}]" in extras["bake"]
    assert [each.split(">")[0] for each in extras[EXTRA]] == ["ftfy"]


def test_a_siglip_is_fetched_and_baked(tmp_path):
    write_siglip(tmp_path / "repository", 2)
    (tmp_path / "repository" / "spiece.model").write_bytes(b"not read")
    with HubStandIn(tmp_path / "repository") as hub:
        result = bake(tmp_path, hub.url, ID)
    assert result.returncode == 0, result.stderr
    assert not any("spiece.model" in path for path in hub.asked("GET"))

"""Builds the Dockerfile without a Docker daemon or a registry: with buildah, as root, in a cache folder of its own.

The base image is a stand-in: Debian's Python under the official image's name and, like the official one, without
bytecode of the standard library. pip in a build finds packages where pip on this machine finds them. containers.py
runs what is built here.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = {"CLIP_MODEL": "demo/checkpoint", "LABELS": "demo/emoji.txt"}  # build arguments
QUICK_DEMO = DEMO | {"VERIFY": "0"}  # does not run llm clip verify in the build
TOOLS = ("buildah", "podman", "runc", "mmdebstrap")
SUITES = {"3.11": "bookworm", "3.13": "trixie"}  # Python of the image: the Debian that has it
PACKAGES = "ca-certificates,netbase,tzdata,python3,python3-venv"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datasette-clip-containers"
STORAGE = f"""[storage]
driver = "overlay"
graphroot = "{CACHE}/storage"
runroot = "{CACHE}/run"
"""
CONTAINERS = """[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""  # crun refuses hybrid cgroups
# Python by both its names in /usr/local, pip beside it, removable, and no bytecode.
LIKE_THE_OFFICIAL_IMAGE = """
export PIP_NO_CACHE_DIR=1
rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
for wheel in /usr/share/python-wheels/pip-*.whl; do python3 "$wheel/pip" install -q --no-index "$wheel"; done
for name in python python3; do ln -s /usr/bin/python3 "/usr/local/bin/$name"; done
find /usr/lib/python3* /usr/local/lib -name '*.pyc' -delete
rm -rf /var/cache/apt/* /var/lib/apt/lists/*
"""
PIP_LISTS, PIP_SINGLES = ("extra-index-url", "find-links", "trusted-host"), ("index-url", "cert")


def why_not() -> str | None:
    """The reason why containers cannot be built here, with what to install, or None if they can."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        return f"THE CONTAINER IS NOT TESTED without {', '.join(missing)}; on Debian: apt install {' '.join(TOOLS)}"
    return None if os.geteuid() == 0 else "THE CONTAINER IS NOT TESTED: only root may build and run one"


@cache
def environment() -> dict[str, str]:
    """Environment variables that make the tools use the cache folder and its configuration."""
    CACHE.mkdir(parents=True, exist_ok=True)
    (CACHE / "storage.conf").write_text(STORAGE)
    (CACHE / "containers.conf").write_text(CONTAINERS)
    own = {"CONTAINERS_STORAGE_CONF": "storage.conf", "CONTAINERS_CONF": "containers.conf"}
    return os.environ | {variable: str(CACHE / name) for variable, name in own.items()}


def run(*command: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a tool and return the finished process. Raises RuntimeError if `ok` and its exit code is not 0."""
    words, own = ["nice", *map(str, command)], environment()
    # In the cache folder: podman leaves a file `oom` in its working folder if a container runs out of memory.
    done = subprocess.run(words, env=own, cwd=CACHE, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ok and done.returncode:
        output = (done.stdout + done.stderr)[-8000:]
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{output}")
    return done


def exists(image: str) -> bool:
    return run("podman", "image", "exists", image, ok=False).returncode == 0


def stand_in(python: str) -> str:
    """The name of the base image for a version of Python. Makes it from Debian's packages if it does not exist."""
    image, suite = f"localhost/python:{python}-slim", SUITES[python]
    archive = CACHE / f"{suite}.tar"
    if exists(image):
        return image
    if not archive.exists():
        left_out = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
        part = CACHE / f".{suite}.tar"
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", *left_out, suite, part)
        part.rename(archive)
    container = run("buildah", "from", "scratch").stdout.strip()
    run("buildah", "add", "-q", container, archive, "/")
    run("buildah", "run", "--isolation", "chroot", container, "--", "sh", "-ec", LIKE_THE_OFFICIAL_IMAGE)
    settings = ["--env", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "--env", "LANG=C.UTF-8"]
    run("buildah", "config", *settings, "--cmd", "python3", container)
    run("buildah", "commit", "-q", "--rm", container, image)
    return image


def pip_settings() -> dict[str, list[str]]:
    """pip's settings on this machine for package indexes and certificates: setting -> values."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, list[str]] = {}
    for line in listed.stdout.splitlines():  # NAME='VALUE'; a later line overrules an earlier one
        name, _, value = line.partition("=")
        setting, words = name.rpartition(".")[2], json.loads(f'"{value[1:-1]}"').split()
        if setting in PIP_LISTS:
            settings[setting] = [*dict.fromkeys([*settings.get(setting, []), *words])]
        elif setting in PIP_SINGLES:
            settings[setting] = words
    if certificates := os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile:
        settings.setdefault("cert", [certificates])
    return settings


@cache
def pip_of_this_machine() -> list[str]:
    """Volumes by which pip in a build finds packages as pip does here: its configuration and the folders it names."""
    environment()
    settings = pip_settings()
    configuration = CACHE / "pip.conf"
    configuration.write_text("\n".join(["[global]", *(f"{key} = {' '.join(settings[key])}" for key in settings), ""]))
    places = {Path(word.removeprefix("file://")) for words in settings.values() for word in words}
    # An index in a folder `simple` may refer to files beside that folder.
    places = {place.parent if place.name == "simple" else place for place in places if place.is_absolute()}
    volumes = [f"{configuration}:/etc/pip.conf:ro", *(f"{p}:{p}:ro" for p in sorted(places) if p.exists())]
    return [option for volume in volumes for option in ("--volume", volume)]


@cache
def forget_old_layers() -> None:
    """Delete layers that no image uses and that are over a day old: otherwise the cache folder only grows."""
    run("podman", "image", "prune", "--force", "--filter", "until=24h", ok=False)


def build(
    image: str, context: Path, *, python: str = "3.13", target: str = "", ok: bool = True, **arguments: str
) -> subprocess.CompletedProcess[str]:
    """Build `image`, or only up to the stage `target`, with build arguments: the finished process."""
    forget_old_layers()
    stand_in(python)
    options = [f"--build-arg={name}={value}" for name, value in {"PY": python, **arguments}.items()]
    options += [f"--target={target}"] if target else []
    how = ["--isolation", "chroot", "--network", "host", "--pull-never", "--format", "docker", "--layers", "--force-rm"]
    return run("buildah", "bud", *how, *pip_of_this_machine(), *options, "-t", image, context, ok=ok)


def copy_context(to: Path) -> Path:
    """Copy the files that git tracks, and those it would add, to the folder `to`, and return `to`."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def size_bytes(image: str) -> int:
    """Uncompressed size of all layers of an image."""
    return int(run("podman", "image", "inspect", "--format", "{{.Size}}", image).stdout)

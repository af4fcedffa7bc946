"""What the benches of this room share: folders of made photos, and commands that run as an installed `llm` does.

python -m bench.photos.inputs FOLDER WIDTH HEIGHT COUNT     writes the photos, in a process of its own for its memory
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.harness import ROOT
from bench.harness.turns import Figures
from serving import environment

DIFFERENT = 20  # large images take a second each to make


def write_photos(folder: Path, width: int, height: int, count: int) -> Path:
    """Write JPEGs to a new folder. Large ones repeat, with other bytes at the end of the file."""
    from bench.harness.inputs import jpegs

    folder.mkdir(parents=True)
    photos = jpegs(width, height, min(count, DIFFERENT) if width > 1000 else count)
    for number in range(count):
        again, which = divmod(number, len(photos))
        (folder / f"{number:04}.jpg").write_bytes(photos[which] + bytes(again))
    return folder


def photos_in(folder: Path, width: int, height: int, count: int) -> Path:
    """The same by another process: Linux counts the memory of this one as that of the commands that it starts."""
    words = [sys.executable, "-m", "bench.photos.inputs", folder, width, height, count]
    subprocess.run([*map(str, words)], cwd=ROOT, check=True)
    return folder


def as_installed(place: Path, **more: str) -> dict[str, str]:
    """The environment of a command whose home is `place`, with an `llm` folder of its own.

    Python keeps its compiled modules there, as pip keeps those of an installed package, even if
    PYTHONDONTWRITEBYTECODE is set where the bench runs.
    """
    env = environment(place / "llm", HOME=str(place), PYTHONPYCACHEPREFIX=str(place / "compiled")) | more
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return env


def run(command: list[Any], env: dict[str, str], cwd: Path | None = None) -> tuple[Figures, str]:
    """Wall and CPU seconds and the peak memory of a command, and what it printed. Raises RuntimeError if it fails."""
    place = Path(env["HOME"])
    printed, log = place / "printed", place / "log"
    with printed.open("w") as output, log.open("w") as errors:
        begun_s = time.perf_counter()
        process = subprocess.Popen([*map(str, command)], env=env, cwd=cwd or place, stdout=output, stderr=errors)
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - begun_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        words = " ".join(log.read_text().split())[-300:]
        raise RuntimeError(f"{Path(command[0]).name} ended with {process.returncode}: {words}")
    cpu_s = used.ru_utime + used.ru_stime
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": 1024 * used.ru_maxrss / 1e6}, printed.read_text()


if __name__ == "__main__":
    write_photos(Path(sys.argv[1]), *map(int, sys.argv[2:]))

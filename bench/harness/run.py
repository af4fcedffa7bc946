"""Runs the benches, all or those named, one after the other, and keeps the results of each room in one file.

    python bench/harness/run.py [NAME ...] [--quick] [--here]     --list prints the names
    python bench/harness/run.py --keep FILE ...                   takes in results that were written with --to NAME.json

bench/ROOM/results.json holds the versions in each environment, and under `benches` the results of each bench with its
date, command and machine, because they need not be of one day. A bench runs in a process and a session of its own, in
its environment (the Makefile makes them), or with --here in the Python that runs this. If a bench fails, the others
follow, and the last line names it. Ctrl-C or SIGTERM ends the bench and all that it started. This script measures
nothing, and needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DRAWING = ".venv-bench"  # the environment with matplotlib
TO_END_S = 20  # for a bench to end its servers and containers, and to delete its files
VERSIONS = """
import importlib.metadata, json, platform, sqlite3
installed = {one.name: one.version for one in importlib.metadata.distributions() if one.name}
own = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
print(json.dumps(own | {name: installed[name] for name in sorted(installed, key=str.lower)}))
"""


class Bench(NamedTuple):
    """A module that takes --to FILE and writes its results there as JSON, with a `machine`."""

    module: str  # bench.ROOM.NAME
    title: str
    quick: str  # arguments for a first look
    arguments: str = ""
    environment: str = ".venv-test"
    others: tuple[str, ...] = ()  # environments of the processes it starts, besides its own
    plot: str = ""  # a module that takes --of the results and --to FILE.svg

    @property
    def room(self) -> str:
        return self.module.split(".")[1]


STACKS = (".venv-recipe", ".venv-ours", ".venv-bare")
BENCHES = {
    "fidelity": Bench("bench.embedding.fidelity", "how close 8-bit towers stay to float32 ones", quick="--quick"),
    "models": Bench(
        "bench.embedding.models",
        "a bake and a server of each shape of the catalogue's models",
        quick="--shapes TinyCLIP-40M-32 --rounds 1",
    ),
    "thumbnails": Bench(
        "bench.embedding.thumbnails", "how close vectors of thumbnails stay to those of the photos", quick="--quick"
    ),
    "peers": Bench(
        "bench.embedding.peers",
        "embedding beside the libraries people would pick instead",
        quick="--rounds 1 --starts 1 --array-mb 256",
        others=(".venv-peers", ".venv-open-clip", ".venv-infinity"),
        plot="bench.embedding.plot_peers",
    ),
    "families": Bench(
        "bench.embedding.families",
        "each family of models beside its library",
        quick="--rounds 1 --starts 1 --only multilingual",
        others=(".venv-peers", ".venv-open-clip"),
    ),
    "growth": Bench(
        "bench.embedding.growth",
        "how cost grows with text, batch, clients and image",
        quick="--rounds 1 --seconds 1",
        others=(".venv-ours", ".venv-bare"),
        plot="bench.embedding.plot_growth",
    ),
    "embed": Bench(
        "bench.embedding.embed",
        "llm clip embed beside llm embed-multi",
        quick="--images 20 --pairs 1",
        arguments="--pairs 5",
    ),
    "first_mile": Bench(
        "bench.photos.first_mile",
        "a new user, from a folder of photos to one of them, large",
        quick="--photos 20 --rounds 1",
    ),
    "rclip": Bench(
        "bench.photos.beside_rclip",
        "embedding and searching a folder of photos beside rclip",
        quick="--small 20 --large 4 --rounds 1",
        others=(".venv-rclip",),
    ),
    "bulk": Bench(
        "bench.photos.bulk",
        "photos a second of a folder beside rclip and clip-retrieval",
        quick="--small 20 --large 12 --rounds 1",
        others=(".venv-rclip", ".venv-clip-retrieval"),
    ),
    "search": Bench(
        "bench.search.search",
        "ways to search up to a million vectors",
        quick="--sizes 1000 --rounds 1",
        environment=DRAWING,
        plot="bench.search.plot_search",
    ),
    "scan": Bench("bench.search.scan", "ordering a whole table by cosine in SQL", quick="--rows 1000 --pairs 1"),
    "keystrokes": Bench("bench.search.keystrokes", "the search page, from a key to the rows", quick="--phrases 1"),
    "recipe": Bench(
        "bench.server.recipe",
        "the recipe's stack beside ours: start, queries, memory",
        quick="--pairs 1",
        others=STACKS,
    ),
    "recipe-tokenizer-json": Bench(
        "bench.server.recipe",
        "the same with the tokenizer in one file",
        quick="--tokenizer-json --pairs 1",
        arguments="--tokenizer-json --pairs 3",
        others=STACKS,
    ),
    "crowd": Bench(
        "bench.server.crowd",
        "25 clients at once, of the recipe's stack and of ours",
        quick="--pairs 1 --seconds 5",
        others=STACKS,
    ),
    "cold_start": Bench(
        "bench.server.cold_start",
        "where a cold start goes, import by import",
        quick="--pairs 1",
        others=(".venv-ours", ".venv-bare"),
    ),
    "pages": Bench(
        "bench.server.pages",
        "the pages of 20,000 photos: times and bytes",
        quick="--rows 1000 --rounds 1",
    ),
    "second_start": Bench(
        "bench.server.second_start",
        "llm clip serve over photos that it knows already",
        quick="--photos 50 --starts 1",
    ),
    "classify": Bench(
        "bench.server.classify",
        "classifying an image beside torch",
        quick="--pairs 1",
        others=(".venv-recipe", ".venv-ours"),
    ),
    "load": Bench("bench.server.load", "soaking, heavy queries, two instances", quick="--minutes 0.2 --seconds 6"),
    "container": Bench(
        "bench.container.container", "the container: size, cold start, least memory", quick="--starts 1"
    ),
}


def python_of(environment: str, here: bool) -> str:
    """The Python of an environment. Raises FileNotFoundError if that does not exist."""
    python = Path(sys.executable) if here else ROOT / environment / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"there is no {environment}: make {environment}/ready makes it, or run with --here")
    return str(python)


def results_in(file: Path) -> dict:
    return json.loads(file.read_text()) if file.exists() else {"versions": {}, "benches": {}}


def all_results(folder: Path) -> dict[str, dict]:
    """Bench -> its results, of all rooms in a folder."""
    files = {bench.room: folder / bench.room / "results.json" for bench in BENCHES.values()}
    return {name: results for file in files.values() for name, results in results_in(file)["benches"].items()}


def keep(name: str, results: dict, folder: Path, pythons: dict[str, str]) -> None:
    """Put the results of a bench into its room's file, with the versions in the environments of these Pythons."""
    bench = BENCHES[name]
    file = folder / bench.room / "results.json"
    kept = results_in(file)
    for environment, python in pythons.items():
        printed = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True).stdout
        kept["versions"][environment] = json.loads(printed)
    everything = kept["benches"] | {name: results | {"environment": bench.environment}}
    kept["benches"] = {one: everything[one] for one in BENCHES if one in everything}
    part = file.with_suffix(".new")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(json.dumps(kept, indent=1) + "\n")
    part.replace(file)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def expected(names: list[str], kept: dict[str, dict]) -> str:
    """How long the last runs of these benches took, such as "~6:10"; "?" if one of them was never timed."""
    took_s = [kept[name]["took_s"] for name in names if "took_s" in kept.get(name, {})]
    return f"~{clock(sum(took_s))}" if len(took_s) == len(names) else "?"


def pass_lines(command: list[str]) -> int:
    """Run a command in a session of its own and pass on its lines. Returns its exit code once all it started ended."""
    own = {"cwd": ROOT, "env": os.environ | {"PYTHONUNBUFFERED": "1"}, "start_new_session": True}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, text=True, errors="replace", **own, **pipes)
    reader = threading.Thread(target=lambda: [print("   ", line.rstrip()) for line in process.stdout], daemon=True)
    try:
        reader.start()
        process.wait()
    finally:
        end(process)
    reader.join(5)
    return process.returncode


def end(process: subprocess.Popen) -> None:
    """End a bench, give it time to delete its files, and kill the rest of its session."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(TO_END_S)
    with suppress(ProcessLookupError):  # the session is empty
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(name: str, quick: bool, here: bool, folder: Path) -> str:
    """Run a bench, keep its results except those of a quick look, and draw them: "", or what failed."""
    bench, began_s = BENCHES[name], time.monotonic()
    try:
        python = python_of(bench.environment, here)
    except FileNotFoundError as error:
        return str(error)
    with tempfile.TemporaryDirectory(prefix="clip-bench-run-") as place:
        file = Path(place) / f"{name}.json"
        kept = all_results(folder)
        if name in kept and not quick:  # search adds to the results in --to
            file.write_text(json.dumps(kept[name]))
        arguments = shlex.split(bench.quick if quick else bench.arguments)
        code = pass_lines([python, "-m", bench.module, *arguments, "--to", str(file)])
        if code:
            return f"ended with {code}"
        if quick:
            return ""
        if not file.exists():
            return "wrote no results"
        how = {"command": shlex.join(["python", "-m", bench.module, *arguments])}
        how["took_s"] = round(time.monotonic() - began_s)
        others = {one: str(ROOT / one / "bin/python") for one in bench.others if (ROOT / one / "bin/python").exists()}
        keep(name, json.loads(file.read_text()) | how, folder, {bench.environment: python} | others)
        return draw(bench.plot, here, file, folder / bench.room / f"{name}.svg") if bench.plot else ""


def draw(plot: str, here: bool, results: Path, to: Path) -> str:
    """Draw the results of a bench: "", or what failed."""
    try:
        python = python_of(DRAWING, here)
    except FileNotFoundError as error:
        return f"its plot is not drawn: {error}"
    code = pass_lines([python, "-m", plot, "--of", str(results), "--to", str(to)])
    return f"its plot is not drawn: {plot} ended with {code}" if code else ""


def run_all(names: list[str], quick: bool, here: bool, folder: Path) -> dict[str, str]:
    """Run benches one after the other: the names of those that failed, and why."""
    kept, failed, began_s = {} if quick else all_results(folder), {}, time.monotonic()
    times = expected(names, kept)
    for number, name in enumerate(names, start=1):
        print(f"[{number} of {len(names)}] {name} {expected([name], kept)}, all {times}: {BENCHES[name].title}")
        if why := run(name, quick, here, folder):
            failed[name] = why
            print(f"{name}: {why}")
    print(f"{len(names) - len(failed)} of {len(names)} in {clock(time.monotonic() - began_s)}")
    return failed


def listing(kept: dict[str, dict]) -> str:
    """A line for each bench: its name, the duration and the date of its last run, and its title."""
    lines = []
    for name, bench in BENCHES.items():
        results = kept.get(name, {})
        took = clock(results["took_s"]) if "took_s" in results else "?"
        lines.append(f"{name:22} {took:>7}  {results.get('date', 'never'):20}  {bench.title}")
    return "\n".join([f"{'':22} {'min:s':>7}  {'last run':20}", *lines])


def needed(names: list[str]) -> list[str]:
    """The Makefile's targets of the environments of these benches and of their plots."""
    environments = [one for name in names for one in (BENCHES[name].environment, *BENCHES[name].others)]
    environments += [DRAWING for name in names if BENCHES[name].plot]
    return [f"{one}/ready" for one in dict.fromkeys(environments)]


def stop(number: int, _frame: object) -> None:
    """Exit by an exception, so that files are deleted, and ignore all further signals meanwhile."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="without: all")
    parser.add_argument("--quick", action="store_true", help="few turns of each, for a first look; nothing is kept")
    parser.add_argument("--here", action="store_true", help="in the Python that runs this instead of .venv-...")
    parser.add_argument("--list", action="store_true", help="print the names, and how long the last runs took")
    parser.add_argument("--needs", action="store_true", help="print the targets that make must make first")
    parser.add_argument("--keep", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--to", type=Path, default=ROOT / "bench", help="another folder of rooms than bench")
    options = parser.parse_args()
    for name in [*options.names, *(file.stem for file in options.keep)]:
        if name not in BENCHES:
            parser.error(f"there is no bench {name!r}; there are {', '.join(BENCHES)}")
    names = [name for name in BENCHES if name in options.names or not options.names]
    if options.needs:
        return print(*needed(names))
    if options.list:
        return print(listing(all_results(options.to)))
    for file in options.keep:
        keep(file.stem, json.loads(file.read_text()), options.to, {})
    if options.keep:
        return None
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, stop)
    sys.stdout.reconfigure(line_buffering=True)
    if failed := run_all(names, options.quick, options.here, options.to.resolve()):
        sys.exit("failed: " + "; ".join(f"{name}, {why}" for name, why in failed.items()))
    return None


if __name__ == "__main__":
    main()

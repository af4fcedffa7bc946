"""Runs the benches, all of them or those named, one after the other, and keeps what they find in one file.

    python bench/run.py [NAME ...] [--quick] [--here]     --list tells the names
    python bench/run.py --keep FILE ...                   what benches wrote with --to FILE, called NAME.json

bench/results.json: the machine of the last run, the versions of all that each environment has, and under `benches`
what each found, with its own date, command and machine, for they need not be of one day. A bench runs in a process and
a session of its own, in its environment (the Makefile makes them), or with --here in the Python that runs this. Where
one fails the others follow, and the end names it. Ctrl-C or SIGTERM ends the bench; what a bench leaves running is
ended too. It measures nothing, and needs nothing but Python.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
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

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results.json"
DRAWING = ".venv-bench"  # the environment with matplotlib
TO_END_S = 20  # for a bench to end its servers and containers, and to delete its files
TOLD_EVERY_S = 60  # where there is no terminal to write over
VERSIONS = """
import importlib.metadata, json, platform, sqlite3
found = {one.name: one.version for one in importlib.metadata.distributions() if one.name}
own = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
print(json.dumps(own | {name: found[name] for name in sorted(found, key=str.lower)}))
"""


class Bench(NamedTuple):
    """A script beside this one. It takes --to FILE, and writes there as JSON what it found, with a `machine`."""

    script: str
    what: str
    quick: str  # arguments for a first look
    arguments: str = ""
    environment: str = ".venv-test"
    others: tuple[str, ...] = ()  # environments of what it starts, where those are not its own
    plot: str = ""  # a script that takes --of what the bench wrote and --to FILE.svg


BENCHES = {
    "fidelity": Bench("fidelity.py", "how close 8-bit towers stay to float32 ones", quick="--quick"),
    "scan": Bench("scan.py", "ordering a whole table by cosine in SQL", quick="--rows 1000 --pairs 1"),
    "recipe": Bench("recipe.py", "the recipe's stack beside ours: start, queries, memory", quick="--pairs 1"),
    "recipe-tokenizer-json": Bench(
        "recipe.py",
        "the same where the tokenizer is one file",
        quick="--tokenizer-json --pairs 1",
        arguments="--tokenizer-json --pairs 3",
    ),
    "crowd": Bench("crowd.py", "25 clients at once, of the recipe's stack and of ours", quick="--pairs 1 --seconds 5"),
    "cold_start": Bench("cold_start.py", "where a cold start goes, import by import", quick="--pairs 1"),
    "peers": Bench(
        "peers.py",
        "embedding beside the libraries people would pick instead",
        quick="--rounds 1 --starts 1 --array-mb 256",
        others=(".venv-peers", ".venv-open-clip", ".venv-infinity"),
        plot="plot_peers.py",
    ),
    "growth": Bench(
        "growth.py",
        "how cost grows with text, batch, clients and image",
        quick="--rounds 1 --seconds 1",
        plot="plot_growth.py",
    ),
    "embed": Bench(
        "embed.py", "llm clip embed beside llm embed-multi", quick="--images 20 --pairs 1", arguments="--pairs 5"
    ),
    "classify": Bench("classify.py", "classifying an image beside torch", quick="--pairs 1"),
    "keystrokes": Bench("keystrokes.py", "the search page, from a key to the rows", quick="--phrases 1"),
    "container": Bench("container.py", "the container: size, cold start, least memory", quick="--starts 1"),
    "load": Bench("load.py", "soaking, heavy queries, two instances", quick="--minutes 0.2 --seconds 6"),
    "search": Bench(
        "search.py",
        "ways to search up to a million vectors",
        quick="--sizes 1000 --rounds 1",
        environment=DRAWING,
        plot="plot_search.py",
    ),
}


def python_of(environment: str, here: bool) -> str:
    """The Python of an environment. Raises FileNotFoundError where that is not there."""
    python = Path(sys.executable) if here else ROOT / environment / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"there is no {environment}: make {environment}/ready makes it, or run with --here")
    return str(python)


def results_in(file: Path) -> dict:
    return json.loads(file.read_text()) if file.exists() else {"machine": {}, "versions": {}, "benches": {}}


def keep(name: str, found: dict, file: Path, python: str | None = None) -> None:
    """Put what a bench found into the one file, with the versions of the environment whose Python ran it."""
    results, environment = results_in(file), BENCHES[name].environment
    results["machine"] = found["machine"]
    if python:
        listed = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True)
        results["versions"][environment] = json.loads(listed.stdout)
    all_found = results["benches"] | {name: found | {"environment": environment}}
    results["benches"] = {one: all_found[one] for one in BENCHES if one in all_found}
    part = file.with_suffix(".new")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(file)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class Progress:
    """Which bench of how many runs, for how long, and how long the last runs took; lines of benches pass through."""

    def __init__(self, names: list[str], kept: dict[str, dict]):
        self.names, self.began_s = names, time.monotonic()
        self.expected_s = {name: kept[name]["took_s"] for name in names if "took_s" in kept.get(name, {})}
        self.number, self.told_s, self.on_terminal = 0, 0.0, sys.stdout.isatty()

    def begin(self, name: str) -> None:
        self.number, self.one_began_s = self.names.index(name) + 1, time.monotonic()
        self.line(f"{self.status()}: {BENCHES[name].what}")

    def status(self) -> str:
        """Such as "[2 of 3] recipe 1:05 of about 6:10, all 2:00 of about 13:00"; "+": one was never timed."""
        name, now_s = self.names[self.number - 1], time.monotonic()
        untimed = len(self.expected_s) < len(self.names)
        one = f" of about {clock(self.expected_s[name])}" if name in self.expected_s else ""
        every = f" of about {clock(sum(self.expected_s.values()))}{'+' * untimed}" if self.expected_s else ""
        took = f"{name} {clock(now_s - self.one_began_s)}{one}, all {clock(now_s - self.began_s)}{every}"
        return f"[{self.number} of {len(self.names)}] {took}"

    def line(self, text: str) -> None:
        print(("\r\x1b[K" if self.on_terminal else "") + text, flush=True)
        self.told_s = time.monotonic()

    def wait(self) -> None:
        """Say how far it is, on a terminal over the last line, elsewhere where nothing was said for a minute."""
        if self.on_terminal:
            print(f"\r\x1b[K{self.status()}", end="", flush=True)
        elif time.monotonic() - self.told_s > TOLD_EVERY_S:
            self.line(self.status())


def pass_lines(command: list[str], progress: Progress) -> int:
    """Run a command, in a session of its own, its lines passing through: its exit code, once all it started ended."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True)
    try:
        reader.start()
        while process.poll() is None:
            show(lines, progress)
    finally:
        end(process)
    reader.join(5)
    while not lines.empty():
        show(lines, progress)
    return process.returncode


def show(lines: queue.Queue[str], progress: Progress) -> None:
    try:
        progress.line(f"    {lines.get(timeout=0.5).rstrip()}")
    except queue.Empty:
        progress.wait()


def end(process: subprocess.Popen) -> None:
    """End a bench, which may take a while to put things away, and then whatever of its session is left."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(TO_END_S)
    with suppress(ProcessLookupError):  # nothing is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(name: str, progress: Progress, quick: bool, here: bool, to: Path) -> str:
    """Run a bench, keep what it found but for a quick look, and draw it: "" or what failed, in words."""
    bench, began_s = BENCHES[name], time.monotonic()
    try:
        python = python_of(bench.environment, here)
    except FileNotFoundError as error:
        return str(error)
    with tempfile.TemporaryDirectory(prefix="clip-bench-run-") as place:
        file = Path(place) / f"{name}.json"
        kept = results_in(to)["benches"]
        if name in kept and not quick:  # bench/search.py adds to what it finds there
            file.write_text(json.dumps(kept[name]))
        script, arguments = str(Path("bench") / bench.script), shlex.split(bench.quick if quick else bench.arguments)
        code = pass_lines([python, script, *arguments, "--to", str(file)], progress)
        if code:
            return f"ended with {code}"
        if quick:
            return ""
        if not file.exists():
            return "wrote no results"
        how = {"command": shlex.join(["python", script, *arguments]), "took_s": round(time.monotonic() - began_s)}
        keep(name, json.loads(file.read_text()) | how, to, python)
        return draw(bench.plot, progress, here, file, to.parent / "results" / f"{name}.svg") if bench.plot else ""


def draw(plot: str, progress: Progress, here: bool, of: Path, to: Path) -> str:
    """Draw what a bench found: "" or what failed."""
    to.parent.mkdir(exist_ok=True)
    try:
        python = python_of(DRAWING, here)
    except FileNotFoundError as error:
        return f"its plot is not drawn: {error}"
    code = pass_lines([python, str(Path("bench") / plot), "--of", str(of), "--to", str(to)], progress)
    return f"its plot is not drawn: {plot} ended with {code}" if code else ""


def run_all(names: list[str], quick: bool, here: bool, to: Path) -> dict[str, str]:
    """Run benches one after the other: the names of those that failed, and how."""
    progress, failed = Progress(names, {} if quick else results_in(to)["benches"]), {}
    for name in names:
        progress.begin(name)
        if how := run(name, progress, quick, here, to):
            failed[name] = how
            progress.line(f"{name}: {how}")
    progress.line(f"{len(names) - len(failed)} of {len(names)} in {clock(time.monotonic() - progress.began_s)}")
    return failed


def listed(kept: dict[str, dict]) -> str:
    """A line for each bench: its name, how long its last run took and when that was, and what it is."""
    lines = []
    for name, bench in BENCHES.items():
        found = kept.get(name, {})
        took = clock(found["took_s"]) if "took_s" in found else "?"
        lines.append(f"{name:22} {took:>7}  {found.get('date', 'never'):20}  {bench.what}")
    return "\n".join([f"{'':22} {'min:s':>7}  {'last run':20}", *lines])


def needed(names: list[str]) -> list[str]:
    """The Makefile's targets of the environments of these benches, and of that which draws."""
    environments = [one for name in names for one in (BENCHES[name].environment, *BENCHES[name].others)]
    environments += [DRAWING for name in names if BENCHES[name].plot]
    return [f"{one}/ready" for one in dict.fromkeys(environments)]


def stop(number: int, _frame: object) -> None:
    """Leave by an exception, so that all is put away; no other signal may hinder that."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="without: all")
    parser.add_argument("--quick", action="store_true", help="few turns of each, for a first look; nothing is kept")
    parser.add_argument("--here", action="store_true", help="in the Python that runs this instead of .venv-...")
    parser.add_argument("--list", action="store_true", help="tell the names, and how long the last runs took")
    parser.add_argument("--needs", action="store_true", help="tell what make must make first")
    parser.add_argument("--keep", type=Path, nargs="+", default=[], metavar="FILE")
    parser.add_argument("--to", type=Path, default=RESULTS, help="another file than bench/results.json")
    options = parser.parse_args()
    for name in [*options.names, *(file.stem for file in options.keep)]:
        if name not in BENCHES:
            parser.error(f"there is no bench {name!r}; there are {', '.join(BENCHES)}")
    names = [name for name in BENCHES if name in options.names or not options.names]
    if options.needs:
        return print(*needed(names))
    if options.list:
        return print(listed(results_in(options.to)["benches"]))
    for file in options.keep:
        keep(file.stem, json.loads(file.read_text()), options.to)
    if options.keep:
        return None
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, stop)
    if failed := run_all(names, options.quick, options.here, options.to.resolve()):
        sys.exit("failed: " + "; ".join(f"{name}, {how}" for name, how in failed.items()))
    return None


if __name__ == "__main__":
    main()

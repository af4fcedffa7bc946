"""The command of a bench: its options, the machine and date of the run, and the printed and written results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench.harness import ROOT

Results = dict[str, Any]
BEGAN_S = time.perf_counter()


def main(
    doc: str | None,
    measure: Callable[[Path, argparse.Namespace], Results],
    table: Callable[[Results], str],
    **defaults: Any,
) -> None:
    """Measure in a new folder, print the table of the results, and write all of them to --to FILE.

    Each of `defaults` is an option: a flag if it is False, many values if it is a tuple, without a default if it is a
    type. A long bench calls options.keep(RESULTS) now and then, so that a run that is ended keeps what it has.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **option(default))
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    end_by_exception()
    results = origin()
    options.keep = lambda found: write(results | found, options.to)
    with tempfile.TemporaryDirectory(prefix="clip-bench-") as place:
        results |= measure(Path(place), options)
    write(results, options.to)
    print(table(results))


def write(results: Results, to: Path | None) -> None:
    """Write results to a file, if there is one."""
    if to:
        to.write_text(json.dumps(results, indent=1) + "\n")


def option(default: Any) -> dict[str, Any]:
    """The arguments of `add_argument` for a default."""
    if default is False:
        return {"action": "store_true"}
    if isinstance(default, type):
        return {"type": default}
    if isinstance(default, tuple):
        return {"type": type(default[0]), "nargs": "+", "default": default}
    return {"type": type(default), "default": default}


def end_by_exception() -> None:
    """Make SIGTERM raise SystemExit, so that servers are ended and files are deleted as after Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def origin() -> Results:
    """The first results of every bench: the date, the command without --to, and the machine."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--to")
    _, words = parser.parse_known_args(sys.argv[1:])
    module = ".".join(Path(sys.argv[0]).resolve().relative_to(ROOT).with_suffix("").parts)
    return {"date": now(), "command": shlex.join(["python", "-m", module, *words]), "machine": machine()}


def now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def machine() -> dict[str, str | int | float]:
    """Facts of this machine. A load average above 0.5 at the start means that something else was running."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    cpu = re.search(r"model name\s*: (.*)", cpuinfo)
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cpu_flags": " ".join(sorted(set(re.findall(r"\b(?:avx512f|\w*vnni|amx_int8)\b", cpuinfo)))),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "load_average_at_start": os.getloadavg()[0],
    }


def source_line(results: Results) -> str:
    """The last line of a table: the machine, the date and the command."""
    facts = results["machine"]
    return f"{facts['cpu']} ({facts['cpu_flags']}), {facts['cores']} cores, {results['date']}, {results['command']}"


def load_words(results: Results) -> str:
    return f"load {results['machine']['load_average_at_start']:.1f} at the start"


def say(text: str) -> None:
    """Print progress on stderr, with the seconds since the start."""
    print(f"[{time.perf_counter() - BEGAN_S:4.0f} s] {text}", file=sys.stderr, flush=True)

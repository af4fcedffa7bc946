"""Child processes that answer each line of JSON on their input with one line of JSON on their output.

A child may run in another environment than this one: `answer_requests` needs nothing but Python.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import ROOT
from listening import end

ANSWER_LIMIT_S = 180


@dataclass
class Child:
    """A running child process."""

    process: subprocess.Popen
    log: Path

    def ask(self, **request: Any) -> Any:
        """The child's answer. Raises RuntimeError with its error, or with the end of its log if it gives none."""
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise RuntimeError(self.last_words()) from None
        if not select.select([self.process.stdout], [], [], ANSWER_LIMIT_S)[0]:
            raise RuntimeError(f"no answer in {ANSWER_LIMIT_S} s")
        reply = json.loads(self.process.stdout.readline() or json.dumps({"error": self.last_words()}))
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["answer"]

    def last_words(self) -> str:
        return f"ended with {self.process.wait(10)}: {self.log.read_text().strip()[-200:]}"


@contextmanager
def child(command: list, log: Path) -> Iterator[Child]:
    """The child process of a command, run in the project's root; ended on the way out."""
    with log.open("w") as stream:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stream}
        process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    try:
        yield Child(process, log)
    finally:
        end(process)
        process.stdin.close()
        process.stdout.close()


def answer_requests(handle: Callable[..., Any]) -> None:
    """In the child: answer each request with `handle(**request)`, or with its exception, until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print
    for line in sys.stdin:
        try:
            reply = {"answer": handle(**json.loads(line))}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=answers)

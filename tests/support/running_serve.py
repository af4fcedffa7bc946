"""Starts `llm clip serve` for tests and benches, and reads what it prints."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from patience import PATIENCE_S, has_ended, until
from serving import BIN


class Running:
    """A running `llm clip serve`, with what it has printed."""

    def __init__(self, process: subprocess.Popen, output: Path):
        self.process, self.output = process, output

    @property
    def text(self) -> str:
        return self.output.read_text()

    def prints(self, pattern: str) -> re.Match:
        """The match of a pattern in its output, once it is there."""

        def match() -> re.Match | None:
            ended, text = self.process.poll() is not None, self.text
            found = re.search(pattern, text)
            assert found or not ended, text
            return found

        return until(match)

    @property
    def url(self) -> str:
        return self.prints(r"Search at (http://\S+)")[1]

    def search(self, query: str = "", **fields) -> dict:
        response = httpx.get(f"{self.url}.json", params={"q": query} | fields)
        assert response.status_code == 200, response.text
        return response.json()

    def ids(self) -> set[str]:
        return {row["id"] for row in self.search("red heart", k=100)["results"]}

    def end(self, number: int = signal.SIGINT) -> int:
        """Its exit code after a signal. All its processes have ended then."""
        processes = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        assert all(has_ended(process) for process in processes)
        return code


@contextmanager
def serve(
    *arguments: str | Path, env: dict[str, str], output: Path, limit: Callable[[], None] | None = None
) -> Iterator[Running]:
    """`llm clip serve ARGUMENTS` on a free port, without a browser, in a process group of its own."""
    command = [str(BIN / "llm"), "clip", "serve", "--no-open", "-p", "0", *map(str, arguments)]
    with output.open("w") as stream:
        process = subprocess.Popen(
            command, env=env, stdout=stream, stderr=subprocess.STDOUT, preexec_fn=limit, process_group=0
        )
    try:
        yield Running(process, output)
    finally:
        process.terminate()
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(PATIENCE_S)
        finally:
            for child in psutil.Process().children(recursive=True) if process.poll() is None else []:
                child.kill()
            process.kill()
            process.wait()
